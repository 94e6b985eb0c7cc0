"""Metrics by hand, and what is not counted."""

import math

import numpy as np
import pytest

from fedkd import metrics

P = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.4, 0.1]])
Y = np.array([0, 1, 1])  # right, right, wrong
SILENT = np.array([[np.nan] * 3])


def test_accuracy_by_hand():
    assert metrics.accuracy(P, Y) == pytest.approx(2 / 3)


def test_nll_by_hand():
    assert metrics.nll(P, Y) == pytest.approx(-(math.log(0.7) + math.log(0.6) + math.log(0.4)) / 3)


def test_nll_of_a_class_held_impossible_is_large_but_finite():
    assert metrics.nll(np.array([[1.0, 0.0]]), np.array([1])) == pytest.approx(12 * math.log(10))


def test_mean_entropy_by_hand():
    p = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    assert metrics.mean_entropy(p) == pytest.approx(math.log(2) / 2)


def test_confusion_by_hand():
    assert metrics.confusion(P, Y) == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]


def test_reliability_and_ece_by_hand():
    # Confidences .7 (right), .6 (right), .5 (wrong), one a bin: gaps .3, .4, .5, each a third.
    assert metrics.reliability(P, Y) == [
        {"confidence": pytest.approx(0.5), "accuracy": 0.0, "count": 1},
        {"confidence": pytest.approx(0.6), "accuracy": 1.0, "count": 1},
        {"confidence": pytest.approx(0.7), "accuracy": 1.0, "count": 1},
    ]
    assert metrics.ece(P, Y) == pytest.approx((0.3 + 0.4 + 0.5) / 3)
    # In one bin: mean confidence .6, accuracy 2 of 3.
    assert metrics.ece(P, Y, bins=1) == pytest.approx(2 / 3 - 0.6)


def test_whoever_is_right_as_often_as_it_says_has_no_calibration_error():
    p = np.array([[0.75, 0.25]] * 4 + [[0.0, 1.0]] * 2)
    y = np.array([0, 0, 0, 1, 1, 1])
    assert metrics.ece(p, y) == 0.0
    assert metrics.ece(p, 1 - y) == pytest.approx((4 * 0.5 + 2 * 1.0) / 6)


def test_a_sure_row_falls_into_the_last_bin_even_if_rounding_takes_it_above_one():
    assert metrics.reliability(np.array([[1.0004, 0.0], [1.0, 0.0]]), np.array([0, 0]))[0]["count"] == 2


def test_rows_without_an_answer_do_not_count():
    p, y = np.concatenate([SILENT, P]), np.concatenate([[2], Y])
    for metric in (metrics.accuracy, metrics.nll, metrics.ece, metrics.reliability, metrics.confusion):
        assert metric(p, y) == metric(P, Y), metric.__name__
    assert metrics.mean_entropy(p) == metrics.mean_entropy(P)


@pytest.mark.parametrize("p", [SILENT, np.zeros((0, 3))])
def test_where_nobody_answered_there_is_no_number(p):
    y = np.zeros(len(p), np.int64)
    for metric in (metrics.accuracy, metrics.nll, metrics.ece):
        assert metric(p, y) is None, metric.__name__
    assert metrics.mean_entropy(p) is None
    assert metrics.reliability(p, y) == []
    assert metrics.confusion(p, y) == [[0] * 3] * 3


def test_single_precision_gives_the_same_numbers():
    for metric in (metrics.accuracy, metrics.nll, metrics.ece):
        assert metric(P.astype(np.float32), Y) == pytest.approx(metric(P, Y), rel=1e-6), metric.__name__


def test_numbers_are_those_of_python_so_that_they_can_be_written_as_json():
    assert [type(m(P, Y)) for m in (metrics.accuracy, metrics.nll, metrics.ece)] == [float] * 3
    assert type(metrics.mean_entropy(P)) is float
    assert type(metrics.confusion(P, Y)[0][0]) is int


def test_inputs_stay_as_they_are():
    p, y = np.concatenate([SILENT, P]), np.concatenate([[2], Y])
    before = p.copy()
    for metric in (metrics.accuracy, metrics.nll, metrics.ece, metrics.confusion):
        metric(p, y)
    assert np.array_equal(p, before, equal_nan=True)
