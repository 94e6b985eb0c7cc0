"""Who was in the data, told from what a federation shows, over epsilon: LiRA (Carlini et al., arXiv:2112.03570).

Four clients with the same linear model on raw pixels, one round, without protection and with every example hidden at
epsilon 8, 3 and 1 (delta 1e-5). Each client trains on a random half of at most 1000 of its examples. Attacked are the
labels that a client releases, the teacher made of all four, and the student. ``fedkd audit mia`` does the same for any
configuration.

Expected: an area of at least 0.60 from labels where nothing protects, at most 0.55 at epsilon 1; teacher and student
give away less. With few runs, leaving one out costs the side that it was on: without a leak it is a little below 0.5.

Run: python -m simulations.privacy.mia [--small] [--output mia.json]
(Fashion-MNIST, some 5 minutes of one core, most of them for the student; with --small the digits, 40 s)
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from fedkd.audits.membership import VIEWS, Found, attack_membership
from fedkd.config import Config
from fedkd.files import write_atomic

EPSILONS = (0.0, 8.0, 3.0, 1.0)  # 0: no protection
FULL: dict[str, Any] = {"data": "fashion_mnist", "transfer": "split(size=2000)"}
SMALL: dict[str, Any] = {"data": "digits", "transfer": "split(size=400)"}
STUDENT = "mlp"
RUNS = {"full": 32, "small": 16}
EXAMPLES = 500
PLAIN, PRIVATE = "linear(features='raw', dimensions=60)", "linear(features='raw', dimensions=30)"
"""Noise falls on every direction that a model works in, so a private one takes fewer."""


def scene(epsilon: float, *, small: bool) -> Config:
    """Return the configuration; so few examples are best taken all in each step (rate 1)."""
    private: dict[str, Any] = {
        "learner": PRIVATE,
        "local_epochs": 15,
        "protect": f"dp_sgd(rate=1.0, clip=0.1, examples={120 if small else EXAMPLES})",
        "epsilon": epsilon,
    }
    plain: dict[str, Any] = {"learner": PLAIN, "local_epochs": 30}
    return Config(
        preset="one_shot",
        clients=4,
        partition="iid",
        expertise="uniform",
        evidence="none",
        student=STUDENT,
        batch_size=128,
        **(SMALL if small else FULL),
        **(private if epsilon else plain),
    )


def row(found: Found) -> dict[str, Any]:
    """Return area and share of members found at 1 % and 0.1 % false alarms, each with its interval at 95 %."""
    numbers = {"area": found.area, **dict(zip(("at 1 %", "at 0.1 %"), found.found, strict=True))}
    told: dict[str, Any] = {name: [round(x, 4) for x in (n.value, n.low, n.high)] for name, n in numbers.items()}
    return {**told, "at most": [round(most, 4) for most in found.at_most]}


def main(arguments: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """Print what was told at each epsilon, and return it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true", help="the bundled digits, in seconds")
    parser.add_argument("--output", type=Path, help="where to write the table as JSON")
    given, table = parser.parse_args(arguments), dict[str, dict[str, Any]]()
    runs = RUNS["small" if given.small else "full"]
    print(f"{runs} runs; area under the curve, members found at 1 % and 0.1 % false alarms, [95 %]")
    for epsilon in EPSILONS:
        start, name = time.perf_counter(), f"epsilon {epsilon:g}" if epsilon else "no protection"
        found = attack_membership(scene(epsilon, small=given.small), shadows=runs, examples=EXAMPLES)
        table[name] = {one.view: row(one) for one in found}
        print(f"{name}, {time.perf_counter() - start:.0f} s", flush=True)
        for one in found:
            told = table[name][one.view]
            print(f"    {VIEWS[one.view]:<22} {told['area']}  {told['at 1 %']}  {told['at 0.1 %']}", flush=True)
    if given.output:
        about = {"runs": runs, "examples": EXAMPLES, **scene(1.0, small=given.small).model_dump()}
        write_atomic(given.output, (json.dumps({"scene": about, "table": table}, indent=1) + "\n").encode())
    return table


if __name__ == "__main__":
    main()
