"""A client's own model and how to fit and predict, in any framework. The server's student is one too.

This file imports no framework: a member of the registry imports the file that does when it is called.
"""

from __future__ import annotations

import importlib
import inspect
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from threadpoolctl import threadpool_limits

from fedkd.errors import ConfigError, ExtraError, SpecError, did_you_mean
from fedkd.events import Event
from fedkd.privacy.noise import Entropy
from fedkd.records import TransferSet
from fedkd.registry import Registry, parse, split
from fedkd.softlabels import Array

learner = Registry("learner")

Shape = tuple[int, ...]

FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


COUNT: tuple[Callable[[Any], bool], str] = (lambda value: value >= 1, "at least 1")
RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("width", "hidden", "trees", "iterations", "dimensions", "threads"), COUNT),
    "temperature": (lambda value: 0 < value < math.inf, "above 0"),
    "size": (lambda value: value >= 0, "at least 0"),
    "dropout": (lambda value: 0 <= value < 1, "in [0, 1)"),
    "penalty": (lambda value: 0 < value < math.inf, "above 0"),
    "pseudo": (lambda value: 0 <= value < math.inf, "at least 0"),
}
"""What the options of our own learners may be, and how to say it."""


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
    from fedkd.linear_learner import LinearLearner

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
        from fedkd import onnx_learner
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


class Adapted:
    """A user's own object with ``predict(x)`` and, where it has them, ``fit``, ``distill``, ``state``, ``load``."""

    parameters = 0

    def __init__(self, model: Any, name: str) -> None:
        """Wrap ``model``, which the run knows as ``name``. Public inputs are all clients': it gets copies of them."""
        self.model, self.architecture = model, name

    def fit(self, x: Array, y: Array, *, rng: np.random.Generator) -> None:
        """Call the model's ``fit(x, y)``, with ``rng`` if it takes one."""
        self._call("fit", x, y, rng=rng)

    def distill(self, x: Array, p: Array, *, w: Array, rng: np.random.Generator) -> None:
        """Call the model's ``distill(x, p)``, with ``w`` and ``rng`` if it takes them."""
        self._call("distill", x.copy(), p, w=w, rng=rng)

    def predict(self, x: Array) -> Array:
        """Return what the model predicts."""
        return np.asarray(self.model.predict(x.copy()))

    def state(self) -> dict[str, Array]:
        """Return the model's state, if it has one."""
        return dict(self._call("state") or {})

    def load(self, state: dict[str, Array]) -> None:
        """Give the model its state, if it has one."""
        if state:
            self._call("load", state)

    def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        function = getattr(self.model, method, None)
        if function is None:
            return None
        return function(*arguments, **_accepted(function, options))


def make_learner(spec: str, *, shape: Shape, classes: int, training: Training, seed: int) -> Learner:
    """Return the untrained learner that ``spec`` names: a registered one, or a user's ``"module:factory"``.

    A factory is called with those of ``shape``, ``classes`` and ``seed`` that it takes. It returns a torch module, an
    estimator of scikit-learn, or any object with ``predict(x)``.
    """
    if not is_factory(spec):
        check(spec)
        made: Learner = learner.build(spec)(shape, classes, training, seed)
        return made
    factory = _find_factory(spec)
    given = _accepted(factory, {"shape": shape, "classes": classes, "seed": seed})
    model = None if "torch" in sys.modules else factory(**given)
    if sys.modules.get("torch") is not None:  # where the factory was what loaded torch, its weights came from no seed
        from fedkd import torch_learner

        model = torch_learner.seeded(seed, lambda: factory(**given))
        if torch_learner.is_module(model):
            return torch_learner.TorchLearner(model, training, spec)
    if hasattr(model, "predict_proba") and hasattr(model, "fit"):
        return _estimator(model, classes, spec)
    if not callable(getattr(model, "predict", None)):
        raise SpecError(f"learner {spec!r} returned {type(model).__name__}, which has no predict(x).")
    return Adapted(model, spec)


TORCHVISION = {
    "alexnet": "alexnet",
    "convnext": "convnext_tiny",
    "densenet": "densenet121",
    "efficientnet": "efficientnet_b0",
    "mobilenet": "mobilenet_v2",
    "regnet": "regnet_y_400mf",
    "resnet": "resnet18",
    "resnext": "resnext50_32x4d",
    "shufflenet": "shufflenet_v2_x0_5",
    "squeezenet": "squeezenet1_1",
    "vgg": "vgg11",
    "vit": "vit_b_16",
}
"""Families of torchvision's networks that people ask for by name, each with one of its members."""


def check(spec: str) -> None:
    """Raise :class:`SpecError` unless ``spec`` is a registered learner or reads like ``module:factory``."""
    if is_factory(spec):
        return
    family = next((one for one in TORCHVISION if re.fullmatch(rf"{one}([\d_]\w*)?", spec)), None)
    if family is not None:
        name = TORCHVISION[family] if spec == family else spec
        raise SpecError(f"unknown learner {spec!r}. Did you mean torchvision(name={name!r})?")
    if spec.isidentifier() and spec not in learner.names() and not did_you_mean(spec, learner.names()):
        known = ", ".join(learner.names())
        raise SpecError(
            f"unknown learner {spec!r}. Your own is written {spec}:function, as in module:function. Known: {known}."
        )
    part = learner.build(spec)
    for option, value in part.keywords.items():
        right, words = RANGES.get(option, (None, ""))
        if right is not None and part.func.__module__ == __name__ and not right(value):
            raise SpecError(f"learner {spec!r}: {option!r} must be {words}, got {value}.")


def check_shape(spec: str, shape: Shape) -> None:
    """Raise :class:`SpecError` if ``spec`` is a network for images and ``shape`` (C, H, W) is none, or too small."""
    name = spec.partition("(")[0].strip()
    least = LEAST.get(name, 0)
    if least and (len(shape) != 3 or min(shape[1:]) < least):
        raise SpecError(
            f"learner {spec} needs images (channels, height, width) of at least {least}x{least}, got {shape}."
        )


def check_mix(spec: str) -> None:
    """Check each member of a comma-separated mix such as ``"cnn, mlp, forest"``."""
    for one in split(spec, ","):
        check(one)


def check_student(spec: str) -> None:
    """Check the server's model; ``none`` means that there is none."""
    if spec != "none":
        check(spec)


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


def is_factory(spec: str) -> bool:
    """Say whether ``spec`` reads like ``module:function``: code to import, and no registered learner."""
    name = spec.partition(":")[0]
    return bool(FACTORY.fullmatch(spec)) and name not in learner.names()


def names_a_file(spec: str) -> bool:
    """Say whether ``spec`` is a learner that is read from a file, which must be on the device that builds it."""
    try:
        return parse(spec)[0] == onnx.__name__  # as it will be built: the text may spell a name in other ways
    except SpecError:
        return False


def with_whole_path(spec: str) -> str:
    """Return ``spec`` with the whole path of the file that it names, if it does: it may be read from another folder."""
    if not names_a_file(spec):
        return spec
    name, options = parse(spec)
    options = {"path" if key == "" else key: value for key, value in options.items()}
    if isinstance(options.get("path"), str):
        options["path"] = str(Path(options["path"]).expanduser().resolve())
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in options.items())})"


def _accepted(function: Callable[..., Any], offered: dict[str, Any]) -> dict[str, Any]:
    """Return those of the ``offered`` arguments that ``function`` takes by name."""
    try:
        takes = inspect.signature(function).parameters.values()
    except ValueError:  # some functions in C do not say
        return {}
    if any(p.kind is p.VAR_KEYWORD for p in takes):
        return offered
    named = {p.name for p in takes if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return {key: value for key, value in offered.items() if key in named}


def _find_factory(spec: str) -> Callable[..., Any]:
    module_name, _, name = spec.partition(":")
    if "" not in sys.path:
        sys.path.append("")  # a user's module lies in the working directory
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name not in (module_name, module_name.partition(".")[0]):
            raise SpecError(
                f"learner {spec!r}: importing {module_name} failed: no module named {error.name!r}."
            ) from None
        hint = did_you_mean(module_name, learner.names())
        raise SpecError(f"learner {spec!r}: no module named {module_name!r} here.{hint}") from None
    found = getattr(module, name, None)
    if found is not None and not callable(found):
        raise SpecError(f"learner {spec!r}: {name!r} of {module_name} is {type(found).__name__}, not a function.")
    if found is None:
        raise SpecError(f"learner {spec!r}: {module_name} has no function {name!r}.{did_you_mean(name, vars(module))}")
    return found  # type: ignore[no-any-return]


def _torch(what: str, kind: str, shape: Shape, classes: int, training: Training, seed: int, **options: Any) -> Learner:
    try:
        from fedkd import models, torch_learner
    except ModuleNotFoundError as error:
        raise ExtraError(what, str(error.name), "torch") from None
    network = torch_learner.seeded(seed, lambda: models.build(kind, shape, classes, **options))
    spelled = f"{kind}({', '.join(f'{k}={v!r}' for k, v in options.items())})"
    return torch_learner.TorchLearner(network, training, spelled)


def _sklearn(what: str, kind: str, classes: int, pseudo: float, **options: Any) -> Learner:
    try:
        from fedkd import sklearn_learner
    except ModuleNotFoundError as error:
        raise ExtraError(what, f"scikit-learn ({error.name})", "light") from None
    return sklearn_learner.build(kind, classes, pseudo, **options)


def _estimator(model: Any, classes: int, name: str) -> Learner:
    try:
        from fedkd import sklearn_learner
    except ModuleNotFoundError as error:
        raise ExtraError(f"learner {name!r}", f"scikit-learn ({error.name})", "light") from None
    return sklearn_learner.SklearnLearner(lambda seed: sklearn_learner.fresh(model, seed), classes, name, 1.0)
