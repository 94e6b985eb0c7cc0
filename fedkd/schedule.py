"""Learning-rate schedules: pure functions of the share ``t`` in [0, 1) of all steps done, to a factor in [0, 1]."""

from __future__ import annotations

import math

from fedkd.errors import SpecError
from fedkd.registry import Registry

schedule = Registry("schedule")


@schedule
def constant(t: float) -> float:
    """Keep the learning rate."""
    return 1.0


@schedule
def linear(t: float) -> float:
    """Go down to 0 in a straight line."""
    return 1 - t


@schedule
def cosine(t: float, *, warmup: float = 0.0) -> float:
    """Go down to 0 along (1 + cos(pi t)) / 2 (SGDR without restarts, arXiv:1608.03983).

    The share ``warmup`` in [0, 1) of the steps first goes up from 0 in a straight line.
    """
    if not 0 <= warmup < 1:
        raise SpecError(f"schedule 'cosine': 'warmup' must be in [0, 1), got {warmup}.")
    if t < warmup:
        return t / warmup
    return (1 + math.cos(math.pi * (t - warmup) / (1 - warmup))) / 2


def check(spec: str) -> None:
    """Raise :class:`SpecError` unless ``spec`` names a schedule with options in range."""
    schedule.build(spec)(0.5)
