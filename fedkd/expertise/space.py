"""The space in which private and public data are compared: it is made of the transfer set alone, so everyone has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fedkd.features import SIDE, shapes
from fedkd.random import generator
from fedkd.records import TransferSet
from fedkd.softlabels import Array, middle

WIDE = 1024
"""Inputs of more values than this get their principal components from at most 2000 rows."""

CHUNK = 1000
"""Rows that are worked on at a time."""

REFERENCE = 5000
"""Most rows of the transfer set that stand for all of it when its density is estimated."""

Project = Callable[[Array], Array]

_PCA: dict[tuple[Any, ...], tuple[Array, Project]] = {}
_SCALE: dict[tuple[Any, ...], float] = {}
_AROUND: dict[tuple[Any, ...], Any] = {}


def principal_components(transfer: TransferSet, dimensions: int) -> tuple[Array, Project]:
    """Return the transfer set in its leading principal components, (M, d), and the map that takes inputs there."""
    return _components(transfer, dimensions, _flat)


def space(transfer: TransferSet, dimensions: int) -> tuple[Array, Project]:
    """Return the transfer set (M, d) in the principal components of its shapes, and the map that takes inputs there.

    Inputs that are no images of at least 8 x 8 have no shapes: they are compared as they are.
    """
    image = transfer.inputs.ndim == 4 and min(transfer.inputs.shape[2:]) >= SIDE
    return _components(transfer, dimensions, shapes if image else _flat)


def nearest(x: Array, to: Array, k: int, *, cells: int = 4_000_000) -> Array:
    """Return the Euclidean distances (n, k) of rows ``x`` (n, d) to their k nearest rows of ``to`` (N, d), ascending.

    k is in 1..N. At most about ``cells`` distances are in memory at once.
    """
    center = to.mean(axis=0)  # of no effect on a distance, but what is far from zero loses its last digits in a square
    x, to = x - center, to - center
    squares = (to**2).sum(axis=1)
    found = np.empty((len(x), k), np.float32)
    chunk = max(1, cells // max(len(to), k * x.shape[1]))
    for start in range(0, len(x), chunk):
        part = x[start : start + chunk]
        d2 = part @ to.T  # squared distance up to a constant of the row: enough to find the neighbors
        d2 *= -2
        d2 += squares
        neighbor = np.argpartition(d2, k - 1, axis=1)[:, :k]
        # Taken anew from the difference: the sum above cancels, and equal rows would be some way apart.
        found[start : start + chunk] = np.sqrt(((part[:, None] - to[neighbor]) ** 2).sum(axis=2))
    return np.sort(found, axis=1)


def kth_distance(x: Array, to: Array, k: int, *, cells: int = 4_000_000) -> Array:
    """Return the Euclidean distance (n,) of rows ``x`` (n, d) to their k-th nearest row of ``to`` (N, d), k in 1..N."""
    return nearest(x, to, k, cells=cells)[:, k - 1]


def typical_distance(public: Array, key: tuple[Any, ...], neighbors: int) -> float:
    """Return the median distance of rows of ``public`` (M, d) to their k-th nearest other row; ``key`` names them."""
    scale = _SCALE.get((*key, neighbors))
    if scale is None:
        probe = public[sample(len(public), 1000)]  # they fix a median well enough
        k = min(neighbors + 1, len(public))  # the nearest row is the row itself
        distance = kth_distance(probe, public, k)
        scale = middle(distance) or float(distance.mean()) or 1.0  # most rows may be there twice
        _SCALE.clear()
        _SCALE[(*key, neighbors)] = scale
    return scale


@dataclass(frozen=True, eq=False)
class Around:
    """The transfer set around each of its own rows.

    ``log_r`` (M,) is the mean log distance to the nearest other of the ``rows`` that stand for the set,
    ``mean_digamma`` the mean of psi(j) over as many neighbors, ``dimension`` the intrinsic one.
    """

    log_r: Array
    rows: int
    mean_digamma: float
    dimension: float


def around(public: Array, key: tuple[Any, ...], neighbors: int) -> Around:
    """Return how densely the rows ``public`` (M, d) lie around each of them; ``key`` names them.

    Of a large set ``REFERENCE`` rows stand for the others.
    """
    found = _AROUND.get((*key, neighbors))
    if found is None:
        some = sample(len(public), REFERENCE)
        k = min(neighbors, max(len(some) - 1, 1))
        r = nearest(public, public[some], min(k + 1, len(some)))
        own = np.isin(np.arange(len(public)), some)  # the nearest to such a row is the row itself
        r = np.where(own[:, None], r[:, -k:], r[:, :k])
        least = 0.1 * (middle(r[:, -1]) or float(r[:, -1].mean()) or 1.0)  # most rows may be there twice
        log_r = np.log(np.maximum(r, least)).mean(axis=1)
        found = Around(log_r.astype(np.float32), len(some), mean_digamma(k), intrinsic_dimension(public))
        _AROUND.clear()
        _AROUND[(*key, neighbors)] = found
    return found


def sample(rows: int, most: int) -> Array:
    """Return ``most`` of ``rows`` row numbers, or all, sorted: the same for everyone, whatever the order of a file."""
    if rows <= most:
        return np.arange(rows)
    return np.sort(np.argsort(generator(0, "sample of rows", rows).random(rows), kind="stable")[:most])


def mean_digamma(k: int) -> float:
    """Return the mean of the digamma function over 1..k.

    >>> round(mean_digamma(1), 4), round(mean_digamma(2), 4)
    (-0.5772, -0.0772)
    """
    return float(np.cumsum(np.concatenate([[-np.euler_gamma], 1 / np.arange(1, k)])).mean())


def intrinsic_dimension(public: Array, *, neighbors: int = 10) -> float:
    """Return on how many dimensions rows ``public`` (M, d) lie, from 1 to d: few for images, whatever their size.

    In m dimensions a ball holds r^m points, so 1/m is the mean of log(r_k / r_j) over neighbors j < k (Levina and
    Bickel, 2004, averaged as MacKay and Ghahramani advise). From at most a thousand rows.
    """
    k = min(neighbors, len(public) - 1)
    if k < 2:
        return 1.0
    r = nearest(public[sample(len(public), 1000)], public, k + 1)[:, 1:]
    r = r[r[:, 0] > 0]  # of rows that are there twice nothing can be said
    inverse = float(np.log(r[:, -1:] / r[:, :-1]).mean()) if len(r) else np.inf
    return float(np.clip(1 / max(inverse, 1e-9), 1.0, public.shape[1]))


def _components(transfer: TransferSet, dimensions: int, features: Project) -> tuple[Array, Project]:
    key = (transfer.fingerprint, dimensions, features)
    found = _PCA.get(key)
    if found is None:
        x = transfer.inputs
        wide = features(x[:1]).shape[1] > WIDE
        sample = features(x[:: -(-len(x) // 2000)] if wide else x)
        center = sample.mean(axis=0, dtype=np.float64).astype(np.float32)
        project = partial(_project, features, center, _leading(sample, center, dimensions))
        found = (project(x), project)
        _PCA.clear()  # one transfer set at a time is what a process serves
        _PCA[key] = found
    return found


def _leading(flat: Array, center: Array, dimensions: int) -> Array:
    """Return the leading directions (d, dimensions or fewer) of rows ``flat`` (M, d) about ``center`` (d,)."""
    width = flat.shape[1]
    if width <= WIDE:
        scatter = np.zeros((width, width))
        for start in range(0, len(flat), CHUNK):
            part = (flat[start : start + CHUNK] - center).astype(np.float64)
            scatter += part.T @ part
        return np.asarray(np.linalg.eigh(scatter)[1][:, ::-1][:, :dimensions], np.float32)
    # Wide inputs: a (d, d) matrix would not fit, but the few directions that count are sums of rows.
    part = (flat - center).astype(np.float64)
    variances, mixes = np.linalg.eigh(part @ part.T)
    kept = np.flatnonzero(variances > 1e-9 * variances[-1])[::-1][:dimensions]
    return np.asarray(part.T @ mixes[:, kept] / np.sqrt(variances[kept]), np.float32)


def _flat(x: Array) -> Array:
    return x.reshape(len(x), -1)


def _project(features: Project, center: Array, basis: Array, x: Array) -> Array:
    z = np.empty((len(x), basis.shape[1]), np.float32)
    for start in range(0, len(x), CHUNK):
        z[start : start + CHUNK] = (features(x[start : start + CHUNK]) - center) @ basis
    return z
