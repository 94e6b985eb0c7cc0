"""RESULTS.md is what the command writes, and whatever is in a result file can be read in it."""

import json

from simulations.results import TARGET, cell, markdown, number, over_seeds, section, words
from simulations.summaries import flat, frontier


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


def spread(mean, sd=0.01):
    return {"mean": mean, "sd": sd, "median": mean, "values": [mean, mean]}


def test_weights_of_ballots_are_rows_and_deals_columns():
    one = {"seeds": 5, "partition": "iid", "teacher": {"uniform": {"accuracy": spread(0.8)}}}
    two = {"seeds": 5, "partition": "x", "teacher": {"density": {"accuracy": spread(0.9)}}}
    text = section("expertise", {"tables": {"mnist": {"IID": one, "skewed": two}}})
    assert "|  | IID | skewed |" in text
    assert "| uniform | 80.0 ± 1.0 | – |\n| density | – | 90.0 ± 1.0 |" in text


def test_a_rule_against_liars_is_a_row_with_the_worst_that_was_done_to_it():
    found = {"nobody lies": spread(0.8), "attacks": {"lma, 20%": spread(0.7), "hips, loud, 40%": spread(0.5)}}
    found |= {"worst loss, 20%": {"points": 10.0, "attack": "lma, 20%"}}
    found |= {"worst loss, 40%": {"points": 30.0, "attack": "hips, loud, 40%"}}
    text = section("attacks", {"tables": {"IID": {"defend = none": found}}})
    assert "|  | IID, no liars | IID, 20 % | IID, 40 % |" in text
    assert "| defend = none | 80.0 ± 1.0 | 10.0 (lma) | 30.0 (hips, loud) |" in text


RUNS = [
    {
        "split": "iid",
        "method": name,
        "seed": seed,
        "rounds": 2,
        "student": [0.5, last],
        "up": [1000, up],
        "down": [9, 1],
    }
    for name, last, up in (("ours", 0.8, 20), ("fedavg", 0.7, 1000))
    for seed in (0, 1)
]


def test_methods_say_what_they_reached_and_what_it_took():
    text = section("methods", {"scene": {"data": "digits", "rounds": 2}, "runs": RUNS})
    assert "- Scene: data = digits, rounds = 2" in text
    assert "| IID | ours | 2 | 50.0 ± 0.0 | 1.02 kB | 10 B |" in text


def test_the_picture_of_methods_has_a_line_for_each_over_what_was_sent():
    drawn = frontier(RUNS, split="iid", rounds=2)
    assert drawn.count('class="line s') == 4  # each is drawn, and has a key
    assert "ours" in drawn
    assert "1.02 kB: 80.0%" in drawn  # what all rounds took, not the last
    assert frontier(RUNS, split="iid", rounds=5) == ""


def test_what_is_nested_is_one_row_a_number():
    assert flat({"a": {"b_c": 1, "d": {"e": 2}}, "f": 3}) == {"a, b c": 1, "a, d, e": 2, "f": 3}
    text = section("load", {"nodes": {"20": {"seconds": {"up": 1.5}}, "50": {"seconds": {"up": 3.0, "down": 2}}}})
    assert "| seconds, up | 1.5 | 3 |\n| seconds, down | – | 2 |" in text
