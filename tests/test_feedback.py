"""What goes back to the clients with the next query."""

import numpy as np
import pytest

from fedkd.errors import SpecError
from fedkd.feedback import Outcome, coefficients, feedback, nearest_center
from fedkd.records import Ballots, Teacher

NAN = float("nan")
TEACHER = Teacher(np.array([[0.6, 0.3, 0.1], [NAN, NAN, NAN], [0.2, 0.2, 0.6]]), np.array([2, 5, 7]))


def student(rows):
    return np.array([[row, 0.0, 0.0] for row in rows]).reshape(-1, 3)


def unasked(rows):
    raise AssertionError("the student is not needed for this")


def outcome(p, w=None, *, rows=None, teacher=TEACHER, answer=unasked):
    p = np.asarray(p, np.float32)
    w = np.ones(p.shape[:2], np.float32) if w is None else np.asarray(w, np.float32)
    rows = np.arange(p.shape[1]) if rows is None else rows
    return Outcome(teacher, answer, [10 * k for k in range(len(p))], rows, lambda: Ballots(p, w))


def test_none_sends_nothing():
    assert feedback.build("none")(Outcome(TEACHER, unasked)) is None


def test_teacher_sends_the_rows_that_somebody_answered():
    back = feedback.build("teacher")(Outcome(TEACHER, unasked))
    assert back.indices.tolist() == [2, 7]
    assert back.p.tolist() == [[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]]


def test_student_sends_what_the_student_says_on_the_same_rows():
    back = feedback.build("student")(Outcome(TEACHER, student))
    assert back.indices.tolist() == [2, 7]
    assert back.p[:, 0].tolist() == [2, 7]


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_where_nobody_answered_nothing_goes_back(name):
    silence = Teacher(np.full((2, 3), NAN), np.array([0, 1]))
    back = feedback.build(name)(Outcome(silence, student))
    assert back.p.shape == (0, 3)
    assert len(back.indices) == 0


def test_others_by_hand_is_the_mean_without_oneself():
    p = [[[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]], [[0.2, 0.6, 0.2], [0.4, 0.4, 0.2]], [[0.4, 0.4, 0.2], [1.0, 0.0, 0.0]]]
    back = feedback.build("others")(outcome(p, [[1, 1], [1, 3], [1, 0]], rows=np.array([4, 9])))
    assert sorted(back) == [0, 10, 20]
    assert back[0].p == pytest.approx(np.array([[0.3, 0.5, 0.2], [0.4, 0.4, 0.2]]), abs=1e-6)
    assert back[10].p == pytest.approx(np.array([[0.5, 0.35, 0.15], [0.2, 0.2, 0.6]]), abs=1e-6)
    assert back[20].p[1] == pytest.approx([(0.2 + 3 * 0.4) / 4, 0.35, (0.6 + 3 * 0.2) / 4], abs=1e-6)
    assert back[20].indices.tolist() == [4, 9]


def test_who_is_alone_on_a_row_gets_nothing_back_on_it():
    p = np.full((2, 2, 3), 1 / 3)
    back = feedback.build("others")(outcome(p, [[1, 1], [0, 1]], rows=np.array([4, 9])))
    assert back[0].indices.tolist() == [9]
    assert back[10].indices.tolist() == [4, 9]


def test_clusters_by_hand_send_each_client_the_mean_of_its_like():
    p = [[[0.9, 0.1, 0.0]], [[0.7, 0.3, 0.0]], [[0.0, 0.1, 0.9]]]
    back = feedback.build("clusters")(outcome(p))
    assert back[0].p[0] == pytest.approx([0.8, 0.2, 0.0], abs=1e-6)
    assert back[10].p[0] == pytest.approx([0.8, 0.2, 0.0], abs=1e-6)
    assert back[20].p[0] == pytest.approx([0.0, 0.1, 0.9], abs=1e-6)


def test_one_cluster_is_the_weighted_mean():
    p, w = np.random.default_rng(0).dirichlet(np.ones(3), (4, 5)), np.random.default_rng(1).random((4, 5))
    back = feedback.build("clusters(count=1)")(outcome(p, w))
    assert back[10].p == pytest.approx((w[..., None] * p).sum(0) / w.sum(0)[:, None], abs=1e-5)


def test_clusters_never_read_who_did_not_answer_and_give_them_a_center_too():
    p = np.array([[[0.9, 0.1]], [[0.1, 0.9]], [[NAN, NAN]]])
    center = nearest_center(p, np.array([[1.0], [1.0], [0.0]]), 2, 5)
    assert np.isfinite(center).all()
    assert center[0, 0] == pytest.approx([0.9, 0.1])
    assert np.isnan(nearest_center(p[2:], np.zeros((1, 1)), 2, 5)).all()


def test_coefficients_by_hand_trust_those_who_agree():
    p = np.array([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]])
    c = coefficients(p, np.ones((3, 1)), 1.0)
    # Client 0: (G + I) c = G[:, 0] + 1/3, G = [[1,1,0],[1,1,0],[0,0,1]]: c = (4/9, 4/9, 1/6), then to sum one.
    assert c[0] == pytest.approx(np.array([4 / 9, 4 / 9, 1 / 6]) / (19 / 18))
    assert c[2] == pytest.approx(np.array([1 / 9, 1 / 9, 2 / 3]) / (8 / 9))


def test_a_large_penalty_makes_personal_teachers_the_plain_mean_and_a_small_one_oneself():
    p = np.random.default_rng(0).dirichlet(np.ones(3), (3, 50)).astype(np.float32)
    mean = feedback.build("personal(penalty=1e6)")(outcome(p))
    assert mean[10].p == pytest.approx(p.mean(axis=0), abs=1e-4)
    own = feedback.build("personal(penalty=1e-6)")(outcome(p))
    assert own[10].p == pytest.approx(p[1], abs=1e-3)


@pytest.mark.parametrize("spec", ["personal(penalty=0.0)", "clusters(count=0)"])
def test_options_out_of_range_are_refused(spec):
    with pytest.raises(SpecError, match="must be"):
        feedback.build(spec)(outcome(np.full((2, 1, 3), 1 / 3)))
