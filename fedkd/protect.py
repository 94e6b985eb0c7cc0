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

from fedkd.errors import PrivacyError, SpecError, did_you_mean
from fedkd.events import Event, Gaussian, Neighbors, NoOp, SampledGaussian, Unit
from fedkd.expertise.sketch import SIGMA
from fedkd.privacy.calibrate import noise_multiplier
from fedkd.privacy.distributed import Scale, scale_of
from fedkd.privacy.distributed import event as distributed_event
from fedkd.registry import Registry, parse, split
from fedkd.release import form
from fedkd.secagg.client import Rules

if TYPE_CHECKING:
    from fedkd.config import Config

protection = Registry("protection")


@dataclass(frozen=True)
class Protection:
    """What a protection bounds, and where: ``place`` is where noise is added.

    nowhere; training: every gradient step of a client; mean: the sum of all ballots, on the server; votes: the sum of
    all votes, on the server; shares: each client's part of the sum, before it is masked. ``open`` is what stays open.
    The rest are the member's own options.
    """

    place: str = "nowhere"
    unit: Unit | None = None
    neighbors: Neighbors | None = None
    adversary: str = ""
    assumptions: tuple[str, ...] = ()
    open: tuple[str, ...] = ()
    rate: float = 1.0
    clip: float = 1.0
    examples: int = 1
    step: float = 1.0
    least: float = 1.0
    dropout: str = "strict"


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
        rate,
        clip,
        examples,
        step,
    )


@protection
def central(*, clip: float = 1.0) -> Protection:
    """Hide every client: the server cuts each one's ballots as a whole, sums them and adds Gaussian noise.

    ``clip`` is in units of the longest that the ballots of one client can be, so that 1 cuts nothing. The noisy mean is
    then smoothed over samples that look alike, which costs nothing. The server is trusted; all else is not.
    """
    _inside("central", "clip", clip, 0, 1)
    return Protection("mean", Unit.CLIENT, Neighbors.ZERO_OUT, *_CENTRAL, clip=clip)


@protection
def gnmax() -> Protection:
    """Hide every client: the server counts votes with Gaussian noise (GNMax, Papernot et al., arXiv:1802.08908).

    The bound holds whatever the votes are; the smaller one that depends on them is itself private and not reported.
    """
    return Protection("votes", Unit.CLIENT, Neighbors.ZERO_OUT, *_CENTRAL)


@protection
def distributed(*, clip: float = 1.0, least: float = 0.8, dropout: str = "strict") -> Protection:
    """Hide every client, also from the server: each adds a part of the noise, and only the masked sum is seen.

    Secure aggregation (Bonawitz et al., CCS 2017) of ballots that are cut as in ``central``, with discrete Gaussian
    noise (Kairouz, Liu and Steinke, arXiv:2102.06387). ``least`` is the share of ``clients`` without whom there is no
    sum: the noise of as many suffices, so fewer may fail where it is high, and noise is more where it is low. With
    dropout 'strict' a client that is lost while masks are taken off costs the round; 'robust' survives that, with
    secrets shared in one more exchange, and also holds against a server that lies about who is gone.
    """
    _inside("distributed", "clip", clip, 0, 1)
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
            "of the clients in a sum, as many as make it up at the least add their noise and do not tell it",
            "keys are those of the clients: what the server passed on at first contact is believed ever after",
        ),
        ("whether a client takes part", "the time of messages", "other runs of the same clients"),
        clip=clip,
        least=least,
        dropout=dropout,
    )


ON_DEVICE = ("training", "shares")
"""Where noise is added by a client itself, so that its own ledger knows of it."""
DROPOUTS = ("strict", "robust")


_CENTRAL = (
    "anyone who sees teachers, students and what goes back to clients; not the server, which sees every ballot",
    ("the server is trusted and its operating system's entropy is sound", "a client answers at most once a round"),
    ("whether a client takes part", "the time of messages", "other runs of the same clients"),
)


TRAINABLE = ("linear", "cnn", "lenet", "mlp", "torchvision")
"""Learners that can learn by DP-SGD. What a user's own ``module:function`` returns is seen when it is made."""
MIXING = ("resnet", "wide_resnet", "resnext", "densenet", "efficientnet", "mobilenet", "mnasnet", "regnet",
          "shufflenet", "googlenet", "inception")  # fmt: skip
"""Families of torchvision that have BatchNorm, as have all whose name ends in ``_bn``."""
READS_ANSWERS = ("uniform", "confidence", "entropy")
"""Expertise that reads a client's soft labels and nothing else of its data."""
SMALLEST = 3
"""The fewest clients in a sum: of two, each would know what the other has added."""
OF_ALL = ("none", "teacher", "student")
"""Feedback that is made of the noisy sum and of nothing else."""


def contradictions(config: Config) -> list[str]:
    """Return what in ``config`` does not go with its protection, a line each."""
    chosen = protection_of(config)
    if chosen.place == "nowhere":
        return [f"epsilon: {config.epsilon:g} needs a protection, as in protect = 'dp_sgd'"] if config.epsilon else []
    found = []
    if not config.epsilon:
        found.append(f"epsilon: protect = {config.protect!r} needs a budget above 0, as in epsilon = 3.0")
    if config.keys != "samples":
        found.append(f"keys: {config.keys!r} are about private samples; protect = {config.protect!r} needs 'samples'")
    if config.attack != "none":
        found.append("attack: a guarantee is about honest clients; set attack = 'none' or protect = 'none'")
    if config.evidence != "none":
        found.append(f"evidence: {config.evidence!r} reads private data beside the model; set evidence = 'none'")
    weighs = parse(config.expertise)[0]
    if chosen.place == "training":
        if weighs not in (*READS_ANSWERS, "private_sketch"):
            known = ", ".join((*READS_ANSWERS, "private_sketch"))
            found.append(f"expertise: {weighs!r} reads private data, which dp_sgd does not cover; use one of {known}")
        if not config.local_epochs:
            found.append("local_epochs: 0 learns nothing; dp_sgd needs at least 1")
        for spec in split(config.learner, ","):
            found += _untrainable(spec)
        return found
    if form(config.release).coding:
        coding = ", ".join(sorted(form(config.release).coding))
        found.append(f"release: {coding} makes sizes and checkpoints tell of single ballots; leave it out")
    if config.late:
        found.append("late: a client that answers late may be counted twice in a round; set late = false")
    if chosen.place == "shares":
        least = least_of(config)
        if least < SMALLEST:
            found.append(f"least: a sum of {least} clients says too much of each; {SMALLEST} are needed at the least")
        if form(config.broadcast).coding & {"delta"}:
            found.append("broadcast: in a masked round all are told the same; leave 'delta' out")
    if weighs != "uniform":
        found.append(f"expertise: protect = {config.protect!r} counts every client alike; set expertise = 'uniform'")
    if config.aggregate != "mean":
        found.append(f"aggregate: protect = {config.protect!r} has its own sum; leave it at 'mean'")
    if config.defend != "none":
        found.append(f"defend: {config.defend!r} reads single ballots beside the noisy sum; set defend = 'none'")
    if parse(config.feedback)[0] not in OF_ALL:
        found.append(f"feedback: {config.feedback!r} is made of single ballots; use one of {', '.join(OF_ALL)}")
    if config.labels != "none":
        found.append(f"labels: {config.labels!r} reads single ballots beside the noisy sum; set labels = 'none'")
    if config.record:
        found.append("record: keeps every ballot as it came, without noise; set record = false")
    return found


def _untrainable(spec: str) -> list[str]:
    """Return why a learner cannot learn by DP-SGD, as far as its name tells."""
    if ":" in spec.partition("(")[0]:
        return []
    name, options = parse(spec)
    if name not in TRAINABLE:
        return [f"learner: {name!r} cannot learn by DP-SGD; use one of {', '.join(TRAINABLE)}"]
    network = str(options.get("name", "resnet18"))
    if name == "torchvision" and (network.startswith(MIXING) or network.endswith("_bn")):
        return [f"learner: {network!r} has BatchNorm, which mixes examples; use one without, such as 'squeezenet1_1'"]
    return []


@dataclass(frozen=True)
class Spending:
    """What a run will do to the private data of one unit: what comes ``once``, and what comes in every ``round``.

    ``noise_multiplier`` is that of the mechanism which was fitted to the budget; ``steps`` are those of DP-SGD in a
    round.
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
    return scale_of(
        rows,
        classes,
        noise_multiplier=budget.noise_multiplier,
        clip=budget.protection.clip,
        least=least_of(config),
        clients=config.clients,
    )


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
        _sketch(config.expertise),
        least_of(config),
    )


def demand(config: Config, event: Event, who: str) -> None:
    """Raise :class:`PrivacyError` if a client of ``dp_sgd`` has done in a round what the budget does not cover.

    It may do less: take fewer steps, or none in a round that it had to begin again.
    """
    if protection_of(config).place != "training" or isinstance(event, NoOp):
        return
    (most,) = spending(config).round
    covered = (
        isinstance(event, SampledGaussian)
        and isinstance(most, SampledGaussian)
        and event.rate <= most.rate
        and event.noise_multiplier >= most.noise_multiplier * (1 - 1e-9)
        and event.count <= most.count
        and not event.fixed
    )
    if not covered:
        raise PrivacyError(f"{who} answered with {event}, which the budget does not cover; expected {most}")


@lru_cache(maxsize=8)
def _planned(
    spec: str, epsilon: float, delta: float, rounds: int, steps: int, before: tuple[Event, ...], least: int
) -> Spending:
    chosen: Protection = protection.build(spec)()

    def once(noise: float, times: int) -> Event:
        if chosen.place == "training":
            return SampledGaussian(chosen.rate, noise, max(1, steps * times))
        return distributed_event(noise, least, times) if chosen.place == "shares" else Gaussian(noise, times)

    noise = noise_multiplier(epsilon, delta, lambda noise: [*before, once(noise, rounds)])
    return Spending(chosen, before, (once(noise, 1),), noise, steps)


def _sketch(expertise: str) -> tuple[Event, ...]:
    name, options = parse(expertise)
    return (Gaussian(float(options.get("sigma", SIGMA))),) if name == "private_sketch" else ()


def _inside(member: str, option: str, value: float, low: float, high: float) -> None:
    if not low < value <= high:
        raise SpecError(f"protection {member!r}: {option!r} must be above {low} and at most {high:g}, got {value}.")
