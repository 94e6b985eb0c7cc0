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
from fedkd.softlabels import TINY, Array, entropy, normalize, one_hot, softmax

aggregator = Registry("aggregator")

FLOOR = 1e-6
"""What a flat ballot's variance counts as, so that rows of flat ballots only are not silent."""

NEAR = 1e-6
"""The least distance that Weiszfeld's iteration divides by."""


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


@aggregator
def variance(p: Array, w: Array) -> Array:
    """Mean weighted by the variance of a ballot over its classes, so that flat ones count little (Fed-ET, IJCAI 2022).

    A one-hot ballot has the largest variance, so anyone who lies boldly is believed: no defense, rather the opposite.
    Where all ballots are flat it is the mean.
    """
    spread = _heard(p, w, 0.0).var(axis=-1)
    return normalize(_pool(p, _relative(w, p.dtype) * (spread + FLOOR)))


@aggregator
def entropy_(p: Array, w: Array, *, floor: float = 0.01) -> Array:
    """Mean weighted by 1 / (H(p) / ln C + floor): certain ballots count more (FedGEMS uses 1/H, arXiv:2110.11027).

    ``floor`` > 0 bounds how much more. It is the expertise of the same name, judged by the server.
    """
    if floor <= 0:
        raise SpecError(f"aggregator 'entropy': 'floor' must be above 0, got {floor}.")
    relative = entropy(_heard(p, w, 1.0 / p.shape[-1])) / np.log(max(p.shape[-1], 2))
    return normalize(_pool(p, (_relative(w, p.dtype) / (relative + floor)).astype(p.dtype, copy=False)))


@aggregator
def geometric_median(p: Array, w: Array, *, steps: int = 32, tolerance: float = 1e-6) -> Array:
    """Point with the least weighted sum of L2 distances to the ballots (arXiv:2402.12265; RFA, arXiv:1912.13445).

    Unlike the coordinate-wise median it stays a distribution, and it is robust to less than half of the weight lying.
    Weiszfeld's iteration from the mean, at most ``steps`` times; a row is done when it moves by less than
    ``tolerance`` (L2). Distances below 1e-6 count as 1e-6, so that a ballot may be the median.
    """
    if steps < 1 or tolerance < 0:
        raise SpecError(f"aggregator 'geometric_median': needs steps >= 1, tolerance >= 0, got {steps}, {tolerance}.")
    x, v = _by_row(p, w)
    center = _center(x, v)
    length = (x * x).sum(axis=-1)
    moving: Array = np.asarray(v.any(axis=-1))
    for _ in range(steps):
        if not moving.any():
            break
        rows = slice(None) if moving.all() else moving
        at = x[rows], v[rows], center[rows]
        across = (at[0] @ at[2][..., None])[..., 0]
        squared = length[rows] - 2 * across + (at[2] ** 2).sum(axis=-1)[:, None]  # |x|^2 - 2 x y + |y|^2: no (M, K, C)
        moved = _center(at[0], at[1] / np.sqrt(np.maximum(squared, NEAR**2)))
        far = np.sqrt(((moved - at[2]) ** 2).sum(axis=-1))
        center[rows], moving[rows] = moved, far >= tolerance
    return _answered(center, v, p.dtype)


@aggregator
def cronus(p: Array, w: Array, *, byzantine: float = 0.2) -> Array:
    """Mean without those that stick out along the main direction of disagreement, in two passes (arXiv:1912.11279).

    The score of a ballot is |(p_k - mean) . v|, v the leading eigenvector of the weighted covariance. Of the n clients
    that answered a row, f = floor(byzantine * n) may lie, and each pass drops floor(f / 2): none where f < 2. Clients
    that tie for the last place lose their weight in equal parts. ``byzantine`` is in [0, 0.5].
    """
    f = _liars("cronus", w, byzantine)
    x, v = _by_row(p, w)
    left = (v > 0).astype(v.dtype)
    for _ in range(2):
        kept = _kept(x, v, left, f // 2)
        v, left = v * kept, left * kept
    return _answered(_center(x, v), v, p.dtype)


@aggregator
def filter_(p: Array, w: Array, *, byzantine: float = 0.2) -> Array:
    """Mean without the f ballots of the largest Cronus score, in one pass (the filter of arXiv:2402.12265).

    f = floor(byzantine * n) of the n clients that answered a row; ``byzantine`` is in [0, 0.5].
    """
    f = _liars("filter", w, byzantine)
    x, v = _by_row(p, w)
    v = v * _kept(x, v, (v > 0).astype(v.dtype), f)
    return _answered(_center(x, v), v, p.dtype)


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


def _by_row(p: Array, w: Array) -> tuple[Array, Array]:
    """Return ballots (M, K, C) and weights (M, K) in double precision, laid out alike whatever the layout of ``p``.

    An iteration amplifies the last bit, and sums along a row must not depend on how many rows there are.
    """
    x = np.ascontiguousarray(_heard(p, w, 0.0).transpose(1, 0, 2), np.float64)
    v = np.ascontiguousarray(w.T, np.float64)
    return x, v / np.maximum(v.max(axis=1, keepdims=True, initial=0), np.finfo(np.float64).tiny)


def _center(x: Array, v: Array) -> Array:
    """Return the mean (M, C) of ``x`` (M, K, C) weighted by ``v`` (M, K); 0 where nobody answered."""
    total = v.sum(axis=1, keepdims=True)
    return np.asarray((v[:, None, :] @ x)[:, 0] / np.where(total > 0, total, 1))


def _answered(center: Array, v: Array, dtype: Any) -> Array:
    """Return ``center`` (M, C) as distributions, NaN where no weight is left."""
    center = np.where(v.any(axis=1, keepdims=True), np.maximum(center, 0), 0)
    return np.asarray(normalize(center), dtype)


def _liars(name: str, w: Array, byzantine: float) -> Array:
    if not 0 <= byzantine <= 0.5:
        raise SpecError(f"aggregator {name!r}: 'byzantine' must be in [0, 0.5], got {byzantine}.")
    return np.asarray(np.floor(byzantine * (w > 0).sum(axis=0) + 1e-9), np.int64)


def _kept(x: Array, v: Array, left: Array, count: Array) -> Array:
    """Return what share (M, K) of its weight a ballot keeps when the ``count`` (M,) that stick out most are dropped.

    Of each ballot ``left`` (M, K) is there still: what a tie has halved counts as half a ballot.
    """
    if not count.any():
        return np.ones_like(v)
    off = np.sqrt(v)[..., None] * (x - _center(x, v)[:, None])
    if x.shape[1] <= x.shape[2]:  # the smaller of the two matrices that have the same leading direction
        axis = np.linalg.eigh(off @ off.transpose(0, 2, 1))[1][..., -1:]
        direction = off.transpose(0, 2, 1) @ axis
    else:
        direction = np.linalg.eigh(off.transpose(0, 2, 1) @ off)[1][..., -1:]
    length = np.sqrt((direction**2).sum(axis=1, keepdims=True))
    scores = np.abs(((x - _center(x, v)[:, None]) @ (direction / np.where(length > 0, length, 1)))[..., 0])
    scores = np.where(v > 0, scores, -1.0)
    order = np.argsort(-scores, axis=1, kind="stable")
    dropped = np.cumsum(np.take_along_axis(left, order, axis=1), axis=1)
    reached = (dropped >= count[:, None] - 1e-6).argmax(axis=1)[:, None]
    last = np.take_along_axis(np.take_along_axis(scores, order, axis=1), reached, axis=1)
    margin = 1e-9 + 1e-6 * last
    above, tied = scores > last + margin, np.abs(scores - last) <= margin
    above_sum, tied_sum = (np.where(which, left, 0.0).sum(axis=1)[:, None] for which in (above, tied))
    share = np.clip((count[:, None] - above_sum) / np.maximum(tied_sum, 1e-12), 0.0, 1.0)
    kept = np.where(above, 0.0, np.where(tied, 1 - share, 1.0))
    return np.asarray(np.where((count > 0)[:, None], kept, 1.0))
