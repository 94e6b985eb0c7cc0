"""Transfer sets whose labels are public: what the server may make of them. Arrays in, arrays out.

With ``labels = "none"``, the default, no label of the transfer set is ever read but to evaluate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedkd.errors import SpecError
from fedkd.registry import Registry
from fedkd.softlabels import Array, entropy, one_hot

labels = Registry("use of public labels")


@labels
def none() -> None:
    """Read no label of the transfer set: it is unlabeled."""


@dataclass(frozen=True)
class Gems:
    """The rules of FedGEMS (arXiv:2110.11027). ``mix`` is the share of the true label in what is taught."""

    mix: float

    def credit(self, p: Array, w: Array, y: Array) -> Array:
        """Return weights (K, M): 0 where a ballot ``p`` (K, M, C) is wrong, else ``w`` times softmax over k of 1 / H.

        Where all are wrong, all count as before: a row without a ballot would teach nothing.
        """
        right = (w > 0) & (np.where(w[..., None] > 0, p, 0).argmax(axis=-1) == y)
        sure = np.where(right, 1 / np.maximum(entropy(np.where(w[..., None] > 0, p, 1)), 0.01), -np.inf)
        top = sure.max(axis=0)
        score = np.exp(sure - np.where(np.isfinite(top), top, 0))
        share = score / np.maximum(score.sum(axis=0), np.finfo(float).tiny)
        return np.where(right.any(axis=0), w * share, w).astype(np.float32)

    def targets(self, student: Array, kept: Array, teacher: Array, y: Array) -> Array:
        """Return what the student learns (M, C): mix * label + (1 - mix) * t, and the label alone where it is right.

        ``student`` (M, C) is what it says now, ``kept`` (M, C) what it said when it was last right (NaN: never),
        ``teacher`` (M, C) the ensemble (NaN: unknown). t is ``kept`` where known, else the ensemble, else the label.
        """
        truth = one_hot(y, student.shape[1])
        soft = np.where(np.isfinite(kept), kept, np.where(np.isfinite(teacher), teacher, truth))
        right = student.argmax(axis=1) == y
        return np.where(right[:, None], truth, self.mix * truth + (1 - self.mix) * soft).astype(np.float32)

    def keep(self, student: Array, kept: Array, y: Array) -> Array:
        """Return ``kept`` (M, C) with what the student says now on the rows that it gets right."""
        right = student.argmax(axis=1) == y
        return np.where(right[:, None], student, kept).astype(np.float32)


@labels
def gems(*, mix: float = 0.75) -> Gems:
    """Believe only ballots that are right, ask only where the server is wrong (FedGEMS, arXiv:2110.11027)."""
    if not 0 <= mix <= 1:
        raise SpecError(f"use of public labels 'gems': 'mix' must be in [0, 1], got {mix}.")
    return Gems(mix)
