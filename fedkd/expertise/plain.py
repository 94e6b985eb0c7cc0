"""The registry of expertise, and the members that look at predictions only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedkd.errors import SpecError
from fedkd.events import Event
from fedkd.records import TransferSet
from fedkd.registry import Registry
from fedkd.softlabels import Array, entropy

expertise = Registry("expertise")

Expertise = Callable[..., Array]


@dataclass(frozen=True, eq=False)
class Weights:
    """How much each row counts ``w`` (n,), and what it cost the private data to say so."""

    w: Array
    event: Event


@expertise
def uniform(p: Array, rows: Array, transfer: TransferSet, private: Array, rng: np.random.Generator) -> Array:
    """Let every ballot count the same."""
    return np.ones(len(rows), np.float32)


@expertise
def confidence(
    p: Array, rows: Array, transfer: TransferSet, private: Array, rng: np.random.Generator, *, power: float = 1.0
) -> Array:
    """Count a ballot by its largest probability, to the given power."""
    above_zero("confidence", power=power)
    return np.asarray(p.max(axis=1) ** power, np.float32)


@expertise
def entropy_(
    p: Array, rows: Array, transfer: TransferSet, private: Array, rng: np.random.Generator, *, floor: float = 0.01
) -> Array:
    """Count a ballot by 1 / (H(p) / ln C + floor): certain ballots count more (FedGEMS uses 1/H, arXiv:2110.11027)."""
    above_zero("entropy", floor=floor)
    return np.asarray(1.0 / (entropy(p) / np.log(p.shape[1]) + floor), np.float32)


def above_zero(name: str, kind: str = "expertise", /, **options: float) -> None:
    """Raise unless every option of member ``name`` of the registry ``kind`` is above 0 and finite."""
    for option, value in options.items():
        if not 0 < value < np.inf:
            raise SpecError(f"{kind} {name!r}: {option!r} must be above 0 and finite, got {value}.")
