"""What a student learns from: teachers of several rounds, and its own confident answers. Pure functions on soft labels.

Rows (M, C) of soft labels; a row of NaN is one that nobody answered.
"""

from __future__ import annotations

import math

import numpy as np

from fedkd.errors import SpecError
from fedkd.softlabels import Array, entropy, normalize, one_hot


def replay(p: Array, *, rounds: int = 25, decay: float = 0.0) -> Array:
    """Return one teacher (M, C) out of those of the last rounds, ``p`` (B, M, C) from the oldest to the newest.

    A teacher that is b rounds old counts ``decay`` ^ b: 0 is the newest that answered the row, 1 the plain mean. Only
    the last ``rounds`` are looked at, 25 in PrivateKT (Nat. Commun. 2023). Rows that none of them answered are NaN.
    """
    if rounds < 1:
        raise SpecError(f"`rounds` must be at least 1, got {rounds}")
    if not 0 <= decay <= 1:
        raise SpecError(f"`decay` must be in [0, 1], got {decay}")
    p = p[-rounds:]
    known = np.asarray(np.isfinite(p).all(axis=-1))
    age = np.arange(len(p))[::-1, None]
    newest = np.where(known, age, len(p)).min(axis=0)  # ages count from it: no power of a small decay may underflow
    weight = np.where(known, decay ** np.maximum(age - newest, 0.0), 0.0)
    return normalize(np.einsum("bm,bmc->mc", weight, np.where(known[..., None], p, 0.0))).astype(p.dtype, copy=False)


def confident(p: Array, *, share: float = 0.1) -> Array:
    """Return the ``share`` of the rows (M, C) that have the lowest entropy, as (M,) bool; ties go to the lower row.

    PrivateKT (Nat. Commun. 2023) trains on its own labels of the 10 % on which it is surest.
    """
    if not 0 <= share <= 1:
        raise SpecError(f"`share` must be in [0, 1], got {share}")
    doubt = entropy(p)
    sure = np.zeros(len(p), bool)
    sure[np.argsort(doubt, kind="stable")[: math.floor(share * np.isfinite(doubt).sum())]] = True  # NaN comes last
    return sure


def self_train(teacher: Array, student: Array, *, share: float = 0.1, hard: bool = False) -> Array:
    """Return the teacher (M, C) with the student's own labels on those unanswered rows where the student is surest.

    The student's ``share`` of confident rows is taken over all rows; where the teacher answered, it stays. ``hard``
    makes the student's labels one-hot, which tells it to be surer still.
    """
    own = one_hot(student.argmax(axis=-1), student.shape[-1], student.dtype) if hard else student
    taken = confident(student, share=share) & ~np.isfinite(teacher).all(axis=-1)
    return np.where(taken[:, None], own, teacher).astype(teacher.dtype, copy=False)


def confidence_weight(p: Array, *, power: float = 1.0) -> Array:
    """Return (1 - H(p) / ln C)^power, (M,) in [0, 1]: how much a row of the teacher counts. Unanswered rows count 0.

    A flat row says nothing, a one-hot row all; ``power`` 0 counts all answered rows the same.
    """
    if not 0 <= power < math.inf:
        raise SpecError(f"`power` must be at least 0 and finite, got {power}")
    certain = np.clip(1 - entropy(p) / math.log(p.shape[-1]), 0, 1)
    return np.where(np.isfinite(certain), certain**power, 0).astype(p.dtype, copy=False)
