"""Every paper runs at its small size and prints its table; what must hold whatever the numbers is asserted."""

import importlib
from pathlib import Path

import pytest

from fedkd.parts import PRESETS
from simulations.papers.show import FULL, SMALL, Row, main, table
from simulations.scene import play

FOLDER = Path(__file__).resolve().parent.parent / "simulations" / "papers"
OWN = {"hinton", "hints", "fedavg", "feddf"}  # they print tables of another form, and have tests of their own
PAPERS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in {"__init__", "show", *OWN})
TINY = {"rounds": 2, "clients": 3, "local_epochs": 2, "distill_epochs": 3, "feedback_epochs": 1}


@pytest.mark.parametrize("name", PAPERS)
def test_a_paper_runs_and_prints_a_row_for_each_variant(name, capsys, monkeypatch):
    paper = importlib.import_module(f"simulations.papers.{name}")
    for key, value in TINY.items():
        monkeypatch.setitem(SMALL, key, value)
    variants = {
        label: (preset, {k: v for k, v in settings.items() if k not in TINY}) for label, (preset, settings) in
        paper.VARIANTS.items()
    }  # fmt: skip
    scene = {k: v for k, v in getattr(paper, "SCENE", {}).items() if k not in TINY}
    main(variants, paper.CLAIM, paper.holds, scene, ["--small"])
    out = capsys.readouterr().out
    for label in paper.VARIANTS:
        assert label in out
    assert out.splitlines()[-1].startswith(paper.CLAIM)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_a_paper_is_a_short_file_that_names_its_source(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    if path.stem in PAPERS and path.stem != "expert":
        first = text.split("\n\n")[0]
        assert "arXiv:" in first or "20" in first


def test_every_published_method_has_a_paper_and_a_preset():
    for name in PAPERS:
        assert name in PRESETS, name
    assert {*PRESETS} - {"one_shot", "tiny", "private", "private_clients", "private_masked"} <= {*PAPERS, *OWN}


def test_the_table_shows_what_is_not_known_as_a_dash():
    text = table({"one": Row(0.5, None, 0.25, 1000.0, 10.0), "another": Row(None, 1.0, None, 0.0, 0.0)})
    lines = text.splitlines()
    assert lines[1].split() == ["one", "50.0%", "–", "25.0%", "1", "kB", "10", "B"]
    assert lines[2].split()[:4] == ["another", "–", "100.0%", "–"]


def test_a_scene_has_the_numbers_of_the_engine_but_for_the_envelopes():
    from fedkd.config import Config
    from fedkd.engine import run_in_process

    settings = {
        "clients": 2, "rounds": 2, "learner": "mlp, logistic", "student": "mlp", "local_epochs": 1,
        "distill_epochs": 1, "feedback_epochs": 1, "pooled": False,
    }  # fmt: skip
    ours = play("expert", **settings)
    engine = run_in_process(Config(**settings), workers=1).reports
    for a, b in zip(ours, engine, strict=True):
        for name in a.metrics:
            if name not in ("bytes_up", "bytes_down"):  # of a multicast only frames are counted
                assert a.metrics[name] == b.metrics[name], name
            else:
                assert 0 < a.metrics[name] < b.metrics[name]


def test_full_scenes_are_larger_than_small_ones():
    assert FULL["clients"] > SMALL["clients"] and FULL["rounds"] > SMALL["rounds"]
