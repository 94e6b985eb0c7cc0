"""Mechanisms: what is done to soft labels before they leave. A chain such as ``"argmax"`` runs from the left.

A mechanism is a function ``(release, rng) -> release``: rows stay distributions. The last one that names an encoding
decides how the codec writes the result; since ``p'`` already lies on that grid, coding it loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from fedkd.errors import SpecError
from fedkd.records import Release
from fedkd.registry import Registry
from fedkd.softlabels import Array, one_hot

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
    return release
