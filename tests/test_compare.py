import json
import re
import subprocess
import sys

import pytest
from rich.console import Console

from fedkd.errors import DataError, FedkdError
from fedkd.report.compare import compare_runs


def _run(path, scores, *, config=None, name=None, finished=True, up=8000.0):
    path.mkdir(parents=True)
    lines = [
        {
            "round": r, "metrics": {"student": score, "local_mean": 0.5, "bytes_up": up, "bytes_down": up},
            "clients": {"0": {"status": "answered", "bytes_up": up, "bytes_down": up}}, "seconds": {"clients": 2.0},
            "latency": {"0": 1.0},
        }
        for r, score in enumerate(scores, start=1)
    ]  # fmt: skip
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        summary = {
            "name": name or path.name,
            "finished": True,
            "config": config or {},
            "scoreboard": {"student": scores[-1]},
        }
        (path / "summary.json").write_text(json.dumps(summary))
    return path


@pytest.fixture
def runs(tmp_path):
    return [
        _run(tmp_path / "mean-001", [0.5, 0.81], config={"aggregate": "mean", "seed": 0, "output": "a"}),
        _run(
            tmp_path / "era-001", [0.6, 0.874], config={"aggregate": "era(temperature=0.1)", "seed": 0, "output": "b"}
        ),
    ]


def _printed(comparison, width=300):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(comparison.table())
    return console.export_text()


def test_the_table_holds_scores_bytes_and_what_differs(runs):
    text = _printed(compare_runs(runs))
    row = next(line for line in text.splitlines() if "era-001" in line)
    for cell in ("2", "87.4%", "50.0%", "32 kB", "NONE", "aggregate"):
        assert cell in row
    assert "seed" not in text and "output" not in text


def test_the_best_student_is_found_and_the_first_of_equals_wins(runs, tmp_path):
    assert compare_runs(runs).best == 1
    twin = _run(tmp_path / "twin", [0.874])
    assert compare_runs([*runs, twin]).best == 1
    assert compare_runs([_run(tmp_path / "unknown", [None])]).best == -1


@pytest.mark.parametrize("width", [80, 100, 300])
def test_the_table_is_never_wider_than_100_columns(tmp_path, width):
    paths = [
        _run(
            tmp_path / f"{'long-' * 20}{i}",
            [0.5] * 3,
            up=999e9 * 3**i,
            config={f"key_{k}": "v" * 80 + str(i) for k in range(9)},
        )
        for i in range(3)
    ]
    assert max(map(len, _printed(compare_runs(paths), width).rstrip("\n").splitlines())) <= min(width, 100)


def test_markup_in_a_name_is_printed_and_not_obeyed(tmp_path):
    assert "[red]x" in _printed(compare_runs([_run(tmp_path / "a", [0.5], name="[red]x")]))
    page = compare_runs([_run(tmp_path / "b", [0.5], name="<script>x", config={"a": "<b>"})]).html()
    assert "<script" not in page and "&lt;script&gt;x" in page


def test_the_page_draws_one_line_for_each_run_over_rounds_and_over_bytes(runs):
    page = compare_runs(runs).html()
    for name in ("rounds", "bytes"):
        panel = re.search(rf'<section class="card" id="{name}".*?</section>', page, re.S).group(0)
        assert len(re.findall(r'<path class="line s\d d0" d="M[\d.]+ [\d.]+L', panel)) == 2
        assert "<li>" in panel and "era-001" in panel
        assert "<table>" in panel
    assert "The best student is that of era-001: 87.4% after 32 kB in all." in page
    assert "None of the runs has a privacy guarantee." in page
    assert "era(temperature=0.1)" in re.search(r'id="settings".*?</section>', page, re.S).group(0)
    assert not re.search(r'(src|href)="(?!data:,)', page)


def test_many_runs_are_drawn_up_to_a_limit_that_the_page_names(tmp_path):
    paths = [_run(tmp_path / f"run-{i:03d}", [0.5 + i / 100] * 30) for i in range(30)]
    page = compare_runs(paths).html()
    assert "Drawn: the first 24 of 30 runs." in page
    assert len(page) < 300_000


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    a, b = _run(tmp_path / "a" / "run", [0.5]), _run(tmp_path / "b" / "run", [0.6])
    assert compare_runs([a, b]).names == (str(a), str(b))
    assert compare_runs([a, a]).names == (f"{a} (1)", f"{a} (2)")


def test_an_unfinished_run_and_a_torn_line_are_noted(tmp_path):
    path = _run(tmp_path / "demo", [0.5, 0.6], finished=False)
    with open(path / "metrics.jsonl", "a") as stream:
        stream.write('{"round": 3, "metr')
    comparison = compare_runs([path])
    assert comparison.notes == [
        "demo is unfinished.",
        "demo: The last line of metrics.jsonl (line 3) is torn and was left out.",
    ]
    text = _printed(comparison)
    assert "2+" in text and "torn" in text
    assert "torn" in comparison.html()


def test_a_run_without_configuration_differs_in_nothing(runs, tmp_path):
    silent = _run(tmp_path / "silent", [0.5], finished=False)
    assert list(compare_runs([*runs, silent]).settings()) == ["aggregate"]
    assert compare_runs([runs[0], silent]).settings() == {}


def test_errors_are_one_line_and_name_the_nearest_run(runs, tmp_path):
    with pytest.raises(FedkdError, match="nothing to compare"):
        compare_runs([])
    with pytest.raises(DataError, match=r"Did you mean 'mean-001'\?") as error:
        compare_runs([*runs, tmp_path / "mean-01"])
    assert "\n" not in str(error.value)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "metrics.jsonl").write_text("")
    with pytest.raises(DataError, match="has no finished round"):
        compare_runs([empty])


def test_comparing_imports_no_heavy_library(runs):
    code = (
        "import sys; from pathlib import Path; from fedkd.report.compare import compare_runs;"
        "compare_runs([Path(p) for p in sys.argv[1:]]).html();"
        "print([m for m in ('torch', 'flwr', 'sklearn', 'torchvision', 'opacus') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *map(str, runs)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_runs_on_different_data_are_not_ranked(runs):
    for path, name in zip(runs, ("digits", "mine.npz"), strict=True):
        summary = json.loads((path / "summary.json").read_text())
        (path / "summary.json").write_text(json.dumps(summary | {"data": {"name": name, "test": 400}}))
    comparison = compare_runs(runs)
    assert not comparison.same_data
    assert "cannot be ranked" in comparison.notes[0]
    page = comparison.html()
    assert "none of them is the best" in page and "The best student is that" not in page


def test_a_tie_names_both(tmp_path):
    runs = [_run(tmp_path / name, [0.8]) for name in ("one", "two")]
    assert compare_runs(runs).tied == ["two"]
    assert "one and two tie for the best student" in compare_runs(runs).html()


def test_settings_that_do_not_fit_the_row_are_told_in_full_below_the_table(tmp_path):
    runs = [_run(tmp_path / str(i), [0.8], config={key: f"{key}{i}" for key in "abcde"}) for i in range(2)]
    text = _printed(compare_runs(runs))
    assert "2 more" in text and "a = a1, b = b1, c = c1, d = d1, e = e1" in text


def test_a_run_without_a_student_is_named_and_not_in_the_legend(runs, tmp_path):
    none = _run(tmp_path / "one-fd", [None], config={"student": "none"})
    panel = re.search(r'<section class="card" id="rounds".*?</section>', compare_runs([*runs, none]).html(), re.S)[0]
    assert "No student: one-fd." in panel
    assert "one-fd" not in re.search(r'<ul class="legend">.*?</ul>', panel)[0]


def test_runs_of_one_round_have_dots_in_the_legend(runs, tmp_path):
    once = [_run(tmp_path / name, [0.8]) for name in ("one", "two")]
    legends = [re.search(r'<ul class="legend">.*?</ul>', compare_runs(r).html())[0] for r in (once, runs)]
    assert "<circle" in legends[0] and "<path" not in legends[0]
    assert "<path" in legends[1] and "<circle" not in legends[1]


def test_own_models_are_not_called_alone_in_a_comparison(runs):
    assert "mean and best of the clients' own models" in _printed(compare_runs(runs))


def test_a_value_that_differs_is_not_broken_inside_a_number(tmp_path):
    paths = [_run(tmp_path / str(i), [0.8], config={"distill": f"kl(temperature=1.{i}25, hard=0.5)"}) for i in range(2)]
    assert "temperature=1.025" in _printed(compare_runs(paths), 100)


def _told(path, score, seed=0, replay_of=None, **data):
    """Write a run whose summary states its data, and what it is a replay of."""
    folder = _run(path, [score], config={"seed": seed, "data": "digits", **data})
    summary = json.loads((folder / "summary.json").read_text())
    summary |= {"data": {"name": "digits", "test": 360}, "provenance": {"transfer_sha256": f"{seed}{data}"}}
    summary |= {"replay_of": replay_of} if replay_of else {}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_a_replay_says_what_it_is_of_and_without_whom_and_is_not_best_unless_exact(tmp_path):
    own = _told(tmp_path / "own", 0.8)
    loose, exact = (
        _told(tmp_path / name, 0.9, replay_of={"run": "own", "without": [3], "exact": name == "exact"})
        for name in ("loose", "exact")
    )
    found = compare_runs([own, loose])
    assert found.best == 0 and not found.tied
    assert found.settings() == {"without": ["–", "3"], "replay of": ["–", "own, not exact"]}
    assert "loose is a replay that is not exact: it is not ranked." in found.notes
    assert "without 3" in _printed(found) and "not exact" in _printed(found)
    assert "own, not exact" in found.html() and "The best student is that of own" in found.html()
    found = compare_runs([own, exact])
    assert found.best == 1 and found.settings()["replay of"] == ["–", "own, exact"]


def test_where_only_seeds_deal_the_data_differently_the_note_says_so(tmp_path):
    zero, one = _told(tmp_path / "zero", 0.8), _told(tmp_path / "one", 0.9, seed=1)
    words = "Seeds 0 and 1 deal the data differently: compare equal seeds, or see the sweep's table."
    found = compare_runs([zero, one])
    assert found.notes[0] == words and words.replace("'", "&#39;") in found.html()
    other = _told(tmp_path / "other", 0.9, seed=1, partition="iid")
    assert compare_runs([zero, other]).notes[0].startswith("The runs used different data")
