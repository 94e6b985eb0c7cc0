"""What the student makes of the teacher: its own labels where nobody answered, and how much a row counts."""

import math

import numpy as np
import pytest

from fedkd.errors import SpecError
from fedkd.lesson import lesson, study, surest

NAN = [math.nan] * 3
NEW = [0.2, 0.2, 0.6]
FLAT, SURE, HALF = [1 / 3] * 3, [0.98, 0.01, 0.01], [0.0, 0.5, 0.5]


def test_the_surest_rows_are_those_of_least_entropy():
    p = np.array([FLAT, SURE, HALF, NAN])
    assert surest(p, 0.34).tolist() == [False, True, False, False]  # 0.34 of the three that say something
    assert surest(p, 0.7).tolist() == [False, True, True, False]
    assert surest(p, 1.0).tolist() == [True, True, True, False]
    assert not surest(p, 0.0).any()


def test_the_student_teaches_itself_only_where_it_is_sure_and_nobody_answered():
    teacher, w = np.array([NAN, NEW, NAN, NAN]), np.array([0.0, 1, 0, 0])
    own = np.array([SURE, SURE, FLAT, HALF])
    soft, counts = study("self_train(share=0.75)", teacher, w, own)  # the surest three: rows 0, 1 and 3
    assert soft[[0, 1, 3]] == pytest.approx(np.array([SURE, NEW, HALF]))
    assert counts.tolist() == [1, 1, 0, 1]
    hard, _ = study("self_train(share=0.75, hard=True)", teacher, w, own)
    assert hard[[0, 1, 3]] == pytest.approx(np.array([[1, 0, 0], NEW, [0, 1, 0]]))
    first, counts = study("self_train(share=0.75)", teacher, w, np.full((4, 3), math.nan))
    assert np.array_equal(first, teacher, equal_nan=True) and (counts == w).all(), "it knows nothing yet"


def test_a_flat_row_counts_nothing_and_a_one_hot_row_all():
    p, w = np.array([FLAT, [0.0, 1, 0], HALF, NAN]), np.array([1.0, 1, 1, 0])
    half = 1 - math.log(2) / math.log(3)
    assert study("confidence", p, w, p)[1] == pytest.approx([0, 1, half, 0], abs=1e-9)
    assert study("confidence(power=2)", p, w, p)[1] == pytest.approx([0, 1, half**2, 0], abs=1e-9)
    assert study("confidence(power=0)", p, w, p)[1].tolist() == [1, 1, 1, 0]


def test_a_chain_weighs_the_students_own_labels_too():
    p, w = study("self_train(share=1) | confidence", np.array([NAN, NAN]), np.zeros(2), np.array([[0.0, 1, 0], HALF]))
    assert w == pytest.approx([1, 1 - math.log(2) / math.log(3)])
    assert p.tolist() == [[0, 1, 0], HALF]


@pytest.mark.parametrize("name", lesson.names())
def test_a_lesson_leaves_its_inputs_alone_and_counts_no_row_without_a_label(name):
    rng = np.random.default_rng(0)
    p, own = (rng.dirichlet(np.ones(4), 30).astype(np.float32) for _ in range(2))
    p[rng.random(30) < 0.5] = math.nan
    w = np.isfinite(p).all(axis=1).astype(np.float32)
    before = p.copy(), w.copy(), own.copy()
    targets, counts = study(name, p, w, own)
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip((p, w, own), before, strict=True))
    assert (counts >= 0).all() and np.isfinite(targets[counts > 0]).all()
    assert targets[counts > 0].sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert targets.dtype == counts.dtype == np.float32


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("self_train(share=1.1)", r"'share' must be in \[0, 1\], got 1.1"),
        ("confidence(power=-1.0)", "'power' must be at least 0 and finite, got -1.0"),
    ],
)
def test_an_option_out_of_range_is_refused(spec, sentence):
    with pytest.raises(SpecError, match=sentence):
        study(spec, np.array([FLAT]), np.ones(1), np.array([FLAT]))
