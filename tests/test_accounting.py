"""What events cost: published and hand-computed answers, the errors of other accountants, and laws for any plan."""

import dataclasses
import math
import warnings

import numpy as np
import pytest
from accounting_scene import DELTA, plans
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.errors import ConfigError
from fedkd.events import (
    DistributedGaussian,
    Gaussian,
    Laplace,
    NonPrivate,
    NoOp,
    Pure,
    RandomizedResponse,
    SampledGaussian,
    ZeroConcentrated,
)
from fedkd.privacy import accountant, gaussian, pld, rdp, responses, words
from fedkd.privacy.accountant import Filter, delta_spent, spent

SGD = SampledGaussian(256 / 60000, 1.0, 4687)
MIXED = [SampledGaussian(0.01, 1.0, 1000), Gaussian(10.0), Laplace(20.0, 10)]
ONE_OF_EACH = [
    Gaussian(2.0),
    SampledGaussian(0.05, 1.0, 20),
    SampledGaussian(0.1, 2.0, 3, fixed=True),
    Laplace(4.0, 2),
    RandomizedResponse(10, 0.5, 3),
    DistributedGaussian(2.0, 10, 6.0, 100),
    Pure(0.3, 2),
    ZeroConcentrated(0.05),
]
FOURTH = [dataclasses.replace(e, count=4 * e.count) if hasattr(e, "count") else e for e in ONE_OF_EACH]


def cost(event, order):
    return rdp.rdp(event)[np.flatnonzero(order == rdp.ORDERS)[0]]


# Gaussian noise, exactly


@pytest.mark.parametrize(
    ("epsilon", "sigma"), [(0.1, 30.74956613), (0.5, 7.03182668), (1, 3.73063163), (3, 1.39059346), (8, 0.60022907)]
)
def test_the_noise_of_one_gaussian_release(epsilon, sigma):
    assert gaussian.sigma_of(epsilon, DELTA) == pytest.approx(sigma, abs=1e-6)
    assert gaussian.delta_of(epsilon, 1 / gaussian.sigma_of(epsilon, DELTA)) <= DELTA


@pytest.mark.parametrize(("mu", "epsilon"), [(0.25, 0.92634150), (0.5, 1.99309140), (1, 4.37717810), (2, 9.99725615)])
def test_the_epsilon_of_gaussian_noise(mu, epsilon):
    assert gaussian.epsilon_of(mu, DELTA) == pytest.approx(epsilon, abs=1e-6)
    assert spent([Gaussian(1 / mu)], DELTA) == pytest.approx(epsilon, abs=1e-6)
    assert gaussian.mu_of(epsilon, DELTA) == pytest.approx(mu, abs=1e-7)


@pytest.mark.parametrize(("mu", "delta"), [(0.5, 6.8295949831e-3), (1, 0.12693673751), (2, 0.50986166005)])
def test_the_delta_of_gaussian_noise(mu, delta):
    assert gaussian.delta_of(1.0, mu) == pytest.approx(delta, abs=1e-9)
    assert delta_spent([Gaussian(1 / mu)], 1.0) == pytest.approx(delta, abs=1e-9)


def test_gaussian_accounting_keeps_its_digits_in_the_tails():
    epsilon = gaussian.epsilon_of(1.0, 1e-200)
    # ln delta = ln phi(x) + ln(M(x) - M(x+1)) with M(x) about 1/x, so x^2/2 = 200 ln 10 - ln sqrt(2 pi) - 2 ln x.
    x = epsilon - 0.5
    assert x * x / 2 == pytest.approx(200 * math.log(10) - math.log(math.sqrt(2 * math.pi)) - 2 * math.log(x), rel=1e-3)
    assert gaussian.delta_of(epsilon, 1.0) == pytest.approx(1e-200, rel=1e-6)
    assert gaussian.mills(9.999999) == pytest.approx(gaussian.mills(10.0), rel=1e-6)
    assert gaussian.quantile(gaussian.cdf(-3.0)) == pytest.approx(-3.0)


def test_a_hundred_releases_of_twenty_sigma_are_one_of_two():
    assert spent([Gaussian(20.0, 100)], DELTA) == pytest.approx(1.993091, abs=1e-4)
    assert spent([Gaussian(20.0)] * 100, DELTA) == pytest.approx(spent([Gaussian(2.0)], DELTA), abs=1e-9)
    assert spent([Gaussian(20.0, 100)], DELTA, method="pld") == pytest.approx(1.993091, abs=1e-4)
    assert spent([SampledGaussian(1.0, 20.0, 100)], DELTA) == pytest.approx(1.993091, abs=1e-4)


@pytest.mark.parametrize(
    ("labels", "epsilon"), [(1, 1.0), (10, 3.62), (100, 14.4), (1000, 71.3), (10_000, 473), (250_000, 9552)]
)
def test_labels_that_are_each_1_private_cost_far_more_together(labels, epsilon):
    one = Gaussian(gaussian.sigma_of(1.0, DELTA), labels)
    assert spent([one], DELTA) == pytest.approx(epsilon, rel=3e-3)


# Renyi accounting


def test_renyi_costs_by_hand():
    assert cost(Gaussian(2.0, 3), 2.0) == pytest.approx(3 * 2 / (2 * 4))
    # Two classes, epsilon = ln 3: chances 3/4 and 1/4; order 2: ln(9/16 * 4 + 1/16 * 4/3).
    assert cost(RandomizedResponse(2, math.log(3)), 2.0) == pytest.approx(math.log(9 / 4 + 1 / 12))
    # Three classes, e^epsilon = 2: chances 1/2, 1/4, 1/4: (1/4) / (1/4) + (1/16) / (1/2) + 1/4.
    assert cost(RandomizedResponse(3, math.log(2)), 2.0) == pytest.approx(math.log(1 + 1 / 8 + 1 / 4))
    # Half the units, order 2: (1-q)^2 + 2 q (1-q) + q^2 e^(1/z^2).
    assert cost(SampledGaussian(0.5, 1.0), 2.0) == pytest.approx(math.log(0.75 + 0.25 * math.e))
    assert cost(ZeroConcentrated(0.5), 3.0) == pytest.approx(1.5)


@pytest.mark.parametrize(("order", "value"), [(2, 1.718134e-4), (8, 8.936439e-4), (32, 11.246275937)])
def test_renyi_cost_of_a_poisson_sample(order, value):
    assert cost(SampledGaussian(0.01, 1.0), order) == pytest.approx(value, abs=1e-7)


@pytest.mark.parametrize(("q", "z"), [(0.01, 0.3), (0.5, 5.0), (0.9, 40.0)])
def test_fractional_orders_lie_where_whole_ones_say(q, z):
    log_moment = (rdp.ORDERS - 1) * rdp.poisson(q, z)
    # It is convex in the order, as all cumulants are, also across the two ways in which it is computed.
    few = rdp.ORDERS <= 11
    slope = np.diff(log_moment[few]) / np.diff(rdp.ORDERS[few])
    assert (np.diff(slope) >= -1e-9).all()
    at = np.flatnonzero(rdp.ORDERS == 2.5)[0]
    x = np.linspace(-30 * z, 30 * z, 400_001)
    ratio = 1 - q + q * np.exp((2 * x - 1) / (2 * z * z))
    moment = (np.exp(-x * x / (2 * z * z)) * ratio**2.5).sum() * (x[1] - x[0]) / (z * math.sqrt(2 * math.pi))
    assert log_moment[at] == pytest.approx(math.log(moment), rel=1e-6, abs=1e-12)


def test_the_sum_for_samples_of_fixed_size_by_hand():
    # Order 2: 1 + q^2 min(4 (e^r - 1), 2 e^r) with r = rdp(2) = 1/z^2, where z is relative to replacing one.
    q, z = 0.1, 3.0
    r = 1 / z**2
    assert cost(SampledGaussian(q, z, 1, fixed=True), 2.0) == pytest.approx(math.log1p(q * q * 4 * math.expm1(r)))
    assert cost(SampledGaussian(q, 0.5, 1, fixed=True), 2.0) == pytest.approx(
        min(math.log1p(q * q * 2 * math.exp(4)), 4)
    )


@pytest.mark.parametrize(("order", "value"), [(2, 0.61912363), (8, 0.91019880)])
def test_renyi_cost_of_laplace_noise(order, value):
    assert cost(Laplace(1.0), order) == pytest.approx(value, abs=1e-8)


@pytest.mark.parametrize(
    ("rho", "tight", "standard"),
    [(0.005, 0.375261, 0.484853), (0.125, 2.165716, 2.524263), (0.5, 4.728387, 5.298526)],
)
def test_from_zero_concentrated_to_epsilon(rho, tight, standard):
    found = spent([ZeroConcentrated(rho)], DELTA)
    assert tight - 1e-6 <= found == pytest.approx(tight, abs=2e-4)
    assert found < rho + 2 * math.sqrt(rho * math.log(1 / DELTA)) == pytest.approx(standard, abs=1e-6)


@pytest.mark.parametrize(
    ("events", "value"),
    [
        ([SGD], 1.7592),
        ([Gaussian(20.0, 100)], 2.1657),
        ([SampledGaussian(0.1, 1.0, 100)], 7.8993),
        ([Laplace(10.0, 100)], 4.5327),
        ([RandomizedResponse(10, 1.0, 100)], 39.448),
        ([SampledGaussian(0.01, 4.0, 10_000)], 1.03549),
        ([SampledGaussian(0.04, 1.5, 2250)], 7.32911),
        (MIXED, 2.233292),
        ([SampledGaussian(0.1, 16.8192 / 2, 100, fixed=True)], 1.0),
        ([SampledGaussian(0.1, 6.3692 / 2, 100, fixed=True)], 3.0),
        ([SampledGaussian(0.1, 3.0375 / 2, 100, fixed=True)], 8.0),
    ],
)
def test_renyi_accounting_of_known_plans(events, value):
    assert spent(events, DELTA, method="rdp") == pytest.approx(value, abs=1e-3)


def test_the_moments_accountant_of_2016_is_the_same_cost_with_a_looser_ending():
    total = rdp.rdp(SampledGaussian(0.01, 4.0, 10_000))
    whole = np.floor(rdp.ORDERS) == rdp.ORDERS
    assert (total + math.log(1 / DELTA) / (rdp.ORDERS - 1))[whole].min() == pytest.approx(1.2586, abs=1e-3)


def test_discrete_noise_costs_what_its_theorem_says():
    # Two shares of sigma 1, d = 4: tau = 10 e^(-pi^2), epsilon^2 = min(1/z^2 + tau d / 2, (1/z + tau sqrt d)^2).
    tau = 10 * math.exp(-(math.pi**2))
    assert gaussian.drift(2, 1.0) == pytest.approx(tau)
    event = DistributedGaussian(2.0, 2, 1.0, 4)
    assert cost(event, 3.0) == pytest.approx(3 / 2 * min(0.25 + 2 * tau, (0.5 + 2 * tau) ** 2))
    assert gaussian.drift(5000, 1.0) >= 10 * sum(math.exp(-2 * math.pi**2 * k / (k + 1)) for k in range(1, 5000))
    assert cost(DistributedGaussian(2.0, 2, 0.5, 4), 3.0) == math.inf


# Randomized response


@pytest.mark.parametrize(
    ("classes", "epsilon", "keep"), [(2, 1, 0.73105858), (10, 1, 0.23196932), (10, 2.5, 0.57512085)]
)
def test_the_chance_to_keep_a_class(classes, epsilon, keep):
    assert responses.keep_probability(classes, epsilon) == pytest.approx(keep, abs=1e-8)


@pytest.mark.parametrize(
    ("epsilon", "count", "exact"),
    [(1.0, 100, 37.2055), (0.1, 100, 1.8179), (0.5, 100, 13.1693), (1.0, 10, 7.9933), (2.0, 10, 19.9708)],
)
def test_many_randomized_responses_exactly(epsilon, count, exact):
    events = [RandomizedResponse(10, epsilon, count)]
    assert spent(events, DELTA) == pytest.approx(exact, abs=1e-3)
    assert pld.epsilon_of(events, DELTA) == pytest.approx(exact, abs=1e-3)
    assert responses.delta_of(10, epsilon, count, spent(events, DELTA)) == pytest.approx(DELTA, rel=1e-6)


def test_two_randomized_responses_of_three_classes_by_hand():
    # e^epsilon = 2: chances 1/2, 1/4, 1/4 of losses +1, 0, -1 times ln 2. Twice: +2 with 1/4, +1 with 2 * 1/2 * 1/4.
    # At epsilon = ln(3/2): 1/4 (1 - 3/8) + 1/4 (1 - 3/4) = 7/32.
    at = math.log(1.5)
    assert responses.delta_of(3, math.log(2), 2, at) == pytest.approx(7 / 32)
    assert responses.epsilon_of(3, math.log(2), 2, 7 / 32) == pytest.approx(at)
    assert delta_spent([RandomizedResponse(3, math.log(2), 2)], at) == pytest.approx(7 / 32)
    assert responses.epsilon_of(3, math.log(2), 2, 0.0) == pytest.approx(2 * math.log(2))


def test_the_count_of_randomized_responses_is_never_forgotten():
    fifty = spent([RandomizedResponse(10, 1.0, 50)], DELTA)
    assert fifty > 10
    assert spent([RandomizedResponse(10, 1.0)] * 50, DELTA) == fifty
    assert spent([RandomizedResponse(10, 1.0, 20), RandomizedResponse(10, 1.0, 30)], DELTA) == fifty
    for events in ([RandomizedResponse(10, 1.0, 50)], [RandomizedResponse(10, 1.0)] * 50):
        assert pld.epsilon_of(events, DELTA) == pytest.approx(fifty, abs=1e-3)


def test_a_published_epsilon_of_5_is_795_over_all_rounds():
    # PrivateKT's demo: two labels a round share epsilon 5, ten classes, 500 rounds, half of the clients in each.
    labels = [RandomizedResponse(10, 2.5, 2 * 250)]
    assert rdp.pure(labels[0]) == 1250
    assert spent(labels, DELTA) == pytest.approx(795, abs=0.5)
    assert spent([RandomizedResponse(10, 2.5, 2)], DELTA) <= 5


def test_an_epsilon_of_1_12_in_each_round_is_5_88_after_a_hundred():
    # Flower's Opacus example: a new engine in every round; 4000 examples, batches of 32, one epoch, sigma 1.
    one = SampledGaussian(32 / 4000, 1.0, 125)
    assert spent([one], DELTA, method="rdp") == pytest.approx(1.12, abs=0.005)
    assert spent([one] * 100, DELTA, method="rdp") == pytest.approx(5.88, abs=0.005)


# Privacy loss distributions


@pytest.mark.parametrize(
    ("events", "value", "near"),
    [
        ([SGD], 1.5683, 5e-4),
        ([SampledGaussian(0.1, 1.0, 100)], 7.0466, 1e-3),
        ([Laplace(10.0, 100)], 4.2203, 1e-3),
        ([Laplace(1.0, 10)], 9.99, 5e-3),
        ([Laplace(1.0, 100)], 68.3, 0.1),
        ([Laplace(1.0, 1000)], 474, 0.5),
        ([SampledGaussian(0.01, 4.0, 10_000)], 0.946999, 1e-3),
        ([SampledGaussian(0.04, 1.5, 2250)], 6.76879, 1e-3),
        (MIXED, 1.968597, 1e-3),
        ([DistributedGaussian(1.0, 1, 1.0, 1)], 4.430238, 1e-3),
        ([DistributedGaussian(2.0, 1, 2.0, 1)], 2.011340, 1e-3),
        ([DistributedGaussian(20.0, 1, 20.0, 1)], 0.160110, 1e-3),
    ],
    ids=str,
)
def test_tight_accounting_of_known_plans(events, value, near):
    assert spent(events, DELTA) == pytest.approx(value, abs=near)


@pytest.mark.parametrize(
    ("rate", "rounds", "noises"),
    [
        (1.0, 20, (16.68, 6.22, 2.68)),
        (0.1, 20, (2.10, 1.10, 0.68)),
        (0.01, 20, (0.81, 0.59, 0.41)),
        (1.0, 100, (37.3, 13.9, 6.0)),
        (0.1, 100, (3.94, 1.68, 0.94)),
        (0.01, 100, (0.90, 0.65, 0.47)),
    ],
)
def test_noise_of_sampled_clients(rate, rounds, noises):
    for epsilon, noise in zip((1, 3, 8), noises, strict=True):
        last_digit = 0.05 if noise > 30 else 0.006  # the table is rounded
        assert spent([SampledGaussian(rate, noise + last_digit, rounds)], DELTA) < epsilon
        assert spent([SampledGaussian(rate, 0.8 * noise, rounds)], DELTA, method="rdp") > epsilon


def test_replacing_costs_twice_what_leaving_out_does():
    # dp-accounting's Renyi accountant says 4.73 for replacement at noise 1; noise relative to sensitivity says it all.
    assert spent([Gaussian(1.0 / 2)], DELTA) == pytest.approx(9.99725615, abs=1e-6)
    assert spent([Gaussian(1.0 / 2)], DELTA, method="rdp") > 9.997


def curve_of_two_draws(epsilon, sigma):
    """Delta of two rounds in which one of two units is drawn, {-1, -1} against {1, -1}, either way round."""
    x = np.linspace(-1 - 9 * sigma, 1 + 9 * sigma, 2001)
    low, high = (np.exp(-((x - at) ** 2) / (2 * sigma**2)) for at in (-1, 1))
    p, q = (low + high) / (low + high).sum(), low / low.sum()
    p, q = np.multiply.outer(p, p), np.multiply.outer(q, q)
    e = math.exp(epsilon)
    return max(np.maximum(p - e * q, 0).sum(), np.maximum(q - e * p, 0).sum())


@pytest.mark.parametrize("epsilon", [0.2, 1.0, 2.0])
def test_a_sample_of_fixed_size_is_bounded_from_above_and_not_by_much(epsilon):
    true = curve_of_two_draws(epsilon, 2.0)  # replacing moves a sum by 2, so the noise is 1 relative to it
    bound = pld.delta_of([SampledGaussian(0.5, 1.0, 2, fixed=True)], epsilon)
    assert true <= bound * (1 + 1e-6)
    assert bound < 1.6 * true
    assert curve_of_two_draws(epsilon, 1.0) > bound  # and half the noise would not do


def test_a_sum_of_discrete_noises_is_as_private_as_claimed():
    # Three shares of 1.5 units, a sensitivity of 2: their sum exactly, by convolution.
    x = np.arange(-40, 41)
    one = np.exp(-x * x / (2 * 1.5**2))
    whole = np.convolve(np.convolve(one, one), one)
    whole /= whole.sum()
    event = DistributedGaussian(1.5 * math.sqrt(3) / 2, 3, 1.5, 1)
    for epsilon in (0.0, 1.0, 3.0):
        true = np.maximum(whole[2:] - math.exp(epsilon) * whole[:-2], 0).sum()
        assert true <= delta_spent([event], epsilon)
    many = DistributedGaussian(1.39, 1000, 22.5, 10_000)
    assert 0 < spent([many], DELTA) - spent([Gaussian(1.39)], DELTA) < 1e-3


def test_a_count_is_the_same_as_so_many_events_and_order_does_not_matter():
    apart = [dataclasses.replace(e, count=1) for e in ONE_OF_EACH[:7] for _ in range(e.count)]
    for method in ("rdp", "pld"):
        whole = spent(ONE_OF_EACH[:7], DELTA, method=method)
        assert spent(apart, DELTA, method=method) == pytest.approx(whole, rel=1e-6)
        assert spent(apart[::-1], DELTA, method=method) == pytest.approx(whole, rel=1e-6)


def test_two_engines_agree_on_a_mixed_plan():
    # By hand: the sum of all answers' signs times epsilon shifts the epsilon of the Gaussian part.
    events = [Gaussian(1.0, 2), RandomizedResponse(10, 0.5, 20)]
    keep = responses.keep_probability(10, 0.5)
    other = keep * math.exp(-0.5)
    sums = np.ones(1)
    for _ in range(20):
        sums = np.convolve(sums, [other, 8 * other, keep])
    mu = math.sqrt(2)

    def delta_at(epsilon):  # mean over losses l of the Gaussian delta at epsilon - l, mirrored below 0
        total = 0.0
        for count, chance in zip(range(-20, 21), sums, strict=True):
            left = epsilon - 0.5 * count
            at = gaussian.delta_of(abs(left), mu)
            total += chance * (at if left >= 0 else 1 - math.exp(left) + math.exp(left) * at)
        return total

    found = spent(events, DELTA)
    assert delta_at(found) == pytest.approx(DELTA, rel=0.01)
    assert delta_at(found) <= DELTA


# Independent accountants


@pytest.mark.slow
def test_prv_accountant_agrees_within_a_percent():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import prv_accountant as prv

        parts = [prv.PoissonSubsampledGaussianMechanism(sampling_probability=0.01, noise_multiplier=1.0),
                 prv.GaussianMechanism(10.0), prv.LaplaceMechanism(mu=1 / 20)]  # fmt: skip
        counts = [1000, 1, 10]
        theirs = prv.PRVAccountant(prvs=parts, max_self_compositions=counts, eps_error=0.01, delta_error=1e-8)
        low, estimate, high = theirs.compute_epsilon(delta=DELTA, num_self_compositions=counts)
    ours = spent(MIXED, DELTA)
    assert low <= ours <= high
    assert ours == pytest.approx(estimate, rel=0.01)


@pytest.mark.slow
def test_opacus_prv_agrees():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus import accountants

        theirs = accountants.PRVAccountant()
        theirs.history = [(1.5, 0.04, 2250)]
        epsilon = theirs.get_epsilon(delta=DELTA, eps_error=0.01)
    assert spent([SampledGaussian(0.04, 1.5, 2250)], DELTA) == pytest.approx(epsilon, abs=0.015)


# What costs nothing, what costs everything


@pytest.mark.parametrize("method", accountant.METHODS)
def test_nothing_costs_nothing(method):
    assert spent([], DELTA, method=method) == 0
    assert spent([NoOp()] * 3, DELTA, method=method) == 0
    assert delta_spent([NoOp()], 0.0) == 0


@pytest.mark.parametrize(
    "event",
    [NonPrivate(), Gaussian(0.0), SampledGaussian(0.1, 0.0), Laplace(0.0), Gaussian(-1.0), Gaussian(math.nan),
     RandomizedResponse(1, 1.0), DistributedGaussian(0.0, 3, 1.0, 5), SampledGaussian(0.1, 0.0, fixed=True), "noise"],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("method", accountant.METHODS)
def test_what_is_not_private_costs_infinity(event, method):
    assert spent([Gaussian(5.0), event], DELTA, method=method) == math.inf
    assert delta_spent([Gaussian(5.0), event], 3.0) == 1
    assert not Filter(8.0, DELTA).fits([], event)
    assert not Filter(8.0, DELTA).fits([event], Gaussian(100.0))


def test_an_accountant_that_knows_nothing_of_an_event_says_infinity():
    assert spent([Laplace(1.0)], DELTA, method="gaussian") == math.inf
    assert spent([ZeroConcentrated(0.1)], DELTA, method="pld") == math.inf
    assert spent([ZeroConcentrated(0.1), Laplace(2.0)], DELTA) < math.inf


def test_epsilons_without_delta_add_up_at_most():
    events = [Laplace(1.0), RandomizedResponse(10, 0.5, 2), Pure(0.25)]
    assert spent(events, 0.0) == pytest.approx(2.25)
    assert spent(events, DELTA) <= 2.25
    assert spent([Laplace(1.0)], 1e-12) <= 1.0
    assert spent([Laplace(1.0)], DELTA, method="rdp") <= 1.0  # without the sum it would be 1.0028
    assert spent([Gaussian(1.0)], 0.0) == math.inf
    assert delta_spent(events, 2.25) == 0


@pytest.mark.parametrize("bad", [-0.1, 1.0, math.nan])
def test_a_delta_that_is_none_is_refused(bad):
    with pytest.raises(ConfigError, match="`delta` must be in"):
        spent([Gaussian(1.0)], bad)
    with pytest.raises(ConfigError, match="`delta` must be in"):
        Filter(1.0, bad)


def test_other_settings_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="`method` must be one of tight"):
        spent([Gaussian(1.0)], DELTA, method="gdp_clt")
    with pytest.raises(ConfigError, match="`epsilon` must be at least 0"):
        delta_spent([Gaussian(1.0)], -1.0)
    with pytest.raises(ConfigError, match="`epsilon` must be above 0"):
        Filter(0.0, DELTA)
    with pytest.raises(ConfigError, match="`false_alarms` must be in"):
        words.advantage(1.0, false_alarms=0.0)


# Laws


@pytest.mark.parametrize("event", ONE_OF_EACH, ids=repr)
@pytest.mark.parametrize("method", ["tight", "rdp"])
def test_more_of_it_or_less_noise_costs_more(event, method):
    one = spent([event], DELTA, method=method)
    assert 0 < one < math.inf
    assert spent([event, event], DELTA, method=method) > one
    if hasattr(event, "noise_multiplier"):
        noisier = dataclasses.replace(event, noise_multiplier=2 * event.noise_multiplier)
        assert spent([noisier], DELTA, method=method) < one
    if hasattr(event, "rate"):
        rarer = dataclasses.replace(event, rate=event.rate / 2)
        assert spent([rarer], DELTA, method=method) < one
        assert one < spent([Gaussian(event.noise_multiplier, event.count)], DELTA, method=method)
    assert spent([event], DELTA / 10, method=method) >= one


@pytest.mark.parametrize("event", [e for e in FOURTH if not isinstance(e, ZeroConcentrated)], ids=repr)
def test_tight_is_never_above_renyi_nor_the_sum(event):
    by_renyi = spent([event], DELTA, method="rdp")
    assert spent([event], DELTA, method="pld") <= by_renyi * (1 + 1e-6) or math.isclose(by_renyi, rdp.pure(event))
    assert spent([event], DELTA) <= by_renyi <= rdp.pure(event)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(plans)
def test_distributions_are_never_looser_than_renyi(events):
    limit = rdp.epsilon_of(rdp.total(events), DELTA)
    assert pld.epsilon_of(events, DELTA) <= limit * (1 + 1e-6) + 1e-9


@settings(max_examples=50, deadline=None, derandomize=True)
@given(plans, st.floats(1e-9, 1e-2))
def test_epsilon_and_delta_are_each_others_reverse_in_renyi_accounting(events, delta):
    total = rdp.total(events)
    epsilon = rdp.epsilon_of(total, delta)
    if epsilon > 0:
        assert rdp.delta_of(total, epsilon) <= delta * (1 + 1e-6)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.floats(0.01, 30.0), st.floats(1e-30, 0.4))
def test_epsilon_delta_and_mu_are_each_others_reverse_for_gaussian_noise(mu, delta):
    epsilon = gaussian.epsilon_of(mu, delta)
    if epsilon > 0:
        assert gaussian.delta_of(epsilon, mu) == pytest.approx(delta, rel=1e-6)
        assert gaussian.mu_of(epsilon, delta) == pytest.approx(mu, rel=1e-6)
