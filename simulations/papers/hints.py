"""FitNets, Romero et al., arXiv:1412.6550, and attention transfer, Zagoruyko and Komodakis, arXiv:1612.03928.

A small network learns from a larger one on public rows: from its soft labels alone, or also from where (``attention``)
or what (``feature``) a hidden layer of the teacher answers. Both models are on one machine: what clients share are
predictions only. The student has an eighth of the teacher's maps; for ``feature`` its last hidden layer is as wide.
On digits neither helps beyond the spread over seeds, and larger weights do harm: soft labels say it all there.
Run: python -m simulations.papers.hints [--small]
"""

import argparse
import statistics
from contextlib import ExitStack

import numpy as np

from fedkd.dataset import as_inputs, load
from fedkd.learner import Training, models, set_threads
from fedkd.learner.hint import Hint
from fedkd.learner.models import seeded
from fedkd.learner.torch_learner import TorchLearner
from fedkd.random import derive, generator

TEACHER, STUDENT, HIDDEN = 32, 4, 32  # maps of the first convolution, hidden units
MAPS, UNITS = "1", "8"  # layers of ``models.cnn``: the first convolution with its ReLU, the hidden units with theirs
WAYS = {
    "soft labels": (),
    "soft labels and attention": (("attention", MAPS, 0.1),),
    "soft labels and features": (("feature", UNITS, 0.001),),
}
TRAINING = Training(epochs=30, distill_epochs=100, batch_size=32, learning_rate=3e-3, schedule="cosine")
PUBLIC = {"digits": 200, "fashion_mnist": 2000}
"""Rows without labels that both models are shown: few, because a teacher's hidden layers help most then."""


def network(shape: tuple[int, ...], width: int, seed: int) -> TorchLearner:
    """Return an untrained small CNN."""
    make = seeded(seed, lambda: models.cnn(shape, 10, width=width, hidden=HIDDEN))
    return TorchLearner(make, TRAINING, f"cnn of {width} maps")


def once(name: str, seed: int) -> dict[str, float]:
    """Return test accuracy of the teacher and of a student taught in each way."""
    data = load(name)
    order = generator(seed, "order").permutation(len(data.y))
    public, private = order[: PUBLIC[name]], order[PUBLIC[name] :][:10_000]
    x, seen, test = as_inputs(data.x[private]), as_inputs(data.x[public]), as_inputs(data.x_test)
    teacher = network(x.shape[1:], TEACHER, derive(seed, "teacher"))
    teacher.fit(x, data.y[private], rng=generator(seed, "teacher"))
    scores = {"teacher": float((teacher.predict(test).argmax(1) == data.y_test).mean())}
    for way, hints in WAYS.items():
        student = network(x.shape[1:], STUDENT, derive(seed, "student"))
        with ExitStack() as stack:
            hint = None
            for kind, layer, weight in hints:
                hint = stack.enter_context(
                    Hint(student.network, teacher.network, layer=layer, kind=kind, weight=weight)
                )
            student.distill(
                seen, teacher.predict(seen), w=np.ones(len(seen)), rng=generator(seed, "student"), hint=hint
            )
        scores[way] = float((student.predict(test).argmax(1) == data.y_test).mean())
    return scores


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Print the mean accuracy over seeds in each way, and return it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true", help="the bundled digits, in seconds")
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args(arguments)
    set_threads(1)
    runs = [once("digits" if given.small else "fashion_mnist", seed) for seed in range(given.seeds)]
    table = {}
    for way in runs[0]:
        values = [run[way] for run in runs]
        table[way] = statistics.mean(values)
        sd = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{way:<28} {100 * table[way]:5.1f} ± {100 * sd:.1f}")
    return table


if __name__ == "__main__":
    main()
