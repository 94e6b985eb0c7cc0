"""Public labels of the transfer set: the rules of FedGEMS, worked out by hand."""

import numpy as np
import pytest

from fedkd.errors import SpecError
from fedkd.labeled import Gems, labels

NAN = float("nan")
Y = np.array([0, 2])


def test_none_reads_no_label():
    assert labels.build("none")() is None


def test_a_ballot_that_is_wrong_counts_nothing_and_the_surer_of_two_right_ones_counts_more():
    p = np.array([[[0.9, 0.1, 0.0], [0.2, 0.2, 0.6]], [[0.6, 0.4, 0.0], [0.9, 0.1, 0.0]]])
    w = Gems(0.75).credit(p, np.ones((2, 2)), Y)
    h = [-(0.9 * np.log(0.9) + 0.1 * np.log(0.1)), -(0.6 * np.log(0.6) + 0.4 * np.log(0.4))]
    first = np.exp(1 / h[0]) / (np.exp(1 / h[0]) + np.exp(1 / h[1]))
    assert w[:, 0] == pytest.approx([first, 1 - first], rel=1e-5)
    assert w[:, 1].tolist() == [1.0, 0.0]


def test_where_all_are_wrong_all_count_and_who_did_not_answer_never_does():
    p = np.array([[[0.1, 0.9, 0.0]], [[0.0, 1.0, 0.0]], [[NAN, NAN, NAN]]])
    w = Gems(0.75).credit(p, np.array([[1.0], [2.0], [0.0]]), Y[:1])
    assert w[:, 0].tolist() == [1.0, 2.0, 0.0]


def test_a_certain_ballot_does_not_divide_by_zero():
    w = Gems(0.75).credit(np.eye(3)[None, [0, 2]], np.ones((1, 2)), Y)
    assert w.tolist() == [[1.0, 1.0]]


def test_the_student_learns_the_label_where_it_is_right_and_a_mixture_where_it_is_wrong():
    student = np.array([[0.8, 0.1, 0.1], [0.8, 0.1, 0.1]])
    teacher = np.array([[NAN] * 3, [0.2, 0.2, 0.6]])
    unknown = np.full((2, 3), NAN)
    targets = Gems(0.75).targets(student, unknown, teacher, Y)
    assert targets[0].tolist() == [1, 0, 0]
    assert targets[1] == pytest.approx([0.05, 0.05, 0.9])
    remembered = np.array([[NAN] * 3, [0.0, 0.4, 0.6]])
    assert Gems(0.75).targets(student, remembered, teacher, Y)[1] == pytest.approx([0.0, 0.1, 0.9])


def test_what_it_said_when_it_was_last_right_is_kept():
    kept = Gems(0.75).keep(np.array([[0.8, 0.1, 0.1], [0.8, 0.1, 0.1]]), np.array([[NAN] * 3, [0.0, 0.4, 0.6]]), Y)
    assert kept == pytest.approx(np.array([[0.8, 0.1, 0.1], [0.0, 0.4, 0.6]]))


def test_a_share_out_of_range_is_refused():
    with pytest.raises(SpecError, match="'mix' must be in"):
        labels.build("gems(mix=1.5)")()
