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
    return np.asarray(p.max(axis=1) ** power, np.float32)


@expertise
def entropy_(
    p: Array, rows: Array, transfer: TransferSet, private: Array, rng: np.random.Generator, *, floor: float = 0.01
) -> Array:
    """Count a ballot by 1 / (H(p) / ln C + floor): certain ballots count more (FedGEMS uses 1/H, arXiv:2110.11027)."""
    return np.asarray(1.0 / (entropy(p) / np.log(p.shape[1]) + floor), np.float32)


@expertise
def density(
    p: Array,
    rows: Array,
    transfer: TransferSet,
    private: Array,
    rng: np.random.Generator,
    *,
    bandwidth: float = 0.2,
    neighbors: int = 5,
    dimensions: int = 40,
) -> Array:
    """Count a ballot by exp(-d / h), d the distance to the k-th nearest private example.

    Distances are taken in the ``dimensions`` leading principal components of the transfer set, which everyone can
    compute; h is ``bandwidth`` times the median distance of the transfer set to its own k-th neighbor, so it needs
    no tuning to the scale of the inputs. Range (0, 1].
    """
    if bandwidth <= 0:
        raise SpecError(f"expertise 'density': 'bandwidth' must be above 0, got {bandwidth}.")
    public, project = principal_components(transfer, dimensions)
    k = min(neighbors, len(private))
    scale = _typical_distance(transfer, dimensions, neighbors)
    return np.asarray(np.exp(-kth_distance(public[rows], project(private), k) / (bandwidth * scale)), np.float32)


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
    penalty: float = 1.0,
) -> Array:
    """Count a ballot by p_private(x) / p_public(x), from a logistic regression that tells the two sets apart.

    It sees random Fourier features (Rahimi and Recht, 2007) of the public principal components; the odds of a
    classifier of two balanced sets are the density ratio (Sugiyama et al., 2012). Range (0, infinity), capped at e^8.
    """
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
    if key not in _PCA:
        flat = transfer.inputs.reshape(len(transfer), -1).astype(np.float32)
        center = flat.mean(axis=0, dtype=np.float64)
        covariance = np.cov((flat - center).T, bias=True).reshape(flat.shape[1], -1)
        _, vectors = np.linalg.eigh(covariance)
        basis = vectors[:, ::-1][:, :dimensions].astype(np.float32)
        _PCA.clear()  # one transfer set at a time is what a process serves
        _PCA[key] = (((flat - center) @ basis).astype(np.float32), partial(_project, center.astype(np.float32), basis))
    return _PCA[key]


_PCA: dict[tuple[str, int], tuple[Array, Callable[[Array], Array]]] = {}
_SCALE: dict[tuple[Any, ...], float] = {}


def _project(center: Array, basis: Array, x: Array) -> Array:
    return np.asarray((x.reshape(len(x), -1) - center) @ basis, np.float32)


def kth_distance(x: Array, to: Array, k: int, *, chunk: int = 1000) -> Array:
    """Return the Euclidean distance (n,) of rows ``x`` (n, d) to their k-th nearest row of ``to`` (N, d), k >= 1."""
    squares = (to**2).sum(axis=1)
    found = np.empty(len(x), np.float32)
    for start in range(0, len(x), chunk):
        part = x[start : start + chunk]
        d2 = (part**2).sum(axis=1)[:, None] + squares - 2 * part @ to.T
        found[start : start + chunk] = np.sqrt(np.maximum(np.partition(d2, k - 1, axis=1)[:, k - 1], 0))
    return found


def _typical_distance(transfer: TransferSet, dimensions: int, neighbors: int) -> float:
    key = (transfer.fingerprint, dimensions, neighbors)
    if key not in _SCALE:
        public, _ = principal_components(transfer, dimensions)
        probe = public[:: max(1, len(public) // 1000)]  # a thousand rows fix a median well enough
        k = min(neighbors + 1, len(public))  # the nearest row is the row itself
        _SCALE.clear()
        _SCALE[key] = float(np.median(kth_distance(probe, public, k))) or 1.0
    return _SCALE[key]


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
