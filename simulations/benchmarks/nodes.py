"""What a device pays: our resident node beside a stock SuperNode, one client of each on a real SuperLink.

Digits, 4 rounds, half of the data each; memory of all processes of a node together (RSS, and PSS without what they
share), seconds from a query to its answer as the server sees them, after a first round that loads.
Run: python -m simulations.benchmarks.nodes (about 4 minutes on 2 cores)
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.config import Config
from fedkd.fleet.home import Home, Settings
from fedkd.flower import launch
from fedkd.site import shared_data
from simulations.benchmarks.bench import save

ROOT = Path(__file__).resolve().parents[2]
MARK = "FEDKD_BENCHMARK_NODE"
LOOK, IDLE = 0.1, 10.0
KINDS = ("warm", "stock")
LEARNERS = ("linear", "logistic", "onnx", "mlp")
"""Models in numpy, scikit-learn, ONNX Runtime (a tiny network under a head in numpy) and torch."""
OWN = {"onnx": f"onnx(path='{ROOT}/tests/vectors/bands.onnx', output='hidden')"}
"""What the node's owner chooses instead of the run's learner, since a run cannot name a file of a device."""


def config_of(learner: str, output: Path) -> Config:
    """Return the run: one client, so that a round lasts as long as that one takes."""
    return Config(
        clients=1,
        rounds=4,
        learner="linear" if learner in OWN else learner,
        student="none",
        partition="iid",
        local_epochs=1,
        evaluate=False,
        pooled=False,
        record=False,
        output=str(output),
        quorum=1.0,
        deadline=200.0,
    )


class Watch:
    """Samples the memory of all processes that carry a mark in their environment."""

    def __init__(self, mark: str) -> None:
        """Watch those with ``mark``."""
        self.mark = f"{MARK}={mark}".encode()
        self.peak = 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._end.wait(LOOK):
            self.peak = max(self.peak, self.now()["rss"])

    def now(self) -> dict[str, float]:
        """Return MiB of RSS and PSS, CPU seconds so far, and the number of processes."""
        found = {"rss": 0.0, "pss": 0.0, "cpu": 0.0, "processes": 0.0}
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, StopIteration, ValueError):
                if self.mark not in (path / "environ").read_bytes().split(b"\0"):
                    continue
                rollup = (path / "smaps_rollup").read_text().splitlines()
                for key in ("rss", "pss"):
                    line = next(line for line in rollup if line.startswith(f"{key.title()}:"))
                    found[key] += int(line.split()[1]) / 1024
                ticks = (path / "stat").read_text().rpartition(")")[2].split()[11:13]
                found["cpu"] += sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
                found["processes"] += 1
        return found

    def stop(self) -> None:
        """Sample no more."""
        self._end.set()
        self._thread.join()


@contextlib.contextmanager
def node(
    kind: str, learner: str, address: str, config: Config, folder: Path, environment: dict[str, str]
) -> Iterator[None]:
    """Run one node of ``kind`` with share 0 of the data; it ends with the context."""
    shared = shared_data(config)
    x, y = shared.private(0)
    mine = folder / "mine.npz"
    np.savez(mine, x=x[::2], y=y[::2])
    own: dict[str, Any] = {"data": f"npz:{mine}", "partition-id": 0, "state-dir": str(folder / "state")}
    own |= {"learner": OWN[learner]} if learner in OWN else {}
    log = folder / "node.log"
    if kind == "warm":
        home = Home(folder / "home")
        home.path.mkdir()
        about = {"fingerprint": shared.transfer.fingerprint, "classes": shared.dataset.classes}
        home.keep_settings(Settings(f"http://{address}", "bench", 0, about, own))
        home.keep_transfer(shared.transfer.inputs, shared.transfer.fingerprint)
        command = [sys.executable, "-m", "fedkd.fleet", str(home.path)]
    else:
        words = " ".join(f"{key}={launch.toml_value(value)}" for key, value in own.items())
        command = [launch.command("flower-supernode"), "--insecure", "--superlink", address, "--host", "127.0.0.1"]
        command += ["--port", str(launch.free_port()), "--node-config", words]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        yield
    finally:
        launch.end(process)


def measure(kind: str, learner: str) -> dict[str, Any]:
    """Return what one run costs a node of ``kind``."""
    with tempfile.TemporaryDirectory(prefix="fedkd-nodes-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "link").mkdir()
        config = config_of(learner, folder / "run")
        environment = launch.neutral_environment(folder / "link", without=ROOT)
        mark = f"{kind}-{learner}-{os.getpid()}"
        own = {**environment, MARK: mark, "PYTHONPATH": str(ROOT) if kind == "warm" else environment["PYTHONPATH"]}
        with launch.superlink(folder / "link", environment) as address:
            link = launch.Flwr(folder / "link", environment, address)
            with node(kind, learner, address, config, folder, own):
                watch = Watch(mark)
                lines: list[str] = []
                run = link.submit(ROOT, config.to_run_config())
                code = link.follow(run, lines.append)
                before = watch.now()
                time.sleep(IDLE)
                after = watch.now()
                watch.stop()
        if code:
            raise SystemExit("\n".join(lines))
        rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    waits = [next(iter(row["latency"].values())) for row in rows]
    return {
        "node": kind,
        "learner": learner,
        "rss_mib_idle": round(after["rss"], 1),
        "pss_mib_idle": round(after["pss"], 1),
        "rss_mib_peak": round(watch.peak, 1),
        "processes_idle": int(after["processes"]),
        "seconds_first_round": round(waits[0], 2),
        "seconds_a_round": round(statistics.median(waits[1:]), 2),
        # A process that ends takes its seconds along, so that nothing can be said.
        "idle_cpu_percent": None
        if before["processes"] != after["processes"]
        else round(100 * (after["cpu"] - before["cpu"]) / IDLE, 1),
        "answered": sum(row["metrics"]["answered"] for row in rows),
    }


def main() -> None:
    """Measure all and save ``results/nodes.json``."""
    found = []
    for learner in LEARNERS:
        for kind in KINDS:
            found.append(measure(kind, learner))
            print(found[-1], flush=True)
    save("nodes", {"nodes": found, "load": round(os.getloadavg()[1], 1)})


if __name__ == "__main__":
    main()
