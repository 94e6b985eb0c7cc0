"""Client-level privacy on Fashion-MNIST: 500 clients of 100 images, all that a client holds hidden, delta 1e-5.

Ours: one round, 4,000 of 10,000 transfer images asked, noise on the sum of ballots of linear models on public features.
DP-FedAvg: the same features and clients, weights instead of ballots; rounds, local steps and clip are those of a grid
that did best on the TEST set of seed 0 at each epsilon, which flatters it; the best has the most rounds of the
grid, so more may be better still.
Run: python -m simulations.benchmarks.private_crowd [--seeds 5] (needs the Fashion-MNIST data set)
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

import numpy as np

from fedkd.config import Config
from fedkd.events import Gaussian
from fedkd.federation import federation
from fedkd.learner import Training, make_learner
from fedkd.learner.linear_learner import LinearLearner
from fedkd.privacy.calibrate import noise_multiplier
from fedkd.privacy.noise import SystemEntropy
from fedkd.softlabels import Array
from simulations.benchmarks.bench import save, spread
from simulations.private_baselines import Recipe, dp_fedavg
from simulations.scene import play

DELTA = 1e-5
EPSILONS = (0.0, 1.0, 3.0, 8.0)
FEATURES, DIMENSIONS = "shapes", 200
SCENE: dict[str, Any] = {
    "data": "fashion_mnist",
    "transfer": "split(size=10000)",
    "select": "fixed(size=4000)",
    "partition": "iid",
    "clients": 500,
    "learner": f"linear(features='{FEATURES}', dimensions={DIMENSIONS})",
    "student": f"linear(features='{FEATURES}', dimensions={DIMENSIONS})",
    "local_epochs": 5,
    "distill_epochs": 30,
    "pooled": False,
}
GRID = [
    Recipe(rounds, local_steps, step, clip)
    for rounds, local_steps in ((1, 10), (5, 1), (5, 5), (20, 1), (20, 5))
    for step, clip in itertools.product((0.5, 2.0), (0.1, 0.3, 1.0))
]
"""Where public rows have unit moments, 2 is one over the bound on the curvature (Böhning, 1992) of many rows."""
RIDGE = 0.03


def ours(epsilon: float, seed: int) -> float:
    """Return the student's accuracy; an epsilon of 0 means no protection."""
    budget: dict[str, Any] = {"epsilon": epsilon} if epsilon else {"epsilon": 0.0, "protect": "none"}
    return play("private_clients", **SCENE, **budget, seed=seed, local=False)[-1].metrics["student"] or 0.0


class Weights:
    """What DP-FedAvg learns from: the rows of every client and of the test set."""

    def __init__(self, seed: int) -> None:
        """Deal the data as :func:`ours` does."""
        c = Config(**{key: SCENE[key] for key in ("data", "transfer", "partition", "clients")}, seed=seed)
        shared = federation(c.data, c.transfer, c.partition, c.clients, c.seed)
        x, self.y_test = shared.test()
        model = make_learner(
            f"linear(features='{FEATURES}', dimensions={DIMENSIONS})",
            shape=x.shape[1:],
            classes=shared.dataset.classes,
            training=Training(1, 1, 1, 1.0),
            seed=0,
        )
        assert isinstance(model, LinearLearner)
        model.see(shared.transfer.inputs)
        public = model.rows(shared.transfer.inputs).astype(np.float64)
        moments = public.T @ public / len(public)
        ridge = RIDGE * np.trace(moments) / len(moments) * np.eye(len(moments))
        even = np.linalg.cholesky(np.linalg.inv(moments + ridge))  # public rows differ alike in all directions
        self.classes, self.v_test = shared.dataset.classes, model.rows(x) @ even
        self.shares = [(model.rows(x) @ even, y) for x, y in map(shared.private, range(c.clients))]

    def accuracy(self, epsilon: float, recipe: Recipe) -> float:
        """Return what DP-FedAvg by ``recipe`` reaches at this epsilon; 0 means no noise."""
        noise = noise_multiplier(epsilon, DELTA, lambda z: [Gaussian(z, recipe.rounds)]) if epsilon else 0.0
        found: Array = dp_fedavg(self.shares, self.classes, recipe, noise, SystemEntropy())[0]
        return float(np.mean((self.v_test @ found).argmax(axis=1) == self.y_test))


def main() -> None:
    """Measure over seeds, saving after each."""
    parser = argparse.ArgumentParser(prog="python -m simulations.benchmarks.private_crowd")
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args().seeds
    runs: dict[str, dict[str, list[float]]] = {"fedkd": {}, "DP-FedAvg": {}}
    chosen: dict[str, Recipe] = {}
    for seed in range(seeds):
        weights = Weights(seed)
        for epsilon in EPSILONS:
            name = f"epsilon {epsilon:g}" if epsilon else "no noise"
            if name not in chosen:
                chosen[name] = max(GRID, key=lambda recipe: weights.accuracy(epsilon, recipe))
            runs["DP-FedAvg"].setdefault(name, []).append(weights.accuracy(epsilon, chosen[name]))
            runs["fedkd"].setdefault(name, []).append(ours(epsilon, seed))
        tables = {
            method: {name: {"accuracy": spread(values)} for name, values in rows.items()}
            for method, rows in runs.items()
        }
        recipes = {name: vars(recipe) for name, recipe in chosen.items()}
        save(
            "private_crowd",
            {"delta": DELTA, "seeds": seed + 1, "scene": SCENE, "methods": tables, "recipes of DP-FedAvg": recipes},
        )


if __name__ == "__main__":
    main()
