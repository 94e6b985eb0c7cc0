"""Softmax regression on fixed public features, also with differential privacy: numpy alone, and quick.

The gradient of one example is the outer product of its row and its error, so its norm is the product of two norms: what
DP-SGD clips costs nothing to know. What else keeps the loss small is public, and so free: the features
(:mod:`fedkd.features`), their whitened principal components in the transfer set (:meth:`LinearLearner.see`), where
noise falls on few directions and on all alike, and the curvature there, by which every step is divided.
"""

from __future__ import annotations

import dataclasses
import hashlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedkd.errors import CheckpointError, PrivacyError, SpecError
from fedkd.events import Event, SampledGaussian
from fedkd.features import CHUNK, SIDE, build, in_pieces
from fedkd.learner.protocol import Training, check_steps
from fedkd.privacy.noise import Entropy
from fedkd.softlabels import Array, one_hot, softmax

CONSTANT = np.float32(1 / 3)
"""What the constant coordinate is to the length of the others, before rows get length 1."""

RIDGE = 0.03
"""Added to the curvature, relative to its mean: directions in which public rows hardly differ are not blown up."""


@dataclass(frozen=True, eq=False)
class Space:
    """Principal components of public rows: the mean (D,), whitening directions (D, d), moments (d + 1, d + 1).

    ``moments`` are the mean products of the coordinates of :meth:`rows`.
    """

    center: Array
    basis: Array
    moments: Array

    def equals(self, other: Space) -> bool:
        """Say whether rows in both are the same."""
        return np.array_equal(self.basis, other.basis) and np.array_equal(self.center, other.center)

    def rows(self, z: Array) -> Array:
        """Return rows (n, d + 1) of length 1 for features ``z`` (n, D)."""
        return _unit((z - self.center) @ self.basis)


@dataclass(frozen=True, eq=False)
class Seen:
    """The public inputs (n, ...) seen last: the place of each by its hash, their space, their rows (n, d + 1) in it."""

    source: weakref.ref[Array]
    kind: tuple[np.dtype[Any], tuple[int, ...]]
    places: dict[bytes, int]
    order: list[int]
    space: Space
    rows: Array

    @staticmethod
    def of(x: Array, space: Space, rows: Array) -> Seen:
        """Remember ``x``."""
        rows.flags.writeable = False  # learners share them
        places: dict[bytes, int] = {}
        order = [places.setdefault(name, i) for i, name in enumerate(_names(x))]
        return Seen(weakref.ref(x), (x.dtype, x.shape[1:]), places, order, space, rows)

    def is_of(self, x: Array) -> bool:
        """Say whether these are the inputs ``x``, in their order."""
        return self.source() is x or (len(x) == len(self.rows) and self.find(x) is self.rows)

    def find(self, x: Array) -> Array | None:
        """Return the rows of ``x`` if all of it was seen, in whatever order."""
        if (x.dtype, x.shape[1:]) != self.kind:
            return None
        places = []
        for name in _names(x):  # of private inputs the first is unknown already
            if name not in self.places:
                return None
            places.append(self.places[name])
        return self.rows if places == self.order else self.rows[np.array(places, np.intp)]


_SEEN: dict[str, Seen] = {}
"""The transfer set seen last, by architecture: the clients of one process share it."""


class LinearLearner:
    """Softmax regression whose rows all have length 1, so that no example weighs more than another.

    Without :meth:`see` the features themselves are the row. ``temperature`` above 1 keeps what a noisy model predicts
    from being all certain, so that a mean of many models, sharpened again, is the mean of their logits.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int,
        training: Training,
        *,
        features: str | Callable[[Array], Array] = "shapes",
        dimensions: int = 100,
        temperature: float = 1.0,
    ) -> None:
        """Start from no opinion. Fewer ``dimensions`` have less noise, more know more; inputs of few pixels are raw.

        ``features`` names some of :mod:`fedkd.features`, or is a function of the same kind.
        """
        if isinstance(features, str):
            image = len(shape) == 3 and min(shape[1:]) >= SIDE
            self.features = build(features if image else "raw")
        else:
            self.features = features
        try:
            width = self.features(np.zeros((1, *shape), np.float32)).shape[1]
        except (TypeError, ValueError, IndexError) as error:
            raise SpecError(f"learner 'linear': features {features!r} cannot read inputs {shape}: {error}") from None
        self.classes, self.training = classes, training
        self.dimensions, self.temperature = dimensions, temperature
        self.space: Space | None = None
        self.tainted = False
        self.weights = np.zeros((width + 1, classes), np.float32)
        self.parameters = self.weights.size
        self.architecture = f"linear({features=}, {dimensions=})"
        self._width = width

    def see(self, x: Array) -> None:
        """Take up PUBLIC inputs ``x`` (n, ...): their leading principal components are what the model works in.

        Starts the model anew, unless it has seen these inputs before. Nobody may change ``x`` after that.
        """
        known = _SEEN.get(self.architecture)
        if known is None or not known.is_of(x):
            for other in [name for name, seen in _SEEN.items() if not seen.is_of(x)]:
                del _SEEN[other]  # one transfer set at a time is what a process serves
            known = _SEEN[self.architecture] = Seen.of(x, *_space(self._features(x), self.dimensions))
        before, self.space = self.space, known.space
        if before is not None and before.equals(self.space):
            return
        space = self.space
        self.weights = np.zeros((space.basis.shape[1] + 1, self.classes), np.float32)
        self.parameters = self.weights.size

    def fit(self, x: Array, y: Array, *, rng: np.random.Generator) -> None:
        """Learn private labels without any privacy, for ``training.epochs`` steps."""
        if len(y):
            self.tainted = True
            self._descend(self.rows(x), one_hot(y, self.classes), np.ones(len(y)), self.training.epochs)

    def distill(self, x: Array, p: Array, *, w: Array, rng: np.random.Generator) -> None:
        """Learn soft labels of public inputs, for ``training.distill_epochs`` steps: no privacy is spent."""
        counts = np.flatnonzero(w > 0)  # the other rows may hold anything, also NaN
        if len(counts):
            taught = x if len(counts) == len(x) else x[counts]
            self._descend(self.rows(taught), p[counts], w[counts], self.training.distill_epochs)

    def fit_private(
        self,
        x: Array,
        y: Array,
        *,
        rate: float,
        clip: float,
        noise_multiplier: float,
        steps: int,
        expected_batch: float,
        entropy: Entropy,
        step: float = 1.5,
    ) -> Event:
        """Learn private labels by ``steps`` steps of DP-SGD (Abadi et al., arXiv:1607.00133) and return what it cost.

        In each step every example takes part by its own coin with probability ``rate`` (a step in which none does is
        one too), gradients are scaled down to length ``clip`` (none is longer than 1.42), and Gaussian noise of
        ``noise_multiplier`` * ``clip`` falls on each coordinate of their sum. Neighbors differ by one example added or
        removed.

        The sum is divided by ``expected_batch``, which must be public: with these neighbors the number of private
        examples is itself private, and a step whose length depends on it would tell it. Take ``rate`` times a number
        that holds for the whole federation, or that was released with noise and accounted. A wrong one is no
        privacy loss, only a longer or shorter step.

        Directions are divided by the curvature of the public rows that :meth:`see` got, which is post-processing;
        ``step`` is the share of Newton's step from no opinion that the first one goes. Steps shrink to nothing, so that
        the last noise, which nothing corrects, moves the model least.
        """
        check_steps(rate, clip, noise_multiplier, steps, expected_batch, step)
        if self.tainted:
            raise PrivacyError("this model has learned private data without noise: start a new one to fit privately")
        v = self.rows(x)
        invert = self._public_curvature()
        weights, taken = self.weights.astype(np.float64), 0
        v, lengths, wide = _measured(v)
        for t in range(steps):
            chosen = slice(None) if rate == 1 else np.flatnonzero(entropy.coins(len(v), rate))
            rows = v[chosen], y[chosen], weights.astype(np.float32), clip, lengths[chosen], wide[chosen]
            total = clipped_sum(*rows)
            total += noise_multiplier * clip * entropy.normals(total.shape)
            taken += 1
            length = step * (1 - t / steps) * self.classes / expected_batch
            weights -= length * (total if invert is None else invert @ total)
        self.weights = weights.astype(np.float32)
        return SampledGaussian(rate=float(rate), noise_multiplier=float(noise_multiplier), count=taken)

    def predict(self, x: Array) -> Array:
        """Return soft labels (n, C)."""
        known = self._known(x)
        chunks = [slice(i, i + CHUNK) for i in range(0, max(len(x), 1), CHUNK)]
        parts = [(self.rows(x[one]) if known is None else known[one]) @ self.weights for one in chunks]
        return np.asarray(softmax(np.concatenate(parts), temperature=self.temperature), np.float32)

    def state(self) -> dict[str, Array]:
        """Return the weights, the space that they are of, and whether they know private data."""
        state = {"weights": self.weights, "tainted": np.array(self.tainted)}
        return state if self.space is None else {**state, **dataclasses.asdict(self.space)}

    def load(self, state: dict[str, Array]) -> None:
        """Take up weights and their space."""
        if not state:
            return
        space = Space(state["center"], state["basis"], state["moments"]) if "basis" in state else None
        width = self._width if space is None else space.basis.shape[1]
        weights = state.get("weights", np.empty(0))
        if weights.shape != (width + 1, self.classes) or (space and len(space.basis) != self._width):
            raise CheckpointError(f"this state is not one of {self.architecture}: weights of shape {weights.shape}")
        same = (one.space for one in _SEEN.values() if space and space.equals(one.space))
        self.space = next(same, space)  # whose rows are known
        self.weights, self.tainted = weights, bool(state.get("tainted", True))
        self.parameters = weights.size

    def rows(self, x: Array) -> Array:
        """Return what the model sees of inputs: rows (n, d + 1) of length 1, the last coordinate from a constant."""
        if self.space is None:
            return _unit(self._features(x))
        known = self._known(x)
        return self.space.rows(self._features(x)) if known is None else known

    def _known(self, x: Array) -> Array | None:
        """Return the rows of ``x`` if it is of the public inputs seen last: all of them, or those that a round asks."""
        return next((seen.find(x) for seen in _SEEN.values() if seen.space is self.space), None)

    def _features(self, x: Array) -> Array:
        return in_pieces(self.features, x)

    def _public_curvature(self) -> Array | None:
        """Return the inverse of the public rows' second moments (d + 1, d + 1), or nothing where none were seen."""
        return None if self.space is None else np.asarray(np.linalg.inv(_ridged(self.space.moments)))

    def _descend(self, v: Array, p: Array, w: Array, steps: int) -> None:
        """Minimize the cross entropy of soft labels ``p`` (n, C) by accelerated steps over all rows.

        Half the rows' second moments bound the curvature from above everywhere (Böhning, 1992): no rate to choose.
        As many public rows as there are dimensions count beside them. A few steps then go far only in directions of
        which a client has examples enough: without that, as many examples as dimensions are learned by heart.
        """
        w = (w / w.sum()).astype(np.float32)[:, None]
        moments = v.T @ (w * v)
        if self.space is not None:
            moments += self.space.moments * (v.shape[1] / len(v))
        factor = 2 * np.linalg.inv(_ridged(moments, ridge=1e-4)).astype(np.float32)
        before, ahead = self.weights, self.weights
        for t in range(steps):
            now = ahead - factor @ (v.T @ (w * (softmax(v @ ahead) - p)))
            before, ahead = now, now + (t / (t + 3)) * (now - before)  # Nesterov's momentum
        self.weights = np.asarray(before, np.float32)


def clipped_sum(
    v: Array, y: Array, weights: Array, clip: float, lengths: Array | None = None, wide: Array | None = None
) -> Array:
    """Return the sum (d, C) of the examples' gradients of cross entropy, each of Euclidean norm at most ``clip``.

    The gradient of one is v (p - y)^T, whose norm is ||v|| ||p - y||: no gradient of an example is ever formed. Rows
    whose ``lengths`` are given, and which are known to be finite, need not be measured in each step; ``wide`` are the
    rows in double precision.
    """
    if lengths is None or wide is None:
        v, lengths, wide = _measured(v)
    error = softmax(v @ weights)
    error[np.arange(len(y)), y] -= 1
    norm = lengths * np.sqrt(np.einsum("nc,nc->n", error, error))
    # A hair less than the clip, for what rounding adds; the sum in double precision, where that adds nothing.
    cut = error * np.minimum(1, clip * (1 - 1e-6) / np.maximum(norm, 1e-30))[:, None]
    return np.asarray(wide.T @ cut.astype(np.float64))


def _measured(v: Array) -> tuple[Array, Array, Array]:
    """Return rows (n, d), their lengths (n,), and the rows in double precision."""
    # An example of absurd inputs would tell of itself by spoiling the model: it counts as none.
    sound = np.asarray(np.isfinite(v).all(axis=1))
    if not sound.all():
        v = np.where(sound[:, None], v, 0)
    return v, np.linalg.norm(v, axis=1), v.astype(np.float64)


def _space(z: Array, dimensions: int) -> tuple[Space, Array]:
    """Return the leading principal components of rows ``z`` (n, D), whitened, and the rows (n, d + 1) in them.

    ``z`` is used up: it may be the largest thing in the memory of a small device, which has no room for a second one.
    """
    center = z.mean(axis=0, dtype=np.float64).astype(np.float32)
    z -= center
    about = z
    count = min(dimensions, z.shape[1], max(len(z) - 1, 1))
    directions, variances = _leading(about, count)
    kept = variances > 1e-6 * variances.max(initial=0)
    basis = directions[:, kept] / np.sqrt(variances[kept] * max(int(kept.sum()), 1))
    v = _unit(about @ basis)
    return Space(center, basis, np.asarray(v.T @ v / len(v))), v


def _leading(about: Array, count: int) -> tuple[Array, Array]:
    """Return the ``count`` leading directions (D, count) of centered rows and the variances along them, descending.

    Subspace iteration from fixed directions: equal for everyone, and of wide rows no (D, D) matrix is formed.
    """
    width = min(count + 20, *about.shape)
    found = np.random.Generator(np.random.PCG64(0)).standard_normal((about.shape[1], width)).astype(np.float32)
    for _ in range(6):
        found = np.linalg.qr(about.T @ (about @ found))[0]
    part = (about @ found).astype(np.float64)
    variances, turn = np.linalg.eigh(part.T @ part / len(about))
    order = np.argsort(variances)[::-1][:count]
    return np.asarray(found @ turn[:, order], np.float32), variances[order].astype(np.float32)


def _names(x: Array) -> Iterator[bytes]:
    """Yield a hash of each input of ``x``."""
    for one in x:
        yield hashlib.blake2b(np.ascontiguousarray(one).data, digest_size=16).digest()


def _unit(z: Array) -> Array:
    v = np.concatenate([z, np.full((len(z), 1), CONSTANT, np.float32)], axis=1)
    return np.asarray(v / np.linalg.norm(v, axis=1, keepdims=True))


def _ridged(moments: Array, *, ridge: float = RIDGE) -> Array:
    return np.asarray(moments + ridge * np.trace(moments) / len(moments) * np.eye(len(moments)), np.float64)
