"""An ONNX model on the device: fixed features under a head of our own, or a black box that only predicts.

ONNX Runtime cannot train, and on a small device nothing else should have to: the head is softmax regression in numpy
(:mod:`fedkd.learner.linear_learner`), which learns private labels and soft labels in seconds.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from fedkd.errors import PrivacyError, SpecError, did_you_mean
from fedkd.events import Event
from fedkd.learner.black_box import BlackBox, check_scores
from fedkd.learner.linear_learner import LinearLearner
from fedkd.learner.protocol import Learner, Shape, Training
from fedkd.softlabels import Array

BATCH = 32
"""Inputs that a network is given at a time, where it takes any number: more need memory and gain little."""

FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
HEADS = ("softmax", "none")


def build(
    shape: Shape,
    classes: int,
    training: Training,
    *,
    path: str,
    output: str,
    head: str,
    scores: str,
    dimensions: int,
    temperature: float,
    public: bool,
    threads: int,
) -> Learner:
    """Return the learner on the ONNX model at ``path`` for inputs of ``shape``; the options are those of ``onnx``."""
    if head not in HEADS:
        hint = did_you_mean(head, HEADS)
        raise SpecError(f"learner 'onnx': 'head' must be {' or '.join(HEADS)}, got {head!r}.{hint}")
    check_scores("onnx", scores)
    network = Network(path, shape, output=output, threads=threads)
    if head == "none":
        if network.width != classes:
            raise SpecError(
                f"learner 'onnx': {path} has {network.width} scores an input, the transfer set {classes} classes; with "
                "head='softmax' it makes features."
            )
        return BlackBox(network, scores, path)
    return OnnxLearner(network, shape, classes, training, public=public, dimensions=dimensions, temperature=temperature)


class Network:
    """One output of an ONNX model as a function of inputs (n, ...) in [0, 1], to rows (n, D) float32."""

    def __init__(self, path: str, shape: Shape, *, output: str = "", threads: int = 1) -> None:
        """Load the model at ``path``; raise :class:`SpecError` unless it takes ``shape`` and ``output`` is a float.

        Without ``output`` the last one is taken. The model's layout may also be channels last, one row of numbers, or
        images without a channel; gray images become three channels where it wants those.
        """
        self.path = path
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise SpecError(f"learner 'onnx': cannot read {path}: {error.strerror}.") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.enable_cpu_mem_arena = False  # it keeps the largest batch's memory for good
        options.log_severity_level = 4
        try:  # from its path, since weights may lie in files beside it
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's exceptions have no common base of their own
            raise SpecError(f"learner 'onnx': {path} is no ONNX model that can be run: {_first_line(error)}.") from None
        self._input = self._only_input()
        self._output = self._named_output(output)
        self._arrange = self._arrangement(shape)
        self.digest = hashlib.sha256(content).hexdigest()
        self.width = self._width(shape)

    def __repr__(self) -> str:
        """Name the model by its content: two devices with equal ones have heads that could be averaged."""
        return f"onnx({self.digest[:16]}, output={self._output!r})"

    def __call__(self, x: Array) -> Array:
        """Return rows (n, D) for inputs (n, ...)."""
        fixed = self._input.shape[0]
        step = fixed if isinstance(fixed, int) else BATCH
        found = np.zeros((len(x), self.width), np.float32)
        for start in range(0, len(x), step):
            part = x[start : start + step]
            short = step - len(part) if isinstance(fixed, int) else 0
            rows = self._run(np.concatenate([part, np.zeros((short, *x.shape[1:]), x.dtype)]) if short else part)
            found[start : start + len(part)] = rows[: len(part)]
        return found

    def _run(self, x: Array) -> Array:
        given = np.ascontiguousarray(self._arrange(x), FLOATS[self._input.type])
        try:
            (rows,) = self._session.run([self._output], {self._input.name: given})
        except Exception as error:  # a shape that only shows when it runs
            raise SpecError(f"learner 'onnx': {self.path} fails on {given.shape}: {_first_line(error)}.") from None
        if rows.ndim < 1 or len(rows) != len(x):
            raise SpecError(
                f"learner 'onnx': output {self._output!r} of {self.path} must have a row for each input, got shape "
                f"{rows.shape} for {len(x)}."
            )
        return np.asarray(rows, np.float32).reshape(len(x), -1)

    def _width(self, shape: Shape) -> int:
        fixed = self._input.shape[0]
        return int(self._run(np.zeros((fixed if isinstance(fixed, int) else 1, *shape), np.float32)).shape[1])

    def _only_input(self) -> Any:
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in FLOATS or len(inputs[0].shape) < 2:
            got = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs) or "none"
            raise SpecError(f"learner 'onnx': {self.path} must have one input, a batch of floats, got {got}.")
        return inputs[0]

    def _named_output(self, name: str) -> str:
        types = {one.name: one.type for one in self._session.get_outputs()}
        chosen = name or list(types)[-1]
        if chosen not in types:
            hint = did_you_mean(chosen, types)
            known = ", ".join(types)
            raise SpecError(f"learner 'onnx': {self.path} has no output {chosen!r}.{hint} It has {known}.")
        if types[chosen] not in FLOATS:
            floats = [one for one, type_ in types.items() if type_ in FLOATS]
            other = f"; choose output={floats[-1]!r}" if floats else ""
            raise SpecError(
                f"learner 'onnx': output {chosen!r} of {self.path} must be a float, got {types[chosen]}{other}."
            )
        return chosen

    def _arrangement(self, shape: Shape) -> Callable[[Array], Array]:
        """Return what takes inputs (n, *shape) to the layout that the model wants."""
        wanted = self._input.shape[1:]
        for got, arrange in _layouts(shape):
            if len(got) != len(wanted):
                continue
            if all(w == g or not isinstance(w, int) for w, g in zip(wanted, got, strict=True)):
                return arrange
        spelled = tuple(one if isinstance(one, int) else "any" for one in wanted)
        raise SpecError(f"learner 'onnx': {self.path} takes inputs {spelled}, the transfer set has {shape}.")


def _layouts(shape: Shape) -> list[tuple[Shape, Callable[[Array], Array]]]:
    """Return the shapes that inputs of ``shape`` can be given, the likeliest first, and how."""
    layouts: list[tuple[Shape, Callable[[Array], Array]]] = [(shape, lambda x: x)]
    if len(shape) == 3:
        height, width = shape[1:]
        layouts.append(((height, width, shape[0]), lambda x: np.moveaxis(x, 1, -1)))
        if shape[0] == 1:
            layouts.append(((3, height, width), lambda x: np.repeat(x, 3, axis=1)))
            layouts.append(((height, width, 3), lambda x: np.repeat(np.moveaxis(x, 1, -1), 3, axis=-1)))
            layouts.append(((height, width), lambda x: x[:, 0]))
    layouts.append(((math.prod(shape),), lambda x: x.reshape(len(x), -1)))
    return layouts


class OnnxLearner(LinearLearner):
    """Softmax regression on what a fixed network makes of an input, each row of length 1.

    DP-SGD hides what the head learns. What the network learned before is in its file, so that its owner has to say
    that the file is ``public``: made without the private data.
    """

    def __init__(
        self,
        network: Network,
        shape: Shape,
        classes: int,
        training: Training,
        *,
        public: bool,
        dimensions: int,
        temperature: float,
    ) -> None:
        """Start from no opinion, on the features that ``network`` makes."""
        self.network, self.public = network, public
        super().__init__(
            shape, classes, training, features=self._directions, dimensions=dimensions, temperature=temperature
        )
        self.architecture = f"linear(features={network!r}, {dimensions=})"

    def check_private(self, shape: Shape) -> None:
        """Raise :class:`PrivacyError` unless the network is public and treats each input by itself."""
        if not self.public:
            raise PrivacyError(
                f"learner 'onnx': with protect = dp_sgd, {self.network.path} must be made without the private data; "
                "if so, say public=True"
            )
        noise = np.random.default_rng(0).random((3, *shape), np.float32)
        together, alone = self.network(noise), np.concatenate([self.network(noise[k : k + 1]) for k in range(3)])
        if not np.allclose(together, alone, rtol=1e-3, atol=1e-4 * max(1e-6, float(np.abs(alone).max()))):
            raise PrivacyError(f"learner 'onnx': {self.network.path} mixes the inputs of a batch, so hides no example")

    def fit_private(self, x: Array, y: Array, **options: Any) -> Event:
        """Learn private labels by DP-SGD, as :meth:`fedkd.learner.linear_learner.LinearLearner.fit_private` says."""
        self.check_private(x.shape[1:])
        return super().fit_private(x, y, **options)

    def _directions(self, x: Array) -> Array:
        z = self.network(x)
        return np.asarray(z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), np.float32(1e-6)))


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return (text.splitlines()[0] if text else type(error).__name__)[:200].rstrip(".")
