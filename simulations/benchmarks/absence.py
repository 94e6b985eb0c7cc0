"""What it costs that half of all devices are away in every round: the student beside that of a federation in full.

The default federation on the bundled digits, of 8 and of 20 clients and over 3 and 8 rounds. In each round every client
is away with probability one half, by a coin of its own; at least two are there. Whoever comes back is told what has
changed meanwhile.
Run: python -m simulations.benchmarks.absence [--seeds 5]
(10 minutes of one core)
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from fedkd.config import Config, resolve
from fedkd.random import generator
from simulations.benchmarks.bench import save, spread
from simulations.scene import run

AWAY = 0.5
LEAST = 2
SCENES: dict[str, dict[str, Any]] = {
    "8 clients, 3 rounds": {"clients": 8, "rounds": 3},
    "8 clients, 8 rounds": {"clients": 8, "rounds": 8},
    "20 clients, 3 rounds": {"clients": 20, "rounds": 3},
    "20 clients, 8 rounds": {"clients": 20, "rounds": 8},
}


def there(seed: int, clients: int, round_: int) -> frozenset[int]:
    """Return who is there in a round: each by a fair coin, and the first of a shuffle if they are too few."""
    rng = generator(seed, "absence", "round", round_)
    order = rng.permutation(clients)
    came = np.flatnonzero(rng.random(clients) >= AWAY)
    return frozenset(came.tolist() if len(came) >= LEAST else order[:LEAST].tolist())


def once(scene: str, seed: int, absent: bool) -> float:
    """Return the accuracy of the student after the last round."""
    settings = {**SCENES[scene], "seed": seed, "pooled": False}
    preset = resolve(preset="expert", environ={}).config.model_dump()
    config = Config.read({**preset, **settings}, where="simulation")
    if not absent:
        return float(run(config)[-1].metrics["student"] or 0.0)
    here = {round_: there(seed, config.clients, round_) for round_ in range(1, config.rounds + 1)}
    reports = run(config, present=lambda client, round_: client in here[round_])
    return float(reports[-1].metrics["student"] or 0.0)


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    table: dict[str, Any] = {}
    with ProcessPoolExecutor(given.workers) as pool:
        jobs = {
            (scene, absent): [pool.submit(once, scene, seed, absent) for seed in range(given.seeds)]
            for scene in SCENES
            for absent in (False, True)
        }
        for scene in SCENES:
            full, half = ([job.result() for job in jobs[scene, absent]] for absent in (False, True))
            lost = [100 * (a - b) for a, b in zip(full, half, strict=True)]
            table[scene] = {"all there": spread(full), "half away": spread(half), "points lost": spread(lost, 2)}
    save("absence", {"seeds": given.seeds, "away": AWAY, "student": table})


if __name__ == "__main__":
    main()
