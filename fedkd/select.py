"""Which rows of the transfer set are asked in a round: ``(asked (M,), rng) -> sorted row indices``.

``asked`` counts how often each row was asked in the rounds before. No member sees a label, a teacher or a client.
"""

from __future__ import annotations

import numpy as np

from fedkd.errors import DataError
from fedkd.registry import Registry
from fedkd.softlabels import Array

select = Registry("selection")


@select
def all_(asked: Array, rng: np.random.Generator) -> Array:
    """Ask the whole transfer set in every round."""
    return np.arange(len(asked))


@select
def uniform(asked: Array, rng: np.random.Generator, *, size: int = 1000) -> Array:
    """Ask ``size`` random rows, drawn afresh in each round (DS-FL, arXiv:2008.06180)."""
    _fits(size, len(asked), "uniform")
    return np.sort(np.argsort(rng.random(len(asked)), kind="stable")[:size])


@select
def budget(asked: Array, rng: np.random.Generator, *, size: int = 1000) -> Array:
    """Ask ``size`` random rows among those asked least so far: no row is bought twice before each was bought once."""
    _fits(size, len(asked), "budget")
    return np.sort(np.lexsort((rng.random(len(asked)), asked))[:size])


def _fits(size: int, rows: int, name: str) -> None:
    if not 1 <= size <= rows:
        raise DataError(f"selection {name!r}: size must be in [1, {rows}], the rows of the transfer set; got {size}")
