"""RESULTS.md is what the command writes, and whatever is in a result file can be read in it."""

import json

from simulations.results import TARGET, cell, markdown, number, over_seeds, section, words


def test_the_file_is_what_the_command_writes():
    assert TARGET.read_text(encoding="utf-8") == markdown(), "run: python -m simulations.results"


def test_every_section_says_who_measured_it_and_with_which_command():
    about = {"command": "python -m x", "machine": "2 cores", "python": "3.11", "commit": "abc1234"}
    text = section("nothing_of_this_name", {"about": about, "seeds": [0, 1]})
    assert text.startswith("## Nothing of this name\n\n`python -m x` · 2 cores · python 3.11 · commit abc1234\n")
    assert "- Seeds: 0, 1" in text


def test_a_section_opens_with_what_the_benchmark_says_of_itself():
    assert "What `fedkd run` reaches without any option" in section("default", {})


def test_spreads_by_name_become_a_table():
    spread = {"mean": 0.9445, "sd": 0.0154, "median": 0.95, "values": [0.93, 0.96]}
    one = {"mean": 2.0, "sd": None, "median": 2.0, "values": [2.0]}
    text = section("x", {"accuracy": {"student": spread, "local_mean": one}})
    assert "### Accuracy\n\n|  | mean ± sd |\n|---|---|\n| student | 0.9445 ± 0.0154 |\n| local_mean | 2 |\n" in text


def test_records_by_name_share_their_columns_and_leave_out_what_they_lack():
    text = section("x", {"aggregators": {"mean": {"ms": 3.17}, "a|b": {"ms": 2, "peak_mb": 45.25}}})
    assert "|  | ms | peak mb |\n|---|---|---|\n| mean | 3.17 |  |\n| a\\|b | 2 | 45.25 |\n" in text


def test_deeper_tables_get_headings_of_their_own_in_the_order_of_the_file():
    text = section("x", {"b": {"two": {"r": {"v": 1}}, "one": {"r": {"v": 2}}}, "a": {"k": 12345}})
    assert [line for line in text.splitlines() if line.startswith("#")] == ["## X", "### B", "#### Two", "#### One",
                                                                            "### A"]  # fmt: skip
    assert "| k | 12,345 |" in text


def test_what_was_set_is_one_line_and_no_table():
    assert "- Work: data = digits, rounds = 3" in section("x", {"work": {"data": "digits", "rounds": 3}})


def test_runs_that_differ_in_their_seed_are_one_row_and_series_show_some_rounds():
    runs = [
        {"method": "ours", "seed": seed, "rounds": 6, "student": [0.5, 0.6, 0.7, 0.7, 0.8, last], "seconds": 4.0}
        for seed, last in ((0, 0.8), (1, 0.9))
    ]
    (row,) = over_seeds(runs)
    assert (row["method"], row["seeds"]) == ("ours", 2)
    assert cell(row["student, round 6"]) == "0.85 ± 0.07071"  # sqrt((0.05^2 + 0.05^2) / 1)
    assert cell(row["student, round 5"]) == "0.8 ± 0"
    text = section("x", {"runs": runs})
    assert "| method | rounds | seeds | student, round 1 | student, round 5 | student, round 6 | seconds |" in text
    assert "| ours | 6 | 2 | 0.5 ± 0 | 0.8 ± 0 | 0.85 ± 0.07071 | 4 ± 0 |" in text


def test_numbers_keep_four_digits_and_what_is_not_known_is_a_dash():
    assert [number(x) for x in (0.85714, 12345.6, 3, True, None, "a  b", 1e-7)] == [
        "0.8571", "12,346", "3", "true", "–", "a b", "1e-07"
    ]  # fmt: skip
    assert cell(list(range(100))) == "0, 1, 2, 3, 4, 5, ..., 94, 95, 96, 97, 98, 99"
    assert cell({"a": 1}) is None
    assert words("seconds_per_round") == "Seconds per round"


def test_the_order_of_files_decides_nothing(tmp_path):
    for name in ("zeta", "alpha"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"value": 1.5}))
    text = markdown(tmp_path)
    assert text.index("## Alpha") < text.index("## Zeta")
    assert text == markdown(tmp_path)
