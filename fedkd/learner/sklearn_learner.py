"""Estimators of scikit-learn as learners: trees and linear models, refitted in each round."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.utils.validation import has_fit_parameter

from fedkd.softlabels import Array, distinct, one_hot


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
    if not hasattr(model, "get_params"):
        return copy.deepcopy(model)  # no estimator of scikit-learn, but it fits and predicts like one
    made = clone(model)
    if "random_state" in made.get_params():
        made.set_params(random_state=seed)
    return made


class SklearnLearner:
    """An estimator that is fitted anew on the private data and on the rows that came back.

    It keeps no state: what came back is in every query, so nothing is lost by forgetting. An estimator whose ``fit``
    takes no ``sample_weight`` counts all rows alike.
    """

    parameters = 0
    refits = True

    def __init__(self, make: Callable[[int], Any], classes: int, architecture: str, pseudo: float) -> None:
        """``make(seed)`` returns an untrained estimator; ``pseudo`` weighs distilled rows against private ones."""
        self.make, self.classes, self.architecture, self.pseudo = make, classes, architecture, pseudo
        self._taught: tuple[Array, Array, Array] | None = None
        self._model: Any = None
        self._only: Array = np.full(classes, 1 / classes, np.float32)

    def fit(self, x: Array, y: Array, *, rng: np.random.Generator) -> None:
        """Fit private data with what was distilled before; all of the latter weighs ``pseudo`` times the former."""
        if not len(y):
            return  # a client without data knows what came back, if anything
        flat, label, weight = _flat(x), y, np.ones(len(y))
        if self._taught is not None and self.pseudo > 0:
            x2, y2, w2 = self._taught
            flat, label = np.concatenate([flat, x2]), np.concatenate([label, y2])
            weight = np.concatenate([weight, w2 / w2.sum() * self.pseudo * len(y)])
        self._fit(flat, label, weight, rng)

    def distill(self, x: Array, p: Array, *, w: Array, rng: np.random.Generator) -> None:
        """Learn the most probable class of each row, counted by its probability: trees take no soft labels."""
        counts = np.flatnonzero(w > 0)  # the other rows may hold anything, also NaN
        if not len(counts):
            return
        x, p, w = x[counts], p[counts], w[counts].astype(np.float64)
        self._taught = (_flat(x), p.argmax(axis=1), w / w.mean() * p.max(axis=1))
        self._fit(*self._taught, rng)

    def predict(self, x: Array) -> Array:
        """Return soft labels (n, C); classes that the model has never seen get 0."""
        if self._model is None:
            return np.tile(self._only, (len(x), 1))
        p = np.zeros((len(x), self.classes), np.float32)
        if len(x):  # estimators refuse no rows
            p[:, self._model.classes_] = self._model.predict_proba(_flat(x))
        return np.asarray(p / p.sum(axis=1, keepdims=True))

    def state(self) -> dict[str, Array]:
        """Return nothing: a round starts from the data."""
        return {}

    def load(self, state: dict[str, Array]) -> None:
        """Accept the nothing that :meth:`state` returned."""

    def _fit(self, x: Array, y: Array, weight: Array, rng: np.random.Generator) -> None:
        seen = distinct(y)
        if len(seen) < 2:  # most estimators refuse one class; the answer is known anyway
            self._model, self._only = None, one_hot(seen[:1], self.classes)[0]
            return
        model = self.make(int(rng.integers(2**31)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an early stop of a solver is no news for the user of a federation
            if has_fit_parameter(model, "sample_weight"):
                model.fit(x, y, sample_weight=weight)
            else:
                model.fit(x, y)
        self._model = model


def _flat(x: Array) -> Array:
    return x.reshape(len(x), -1)
