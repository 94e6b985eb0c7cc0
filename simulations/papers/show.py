"""What the papers share: run the variants of one, print a table, and say whether its claim holds here."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedkd.units import percent, size
from simulations.scene import play

SMALL: dict[str, Any] = {
    "data": "digits",
    "transfer": "split(size=300)",
    "partition": "dirichlet(alpha=0.3)",
    "clients": 6,
    "rounds": 3,
    "learner": "mlp",
    "student": "mlp",
    "local_epochs": 10,
    "pooled": False,
}
FULL: dict[str, Any] = {
    **SMALL,
    "data": "fashion_mnist",
    "transfer": "split(size=6000)",
    "partition": "dirichlet(alpha=0.1)",
    "clients": 10,
    "rounds": 10,
    "learner": "lenet",
    "student": "lenet",
    "local_epochs": 2,
    "distill_epochs": 5,
    "feedback_epochs": 2,
    "batch_size": 64,
    "learning_rate": 0.001,
}


@dataclass(frozen=True)
class Row:
    """What one variant came to: accuracies in [0, 1] after the last round (None: not measured), bytes of frames."""

    student: float | None
    teacher: float | None
    local: float | None
    up: float
    down: float


Variants = Mapping[str, tuple[str, Mapping[str, Any]]]
"""Name of a variant to its preset and its own settings."""

Claim = Callable[[Mapping[str, Row]], bool]


def measure(preset: str, settings: Mapping[str, Any]) -> Row:
    """Run one variant and return its row; bytes are a client's in all rounds."""
    reports = play(preset, **settings)
    last, clients = reports[-1].metrics, int(settings["clients"])
    up, down = (sum(r.metrics[key] or 0 for r in reports) / clients for key in ("bytes_up", "bytes_down"))
    return Row(last["student"], last["ensemble"], last["local_mean"], up, down)


def table(rows: Mapping[str, Row]) -> str:
    """Return the rows as text."""
    width = max(map(len, rows))
    lines = [f"{'':{width}}  student  teacher  local mean  up/client  down/client"]
    for name, row in rows.items():
        scores = "".join(f"{percent(v):>{w}}" for v, w in ((row.student, 9), (row.teacher, 9), (row.local, 12)))
        lines.append(f"{name:{width}}{scores}{size(row.up):>11}{size(row.down):>13}")
    return "\n".join(lines)


def main(
    variants: Variants,
    claim: str,
    holds: Claim,
    scene: Mapping[str, Any] | None = None,
    arguments: Sequence[str] | None = None,
) -> bool:
    """Run all variants on the same federation, print a table, and return whether the claim holds.

    ``scene`` are settings of the paper's own, on top of ``SMALL`` or ``FULL``.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true", help="digits, a few seconds")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    common = {**(SMALL if given.small else FULL), **(scene or {}), "seed": given.seed}
    rows = {name: measure(preset, {**common, **settings}) for name, (preset, settings) in variants.items()}
    print(table(rows))
    true = holds(rows)
    print(f"\n{claim}: {'yes' if true else 'NOT HERE'}")
    return true
