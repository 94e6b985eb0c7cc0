"""Expertise as the ratio of the density of a client's own data to another one: that of public data, or of noise."""

from __future__ import annotations

import numpy as np

from fedkd.errors import SpecError
from fedkd.expertise.plain import above_zero, expertise
from fedkd.expertise.space import CHUNK, principal_components
from fedkd.expertise.space import typical_distance as typical
from fedkd.records import TransferSet
from fedkd.softlabels import Array


@expertise
def density_ratio(
    p: Array,
    rows: Array,
    transfer: TransferSet,
    private: Array,
    rng: np.random.Generator,
    *,
    features: int = 300,
    dimensions: int = 40,
    penalty: float = 0.01,
) -> Array:
    """Count a ballot by p_private(x) / p_public(x), from a logistic regression that tells the two sets apart.

    It sees random Fourier features (Rahimi and Recht, 2007) of the public principal components; the odds of a
    classifier of two balanced sets are the density ratio (Sugiyama et al., 2012). Range [e^-8, e^8]; a client without
    data abstains.
    """
    above_zero("density_ratio", features=features, dimensions=dimensions, penalty=penalty)
    if not len(private):
        return np.zeros(len(rows), np.float32)
    public, project = principal_components(transfer, dimensions)
    mine = project(private)
    scale = 2.0 * typical(public, (transfer.fingerprint, dimensions), 5)
    directions = rng.standard_normal((public.shape[1], features)).astype(np.float32) / scale
    phase = rng.uniform(0, 2 * np.pi, features).astype(np.float32)

    def fourier(z: Array) -> Array:
        waves = np.sqrt(2.0 / features) * np.cos(z @ directions + phase)
        return np.concatenate([waves, np.ones((len(z), 1), np.float32)], axis=1).astype(np.float64)

    x = np.concatenate([fourier(mine), fourier(public)])
    label = np.concatenate([np.ones(len(mine)), np.zeros(len(public))])
    balance = np.where(label == 1, 0.5 / len(mine), 0.5 / len(public)) * len(mine)
    theta = _logistic(x, label, balance, penalty)
    return np.asarray(np.exp(np.clip(fourier(public[rows]) @ theta, -8, 8)), np.float32)


@expertise
def kulsif(
    p: Array,
    rows: Array,
    transfer: TransferSet,
    private: Array,
    rng: np.random.Generator,
    *,
    width: float = 5.0,
    auxiliary: int = 250,
    share: float = 0.05,
    quantile: float = 0.25,
) -> Array:
    """Answer or abstain: weight 1 where private data is dense relative to noise (Selective-FD, Nat. Commun. 2024).

    The ratio of the density of private data to that of ``auxiliary`` samples, uniform over the range of the transfer
    set, is fitted on a ``share`` of the private data by unconstrained least squares with Gaussian kernels (KuLSIF,
    Kanamori et al., 2012; lambda = auxiliary^-1/2). A sample is answered if its ratio is above the given ``quantile``
    of the ratios of the private data that was held out. ``width`` is that of the kernel on the inputs as they are: 5
    suits 28 x 28 images in [0, 1]. Range {0, 1}; a client without data abstains.
    """
    above_zero("kulsif", width=width, auxiliary=auxiliary, share=share)
    if share > 0.5:
        raise SpecError(f"expertise 'kulsif': 'share' must be in (0, 0.5], got {share}.")
    if not 0 <= quantile < 1:
        raise SpecError(f"expertise 'kulsif': 'quantile' must be in [0, 1), got {quantile}.")
    if not len(private):
        return np.zeros(len(rows), np.float32)
    x, public = private.reshape(len(private), -1), transfer.inputs.reshape(len(transfer), -1)
    # Who is held out is drawn by rank along a random direction, so that the order of the data does not matter.
    ranked = np.argsort(x @ rng.standard_normal(x.shape[1], np.float32), kind="stable")[rng.permutation(len(x))]
    fitted = ranked[: max(1, round(share * len(x)))]
    held_out = ranked[len(fitted) :] if len(x) > 1 else ranked
    noise = rng.uniform(public.min(axis=0), public.max(axis=0), (auxiliary, x.shape[1])).astype(np.float32)
    near = x[fitted]
    penalty = auxiliary**-0.5

    # The ratio is sum_i a_i k(., noise_i) + mean_j k(., near_j) / penalty, and a solves a linear system.
    system = _gauss(noise, noise, width) / auxiliary + penalty * np.eye(auxiliary)
    a = -np.linalg.solve(system, _gauss(noise, near, width).mean(axis=1)) / (auxiliary * penalty)

    def ratio(z: Array) -> Array:
        found = np.empty(len(z))
        for start in range(0, len(z), CHUNK):
            q = z[start : start + CHUNK]
            found[start : start + CHUNK] = _gauss(q, noise, width) @ a + _gauss(q, near, width).mean(axis=1) / penalty
        return found

    least = np.quantile(ratio(x[held_out]), quantile)
    return np.asarray(ratio(public[rows]) > least, np.float32)


def _gauss(x: Array, to: Array, width: float) -> Array:
    """Return exp(-|x - to|^2 / (2 width^2)) for all pairs, (n, N)."""
    x, to = x.astype(np.float64), to.astype(np.float64)
    squares = (x**2).sum(axis=1)[:, None] + (to**2).sum(axis=1) - 2 * x @ to.T
    return np.asarray(np.exp(-np.maximum(squares, 0) / (2 * width**2)))


def _logistic(x: Array, label: Array, balance: Array, penalty: float, *, steps: int = 12) -> Array:
    """Return the weights (d,) of an L2-penalized logistic regression, by Newton's method."""
    theta = np.zeros(x.shape[1])
    ridge = penalty * np.eye(x.shape[1])
    ridge[-1, -1] = 1e-6  # the intercept is not penalized
    for _ in range(steps):
        chance = 1 / (1 + np.exp(-np.clip(x @ theta, -30, 30)))
        gradient = x.T @ (balance * (chance - label)) + ridge @ theta
        curvature = ridge.copy()
        for start in range(0, len(x), CHUNK):  # a weighted copy of x would be another x
            part = slice(start, start + CHUNK)
            curvature += (x[part] * (balance * chance * (1 - chance))[part, None]).T @ x[part]
        step = np.linalg.solve(curvature, gradient)
        theta -= step
        if np.abs(step).max() < 1e-8:
            break
    return theta
