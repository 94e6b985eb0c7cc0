"""Server aggregation of K = 100, M = 10,000, C = 10: time over one ``np.mean`` of the same bytes, and peak memory.

Run: python -m simulations.benchmarks.aggregation
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np

from fedkd.aggregation import aggregator, in_chunks
from fedkd.records import Release
from fedkd.softlabels import Array
from simulations.benchmarks.bench import save

K, M, C = 100, 10_000, 10
REPEATS = 7


def best(work: Callable[[], Any]) -> float:
    """Return the least of several times, in milliseconds: the rest is other people's noise."""
    work()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def peak(work: Callable[[], Any]) -> float:
    """Return the memory that ``work`` takes at most on top of its input, in MB."""
    tracemalloc.start()
    work()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most / 1e6


def main() -> None:
    """Measure and save."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(C), (K, M)).astype(np.float32)
    w = rng.uniform(0.1, 1, (K, M)).astype(np.float32)
    releases = [Release(np.asfortranarray(p[k]), w[k]) for k in range(K)]  # as the codec decodes them
    stacked: Array = np.ascontiguousarray(p.transpose(0, 2, 1)).transpose(
        0, 2, 1
    )  # as fedkd.aggregation.stack lays out
    reference = best(lambda: p.mean(axis=0))
    rows = {}
    for name, function in aggregator:
        rows[name] = {
            "ms": round(best(lambda f=function: f(stacked, w)), 2),  # type: ignore[misc]
            "over_np_mean": round(best(lambda f=function: f(stacked, w)) / reference, 2),  # type: ignore[misc]
        }
    chunked = {}
    for chunk in (256, 1024, M):
        chunked[str(chunk)] = {
            "ms": round(best(lambda n=chunk: in_chunks(dict(aggregator)["mean"], releases, rows=n)), 2),  # type: ignore[misc]
            "peak_mb": round(peak(lambda n=chunk: in_chunks(dict(aggregator)["mean"], releases, rows=n)), 1),  # type: ignore[misc]
        }
    save(
        "aggregation",
        {
            "shape": {"K": K, "M": M, "C": C, "ballots_mb": round(p.nbytes / 1e6, 1)},
            "np_mean_ms": round(reference, 2),
            "aggregators_on_stacked_ballots": rows,
            "mean_from_releases_in_chunks_of_rows": chunked,
        },
    )


if __name__ == "__main__":
    main()
