"""What averaging weights would send with the same clients, to compare with: counted without importing torch."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedkd.client import spec_of
from fedkd.config import Config
from fedkd.learner import LEAST, learner
from fedkd.scoreboard import ALONE


@dataclass(frozen=True)
class FedAvg:
    """What averaging weights would send each way per client and round, float32; None where it is not known.

    ``of`` names the architecture; ``why`` says why FedAvg cannot run in this federation, or is not known.
    """

    each_way: int | None
    of: str = ""
    why: str = ""


def fedavg(config: Config, shape: tuple[int, ...], classes: int) -> FedAvg:
    """Return what FedAvg would send with the clients' architecture; with the student's where they have several."""
    specs = sorted({spec_of(config, k) for k in range(config.clients)})
    if config.clients == 1:
        why = ALONE
    elif len(specs) == 1:
        count = parameters(specs[0], shape, classes)
        if count is None:
            return FedAvg(None, specs[0], f"how many parameters {specs[0]} has, only torch can tell")
        if count:
            return FedAvg(4 * count, specs[0])
        why = f"{specs[0]} is refitted in each round, not averaged"
    else:
        why = f"{len(specs)} different architectures"
    count = parameters(config.student, shape, classes) if config.student != "none" else 0
    return FedAvg(4 * count if count else None, config.student if count else "", why)


def parameters(spec: str, shape: tuple[int, ...], classes: int) -> int | None:
    """Return how many numbers FedAvg would send of a learner: 0 if none, None if that takes more than arithmetic.

    Counts weights and biases of the networks in :mod:`fedkd.learner.models` without importing torch.
    """
    name = spec.partition(":")[0].partition("(")[0].strip()
    if name not in learner.names() or name == "torchvision":
        return None
    built = learner.build(spec)
    given = {p.name: p.default for p in inspect.signature(built.func).parameters.values()} | built.keywords
    if name == "mlp":
        return _dense([math.prod(shape), *[given["hidden"]] * given.get("layers", 1), classes])
    if name == "linear":
        return int((given["dimensions"] + 1) * classes)
    if name not in ("cnn", "lenet"):
        return 0
    if len(shape) != 3 or min(shape[1:]) < LEAST[name]:
        return None
    if name == "lenet":
        flat = 20 * math.prod(((side - 4) // 2 - 4) // 2 for side in shape[1:])
        return (25 * shape[0] + 1) * 10 + (25 * 10 + 1) * 20 + _dense([flat, 50, classes])
    width = given["width"]
    flat = 2 * width * math.prod(side // 4 for side in shape[1:])
    return int((9 * shape[0] + 1) * width + (9 * width + 1) * 2 * width + _dense([flat, given["hidden"], classes]))


def _dense(widths: Sequence[int]) -> int:
    """Return weights and biases of dense layers between ``widths``."""
    return sum((before + 1) * after for before, after in zip(widths, widths[1:], strict=False))
