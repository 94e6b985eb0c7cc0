"""The learners that have a name. A member imports the framework that it needs when it is called, no sooner."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fedkd.errors import ExtraError
from fedkd.learner.protocol import Learner, Shape, Training
from fedkd.registry import Registry
from fedkd.softlabels import Array

learner = Registry("learner")

COUNT: tuple[Callable[[Any], bool], str] = (lambda value: value >= 1, "at least 1")
RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("width", "hidden", "trees", "iterations", "dimensions", "threads", "batch"), COUNT),
    "temperature": (lambda value: 0 < value < math.inf, "above 0"),
    "timeout": (lambda value: 0 < value < math.inf, "above 0"),
    "size": (lambda value: value >= 0, "at least 0"),
    "dropout": (lambda value: 0 <= value < 1, "in [0, 1)"),
    "penalty": (lambda value: 0 < value < math.inf, "above 0"),
    "pseudo": (lambda value: 0 <= value < math.inf, "at least 0"),
}
"""What the options of our own learners may be, and how to say it."""


@learner
def cnn(shape: Shape, classes: int, training: Training, seed: int, *, width: int = 16, hidden: int = 64) -> Learner:
    """Small convolutional network for images from 4x4 up: two 3x3 convolutions with pooling, one hidden layer."""
    return _torch("learner 'cnn'", "cnn", shape, classes, training, seed, width=width, hidden=hidden)


@learner
def lenet(shape: Shape, classes: int, training: Training, seed: int, *, dropout: float = 0.0) -> Learner:
    """The 21,840-parameter network of Selective-FD (Nat. Commun. 2024) for 28x28 images: convolutions of 10 and 20."""
    return _torch("learner 'lenet'", "lenet", shape, classes, training, seed, dropout=dropout)


@learner
def mlp(shape: Shape, classes: int, training: Training, seed: int, *, hidden: int = 64) -> Learner:
    """Multilayer perceptron with one hidden layer, for inputs of any shape."""
    return _torch("learner 'mlp'", "mlp", shape, classes, training, seed, hidden=hidden)


@learner
def torchvision(
    shape: Shape, classes: int, training: Training, seed: int, *, name: str = "resnet18", size: int = 0
) -> Learner:
    """Any torchvision classifier by name, untrained; gray inputs become three channels, ``size`` > 0 resizes them."""
    return _torch("learner 'torchvision'", "torchvision", shape, classes, training, seed, name=name, size=size)


@learner
def forest(
    shape: Shape, classes: int, training: Training, seed: int, *, trees: int = 100, pseudo: float = 1.0
) -> Learner:
    """Extremely randomized trees; ``pseudo`` is the weight of what came back relative to the private data."""
    return _sklearn("learner 'forest'", "forest", classes, pseudo, trees=trees)


@learner
def logistic(
    shape: Shape, classes: int, training: Training, seed: int, *, penalty: float = 1.0, pseudo: float = 1.0
) -> Learner:
    """Logistic regression with L2 penalty."""
    return _sklearn("learner 'logistic'", "logistic", classes, pseudo, penalty=penalty)


@learner
def boosting(
    shape: Shape, classes: int, training: Training, seed: int, *, iterations: int = 50, pseudo: float = 1.0
) -> Learner:
    """Histogram gradient boosting."""
    return _sklearn("learner 'boosting'", "boosting", classes, pseudo, iterations=iterations)


@learner
def linear(
    shape: Shape,
    classes: int,
    training: Training,
    seed: int,
    *,
    features: str = "shapes",
    dimensions: int = 100,
    temperature: float = 1.0,
) -> Learner:
    """Softmax regression on public features, in numpy: the fast way to a private client (:mod:`fedkd.features`)."""
    from fedkd.learner.linear_learner import LinearLearner

    return LinearLearner(shape, classes, training, features=features, dimensions=dimensions, temperature=temperature)


@learner
def onnx(
    shape: Shape,
    classes: int,
    training: Training,
    seed: int,
    *,
    path: str,
    output: str = "",
    head: str = "softmax",
    scores: str = "logits",
    dimensions: int = 100,
    temperature: float = 1.0,
    public: bool = False,
    threads: int = 1,
) -> Learner:
    """An ONNX model as fixed features under a softmax head in numpy, or, with ``head = "none"``, as it is.

    ``output`` is the last one unless named. ``public`` says that private data had no part in the file: DP-SGD of the
    head wants that. Without a head ``scores`` says what comes out, ``logits`` or ``probabilities``.
    """
    try:
        from fedkd.learner import onnx_learner
    except ModuleNotFoundError as error:
        raise ExtraError("learner 'onnx'", str(error.name), "light") from None
    return onnx_learner.build(
        shape,
        classes,
        training,
        path=path,
        output=output,
        head=head,
        scores=scores,
        dimensions=dimensions,
        temperature=temperature,
        public=public,
        threads=threads,
    )


@learner
def http(
    shape: Shape,
    classes: int,
    training: Training,
    seed: int,
    *,
    url: str,
    protocol: str = "v2",
    input: str = "input",
    output: str = "",
    scores: str = "probabilities",
    batch: int = 64,
    timeout: float = 30.0,
) -> Learner:
    """A model behind an HTTP service, as it is; ``protocol`` is ``v2`` (Open Inference) or ``instances`` (TF Serving).

    ``input`` and ``output`` are names of tensors, the output the last one unless named; ``timeout`` in seconds. A
    bearer token is taken from ``FEDKD_HTTP_TOKEN``.
    """
    from fedkd.learner import http_learner

    return http_learner.build(
        classes,
        url=url,
        protocol=protocol,
        input=input,
        output=output,
        scores=scores,
        batch=batch,
        timeout=timeout,
    )


@learner
def constant(shape: Shape, classes: int, training: Training, seed: int) -> Learner:
    """Predicts how often it saw each class, whatever the input: for tests, and for the cost of everything else."""
    return Constant(classes)


class Constant:
    """Class frequencies, with one imagined example of each class."""

    architecture, parameters = "constant", 0

    def __init__(self, classes: int) -> None:
        """Start from one example of each of ``classes``."""
        self.counts = np.ones(classes)

    def fit(self, x: Array, y: Array, *, rng: np.random.Generator) -> None:
        """Count labels."""
        self.counts = self.counts + np.bincount(y, minlength=len(self.counts))

    def distill(self, x: Array, p: Array, *, w: Array, rng: np.random.Generator) -> None:
        """Count soft labels."""
        counts = w > 0  # the other rows may hold anything, also NaN
        self.counts = self.counts + (p[counts] * w[counts, None]).sum(axis=0, dtype=np.float64)

    def predict(self, x: Array) -> Array:
        """Return the same frequencies for every row."""
        return np.tile((self.counts / self.counts.sum()).astype(np.float32), (len(x), 1))

    def state(self) -> dict[str, Array]:
        """Return the counts."""
        return {"counts": self.counts}

    def load(self, state: dict[str, Array]) -> None:
        """Take up counts."""
        self.counts = state.get("counts", self.counts)


def _torch(what: str, kind: str, shape: Shape, classes: int, training: Training, seed: int, **options: Any) -> Learner:
    try:
        from fedkd.learner import models, torch_learner
    except ModuleNotFoundError as error:
        raise ExtraError(what, str(error.name), "torch") from None
    network = models.seeded(seed, lambda: models.build(kind, shape, classes, **options))
    spelled = f"{kind}({', '.join(f'{k}={v!r}' for k, v in options.items())})"
    return torch_learner.TorchLearner(network, training, spelled)


def _sklearn(what: str, kind: str, classes: int, pseudo: float, **options: Any) -> Learner:
    try:
        from fedkd.learner import sklearn_learner
    except ModuleNotFoundError as error:
        raise ExtraError(what, f"scikit-learn ({error.name})", "light") from None
    return sklearn_learner.build(kind, classes, pseudo, **options)
