"""Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531: the MNIST experiment.

A net of two hidden layers of 1200 units, with dropout and jitter, teaches smaller nets on the training images without
their labels. In the paper it makes 67 test errors, 800 units alone 146, and 800 units taught at T = 20 make 74. Then
the student never sees a 3, or only 7s and 8s; moving the output biases mends what the transfer set has skewed.
Needs MNIST (see ``fedkd.dataset.mnist``); else Fashion-MNIST, or the bundled digits, which ``--small`` always takes.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial

import numpy as np

from fedkd import models
from fedkd.dataset import as_inputs, load
from fedkd.errors import DataError
from fedkd.learner import Training, set_threads
from fedkd.random import derive, generator
from fedkd.softlabels import Array
from fedkd.torch_learner import TorchLearner, seeded
from simulations.benchmarks.bench import save

SEED = 0
TEACHER, STUDENT, NARROW = 1200, 800, (300, 30)
TEMPERATURE, TEMPERATURES = 20.0, (1.0, 2.5, 4.0, 8.0, 20.0)
TEACHER_EPOCHS, EPOCHS = 16, 12
DROP, JITTER = {"dropout": 0.3, "inputs": 0.1}, "shift(pixels=2)"
FLOOR = 1e-30  # a sure teacher hides what it knows about the other classes in tiny probabilities


@dataclass(frozen=True, eq=False)
class Scene:
    """Train and test part, and how much smaller than the paper's nets ours are."""

    name: str
    x: Array
    y: Array
    x_test: Array
    y_test: Array
    classes: int
    small: bool

    def net(self, units: int, loss: str, *, epochs: int, augment: str = "none", **dropout: float) -> TorchLearner:
        """Return an untrained net of two hidden layers; nets of one width start from the same weights."""
        shape, width = self.x.shape[1:], units // 4 if self.small else units
        make = partial(models.mlp, shape, self.classes, hidden=width, layers=2, **dropout)
        batch, learning_rate = (32, 3e-3) if self.small else (128, 1e-3)
        training = Training(epochs, epochs, batch, learning_rate, loss)
        network = seeded(derive(SEED, "net", units), make)
        return TorchLearner(network, training, f"{units} units", augment=augment, schedule="cosine")

    def taught(self, units: int, temperature: float, p: Array, *, rows: Array | None = None) -> Array:
        """Return the test soft labels of a student of the teacher ``p`` on ``rows`` of the train part."""
        rows = np.arange(len(self.x)) if rows is None else rows
        student = self.net(units, f"kl(temperature={temperature}, floor={FLOOR})", epochs=EPOCHS)
        student.distill(self.x[rows], p[rows], w=np.ones(len(rows)), rng=generator(SEED, "student", units))
        return student.predict(self.x_test)

    def errors(self, p: Array) -> int:
        """Return how many test rows ``p`` gets wrong."""
        return int((p.argmax(axis=1) != self.y_test).sum())


def best_shift(s: Scene, p: Array, classes: list[int]) -> tuple[float, int]:
    """Return the bias on ``classes`` that leaves the fewest test errors, and these: it sees them, as in the paper."""
    z, ours = np.log(np.maximum(p, FLOOR)), np.isin(np.arange(s.classes), classes)
    errors, _, bias = min((s.errors(z + b * ours), abs(b), float(b)) for b in np.arange(-20, 20.1, 0.1))
    return round(bias, 1), errors


def scene(small: bool) -> Scene:
    """Return the best data that this machine has."""
    for name in ("digits",) if small else ("mnist", "fashion_mnist", "digits"):
        try:
            data = load(name)
            break
        except DataError as error:
            print(f"without {name}: {error}")
    x, x_test = as_inputs(data.x), as_inputs(data.x_test)
    return Scene(data.name, x, data.y, x_test, data.y_test, data.classes, data.name == "digits")


def play(s: Scene) -> dict[str, int | float]:
    """Return test errors by name, from the teacher to the student that saw only 7s and 8s."""
    jitter = "none" if s.small else JITTER  # the digits fill their 8x8 pixels
    teacher = s.net(TEACHER, "kl", epochs=TEACHER_EPOCHS, augment=jitter, **DROP)
    teacher.fit(s.x, s.y, rng=generator(SEED, "teacher"))
    p = teacher.predict(s.x)
    table: dict[str, int | float] = {"test rows": len(s.y_test), "teacher": s.errors(teacher.predict(s.x_test))}
    for units in (STUDENT, *NARROW):
        alone = s.net(units, "kl", epochs=EPOCHS)
        alone.fit(s.x, s.y, rng=generator(SEED, "student", units))
        table[f"{units} units alone"] = s.errors(alone.predict(s.x_test))
        for temperature in (TEMPERATURE,) if units == STUDENT else TEMPERATURES:
            table[f"{units} units, T = {temperature:g}"] = s.errors(s.taught(units, temperature, p))
        print({key: value for key, value in table.items() if key.startswith(f"{units} ")}, flush=True)
    alone_errors, taught_errors = table[f"{STUDENT} units alone"], table[f"{STUDENT} units, T = {TEMPERATURE:g}"]
    table["gap closed"] = round((alone_errors - taught_errors) / max(1, alone_errors - table["teacher"]), 3)
    for name, rows, classes in (
        ("no 3s", np.flatnonzero(s.y != 3), [3]),
        ("only 7s and 8s", np.flatnonzero(np.isin(s.y, (7, 8))), [7, 8]),
    ):
        answers = s.taught(STUDENT, TEMPERATURE, p, rows=rows)
        table[name] = s.errors(answers)
        table[f"{name}, bias of them"], table[f"{name}, shifted"] = best_shift(s, answers, classes)
    return table


def main(arguments: list[str] | None = None) -> dict[str, int | float]:
    """Print the table; a full run saves it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="the bundled digits, in seconds")
    small = parser.parse_args(arguments).small
    set_threads(1)
    s = scene(small)
    print(f"{s.name}: {len(s.x)} train rows, {len(s.x_test)} test rows, seed {SEED}")
    table = play(s)
    print("\n".join(f"{name:<28} {value:>8g}" for name, value in table.items()))
    if not small:
        save("hinton", {"data": s.name, "seed": SEED, "errors": table})
    return table


if __name__ == "__main__":
    main()
