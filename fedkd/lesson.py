"""What the student makes of the teacher before it learns: own labels where nobody answered, rows that count less.

Members are functions ``(p (M, C), w (M,), own (M, C)) -> (p, w)`` on all rows of the transfer set: ``p`` is the
teacher, NaN where nobody answered, ``w`` how much a row counts, 0 there; ``own`` is what the student says itself, NaN
in the first round, when it knows nothing. A chain runs from the left: ``"self_train | confidence"``.
"""

from __future__ import annotations

import math

import numpy as np

from fedkd.errors import SpecError
from fedkd.registry import Registry
from fedkd.softlabels import Array, entropy, one_hot

lesson = Registry("lesson")


@lesson
def none(p: Array, w: Array, own: Array) -> tuple[Array, Array]:
    """Learn what the teacher says, where it says something, all rows alike."""
    return p, w


@lesson
def self_train(p: Array, w: Array, own: Array, *, share: float = 0.1, hard: bool = False) -> tuple[Array, Array]:
    """Learn the student's own labels too, on those unanswered rows where it is surest (PrivateKT, 2023).

    ``share`` of all rows are taken for sure, those of the lowest entropy; where the teacher answered, it stays.
    ``hard`` makes the student's labels one-hot, which tells it to be surer still.
    """
    if not 0 <= share <= 1:
        raise SpecError(f"lesson 'self_train': 'share' must be in [0, 1], got {share}.")
    label = one_hot(own.argmax(axis=-1), own.shape[-1], own.dtype) if hard else own
    taken = surest(own, share) & (w == 0)
    return np.where(taken[:, None], label, p).astype(p.dtype, copy=False), np.where(taken, 1, w).astype(w.dtype)


@lesson
def confidence(p: Array, w: Array, own: Array, *, power: float = 1.0) -> tuple[Array, Array]:
    """Count a row (1 - H(p) / ln C)^power times as much: a flat one says nothing, a one-hot one all."""
    if not 0 <= power < math.inf:
        raise SpecError(f"lesson 'confidence': 'power' must be at least 0 and finite, got {power}.")
    certain = np.clip(1 - entropy(p) / math.log(p.shape[-1]), 0, 1)
    return p, np.where(w > 0, w * np.where(np.isfinite(certain), certain, 0) ** power, 0).astype(w.dtype)


def surest(p: Array, share: float) -> Array:
    """Return which ``share`` in [0, 1] of the rows (M, C) has the lowest entropy, (M,) bool; ties: the lower row."""
    doubt = entropy(p)
    sure = np.zeros(len(p), bool)
    sure[np.argsort(doubt, kind="stable")[: math.floor(share * np.isfinite(doubt).sum())]] = True  # NaN comes last
    return sure


def study(chain: str, p: Array, w: Array, own: Array) -> tuple[Array, Array]:
    """Return targets (M, C) and weights (M,) after the parts of ``chain``, applied from the left."""
    for part in lesson.chain(chain):
        p, w = part(p, w, own)
    return p, w


def check(spec: str) -> None:
    """Raise :class:`SpecError` unless ``spec`` is a chain of lessons with options in range."""
    p = np.array([[0.6, 0.4], [np.nan, np.nan]])
    study(spec, p, np.array([1.0, 0.0]), np.array([[0.5, 0.5], [0.9, 0.1]]))
