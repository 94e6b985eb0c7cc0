"""How long a run stands still when a part of it is killed: from the kill to the next round's report.

``fedkd serve`` with four nodes that learn nothing; after the first round one part gets SIGKILL. Where the run ends, it
is continued with ``fedkd resume`` at once, as a service manager would; ``goes_on`` says whether that was needed. The
round itself, with nodes that look once a second, is measured undisturbed beside it.
Run: python -m simulations.benchmarks.recovery (about 6 minutes)
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedkd.errors import FedkdError
from fedkd.federation import federation
from fedkd.fleet.link import Address, trusting
from fedkd.flower import launch
from fedkd.serving import pki
from fedkd.serving.home import Home
from fedkd.serving.invites import Registry
from simulations.benchmarks.bench import RESULTS, save
from simulations.benchmarks.light_node import LightNode
from simulations.benchmarks.load import settings

NODES, GRACE = 4, 5.0
VICTIMS = ("nothing", "node", "front", "superlink", "superexec", "serverapp")
COMMANDS = {"superlink": b"flower-superlink", "superexec": b"flower-superexec", "serverapp": b"flwr-serverapp"}


class Patient(LightNode):
    """A node in a thread that looks once a second; ``away`` while it is dead."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Be alive as soon as it is started."""
        super().__init__(*arguments, **options)
        self.away = threading.Event()
        self.thread = threading.Thread(target=self._live, daemon=True)

    def _live(self) -> None:
        while not self.ended.wait(1.0):
            with contextlib.suppress(FedkdError):  # of a run that is over
                if not self.away.is_set():
                    self.step()


class Command:
    """A ``fedkd`` command in the background, and what it prints."""

    def __init__(self, folder: Path, *words: str) -> None:
        """Start it in ``folder``."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fedkd", *words], cwd=folder, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"},
        )  # fmt: skip
        self.lines: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(self.process.stdout)

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=20)
        self.process.kill()
        self.process.wait()


def until(condition: Any, seconds: float = 240.0) -> Any:
    """Return what ``condition`` returns as soon as that is something."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            raise RuntimeError("waited in vain")
        time.sleep(0.05)
    return found


@contextlib.contextmanager
def scene(folder: Path, rounds: int) -> Iterator[tuple[Home, list[Patient], Command, Any]]:
    """Serve a run with its nodes; yield also what counts the reports that are there."""
    home = Home(folder / "home")
    made = pki.init(home.pki, ["127.0.0.1"])
    told = settings(NODES) | {"rounds": rounds, "quorum": 0.5, "grace": GRACE, "deadline": 120.0, "late": True}
    shared = federation("digits", told["transfer"], "iid", 2, 0)
    context, registry = trusting(made.ca.read_text()), Registry(home.registry)
    nodes = [Patient(Address("", 0, True), context, shared.transfer, source=f"127.3.0.{k + 1}") for k in range(NODES)]
    for k, node in enumerate(nodes):
        registry.add(node.identity.public, f"node-{k}")
    sets = [word for key, value in told.items() for word in ("--set", f"{key}={launch.toml_value(value)}")]
    place = ["--host", "127.0.0.1", "--port", "0", "--home", str(home.folder), "--name", "run"]
    served = Command(folder, "serve", *sets, *place)
    metrics = folder / "runs/run/metrics.jsonl"
    try:
        said = until(lambda: re.search(r"https://127\.0\.0\.1:(\d+)/#code", "".join(served.lines)))
        for node in nodes:
            node.link.address = Address("127.0.0.1", int(said[1]), True)
            node.enter()
            node.thread.start()
        yield home, nodes, served, lambda: len(metrics.read_text().splitlines()) if metrics.exists() else 0
    finally:
        for node in nodes:
            node.ended.set()
        served.close()
        launch.end_all({"FLWR_HOME": str(home.flower / "flwr")})


def process_of(home: Home, part: str) -> int:
    """Return the id of a process of Flower's that serves ``home``."""
    for pid in launch._marked(f"FLWR_HOME={home.flower}/flwr".encode()):
        with contextlib.suppress(OSError):
            if COMMANDS[part] in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
    raise RuntimeError(f"no {part} runs")


def measure(victim: str) -> dict[str, Any]:
    """Return what happened when ``victim`` was killed after the first round."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        home, nodes, served, count = stack.enter_context(scene(folder, rounds=3))
        until(lambda: count() >= 1)
        began = time.monotonic()
        if victim == "node":
            nodes[0].away.set()
        elif victim == "front":
            served.process.kill()
        elif victim != "nothing":
            os.kill(process_of(home, victim), signal.SIGKILL)
        ended = until(lambda: served.process.poll() is not None or count() >= 2)
        result: dict[str, Any] = {"goes_on": count() >= 2}
        if ended and not result["goes_on"]:
            result |= {"seconds_until_it_ends": round(time.monotonic() - began, 1), "exit": served.process.poll()}
            if victim != "front":
                result["says"] = [line.strip() for line in served.lines if line.strip()][-1][:200]
            again = Command(folder, "resume", "runs/run")
            stack.callback(again.close)
            until(lambda: count() >= 2)
        result["seconds_to_next_report"] = round(time.monotonic() - began, 1)
        return result


def main() -> None:
    """Kill one after another; save after each. With ``--more`` what the file has of others is kept."""
    chosen = [word for word in sys.argv[1:] if word in VICTIMS] or VICTIMS
    killed: dict[str, Any] = {}
    if "--more" in sys.argv:
        killed = json.loads((RESULTS / "recovery.json").read_text())["killed"]
    for victim in chosen:
        killed[victim] = measure(victim)
        save("recovery", {"work": {"nodes": NODES, "grace": GRACE}, "killed": killed})


if __name__ == "__main__":
    main()
