"""Ballots to teacher: pure functions ``(p (K, M, C), w (K, M)) -> (M, C)``, row by row.

``w[k, m] >= 0`` says how much client k's ballot on sample m counts; 0 means that it did not answer, and then
``p[k, m]`` is never read, whatever it holds. A row that nobody answered becomes NaN. Being row-wise, every member
gives the same result on a chunk of rows as on all of them, which is how :func:`in_chunks` bounds the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from fedkd.errors import SpecError
from fedkd.records import Ballots, Release
from fedkd.registry import Registry
from fedkd.softlabels import TINY, Array, normalize, one_hot, softmax

aggregator = Registry("aggregator")


class Aggregator(Protocol):
    """The signature of every aggregator."""

    def __call__(self, p: Array, w: Array) -> Array:
        """Return the teacher (M, C) of ballots ``p`` (K, M, C) with weights ``w`` (K, M)."""
        ...


@aggregator
def mean(p: Array, w: Array) -> Array:
    """Weighted mean of probabilities: the linear opinion pool, and the teacher of most methods.

    With expertise as weight it is the posterior of a mixture of experts: sum_k w_k p_k / sum_k w_k.
    """
    return normalize(_pool(p, w))


@aggregator
def log_mean(p: Array, w: Array) -> Array:
    """Weighted geometric mean: softmax of the mean logits up to a constant (FedMD, arXiv:1910.03581).

    One client that excludes a class (p near 0) vetoes it, so it suits confident and calibrated clients.
    """
    w = _relative(w, p.dtype)
    log_p = np.log(np.maximum(_heard(p, w, 1.0), TINY))
    total = np.cumsum(w, axis=0)[-1][:, None]  # a plain sum pairs up its terms otherwise when there is one row only
    z = np.divide(_pool(log_p, w), total, out=np.zeros(p.shape[1:], p.dtype), where=total > 0)
    return np.where(total > 0, softmax(z), np.nan).astype(p.dtype, copy=False)


@aggregator
def vote(p: Array, w: Array) -> Array:
    """Weighted share of clients whose most probable class it is (PATE's votes, arXiv:1610.05755).

    A ballot is one-hot, so a client moves a row by at most its own weight, whatever it claims. Ties within a client
    go to the lower class.
    """
    votes = one_hot(_heard(p, w, 0.0).argmax(axis=-1), p.shape[-1], p.dtype)
    return normalize(_pool(votes, w))


@aggregator
def median(p: Array, w: Array) -> Array:
    """Coordinate-wise weighted median, normalized (robust to less than half of the weight lying).

    Where it is zero in every class (three different one-hot ballots, say) the mean stands in: all-zero would read as
    silence. That fallback only happens where no class has a majority.
    """
    values, weights = _ranked(p, w)
    share = np.cumsum(weights, axis=0)
    half = share[-1:] / 2
    low = np.take_along_axis(values, (share >= half * (1 - 1e-6)).argmax(axis=0)[None], axis=0)[0]
    high = np.take_along_axis(values, (share > half * (1 + 1e-6)).argmax(axis=0)[None], axis=0)[0]
    middle = (low + high) / 2  # they differ only where the weight splits into two halves
    return _or_mean(middle, p, w)


@aggregator
def trimmed_mean(p: Array, w: Array, *, trim: float = 0.2) -> Array:
    """Coordinate-wise mean without the lowest and highest ``trim`` share of the weight, normalized.

    ``trim`` is in [0, 0.5). Weights are cut continuously, so equal weights give the textbook trimmed mean when
    trim * K is whole (Yin et al., arXiv:1803.01498).
    """
    if not 0 <= trim < 0.5:
        raise SpecError(f"aggregator 'trimmed_mean': 'trim' must be in [0, 0.5), got {trim}.")
    values, weights = _ranked(p, w)
    upper = np.cumsum(weights, axis=0)
    total = upper[-1:]
    kept = np.minimum(upper, total * (1 - trim)) - np.maximum(upper - weights, total * trim)
    return _or_mean((values * np.maximum(kept, 0)).sum(axis=0), p, w)


def stack(releases: Sequence[Release], rows: slice | Array) -> Ballots:
    """Return the ballots of ``rows``, laid out class by class in memory: weighted sums then run twice as fast."""
    p = np.stack([release.p[rows].T for release in releases]).transpose(0, 2, 1)
    return Ballots(p, np.stack([release.w[rows] for release in releases]))


def in_chunks(aggregate: Callable[[Array, Array], Array], releases: Sequence[Release], *, rows: int = 1024) -> Array:
    """Return the teacher (M, C); only ``rows`` rows of all clients are ever stacked at once."""
    teacher = np.empty(releases[0].p.shape, np.float32)
    for start in range(0, len(teacher), rows):
        part = slice(start, start + rows)
        ballots = stack(releases, part)
        teacher[part] = aggregate(ballots.p, ballots.w)
    return teacher


def _heard(p: Array, w: Array, silence: float) -> Array:
    """Replace ballots of weight 0, which may hold anything (0 * NaN is NaN), by ``silence``."""
    return p if w.all() else np.where(w[..., None] > 0, p, np.asarray(silence, p.dtype))


def _relative(w: Array, dtype: Any) -> Array:
    """Divide extreme weights by the largest of their row: only ratios count, and a sum must not overflow or vanish."""
    top = w.max(axis=0)
    extreme = (top > 0) & ((top < 1e-25) | (top > 1e25))
    return np.asarray((w / np.where(extreme, top, 1) if extreme.any() else w).astype(dtype, copy=False))


def _ranked(p: Array, w: Array) -> tuple[Array, Array]:
    """Return the ballots (K, M, C) of each coordinate in ascending order, and their weights alike."""
    q = _heard(p, w, 0.0)
    order = np.argsort(q, axis=0, kind="stable")
    weights = np.broadcast_to(_relative(w, p.dtype)[..., None], q.shape)
    return np.take_along_axis(q, order, axis=0), np.take_along_axis(weights, order, axis=0)


def _pool(p: Array, w: Array) -> Array:
    return np.asarray(np.einsum("kmc,km->mc", _heard(p, w, 0.0), _relative(w, p.dtype)))


def _or_mean(center: Array, p: Array, w: Array) -> Array:
    empty = center.sum(axis=-1, keepdims=True) <= 0
    return normalize(np.where(empty, _pool(p, w), center).astype(p.dtype, copy=False))
