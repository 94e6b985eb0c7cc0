"""Mechanisms: what is done to soft labels before they leave. A chain runs from the left: ``"argmax | range_code"``.

A mechanism is a function ``(release, rng) -> release``: rows stay distributions. The last one that names an encoding
decides how the codec writes the result; since ``p'`` already lies on that grid, coding it loses nothing. ``delta``,
``range_code`` and ``zstd`` change nothing but how many bytes that takes, wherever in a chain they stand.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from fedkd.errors import SpecError
from fedkd.frames import MAX_TOP, find_zstd
from fedkd.records import Release
from fedkd.registry import Registry
from fedkd.softlabels import Array, one_hot
from fedkd.symbols import STEPS, codable, weight_levels, weights_at

mechanism = Registry("mechanism")

M = TypeVar("M", bound=Callable[..., Any])


@mechanism
def float32(release: Release, rng: np.random.Generator) -> Release:
    """Send single precision: 4 bytes for each class and sample."""
    return replace(release, p=release.p.astype(np.float32), encoding="float32")


@mechanism
def float16(release: Release, rng: np.random.Generator) -> Release:
    """Send half precision: 2 bytes for each class and sample, error at most 2^-12."""
    return replace(release, p=release.p.astype(np.float16).astype(np.float32), encoding="float16")


@mechanism
def quantize(release: Release, rng: np.random.Generator, *, bits: int = 4) -> Release:
    """Send the nearest distribution whose entries are multiples of 1/(2^bits - 1) (CFD, arXiv:2012.00632, eq. 10).

    Entries are rounded down and the missing units go to the largest remainders, which minimizes the L1 distance.
    One bit keeps only the most probable class. ``bits`` is in 1..8. Ties are broken at random.
    """
    if not 1 <= bits <= 8:
        raise SpecError(f"mechanism 'quantize': 'bits' must be in 1..8, got {bits}.")
    levels = simplex_grid(release.p, 2**bits - 1, rng)
    return replace(release, p=(levels / np.float32(2**bits - 1)).astype(np.float32), encoding=f"grid{bits}")


@mechanism
def argmax(release: Release, rng: np.random.Generator) -> Release:
    """Send the most probable class only: ceil(log2 C) bits a sample. Ties go to the lower class."""
    hard = one_hot(release.p.argmax(axis=1), release.p.shape[1])
    return replace(release, p=hard, encoding="label")


@mechanism
def top_k(release: Release, rng: np.random.Generator, *, k: int = 3) -> Release:
    """Send the ``k`` most probable classes, divided by their sum: k class numbers and k - 1 half precision values.

    All but the first are rounded down, by less than 2^-12, and the first takes up the rest, so that it stays first.
    Worth it where classes are many. ``k`` is in 1..64; ties go to the lower class.
    """
    if not 1 <= k <= MAX_TOP:
        raise SpecError(f"mechanism 'top_k': 'k' must be in 1..{MAX_TOP}, got {k}.")
    kept = np.argsort(-release.p, axis=1, kind="stable")[:, :k]
    values = np.take_along_axis(release.p, kept, axis=1).astype(np.float64)
    values /= values.sum(axis=1, keepdims=True)
    half = values.astype(np.float16)
    half = np.where(half > values, np.nextafter(half, np.float16(0)), half)
    values[:, 1:] = half[:, 1:]
    values[:, 0] = 1 - values[:, 1:].sum(axis=1)  # exact: halves are multiples of 2^-24
    p = np.zeros_like(release.p, np.float32)
    np.put_along_axis(p, kept, values.astype(np.float32), axis=1)
    return replace(release, p=p, encoding=f"top{k}")


@mechanism
def weights(release: Release, rng: np.random.Generator, *, bits: int = 6) -> Release:
    """Round expertise weights to a logarithmic grid that all clients share, ``bits`` bits a weight.

    Only the ratio of weights counts, and weights by density span many orders. The grid has the powers of 4 (3 bits), 2
    (4 and 5 bits), 2^(1/2) (6), 2^(1/4) (7) or 2^(1/8) (8), and a release sees its 2^bits - 1 places from its largest
    weight down: a factor of at least 2^12. Within it a weight is off by at most half a step, a factor of 2^(1/4) with 6
    bits; below, it is set to the least place. Zero, to abstain, stays zero. ``bits`` is in 1..8: 1 and 2 keep little
    more than who abstains.
    """
    if bits not in STEPS:
        raise SpecError(f"mechanism 'weights': 'bits' must be in 1..8, got {bits}.")
    top, levels = weight_levels(release.w, bits)
    return replace(release, w=weights_at(levels, top, bits), weight_bits=bits)


@mechanism
def delta(release: Release, rng: np.random.Generator) -> Release:
    """Send only what differs from what the other end is known to have (CFD, arXiv:2012.00632).

    On the way up that is the client's last release that has arrived; weights that stay as they were cost one byte for
    all. In ``broadcast`` it is the newest feedback on each row, up to the last query that the client has answered: a
    synchronized cache (SCARLET, arXiv:2504.19602). Where nothing is known, all is sent.
    """
    return replace(release, coding=release.coding | {"delta"})


@mechanism
def range_code(release: Release, rng: np.random.Generator) -> Release:
    """Send labels and levels at about their entropy, given the teacher and, after ``delta``, the last release.

    CFD codes its labels so (arXiv:2012.00632). It needs ``argmax`` or ``quantize`` in the same chain.
    """
    return replace(release, coding=release.coding | {"range_code"})


@mechanism
def zstd(release: Release, rng: np.random.Generator) -> Release:
    """Send the frame's body compressed by Zstandard, where that is shorter; it suits floats and ``top_k``."""
    find_zstd()
    return replace(release, coding=release.coding | {"zstd"})


def simplex_grid(p: Array, units: int, rng: np.random.Generator) -> Array:
    """Return integers (n, C) that sum to ``units`` in each row and are nearest to ``units * p`` in L1."""
    scaled = p.astype(np.float64) / p.sum(axis=1, keepdims=True, dtype=np.float64) * units
    floor = np.floor(scaled + 1e-9)  # a multiple that float division left just below stays itself
    missing = np.rint(units - floor.sum(axis=1)).astype(np.int64)
    # Random order first, then a stable sort by remainder: equal remainders are served at random.
    shuffle = rng.permuted(np.broadcast_to(np.arange(p.shape[1]), p.shape), axis=1)
    remainder = np.take_along_axis(scaled - floor, shuffle, axis=1)
    order = np.take_along_axis(shuffle, np.argsort(-remainder, axis=1, kind="stable"), axis=1)
    rank = np.argsort(order, axis=1, kind="stable")
    return np.asarray((floor + (rank < missing[:, None])).astype(np.uint8))


def prepare(chain: str, release: Release, rng: np.random.Generator) -> Release:
    """Return ``release`` after the mechanisms of ``chain``, applied from the left."""
    for step in mechanism.chain(chain):
        release = step(release, rng)
    if "range_code" in release.coding and not codable(release.encoding):
        raise SpecError(
            f"release {chain!r}: 'range_code' needs labels or a grid, got {release.encoding}; add 'argmax'."
        )
    return release


@functools.lru_cache(maxsize=16)
def form(chain: str) -> Release:
    """Return how a chain writes, its encoding and coding: what it makes of nothing."""
    nothing = Release(np.ones((0, 1), np.float32), np.ones(0, np.float32))
    return prepare(chain, nothing, np.random.default_rng(0))


FINER = {"label": ("float32", "float16", "top_k", "quantize"), "grid": ("float32", "float16")}
"""Kind of encoding to the mechanisms that tell nothing more of it and cost more."""


def check(chain: str) -> None:
    """Raise :class:`SpecError` unless ``chain`` can be built and its parts agree.

    What already lies on a coarse grid cannot be told better by a finer encoding, only at a higher price.
    """
    steps = mechanism.chain(chain)
    if not steps:
        raise SpecError("a release needs at least one mechanism, as in 'float16'.")
    release = Release(np.ones((0, 1), np.float32), np.ones(0, np.float32))
    prepare(chain, release, np.random.default_rng(0))
    for step in steps:
        name, before = step.func.__name__, release.encoding
        if name in FINER.get("label" if before == "label" else before[:4], ()):
            what = "rows hold one class only" if before == "label" else "rows hold few levels only"
            raise SpecError(f"chain {chain!r}: {what}, and {name!r} would send them at full price; drop {name!r}.")
        release = step(release, np.random.default_rng(0))
