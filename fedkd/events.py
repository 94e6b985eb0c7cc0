"""Privacy events: what was done to data, as a value. What it costs is the business of an accountant.

An event that no accountant knows costs infinity, so forgetting one can never make a guarantee look better.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class NonPrivate:
    """Private data was read without any mechanism. Its epsilon is infinite."""


@dataclass(frozen=True)
class NoOp:
    """Nothing private was read: post-processing, or public data only. Its epsilon is zero."""


@dataclass(frozen=True)
class GaussianMechanism:
    """A function of private data left once with Gaussian noise of ``noise_multiplier`` times its L2 ``sensitivity``.

    Neighbors differ by one example added or removed. A frame does not carry the numbers: what is read off one has no
    noise, and so no bound.
    """

    noise_multiplier: float = 0.0
    sensitivity: float = math.inf


Event = NonPrivate | NoOp | GaussianMechanism

CODES: dict[int, type[Event]] = {0: NonPrivate, 1: NoOp, 2: GaussianMechanism}


def epsilon(event: object) -> float:
    """Return the cost of one event: zero for :class:`NoOp`, infinity for whatever is not accounted for."""
    return 0.0 if isinstance(event, NoOp) else math.inf


def to_code(event: Event) -> int:
    """Return the number that stands for ``event`` in a frame."""
    return next(code for code, kind in CODES.items() if isinstance(event, kind))


def from_code(code: int) -> Event:
    """Return the event of a frame. An unknown number is :class:`NonPrivate`: it fails closed."""
    return CODES.get(code, NonPrivate)()
