"""What does not go with a protection: whatever would read private data, or single ballots, beside the noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fedkd.protect import ON_DEVICE, ON_SERVER, Protection, least_of, protection_of
from fedkd.registry import parse, split
from fedkd.release import form

if TYPE_CHECKING:
    from fedkd.config import Config

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
    found = _ledger(config, chosen)
    if chosen.place == "nowhere":
        return found + (
            [f"epsilon: {config.epsilon:g} needs a protection, as in protect = 'dp_sgd'"] if config.epsilon else []
        )
    if not config.epsilon:
        found.append(f"epsilon: protect = {config.protect!r} needs a budget above 0, as in epsilon = 3.0")
    if config.keys != "samples":
        found.append(f"keys: {config.keys!r} are about private samples; protect = {config.protect!r} needs 'samples'")
    if config.attack != "none":
        found.append("attack: a guarantee is about honest clients; set attack = 'none' or protect = 'none'")
    return found + RULES[chosen.place](config, chosen)


def _ledger(config: Config, chosen: Protection) -> list[str]:
    """Return what is wrong with the server's ledger: it is for noise that the server adds."""
    if config.ledger_epsilon and not config.ledger:
        return ["ledger_epsilon: needs ledger, the folder that remembers what earlier runs have spent"]
    if not config.ledger:
        return []
    found = []
    if chosen.place not in ON_SERVER:
        whose = "is kept by the clients themselves" if chosen.place in ON_DEVICE else "has nothing to keep"
        found.append(f"ledger: that of protect = {config.protect!r} {whose}; leave ledger empty")
    if config.noise != "system":
        found.append("ledger: seeded noise is not private, so there is nothing to keep; leave ledger empty")
    if 0 < config.ledger_epsilon < config.epsilon:
        found.append(f"ledger_epsilon: {config.ledger_epsilon:g} has no room for a run of epsilon {config.epsilon:g}")
    return found


def _with_training(config: Config, chosen: Protection) -> list[str]:
    found, weighs = [], parse(config.expertise)[0]
    if config.evidence != "none":
        found.append(f"evidence: {config.evidence!r} reads private data beside the model; set evidence = 'none'")
    if weighs not in (*READS_ANSWERS, "private_sketch"):
        known = ", ".join((*READS_ANSWERS, "private_sketch"))
        found.append(f"expertise: {weighs!r} reads private data, which dp_sgd does not cover; use one of {known}")
    if not config.local_epochs:
        found.append("local_epochs: 0 learns nothing; dp_sgd needs at least 1")
    return found + [line for spec in split(config.learner, ",") for line in _untrainable(spec)]


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


def _with_sum(config: Config, chosen: Protection) -> list[str]:
    """Return what would read single ballots beside the noisy sum. What a client made them of is its own affair."""
    found = []
    if form(config.release).coding:
        coding = ", ".join(sorted(form(config.release).coding))
        found.append(f"release: {coding} makes sizes and checkpoints tell of single ballots; leave it out")
    if config.late:
        found.append("late: a client that answers late may be counted twice in a round; set late = false")
    if parse(config.feedback)[0] not in OF_ALL:
        found.append(f"feedback: {config.feedback!r} is made of single ballots; use one of {', '.join(OF_ALL)}")
    if config.record:
        found.append("record: keeps every ballot as it came, without noise; set record = false")
    if chosen.place == "mean" and form(config.release).weight_bits and parse(config.expertise)[0] != "uniform":
        found.append("release: levels of weights are longer for some clients than for others; leave 'weights' out")
    return found + (_alike(config) if chosen.place == "votes" else []) + _own_sum(config)


def _with_shares(config: Config, chosen: Protection) -> list[str]:
    found, least = [], least_of(config)
    if least < SMALLEST:
        found.append(f"least: a sum of {least} clients says too much of each; {SMALLEST} are needed at the least")
    if form(config.broadcast).coding & {"delta"}:
        found.append("broadcast: in a masked round all are told the same; leave 'delta' out")
    return found + _with_sum(config, chosen)


def _with_answers(config: Config, chosen: Protection) -> list[str]:
    encoding = form(config.release).encoding
    if chosen.place == "labels" and encoding not in ("float16", "float32"):
        return [f"release: {encoding} would cut noisy soft labels; use float16 or float32"]
    return _alike(config) + _own_sum(config)


def _alike(config: Config) -> list[str]:
    weighs = parse(config.expertise)[0]
    if weighs == "uniform":
        return []
    return [f"expertise: protect = {config.protect!r} counts every client alike; set expertise = 'uniform'"]


def _own_sum(config: Config) -> list[str]:
    found = []
    if config.aggregate != "mean":
        found.append(f"aggregate: protect = {config.protect!r} has its own sum; leave it at 'mean'")
    if config.defend != "none":
        found.append(f"defend: {config.defend!r} reads single ballots beside the noisy sum; set defend = 'none'")
    if config.labels != "none":
        found.append(f"labels: {config.labels!r} reads single ballots beside the noisy sum; set labels = 'none'")
    return found


RULES: dict[str, Callable[[Config, Protection], list[str]]] = {
    "training": _with_training,
    "shares": _with_shares,
    "mean": _with_sum,
    "votes": _with_sum,
    "answers": _with_answers,
    "labels": _with_answers,
}
"""Place of the noise to what must not be configured beside it."""
