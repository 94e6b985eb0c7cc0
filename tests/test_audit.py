"""Audits: bounds with known answers, attacks by hand, and a planted error that every mechanism's audit must find."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.errors import ConfigError, PrivacyError
from fedkd.learner import Training
from fedkd.learner.linear_learner import LinearLearner
from fedkd.privacy import neighbors
from fedkd.privacy.audit import (
    Counts,
    auc,
    audit_mechanism,
    binomial_tail,
    confidence_logit,
    correct_guesses,
    divergence,
    epsilon_bound,
    infer_labels,
    label_distribution,
    leave_one_out,
    lira,
    lira_offline,
    mu_bound,
    one_run,
    one_run_gaussian,
    rate_lower,
    rate_upper,
    roc,
    tpr_at,
)
from fedkd.privacy.gaussian import epsilon_of, mu_of
from fedkd.privacy.noise import SeededEntropy

DELTA = 1e-5
ROOT2 = math.sqrt(2)


def entropy(seed=0):
    return SeededEntropy(np.random.default_rng(seed))


# Bounds.


def test_the_tail_of_three_fair_coins_by_hand():
    assert [binomial_tail(k, 3, 0.5) for k in range(5)] == pytest.approx([1, 7 / 8, 4 / 8, 1 / 8, 0])


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(0, 10, 0.0, 1 - 0.01**0.1), (10, 10, 0.01**0.1, 1.0), (3, 10, 0.04750699895, 0.70288352768),
     (500, 20_000, 0.02250084735, 0.02768882008)],
)  # fmt: skip
def test_rates_are_bounded_as_clopper_and_pearson_do(k, n, low, high):
    assert rate_lower(k, n, confidence=0.99) == pytest.approx(low, abs=1e-9)
    assert rate_upper(k, n, confidence=0.99) == pytest.approx(high, abs=1e-9)


@given(st.integers(1, 200), st.floats(0, 1), st.floats(0.5, 0.999))
def test_a_bound_is_on_its_side_of_what_was_seen(n, share, confidence):
    k = round(share * n)
    assert 0 <= rate_lower(k, n, confidence=confidence) <= k / n <= rate_upper(k, n, confidence=confidence) <= 1


def test_epsilon_is_the_log_ratio_of_hits_and_false_alarms():
    many = 1_000_000  # so that the bounds are the rates
    counts = Counts(false_alarms=many // 10, without=many, hits=many // 2, present=many)
    assert epsilon_bound(counts) == pytest.approx(math.log(5), abs=0.02)
    assert epsilon_bound(counts, delta=0.1) == pytest.approx(math.log(4), abs=0.02)
    assert mu_bound(counts) == pytest.approx(1.2815516, abs=0.02)  # Phi^-1(0.5) - Phi^-1(0.1)


def test_silence_tells_as_much_as_alarms():
    alarms = Counts(false_alarms=10, without=1000, hits=500, present=1000)
    silences = Counts(false_alarms=500, without=1000, hits=990, present=1000)
    assert epsilon_bound(alarms) == pytest.approx(epsilon_bound(silences))


def test_a_test_that_guesses_bounds_nothing():
    assert epsilon_bound(Counts(500, 1000, 500, 1000)) == 0
    assert mu_bound(Counts(500, 1000, 500, 1000)) == 0
    assert mu_bound(Counts(0, 1000, 0, 1000)) == 0


@pytest.mark.parametrize(
    ("canaries", "guesses", "correct", "delta", "epsilon"),
    [(1000, 100, 100, 0.0, 3.4930), (1000, 100, 90, 0.0, 1.6308), (1000, 1000, 600, 0.0, 0.2975),
     (1000, 100, 100, 1e-5, 3.4654), (5000, 500, 460, 1e-5, 2.1589)],
)  # fmt: skip
def test_one_run_bounds_epsilon_as_steinke_and_others_do(canaries, guesses, correct, delta, epsilon):
    assert one_run(canaries, guesses, correct, delta=delta) == pytest.approx(epsilon, abs=1e-3)


@pytest.mark.parametrize(
    ("canaries", "guesses", "correct", "epsilon"),
    [(1000, 100, 100, 5.5490), (1000, 100, 90, 2.4564), (5000, 500, 460, 3.1024)],
)
def test_one_run_bounds_gaussian_noise_as_mahloujifar_and_others_do(canaries, guesses, correct, epsilon):
    assert one_run_gaussian(canaries, guesses, correct) == pytest.approx(epsilon, abs=1e-2)


def test_ten_right_guesses_of_ten_by_hand():
    # 0.05 = (e^eps / (1 + e^eps))^10
    chance = 0.05**0.1
    assert one_run(10, 10, 10) == pytest.approx(math.log(chance / (1 - chance)))


def test_no_guess_and_half_right_guesses_bound_nothing():
    for canaries, guesses, correct in ((10, 0, 0), (1000, 100, 50), (100, 100, 0)):
        assert one_run(canaries, guesses, correct) == 0
        assert one_run_gaussian(canaries, guesses, correct) == 0


def test_guesses_are_the_surest_at_both_ends():
    scores, included = np.array([9.0, 1.0, 5.0, 8.0, 2.0]), np.array([True, False, True, False, True])
    assert correct_guesses(scores, included, present=2, absent=1) == (3, 2)  # 9 right, 8 wrong; 1 right
    assert correct_guesses(-scores, included, present=2, absent=1) == (3, 1)
    assert correct_guesses(scores, included, present=0, absent=0) == (0, 0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: rate_lower(3, 2), "0 <= k <= n"),
        (lambda: rate_lower(1, 2, confidence=1.0), "`confidence`"),
        (lambda: one_run(10, 11, 5), "guesses <= canaries"),
        (lambda: one_run_gaussian(10, 5, 5, delta=0.0), "`delta`"),
        (lambda: correct_guesses(np.zeros(3), np.zeros(3, bool), present=2, absent=2), "at most 3 guesses"),
        (lambda: auc(np.zeros(0), np.ones(3)), "got 0 and 3"),
        (lambda: audit_mechanism(lambda p, e: 0.0, 1.0, DELTA, trials=10, entropy=entropy()), "`trials`"),
        (lambda: audit_mechanism(lambda p, e: 0.0, 1.0, 0.0, trials=100, entropy=entropy()), "`delta`"),
        (lambda: audit_mechanism(lambda p, e: 0.0, math.nan, DELTA, trials=100, entropy=entropy()), "`claimed`"),
        (lambda: lira(np.zeros(1), np.zeros((3, 1)), np.array([[1], [0], [0]], bool)), "2 shadow models"),
        (lambda: infer_labels(np.ones((2, 3)), np.ones((2, 2))), "one shape"),
    ],
)
def test_nonsense_is_refused_in_one_line(call, words):
    with pytest.raises(ConfigError) as caught:
        call()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


# Mechanisms.


def gaussian(mu):
    return lambda present, noise: mu * present + float(noise.normals(1)[0])


@pytest.mark.parametrize("epsilon", [1.0, 3.0, 8.0])
def test_an_audit_of_gaussian_noise_is_close_to_the_truth_and_below_it(epsilon):
    found = audit_mechanism(gaussian(mu_of(epsilon, DELTA)), epsilon, DELTA, trials=8000, entropy=entropy())
    assert found.passed
    assert 0.6 * epsilon < found.lower < epsilon
    assert found.counts.present == 7200


def test_right_noise_fails_no_more_often_than_is_said():
    rng = entropy(7)
    runs = [audit_mechanism(gaussian(1.0), epsilon_of(1.0, DELTA), DELTA, trials=150, confidence=0.8, entropy=rng)
            for _ in range(100)]  # fmt: skip
    assert sum(not run.passed for run in runs) <= 20


def test_a_bound_for_any_mechanism_passes_what_a_fit_to_gaussian_noise_fails():
    asked = {"trials": 2000, "entropy": entropy()}
    assert not audit_mechanism(gaussian(2.0 * ROOT2), epsilon_of(2.0, DELTA), DELTA, **asked).passed
    loose = audit_mechanism(gaussian(2.0 * ROOT2), epsilon_of(2.0, DELTA), DELTA, gaussian=False, **asked)
    assert loose.passed
    assert loose.lower > 2


def test_numbers_that_are_not_finite_say_nothing():
    with pytest.raises(PrivacyError, match="not finite"):
        audit_mechanism(lambda present, noise: math.nan, 1.0, DELTA, trials=100, entropy=entropy())


def test_a_unit_that_changes_nothing_cannot_be_audited():
    with pytest.raises(PrivacyError, match="nothing to audit"):
        neighbors.projected(lambda present, noise: np.zeros(3), lambda present: np.zeros(3))


def test_a_projection_tells_all_that_the_difference_tells():
    release = neighbors.projected(
        lambda present, noise: np.array([3.0 * present, 4.0 * present, 7.0]),
        lambda present: np.array([3.0, 4, 0]) * present,
    )
    assert release(True, entropy()) - release(False, entropy()) == pytest.approx(5.0)


def dp_sgd(rate, steps, bug=lambda noise, entropy: (noise, entropy)):
    def train(x, y, noise, entropy):
        model = LinearLearner(x.shape[1:], 3, Training())
        noise, entropy = bug(noise, entropy)
        model.fit_private(
            x, y, rate=rate, clip=0.1, noise_multiplier=noise, steps=steps, expected_batch=5.0, entropy=entropy
        )
        return model.weights

    return train


MECHANISMS = {
    "sketch": (lambda z: neighbors.sketch(z), 500),
    "mean": (lambda z: neighbors.mean(z, rows=4, others=3), 220),
    "mean, clipped": (lambda z: neighbors.mean(z, clip=0.3, rows=4, others=3), 220),
    "one step": (lambda z: neighbors.training(dp_sgd(1.0, 1), z), 500),
    "four steps": (lambda z: neighbors.training(dp_sgd(1.0, 4), 2 * z), 400),
}


@pytest.mark.parametrize("name", MECHANISMS)
def test_the_right_noise_passes_and_too_little_by_root_two_fails(name):
    make, trials = MECHANISMS[name]
    claimed = epsilon_of(1 / 0.4, DELTA)
    right = audit_mechanism(make(0.4), claimed, DELTA, trials=trials, entropy=entropy(1))
    wrong = audit_mechanism(make(0.4 / ROOT2), claimed, DELTA, trials=trials, entropy=entropy(1))
    assert right.passed
    assert right.lower > 0.4 * claimed  # the audit sees nearly all there is
    assert not wrong.passed


class Late(SeededEntropy):
    """Noise in the fourth step only."""

    def __init__(self, other):
        super().__init__(other.generator)
        self.step = 0

    def normals(self, shape):
        self.step += 1
        return super().normals(shape) if self.step == 4 else np.zeros(shape)


def test_noise_in_the_last_step_alone_is_found():
    train = dp_sgd(1.0, 4, bug=lambda noise, source: (noise, Late(source)))
    found = audit_mechanism(
        neighbors.training(train, 0.8), epsilon_of(1 / 0.4, DELTA), DELTA, trials=300, entropy=entropy()
    )
    assert not found.passed


def test_sampling_is_seen_as_often_as_its_rate():
    release = neighbors.inclusion(dp_sgd(1.0, 1), dp_sgd(0.3, 1))
    source = entropy(2)
    times = int(sum(release(True, source) for _ in range(600)))
    assert rate_lower(times, 600, confidence=0.99) <= 0.3 <= rate_upper(times, 600, confidence=0.99)
    assert sum(release(False, source) for _ in range(20)) == 0


# Membership.


def test_the_curve_of_four_scores_by_hand():
    fpr, tpr = roc(np.array([3.0, 1.0]), np.array([2.0, 1.0]))
    assert fpr.tolist() == [0, 0, 0.5, 1]
    assert tpr.tolist() == [0, 0.5, 0.5, 1]


def test_the_area_counts_pairs_and_ties_half():
    # pairs (3 > 2), (3 > 1), (1 < 2), (1 = 1): 2.5 of 4
    found = auc(np.array([3.0, 1.0]), np.array([2.0, 1.0]))
    assert found.value == 0.625
    # DeLong: shares below each member (1, 1/4), above each other (1/2, 3/4); variances 9/32 and 1/32, over 2 each
    assert found.high == 1.0
    assert found.low == pytest.approx(max(0.0, 0.625 - 1.959964 * math.sqrt(9 / 64 + 1 / 64)), abs=1e-6)


def test_the_area_is_that_under_the_curve():
    rng = np.random.default_rng(3)
    members, others = rng.normal(0.5, 1, 300).round(1), rng.normal(0, 1, 200).round(1)
    fpr, tpr = roc(members, others)
    assert auc(members, others).value == pytest.approx(float(np.trapezoid(tpr, fpr)))
    assert auc(others, members).value == pytest.approx(1 - auc(members, others).value)


def test_the_interval_of_the_area_holds_the_truth_as_often_as_it_says():
    rng, truth = np.random.default_rng(0), 0.760250  # Phi(1 / sqrt 2)
    found = [auc(rng.normal(1, 1, 80), rng.normal(0, 1, 80), confidence=0.9) for _ in range(200)]
    assert 0.83 < np.mean([one.low <= truth <= one.high for one in found]) < 0.97


def test_members_are_found_at_a_rate_of_false_alarms():
    members, others = np.array([5.0, 6.0, 7.0, 0.0]), np.arange(10.0) - 4  # -4 .. 5
    rng = np.random.default_rng(0)
    assert tpr_at(members, others, 0.05, rng=rng).value == 0.5  # no alarm is allowed: above 5
    assert tpr_at(members, others, 0.1, rng=rng).value == 0.75  # one is: above 4
    found = tpr_at(members, others, 0.1, rng=rng)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_sureness_is_the_logit_of_the_own_class():
    p = np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])
    assert confidence_logit(p, np.array([0, 0])) == pytest.approx([0, math.log(1 / 9)])
    sure = np.array([[1 - 1e-9, 1e-9, 0]], np.float32)  # the float32 next to 1 would lose the rest
    assert confidence_logit(sure, np.array([0])) == pytest.approx([math.log(1e9)], rel=1e-3)


def test_lira_by_hand_on_four_shadows():
    shadow = np.array([[2.0], [4.0], [0.0], [-2.0]])
    member = np.array([[True], [True], [False], [False]])
    # with it: mean 3, without: mean -1; the variance on each side is (1 + 1) / (2 - 1), so ((t + 1)^2 - (t - 3)^2) / 4
    assert lira(np.array([3.0]), shadow, member) == pytest.approx([16 / 4])
    assert lira(np.array([1.0]), shadow, member) == pytest.approx([0.0])
    assert lira(np.array([-1.0]), shadow, member) == pytest.approx([-16 / 4])
    assert lira_offline(np.array([3.0]), shadow, member) == pytest.approx([4 / ROOT2])


@pytest.mark.parametrize("score", [lira, lira_offline])
def test_lira_finds_members_where_each_example_has_its_own_level(score):
    rng = np.random.default_rng(0)
    member = rng.random((24, 300)) < 0.5
    shadow = rng.normal(0, 5, 300) + 1.5 * member + rng.normal(0, 1, (24, 300))
    scores = leave_one_out(shadow, member, score)
    assert auc(scores[member], scores[~member]).low > 0.8
    assert auc(shadow[member], shadow[~member]).high < 0.65  # one threshold for all misses it


def test_lira_finds_nobody_where_nothing_leaks():
    rng = np.random.default_rng(1)
    member = rng.random((24, 300)) < 0.5
    scores = leave_one_out(rng.normal(0, 1, (24, 300)), member)
    assert abs(auc(scores[member], scores[~member]).value - 0.5) < 0.03


# Labels.


def test_the_classes_of_a_client_are_guessed_by_the_mean_of_what_it_answered():
    p = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [np.nan, np.nan, np.nan]])
    assert label_distribution(p, np.array([1.0, 0.2, 0.0])) == pytest.approx(np.array([2.0, 1.0, 0.5]) / 3.5)


def test_divergence_by_hand():
    truth = np.array([0.5, 0.5, 0.0])
    assert divergence(truth, truth) == 0
    assert divergence(truth, np.array([0.25, 0.5, 0.25])) == pytest.approx(0.5 * math.log(2))
    assert divergence(truth, np.full(3, 1 / 3)) == pytest.approx(math.log(1.5))


def test_two_clients_with_three_classes_are_told_from_uniform():
    truth = np.array([[0.8, 0.1, 0.1], [0.0, 0.2, 0.8]])
    good = infer_labels(truth, np.array([[0.6, 0.2, 0.2], [0.2, 0.2, 0.6]]))
    assert good.top == 1
    assert good.correlation > 0.9
    assert all(a < b for a, b in zip(good.divergence, good.uniform, strict=True))
    assert infer_labels(truth, truth[::-1]).correlation < 0
    assert math.isnan(infer_labels(truth, np.full((2, 3), 1 / 3)).correlation)


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 1), min_size=3, max_size=3), st.lists(st.floats(0.01, 1), min_size=3, max_size=3))
def test_divergence_is_never_negative(a, b):
    truth, guess = np.array(a) / sum(a), np.array(b) / sum(b)
    assert divergence(truth, guess) >= -1e-12
