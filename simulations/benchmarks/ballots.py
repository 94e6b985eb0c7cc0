"""Bytes of a ballot against accuracy: Fashion-MNIST, 10 clients x 2000 images, Dirichlet 0.1, 1000 rows, 5 rounds.

Every row of the table is the default method with another release chain; bytes are those of frames, a client's mean in
each round (the first is cold: weights and all labels; later ones are deltas where the chain has them).
Run: python -m simulations.benchmarks.ballots [seeds] (5 seeds: 25 minutes on 2 cores; needs the Fashion-MNIST data set)
"""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from simulations.benchmarks.bench import save, spread
from simulations.scene import play

SCENE: dict[str, Any] = {
    "data": "fashion_mnist",
    "transfer": "split(size=40000)",
    "partition": "dirichlet(alpha=0.1)",
    "select": "fixed(size=1000)",
    "clients": 10,
    "rounds": 5,
    "learner": "mlp",
    "student": "mlp",
    "local_epochs": 2,
    "feedback_epochs": 1,
    "distill_epochs": 20,
    "batch_size": 64,
    "learning_rate": 0.001,
    "pooled": False,
}
CHAINS = (
    "float32",
    "float16",
    "quantize(bits=3)",
    "argmax",
    "argmax | range_code",
    "argmax | weights(bits=4) | delta | range_code",
    "quantize(bits=2) | weights(bits=4) | delta | range_code",
    "quantize(bits=3) | weights(bits=4) | delta | range_code",
)


def once(chain: str, seed: int) -> dict[str, Any]:
    """Return student and teacher accuracy of the last round, and bytes a client by round."""
    reports = play("expert", **{**SCENE, "release": chain, "seed": seed})
    last = reports[-1].metrics
    return {
        "student": last["student"],
        "teacher": last["ensemble"],
        "bytes": [(r.metrics["bytes_up"] or 0) / SCENE["clients"] for r in reports],
    }


def main() -> None:
    """Measure over seeds and save."""
    seeds = list(range(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
    jobs = [(chain, seed) for seed in seeds for chain in CHAINS]
    with ProcessPoolExecutor(2) as pool:
        runs = dict(zip(jobs, pool.map(once, *zip(*jobs, strict=True)), strict=True))
    table = {}
    for chain in CHAINS:
        of = [runs[chain, seed] for seed in seeds]
        table[chain] = {
            "student": spread([run["student"] for run in of]),
            "teacher": spread([run["teacher"] for run in of]),
            "first_round_bytes": spread([run["bytes"][0] for run in of], 1),
            "later_round_bytes": spread([sum(run["bytes"][1:]) / (SCENE["rounds"] - 1) for run in of], 1),
            "last_round_bytes": spread([run["bytes"][-1] for run in of], 1),
        }
    save("ballots", {"scene": SCENE, "seeds": seeds, "chains": table})


if __name__ == "__main__":
    main()
