"""How privacy is had: whose presence is hidden, where the noise goes, and what a whole run costs before it starts.

A member of the registry ``protection`` says what is bounded; ``epsilon`` and ``delta`` of the configuration say how
well, over everything that leaves in all rounds. From these follows the noise: nobody sets it by hand.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from fedkd.errors import ConfigError, PrivacyError, SpecError, did_you_mean
from fedkd.events import Event, Gaussian, Neighbors, NoOp, RandomizedResponse, SampledGaussian, Unit
from fedkd.expertise.sketch import SIGMA
from fedkd.privacy.calibrate import noise_multiplier
from fedkd.privacy.distributed import Scale, scale_of
from fedkd.privacy.distributed import event as distributed_event
from fedkd.registry import Registry, parse
from fedkd.secagg.client import Rules

if TYPE_CHECKING:
    from fedkd.config import Config

protection = Registry("protection")


@dataclass(frozen=True)
class Protection:
    """What a protection bounds, and where: ``place`` is where noise is added.

    nowhere; training: every gradient step of a client; answers: the class that a client says of a row; labels: its
    soft labels; shares: its part of the sum, before it is masked; mean: the sum of all ballots, on the server; votes:
    the sum of all votes, on the server. ``open`` is what stays open. The rest are the member's own options.
    """

    place: str = "nowhere"
    unit: Unit | None = None
    neighbors: Neighbors | None = None
    adversary: str = ""
    assumptions: tuple[str, ...] = ()
    open: tuple[str, ...] = ()
    # training
    rate: float = 1.0
    examples: int = 1
    step: float = 1.0
    # training, mean, shares
    clip: float = 1.0
    # mean, shares
    power: float = 1.0
    balance: float = 1.0
    # votes
    threshold: float = 0.0
    test: float = 1.0
    smooth: bool = True
    # answers
    labels: int = 0
    classes: int = 2
    # shares
    least: float = 1.0
    dropout: str = "robust"


@protection
def none() -> Protection:
    """Give no privacy guarantee: predictions leave as they are, and every report says so."""
    return Protection()


@protection
def dp_sgd(*, rate: float = 0.1, clip: float = 0.1, examples: int = 100, step: float = 1.5) -> Protection:
    """Hide every single example of a client: it learns by DP-SGD (Abadi et al., arXiv:1607.00133).

    Each step sees every example with probability ``rate``, by a coin of its own; gradients are cut to the L2 norm
    ``clip`` and get Gaussian noise. ``local_epochs`` / ``rate`` steps a round. All that leaves later is
    post-processing of the model, so labels and bytes are free. Server and other clients need not be trusted.
    ``examples`` is a public guess of how many a client holds, since the number itself is private: a wrong one makes
    steps too long or too short and costs no privacy. ``step`` is how far the first one goes, relative to the length
    that would suit a model without noise: less where data are few or epsilon is small. The defaults suit networks as
    well, which divide by ``clip``: there 1.5 is a first step of 0.2.
    """
    _inside("dp_sgd", "rate", rate, 0, 1)
    _inside("dp_sgd", "clip", clip, 0, math.inf)
    _inside("dp_sgd", "examples", examples, 0, math.inf)
    _inside("dp_sgd", "step", step, 0, math.inf)
    return Protection(
        "training",
        Unit.EXAMPLE,
        Neighbors.ADD_REMOVE,
        "anyone who sees all that a client sends, the server and other clients included",
        ("a client's own device and its operating system's entropy are trusted", "an example is held by one client"),
        (
            "which classes a client holds, and how many examples: examples are hidden, not the client",
            "choices made by looking at private data outside of the run, such as tuning",
            "the time and size of messages; other runs on the same data, where no ledger is kept",
        ),
        rate=rate,
        clip=clip,
        examples=examples,
        step=step,
    )


@protection
def central(*, clip: float = 1.0, power: float = 0.25, balance: float = 0.1) -> Protection:
    """Hide every client: the server cuts each one's ballots as a whole, sums them and adds Gaussian noise.

    With ``expertise = uniform``, ``clip`` is in units of the longest that the ballots of one client can be, so that 1
    cuts nothing. With any other, a client's rows count by its weights relative to its largest, to a ``power`` in
    (0, 1], and all shares are made equally long; the weights, ``balance`` times, are part of them and get noise too.
    The noisy mean is then smoothed over samples that look alike, which costs nothing. The server is trusted; all else
    is not.
    """
    _inside("central", "clip", clip, 0, 1)
    _inside("central", "power", power, 0, 1)
    _inside("central", "balance", balance, 0, math.inf)
    return Protection("mean", Unit.CLIENT, Neighbors.ZERO_OUT, *_CENTRAL, clip=clip, power=power, balance=balance)


@protection
def gnmax(*, threshold: float = 0.0, test: float = 3.0, smooth: bool = True) -> Protection:
    """Hide every client: the server counts votes with Gaussian noise (GNMax, Papernot et al., arXiv:1802.08908).

    With a ``threshold`` in (0, 1], rows are told only where the largest count is, with noise ``test`` times as large,
    at least that share of all clients; the student does not learn the others (Confident GNMax). The bound holds
    whatever the votes are, as if every row were tested and told. The smaller one that depends on them is itself
    private: with ``smooth = False``, where a row is told by its own votes alone as in the paper, it is left to the
    server's owner in ``privacy_private.json``, and nowhere else.
    """
    if not 0 <= threshold <= 1:
        raise SpecError(f"protection 'gnmax': 'threshold' must be in [0, 1], got {threshold}.")
    _inside("gnmax", "test", test, 0, math.inf)
    return Protection(
        "votes", Unit.CLIENT, Neighbors.ZERO_OUT, *_CENTRAL, threshold=threshold, test=test, smooth=bool(smooth)
    )


@protection
def local(*, labels: int = 2, classes: int = 10) -> Protection:
    """Hide all that a client holds, from the server too: it says a class of few rows, and often another one.

    k-ary randomized response (Warner, 1965; in PrivateKT, Qi et al., 2023): of the rows asked in a round a client
    answers ``labels``, dealt in turn by a public shuffle, keeps the class of its model with odds e^epsilon_0 against
    any other of the ``classes``, and the server corrects shares for that. epsilon_0 follows from ``epsilon`` over all
    labels and rounds, so few labels that are mostly true are worth more than many that are mostly not.
    """
    _inside("local", "labels", labels, 0, math.inf)
    _inside("local", "classes", classes, 1, math.inf)
    return Protection("answers", Unit.CLIENT, Neighbors.REPLACE_ONE, *_LOCAL, labels=int(labels), classes=int(classes))


@protection
def local_gaussian() -> Protection:
    """Add Gaussian noise to a client's soft labels, on the client: a control that shows what it costs, not for use.

    All labels of a round are one vector that may become any other, sqrt(2 rows) away, and the noise on each single
    number is that times as large: with 400 rows and epsilon 8 a standard deviation of 17, on numbers from 0 to 1.
    """
    return Protection("labels", Unit.CLIENT, Neighbors.REPLACE_ONE, *_LOCAL)


@protection
def distributed(
    *, clip: float = 1.0, power: float = 0.25, balance: float = 0.1, least: float = 0.8, dropout: str = "robust"
) -> Protection:
    """Hide every client, also from the server: each adds a part of the noise, and only the masked sum is seen.

    Secure aggregation (Bonawitz et al., CCS 2017) of ballots that each client itself cuts and weighs as ``central``
    does, by ``clip``, or by ``power`` and ``balance``, with discrete Gaussian noise (Kairouz, Liu and Steinke,
    arXiv:2102.06387). ``least`` is the share of ``clients`` without whom there is no sum: the noise of as many
    suffices, so fewer may fail where it is high, and noise is more where it is low. Dropout 'robust' goes on without
    whoever is lost; 'strict' takes half as many exchanges, and the round is lost with a client that falls silent.
    """
    _inside("distributed", "clip", clip, 0, 1)
    _inside("distributed", "power", power, 0, 1)
    _inside("distributed", "balance", balance, 0, math.inf)
    _inside("distributed", "least", least, 0, 1)
    if dropout not in DROPOUTS:
        hint = did_you_mean(dropout, DROPOUTS)
        raise SpecError(
            f"protection 'distributed': 'dropout' must be one of {', '.join(DROPOUTS)}, got {dropout!r}.{hint}"
        )
    return Protection(
        "shares",
        Unit.CLIENT,
        Neighbors.ZERO_OUT,
        "anyone who sees teachers, students and what goes back to clients, and a server that follows the protocol",
        (
            "server and network follow the protocol and are only curious (semi-honest)",
            "of the clients in a sum, as many as make it up at the least add their noise and, but for one, do not tell",
            "keys are those of the clients: what the server passed on at first contact is believed ever after",
            *(("a client that refused a question does not send its ballot after all",) if dropout == "strict" else ()),
        ),
        ("whether a client takes part", "the time of messages", "other runs of the same clients"),
        clip=clip,
        power=power,
        balance=balance,
        least=least,
        dropout=dropout,
    )


ON_DEVICE = ("training", "answers", "labels", "shares")
"""Where noise is added by a client itself, so that its own ledger knows of it."""
ON_SERVER = ("mean", "votes")
"""Where the server adds it, whose ledger then knows."""
SAID = ("training", "answers", "labels")
"""Of these, where an answer says what it cost, and the server takes none that cost too much."""
DROPOUTS = ("strict", "robust")


_CENTRAL = (
    "anyone who sees teachers, students and what goes back to clients; not the server, which sees every ballot",
    ("the server is trusted and its operating system's entropy is sound", "a client answers at most once a round"),
    ("whether a client takes part", "the time of messages", "other runs of the same clients"),
)
_LOCAL = (
    "anyone who sees all that a client sends, the server and other clients included",
    ("a client's own device and its operating system's entropy are trusted",),
    (
        "whether a client takes part, and which rows it was to answer",
        "the time of messages; other runs on the same data, where no ledger is kept",
    ),
)


def check_classes(config: Config, classes: int) -> None:
    """Raise :class:`ConfigError` if the budget was computed for another number of classes than data has."""
    chosen = protection_of(config)
    if chosen.place == "answers" and chosen.classes != classes:
        raise ConfigError(
            f"protect: {config.protect!r} is for {chosen.classes} classes, and data has {classes}; "
            f"write local(classes={classes})"
        )


@dataclass(frozen=True)
class Spending:
    """What a run will do to the private data of one unit: what comes ``once``, and what comes in every ``round``.

    ``noise_multiplier`` is that of the mechanism which was fitted to the budget, of randomized response 1 / epsilon_0;
    ``steps`` are those of DP-SGD in a round.
    """

    protection: Protection
    once: tuple[Event, ...]
    round: tuple[Event, ...]
    noise_multiplier: float
    steps: int


def doubtful_delta(config: Config) -> list[str]:
    """Return a warning if ``delta`` is so large that the promise may fail for one of those that it is made to."""
    chosen = protection_of(config)
    if chosen.unit is None:
        return []
    units = config.clients * (chosen.examples if chosen.unit is Unit.EXAMPLE else 1)
    if config.delta * units < 1:
        return []
    return [f"delta = {config.delta:g} is not below 1 / {units:,} {chosen.unit}s: the promise may fail for one."]


def least_of(config: Config) -> int:
    """Return how many clients make a sum at the least (K_min), for ``protect = distributed``."""
    return math.ceil(protection_of(config).least * config.clients - 1e-9)


def rules_of(config: Config) -> Rules:
    """Return what a client holds to in masked rounds; both sides must have the same settings."""
    topic = hashlib.sha256(json.dumps(config.identity()).encode()).digest()
    return Rules(least_of(config), protection_of(config).dropout == "robust", topic)


def scale_of_round(config: Config, rows: int, classes: int) -> Scale:
    """Return what the vectors of a masked round about ``rows`` are measured in."""
    budget = spending(config)
    chosen = budget.protection
    return scale_of(
        rows,
        classes,
        noise_multiplier=budget.noise_multiplier,
        clip=chosen.clip,
        least=least_of(config),
        clients=config.clients,
        power=chosen.power,
        balance=chosen.balance if weighs(config) else 0.0,
    )


def weighs(config: Config) -> bool:
    """Say whether a client's rows count differently, by its expertise."""
    return parse(config.expertise)[0] != "uniform"


def numbers_of_round(config: Config, rows: int, classes: int) -> int:
    """Return how many numbers a vector of a masked round about ``rows`` has: with weights, one more a row."""
    return rows * (classes + weighs(config))


def protection_of(config: Config) -> Protection:
    """Return what ``config`` protects."""
    chosen: Protection = protection.build(config.protect)()
    return chosen


def steps_in_a_round(local_epochs: int, rate: float) -> int:
    """Return how many Poisson batches make about as many passes as ``local_epochs``."""
    return max(1, round(local_epochs / rate)) if local_epochs else 0


def spending(config: Config) -> Spending:
    """Return what a run of ``config`` costs, with noise so that the whole stays within ``epsilon`` and ``delta``."""
    return _planned(
        config.protect,
        config.epsilon,
        config.delta,
        config.rounds,
        steps_in_a_round(config.local_epochs, protection_of(config).rate),
        _sketch(config.expertise) if protection_of(config).place == "training" else (),
        least_of(config),
    )


def demand(config: Config, event: Event, who: str) -> None:
    """Raise :class:`PrivacyError` if a client that adds noise itself has done in a round what no budget covers.

    It may do less: take fewer steps, say fewer classes, or nothing in a round that it had to begin again.
    """
    if protection_of(config).place not in SAID or isinstance(event, NoOp):
        return
    (most,) = spending(config).round
    if not _covered(event, most):
        raise PrivacyError(f"{who} answered with {event}, which the budget does not cover; expected {most}")


def _covered(event: Event, most: Event) -> bool:
    """Say whether ``event`` is ``most``, with as much noise or more and as often or less."""
    match event, most:
        case SampledGaussian(), SampledGaussian():
            return event.rate <= most.rate and not event.fixed and _no_more(event, most)
        case Gaussian(), Gaussian():
            return _no_more(event, most)
        case RandomizedResponse(), RandomizedResponse():
            true = event.epsilon <= most.epsilon * (1 + 1e-9)
            return true and event.classes == most.classes and event.count <= most.count
    return False


def _no_more(event: Gaussian | SampledGaussian, most: Gaussian | SampledGaussian) -> bool:
    return event.noise_multiplier >= most.noise_multiplier * (1 - 1e-9) and event.count <= most.count


@lru_cache(maxsize=8)
def _planned(
    spec: str, epsilon: float, delta: float, rounds: int, steps: int, before: tuple[Event, ...], least: int
) -> Spending:
    chosen: Protection = protection.build(spec)()

    def times(rounds: int, noise: float) -> tuple[Event, ...]:
        return _events(chosen, noise, steps=steps, rounds=rounds, least=least)

    noise = noise_multiplier(epsilon, delta, lambda noise: [*before, *times(rounds, noise)])
    return Spending(chosen, before, times(1, noise), noise, steps)


def _events(chosen: Protection, noise: float, *, steps: int, rounds: int, least: int) -> tuple[Event, ...]:
    """Return what ``rounds`` rounds do to one unit, each kind of it counted together."""
    match chosen.place:
        case "training":
            return (SampledGaussian(chosen.rate, noise, max(1, steps * rounds)),)
        case "answers":
            return (RandomizedResponse(chosen.classes, 1 / noise, chosen.labels * rounds),)
        case "shares":
            return (distributed_event(noise, least, rounds),)
        case "votes" if chosen.threshold:
            return (Gaussian(noise, rounds), Gaussian(chosen.test * noise, rounds))
    return (Gaussian(noise, rounds),)


def _sketch(expertise: str) -> tuple[Event, ...]:
    name, options = parse(expertise)
    return (Gaussian(float(options.get("sigma", SIGMA))),) if name == "private_sketch" else ()


def _inside(member: str, option: str, value: float, low: float, high: float) -> None:
    if not low < value <= high:
        raise SpecError(f"protection {member!r}: {option!r} must be above {low} and at most {high:g}, got {value}.")
