"""A run's spending against a client's ledger: the whole plan first, then round by round, and never a round twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedkd.errors import BudgetExhausted, ConfigError, PrivacyError
from fedkd.events import DistributedGaussian, Event, Gaussian, NoOp, RandomizedResponse, SampledGaussian
from fedkd.privacy.accountant import Filter, spent
from fedkd.privacy.chain import Head
from fedkd.privacy.ledger import Budget, Ledger
from fedkd.protect import ON_DEVICE, protection_of, spending
from fedkd.units import ceiling

if TYPE_CHECKING:
    from fedkd.config import Config


def planned(config: Config) -> tuple[Event, ...]:
    """Return all that the rounds of ``config`` will do to one client's data, settled before the first of them."""
    budget = spending(config)
    whole = [
        replace(e, count=e.count * config.rounds)
        if isinstance(e, SampledGaussian | DistributedGaussian | Gaussian | RandomizedResponse)
        else e
        for e in budget.round
    ]
    return (*budget.once, *whole)


def rule_of(plan: Sequence[Event]) -> Callable[[float, float], Callable[[Sequence[Event], Event], bool]]:
    """Return what makes the filter of a budget: a ``plan`` alone by the tightest accounting, all else by the filter."""

    def fits(epsilon: float, delta: float) -> Callable[[Sequence[Event], Event], bool]:
        rule = Filter(epsilon, delta)

        def room(before: Sequence[Event], event: Event) -> bool:
            events = [e for e in (*before, event) if not isinstance(e, NoOp)]
            if len(events) <= len(plan) and all(events.count(e) <= plan.count(e) for e in events):
                return spent(plan, delta) <= epsilon * (1 + 1e-9)
            return rule.fits(before, event)

        return room

    return fits


def fits_in(config: Config, before: Sequence[Event]) -> bool:
    """Say whether the server's ledger would take a run of ``config`` after ``before``; nothing is charged."""
    plan = planned(config)
    room = rule_of(plan)(config.ledger_epsilon or config.epsilon, config.delta)
    return all(room((*before, *plan[:i]), event) for i, event in enumerate(plan))


def open_purse(
    folder: Path,
    config: Config,
    fingerprint: str,
    budget: Budget | None = None,
    seen: Head | None = None,
    *,
    accept_loss: bool = False,
) -> Ledger:
    """Open the ledger of the private data with ``fingerprint``; it must contain what was ``seen`` of it before.

    Unless its owner has decided to ``accept_loss`` of a broken one.

    ``budget`` is what its owner allows in all runs together; without one, what the first run asks for. A plan that was
    settled beforehand may fill it by the tightest accounting there is; whatever comes later has to pass the filter.
    """
    chosen = protection_of(config)
    if chosen.unit is None or chosen.neighbors is None:
        raise PrivacyError(f"protect = {config.protect!r} has no ledger to keep")
    return Ledger.open(
        folder,
        fingerprint=fingerprint,
        unit=chosen.unit,
        neighbors=chosen.neighbors,
        budget=budget or Budget(config.epsilon, config.delta),
        fits=rule_of(planned(config)),
        seen=None if accept_loss else seen,
        accept_loss=accept_loss,
    )


@dataclass(frozen=True)
class Charge:
    """A round that was charged: whether it ``trains`` (may spend what it is for), and may draw the sketch.

    ``commit`` makes its answer known to the ledger, ``head`` is where that stood: a state that knows it will notice if
    the ledger is put back.
    """

    trains: bool
    sketches: bool
    commit: Callable[[bytes], None]
    head: Head | None = None


FREE = Charge(True, True, lambda frame: None)
"""Where no ledger is kept."""


def guarded(config: Config) -> None:
    """Raise :class:`ConfigError` unless a device whose owner has set a budget may answer ``config`` at all."""
    if protection_of(config).place not in ON_DEVICE or config.noise != "system":
        raise ConfigError(
            "this device answers only under its owner's budget: the run needs protect = 'dp_sgd', 'local' or "
            f"'distributed' and noise = 'system', got protect = {config.protect!r} and noise = {config.noise!r}"
        )


def begin_round(ledger: Ledger, config: Config, run: str, round_: int, digest: str) -> Charge:
    """Charge the plan of ``run`` if that is new, then begin a round.

    The plan is all that the run will ever do to the data: a run of this name with another plan is refused, and so is a
    round beyond it. Neither training nor sketch are done if they were begun before and the answer was lost: the noise
    would be drawn twice. The round then goes on with what there is.
    """
    if not 1 <= round_ <= config.rounds:
        raise PrivacyError(f"round {round_} is not one of the {config.rounds} that the budget was spread over")
    fresh = _settle(ledger, config, run)
    name = release_of(run, round_)
    if ledger.find(name) is not None:
        return Charge(False, False, lambda frame: None, ledger.head)
    ledger.reserve(name, NoOp(), run=run, query_digest=digest)
    return Charge(True, fresh, lambda frame: ledger.commit(name, frame), ledger.head)


def begin_share(ledger: Ledger, config: Config, run: str, digest: str) -> Charge:
    """Charge the plan of ``run`` if that is new, then begin one of its sums, whichever round it is of.

    A round that the server begins again is another sum, with other noise and perhaps of other clients. There are as
    many as rounds were planned: what crashes cost is rounds at the end, never privacy.
    """
    _settle(ledger, config, run)
    free = (release_of(run, count) for count in range(1, config.rounds + 1))
    name = next((name for name in free if ledger.find(name) is None), None)
    if name is None:
        raise BudgetExhausted("run")
    ledger.reserve(name, NoOp(), run=run, query_digest=digest)
    return Charge(True, True, lambda frame: ledger.commit(name, frame), ledger.head)


POPULATION = "clients-of-this-server"
"""Stands for a data set in the server's ledger: whoever its runs asked. One folder is for one population."""


def begin_run(config: Config, run: str) -> float:
    """Charge the server's ledger with all that ``run`` will tell of its clients; return what all runs have spent.

    Epsilon at the run's delta. A run that was charged before, and goes on, is charged nothing; one that does not fit
    is refused before anybody is asked. The ledger is of clients as a whole: those of every run count as the same ones.
    """
    whole = config.ledger_epsilon or config.epsilon
    with open_purse(Path(config.ledger), config, POPULATION, Budget(whole, config.delta)) as ledger:
        before = spent(ledger.spent(), config.delta)
        try:
            _settle(ledger, config, run)
        except BudgetExhausted:
            raise PrivacyError(
                f"the ledger in {config.ledger} has no room for this run: epsilon {ceiling(before)} is spent, this one "
                f"wants {config.epsilon:g}, and all together may spend {whole:g} (ledger_epsilon)"
            ) from None
        return spent(ledger.spent(), config.delta)


def _settle(ledger: Ledger, config: Config, run: str) -> bool:
    """Charge the plan of ``run`` unless it was before; return whether it was not."""
    settled = hashlib.sha256(json.dumps(config.identity(), sort_keys=True).encode()).hexdigest()
    plan, fresh = planned(config), False
    for i, event in enumerate(plan):
        name = f"{run}/plan/{i}"
        found = ledger.find(name)
        if found is None:
            ledger.reserve(name, event, run=run, query_digest=settled)
            ledger.commit(name, b"")
            fresh = True
        elif found.event != event or found.query_digest != settled:
            raise PrivacyError(f"run {run} was begun with other settings, for which another plan was paid")
    return fresh


def release_of(run: str, round_: int) -> str:
    """Return the name of what a client releases in a round of a run."""
    return f"{run}/round/{round_}"
