"""Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531: the MNIST experiment.

A net of two hidden layers of 1200 units, with dropout and jitter, teaches smaller nets on the training images without
their labels. In the paper it makes 67 test errors, 800 units alone 146, and 800 units taught at T = 20 make 74. Then
the student never sees a 3, or only 7s and 8s; moving the output biases mends what the transfer set has skewed.
Without MNIST (see ``fedkd.dataset.mnist``) it takes Fashion-MNIST or the bundled digits, with ``--small`` these.
"""

import argparse
from dataclasses import dataclass
from functools import partial

import numpy as np

from fedkd.dataset import as_inputs, load
from fedkd.errors import DataError
from fedkd.learner import Training, models, set_threads
from fedkd.learner.models import seeded
from fedkd.learner.torch_learner import TorchLearner
from fedkd.random import derive, generator
from fedkd.softlabels import Array
from simulations.benchmarks.bench import save

SEED = 0
TEACHER, STUDENT, NARROW = 1200, 800, (300, 30)
EPOCHS = {1200: 16, 800: 30, 300: 12, 30: 12}
TEMPERATURE, TEMPERATURES = 20.0, (1.0, 2.5, 4.0, 8.0, 20.0)
DROPOUT, INPUT_DROPOUT, JITTER = 0.3, 0.1, "shift(pixels=2)"
FLOOR = 1e-30  # a sure teacher hides what it knows about the other classes in tiny probabilities
SKEWED = {"no 3s": ([0, 1, 2, 4, 5, 6, 7, 8, 9], [3]), "only 7s and 8s": ([7, 8], [7, 8])}


@dataclass(frozen=True, eq=False)
class Scene:
    """Train and test part; ``small`` data get nets of a quarter of the units, in smaller steps."""

    x: Array
    y: Array
    x_test: Array
    y_test: Array
    small: bool

    def net(self, units: int, loss: str = "kl", augment: str = "none", **dropout: float) -> TorchLearner:
        """Return an untrained net of two hidden layers; nets of one width start from the same weights."""
        width, batch, rate = (units // 4, 32, 3e-3) if self.small else (units, 128, 1e-3)
        make = partial(models.mlp, self.x.shape[1:], 10, hidden=width, layers=2, **dropout)
        training = Training(EPOCHS[units], EPOCHS[units], batch, rate, loss, augment, "cosine")
        net = seeded(derive(SEED, "net", units), make)
        return TorchLearner(net, training, f"{units} units")

    def alone(self, units: int) -> int:
        """Return the test errors of a net that learned the labels."""
        (net := self.net(units)).fit(self.x, self.y, rng=generator(SEED, "student", units))
        return self.errors(net.predict(self.x_test))

    def taught(self, units: int, temperature: float, p: Array, rows: Array) -> Array:
        """Return the test soft labels of a student of the teacher ``p`` on ``rows`` of the train part."""
        net = self.net(units, f"kl(temperature={temperature}, floor={FLOOR})")
        net.distill(self.x[rows], p[rows], w=np.ones(len(rows)), rng=generator(SEED, "student", units))
        return net.predict(self.x_test)

    def errors(self, p: Array) -> int:
        """Return how many test rows ``p`` gets wrong."""
        return int((p.argmax(axis=1) != self.y_test).sum())


def best_shift(s: Scene, p: Array, classes: list[int]) -> tuple[float, int]:
    """Return the bias on ``classes`` that leaves the fewest test errors, and these: it sees them, as in the paper."""
    z, ours = np.log(np.maximum(p, FLOOR)), np.isin(np.arange(10), classes)
    errors, _, bias = min((s.errors(z + b * ours), abs(b), float(b)) for b in np.arange(-20, 20.1, 0.1))
    return round(bias, 1), errors


def scene(small: bool) -> tuple[str, Scene]:
    """Return the best data that this machine has, and its name."""
    for name in ("digits",) if small else ("mnist", "fashion_mnist", "digits"):
        try:
            data = load(name)
            break
        except DataError as error:
            print(f"without {name}: {error}")
    parts = as_inputs(data.x), data.y, as_inputs(data.x_test), data.y_test
    return data.name, Scene(*parts, data.name == "digits")


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Print test errors line by line, and return them; a full run saves them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true", help="the bundled digits, in seconds")
    small, table = parser.parse_args(arguments).small, dict[str, float]()
    set_threads(1)
    data, s = scene(small)

    def show(name: str, value: float) -> None:
        table[name] = value
        print(f"{name:<28} {value:>8g}", flush=True)

    print(f"{data}: {len(s.x)} train rows, {len(s.x_test)} test rows, seed {SEED}; test errors of")
    teacher = s.net(TEACHER, "kl", "none" if s.small else JITTER, dropout=DROPOUT, inputs=INPUT_DROPOUT)
    teacher.fit(s.x, s.y, rng=generator(SEED, "teacher"))
    p, everything = teacher.predict(s.x), np.arange(len(s.x))
    show("teacher", s.errors(teacher.predict(s.x_test)))
    for units in (STUDENT, *NARROW):
        show(f"{units} units alone", s.alone(units))
        for t in (TEMPERATURE,) if units == STUDENT else TEMPERATURES:
            show(f"{units} units, T = {t:g}", s.errors(s.taught(units, t, p, everything)))
    best, alone, taught = list(table.values())[:3]
    show("share of the gap closed", round((alone - taught) / max(1, alone - best), 3))
    for name, (seen, classes) in SKEWED.items():
        answers = s.taught(STUDENT, TEMPERATURE, p, np.flatnonzero(np.isin(s.y, seen)))
        show(name, s.errors(answers))
        show(f"{name}, {(found := best_shift(s, answers, classes))[0]:+g} on them", found[1])
    if not small:
        save("hinton", {"data": data, "seed": SEED, "errors": table}, module="simulations.papers.hinton")
    return table


if __name__ == "__main__":
    main()
