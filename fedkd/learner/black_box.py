"""A model that is finished, wherever it runs: it says what it thinks, and learns nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedkd.errors import SoftLabelError, SpecError, did_you_mean
from fedkd.softlabels import Array, softmax

SCORES = ("logits", "probabilities")


def check_scores(learner: str, scores: str) -> None:
    """Raise :class:`SpecError` unless ``scores`` is what a black box can give."""
    if scores not in SCORES:
        hint = did_you_mean(scores, SCORES)
        raise SpecError(f"learner {learner!r}: 'scores' must be {' or '.join(SCORES)}, got {scores!r}.{hint}")


class BlackBox:
    """What ``ask`` says of inputs (n, ...), rows (n, C) of logits or probabilities, as soft labels."""

    parameters = 0

    def __init__(self, ask: Callable[[Array], Array], scores: str, place: str) -> None:
        """Take ``ask``, what its rows are (``scores``), and ``place``, where it is, for the words of an error."""
        self.ask, self.scores, self.place = ask, scores, place
        self.architecture = f"{ask!r}, {scores}"

    def fit(self, x: Array, y: Array, *, rng: np.random.Generator) -> None:
        """Learn nothing."""

    def distill(self, x: Array, p: Array, *, w: Array, rng: np.random.Generator) -> None:
        """Learn nothing."""

    def predict(self, x: Array) -> Array:
        """Return soft labels (n, C); raise :class:`SoftLabelError` for rows that are no probabilities."""
        z = self.ask(x)
        if self.scores == "logits":
            return np.asarray(softmax(z), np.float32)
        total = z.sum(axis=1, keepdims=True)
        if len(z) and not (z.min() >= 0 and np.abs(total - 1).max() <= 0.02):  # half precision is off by as much
            raise SoftLabelError(f"{self.place} must give probabilities; for logits say scores='logits'")
        return np.asarray(z / total, np.float32)

    def state(self) -> dict[str, Array]:
        """Return nothing: all that it knows is elsewhere."""
        return {}

    def load(self, state: dict[str, Array]) -> None:
        """Accept the nothing that :meth:`state` returned."""
