"""Estimators of scikit-learn as learners: trees and linear models, refitted in each round."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

from fedkd.softlabels import Array, one_hot


def build(kind: str, classes: int, pseudo: float, **options: Any) -> SklearnLearner:
    """Return the learner ``kind`` for ``classes`` classes."""
    makers: dict[str, Callable[[int], Any]] = {
        "forest": lambda seed: ExtraTreesClassifier(options["trees"], random_state=seed, n_jobs=1, min_samples_leaf=1),
        "logistic": lambda seed: LogisticRegression(C=1.0 / options["penalty"], max_iter=200, random_state=seed),
        "boosting": lambda seed: HistGradientBoostingClassifier(max_iter=options["iterations"], random_state=seed),
    }
    spelled = f"{kind}({', '.join(f'{k}={v!r}' for k, v in options.items())})"
    return SklearnLearner(makers[kind], classes, spelled, pseudo)


def fresh(model: Any, seed: int) -> Any:
    """Return an untrained copy of a user's estimator, seeded where it can be."""
    copy = clone(model)
    if "random_state" in copy.get_params():
        copy.set_params(random_state=seed)
    return copy


class SklearnLearner:
    """An estimator that is fitted anew on the private data and on the rows that came back.

    It keeps no state: what came back is in every query, so nothing is lost by forgetting.
    """

    parameters = 0

    def __init__(self, make: Callable[[int], Any], classes: int, architecture: str, pseudo: float) -> None:
        """``make(seed)`` returns an untrained estimator; ``pseudo`` weighs distilled rows against private ones."""
        self.make, self.classes, self.architecture, self.pseudo = make, classes, architecture, pseudo
        self._taught: tuple[Array, Array, Array] | None = None
        self._model: Any = None
        self._only: Array = np.full(classes, 1 / classes, np.float32)

    def fit(self, x: Array, y: Array, *, rng: np.random.Generator) -> None:
        """Fit private data with what was distilled before; all of the latter weighs ``pseudo`` times the former."""
        flat, label, weight = _flat(x), y, np.ones(len(y))
        if self._taught is not None:
            x2, y2, w2 = self._taught
            flat, label = np.concatenate([flat, x2]), np.concatenate([label, y2])
            weight = np.concatenate([weight, w2 / w2.sum() * self.pseudo * len(y)])
        self._fit(flat, label, weight, rng)

    def distill(self, x: Array, p: Array, *, w: Array, rng: np.random.Generator) -> None:
        """Learn the most probable class of each row, counted by its probability: trees take no soft labels."""
        weight = (w * p.max(axis=1)).astype(np.float64)
        if not weight.sum() > 0:
            return
        self._taught = (_flat(x), p.argmax(axis=1), weight)
        self._fit(*self._taught, rng)

    def predict(self, x: Array) -> Array:
        """Return soft labels (n, C); classes that the model has never seen get 0."""
        if self._model is None:
            return np.tile(self._only, (len(x), 1))
        p = np.zeros((len(x), self.classes), np.float32)
        p[:, self._model.classes_] = self._model.predict_proba(_flat(x))
        return np.asarray(p / p.sum(axis=1, keepdims=True))

    def state(self) -> dict[str, Array]:
        """Return nothing: a round starts from the data."""
        return {}

    def load(self, state: dict[str, Array]) -> None:
        """Accept the nothing that :meth:`state` returned."""

    def _fit(self, x: Array, y: Array, weight: Array, rng: np.random.Generator) -> None:
        seen = np.unique(y)
        if len(seen) < 2:  # most estimators refuse one class; the answer is known anyway
            self._model, self._only = None, one_hot(seen[:1], self.classes)[0]
            return
        model = self.make(int(rng.integers(2**31)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an early stop of a solver is no news for the user of a federation
            model.fit(x, y, sample_weight=weight)
        self._model = model


def _flat(x: Array) -> Array:
    return x.reshape(len(x), -1)
