"""The private sketch: one noisy vector that weighs all samples, and what it costs."""

import math

import numpy as np
import pytest
from expertise_scene import normal, transfer, weights_of

from fedkd.errors import SpecError
from fedkd.events import Gaussian, NonPrivate, NoOp
from fedkd.expertise import (
    expertise,
    noisy_sketch,
    space,
    weigh,
)
from fedkd.expertise.sketch import Fourier
from fedkd.privacy.noise import SeededEntropy

# The private sketch.


def test_two_fourier_features_by_hand():
    fourier = Fourier(1, 2, 2.0)
    (frequency,) = fourier.frequencies[0]
    assert fourier(np.array([[3.0]], np.float32))[0] == pytest.approx(
        [math.cos(3 * frequency), math.sin(3 * frequency)]
    )


def test_the_inner_product_of_features_is_a_gaussian_kernel():
    fourier = Fourier(3, 20_000, 1.5)
    x = normal(6, 3)
    exact = np.exp(-((x[:, None] - x[None]) ** 2).sum(axis=2) / (2 * 1.5**2))
    assert fourier(x) @ fourier(x).T == pytest.approx(exact, abs=0.03)


@pytest.mark.parametrize("features", [2, 10, 2000])
def test_one_example_moves_the_sum_by_its_sensitivity_and_no_more(features):
    fourier = Fourier(4, features, 0.7)
    assert fourier.sensitivity == pytest.approx(1.0)
    x = normal(50, 4) * np.logspace(-3, 3, 50, dtype=np.float32)[:, None]
    x[7], x[8, 0] = np.inf, np.nan  # whatever an example holds
    rng = np.random.default_rng(0)
    whole = noisy_sketch(x, fourier, 0.0, SeededEntropy(rng)).total
    for one in range(50):
        without = noisy_sketch(np.delete(x, one, axis=0), fourier, 0.0, SeededEntropy(rng)).total
        moved = np.linalg.norm(whole - without)
        assert moved <= fourier.sensitivity * (1 + 1e-5)
        assert moved == pytest.approx(0.0 if one in (7, 8) else fourier.sensitivity, rel=1e-4)


@pytest.mark.parametrize("sigma", [0.5, 3.7])
def test_the_noise_of_a_sketch_has_the_scale_that_its_event_claims(sigma):
    fourier = Fourier(2, 2000, 1.0)
    x = normal(30, 2)
    clean = noisy_sketch(x, fourier, 0.0, SeededEntropy(np.random.default_rng(0))).total
    draws = []
    for seed in range(10):
        sketch = noisy_sketch(x, fourier, sigma, SeededEntropy(np.random.default_rng(seed)))
        assert sketch.event == Gaussian(noise_multiplier=sigma)
        draws.append(sketch.total - clean)
    noise = np.concatenate(draws)
    claimed = sigma * fourier.sensitivity
    # 20,000 draws: the standard deviation is within 2.5 % (five of its own); half or twice the scale is far outside.
    assert np.std(noise) == pytest.approx(claimed, rel=0.025)
    assert abs(noise.mean()) < 5 * claimed / math.sqrt(len(noise))
    beyond = [(np.abs(noise) > t * claimed).mean() for t in (1, 2, 3)]
    assert beyond == pytest.approx([0.3173, 0.0455, 0.0027], abs=0.012)
    assert np.abs(draws[0] - draws[1]).max() > 0


def test_a_sketch_does_not_touch_the_number_of_examples_of_a_chunk():
    fourier = Fourier(2, 20, 1.0)
    x = normal(2500, 2)
    whole = noisy_sketch(x, fourier, 0.0, SeededEntropy(np.random.default_rng(0))).total
    assert whole == pytest.approx(fourier(x).sum(axis=0, dtype=np.float64), rel=1e-4, abs=1e-3)


def test_without_noise_the_sketch_finds_the_density_ratio():
    # Two Gaussians a unit apart: n p_private / p_public = n exp(x - 1/2).
    pool, private = normal(3000, 1), normal(3000, 1, at=1.0, seed=1)
    w = weights_of("private_sketch(sigma=0.0, features=400)", pool, private)
    middle = np.abs(pool[:, 0] - 0.5) < 1.0
    true = 3000 * np.exp(pool[middle, 0] - 0.5)
    assert np.median(np.abs(np.log(w[middle] / true))) < 0.2
    assert np.corrcoef(w[middle], true)[0, 1] > 0.95


@pytest.mark.parametrize("rows", [300, 30])  # more public rows than features, and fewer
def test_the_sketch_by_its_own_equation(rows):
    pool, private = normal(rows, 2), normal(50, 2, at=0.5, seed=1)
    w = weights_of("private_sketch(sigma=0.0, features=100, floor=1e-9)", pool, private)
    z, project = space(transfer(pool), 40)
    distances = np.linalg.norm(z[:, None] - z[None], axis=2)[np.triu_indices(rows, 1)]
    fourier = Fourier(z.shape[1], 100, 0.5 * np.median(distances))
    phi, total = fourier(z).astype(np.float64), fourier(project(private)).sum(axis=0, dtype=np.float64)
    exact = phi @ np.linalg.solve(phi.T @ phi / rows + 1e-4 * np.eye(100), total)
    clear = exact > 1
    assert clear.sum() > 10
    assert w[clear] == pytest.approx(exact[clear], rel=1e-2, abs=0.5)


def test_noise_costs_little_where_examples_are_many():
    pool = np.concatenate([normal(400, 3), normal(400, 3, at=4.0, seed=1)])
    known = normal(1000, 3, seed=2)
    w = weights_of("private_sketch", pool, known)
    assert np.median(w[:400]) > 5 * np.median(w[400:])
    assert (w != weights_of("private_sketch", pool, known, seed=1)).any()  # the noise is new
    assert (w == weights_of("private_sketch", pool, known)).all()


def test_weights_come_with_what_they_cost():
    pool, private = normal(20, 2), normal(9, 2, seed=1)
    p = np.full((20, 2), 0.5, np.float32)
    for spec in [*expertise.names(), "private_sketch(sigma=2.0)"]:
        rows = np.arange(20)
        found = weigh(spec, p, rows, transfer(pool), private, np.random.default_rng(0))
        assert (found.w == weights_of(spec, pool, private)).all()
        name = spec.split("(")[0]
        if name in ("uniform", "confidence", "entropy"):
            assert found.event == NoOp()
        elif name == "private_sketch":
            sigma = 2.0 if "(" in spec else 3.7
            assert found.event == Gaussian(noise_multiplier=sigma)
        else:
            assert found.event == NonPrivate()
    with pytest.raises(SpecError, match="unknown expertise"):
        weigh("densty", p, np.arange(20), transfer(pool), private, np.random.default_rng(0))
