"""What a release costs in the ledger of a client: milliseconds to reserve and to commit, every step on the disk.

A bare append of 300 bytes with one fsync is beside it, measured in turn with the others, since disks differ. The
filter is one addition, so that the accountant is not in these numbers.
Run: python -m simulations.benchmarks.ledger (half a minute)
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fedkd.events import Event, Gaussian, Neighbors, Unit
from fedkd.privacy.ledger import Budget, Fits, Ledger
from fedkd.privacy.ledger_report import verify
from simulations.benchmarks.bench import save

APPENDS = 200
PAYLOAD = b"\0" * 10_000  # 1000 labels of ten bytes


def plenty(epsilon: float, delta: float) -> Fits:
    """Return a filter that everything fits into."""

    def fits(spent: Sequence[Event], event: Event) -> bool:
        return True

    return fits


def timed(work: Callable[[], Any]) -> float:
    """Return how many milliseconds ``work`` takes."""
    start = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - start)


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Return the median, and the values that a tenth of all are below and above."""
    ordered = sorted(values)
    marks = {"median": 0.5, "tenth below": 0.1, "tenth above": 0.9}
    return {name: round(ordered[int(share * (len(ordered) - 1))], 3) for name, share in marks.items()}


def main() -> None:
    """Measure in the current directory, whose disk is the one that matters, and save."""
    taken: dict[str, list[float]] = {"bare append": [], "reserve": [], "commit 10 kB": [], "replay": []}
    with tempfile.TemporaryDirectory(dir=".") as parent:
        folder = Path(parent) / "ledger"
        bare = os.open(Path(parent) / "bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        def append() -> None:
            os.write(bare, b"\0" * 300)
            os.fsync(bare)

        with Ledger.open(
            folder,
            fingerprint="f00d",
            unit=Unit.EXAMPLE,
            neighbors=Neighbors.ADD_REMOVE,
            budget=Budget(1.0, 1e-5),
            fits=plenty,
        ) as ledger:
            for number in range(APPENDS):
                name, query = f"release-{number}", f"query-{number}"
                taken["bare append"].append(timed(append))
                reserve = partial(ledger.reserve, name, Gaussian(1.0), run="run", query_digest=query)
                taken["reserve"].append(timed(reserve))
                taken["commit 10 kB"].append(timed(partial(ledger.commit, name, PAYLOAD)))
                taken["replay"].append(timed(partial(ledger.replay, name, query)))
        os.close(bare)
        again = [timed(lambda: verify(folder)) for _ in range(5)]
        size = (folder / "ledger.jsonl").stat().st_size
    save(
        "ledger",
        {
            "work": {"releases": APPENDS, "load average": round(os.getloadavg()[0], 1)},
            "milliseconds": {name: quartiles(values) for name, values in taken.items()},
            "verify_ms": round(sorted(again)[2], 2),
            "bytes_per_release": round(size / APPENDS),
        },
    )


if __name__ == "__main__":
    main()
