"""What `fedkd run` reaches without any option: the scoreboard of the bundled digits, over seeds.

Run: python -m simulations.benchmarks.default [seeds] (5 seeds: 2 minutes on 2 cores)
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from simulations.benchmarks.bench import save, spread

SCORES = ("student", "ensemble", "local_best", "local_mean", "pooled")


def once(seed: int) -> dict[str, float]:
    """Return the scoreboard of one run in a fresh folder."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "fedkd", "run", "--name", "default", "--set", f"seed={seed}"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        summary = json.loads((Path(folder) / "runs" / "default" / "summary.json").read_text())
    return {score: summary["scoreboard"][score] for score in SCORES}


def main() -> None:
    """Measure over seeds and save."""
    seeds = list(range(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
    boards = [once(seed) for seed in seeds]
    save("default", {"seeds": seeds, "accuracy": {score: spread([b[score] for b in boards]) for score in SCORES}})


if __name__ == "__main__":
    main()
