"""Where the ticks of an axis go."""

from __future__ import annotations

import math


def thin(count: int, most: int) -> list[int]:
    """Return at most ``most`` indices below ``count``, evenly spread, first and last always among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})


def nice_ticks(low: float, high: float, *, most: int = 6, whole: bool = False) -> list[float]:
    """Return round values (multiples of 1, 2 or 5 times a power of ten) within ``[low, high]``."""
    if not high > low:
        return [low]
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    while True:
        for factor in (1, 2, 5):
            wide = max(1.0, factor * step) if whole else factor * step
            first, last = math.ceil(low / wide - 1e-9), math.floor(high / wide + 1e-9)
            if last - first + 1 <= most:
                return [round(i * wide, 12) for i in range(first, last + 1)]
        step *= 10


def log_ticks(low: float, high: float, *, most: int = 5, first: float = math.inf) -> list[float]:
    """Return round values within ``[low, high]`` for a logarithmic axis: 1-2-5 if they fit, else powers of ten.

    Where the least of them is above ``first``, the next one below goes before them.
    """
    decades = range(math.floor(math.log10(low)) - 6, math.ceil(math.log10(high)) + 1)
    for factors, every in (((1, 2, 5), 1), ((1, 3), 1), ((1,), 1), ((1,), 2), ((1,), 3), ((1,), 6)):
        values = [f * 10.0**d for d in decades if d % every == 0 for f in factors]
        ticks = [t for t in values if low <= t <= high]
        if len(ticks) <= most:
            break
    if len(ticks) < 2:  # less than a factor of about two: as good as linear
        ticks = [t for t in nice_ticks(low, high, most=most) if t > 0]
        values = [t for t in nice_ticks(2 * low - high, high, most=2 * most) if t > 0]
    return [max((t for t in values if t <= first), default=first), *ticks] if ticks and ticks[0] > first else ticks
