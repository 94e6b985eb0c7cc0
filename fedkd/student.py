"""The student of a finished run, to be used: ``fedkd.load("expert-001").predict(x)``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.client import training_of
from fedkd.config import Config
from fedkd.errors import CheckpointError, DataError, FedkdError
from fedkd.files import load_arrays
from fedkd.journal import read_run
from fedkd.learner import Learner, Shape, make_learner, set_threads
from fedkd.rundir import find
from fedkd.softlabels import Array


@dataclass(frozen=True, eq=False)
class Student:
    """A trained model with what one has to know of it: the shape of one input, and the names of the classes."""

    model: Learner
    shape: Shape
    class_names: tuple[str, ...]

    def predict(self, x: Any) -> Array:
        """Return soft labels (n, C) float32 of inputs (n, ...) in the scale of the run's own, images channels first."""
        inputs = np.asarray(x)
        if inputs.ndim == 0 or inputs.shape[1:] != self.shape or inputs.dtype.kind not in "fiu":
            wanted = ", ".join(map(str, self.shape))
            raise DataError(f"inputs must be numbers of shape (n, {wanted}), got {inputs.dtype} {inputs.shape}")
        values = inputs.astype(np.float32)
        if not np.isfinite(values).all():
            raise DataError("inputs must be finite")
        return self.model.predict(values)


def load(run: str | Path) -> Student:
    """Return the student of a run, given by its directory or by its name under ``runs/``."""
    directory = find(Path(run))
    told = read_run(directory.path)
    data = told.summary.get("data")
    if not told.finished or not isinstance(data, dict):
        raise FedkdError(f"run {directory.path.name!r} has not finished; to go on: fedkd resume {directory.path}")
    config = Config.read(dict(told.config), where=str(directory.config))
    if config.student == "none":
        raise FedkdError(f"run {directory.path.name!r} has no student (student = 'none')")
    if not directory.student.exists():
        raise FedkdError(
            f"run {directory.path.name!r} kept no student: {config.student!r} has no state to keep; to have one, "
            f"fedkd replay {directory.path.name} --set student=cnn"
        )
    shape = tuple(int(n) for n in data["shape"])
    model = make_learner(
        config.student,
        shape=shape,
        classes=int(data["classes"]),
        training=training_of(config, distill_epochs=config.distill_epochs),
        seed=config.seed,
    )
    state, header = load_arrays(directory.student)
    if header.get("architecture") != model.architecture:
        raise CheckpointError(
            f"{directory.student} holds {header.get('architecture')}, {directory.config} says {model.architecture}"
        )
    model.load(state)
    set_threads(config.threads)
    names = [str(name) for name in data.get("class_names") or []]
    return Student(model, shape, tuple(names or map(str, range(int(data["classes"])))))
