"""What the benchmarks share: who measured, and a result file with command, machine and versions beside the numbers."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
SHORT = 200
"""Lines of a result that are printed."""


def machine() -> str:
    """Return processor, cores and memory, as Linux names them."""
    model = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, no GPU used"


def save(name: str, result: dict[str, Any], *, module: str = "") -> None:
    """Write ``results/NAME.json``, print it unless it is long; ``module`` made it, or the benchmark of this name."""
    made_by = f"simulations.benchmarks.{name}" if module in ("", "__main__") else module
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    about = {
        "command": f"python -m {made_by} {' '.join(sys.argv[1:])}".strip(),
        "machine": machine(),
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in ("flwr", "torch", "numpy")},
        "commit": git.stdout.strip() or "unknown",
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({"about": about, **result}, indent=1) + "\n")
    text = json.dumps(result, indent=1)
    print(text if text.count("\n") <= SHORT else f"{name}.json is written; for tables: python -m simulations.results")


def spread(values: list[float], digits: int = 4) -> dict[str, Any]:
    """Return mean, standard deviation (n - 1), median and the values themselves."""
    return {
        "mean": round(statistics.mean(values), digits),
        "sd": round(statistics.stdev(values), digits) if len(values) > 1 else None,
        "median": round(statistics.median(values), digits),
        "values": [round(v, digits) for v in values],
    }
