"""Who was in the data, told from released soft labels alone: LiRA (Carlini et al., arXiv:2112.03570) on one client.

Every model is trained on a random half of the same private images. Each in turn is the client under attack and all
others are the attacker's own. The attacker sees the soft labels of public images only, distills a surrogate from them,
and looks how sure that one is of each private image. Beside it: the same attack with the client's model itself at
hand, and a threshold without shadow models, which misses what LiRA finds.

With few models, leaving one out costs the side that it was on: without any leak the area is a little below 0.5.
Expected: an area of at least 0.60 from labels where nothing protects, at most 0.55 with DP-SGD at epsilon 1.

Run: python -m simulations.privacy.mia [--small] [--only linear] [--output mia.json]
(Fashion-MNIST, 4 minutes of one core, most of them for the network; with --small the digits, seconds)
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from fedkd.dataset import as_inputs, load
from fedkd.events import SampledGaussian
from fedkd.files import write_atomic
from fedkd.learner import Learner, Training, make_learner, set_threads
from fedkd.linear_learner import LinearLearner
from fedkd.metrics import accuracy
from fedkd.privacy.audit import Interval, auc, confidence_logit, leave_one_out, tpr_at
from fedkd.privacy.calibrate import noise_multiplier
from fedkd.privacy.noise import SystemEntropy
from fedkd.random import derive, generator
from fedkd.softlabels import Array

SEED = 0
FULL = {"data": "fashion_mnist", "private": 500, "public": 2000, "models": 32}
SMALL = {"data": "digits", "private": 150, "public": 400, "models": 8}
DELTA, RATE, CLIP, STEPS = 1e-5, 1.0, 0.1, 15  # so few examples are best taken all in each step
ALARMS = (0.01, 0.001)
DIMENSIONS, FEW = 60, 30
"""Principal components that a linear model works in; noise falls on each, so a private one takes few."""
PLAIN = Training(epochs=30, distill_epochs=100)  # steps over all rows
NETWORK = Training(epochs=60, distill_epochs=30, batch_size=32, learning_rate=3e-3)
CLIENTS: dict[str, tuple[str, float]] = {
    "network, no protection": ("mlp(hidden=64)", 0.0),
    "linear, no protection": ("linear", 0.0),
    "linear, DP-SGD epsilon 8": ("linear", 8.0),
    "linear, DP-SGD epsilon 1": ("linear", 1.0),
}


@dataclass(frozen=True, eq=False)
class Scene:
    """Private candidates of which each model gets a random half, ``member`` (S, N); public inputs; a test set."""

    x: Array
    y: Array
    member: Array
    public: Array
    x_test: Array
    y_test: Array
    classes: int


def scene(data: str, private: int, public: int, models: int) -> Scene:
    """Return the scene; models come in pairs that share no example, so that each example is in half of them."""
    loaded = load(data)
    rows = generator(SEED, "mia rows").permutation(len(loaded.x))[: 2 * private + public]
    candidates, shared = rows[: 2 * private], rows[2 * private :]
    member = np.zeros((models, 2 * private), bool)
    for pair in range(models // 2):
        order = generator(SEED, "mia members", pair).permutation(2 * private)
        member[2 * pair, order[:private]] = member[2 * pair + 1, order[private:]] = True
    test = as_inputs(loaded.x_test[:2000]), loaded.y_test[:2000]
    return Scene(
        as_inputs(loaded.x[candidates]),
        loaded.y[candidates],
        member,
        as_inputs(loaded.x[shared]),
        *test,
        loaded.classes,
    )


@cache
def noise(epsilon: float) -> float:
    """Return the noise that DP-SGD needs for ``epsilon``."""
    return noise_multiplier(epsilon, DELTA, lambda z: [SampledGaussian(RATE, z, STEPS)])


def fresh(spec: str, epsilon: float, s: Scene, seed: int) -> Learner:
    """Return an untrained model; linear ones work on raw pixels, in the principal components of the public images."""
    shape = s.x.shape[1:]
    if spec != "linear":
        return make_learner(spec, shape=shape, classes=s.classes, training=NETWORK, seed=seed)
    model = LinearLearner(shape, s.classes, PLAIN, features="raw", dimensions=FEW if epsilon else DIMENSIONS)
    model.see(s.public)
    return model


def trained(spec: str, epsilon: float, s: Scene, number: int) -> Learner:
    """Return the model of a client that holds the examples of model ``number``."""
    model, mine = fresh(spec, epsilon, s, derive(SEED, "mia model", number)), s.member[number]
    if not epsilon:
        model.fit(s.x[mine], s.y[mine], rng=generator(SEED, "mia fit", number))
    elif isinstance(model, LinearLearner):
        model.fit_private(
            s.x[mine],
            s.y[mine],
            rate=RATE,
            clip=CLIP,
            noise_multiplier=noise(epsilon),
            steps=STEPS,
            expected_batch=RATE * int(mine.sum()),  # every client holds as many, which everybody knows here
            entropy=SystemEntropy(),
        )
    return model


def surrogate(spec: str, epsilon: float, s: Scene, labels: Array, number: int) -> Learner:
    """Return what an attacker makes of released labels: a model of the same kind, distilled from them."""
    model = fresh(spec, epsilon, s, derive(SEED, "mia surrogate"))
    model.distill(s.public, labels, w=np.ones(len(labels), np.float32), rng=generator(SEED, "mia distill", number))
    return model


def attack(spec: str, epsilon: float, s: Scene) -> dict[str, object]:
    """Train all models of a kind and return how well members are told from others."""
    direct, released = list[Array](), list[Array]()
    train, test = list[float](), list[float]()
    for number in range(len(s.member)):
        model, mine = trained(spec, epsilon, s, number), s.member[number]
        p = model.predict(s.x)
        train.append(accuracy(p[mine], s.y[mine]) or 0.0)
        test.append(accuracy(model.predict(s.x_test), s.y_test) or 0.0)
        labels = model.predict(s.public).astype(np.float16).astype(np.float32)  # what a release holds
        direct.append(confidence_logit(p, s.y))
        released.append(confidence_logit(surrogate(spec, epsilon, s, labels, number).predict(s.x), s.y))
    scores = leave_one_out(np.stack(released), s.member)
    return {
        "train accuracy": round(float(np.mean(train)), 3),
        "test accuracy": round(float(np.mean(test)), 3),
        "labels": told(scores, s.member),
        "model itself": told(leave_one_out(np.stack(direct), s.member), s.member),
        "threshold on labels": _interval(auc(np.stack(released)[s.member], np.stack(released)[~s.member])),
    }


def told(scores: Array, member: Array) -> dict[str, list[float]]:
    """Return area and true positive rates of scores (S, N), each as [value, low, high] at 95 %."""
    inside, outside = scores[member], scores[~member]
    rng = generator(SEED, "mia bootstrap")
    found = {f"found at {a:.1%} alarms": tpr_at(inside, outside, a, rng=rng, times=200) for a in ALARMS}
    return {name: _interval(one) for name, one in {"area": auc(inside, outside), **found}.items()}


def _interval(found: Interval) -> list[float]:
    return [round(found.value, 4), round(found.low, 4), round(found.high, 4)]


def main(arguments: list[str] | None = None) -> dict[str, dict[str, object]]:
    """Print what was told of each kind of client, and return it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true", help="the bundled digits, in seconds")
    parser.add_argument("--only", default="", help="only kinds of clients with this in their name")
    parser.add_argument("--output", type=Path, help="where to write the table as JSON")
    given, rows = parser.parse_args(arguments), dict[str, dict[str, object]]()
    set_threads(1)
    sizes = SMALL if given.small else FULL
    s = scene(**sizes)  # type: ignore[arg-type]
    print(f"{sizes}, seed {SEED}, delta {DELTA:g}; area of LiRA, [95 %]")
    for name, (spec, epsilon) in ((name, made) for name, made in CLIENTS.items() if given.only in name):
        start = time.perf_counter()
        rows[name] = row = attack(spec, epsilon, s)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
        for key, value in row.items():
            print(f"    {key:<20} {value}", flush=True)
    if given.output:
        told = {"scene": {**sizes, "seed": SEED, "delta": DELTA}, "clients": rows}
        write_atomic(given.output, (json.dumps(told, indent=1) + "\n").encode())
    return rows


if __name__ == "__main__":
    main()
