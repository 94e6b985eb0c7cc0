"""What a run may say about its privacy, and what it must say with it: ``privacy_report.json`` and ``.md``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd.events import Event
from fedkd.privacy import accountant, words
from fedkd.privacy.noise import SEEDED
from fedkd.protect import Spending, doubtful_delta, least_of, protection_of, spending
from fedkd.units import ceiling

if TYPE_CHECKING:
    from fedkd.config import Config

NONE = {
    "guarantee": "NONE",
    "epsilon": "infinite",
    "why": "protect = none: soft labels leave as they are, and they can reveal who is in the data",
}


LEAST = "least_clients_in_a_sum"
REFERENCE = "what a simulation measures for comparison: the model trained on pooled data"


def rounded_up(epsilon: float) -> float:
    """Return ``epsilon`` with four decimals, never less than it is."""
    return math.ceil(epsilon * 1e4 - 1e-9) / 1e4


def statement(config: Config, rounds: int) -> dict[str, Any]:
    """Return what ``rounds`` rounds of ``config`` guarantee. Seeded noise guarantees nothing and says so."""
    chosen = protection_of(config)
    if chosen.unit is None or chosen.neighbors is None:
        return dict(NONE)
    budget = spending(config)
    if chosen.place == "shares":
        rounds = config.rounds  # a round that was lost and begun again has been paid for as another one
    events = spent_in(budget, rounds)
    epsilon = accountant.spent(events, config.delta)
    told = {
        "guarantee": config.protect,
        "epsilon": rounded_up(epsilon),
        "delta": config.delta,
        "unit": chosen.unit.value,
        "neighbors": chosen.neighbors.value,
        "adversary": chosen.adversary,
        "budget": config.epsilon,
        "epsilon_by_rdp": rounded_up(accountant.spent(events, config.delta, method="rdp")),
        "noise_multiplier": round(budget.noise_multiplier, 6),
        "noise": "the operating system's entropy" if config.noise == "system" else "seeded",
        **({LEAST: least_of(config)} if chosen.place == "shares" else {}),
        "events": [f"{type(event).__name__}{vars(event)}" for event in events],
        "assumptions": list(chosen.assumptions),
        "not_covered": [*chosen.open, *([REFERENCE] if config.pooled else [])],
        "warnings": doubtful_delta(config),
        "attacker": words.sentence(words.advantage(events), chosen.unit, chosen.neighbors),
        "why": "",
    }
    told["why"] = f"Against {chosen.adversary}. {told['attacker']} Not covered: {'; '.join(chosen.open)}."
    if config.noise != "system":
        return {
            **NONE,
            "guarantee": SEEDED,
            "why": "noise = seeded can be computed again by anyone who knows the seed; it is for tests only",
            "would_be": told,
        }
    return told


def in_ledger(config: Config, all_runs: float) -> dict[str, Any]:
    """Return what belongs beside the epsilon of one run: that of ``all_runs`` on the same clients, and their budget."""
    whole = config.ledger_epsilon or config.epsilon
    told = (
        f"All runs that the ledger {Path(config.ledger).name!r} knows: epsilon {rounded_up(all_runs):g} of {whole:g}."
    )
    return {"ledger": told, "epsilon_of_all_runs": rounded_up(all_runs)}


def spent_in(budget: Spending, rounds: int) -> list[Event]:
    """Return the events of the first ``rounds`` rounds: what comes once, and each round's."""
    return [*budget.once, *[event for event in budget.round for _ in range(rounds)]]


def files_of(told: dict[str, Any]) -> dict[str, str]:
    """Return the statement by file name: as JSON, and as Markdown to be read."""
    return {"privacy_report.json": json.dumps(told, indent=1) + "\n", "privacy_report.md": markdown(told)}


def _accounted(told: dict[str, Any]) -> str:
    """Return what was spent of the budget, and what would have been said by an accountant that is less exact."""
    spent, loose = told["epsilon"], told["epsilon_by_rdp"]
    words = f"epsilon {spent:g} of the budget {told['budget']:g}, by the tightest accountant"
    return words + (f"; a looser one (Renyi) would say {loose:g} for the same noise" if loose > spent else "")


def markdown(told: dict[str, Any]) -> str:
    """Return the statement as Markdown, the claim first and what it does not say right after it."""
    if told["epsilon"] == "infinite":
        return f"# Privacy: {told['guarantee']}\n\nEpsilon is infinite. {told['why']}.\n"
    lines = [
        f"# Privacy: epsilon {ceiling(told['epsilon'])} at delta {told['delta']:g}",
        "",
        f"- unit: one {told['unit']}; neighbors: {told['neighbors']}",
        f"- against: {told['adversary']}",
        f"- for an attacker: {told['attacker']}",
        f"- mechanism: {told['guarantee']}, noise multiplier {told['noise_multiplier']:g}, from {told['noise']}",
        *([f"- {told['ledger']}"] if "ledger" in told else []),
        *([f"- a sum is of {told[LEAST]} clients or more"] if LEAST in told else []),
        f"- spent: {_accounted(told)}",
        *(f"- warning: {line}" for line in told["warnings"]),
        "",
        "## Assumed",
        "",
        *(f"- {line}" for line in told["assumptions"]),
        "",
        "## Not covered",
        "",
        *(f"- {line}" for line in told["not_covered"]),
        "",
        "## What was done to private data",
        "",
        *(f"- `{line}`" for line in told["events"]),
    ]
    return "\n".join(lines) + "\n"
