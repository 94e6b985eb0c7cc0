"""A run's spending against a client's ledger: the whole plan first, then round by round, and never a round twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedkd.errors import PrivacyError
from fedkd.events import Event, NoOp, SampledGaussian
from fedkd.privacy.accountant import Filter, spent
from fedkd.privacy.ledger import Budget, Ledger
from fedkd.protect import protection_of, spending

if TYPE_CHECKING:
    from fedkd.config import Config


def planned(config: Config) -> tuple[Event, ...]:
    """Return all that the rounds of ``config`` will do to one client's data, settled before the first of them."""
    budget = spending(config)
    whole = [
        SampledGaussian(e.rate, e.noise_multiplier, e.count * config.rounds) if isinstance(e, SampledGaussian) else e
        for e in budget.round
    ]
    return (*budget.once, *whole)


def open_purse(folder: Path, config: Config, fingerprint: str, budget: Budget | None = None) -> Ledger:
    """Open the ledger of the private data with ``fingerprint``.

    ``budget`` is what its owner allows in all runs together; without one, what the first run asks for. A plan that was
    settled beforehand may fill it by the tightest accounting there is; whatever comes later has to pass the filter.
    """
    chosen = protection_of(config)
    if chosen.unit is None or chosen.neighbors is None:
        raise PrivacyError(f"protect = {config.protect!r} has no ledger to keep")
    plan = planned(config)

    def fits(epsilon: float, delta: float) -> Callable[[Sequence[Event], Event], bool]:
        rule = Filter(epsilon, delta)

        def room(before: Sequence[Event], event: Event) -> bool:
            events = [e for e in (*before, event) if not isinstance(e, NoOp)]
            if len(events) <= len(plan) and all(events.count(e) <= plan.count(e) for e in events):
                return spent(plan, delta) <= epsilon * (1 + 1e-9)
            return rule.fits(before, event)

        return room

    return Ledger.open(
        folder,
        fingerprint=fingerprint,
        unit=chosen.unit,
        neighbors=chosen.neighbors,
        budget=budget or Budget(config.epsilon, config.delta),
        fits=fits,
    )


@dataclass(frozen=True)
class Charge:
    """A round that was charged: whether its training may be done, and what makes its answer known to the ledger."""

    trains: bool
    commit: Callable[[bytes], None]


FREE = Charge(True, lambda frame: None)
"""Where no ledger is kept."""


def begin_round(ledger: Ledger, config: Config, run: str, round_: int, digest: str) -> Charge:
    """Charge the plan of ``run`` if that is new, then begin a round.

    Its training may not be done if it was begun before and its answer was lost: the noise would be drawn twice. The
    round then goes on with the model as it is.
    """
    for i, event in enumerate(planned(config)):
        if ledger.find(f"{run}/plan/{i}") is None:
            ledger.reserve(f"{run}/plan/{i}", event, run=run, query_digest="plan")
            ledger.commit(f"{run}/plan/{i}", b"")
    name = release_of(run, round_)
    if ledger.find(name) is not None:
        return Charge(False, lambda frame: None)
    ledger.reserve(name, NoOp(), run=run, query_digest=digest)
    return Charge(True, lambda frame: ledger.commit(name, frame))


def release_of(run: str, round_: int) -> str:
    """Return the name of what a client releases in a round of a run."""
    return f"{run}/round/{round_}"
