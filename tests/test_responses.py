"""Randomized answers: kept as often as they should be, and corrected without bias."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkd.errors import ConfigError
from fedkd.privacy.noise import SeededEntropy
from fedkd.privacy.responses import dealt, deviation, from_answers, keep_probability, randomized, shares
from fedkd.records import Release
from fedkd.softlabels import one_hot


def entropy(seed=0):
    return SeededEntropy(np.random.default_rng(seed))


def test_an_answer_is_kept_as_often_as_epsilon_says_and_all_lies_are_alike():
    said = np.bincount(randomized(np.full(60_000, 2), 4, 1.0, entropy()), minlength=4) / 60_000
    a = math.e / (math.e + 3)
    assert said[2] == pytest.approx(a, abs=0.01)
    assert said[[0, 1, 3]] == pytest.approx([a / math.e] * 3, abs=0.006)


class Counting(SeededEntropy):
    """Entropy that remembers which rates it was asked for."""

    def coins(self, count, rate):
        self.rate = rate
        return super().coins(count, rate)


@pytest.mark.parametrize(("classes", "epsilon"), [(2, 0.0), (10, 0.3), (10, 2.5), (10, 36.0), (3, 300.0)])
def test_the_chance_of_a_lie_is_rounded_up(classes, epsilon):
    source = Counting(np.random.default_rng(0))
    randomized(np.zeros(3, np.int64), classes, epsilon, source)
    lie = (classes - 1) * math.exp(-epsilon) / (1 + (classes - 1) * math.exp(-epsilon))
    assert lie < source.rate <= 1 and source.rate - lie < 4e-16
    assert source.rate * 2**53 == int(source.rate * 2**53)


def test_nonsense_is_refused():
    with pytest.raises(ConfigError, match="needs 2 classes and epsilon >= 0"):
        randomized(np.zeros(1, np.int64), 1, 1.0, entropy())


def test_two_answers_and_three_classes_by_hand():
    # epsilon ln 2: a = 1/2, b = 1/4. Both say class 0: (1 - 1/4) / (1/4) = 3, and -1 for the others.
    p = one_hot(np.array([[0, 1], [0, 2]]), 3)
    w = np.array([[1, 1], [1, 0]], np.float32)
    found, sd = shares(p, w, math.log(2))
    assert found == pytest.approx(np.array([[3, -1, -1], [-1, 3, -1]]))
    assert np.isnan(shares(p, 0 * w, 1.0)[0]).all()
    # agree 1/2: f = (3/8, 5/16, 5/16), 1 - sum f^2 = 2/3 - 1/384..., over 3 classes, over (a - b)^2 = 1/16.
    spread = 1 - (3 / 8) ** 2 - 2 * (5 / 16) ** 2
    assert sd == pytest.approx(math.sqrt(spread / 3) * 4 * math.sqrt((1 / 2 + 1) / 2))


def test_the_deviation_of_one_answer_is_that_of_the_text_book():
    a, b = keep_probability(10, 2.0), (1 - keep_probability(10, 2.0)) / 9
    assert deviation(10, 2.0) == pytest.approx(math.sqrt((a * (1 - a) + 9 * b * (1 - b)) / 10) / (a - b))


def test_shares_are_unbiased():
    truth = np.array([0] * 60 + [1] * 30 + [2] * 10)
    source, found = entropy(), []
    for _ in range(300):
        said = randomized(truth, 3, 1.0, source)
        found.append(shares(one_hot(said[:, None], 3), np.ones((100, 1)), 1.0)[0][0])
    assert np.mean(found, axis=0) == pytest.approx([0.6, 0.3, 0.1], abs=0.03)
    assert np.std(found, axis=0).mean() == pytest.approx(deviation(3, 1.0) / 10, rel=0.15)


@given(st.integers(1, 60), st.integers(1, 80), st.integers(0, 2**64 - 1))
def test_a_client_answers_as_many_rows_as_it_is_paid_for_each_once(rows, labels, client):
    mine = dealt(rows, labels, client, np.random.default_rng(0))
    assert len(mine) == len(set(mine.tolist())) == min(labels, rows)


def test_all_rows_are_answered_about_equally_often():
    times = np.bincount(
        np.concatenate([dealt(30, 4, client, np.random.default_rng(7)) for client in range(20)]), minlength=30
    )
    assert times.min() == 2 and times.max() == 3


def test_randomized_votes_make_a_teacher_of_the_rows_that_were_answered():
    source, truth = entropy(), np.repeat([0, 2], 30)
    releases = []
    for _ in range(200):
        w = np.ones(60, np.float32)
        w[5] = 0
        releases.append(Release(one_hot(randomized(truth, 3, 1.0, source), 3), w))
    teacher = from_answers(releases, truth[:, None].astype(np.float32), classes=3, epsilon=1.0)
    known = np.arange(60) != 5
    assert np.isnan(teacher[5]).all() and (teacher[known].argmax(axis=1) == truth[known]).all()
    assert np.isnan(from_answers([], np.ones((2, 1)), classes=3, epsilon=1.0)).all()
