"""A learner from its spec: one that has a name, or whatever a user's own function returns."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.errors import ExtraError, SpecError, did_you_mean
from fedkd.learner import named
from fedkd.learner.named import RANGES, http, learner, onnx
from fedkd.learner.protocol import Learner, Shape, Training
from fedkd.registry import parse, split
from fedkd.softlabels import Array

FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


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
        from fedkd.learner import models, torch_learner

        model = models.seeded(seed, lambda: factory(**given))
        if models.is_module(model):
            return torch_learner.TorchLearner(model, training, spec)
    if hasattr(model, "predict_proba") and hasattr(model, "fit"):
        return _estimator(model, classes, spec)
    if hasattr(model, "fit") and type(model).__module__.partition(".")[0] == "sklearn":
        kind = type(model).__name__  # its predict says classes or numbers, where rows of probabilities are needed
        raise SpecError(
            f"learner {spec!r} returned {kind}, which has no predict_proba: use another classifier, "
            f"or CalibratedClassifierCV({kind}(), cv=2)."
        )
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
        if right is not None and part.func.__module__ == named.__name__ and not right(value):
            raise SpecError(f"learner {spec!r}: {option!r} must be {words}, got {value}.")


def check_mix(spec: str) -> None:
    """Check each member of a comma-separated mix such as ``"cnn, mlp, forest"``."""
    for one in split(spec, ","):
        check(one)


def check_student(spec: str) -> None:
    """Check the server's model; ``none`` means that there is none."""
    if spec != "none":
        check(spec)


def is_factory(spec: str) -> bool:
    """Say whether ``spec`` reads like ``module:function``: code to import, and no registered learner."""
    name = spec.partition(":")[0]
    return bool(FACTORY.fullmatch(spec)) and name not in learner.names()


def names_a_file(spec: str) -> bool:
    """Say whether ``spec`` is a learner that is read from a file, which must be on the device that builds it."""
    return _named(spec) == onnx.__name__


def names_an_address(spec: str) -> bool:
    """Say whether ``spec`` is a learner that is asked over a network."""
    return _named(spec) == http.__name__


def _named(spec: str) -> str:
    """Return the name of the learner that ``spec`` builds, however the text spells it; "" if it builds none."""
    try:
        return parse(spec)[0]
    except SpecError:
        return ""


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


def check_module(spec: str) -> None:
    """Raise :class:`SpecError` if ``spec`` names a module that is not here; unlike making it, this takes no time."""
    if not is_factory(spec):
        return
    name = spec.partition(":")[0]
    if "" not in sys.path:
        sys.path.append("")  # a user's module lies in the working directory
    try:
        there = name in sys.modules or importlib.util.find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):
        there = False
    if not there:
        raise _not_here(spec)


def _not_here(spec: str) -> SpecError:
    name = spec.partition(":")[0]
    return SpecError(f"learner {spec!r}: no module named {name!r} here.{did_you_mean(name, learner.names())}")


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
        raise _not_here(spec) from None
    found = getattr(module, name, None)
    if found is not None and not callable(found):
        raise SpecError(f"learner {spec!r}: {name!r} of {module_name} is {type(found).__name__}, not a function.")
    if found is None:
        raise SpecError(f"learner {spec!r}: {module_name} has no function {name!r}.{did_you_mean(name, vars(module))}")
    return found  # type: ignore[no-any-return]


def _estimator(model: Any, classes: int, name: str) -> Learner:
    try:
        from fedkd.learner import sklearn_learner
    except ModuleNotFoundError as error:
        raise ExtraError(f"learner {name!r}", f"scikit-learn ({error.name})", "light") from None
    return sklearn_learner.SklearnLearner(lambda seed: sklearn_learner.fresh(model, seed), classes, name, 1.0)
