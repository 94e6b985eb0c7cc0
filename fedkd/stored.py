"""Data sets by their measures alone, as far as that needs no look at them: what plans and trials are made of."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace

from fedkd import dataset, transfer
from fedkd.config import Config
from fedkd.errors import DataError
from fedkd.registry import parse


@dataclass(frozen=True)
class Stored:
    """A data set by its measures: train ``rows``, the ``shape`` of one, ``classes``, bytes of a value as it is kept."""

    rows: int
    shape: tuple[int, ...]
    classes: int
    width: int = 1


KNOWN = {
    "digits": Stored(1397, (1, 8, 8), 10, 4),
    "mnist": Stored(60_000, (1, 28, 28), 10),
    "fashion_mnist": Stored(60_000, (1, 28, 28), 10),
    "cifar10": Stored(50_000, (3, 32, 32), 10),
    "cifar100": Stored(50_000, (3, 32, 32), 100),
}
"""Data sets whose measures need no look at their files."""
TORCHVISION = {
    "MNIST": KNOWN["mnist"],
    "FashionMNIST": KNOWN["mnist"],
    "KMNIST": KNOWN["mnist"],
    "CIFAR10": KNOWN["cifar10"],
    "CIFAR100": KNOWN["cifar100"],
}


def measures(spec: str, *, labeled: bool = False) -> Stored:
    """Return rows, shape and classes of a data set: from a table where they are known, else by loading it."""
    built = dataset.dataset.build(spec)
    name, _ = parse(spec)
    if name in KNOWN:
        return KNOWN[name]
    if name == "torchvision" and built.keywords.get("name", "MNIST") in TORCHVISION:
        return TORCHVISION[built.keywords.get("name", "MNIST")]
    whole = dataset.load(spec) if labeled else dataset.read(spec)
    return Stored(len(whole.x), whole.x.shape[1:], whole.classes, whole.x.dtype.itemsize)


def transfer_measures(config: Config, data: Stored) -> Stored:
    """Return the measures of the transfer set."""
    built = transfer.check(config.transfer)
    if not transfer.is_cut(config.transfer):
        return measures(config.transfer)
    rows = int(built.keywords.get("size", inspect.signature(built.func).parameters["size"].default))
    if not 1 <= rows < data.rows:
        raise DataError(
            f"transfer {config.transfer!r}: size must be in [1, {data.rows - 1}] for {data.rows} train rows, got {rows}"
        )
    return replace(data, rows=rows)
