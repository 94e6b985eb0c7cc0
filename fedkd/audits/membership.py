"""Who was in the data, told from what a federation shows: LiRA (Carlini et al., arXiv:2112.03570) on a whole one.

A run is repeated with random halves of some clients' examples. Each run in turn is the one under attack, all others are
the attacker's shadows: he knows every input and label, and how the federation works, but not which half was used. Seen
are the labels that a client releases, the teacher and the student; of labels and teacher the attacker distills a model
of the client's kind and looks how sure that one is of each example.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.progress import track

from fedkd.audits.releases import Report
from fedkd.audits.shadows import Held, Seen, check_scene, play, surrogate, surrogate_of_client
from fedkd.client import spec_of
from fedkd.config import Config
from fedkd.errors import ConfigError
from fedkd.events import Unit
from fedkd.federation import Federation, federation
from fedkd.privacy import accountant, words
from fedkd.privacy.audit import (
    Interval,
    auc,
    confidence_logit,
    found_at,
    leave_one_out,
    lira,
    lira_offline,
    over_examples,
    roc,
)
from fedkd.privacy.report import rounded_up, spent_in
from fedkd.protect import protection_of, spending
from fedkd.random import generator
from fedkd.report.charts import Line, roc_chart
from fedkd.report.page import panel
from fedkd.softlabels import Array
from fedkd.units import percent

SCENE = ("clients=4", "rounds=1", "learner=linear", "student=mlp")
"""What is attacked where nothing is asked for: seconds of one core."""
ATTACKED = 4
"""Clients whose examples are attacked, the largest first; the others keep theirs."""
LEAST = 16
"""Examples of a client below which it is not attacked."""
ALARMS = (0.01, 0.001)
TIMES = 100
"""How often examples are drawn anew for an interval."""
CONFIDENCE = 0.95
VIEWS = {
    "labels": "labels of one client",
    "teacher": "teacher",
    "student": "student",
}


@dataclass(frozen=True, eq=False)
class Candidates:
    """Examples under attack: inputs (N, ...), labels, the client of each (N,), and who is in which run (S, N)."""

    x: Array
    y: Array
    owner: Array
    member: Array

    def of(self, run: int, client: int) -> Array:
        """Return the rows that ``client`` holds in a run."""
        return np.flatnonzero((self.owner == client) & self.member[run])


@dataclass(frozen=True)
class Claim:
    """What is promised against whoever has a view: for one example, ``epsilon`` at ``delta``, and in words."""

    epsilon: float
    delta: float
    told: str

    def at_most(self, false_alarms: float) -> float:
        """Return the largest share of members that may be found."""
        if false_alarms >= 1:
            return 1.0
        return words.bounded(self.epsilon, self.delta, false_alarms=false_alarms).found


@dataclass(frozen=True, eq=False)
class Found:
    """How well members are told from others in one view; ``found`` and ``at_most`` are at each of ``ALARMS``."""

    view: str
    area: Interval
    offline: Interval
    found: tuple[Interval, ...]
    claim: Claim
    scores: Array
    member: Array

    @property
    def at_most(self) -> tuple[float, ...]:
        """What the claim allows."""
        return tuple(self.claim.at_most(alarms) for alarms in ALARMS)

    @property
    def passed(self) -> bool:
        """Whether nothing contradicts the claim."""
        return all(seen.low <= most for seen, most in zip(self.found, self.at_most, strict=True))

    def curve(self, at: Array) -> Array:
        """Return the share of members found at each rate of false alarms ``at``."""
        alarms, hits = roc(self.scores[self.member], self.scores[~self.member])
        return np.asarray(hits[np.searchsorted(alarms, at + 1e-12, side="right") - 1])


def attack_membership(config: Config, *, shadows: int = 32, examples: int = 500, progress: bool = False) -> list[Found]:
    """Run a federation ``shadows`` times and return how well members are told from others in each view.

    A client under attack trains on a random half of its share, at most ``examples``; the other clients on all, at most
    as many.
    """
    check_scene(config)
    if shadows < 6 or shadows % 2:
        raise ConfigError(f"`shadows` must be an even number of at least 6, got {shadows}")
    shared = federation(config.data, config.transfer, config.partition, config.clients, config.seed)
    attacked, others = _candidates(config, shared, shadows, examples)
    sure: dict[str, list[Array]] = {}
    for run in track(range(shadows), "runs", disable=not progress, transient=True):
        mine = {int(k): attacked.of(run, int(k)) for k in np.unique(attacked.owner)}
        held = {**others, **{k: (attacked.x[rows], attacked.y[rows]) for k, rows in mine.items()}}
        for name, one in _sureness(config, shared, attacked, play(config, shared, held)).items():
            sure.setdefault(name, []).append(one)
    return [_judged(config, name, np.stack(rows), attacked.member) for name, rows in sure.items()]


def _candidates(config: Config, shared: Federation, shadows: int, examples: int) -> tuple[Candidates, Held]:
    """Return what is attacked, and what the clients hold that are not."""
    sizes = {k: len(part) for k, part in enumerate(shared.parts)}
    large = sorted((k for k in sizes if sizes[k] >= LEAST), key=lambda k: (-sizes[k], k))[:ATTACKED]
    if not large:
        raise ConfigError(f"no client has {LEAST} examples to attack, the largest has {max(sizes.values())}")
    chosen, owner, member = list[Array](), list[Array](), list[Array]()
    for k in large:
        half = min(examples, sizes[k] // 2)
        chosen.append(generator(config.seed, "audit", "candidates", k).permutation(shared.parts[k])[: 2 * half])
        owner.append(np.full(2 * half, k))
        here = np.zeros((shadows, 2 * half), bool)
        for pair in range(shadows // 2):  # two runs that share no example: each is in half of all runs
            order = generator(config.seed, "audit", "members", k, pair).permutation(2 * half)
            here[2 * pair, order[:half]] = here[2 * pair + 1, order[half:]] = True
        member.append(here)
    x, y = shared.rows(np.concatenate(chosen))
    rest = {k: shared.rows(shared.parts[k][:examples]) for k in sizes if k not in large}
    return Candidates(x, y, np.concatenate(owner), np.concatenate(member, axis=1)), rest


def _sureness(config: Config, shared: Federation, attacked: Candidates, seen: Seen) -> dict[str, Array]:
    """Return how sure (N,) what can be made of each view is of every candidate's label."""
    first = int(attacked.owner[0])
    told: dict[str, Array] = {}
    if seen.labels:  # else nobody sees them: masked sums
        told["labels"] = np.zeros(len(attacked.y))
        for k in np.unique(attacked.owner):
            mine = np.flatnonzero(attacked.owner == k)
            model = surrogate_of_client(config, shared, seen, int(k))
            told["labels"][mine] = confidence_logit(model.predict(attacked.x[mine]), attacked.y[mine])
    model = surrogate(config, shared, spec_of(config, first), seen.teacher)
    told["teacher"] = confidence_logit(model.predict(attacked.x), attacked.y)
    if seen.student is not None:
        told["student"] = confidence_logit(seen.student.predict(attacked.x), attacked.y)
    return told


def _judged(config: Config, view: str, sure: Array, member: Array) -> Found:
    scores, offline = leave_one_out(sure, member, lira), leave_one_out(sure, member, lira_offline)

    def interval(of: Array, measure: Callable[[Array, Array], float]) -> Interval:
        rng = generator(config.seed, "audit", "interval")
        return over_examples(of, member, measure, rng=rng, times=TIMES, confidence=CONFIDENCE)

    def area(members: Array, others: Array) -> float:
        return auc(members, others).value

    found = [interval(scores, lambda a, b, alarms=alarms: found_at(a, b, alarms)) for alarms in ALARMS]  # type: ignore[misc]
    claim = claim_of(config, view)
    return Found(view, interval(scores, area), interval(offline, area), tuple(found), claim, scores, member)


def claim_of(config: Config, view: str) -> Claim:
    """Return what ``config`` promises for one example against whoever has a view."""
    chosen = protection_of(config)
    if chosen.unit is None:
        return Claim(math.inf, 0.0, "no bound: privacy NONE")
    if config.noise != "system":
        return Claim(math.inf, 0.0, "no bound: the noise is seeded")
    if chosen.unit is Unit.CLIENT and view == "labels":
        return Claim(math.inf, 0.0, "no bound: the server, which sees them, is trusted")
    epsilon = rounded_up(accountant.spent(spent_in(spending(config), config.rounds), config.delta))
    if chosen.unit is Unit.EXAMPLE:
        return Claim(epsilon, config.delta, f"epsilon {epsilon:g} at delta {config.delta:g}")
    # Another example is another client: it leaves and comes back, two steps of the promise (group privacy).
    delta = min(1.0, (1 + math.exp(min(epsilon, 700.0))) * config.delta)
    return Claim(2 * epsilon, delta, f"epsilon {2 * epsilon:g} at delta {delta:.2g}, that of a client twice")


def membership_report(config: Config, found: list[Found], *, shadows: int) -> Report:
    """Return what is told of an attack on membership."""
    claimed = [one for one in found if math.isfinite(one.claim.epsilon)]
    result = "no claim" if not claimed else "PASS" if all(one.passed for one in claimed) else "FAIL"
    members, others = int(found[0].member.sum()), int((~found[0].member).sum())
    low = 10.0 ** -min(4, max(2, math.floor(math.log10(others / 10))))  # fewer alarms than ten are chance
    at = np.geomspace(low, 1, 61)
    facts: dict[str, Any] = {
        "audit": "membership",
        "result": result,
        "protect": config.protect,
        "epsilon": config.epsilon,
        "delta": config.delta,
        "unit": "one example, in the data of its client or not",
        "adversary": "knows all inputs and labels, the seed and the settings; not which half of the examples was used",
        "attack": "LiRA with surrogates, each run in turn attacked with all others as shadows",
        "runs": shadows,
        "cases": f"{members} members, {others} others, of {found[0].member.shape[1]} examples",
        "learner": config.learner,
        "student": config.student,
        "rounds": config.rounds,
        "clients": config.clients,
        "data": config.data,
        "seed": config.seed,
        "confidence": CONFIDENCE,
        "views": {
            one.view: {
                "auc": _three(one.area),
                "auc_offline": _three(one.offline),
                **{f"tpr_at_{a:g}": _three(seen) for a, seen in zip(ALARMS, one.found, strict=True)},
                **{f"at_most_at_{a:g}": round(most, 6) for a, most in zip(ALARMS, one.at_most, strict=True)},
                "claim": one.claim.told,
                "roc": [[round(float(a), 6), round(float(t), 6)] for a, t in zip(at, one.curve(at), strict=True)],
            }
            for one in found
        },
    }
    rows = [
        (
            VIEWS[one.view],
            f"{one.area.value:.3f} ({one.area.low:.3f} to {one.area.high:.3f})",
            f"{one.offline.value:.3f}",
            *(_share(seen, most) for seen, most in zip(one.found, one.at_most, strict=True)),
        )
        for one in found
    ]
    colors = {"labels": 2, "teacher": 4, "student": 1}
    curves = [
        Line(VIEWS[one.view], [(float(a), float(t) or None) for a, t in zip(at, one.curve(at), strict=True)], color)
        for one in found
        for color in [colors[one.view]]
    ]
    bound = next((one.claim for one in claimed), None)
    promised = None if bound is None else Line("promised", [(float(a), bound.at_most(float(a))) for a in at], 3, 1)
    svg = roc_chart(curves, low=low, bound=promised, title="members found over false alarms, both logarithmic")
    caption = "How many members are found while how many others are wrongly named? On the dotted line: by guessing."
    return Report(
        facts,
        ("seen", "area under the curve", "offline", "found at 1 %", "found at 0.1 %"),
        rows,
        [
            *(f"promised of the {VIEWS[one.view]}: {one.claim.told}" for one in found if claimed),
            "found at 1 %: the share of members named while 1 % of the others are named too; at most: what is promised",
            "intervals at 95 % draw examples anew; that all are attacked with the same runs is not in them",
            "read from soft labels alone: what weights, sizes or the time of messages tell is not seen here",
            "offline: the attacker has no run with the example, so it costs him one set of shadows for all",
            *([] if claimed else [f"{found[0].claim.told}; nothing can fail: the numbers say how much leaks"]),
        ],
        (panel("roc", "Who is found", caption, svg, ()),),
    )


def _three(found: Interval) -> list[float]:
    return [round(found.value, 4), round(found.low, 4), round(found.high, 4)]


def _share(seen: Interval, most: float) -> str:
    told = f"{percent(seen.value)} ({percent(seen.low)} to {percent(seen.high)})"
    return told if most >= 1 else f"{told}, at most {percent(most)}"
