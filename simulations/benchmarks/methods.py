"""Every method on the same data: Fashion-MNIST, 10 clients, 54,000 private and 6,000 transfer images, LeNet of 21,840.

Student accuracy after each round and bytes of frames a client, for several splits of the data and several seeds. FedAvg
and FedDF, which send weights, take the same local passes; FedDF distills as long as the student does. Runs
that are in the result file already are not made again, so the benchmark can be stopped and continued, seed by seed.
Run: python -m simulations.benchmarks.methods [--rounds 20] [--seeds 5] [--splits dirichlet] [--presets expert ds_fl]
(about 10 minutes a run of 20 rounds on one core; two runs at a time; needs the Fashion-MNIST data set)
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

from fedkd.config import Config
from simulations.baselines import play_weights
from simulations.benchmarks.bench import RESULTS, save
from simulations.scene import play
from simulations.summaries import frontier

SCENE: dict[str, Any] = {
    "data": "fashion_mnist",
    "transfer": "split(size=6000)",
    "clients": 10,
    "learner": "lenet",
    "student": "lenet",
    "local_epochs": 1,
    "distill_epochs": 5,
    "feedback_epochs": 1,
    "batch_size": 64,
    "learning_rate": 0.003,
    "augment": "flip | shift(pixels=1)",
    "schedule": "cosine",
    "pooled": False,
}
ONE_SHOT = {"distill_epochs": 40, "local_epochs": 5}
"""What a run of one round has instead: where there are more, clients and student go on with what they have learned."""
SPLITS = {
    "iid": "iid",
    "two_classes": "classes(per_client=2)",
    "one_class": "classes(per_client=1)",
    "dirichlet": "dirichlet(alpha=0.1)",
}
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "expert": ("tiny", {}),
    "fedmd": ("fedmd", {}),
    "ds_fl": ("ds_fl", {}),
    "scarlet": ("scarlet", {"select": "cache_miss(size=1000, duration=50)"}),
    "selective_fd": ("selective_fd", {"select": "uniform(size=1000)"}),
}
"""Label to preset and what it needs to fit 6,000 transfer images; all else is the scene of all."""
WEIGHTS = {"fedavg": False, "feddf": True}
"""Baselines that send weights, and whether they distill."""
LABELS = [*PRESETS, *WEIGHTS]
DRAWN = ("dirichlet", 20)
"""Split and rounds of the picture."""


def once(split: str, label: str, rounds: int, seed: int) -> dict[str, Any]:
    """Return what one run came to, round by round."""
    start = time.perf_counter()
    scene = {**SCENE, **(ONE_SHOT if rounds == 1 else {}), "partition": SPLITS[split], "rounds": rounds, "seed": seed}
    found = _weights(scene, distill=WEIGHTS[label]) if label in WEIGHTS else _predictions(scene, *PRESETS[label])
    run = {"split": split, "method": label, "seed": seed, "rounds": rounds}
    return {**run, **found, "seconds": round(time.perf_counter() - start, 1)}


def _predictions(scene: dict[str, Any], preset: str, own: dict[str, Any]) -> dict[str, Any]:
    reports, clients = play(preset, **{**scene, **own}), SCENE["clients"]
    return {
        "student": [r.metrics["student"] for r in reports],
        "teacher": [r.metrics["ensemble"] for r in reports],
        "local": [r.metrics["local_mean"] for r in reports],
        "up": [(r.metrics["bytes_up"] or 0) / clients for r in reports],
        "down": [(r.metrics["bytes_down"] or 0) / clients for r in reports],
    }


def _weights(scene: dict[str, Any], *, distill: bool) -> dict[str, Any]:
    reports = play_weights(Config.read(scene, where="simulation"), distill=distill)
    sent = [r.bytes_each_way for r in reports]
    return {"student": [r.accuracy for r in reports], "up": sent, "down": sent}


def main() -> None:
    """Make the runs that are missing, saving after each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--splits", nargs="+", default=list(SPLITS), choices=list(SPLITS))
    parser.add_argument("--presets", nargs="+", default=LABELS, choices=LABELS)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    path = RESULTS / "methods.json"
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    there = {(r["split"], r["method"], r["seed"], r["rounds"]) for r in runs}
    missing = [
        (split, label, given.rounds, seed)
        for seed in range(given.seeds)
        for split in given.splits
        for label in given.presets
        if (split, label, seed, given.rounds) not in there
    ]
    with ProcessPoolExecutor(given.workers) as pool:
        for done in as_completed([pool.submit(once, *run) for run in missing]):
            run = done.result()
            runs = [*runs, run]
            runs.sort(key=lambda r: (r["rounds"], r["split"], r["method"], r["seed"]))
            if drawn := frontier(runs, split=DRAWN[0], rounds=DRAWN[1]):
                (RESULTS / "methods.svg").write_text(drawn, encoding="utf-8")
            save("methods", {"scene": SCENE, "one_shot": ONE_SHOT, "splits": SPLITS, "presets": PRESETS, "runs": runs})


if __name__ == "__main__":
    main()
