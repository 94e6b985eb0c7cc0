"""How much noise a plan needs for a target: the reverse of accounting, on the safe side."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

from fedkd.errors import ConfigError, PrivacyError
from fedkd.events import Event
from fedkd.privacy import accountant

PRECISION = 1e-4
"""The noise is at most this much more, relative, than the accountant asks for."""

LEAST, MOST = 1e-3, 1e7
"""Noise is looked for between these multiples of the sensitivity."""


def noise_multiplier(
    epsilon: float, delta: float, plan: Callable[[float], Sequence[Event]], *, method: str = "tight"
) -> float:
    """Return the least noise at which ``plan`` of that noise is (``epsilon``, ``delta``)-private, by ``method``.

    ``plan`` says which events a run will have, whatever is answered: ``lambda z: [SampledGaussian(0.1, z, 100)]``.
    Its cost must fall as noise grows. The answer meets the target as :func:`fedkd.privacy.accountant.spent` counts it.
    """
    if not epsilon > 0:
        raise ConfigError(f"`epsilon` must be above 0, got {epsilon}")

    @functools.cache
    def over(noise: float) -> float:
        cost = accountant.spent(plan(noise), delta, method=method)
        return math.log(cost / epsilon) if 0 < cost < math.inf else (math.inf if cost else -math.inf)

    low, high = _bracket(over)
    low_over, high_over, side = over(low), over(high), -1
    while high / low > 1 + PRECISION:  # epsilon is nearly a power of the noise, so lines of logarithms hit soon
        middle = _crossing(low, low_over, high, high_over, -side)
        found = over(middle)
        before, side = side, 1 if found <= 0 else -1
        if side < 0:
            low, low_over = middle, found
            high_over /= 2 if before == side else 1  # an end that stays is pulled in (Illinois)
        else:
            high, high_over = middle, found
            low_over /= 2 if before == side else 1
    return high


def _bracket(over: Callable[[float], float]) -> tuple[float, float]:
    """Return a noise that is too little and one that is enough, a factor 4 apart."""
    noise = 1.0
    if over(noise) > 0:
        while over(noise) > 0:
            noise *= 4
            if noise > MOST:
                raise PrivacyError("no noise makes this plan private enough: one of its events does not depend on it")
        return noise / 4, noise
    while over(noise) <= 0:
        noise /= 4
        if noise < LEAST:
            raise PrivacyError(f"the target is met without noise to speak of ({noise:g}): nothing is left to calibrate")
    return noise, noise * 4


def _crossing(low: float, low_over: float, high: float, high_over: float, side: int) -> float:
    """Return where the line through both ends, in logarithms, crosses the target, and a hair to the ``side`` of it.

    So the end that was not moved last is, and both close in.
    """
    width = math.log(high / low)
    share = low_over / (low_over - high_over) if math.isfinite(low_over) and math.isfinite(high_over) else 0.5
    hair = min(0.5, 0.3 * PRECISION / width)
    return low * math.exp(min(max(share + side * hair, hair), 1 - hair) * width)
