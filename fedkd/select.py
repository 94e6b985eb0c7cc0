"""Which rows of the transfer set a round asks for: functions ``(pool, rng) -> Selection`` of sorted rows.

``pool`` is what the server knows: how often each row was asked, the newest teacher on it, what the student says. No
member sees a client or a private label.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedkd.errors import DataError
from fedkd.memory import Pool
from fedkd.registry import Registry
from fedkd.softlabels import Array, distinct, entropy

select = Registry("selection")


@dataclass(frozen=True, eq=False)
class Selection:
    """Rows to ``ask`` clients for, and rows to ``learn`` from in this round; both sorted.

    ``forget`` are rows whose fresh teacher is used once and not kept.
    """

    ask: Array
    learn: Array
    forget: Array


@select
def all_(pool: Pool, rng: np.random.Generator) -> Selection:
    """Ask the whole transfer set in every round."""
    return _ask(np.arange(len(pool)))


@select
def uniform(pool: Pool, rng: np.random.Generator, *, size: int = 1000) -> Selection:
    """Ask ``size`` random rows, drawn afresh in each round (DS-FL, arXiv:2008.06180)."""
    _fits(size, len(pool), "uniform")
    return _ask(_draw(rng, len(pool), size))


@select
def fixed(pool: Pool, rng: np.random.Generator, *, size: int = 1000) -> Selection:
    """Ask the same ``size`` rows in every round, which deltas need (CFD, arXiv:2012.00632).

    They are the first of the transfer set, whose order is random where it was cut from data.
    """
    _fits(size, len(pool), "fixed")
    return _ask(np.arange(size))


@select
def budget(pool: Pool, rng: np.random.Generator, *, size: int = 1000) -> Selection:
    """Ask ``size`` random rows among those asked least so far: no row is bought twice before each was bought once."""
    _fits(size, len(pool), "budget")
    return _ask(np.sort(np.lexsort((rng.random(len(pool)), pool.memory.asked))[:size]))


@select
def cache_miss(
    pool: Pool, rng: np.random.Generator, *, size: int = 1000, duration: int = 50, store: bool = True
) -> Selection:
    """Draw ``size`` random rows and ask only those without a teacher of the last ``duration`` rounds (SCARLET).

    The others are learned from the server's cache (arXiv:2504.19602). The authors' code uses a row that replaces an
    expired one, but does not store it, so it is bought again when it is drawn next: ``store = False``.
    """
    _fits(size, len(pool), "cache_miss")
    rows = _draw(rng, len(pool), size)
    stamp = pool.memory.stamp[rows]
    expired = (stamp > 0) & (pool.round - stamp > duration)
    ask = rows[(stamp == 0) | expired]
    return Selection(ask, rows, rows[:0] if store else rows[expired])


@select
def uncertain(pool: Pool, rng: np.random.Generator, *, size: int = 1000) -> Selection:
    """Ask rows with probability proportional to exp(H) of the student's soft labels, without replacement.

    PrivateKT's importance sampling (Nat. Commun. 2023). Before the first lesson all rows are alike.
    """
    _fits(size, len(pool), "uncertain")
    if pool.answer is None:
        raise DataError("selection 'uncertain' needs a student, got student = 'none'")
    everything = np.arange(len(pool))
    doubt = entropy(pool.answer(everything)) if pool.memory.stamp.any() else np.zeros(len(pool))
    # The largest of H + Gumbel noise are a draw without replacement in proportion to exp(H) (Gumbel top-k).
    return _ask(np.sort(np.argsort(-(doubt + rng.gumbel(size=len(pool))), kind="stable")[:size]))


@select
def balanced(pool: Pool, rng: np.random.Generator, *, size: int = 1000) -> Selection:
    """Ask as many rows of each class that the student sees as there are, up to ``size`` in all."""
    _fits(size, len(pool), "balanced")
    if pool.answer is None:
        raise DataError("selection 'balanced' needs a student, got student = 'none'")
    everything = np.arange(len(pool))
    seen = pool.answer(everything).argmax(axis=1) if pool.memory.stamp.any() else np.zeros(len(pool), np.int64)
    order = rng.permutation(len(pool))
    turn = np.empty(len(pool), np.int64)  # the how-manieth of its class a row is, in random order
    for label in distinct(seen):
        members = order[seen[order] == label]
        turn[members] = np.arange(len(members))
    return _ask(np.sort(order[np.argsort(turn[order], kind="stable")[:size]]))


@select
def wrong(pool: Pool, rng: np.random.Generator, *, size: int = 1000) -> Selection:
    """Ask up to ``size`` random rows that the student gets wrong; needs public labels (FedGEMS, arXiv:2110.11027)."""
    _fits(size, len(pool), "wrong")
    if pool.wrong is None:
        raise DataError("selection 'wrong' needs public labels of the transfer set, as in labels = 'gems'")
    rows = np.flatnonzero(pool.wrong())
    ask = np.sort(rng.permutation(rows)[:size])
    return Selection(ask, np.arange(len(pool)), ask[:0])


def _ask(rows: Array) -> Selection:
    return Selection(rows, rows, rows[:0])


def _draw(rng: np.random.Generator, rows: int, size: int) -> Array:
    return np.sort(np.argsort(rng.random(rows), kind="stable")[:size])


def _fits(size: int, rows: int, name: str) -> None:
    if not 1 <= size <= rows:
        raise DataError(f"selection {name!r}: size must be in [1, {rows}], the rows of the transfer set; got {size}")
