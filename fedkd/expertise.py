"""How much a client's ballot should count on each sample, judged by the client itself.

Let client k hold n_k private examples with density p_k(x). The posterior of the pooled data is a mixture of experts,
sum_k n_k p_k(x) p_k(y|x) / sum_k n_k p_k(x): a ballot counts in proportion to how densely the client's own data
covers the sample. A plain mean pretends that all p_k are equal, which fails exactly where labels are skewed.

Members are functions ``(p (n, C), rows (n,), transfer, private (N, ...), rng) -> w (n,)``, w >= 0, on one scale for all
clients. All but ``uniform`` tell the server which samples a client knows, hence about its labels: none of them is
a private mechanism.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from fedkd.errors import SpecError
from fedkd.records import TransferSet
from fedkd.registry import Registry
from fedkd.softlabels import Array, entropy

expertise = Registry("expertise")

Expertise = Callable[..., Array]

STATIC = {"density", "density_ratio"}
"""Members that read the data and not the predictions: a client computes them once for all rounds."""


@expertise
def uniform(p: Array, rows: Array, transfer: TransferSet, private: Array, rng: np.random.Generator) -> Array:
    """Let every ballot count the same."""
    return np.ones(len(rows), np.float32)


@expertise
def confidence(
    p: Array, rows: Array, transfer: TransferSet, private: Array, rng: np.random.Generator, *, power: float = 1.0
) -> Array:
    """Count a ballot by its largest probability, to the given power."""
    _above_zero("confidence", power=power)
    return np.asarray(p.max(axis=1) ** power, np.float32)


@expertise
def entropy_(
    p: Array, rows: Array, transfer: TransferSet, private: Array, rng: np.random.Generator, *, floor: float = 0.01
) -> Array:
    """Count a ballot by 1 / (H(p) / ln C + floor): certain ballots count more (FedGEMS uses 1/H, arXiv:2110.11027)."""
    _above_zero("entropy", floor=floor)
    return np.asarray(1.0 / (entropy(p) / np.log(p.shape[1]) + floor), np.float32)


@expertise
def density(
    p: Array,
    rows: Array,
    transfer: TransferSet,
    private: Array,
    rng: np.random.Generator,
    *,
    bandwidth: float = 0.1,
    neighbors: int = 5,
    dimensions: int = 40,
) -> Array:
    """Count a ballot by exp(-d / h), d the distance to the k-th nearest private example.

    Distances are taken in the ``dimensions`` leading principal components of the transfer set, which everyone can
    compute; h is ``bandwidth`` times the median distance of the transfer set to its own k-th neighbor, so it needs
    no tuning to the scale of the inputs. Range (0, 1]; a client without data abstains.
    """
    _above_zero("density", bandwidth=bandwidth, neighbors=neighbors, dimensions=dimensions)
    if not len(private):
        return np.zeros(len(rows), np.float32)
    public, project = principal_components(transfer, dimensions)
    k = min(neighbors, len(private))
    scale = _typical_distance(transfer, dimensions, neighbors)
    w = np.exp(-kth_distance(public[rows], project(private), k) / (bandwidth * scale))
    return np.maximum(w, np.finfo(np.float32).tiny, dtype=np.float32)  # to be far away is not to be silent


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
    _above_zero("density_ratio", features=features, dimensions=dimensions, penalty=penalty)
    if not len(private):
        return np.zeros(len(rows), np.float32)
    public, project = principal_components(transfer, dimensions)
    mine = project(private)
    scale = 2.0 * _typical_distance(transfer, dimensions, 5)
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


def principal_components(transfer: TransferSet, dimensions: int) -> tuple[Array, Callable[[Array], Array]]:
    """Return the transfer set in its leading principal components, (M, d), and the map that takes inputs there."""
    key = (transfer.fingerprint, dimensions)
    found = _PCA.get(key)
    if found is None:
        flat = transfer.inputs.reshape(len(transfer), -1)
        center = flat.mean(axis=0, dtype=np.float64).astype(np.float32)
        basis = _leading(flat, center, dimensions)
        found = (_project(center, basis, flat), partial(_project, center, basis))
        _PCA.clear()  # one transfer set at a time is what a process serves
        _PCA[key] = found
    return found


def _leading(flat: Array, center: Array, dimensions: int) -> Array:
    """Return the leading directions (d, dimensions or fewer) of rows ``flat`` (M, d) about ``center`` (d,)."""
    width = flat.shape[1]
    if width <= WIDE:
        scatter = np.zeros((width, width))
        for start in range(0, len(flat), 1000):
            part = (flat[start : start + 1000] - center).astype(np.float64)
            scatter += part.T @ part
        return np.asarray(np.linalg.eigh(scatter)[1][:, ::-1][:, :dimensions], np.float32)
    # Wide inputs: a (d, d) matrix would not fit, but the few directions that count are sums of rows.
    part = (flat[:: -(-len(flat) // 2000)] - center).astype(np.float64)
    variances, mixes = np.linalg.eigh(part @ part.T)
    kept = np.flatnonzero(variances > 1e-9 * variances[-1])[::-1][:dimensions]
    return np.asarray(part.T @ mixes[:, kept] / np.sqrt(variances[kept]), np.float32)


WIDE = 1024
"""Inputs of more values than this get their principal components from at most 2000 rows."""

_PCA: dict[tuple[str, int], tuple[Array, Callable[[Array], Array]]] = {}
_SCALE: dict[tuple[Any, ...], float] = {}


def _project(center: Array, basis: Array, x: Array) -> Array:
    flat = x.reshape(len(x), len(center))
    z = np.empty((len(x), basis.shape[1]), np.float32)
    for start in range(0, len(x), 1000):
        z[start : start + 1000] = (flat[start : start + 1000] - center) @ basis
    return z


def kth_distance(x: Array, to: Array, k: int, *, cells: int = 4_000_000) -> Array:
    """Return the Euclidean distance (n,) of rows ``x`` (n, d) to their k-th nearest row of ``to`` (N, d), k in 1..N.

    At most about ``cells`` distances are in memory at once.
    """
    center = to.mean(axis=0)  # of no effect on a distance, but what is far from zero loses its last digits in a square
    x, to = x - center, to - center
    squares = (to**2).sum(axis=1)
    found = np.empty(len(x), np.float32)
    chunk = max(1, cells // len(to))
    for start in range(0, len(x), chunk):
        part = x[start : start + chunk]
        d2 = part @ to.T  # squared distance up to a constant of the row: enough to find the neighbor
        d2 *= -2
        d2 += squares
        neighbor = np.argpartition(d2, k - 1, axis=1)[:, k - 1]
        # Taken anew from the difference: the sum above cancels, and equal rows would be some way apart.
        found[start : start + chunk] = np.sqrt(((part - to[neighbor]) ** 2).sum(axis=1))
    return found


def _typical_distance(transfer: TransferSet, dimensions: int, neighbors: int) -> float:
    key = (transfer.fingerprint, dimensions, neighbors)
    scale = _SCALE.get(key)
    if scale is None:
        public, _ = principal_components(transfer, dimensions)
        probe = public[:: max(1, len(public) // 1000)]  # a thousand rows fix a median well enough
        k = min(neighbors + 1, len(public))  # the nearest row is the row itself
        distance = kth_distance(probe, public, k)
        scale = float(np.median(distance)) or float(distance.mean()) or 1.0  # most rows may be there twice
        _SCALE.clear()
        _SCALE[key] = scale
    return scale


def _above_zero(name: str, **options: float) -> None:
    for option, value in options.items():
        if not 0 < value < np.inf:
            raise SpecError(f"expertise {name!r}: {option!r} must be above 0 and finite, got {value}.")


def _logistic(x: Array, label: Array, balance: Array, penalty: float, *, steps: int = 12) -> Array:
    """Return the weights (d,) of an L2-penalized logistic regression, by Newton's method."""
    theta = np.zeros(x.shape[1])
    ridge = penalty * np.eye(x.shape[1])
    ridge[-1, -1] = 1e-6  # the intercept is not penalized
    for _ in range(steps):
        chance = 1 / (1 + np.exp(-np.clip(x @ theta, -30, 30)))
        gradient = x.T @ (balance * (chance - label)) + ridge @ theta
        curvature = (x * (balance * chance * (1 - chance))[:, None]).T @ x + ridge
        step = np.linalg.solve(curvature, gradient)
        theta -= step
        if np.abs(step).max() < 1e-8:
            break
    return theta
