"""How much one run shows of planted examples: canaries (Steinke, Nasr and Jagielski, arXiv:2305.08846).

Mislabeled examples are in the clients' private data by fair coins. After the run the coins are guessed from what can be
seen, and how often that is right bounds epsilon from below. Where clients are hidden and not examples, a canary is a
client: it takes part or is silent, and all its labels are exchanged by a permutation of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from rich.progress import track

from fedkd.audits.releases import Report
from fedkd.audits.shadows import Held, Seen, check_scene, play, surrogate, surrogate_of_client
from fedkd.client import spec_of
from fedkd.config import Config
from fedkd.errors import ConfigError
from fedkd.events import Unit
from fedkd.federation import Federation, federation
from fedkd.learner import Learner
from fedkd.privacy import accountant
from fedkd.privacy.audit import confidence_logit, correct_guesses, one_run, one_run_gaussian
from fedkd.privacy.report import rounded_up, spent_in
from fedkd.protect import protection_of, spending
from fedkd.random import generator
from fedkd.softlabels import Array

CONFIDENCE = 0.95
GUESSED = (0.1, 0.2)
"""Shares of the canaries that are guessed in, and as many out; both are tried, and the confidence pays for it."""
VIEWS = {
    "labels": "labels of the client",
    "teacher": "teacher",
    "student": "student",
    "model": "model of the client, white box",
}


@dataclass(frozen=True, eq=False)
class Canary:
    """Inputs (n, ...) of ``client`` and the wrong labels (n,) that they have if the coin says so."""

    client: int
    x: Array
    y: Array


@dataclass(frozen=True)
class Guesses:
    """What one view shows: of ``made`` guesses ``right`` were right, so that epsilon is at least ``lower``.

    ``gaussian`` is the bound that takes the noise for normal (Mahloujifar et al., arXiv:2410.22235). Infinite
    ``claimed`` says that nothing is promised against whoever has this view, ``told`` why.
    """

    view: str
    made: int
    right: int
    lower: float
    gaussian: float
    claimed: float
    told: str

    @property
    def least(self) -> float:
        """The larger of the two bounds."""
        return max(self.lower, self.gaussian)

    @property
    def passed(self) -> bool:
        """Whether nothing contradicts the claim."""
        return self.least <= self.claimed


def audit_canaries(
    config: Config, *, canaries: int = 400, references: int = 16, progress: bool = False
) -> tuple[int, list[Guesses]]:
    """Run ``config`` once with canaries and return how many there were and what each view shows of the coins.

    ``references`` runs with other coins say how sure a model is of each canary on average. They know nothing of the
    coins of the audited run, so that the bound is one of that run alone.
    """
    check_scene(config)
    if references < 2 or references % 2:
        raise ConfigError(f"`references` must be an even number of at least 2, got {references}")
    if protection_of(config).place == "shares":
        raise ConfigError(
            "a masked sum needs almost all clients, so none can be there by a coin; audit protect = 'central', whose "
            "sum and noise are alike"
        )
    shared = federation(config.data, config.transfer, config.partition, config.clients, config.seed)
    hides_clients = protection_of(config).unit is Unit.CLIENT
    planted, fixed = _whole_clients(config, shared) if hides_clients else _examples(config, shared, canaries)
    if len(planted) < 20:
        raise ConfigError(f"one run of {len(planted)} canaries bounds nothing; expected 20 or more, by more clients")
    sure: list[dict[str, Array]] = []
    coins = _coins(config, len(planted), references)
    for flipped in track(coins, "runs", disable=not progress, transient=True):
        seen = play(config, shared, _held(planted, fixed, flipped))
        sure.append(_sureness(config, shared, planted, seen, clients=hides_clients))
    scores = {view: sure[0][view] - np.mean([one[view] for one in sure[1:]], axis=0) for view in sure[0]}
    return len(planted), [_guessed(config, view, s, coins[0], tests=2 * len(scores)) for view, s in scores.items()]


def _examples(config: Config, shared: Federation, canaries: int) -> tuple[list[Canary], Held]:
    """Return canaries out of the clients' own shares, at most half of each, and what else the clients hold."""
    planted, fixed = list[Canary](), dict[int, tuple[Array, Array]]()
    most = math.ceil(canaries / config.clients)
    for k, part in enumerate(shared.parts):
        rng = generator(config.seed, "audit", "canaries", k)
        rows = rng.permutation(part)
        count = min(most, len(rows) // 2, canaries - len(planted))
        x, y = shared.rows(rows[:count])
        wrong = (y + rng.integers(1, shared.dataset.classes, count)) % shared.dataset.classes
        planted += [Canary(k, x[i : i + 1], wrong[i : i + 1]) for i in range(count)]
        fixed[k] = shared.rows(rows[count:])
    return planted, fixed


def _whole_clients(config: Config, shared: Federation) -> tuple[list[Canary], Held]:
    """Return every client with examples as a canary: what it says of classes, nobody else says."""
    planted = list[Canary]()
    for k, part in enumerate(shared.parts):
        if len(part):
            x, y = shared.rows(part)
            planted.append(Canary(k, x, _without_fixed_point(config, k, shared.dataset.classes)[y]))
    return planted, {}


def _without_fixed_point(config: Config, client: int, classes: int) -> Array:
    """Return a permutation of classes by which every label is wrong: one cycle through all of them."""
    cycle = generator(config.seed, "audit", "canaries", client).permutation(classes)
    wrong = np.empty(classes, np.int64)
    wrong[cycle] = np.roll(cycle, 1)
    return wrong


def _coins(config: Config, canaries: int, references: int) -> Array:
    """Return fair coins (1 + references, canaries): the audited run's, then those of pairs that share no canary."""
    rng = generator(config.seed, "audit", "coins")
    coins = rng.random((1 + references, canaries)) < 0.5
    coins[2::2] = ~coins[1:-1:2]
    return np.asarray(coins)


def _held(planted: list[Canary], fixed: Held, flipped: Array) -> Held:
    held = {k: [both] for k, both in fixed.items()}
    for canary, there in zip(planted, flipped, strict=True):
        if there:
            held.setdefault(canary.client, []).append((canary.x, canary.y))
    return {
        k: (np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])) for k, parts in held.items()
    }


def _sureness(
    config: Config, shared: Federation, planted: list[Canary], seen: Seen, *, clients: bool
) -> dict[str, Array]:
    """Return how sure (m,) what can be made of each view is of every canary's wrong label."""
    everything = np.arange(len(planted))
    told: dict[str, Array] = {}
    if not clients:  # else the labels themselves say who took part, and the server that sees them is trusted
        by_client = {k: np.flatnonzero([c.client == k for c in planted]) for k in {c.client for c in planted}}
        told["labels"] = np.zeros(len(planted))
        for k, rows in by_client.items():
            told["labels"][rows] = _sure(surrogate_of_client(config, shared, seen, k), planted, rows)
        if all(k in seen.models for k in by_client):
            told["model"] = np.zeros(len(planted))
            for k, rows in by_client.items():
                told["model"][rows] = _sure(seen.models[k], planted, rows)
    else:
        told["teacher"] = _sure(surrogate(config, shared, spec_of(config, 0), seen.teacher), planted, everything)
    if seen.student is not None:
        told["student"] = _sure(seen.student, planted, everything)
    return told


def _sure(model: Learner, planted: list[Canary], rows: Array) -> Array:
    """Return the mean :func:`confidence_logit` of the wrong labels of canaries ``rows`` (n,)."""
    chosen = [planted[i] for i in rows]
    which = np.repeat(np.arange(len(chosen)), [len(canary.y) for canary in chosen])
    x, y = np.concatenate([canary.x for canary in chosen]), np.concatenate([canary.y for canary in chosen])
    return np.asarray(np.bincount(which, confidence_logit(model.predict(x), y)) / np.bincount(which))


def _guessed(config: Config, view: str, scores: Array, coins: Array, *, tests: int) -> Guesses:
    """Return the best of the tests of one view; all ``tests`` together hold with the confidence."""
    claimed, told = _claim(config)
    confidence = 1 - (1 - CONFIDENCE) / tests
    found = []
    for share in GUESSED:
        each = max(1, round(share * len(scores)))
        made, right = correct_guesses(scores, coins, present=each, absent=each)
        lower = one_run(len(scores), made, right, delta=config.delta, confidence=confidence)
        normal = one_run_gaussian(len(scores), made, right, delta=config.delta, confidence=confidence)
        found.append(Guesses(view, made, right, lower, normal, claimed, told))
    return max(found, key=lambda guesses: guesses.least)


def _claim(config: Config) -> tuple[float, str]:
    chosen = protection_of(config)
    if chosen.unit is None:
        return math.inf, "no bound: privacy NONE"
    if config.noise != "system":
        return math.inf, "no bound: the noise is seeded"
    epsilon = rounded_up(accountant.spent(spent_in(spending(config), config.rounds), config.delta))
    return epsilon, f"epsilon {epsilon:g} at delta {config.delta:g} for one {chosen.unit}"


def canary_report(config: Config, found: tuple[int, list[Guesses]], *, references: int) -> Report:
    """Return what is told of an audit with canaries."""
    canaries, guesses = found
    claims = all(math.isfinite(one.claimed) for one in guesses)
    clients = protection_of(config).unit is Unit.CLIENT
    result = "no claim" if not claims else "PASS" if all(one.passed for one in guesses) else "FAIL"

    def verdict(one: Guesses) -> str:
        return result if not claims else "PASS" if one.passed else "FAIL"

    facts = {
        "audit": "canary",
        "result": result,
        "promised": guesses[0].told,
        "protect": config.protect,
        "unit": "client" if clients else "example",
        "neighbors": "with a canary or without",
        "adversary": "knows every example and canary, the seed and the settings, and saw one run; not the coins",
        "canaries": canaries,
        "what": "clients whose classes are exchanged" if clients else "private examples with a wrong label",
        "references": references,
        "confidence": f"{CONFIDENCE}, of all bounds together",
        "clients": config.clients,
        "rounds": config.rounds,
        "data": config.data,
        "seed": config.seed,
        "views": {
            one.view: {
                "guesses": one.made,
                "right": one.right,
                "epsilon": round(one.lower, 4),
                "epsilon_gaussian": round(one.gaussian, 4),
                "claimed": one.claimed if math.isfinite(one.claimed) else None,
                "result": verdict(one),
            }
            for one in guesses
        },
    }
    rows = [
        (
            VIEWS[one.view],
            f"{one.right} of {one.made}",
            f"{one.lower:.2f}",
            f"{one.gaussian:.2f}",
            f"{one.claimed:.2f}" if claims else "nothing",
            verdict(one),
        )
        for one in guesses
    ]
    own = (
        "the labels of single clients are not looked at: they say who took part, and the server is trusted with them"
        if clients
        else "labels: a model distilled from what the client released is asked; white box: the client's own model is"
    )
    return Report(
        facts,
        ("seen", "right guesses", "epsilon at least", "if Gaussian", "promised", "result"),
        rows,
        [
            "a canary's score is how much surer a model is of its wrong label than in reference runs with other coins",
            own,
            "one run sees gross errors only: a right mechanism stays far below its promise, and so does noise that is "
            "a little too small; for those there is fedkd audit mechanism",
            "not seen: weights, gradients, sizes and times of messages, and canaries that would be easier to find",
            *([] if claims else [f"{guesses[0].told}; nothing can fail: the numbers say how much leaks"]),
        ],
    )
