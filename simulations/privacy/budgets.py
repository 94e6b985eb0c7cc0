"""Is it better to ask all clients for little, or a few for much? Owners differ in what they allow.

A share of the owners allow epsilon 8 for every single example, the others 1, in all runs together
(``budget-epsilon`` of a node). A run at epsilon 1 is answered by everybody, one at 8 only by the generous, since
the ledgers of the others refuse before anything is read. Digits, 20 clients, one round, DP-SGD of linear models.

Run: python -m simulations.privacy.budgets [--seeds 5]
(5 minutes of one core)
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from fedkd.client import Site
from fedkd.config import Config, resolve
from fedkd.federation import federation
from fedkd.privacy.ledger import Budget
from fedkd.rounds import Evaluation, Loop
from fedkd.scoreboard import build_student
from simulations.benchmarks.bench import save, spread
from simulations.scene import Direct

GENEROUS, CAUTIOUS, DELTA = 8.0, 1.0, 1e-5
SHARES = (0.1, 0.25, 0.5, 1.0)
PARTITIONS = ("iid", "dirichlet(alpha=0.3)")
SCENE: dict[str, Any] = {"clients": 20, "delta": DELTA, "quorum": 0.05, "pooled": False}


def scene(epsilon: float, partition: str, seed: int) -> Config:
    """Return the run that asks for ``epsilon``."""
    given = {**SCENE, "epsilon": epsilon, "partition": partition, "seed": seed}
    protect = "dp_sgd(rate=1.0, clip=0.1, examples=50, step=0.3)"
    preset = resolve(preset="private", environ={}).config.model_dump()
    return Config.read({**preset, **given, "protect": protect}, where="simulation")


def budgets(clients: int, share: float) -> list[float]:
    """Return what each owner allows: the first ``share`` of them are generous, at least one is."""
    generous = max(1, round(share * clients))
    return [GENEROUS] * generous + [CAUTIOUS] * (clients - generous)


def once(config: Config, allowed: list[float]) -> tuple[int, float]:
    """Return how many clients answered, and the student's accuracy on test data."""
    shared = federation(config.data, config.transfer, config.partition, config.clients, config.seed)
    with tempfile.TemporaryDirectory() as folder:
        sites = [
            Site(
                key=k,
                x=x,
                y=y,
                classes=shared.dataset.classes,
                transfer=shared.transfer,
                test=None,
                state=Path(folder) / f"{k}.safetensors",
                ledger=Path(folder) / f"ledger-{k}",
                budget=Budget(allowed[k], DELTA),
            )
            for k, (x, y) in ((k, shared.private(k)) for k in range(config.clients))
        ]
        student = build_student(config, shared)
        evaluation = Evaluation(shared.test(), shared.truth)
        loop = Loop(config, shared.transfer, shared.dataset.classes, student, evaluation=evaluation)
        (report,) = loop.run(Direct(sites, config))
    return int(report.metrics["answered"] or 0), float(report.metrics["student"] or 0.0)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure and save; return the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args(arguments).seeds
    table: dict[str, Any] = {}
    for partition in PARTITIONS:
        for epsilon, share in [(CAUTIOUS, 0.5), *((GENEROUS, share) for share in SHARES)]:
            runs = []
            for seed in range(seeds):
                config = scene(epsilon, partition, seed)
                runs.append(once(config, budgets(config.clients, share)))
            whom = "all are asked for 1" if epsilon == CAUTIOUS else f"8, which {share:.0%} allow"
            answered = {"answered": runs[0][0], "student": spread([student for _, student in runs])}
            table.setdefault(partition, {})[whom] = answered
    save("privacy_budgets", {"seeds": seeds, "scene": SCENE, "accuracy": table}, module="simulations.privacy.budgets")
    return table


if __name__ == "__main__":
    main()
