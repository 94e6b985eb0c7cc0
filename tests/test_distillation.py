"""What a student learns from: several teachers, its own confident rows, and how much a row counts."""

import json
import math

import numpy as np
import pytest

from fedkd.distillation import confidence_weight, confident, replay, self_train
from fedkd.errors import SpecError

NAN = [math.nan] * 3
OLD, NEW = [0.8, 0.1, 0.1], [0.2, 0.2, 0.6]
FLAT, SURE, HALF = [1 / 3] * 3, [0.98, 0.01, 0.01], [0.0, 0.5, 0.5]


def test_the_newest_teacher_wins_where_it_answered():
    p = np.array([[OLD, OLD, NAN], [NEW, NAN, NAN]])
    out = replay(p)
    assert out[:2] == pytest.approx(np.array([NEW, OLD]))
    assert np.isnan(out[2]).all()


def test_an_older_teacher_counts_by_the_decay():
    # weights 1/2 and 1: (0.4 + 0.2, 0.05 + 0.2, 0.05 + 0.6) / 1.5
    assert replay(np.array([[OLD], [NEW]]), decay=0.5) == pytest.approx(np.array([[0.4, 1 / 6, 1.3 / 3]]))
    assert replay(np.array([[OLD], [NEW]]), decay=1.0) == pytest.approx(np.array([[0.5, 0.15, 0.35]]))


def test_a_round_without_an_answer_still_ages_the_one_before():
    # ages 2 and 0: weights 1/4 and 1
    p = np.array([[OLD], [NAN], [NEW]])
    assert replay(p, decay=0.5) == pytest.approx(np.array([(0.25 * np.array(OLD) + np.array(NEW)) / 1.25]))


def test_teachers_older_than_the_buffer_are_forgotten():
    p = np.array([[OLD, OLD], [NAN, NAN], [NEW, NAN]])
    assert np.isnan(replay(p, rounds=2)[1]).all()
    assert replay(p, rounds=3)[1] == pytest.approx(OLD)
    assert replay(p, rounds=1, decay=1.0)[0] == pytest.approx(NEW)


def test_a_small_decay_does_not_underflow_where_only_the_oldest_answered():
    p = np.full((400, 1, 3), math.nan, np.float32)
    p[0] = OLD
    out = replay(p, rounds=400, decay=0.01)
    assert out == pytest.approx(np.array([OLD]))
    assert out.dtype == np.float32


@pytest.mark.parametrize("decay", [0.0, 0.3, 1.0])
def test_a_replayed_teacher_is_a_distribution_and_the_input_is_left_alone(decay):
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), (5, 30))
    p[rng.random((5, 30)) < 0.5] = math.nan
    before = p.copy()
    out = replay(p, decay=decay)
    answered = np.isfinite(p).all(axis=2).any(axis=0)
    assert (np.isfinite(out).all(axis=1) == answered).all()
    assert out[answered].sum(axis=1) == pytest.approx(np.ones(answered.sum()))
    assert np.array_equal(p, before, equal_nan=True)


def test_confident_rows_are_those_of_least_entropy():
    p = np.array([FLAT, SURE, HALF, NAN])
    assert confident(p, share=0.34).tolist() == [False, True, False, False]  # 0.34 of the three that say something
    assert confident(p, share=0.7).tolist() == [False, True, True, False]
    assert confident(p, share=1.0).tolist() == [True, True, True, False]
    assert not confident(p, share=0.0).any()


def test_ten_percent_is_the_default():
    p = np.random.default_rng(0).dirichlet(np.ones(3), 200)
    assert confident(p).sum() == 20


def test_the_student_teaches_itself_only_where_it_is_sure_and_nobody_answered():
    teacher = np.array([NAN, NEW, NAN, NAN])
    student = np.array([SURE, SURE, FLAT, HALF])
    soft = self_train(teacher, student, share=0.75)  # the surest three: rows 0, 1 and 3
    assert soft[[0, 1, 3]] == pytest.approx(np.array([SURE, NEW, HALF]))
    assert np.isnan(soft[2]).all()
    hard = self_train(teacher, student, share=0.75, hard=True)
    assert hard[[0, 1, 3]] == pytest.approx(np.array([[1, 0, 0], NEW, [0, 1, 0]]))


def test_a_flat_row_counts_nothing_and_a_one_hot_row_all():
    w = confidence_weight(np.array([FLAT, [0.0, 1, 0], HALF, NAN]))
    assert w == pytest.approx([0, 1, 1 - math.log(2) / math.log(3), 0], abs=1e-9)
    assert confidence_weight(np.array([HALF]), power=2.0) == pytest.approx([(1 - math.log(2) / math.log(3)) ** 2])
    assert confidence_weight(np.array([FLAT, HALF, NAN]), power=0.0).tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda p: replay(p[None], rounds=0), "`rounds` must be at least 1, got 0"),
        (lambda p: replay(p[None], decay=1.5), r"`decay` must be in \[0, 1\], got 1.5"),
        (lambda p: confident(p, share=1.1), r"`share` must be in \[0, 1\], got 1.1"),
        (lambda p: confidence_weight(p, power=-1.0), "`power` must be at least 0 and finite, got -1.0"),
    ],
)
def test_an_option_out_of_range_is_refused(call, sentence):
    with pytest.raises(SpecError, match=sentence):
        call(np.array([FLAT]))


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
