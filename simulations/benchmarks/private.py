"""What privacy costs on the bundled digits: student accuracy by epsilon, presets ``private`` and ``private_clients``.

One round, delta 1e-5, five splits of the data; "no noise" is the same federation with ``protect = none``. The noise
comes from the operating system, so that numbers differ a little from run to run.
Run: python -m simulations.benchmarks.private [--seeds 5] (about 4 minutes on 2 cores)
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from simulations.benchmarks.bench import save, spread
from simulations.scene import play

PRESETS = ("private", "private_clients")
EPSILONS = (0.0, 1.0, 3.0, 8.0)


def once(preset: str, epsilon: float, seed: int) -> dict[str, Any]:
    """Return the accuracy of student and teacher; an epsilon of 0 means no protection."""
    budget: dict[str, Any] = {"epsilon": epsilon} if epsilon else {"epsilon": 0.0, "protect": "none"}
    last = play(preset, **budget, seed=seed, pooled=False)[-1].metrics
    return {"student": last["student"], "teacher": last["ensemble"]}


def main() -> None:
    """Measure over seeds and save."""
    parser = argparse.ArgumentParser(prog="python -m simulations.benchmarks.private")
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    seeds = list(range(parser.parse_args().seeds))
    jobs = [(preset, epsilon, seed) for preset in PRESETS for epsilon in EPSILONS for seed in seeds]
    with ProcessPoolExecutor(2) as pool:
        runs = dict(zip(jobs, pool.map(once, *zip(*jobs, strict=True)), strict=True))
    tables = {
        preset: {
            f"epsilon {epsilon:g}" if epsilon else "no noise": {
                key: spread([runs[preset, epsilon, seed][key] for seed in seeds]) for key in ("student", "teacher")
            }
            for epsilon in EPSILONS
        }
        for preset in PRESETS
    }
    save("private", {"delta": 1e-5, "seeds": len(seeds), "presets": tables})


if __name__ == "__main__":
    main()
