"""What a round costs before anyone computes anything: in process, and in Flower's own simulation.

Ten clients that predict class frequencies, 100 transfer samples, 5 rounds. The whole command includes all imports; an
empty round is the least of rounds 2 to 5.
Run: python -m simulations.benchmarks.engines (about 6 minutes on 2 cores; needs ray)
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from simulations.benchmarks.bench import save, spread

REPEATS = 3
SETTINGS = [
    "clients=10",
    "rounds=5",
    "partition=iid",
    "transfer=split(size=100)",
    "learner=constant",
    "student=constant",
    "expertise=uniform",
    "release=argmax",
    "pooled=false",
    "evaluate=false",
]


def once(engine: str) -> tuple[float, float]:
    """Return (seconds of the whole command, least seconds of a later round) of one run in a fresh folder."""
    sets = [word for setting in SETTINGS for word in ("--set", setting)]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        command = [sys.executable, "-m", "fedkd", "run", "--engine", engine, "--name", "empty", *sets]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        whole = time.perf_counter() - start
        rows = (Path(folder) / "runs" / "empty" / "metrics.jsonl").read_text().splitlines()
    return whole, min(sum(json.loads(row)["seconds"].values()) for row in rows[1:])


def main() -> None:
    """Measure both in turn and save."""
    found: dict[str, list[tuple[float, float]]] = {"inprocess": [], "flower": []}
    for _ in range(REPEATS):
        for engine, values in found.items():
            values.append(once(engine))
    save(
        "engines",
        {
            "settings": SETTINGS,
            "whole_command_seconds": {engine: spread([a for a, _ in values], 2) for engine, values in found.items()},
            "empty_round_seconds": {engine: spread([b for _, b in values], 4) for engine, values in found.items()},
        },
    )


if __name__ == "__main__":
    main()
