"""What events cost: from their list to epsilon or delta, and whether one more fits a budget.

Two questions, two answers. What did a plan cost that was fixed beforehand: :func:`spent`, as tight as is known. May
this be done too, where what is asked may depend on earlier answers: :class:`Filter`, which is never ahead of the proof.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedkd.errors import ConfigError
from fedkd.events import DistributedGaussian, Event, NonPrivate, NoOp, RandomizedResponse, valid
from fedkd.privacy import gaussian, pld, rdp, responses
from fedkd.softlabels import Array

METHODS = ("tight", "rdp", "gaussian", "pld")

ROUNDING = 1e-9
"""A budget that is reached to this relative precision is not exceeded."""


def spent(events: Iterable[Event], delta: float, *, method: str = "tight") -> float:
    """Return the epsilon of ``events`` together at ``delta`` in [0, 1): an upper bound, infinite where none is known.

    ``tight`` is the least of what is valid: exact for Gaussian noise alone and for one kind of randomized response,
    else by privacy loss distributions (to 1e-4), and never above Renyi accounting (``rdp``) or the sum of epsilons.
    ``gaussian`` and ``pld`` know not every event, and cost infinity where they do not.
    """
    if method not in METHODS:
        raise ConfigError(f"`method` must be one of {', '.join(METHODS)}, got {method!r}")
    if not 0 <= delta < 1:
        raise ConfigError(f"`delta` must be in [0, 1), got {delta}")
    events = _costly(events)
    if not events:
        return 0.0
    if _hopeless(events):
        return math.inf
    if method == "gaussian":
        return gaussian.spent(events, delta)
    if method == "pld":
        return pld.epsilon_of(events, delta)
    least = math.fsum(rdp.pure(event) for event in events)
    if delta == 0:
        return least
    least = min(least, rdp.epsilon_of(rdp.total(events), delta))
    if method == "rdp":
        return least
    if _like_gaussian(events):
        return min(least, gaussian.spent(events, delta))
    kind = _one_response(events)
    exact = responses.epsilon_of(*kind, delta) if kind else pld.epsilon_of(events, delta)
    return min(least, exact)


def delta_spent(events: Iterable[Event], epsilon: float) -> float:
    """Return the delta of ``events`` together at ``epsilon`` >= 0, in [0, 1]: the least of what is valid."""
    if not epsilon >= 0:
        raise ConfigError(f"`epsilon` must be at least 0, got {epsilon}")
    events = _costly(events)
    if _hopeless(events):
        return 1.0
    cost = rdp.total(events)
    if not np.isfinite(cost).any():
        return 1.0
    if sum(rdp.pure(event) for event in events) <= epsilon:
        return 0.0
    least = rdp.delta_of(cost, epsilon)
    if _like_gaussian(events):
        mu, slack = gaussian.together(events) or (math.inf, 0.0)
        return min(least, math.exp(slack) * gaussian.delta_of(epsilon - 2 * slack, mu) if 2 * slack <= epsilon else 1.0)
    kind = _one_response(events)
    return min(least, responses.delta_of(*kind, epsilon) if kind else pld.delta_of(events, epsilon))


@dataclass(frozen=True)
class Filter:
    """A budget that holds even if what is asked next, and how noisily, depends on what earlier answers said.

    For Gaussian events alone: sum of mu^2 <= mu(epsilon, delta)^2, which loses nothing (Smith and Thakurta,
    arXiv:2210.17520). Else the sum of Renyi costs at one order <= epsilon - ln(1 - 1/alpha) + ln(alpha delta) /
    (alpha - 1) (Feldman and Zrnic, arXiv:2008.11193). The order must not depend on answers, so the one that happens to
    be best at the end is not covered by the proof: it is the one at which ``plan`` can be repeated most often, or else
    the first event whose epsilon needs a delta. That event, and which kinds come, are to be settled beforehand, as a
    configuration does. Give the plan where kinds differ much. Epsilons with delta = 0 may also simply add up.
    """

    epsilon: float
    delta: float
    plan: Sequence[Event] = field(default=())

    def __post_init__(self) -> None:
        """Refuse a budget that is none."""
        if not self.epsilon > 0:
            raise ConfigError(f"`epsilon` must be above 0, got {self.epsilon}")
        if not 0 <= self.delta < 1:
            raise ConfigError(f"`delta` must be in [0, 1), got {self.delta}")

    def fits(self, spent_events: Iterable[Event], next_event: Event) -> bool:
        """Say whether ``next_event`` may be done after ``spent_events``; a budget exactly reached is not exceeded."""
        if isinstance(next_event, NoOp):
            return True
        events = _costly([*spent_events, next_event])
        if _hopeless(events):
            return False
        full = 1 + ROUNDING
        if sum(rdp.pure(event) for event in events) <= self.epsilon * full:
            return True
        if self.delta == 0 or self.epsilon == math.inf:
            return self.epsilon == math.inf
        if gaussian.together([*events, *self.plan]) is not None:
            return gaussian.spent(events, self.delta) <= self.epsilon * full
        room = rdp.room(self.epsilon, self.delta)
        chosen = _costly(self.plan) or [event for event in events if rdp.pure(event) == math.inf][:1] or events[:1]
        order = _order(room, chosen)
        return bool(rdp.total(events)[order] <= room[order] + ROUNDING * self.epsilon)


def _order(room: Array, events: Sequence[Event]) -> int:
    """Return the index of the order at which ``events`` fit most often."""
    cost = rdp.total(events)
    with np.errstate(divide="ignore", invalid="ignore"):
        times = np.where(room > 0, room / cost, -np.inf)
    return int(np.argmax(np.nan_to_num(times, nan=-np.inf)))


def _costly(events: Iterable[Event]) -> list[Event]:
    return [event for event in events if not isinstance(event, NoOp)]


def _hopeless(events: Sequence[Event]) -> bool:
    """Say whether one event has no finite epsilon at any delta."""
    return any(not valid(event) or isinstance(event, NonPrivate) for event in events)


def _like_gaussian(events: Sequence[Event]) -> bool:
    """Say whether Gaussian accounting is exact, or as good as. For discrete noise on one number there is better."""
    one_number = any(isinstance(event, DistributedGaussian) and event.dimension == 1 for event in events)
    return not one_number and gaussian.together(events) is not None


def _one_response(events: Sequence[Event]) -> tuple[int, float, int] | None:
    """Return (classes, epsilon, count) if all events are answers of one kind of randomized response."""
    kinds = {(e.classes, e.epsilon) if isinstance(e, RandomizedResponse) else None for e in events}
    first = kinds.pop()
    if first is None or kinds:
        return None
    return *first, sum(e.count for e in events if isinstance(e, RandomizedResponse))
