"""PATE: known answers of the paper's code, noise that was paid for, and a cost that is private itself."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkd.privacy.noise import SeededEntropy
from fedkd.privacy.rdp import ORDERS, epsilon_of
from fedkd.privacy.votes import PRIVATE, cost, log_passed, log_wrong, noisy, private_note, renyi, tally, voted
from fedkd.records import Release

VOTES = np.array([200, 30, 10, 5, 5, 0, 0, 0, 0, 0])


def entropy(seed=0):
    return SeededEntropy(np.random.default_rng(seed))


def saying(*classes, w=1.0):
    return Release(np.eye(3, dtype=np.float32)[list(classes)], np.full(len(classes), w, np.float32))


def test_votes_of_two_clients_on_three_classes_by_hand():
    silent = Release(np.full((2, 3), np.nan, np.float32), np.array([1.0, 0.0], np.float32))
    silent.p[0] = [0.1, 0.2, 0.7]
    assert tally([saying(0, 1), silent], 2, 3).tolist() == [[1, 0, 1], [0, 1, 0]]


@pytest.mark.parametrize(
    ("sigma", "log_q", "costs"),
    [(40, -5.713104, (8.3827e-4, 1.03590e-3, 4.41164e-3)), (20, -20.781121, (1.0901e-9, 3.7425e-9, 4.5104e-5))],
)
def test_the_cost_of_a_vote_is_that_of_the_papers_code(sigma, log_q, costs):
    assert log_wrong(VOTES, sigma) == pytest.approx(log_q, abs=1e-6)
    found = renyi(log_wrong(VOTES, sigma), sigma, squared=2.0, orders=np.array([2.0, 8.0, 32.0]))
    assert found == pytest.approx(costs, rel=1e-3 if sigma == 20 else 1e-4, abs=1e-12)


def test_the_chance_to_pass_is_that_of_the_papers_code():
    assert log_passed(VOTES, 200, 150) == pytest.approx(-0.693147, abs=1e-6)
    assert log_passed(VOTES, 50, 150) == pytest.approx(math.log(0.8413447), abs=1e-6)
    assert log_passed(VOTES, 50, 150, least=True) == pytest.approx(math.log(0.1586553), abs=1e-6)
    assert log_passed(VOTES, 50, 1.0, least=True) < -11_000  # far beyond what a double can hold


def test_a_wrong_vote_is_no_less_likely_than_it_is():
    # With two classes the bound is exact: P(N(0, 2 sigma^2) > 3).
    assert math.exp(log_wrong(np.array([5, 2]), 2.0)) == pytest.approx(math.erfc(3 / (2 * 2.0)) / 2)
    draws = np.random.default_rng(0).normal(0, 40, (20_000, 10))
    wrong = ((VOTES + draws).argmax(axis=1) != 0).mean()
    assert wrong <= math.exp(log_wrong(VOTES, 40)) * 1.3
    assert log_wrong(np.array([1, 1, 1]), 5.0) == pytest.approx(math.log(2 / 3))


@given(st.floats(-2000, -1e-9), st.floats(0.5, 200), st.sampled_from([0.9, 1.0, 2.0]))
def test_what_depends_on_votes_is_never_above_what_does_not(log_q, sigma, squared):
    found = renyi(log_q, sigma, squared=squared)
    assert (found >= 0).all() and (found <= ORDERS * squared / (2 * sigma**2) * (1 + 1e-12)).all()


def test_the_cost_of_rows_by_hand():
    counts, clear = np.array([[50, 0, 0], [20, 20, 10]]), np.array([True, False])
    tests = renyi(log_passed(counts[0], 30, 9.0, least=True), 9.0) + renyi(log_passed(counts[1], 30, 9.0), 9.0)
    told = renyi(log_wrong(counts[0], 4.0), 4.0, squared=2 / 3)
    assert cost(counts, clear, 30, 9.0, 4.0) == pytest.approx(tests + told)
    assert cost(counts, clear, 0, 0.0, 4.0) == pytest.approx(told)


def test_agreeing_clients_pay_far_less_than_the_guarantee():
    counts = np.tile([98, 1, 1], (50, 1))
    sigma = 20.0
    plain = epsilon_of(50 * ORDERS * (2 / 3) / (2 * sigma**2), 1e-5)
    assert epsilon_of(cost(counts, np.ones(50, bool), 0, 0.0, sigma), 1e-5) < 0.4 * plain


def vote(releases, rows, **options):
    given = {"noise_multiplier": 0.02, "threshold": 0.0, "test": 2.0, "smooth": False, "entropy": entropy(), **options}
    return voted(releases, np.ones((rows, 1)), classes=3, clients=10, **given)


def test_the_class_of_most_votes_is_told_and_what_is_not_clear_is_not():
    clear, torn = [saying(1, 0)] * 9 + [saying(2, 0)], [saying(1, c % 3) for c in range(10)]
    assert vote(clear, 2).teacher.tolist() == [[0, 1, 0], [1, 0, 0]]
    found = vote(torn, 2, threshold=0.7)
    assert found.teacher[0].tolist() == [0, 1, 0] and np.isnan(found.teacher[1]).all()


def test_smoothed_votes_count_the_most_probable_class_and_give_one():
    sure = [Release(np.tile([[0.4, 0.3, 0.3]], (20, 1)).astype(np.float32), np.ones(20, np.float32))] * 10
    assert (vote(sure, 20, smooth=True, noise_multiplier=0.1).teacher == [1, 0, 0]).all()
    assert np.isnan(vote(sure, 20, smooth=True, threshold=1.0, noise_multiplier=5.0).teacher).any()


def test_only_a_row_told_by_its_own_votes_has_a_cost_of_its_own():
    assert vote([saying(1, 0)] * 10, 2).cost is not None
    assert vote([saying(1, 0)] * 10, 2, smooth=True).cost is None
    assert vote([], 0).teacher.shape == (0, 3)


def test_noise_on_counts_has_the_scale_that_was_paid_for():
    draws = noisy(np.zeros((2000, 3), np.int64), 7.5, entropy())
    assert np.std(draws) == pytest.approx(7.5, rel=0.05)
    assert noisy(np.array([3, 4]), 1e-6, entropy()) == pytest.approx([3, 4], abs=1e-4)


def test_the_owners_note_says_that_it_is_private():
    two = (ORDERS / 800).tolist()
    note = private_note({"1": two, "2": two}, 1e-5)
    assert note["PRIVATE"] == PRIVATE and "itself private" in PRIVATE
    assert note["data_dependent_epsilon"] == pytest.approx(epsilon_of(ORDERS / 400, 1e-5))
