"""A report of what is damaged, unfinished, huge or unknown says so and holds no markup of the run."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from report_scene import _page, _panel, _Reader, _round, _summary, _write

from fedkd.errors import DataError
from fedkd.journal import Run, read_run
from fedkd.records import RoundReport
from fedkd.report import render, write_report


@pytest.fixture
def run(tmp_path):
    return _write(tmp_path / "digits-001", [_round(r) for r in (1, 2, 3)], _summary())


def test_nulls_everywhere_do_not_crash(tmp_path):
    def emptied(value):
        if isinstance(value, dict):
            return {key: emptied(v) for key, v in value.items()}
        return value if isinstance(value, int) and value in (1, 2, 3) else None

    rounds = [emptied(_round(r)) | {"round": r} for r in (1, 2, 3)]
    page = _page(_write(tmp_path / "nulls", rounds, emptied(_summary())))
    assert "accuracy is not known in this run" in page
    assert page.count("Not known in this run.") >= 8
    assert "None" not in re.sub(r"<style>.*?</style>", "", page, flags=re.S)
    bare = _page(_write(tmp_path / "bare", [{"round": 1}], {}))
    assert "None" not in re.sub(r"<style>.*?</style>", "", bare, flags=re.S)


words = st.text(max_size=20)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), words),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=3)),
    max_leaves=6,
)


@settings(max_examples=40, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))  # pages are slow
@given(st.data())
def test_whatever_stands_in_the_files_the_page_is_made_and_holds_no_markup_of_the_run(data):
    def spoiled(table):
        table = dict(table)
        for key in data.draw(st.lists(st.sampled_from(sorted(table)), max_size=4)):
            table[key] = data.draw(values)
        return table

    summary = spoiled(_summary())
    for key, value in list(summary.items()):
        if isinstance(value, dict) and value and data.draw(st.booleans()):
            summary[key] = spoiled(value)
    line = _round(1)
    line["metrics"], line["seconds"] = spoiled(line["metrics"]), spoiled(line["seconds"])
    line["clients"]["0"], line["latency"] = spoiled(line["clients"]["0"]), spoiled(line["latency"])
    page = render(Run(Path("run"), [RoundReport(**line)], summary))
    assert "script" not in _Reader(page).tags
    assert not re.search(r'="[^"]*\bnan\b', page)


def test_names_from_a_run_are_escaped(tmp_path):
    evil = "<script>alert('x')</script>\"><img src=http://x>"
    page = _page(_write(tmp_path / "evil", [_round(r, word=evil) for r in (1, 2)], _summary(word=evil)))
    tags = _Reader(page).tags
    assert not tags & {"script", "img", "iframe", "object", "embed", "audio", "video"}
    assert "&lt;script&gt;" in page


def test_the_page_loads_nothing(run):
    reader = _Reader(_page(run))
    for name, value in reader.attributes:
        assert name not in ("src", "srcset", "action", "poster") and not name.startswith("on")
        assert name not in ("href", "xlink:href") or value == "data:,"
    page = _page(run)
    assert "url(" not in page and "@import" not in page
    assert "default-src 'none'" in page


def test_a_page_of_100_clients_100_rounds_and_100_classes_stays_below_300_kb(tmp_path):
    word = " & a name that is not short"
    rounds = [_round(r, clients=100, word=word) for r in range(1, 101)]
    path = write_report(_write(tmp_path / "big", rounds, _summary(clients=100, classes=100, word=word)))
    assert path.stat().st_size < 300_000
    page = path.read_text()
    assert "of 100" in _panel(page, "clients")
    assert "Each column covers 4 rounds and shows the worst of them" in _panel(page, "presence")
    assert "the last row and column gather the other 81" in _panel(page, "confusion")


def test_a_thousand_rounds_are_thinned_and_the_page_says_so(tmp_path):
    path = write_report(_write(tmp_path / "long", [_round(r, clients=3) for r in range(1, 1001)], _summary(clients=3)))
    assert path.stat().st_size < 300_000
    assert "Shown: 100 of 1000 rows, evenly spread." in path.read_text()


def test_gathering_classes_keeps_every_count(tmp_path):
    path = _write(tmp_path / "many", [_round(1)], _summary(classes=30))
    total = sum(map(sum, _summary(classes=30)["confusion"]))
    assert f"of {total:,} answers are right" in _page(path)


def test_the_same_run_gives_the_same_page(run):
    assert _page(run) == _page(run)


def test_a_torn_last_line_is_left_out_with_a_note(run):
    with open(run / "metrics.jsonl", "a") as stream:
        stream.write(json.dumps(_round(4))[:200])
    assert [r.round for r in read_run(run).rounds] == [1, 2, 3]
    assert "The last line of metrics.jsonl (line 4) is torn and was left out." in _page(run)


def test_a_damaged_line_in_the_middle_is_an_error_that_names_it(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([lines[0], lines[1][:90], lines[2]]) + "\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl' line 2 is damaged"):
        read_run(run)


def test_the_later_line_of_a_round_counts(run):
    with open(run / "metrics.jsonl", "a") as stream:
        stream.write(json.dumps(_round(3) | {"metrics": {"student": 0.5}}) + "\n")
    read = read_run(run)
    assert [r.round for r in read.rounds] == [1, 2, 3]
    assert read.last("student") == 0.5
    assert "round 3 more than once" in read.notes[0]


def test_a_damaged_summary_is_left_out_with_a_note(run):
    (run / "summary.json").write_text('{"name": "dig')
    page = _page(run)
    assert "summary.json is damaged and was left out" in page
    assert ">unfinished<" in page


def test_errors_name_the_nearest_run(run):
    with pytest.raises(DataError, match=r"there is no run directory '.*digits-01'\. Did you mean 'digits-001'\?"):
        write_report(run.parent / "digits-01")
    with pytest.raises(DataError, match=r"is a file, expected a run directory\. Give its directory"):
        write_report(run / "metrics.jsonl")
    (run.parent / "digits-0").mkdir()
    with pytest.raises(DataError, match=r"is no run directory: it has no metrics\.jsonl\. Did you mean"):
        write_report(run.parent / "digits-0")


def test_a_run_without_a_finished_round_is_an_error_in_one_line(tmp_path):
    path = _write(tmp_path / "new", [])
    (path / "config.toml").write_text("seed = 1\n")
    with pytest.raises(DataError, match="has no finished round in metrics.jsonl") as error:
        write_report(path)
    assert "\n" not in str(error.value)


def test_which_classes_a_client_holds_is_drawn_only_where_it_is_known(tmp_path):
    summary = _summary(classes=3)
    page = _page(_write(tmp_path / "unknown", [_round(1)], summary))
    assert 'id="held"' not in page
    summary["data"]["held"] = {"0": [5, 0, 0], "1": [1, 2, 3]}
    summary["data"]["private"] = None
    panel = _panel(_page(_write(tmp_path / "known", [_round(1)], summary)), "held")
    assert "A client holds 1 to 3 of 3 classes." in panel
    assert "<svg" in panel


def test_one_round_has_no_change_to_show_and_one_number_of_bytes(tmp_path):
    page = _page(_write(tmp_path / "one", [_round(1)], _summary()))
    assert (
        "<th>points" not in _panel(page, "clients") and "last round" not in _panel(page, "clients").split("<table")[1]
    )
    assert "a round; received" in page


def test_a_mistake_is_told_as_what_was_answered_and_what_is_true(run):
    assert "answered where" in _panel(_page(run), "confusion")


def test_a_failure_is_told_above_the_table(run):
    assert "failed: soft labels must be finite" in _panel(_page(run), "presence").split("<table")[0]


def test_a_slow_first_round_leaves_the_other_rounds_their_colors(tmp_path):
    rounds = [_round(r) for r in (1, 2, 3)]
    rounds[0]["latency"] = {key: 100.0 for key in rounds[0]["latency"]}
    panel = _panel(_page(_write(tmp_path / "slow", rounds, _summary())), "latency")
    assert all(f"level-{i}" in panel for i in range(1, 4))


def test_a_run_without_a_student_says_so(tmp_path):
    summary = _summary()
    summary["scoreboard"]["student"] = None
    summary["config"]["student"] = "none"
    rounds = [_round(1)]
    rounds[0]["metrics"]["student"] = None
    page = _page(_write(tmp_path / "none", rounds, summary))
    assert "There is no student (student = none)." in page and "Deployments" not in page
    assert (
        "The clients&#39; own models answer 54.6% of the test set correctly on average.</strong> The best one" in page
    )
    assert "How good are the clients&#39; own models? After round 1 they answer 54.6% correctly on average." in page
    summary["confusion"], summary["config"]["keys"] = None, "classes"
    summary["scoreboard"]["ensemble"] = rounds[0]["metrics"]["ensemble"] = None
    page = _page(_write(tmp_path / "no-confusion", rounds, summary))
    assert '<p class="unknown">No student (student = none).</p>' in _panel(page, "confusion")
    assert "not about samples (keys = classes)" in page.split("<h2")[0]


def test_clients_are_alone_only_until_something_came_back(tmp_path):
    one = _page(_write(tmp_path / "one", [_round(1)], _summary()))
    several = _summary()
    assert "33.3 points above the average client alone and" in one and "own model and" not in one
    rounds = [_round(1), _round(2)]
    rounds[0]["metrics"]["local_mean"] = 0.2
    with_feedback = _page(_write(tmp_path / "two", rounds, several))
    assert "average client&#39;s own model" in _panel(with_feedback, "accuracy")
    assert "average client alone" not in _panel(with_feedback, "accuracy")
    assert "It is 67.9 points above the average client alone, as it was in round 1." in with_feedback
    several["config"]["feedback"] = "none"
    without = _page(_write(tmp_path / "none", rounds, several))
    assert "33.3 points above the average client alone and" in without and "as it was in round 1" not in without


def test_a_student_below_clients_that_learned_from_the_teacher_is_no_proof_of_harm(tmp_path):
    summary, rounds = _summary(), [_round(1), _round(2)]
    summary["scoreboard"] |= {"student": 0.5}
    rounds[0]["metrics"]["local_mean"] = 0.3
    page = _page(_write(tmp_path / "low", rounds, summary))
    assert "the best client is better off" in page and "made things worse" not in page


def test_what_is_not_known_says_why_where_the_configuration_tells(tmp_path):
    summary = _summary()
    summary["scoreboard"]["pooled"] = None
    summary["config"]["pooled"] = False
    assert "not trained (pooled = false)" in _page(_write(tmp_path / "pooled", [_round(1)], summary))
    rounds = [_round(1)]
    rounds[0]["clients"] = {key: {**row, "local": None} for key, row in rounds[0]["clients"].items()}
    summary["clients"] = {key: {**row, "before": None, "after": None} for key, row in summary["clients"].items()}
    private = _panel(_page(_write(tmp_path / "private", rounds, summary)), "clients")
    assert "Data table" not in private  # it would hold dashes only
    rounds[0]["metrics"] = {"bytes_up": 8.0}
    blind = {"finished": True, "config": {"evaluate": False}, "scoreboard": {}}
    page = _page(_write(tmp_path / "blind", rounds, blind))
    assert page.count("not measured (evaluate = false)") == 5
    assert '<p class="unknown">Not measured (evaluate = false).</p>' in _panel(page, "accuracy")


def test_after_one_round_every_client_has_one_dot_and_no_gain(tmp_path):
    panel = _panel(_page(_write(tmp_path / "one", [_round(1)], _summary())), "clients")
    assert ">Every client</h3>" in panel and "How good is every client alone?" in panel
    assert 'class="ring' not in panel and "±0.0" not in panel and ">points<" not in panel
    many = _panel(_page(_write(tmp_path / "many", [_round(1, clients=40)], _summary(clients=40))), "clients")
    assert "Drawn: the 15 clients of lowest and the 15 of highest accuracy, of 40." in many
    assert "gained" not in many


@pytest.mark.parametrize(
    ("away", "said"),
    [
        ([], "the first 30 clients"), ([7], "the 1 client that missed most and 29 more"),
        ([39, 3], "the 2 clients that missed most and 28 more"), (range(40), "the 30 clients that missed most"),
    ],
)  # fmt: skip
def test_who_is_drawn_of_many_clients_is_said_as_it_is(away, said, tmp_path):
    line = _round(1, clients=40)
    for key, row in line["clients"].items():
        row["status"] = "silent" if int(key) in away else "answered"
    panel = _panel(_page(_write(tmp_path / "many", [line], _summary(clients=40))), "presence")
    assert f"Drawn: {said}, of 40." in panel


def test_one_client_is_neither_average_nor_best(tmp_path):
    rounds, summary = [_round(1, clients=1), _round(2, clients=1)], _summary(clients=1)
    for r in rounds:
        r["clients"]["0"]["outlier"] = 0.2
    page = _page(_write(tmp_path / "alone", rounds, summary))
    assert "33.3 points above the only client&#39;s own model." in page
    assert "Its own model has changed by +20.0 points" in _panel(page, "clients")
    for word in ("average client", "best one", "of 1 own", "of 0 of 1", "Best client", "is farthest", "worst to best"):
        assert word not in page, word


def test_the_legend_of_who_was_there_lists_what_occurs(tmp_path):
    rounds = [_round(1)]
    for row in rounds[0]["clients"].values():
        row["status"] = "answered"
    legend = _panel(_page(_write(tmp_path / "there", rounds, _summary())), "presence").split("<table")[0]
    assert "answered</li>" in legend
    assert not any(word in legend for word in ("late, of", "silent until", "failed</li>"))


def test_the_facts_say_how_many_clients_lie(tmp_path):
    summary = _summary()
    assert " lie" not in _page(_write(tmp_path / "honest", [_round(1)], summary)).split("<h2")[0]
    for key, row in summary["clients"].items():
        row["dishonest"] = key == "3"
    assert "1 of 8 clients lie" in _page(_write(tmp_path / "liars", [_round(1)], summary))


def test_words_in_a_table_are_broken_only_where_they_must(run):
    assert re.search(r"\.t \{[^}]*overflow-wrap: break-word", _page(run))
