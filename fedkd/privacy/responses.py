"""Exact accounting of k-ary randomized response: the loss of many answers is a multinomial count times epsilon.

One answer keeps its class with chance a = e^epsilon / (e^epsilon + C - 1) and says any one other with b = a e^-epsilon.
Against another true class its loss is +epsilon, 0 or -epsilon with chances a, (C - 2) b and b, so after n answers it is
epsilon times the sum of n such signs. Adding up n epsilons, or the advanced composition of binary answers, says several
times too much; an accountant that forgets n says far too little.
"""

from __future__ import annotations

import math

import numpy as np

from fedkd.errors import ConfigError
from fedkd.softlabels import Array

NOTHING = 1e-40
"""Tails of less than this are moved to where they cost more: to infinity above, and up to the rest below."""


def keep_probability(classes: int, epsilon: float) -> float:
    """Return the chance a that an answer is the true class: e^epsilon / (e^epsilon + C - 1)."""
    if classes < 2 or not epsilon >= 0:
        raise ConfigError(f"randomized response needs 2 classes and epsilon >= 0, got {classes} and {epsilon}")
    return 1 / (1 + (classes - 1) * math.exp(-epsilon))


def epsilon_of(classes: int, epsilon: float, count: int, delta: float) -> float:
    """Return the exact epsilon of ``count`` answers at ``delta`` in [0, 1), at most ``count * epsilon``.

    delta(e) = sum over losses l > e of P(l) (1 - e^(e - l)), solved for e on the segment where it crosses ``delta``.
    """
    losses, chances, beyond = _losses(classes, epsilon, count)
    if not len(losses):
        return 0.0
    if delta <= beyond:
        return count * epsilon
    above = beyond + np.cumsum(chances)  # P(loss >= l), from the greatest loss down
    log_below = np.logaddexp.accumulate(np.log(chances) - losses)  # and what the neighbor gives it, ln Q(loss >= l)
    ends = np.append(losses[1:], 0.0)  # delta falls within [ends, losses] as above - e^epsilon below
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = np.where(above > delta, np.log(above - delta) - log_below, -np.inf)
    reached = np.flatnonzero(crossing >= ends)
    return min(count * epsilon, float(crossing[reached[0]])) if len(reached) else 0.0


def delta_of(classes: int, epsilon: float, count: int, target: float) -> float:
    """Return the exact delta of ``count`` answers at the epsilon ``target`` >= 0, in [0, 1]."""
    losses, chances, beyond = _losses(classes, epsilon, count)
    if target >= count * epsilon:
        return 0.0
    return min(1.0, beyond + float(chances @ np.maximum(0.0, -np.expm1(target - losses))))


def _losses(classes: int, epsilon: float, count: int) -> tuple[Array, Array, float]:
    """Return the losses above 0 from the greatest down, their chances, and the chance that was moved to infinity."""
    keep = keep_probability(classes, epsilon)
    other = keep * math.exp(-epsilon)
    low, chances, beyond = -count, np.ones(1), 0.0
    power, low_power = np.array([other, (classes - 2) * other, keep]), -1
    low, left = 0, count
    while left:  # convolution by squaring: all terms are positive, so every chance keeps its digits
        if left % 2:
            chances, low, lost = _trim(np.convolve(chances, power), low + low_power)
            beyond += lost
        left //= 2
        if left:
            power, low_power, lost = _trim(np.convolve(power, power), 2 * low_power)
            beyond += lost * left
    losses = epsilon * (low + np.arange(len(chances)))
    kept = (losses > 0) & (chances > 0)
    return losses[kept][::-1], chances[kept][::-1], beyond


def _trim(chances: Array, low: int) -> tuple[Array, int, float]:
    """Return ``chances`` of ``low``, ``low + 1``, ... without tails, the new ``low``, and what was lost above."""
    upper = len(chances) - int(np.searchsorted(np.cumsum(chances[::-1]), NOTHING))
    lower = int(np.searchsorted(np.cumsum(chances), NOTHING))
    kept = chances[lower:upper].copy()
    kept[0] += chances[:lower].sum()
    return kept, low + lower, float(chances[upper:].sum())
