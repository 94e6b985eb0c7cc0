"""What a round needs of a model, in any framework, and how it is trained. The server's student is one too."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from threadpoolctl import threadpool_limits

from fedkd.errors import ConfigError, SpecError
from fedkd.events import Event
from fedkd.privacy.noise import Entropy
from fedkd.records import TransferSet
from fedkd.softlabels import Array

Shape = tuple[int, ...]

LEAST = {"cnn": 4, "lenet": 16, "torchvision": 1}
"""Height and width of the smallest images that our networks take; all other learners take inputs of any shape."""


@dataclass(frozen=True)
class Training:
    """How a model learns: passes over private data and over soft labels, batch size, Adam's step, the loss.

    ``augment`` is a chain of :mod:`fedkd.augment` on every batch that a network learns, ``schedule`` says how its
    learning rate goes in each call of ``fit`` and ``distill`` (:mod:`fedkd.schedule`); learners that are no networks
    have neither.
    """

    epochs: int = 5
    distill_epochs: int = 30
    batch_size: int = 32
    learning_rate: float = 3e-3
    distill: str = "kl(temperature=1.0)"
    augment: str = "none"
    schedule: str = "constant"


class Learner(Protocol):
    """What the round needs of a model.

    ``architecture`` is equal for two learners whose weights could be averaged; ``parameters`` is how many numbers
    FedAvg would send, 0 for a model that has none to average.
    """

    architecture: str
    parameters: int

    def fit(self, x: Array, y: Array, *, rng: np.random.Generator) -> None:
        """Learn private inputs (N, ...) float32 and labels (N,) int64, on top of what is known already."""
        ...

    def distill(self, x: Array, p: Array, *, w: Array, rng: np.random.Generator) -> None:
        """Learn soft labels ``p`` (n, C) of inputs (n, ...); row m counts ``w[m]`` >= 0."""
        ...

    def predict(self, x: Array) -> Array:
        """Return soft labels (n, C) float32 of inputs (n, ...)."""
        ...

    def state(self) -> dict[str, Array]:
        """Return all that must survive until the next round, as arrays."""
        ...

    def load(self, state: dict[str, Array]) -> None:
        """Take up a state; an empty one changes nothing."""
        ...


@runtime_checkable
class PrivateLearner(Protocol):
    """A learner that can hide every single example that it learns (``protect = dp_sgd``)."""

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
        step: float,
    ) -> Event:
        """Take ``steps`` steps, each on Poisson batches of ``rate`` with gradients cut to ``clip``; return the event.

        Noise has ``noise_multiplier`` times ``clip`` as standard deviation. Sums are divided by ``expected_batch``, a
        public number. Every random choice comes from ``entropy``; ``step`` scales the first step's length.
        """
        ...


def see_public(model: Learner, transfer: TransferSet) -> None:
    """Show ``model`` the transfer set before it learns, if it can make something of public inputs (``see``)."""
    see = getattr(model, "see", None)
    if see is not None:
        see(transfer.inputs)


def private_trainer(model: Learner, spec: str) -> PrivateLearner:
    """Return ``model`` as one that can learn privately, or say that it cannot."""
    if not isinstance(model, PrivateLearner):
        raise SpecError(f"learner {spec!r} cannot learn by DP-SGD; use 'linear' or a network.")
    return model


def check_private(model: Learner, spec: str, shape: Shape) -> None:
    """Raise unless ``model`` can learn privately from inputs of ``shape`` (without the batch); reads no data."""
    private_trainer(model, spec)
    if (check_network := getattr(model, "check_private", None)) is not None:
        check_network(shape)


def check_steps(
    rate: float, clip: float, noise_multiplier: float, steps: int, expected_batch: float, step: float
) -> None:
    """Raise :class:`ConfigError` unless the numbers of a private fit make sense."""
    if not 0 < rate <= 1:
        raise ConfigError(f"rate must be in (0, 1], got {rate}")
    for name, value in (("clip", clip), ("expected_batch", expected_batch), ("step", step)):
        if not 0 < value < math.inf:
            raise ConfigError(f"{name} must be above 0 and finite, got {value}")
    if not 0 <= noise_multiplier < math.inf:
        raise ConfigError(f"noise_multiplier must be at least 0 and finite, got {noise_multiplier}")
    if steps < 1:
        raise ConfigError(f"steps must be at least 1, got {steps}")


def check_shape(spec: str, shape: Shape) -> None:
    """Raise :class:`SpecError` if ``spec`` is a network for images and ``shape`` (C, H, W) is none, or too small."""
    name = spec.partition("(")[0].strip()
    least = LEAST.get(name, 0)
    if least and (len(shape) != 3 or min(shape[1:]) < least):
        raise SpecError(
            f"learner {spec} needs images (channels, height, width) of at least {least}x{least}, got {shape}; "
            "for such data use mlp, linear, logistic or forest"
        )


def set_threads(count: int) -> None:
    """Give torch and the linear algebra of numpy and scipy ``count`` threads; with one, results are equal everywhere.

    Sums are split over threads, so their last bits depend on how many there are.
    """
    loaded = (count, *(name in sys.modules for name in ("torch", "scipy.linalg", "sklearn")))
    if loaded == _THREADS.get("set"):
        return
    _THREADS["set"] = loaded  # looking for libraries takes milliseconds: only when there are new ones
    threadpool_limits(count)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(count)


_THREADS: dict[str, tuple[int | bool, ...]] = {}
