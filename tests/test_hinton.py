"""Hinton's experiment, in small."""

import json

import numpy as np


def test_a_bias_mends_what_the_transfer_set_has_skewed():
    from simulations.papers.hinton import Scene, best_shift

    # Two of three 0s are taken for a 1 by a narrow margin; +1 on class 0 mends them and harms nobody.
    p = np.zeros((5, 10), np.float32)
    p[:, :3] = [[0.3, 0.6, 0.1], [0.4, 0.5, 0.1], [0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]
    nothing = np.zeros((0, 2), np.float32)
    scene = Scene(nothing, np.zeros(0, int), nothing, np.array([0, 0, 0, 1, 2]), True)
    assert scene.errors(p) == 2
    assert best_shift(scene, p, [0]) == (0.7, 0)  # ln(0.6 / 0.3) = 0.693: the first step of 0.1 above it


def test_hintons_experiment_runs_in_small(monkeypatch, capsys):
    from simulations.papers import hinton

    monkeypatch.setattr(hinton, "EPOCHS", {1200: 6, 800: 4, 300: 2, 30: 1})
    monkeypatch.setattr(hinton, "TEMPERATURES", (4.0,))
    table = hinton.main(["--small"])
    errors = list(table.values())
    names = list(table)
    assert table["teacher"] < 40 and table["800 units, T = 20"] < 100  # of 400
    for name in ("no 3s", "only 7s and 8s"):
        i = names.index(name)
        assert errors[i + 1] <= errors[i] and names[i + 1].startswith(f"{name}, ")  # after the shift
    assert table["only 7s and 8s"] > 200  # most digits were never seen
    out = capsys.readouterr().out
    assert out.startswith("digits: 1397 train rows")
    assert "share of the gap closed" in out
    json.dumps(table)
