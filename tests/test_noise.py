"""Noise: exact, of the right size, and from nowhere that someone could look up."""

import math
from fractions import Fraction

import numpy as np
import pytest

from fedkd.errors import ConfigError
from fedkd.privacy import noise
from fedkd.privacy.noise import SeededEntropy, SystemEntropy, discrete_gaussian

SIGMAS = (0.5, 1.0, 2.0, 20.0)


def seeded(seed=0):
    return SeededEntropy(np.random.Generator(np.random.PCG64(seed)))


def chances(sigma, reach):
    """Return the integers up to ``reach`` and their probabilities, from the definition."""
    n = np.arange(-reach, reach + 1)
    p = np.exp(-(n**2) / (2 * sigma**2))
    return n, p / p.sum()


def surprise(drawn, sigma):
    """Return by how many standard deviations the chi-squared statistic of integers is above what is expected."""
    n, p = chances(sigma, math.ceil(12 * sigma) + 5)
    expected = p * len(drawn)
    seen = np.bincount(drawn + n[-1], minlength=len(n))
    often = expected > 10
    cells = np.append(seen[often], seen[~often].sum()), np.append(expected[often], max(expected[~often].sum(), 1))
    freedom = len(cells[0]) - 1
    chi = ((cells[0] - cells[1]) ** 2 / cells[1]).sum()
    # Wilson and Hilferty: the cube root is nearly normal. 3.72 is p = 1e-4.
    return ((chi / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))


@pytest.mark.parametrize("sigma", SIGMAS)
def test_integers_have_the_probabilities_of_the_discrete_gaussian(sigma):
    drawn = discrete_gaussian(100_000, sigma**2, seeded())
    assert surprise(drawn, sigma) < 3.72
    n, p = chances(sigma, 400)
    variance = float((p * n**2).sum())
    assert abs(drawn.mean()) < 4 * math.sqrt(variance / len(drawn))
    assert drawn.var() == pytest.approx(variance, rel=0.03)


@pytest.mark.parametrize("wrong", [1 / math.sqrt(2), 2.0])
def test_the_test_above_rejects_another_scale(wrong):
    assert surprise(discrete_gaussian(20_000, (2.0 * wrong) ** 2, seeded()), 2.0) > 10


def test_a_fraction_is_taken_as_it_is_and_wide_integers_draw_the_same(monkeypatch):
    drawn = discrete_gaussian(50_000, Fraction(1, 3), seeded(1))
    assert surprise(drawn, math.sqrt(1 / 3)) < 3.72
    monkeypatch.setattr(noise, "NARROW", 4)  # as if no machine word could hold it
    assert surprise(discrete_gaussian(20_000, Fraction(4), seeded(2)), 2.0) < 3.72


@pytest.mark.parametrize("sigma", [1.5e4, 1e6, 2.0**40])
def test_wide_noise_has_its_standard_deviation(sigma):
    drawn = discrete_gaussian((50, 80), sigma**2, seeded(3))
    assert drawn.shape == (50, 80)
    assert drawn.dtype == np.int64
    assert drawn.std() / sigma == pytest.approx(1, abs=0.05)
    assert abs(drawn.mean() / sigma) < 0.07
    assert np.mean(np.abs(drawn) < sigma) == pytest.approx(0.6827, abs=0.03)


@pytest.mark.parametrize("sigma_squared", [0.01, 0.25, 1.0, 7.3, 1e4, 1e8, 1e9])
def test_a_float_is_never_rounded_to_less_noise(sigma_squared):
    exact = noise._rounded_up(sigma_squared)
    assert Fraction(sigma_squared) <= exact <= Fraction(sigma_squared) * Fraction(1001, 1000)


def test_uniform_numbers_below_a_bound_are_uniform_and_wide_ones_too():
    small = noise.below(60_000, 3, seeded(4))
    assert np.bincount(small) / 60_000 == pytest.approx(np.full(3, 1 / 3), abs=0.01)
    wide = noise._wide_below(4000, 3 * 2**70, seeded(5))
    assert all(0 <= one < 3 * 2**70 for one in wide)
    assert np.bincount((wide >> 70).astype(int)) / 4000 == pytest.approx(np.full(3, 1 / 3), abs=0.04)


@pytest.mark.parametrize("sigma_squared", [0.0, -1.0, math.nan, math.inf, Fraction(0)])
def test_a_variance_that_is_none_is_refused(sigma_squared):
    with pytest.raises(ConfigError, match="sigma_squared must be above 0"):
        discrete_gaussian(3, sigma_squared, seeded())


@pytest.mark.parametrize("entropy", [SystemEntropy(), seeded()], ids=["system", "seeded"])
def test_normals_are_normal(entropy):
    z = entropy.normals((101, 1001))
    assert z.shape == (101, 1001)
    assert abs(z.mean()) < 5 / math.sqrt(z.size)
    assert z.std() == pytest.approx(1, abs=0.01)
    for point, share in ((0.5, 0.382925), (1.0, 0.682689), (2.0, 0.954500), (3.0, 0.997300)):
        assert np.mean(np.abs(z) < point) == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / z.size))
    assert abs(np.mean(z[:, :500] * z[:, 500:1000])) < 5 / math.sqrt(z.size / 2)  # halves of one formula
    assert entropy.normals(3).shape == (3,)
    assert entropy.normals((0, 4)).shape == (0, 4)


@pytest.mark.parametrize("entropy", [SystemEntropy(), seeded()], ids=["system", "seeded"])
def test_coins_fall_as_often_as_they_should(entropy):
    for rate in (0.02, 0.5):
        share = entropy.coins(100_000, rate).mean()
        assert share == pytest.approx(rate, abs=5 * math.sqrt(rate * (1 - rate) / 100_000))
    assert entropy.coins(1000, 1.0).all()
    assert not entropy.coins(1000, 0.0).any()


def test_only_the_system_is_private_and_only_it_never_repeats():
    assert SystemEntropy.private
    assert not SeededEntropy.private
    assert "NO PRIVACY" in noise.SEEDED
    assert (seeded(1).normals(8) == seeded(1).normals(8)).all()
    assert not (SystemEntropy().normals(8) == SystemEntropy().normals(8)).any()
    assert (discrete_gaussian(50, 400.0, seeded(1)) == discrete_gaussian(50, 400.0, seeded(1))).all()


def test_numpys_global_generator_is_neither_read_nor_moved():
    np.random.seed(5)
    before = np.random.get_state()
    first = (
        discrete_gaussian(200, 400.0, SystemEntropy()),
        SystemEntropy().normals(200),
        SystemEntropy().coins(200, 0.5),
    )
    after = np.random.get_state()
    assert (before[1] == after[1]).all()
    assert before[2:] == after[2:]
    np.random.seed(5)
    assert not (discrete_gaussian(200, 400.0, SystemEntropy()) == first).all()
