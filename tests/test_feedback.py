"""What goes back to the clients with the next query."""

import numpy as np
import pytest

from fedkd.feedback import feedback
from fedkd.records import Teacher

NAN = float("nan")
TEACHER = Teacher(np.array([[0.6, 0.3, 0.1], [NAN, NAN, NAN], [0.2, 0.2, 0.6]]), np.array([2, 5, 7]))


def student(rows):
    return np.array([[row, 0.0, 0.0] for row in rows]).reshape(-1, 3)


def unasked(rows):
    raise AssertionError("the student is not needed for this")


def test_none_sends_nothing():
    assert feedback.build("none")(TEACHER, unasked) is None


def test_teacher_sends_the_rows_that_somebody_answered():
    back = feedback.build("teacher")(TEACHER, unasked)
    assert back.indices.tolist() == [2, 7]
    assert back.p.tolist() == [[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]]


def test_student_sends_what_the_student_says_on_the_same_rows():
    back = feedback.build("student")(TEACHER, student)
    assert back.indices.tolist() == [2, 7]
    assert back.p[:, 0].tolist() == [2, 7]


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_where_nobody_answered_nothing_goes_back(name):
    silence = Teacher(np.full((2, 3), NAN), np.array([0, 1]))
    back = feedback.build(name)(silence, student)
    assert back.p.shape == (0, 3)
    assert len(back.indices) == 0
