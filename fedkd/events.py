"""Privacy events: what was done to private data, as values. What they cost is the business of an accountant.

Events are kept, not epsilons, so that a better accountant can read an old ledger anew. Every number is relative to the
sensitivity under the neighbors that are declared (:class:`Neighbors`), which whoever makes the event has divided out.
An event that no accountant knows costs infinity, so forgetting one can never make a guarantee look better.
"""

from __future__ import annotations

import enum
import math
import struct
from dataclasses import dataclass, fields


class Unit(enum.StrEnum):
    """Whose presence is hidden: one row of private data, or all that a client holds."""

    EXAMPLE = "example"
    CLIENT = "client"


class Neighbors(enum.StrEnum):
    """Which two data sets must look alike: with a unit or without, with it zeroed, or with another in its place."""

    ADD_REMOVE = "add_remove"
    ZERO_OUT = "zero_out"
    REPLACE_ONE = "replace_one"


@dataclass(frozen=True)
class NonPrivate:
    """Private data was read without any mechanism. Its epsilon is infinite."""


@dataclass(frozen=True)
class NoOp:
    """Nothing private was read: post-processing, or public data only. Its epsilon is zero."""


@dataclass(frozen=True)
class Gaussian:
    """``count`` functions of private data left with Gaussian noise of ``noise_multiplier`` times their L2 sensitivity.

    Each may depend on what the ones before it said. GNMax is this event too: a histogram of votes with noise.
    """

    noise_multiplier: float
    count: int = 1


@dataclass(frozen=True)
class SampledGaussian:
    """:class:`Gaussian` on a fresh secret sample: every unit with probability ``rate``, each by its own coin (Poisson).

    With ``fixed`` the sample has a fixed size, drawn without replacement: another mechanism, with weaker bounds, whose
    neighbors replace one unit.
    """

    rate: float
    noise_multiplier: float
    count: int = 1
    fixed: bool = False


@dataclass(frozen=True)
class Laplace:
    """``count`` functions left with Laplace noise whose scale is ``noise_multiplier`` times their L1 sensitivity."""

    noise_multiplier: float
    count: int = 1


@dataclass(frozen=True)
class RandomizedResponse:
    """``count`` classes of ``classes`` left, each kept with odds e^``epsilon`` against any one other."""

    classes: int
    epsilon: float
    count: int = 1


@dataclass(frozen=True)
class DistributedGaussian:
    """A sum of integer vectors left with the sum of ``parties`` discrete Gaussian noises, one by each client.

    ``noise_multiplier`` is the standard deviation of the whole noise over the L2 sensitivity; ``share`` that of one
    client's noise in units of the last place; ``dimension`` how many numbers a vector has (arXiv:2102.06387).
    """

    noise_multiplier: float
    parties: int
    share: float
    dimension: int
    count: int = 1


@dataclass(frozen=True)
class Pure:
    """``count`` mechanisms that are ``epsilon``-differentially private, with delta = 0, and nothing else is known."""

    epsilon: float
    count: int = 1


@dataclass(frozen=True)
class ZeroConcentrated:
    """A mechanism that is ``rho``-zCDP (Bun and Steinke, arXiv:1605.02065)."""

    rho: float


Event = (
    NonPrivate
    | NoOp
    | Gaussian
    | SampledGaussian
    | Laplace
    | RandomizedResponse
    | DistributedGaussian
    | Pure
    | ZeroConcentrated
)

CODES: dict[int, type[Event]] = {
    0: NonPrivate,
    1: NoOp,
    2: Gaussian,
    3: SampledGaussian,
    4: Laplace,
    5: RandomizedResponse,
    6: DistributedGaussian,
    7: Pure,
    8: ZeroConcentrated,
}
_LEAST = {"count": 1, "parties": 1, "dimension": 1, "classes": 2}
"""Whole numbers, and the least that each may be."""


def valid(event: object) -> bool:
    """Say whether ``event`` is one of ours with numbers that make sense; any other must be read as NonPrivate."""
    if not isinstance(event, Event):
        return False
    return all(_sensible(field.name, getattr(event, field.name)) for field in fields(event))


def _sensible(name: str, value: object) -> bool:
    if name == "fixed" or isinstance(value, bool):
        return name == "fixed" and isinstance(value, bool)
    if not isinstance(value, int | float) or not 0 <= value < math.inf:
        return False
    if name in _LEAST:
        return isinstance(value, int) and value >= _LEAST[name]
    return name != "rate" or value <= 1


def to_code(event: Event) -> int:
    """Return the number that stands for the kind of ``event`` in a frame."""
    return next(code for code, kind in CODES.items() if isinstance(event, kind))


def size(code: int) -> int:
    """Return how many bytes follow the code of an event: eight for each of its numbers."""
    return 8 * len(fields(CODES[code])) if code in CODES else 0


def pack(event: Event) -> bytes:
    """Return ``event`` as bytes: its code, then its numbers as doubles."""
    if not valid(event):
        event = NonPrivate()
    numbers = [float(getattr(event, field.name)) for field in fields(event)]
    return bytes([to_code(event)]) + struct.pack(f"<{len(numbers)}d", *numbers)


def unpack(code: int, numbers: bytes) -> Event:
    """Return the event of ``code`` and the :func:`size` bytes after it. What makes no sense is :class:`NonPrivate`."""
    kind = CODES.get(code, NonPrivate)
    names = [field.name for field in fields(kind)]
    values = struct.unpack(f"<{len(names)}d", numbers) if len(numbers) == 8 * len(names) else ()
    if len(values) != len(names) or not all(map(math.isfinite, values)):
        return NonPrivate()
    given: dict[str, float | int | bool] = dict(zip(names, values, strict=True))
    for name, value in given.items():
        if name == "fixed":
            given[name] = value != 0
        elif name in _LEAST and value == int(value):
            given[name] = int(value)
    event: Event = kind(**given)  # type: ignore[arg-type]
    return event if valid(event) else NonPrivate()


def from_fields(code: int, given: dict[str, float | int | bool]) -> Event:
    """Return the event of ``code`` with the fields of a file. What makes no sense is :class:`NonPrivate`."""
    try:
        event: Event = CODES.get(code, NonPrivate)(**given)  # type: ignore[arg-type]
    except TypeError:
        return NonPrivate()
    return event if valid(event) else NonPrivate()
