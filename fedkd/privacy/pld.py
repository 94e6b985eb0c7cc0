"""Tight accounting by privacy loss distributions, on a grid that errs on the safe side (arXiv:2207.04380).

Composition and the losses of sampled and discrete Gaussians are dp-accounting's, which is imported inside functions, as
it brings scipy. Its event layer is not used: in 0.6 it forgets the count of randomized response, and whether neighbors
replace or add a unit is decided in several places. Here every event becomes one distribution, composed ``count`` times,
and its numbers are relative to the sensitivity already. What has a privacy curve in closed form is put on the grid by
:func:`_on_grid`.

For reports and calibration of plans that are fixed beforehand. A budget that is enforced while events may depend on
earlier answers needs :class:`fedkd.privacy.accountant.Filter`: tight curves do not make a valid filter
(arXiv:2602.06756).
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fedkd.errors import ConfigError
from fedkd.events import (
    DistributedGaussian,
    Event,
    Laplace,
    NonPrivate,
    NoOp,
    Pure,
    RandomizedResponse,
    SampledGaussian,
    ZeroConcentrated,
    valid,
)
from fedkd.privacy import gaussian, rdp
from fedkd.softlabels import Array

LEAST_DELTA = 1e-10
"""Below it, what Fourier transforms round off and the tails that they cut (1e-15 each) could show: no answer."""

STEPS = 500
"""The first grid has about this many steps from 0 to epsilon, each finer one four times as many."""

MOST_STEPS = 200_000
"""The finest grid. What is left of the error then is on the safe side."""

TOLERANCE = 1e-4
"""Grids are refined until epsilon is this near, relative, to what an endless grid would say."""

REACH = 10.0
"""Gaussian noise beyond so many standard deviations counts as an infinite loss: 1e-23 of it."""


def epsilon_of(events: Iterable[Event], delta: float, *, tolerance: float = TOLERANCE) -> float:
    """Return the epsilon of all ``events`` at ``delta``: never below the truth, and within ``tolerance`` above it.

    Infinite where an event has no distribution (zero-concentrated), where ``delta`` is below :data:`LEAST_DELTA` or
    where Renyi accounting knows no bound either.
    """
    if not 0 <= delta < 1:
        raise ConfigError(f"`delta` must be in [0, 1), got {delta}")
    parts, mu, slack = _merged(events)
    if not parts and mu == 0:
        return 0.0
    rough = _rough(parts, mu, delta)
    target = delta * math.exp(-slack)
    if rough == math.inf or target < LEAST_DELTA or any(not _has_distribution(event) for event in parts):
        return math.inf

    smooth = mu > 0 or any(isinstance(event, SampledGaussian) for event in parts)

    def at(step: float) -> float:
        return float(_composed(parts, mu, step).get_epsilon_for_delta(target))

    return _refined(at, smooth, rough, tolerance) + 2 * slack


def delta_of(events: Iterable[Event], epsilon: float, *, tolerance: float = 10 * TOLERANCE) -> float:
    """Return the delta of all ``events`` at ``epsilon`` >= 0, in [0, 1]: never below the truth."""
    if not epsilon >= 0:
        raise ConfigError(f"`epsilon` must be at least 0, got {epsilon}")
    parts, mu, slack = _merged(events)
    if not parts and mu == 0:
        return 0.0
    rough = _rough(parts, mu, 1e-5)
    if rough == math.inf or any(not _has_distribution(event) for event in parts) or epsilon < 2 * slack:
        return 1.0

    smooth = mu > 0 or any(isinstance(event, SampledGaussian) for event in parts)

    def at(step: float) -> float:
        return float(_composed(parts, mu, step).get_delta_for_epsilon(epsilon - 2 * slack))

    return min(1.0, max(LEAST_DELTA, math.exp(slack) * _refined(at, smooth, rough, tolerance)))


def curve(events: Iterable[Event], epsilons: Sequence[float]) -> list[float]:
    """Return the delta of all ``events`` at each of ``epsilons``, rising: never below the truth, on one grid."""
    parts, mu, slack = _merged(events)
    if not parts and mu == 0:
        return [0.0] * len(epsilons)
    rough = _rough(parts, mu, 1e-5)
    if rough == math.inf or any(not _has_distribution(event) for event in parts):
        return [1.0] * len(epsilons)
    whole = _composed(parts, mu, max(rough, 1e-3) / STEPS / 4)
    found = whole.get_delta_for_epsilon([max(0.0, epsilon - 2 * slack) for epsilon in epsilons])
    sure = [e >= 2 * slack for e in epsilons]
    return [min(1.0, math.exp(slack) * float(d) + LEAST_DELTA) if s else 1.0 for d, s in zip(found, sure, strict=True)]


def _refined(at: Callable[[float], float], smooth: bool, rough: float, tolerance: float) -> float:
    """Return ``at`` a step from which finer ones, a quarter each, would change no more than ``tolerance``, relative.

    Where losses together are ``smooth``, the error falls sixteenfold with each finer grid, so a change is fifteen times
    what is left. Lattices of losses do as they please, and start finer.
    """
    step = max(rough, 1e-3) / STEPS / (1 if smooth else 16)
    best, least = at(step), max(rough, 1e-3) / MOST_STEPS
    while step > least:
        step /= 4
        finer = at(step)
        if best - finer <= (15 if smooth else 1) * tolerance * max(finer, 1e-9):
            return min(best, finer)
        best = min(best, finer)
    return best


def _rough(parts: list[Event], mu: float, delta: float) -> float:
    """Return about how large losses are, by Renyi accounting."""
    cost = rdp.total(parts) + rdp.ORDERS * mu * mu / 2
    return rdp.epsilon_of(cost, delta) if 0 < delta < 1 else math.inf


def _merged(events: Iterable[Event]) -> tuple[list[Event], float, float]:
    """Return events that differ with their counts, and (mu, slack) of all that are as private as Gaussian noise."""
    counts: dict[Event, int] = {}
    like_gaussian = []
    for event in events:
        if isinstance(event, NoOp):
            continue
        alike = None if _is_one_number(event) else gaussian.equivalent(event)
        if alike is not None:
            like_gaussian.append(alike)
        else:
            once = _with_count(event, 1)
            counts[once] = counts.get(once, 0) + _count(event)
    parts = [_with_count(once, n) for once, n in counts.items()]
    return parts, gaussian.compose(mu for mu, _ in like_gaussian), sum(slack for _, slack in like_gaussian)


def _with_count(event: Event, count: int) -> Event:
    if isinstance(event, NonPrivate | NoOp | ZeroConcentrated) or not valid(event):
        return event
    return replace(event, count=count)


def _count(event: Event) -> int:
    if isinstance(event, NonPrivate | NoOp | ZeroConcentrated) or not valid(event):
        return 1
    return event.count


def _is_one_number(event: Event) -> bool:
    """Say whether this is one discrete Gaussian on one number, with a whole sensitivity: its loss is known exactly."""
    if not isinstance(event, DistributedGaussian) or not valid(event) or event.noise_multiplier == 0:
        return False
    sensitivity = event.share / event.noise_multiplier
    return event.parties == event.dimension == 1 and sensitivity >= 1 and abs(sensitivity % 1.0 - 0.5) > 0.5 - 1e-9


def _has_distribution(event: Event) -> bool:
    known = isinstance(event, SampledGaussian | Laplace | RandomizedResponse | Pure) or _is_one_number(event)
    return known and valid(event)


def _composed(parts: list[Event], mu: float, step: float) -> Any:
    """Return the distribution of all losses together."""
    library = _library()
    whole = library.identity(value_discretization_interval=step)
    if mu > 0:
        whole = whole.compose(library.from_gaussian_mechanism(1 / mu, value_discretization_interval=step))
    for event in parts:
        whole = whole.compose(_single(_with_count(event, 1), step).self_compose(_count(event)))
    return whole


@functools.lru_cache(maxsize=32)
def _single(event: Event, step: float) -> Any:
    """Return the distribution of the loss of ``event`` once."""
    match event:
        case SampledGaussian(fixed=False, rate=rate, noise_multiplier=z) if rate > 0:
            library = _library()
            return library.from_gaussian_mechanism(z, value_discretization_interval=step, sampling_prob=rate)
        case SampledGaussian(fixed=True, rate=rate, noise_multiplier=z) if rate > 0:
            reach = REACH / z + 0.5 / z**2
            most = reach + math.log(rate + (1 - rate) * math.exp(-reach))  # ln(1 + rate (e^reach - 1))
            return _on_grid(functools.partial(_fixed_curve, rate, 1 / z), most, step)
        case Laplace(noise_multiplier=b):
            return _on_grid(functools.partial(_laplace_curve, 1 / b), 1 / b, step)
        case RandomizedResponse(classes=classes, epsilon=epsilon):
            return _on_grid(functools.partial(_response_curve, classes, epsilon), epsilon, step)
        case Pure(epsilon=epsilon):
            return _on_grid(functools.partial(_response_curve, 2, epsilon), epsilon, step)
        case DistributedGaussian(share=sigma, noise_multiplier=z):
            library, sensitivity = _library(), round(sigma / z)
            return library.from_discrete_gaussian_mechanism(sigma, sensitivity, value_discretization_interval=step)
        case _:
            return _library().identity(value_discretization_interval=step)


def _on_grid(curve: Callable[[Array], Array], most: float, step: float) -> Any:
    """Return the distribution whose curve joins the dots of ``curve``, delta at epsilon, from -``most`` to ``most``.

    It lies above a convex curve everywhere (arXiv:2207.04380). The curves here are for both directions of neighbors.
    """
    pmf, library = importlib.import_module("dp_accounting.pld.pld_pmf"), _library()
    ends = max(1, math.ceil(most / step - 1e-9))
    deltas = np.minimum.accumulate(np.clip(curve(np.arange(-ends, ends + 1) * step), 0.0, 1.0))
    return library.PrivacyLossDistribution(pmf.create_pmf_pessimistic_connect_dots_fixed_gap(step, -ends, ends, deltas))


def _response_curve(classes: int, epsilon: float, at: Array) -> Array:
    """Delta of one randomized response: sum over answers of (P - e^at Q) where it is positive."""
    keep = 1 / (1 + (classes - 1) * math.exp(-epsilon))
    other, e = keep * math.exp(-epsilon), np.exp(np.minimum(at, 700))
    delta: Array = np.maximum(keep - e * other, 0) + (classes - 2) * other * np.maximum(1 - e, 0)
    delta += np.maximum(other - e * keep, 0)
    return delta


def _laplace_curve(epsilon: float, at: Array) -> Array:
    """Delta of Laplace noise of scale 1 / ``epsilon``: 1 - e^((at - epsilon) / 2) within it."""
    return np.where(at < -epsilon, -np.expm1(np.minimum(at, 0)), -np.expm1(np.minimum(at - epsilon, 0) / 2))


def _fixed_curve(rate: float, mu: float, at: Array) -> Array:
    """Delta of a ``mu``-Gaussian on a sample of fixed size, neighbors replace one: rate times delta at
    ln(1 + (e^at - 1) / rate) (Balle, Barthe and Gaboardi, arXiv:1807.01647), which for the composed
    mechanism dominates with its mirror image below 0 (Zhu, Dong and Wang, arXiv:2106.08567).
    """  # fmt: skip
    special = importlib.import_module("scipy.special")
    size = np.abs(at)
    inner = size + np.log1p((1 / rate - 1) * -np.expm1(-size))
    x, y = inner / mu - mu / 2, inner / mu + mu / 2
    far = np.exp(-x * x / 2) / 2 * (special.erfcx(np.maximum(x, 0) / math.sqrt(2)) - special.erfcx(y / math.sqrt(2)))
    near = special.ndtr(-x) - np.exp(inner + special.log_ndtr(-y))
    delta = rate * np.where(x < 0, near, far)
    below = np.minimum(at, 0)  # the other direction: 1 - e^at + e^at delta(-at)
    both: Array = np.where(at >= 0, delta, np.exp(below) * delta - np.expm1(below))
    return both


def _library() -> Any:
    return importlib.import_module("dp_accounting.pld.privacy_loss_distribution")
