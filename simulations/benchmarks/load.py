"""How many nodes one server bears: ``fedkd serve`` with all its processes, and nodes that learn nothing.

Each node has its own key, address and TLS connection, looks every 10 seconds, and answers with ballots at random on 390
rows of digits in float16. Bytes are those that TCP carried, against what the run's report counts. Nodes and server
share the machine, so CPU seconds say more than seconds.
Run: python -m simulations.benchmarks.load 50:disk 50:memory 200:memory (minutes each; --more keeps results)
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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

ROUNDS, THREADS, LOOK_EVERY, ROWS = 2, 16, 10.0, 390
TICK = os.sysconf("SC_CLK_TCK")
PARTS = {"superlink": b"flower-superlink", "serverapp": b"flwr-serverapp", "superexec": b"flower-superexec"}


def settings(clients: int) -> dict[str, Any]:
    """Return the run: as much of a federation as needs no learning."""
    return {
        "clients": clients,
        "rounds": ROUNDS,
        "transfer": f"split(size={ROWS})",
        "partition": "iid",
        "learner": "constant",
        "student": "none",
        "expertise": "uniform",
        "evidence": "none",
        "quorum": 1.0,
        "deadline": 900.0,
        "evaluate": False,
        "pooled": False,
        "record": False,
        "remember": 0,
    }


class Watch:
    """CPU seconds and memory of a server's processes, looked at twice a second."""

    def __init__(self, front: int, home: str) -> None:
        """Watch the process ``front`` and those of Flower's whose home is ``home``."""
        self._front, self._mark = front, f"FLWR_HOME={home}".encode()
        self._ended = threading.Event()
        self.seen: list[tuple[float, dict[str, float]]] = []
        self.peak: dict[str, float] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(0.5):
            self.seen.append((time.monotonic(), self._look()))

    def _look(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for pid in [self._front, *launch._marked(self._mark)]:
            try:
                line = Path(f"/proc/{pid}/cmdline").read_bytes()
                stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                continue
            name = next((part for part, word in PARTS.items() if word in line), "other")
            name = "front" if pid == self._front else name
            found[name] = found.get(name, 0.0) + (int(stat[11]) + int(stat[12])) / TICK
            rss = re.search(r"VmRSS:\s+(\d+)", status)
            self.peak[name] = max(self.peak.get(name, 0.0), int(rss[1]) / 1024 if rss else 0.0)
        return found

    def between(self, began: float, ended: float) -> dict[str, float]:
        """Return the CPU seconds of each part in a time."""
        first = max((one for one in self.seen if one[0] <= began), default=self.seen[0], key=lambda one: one[0])
        last = min((one for one in self.seen if one[0] >= ended), default=self.seen[-1], key=lambda one: one[0])
        return {name: round(last[1][name] - first[1].get(name, 0.0), 2) for name in last[1]}

    def close(self) -> None:
        """Look no more."""
        self._ended.set()
        self._thread.join()


class Crowd:
    """All nodes, each looked after by one of a few threads."""

    def __init__(self, nodes: list[LightNode]) -> None:
        """Take nodes that are known to the server."""
        self.nodes, self.ended = nodes, threading.Event()
        self.answers: list[tuple[int, float, float, tuple[int, int], int]] = []  # round, asked, done, bytes, calls
        self.looks: list[float] = []
        self.idle_bytes: list[int] = []
        self._threads = [threading.Thread(target=self._live, args=(k,), daemon=True) for k in range(THREADS)]

    def start(self) -> None:
        """Let them live."""
        for thread in self._threads:
            thread.start()

    def _live(self, k: int) -> None:
        mine = self.nodes[k::THREADS]
        due = {id(node): time.monotonic() + LOOK_EVERY * i / len(mine) for i, node in enumerate(mine)}
        while not self.ended.is_set():
            node = min(mine, key=lambda one: due[id(one)])
            if self.ended.wait(max(0.0, due[id(node)] - time.monotonic())):
                return
            due[id(node)] = time.monotonic() + LOOK_EVERY
            try:
                self._look(node)
            except FedkdError as error:
                if not self.ended.is_set():
                    print(error, file=sys.stderr)

    def _look(self, node: LightNode) -> None:
        before, calls, began = node.link.wire(), node.link.calls, time.monotonic()
        task = node.step()
        after = node.link.wire()
        moved = after[0] - before[0], after[1] - before[1]
        if task is None:
            self.looks.append(node.link.seconds[-1][1])
            self.idle_bytes.append(sum(moved))
        else:
            self.answers.append((task.round, began, time.monotonic(), moved, node.link.calls - calls))

    def close(self) -> None:
        """End all threads."""
        self.ended.set()
        for node in self.nodes:
            node.ended.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(timeout=60)


def lines_of(process: subprocess.Popen[str], pattern: str) -> Iterator[str]:
    """Yield the lines of a process up to one with ``pattern``."""
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        yield line
        if re.search(pattern, line):
            return
    raise RuntimeError(f"ended without {pattern!r}: {''.join(said[-5:])}")


def measure(count: int, database: str, folder: Path) -> dict[str, Any]:
    """Return what ``count`` nodes cost a server whose SuperLink keeps its ``database`` on disk or in memory."""
    told = settings(count)
    shared = federation("digits", told["transfer"], "iid", 2, 0)
    home = Home(folder / "home")
    made = pki.init(home.pki, ["127.0.0.1"])
    context, registry = trusting(made.ca.read_text()), Registry(home.registry)
    nodes = [
        LightNode(Address("", 0, True), context, shared.transfer, source=f"127.1.{k // 250}.{k % 250 + 1}", timeout=300)
        for k in range(count)
    ]
    began = time.monotonic()
    for k, node in enumerate(nodes):
        registry.add(node.identity.public, f"node-{k}")
    added = time.monotonic() - began
    sets = [word for key, value in told.items() for word in ("--set", f"{key}={launch.toml_value(value)}")]
    process = subprocess.Popen(
        [sys.executable, "-m", "fedkd", "serve", *sets, "--host", "127.0.0.1", "--port", "0"]
        + ["--home", str(home.folder), "--name", "load", "--wait", "900", "--database", database],
        cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}, start_new_session=True,
    )  # fmt: skip
    watch = Watch(process.pid, str(home.flower / "flwr"))
    crowd = Crowd(nodes)
    try:
        began = time.monotonic()
        text = "".join(lines_of(process, r"/#code="))
        registered = time.monotonic() - began
        found = re.search(r"https://127\.0\.0\.1:(\d+)/#code", text)
        assert found is not None, text
        for node in nodes:
            node.link.address = Address("127.0.0.1", int(found[1]), True)
        began = time.monotonic()
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(LightNode.enter, nodes))
        entered = time.monotonic() - began
        crowd.start()
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", file=sys.stderr)
        if process.wait() != 0:
            raise RuntimeError(f"the server ended with {process.returncode}")
    finally:
        crowd.close()
        watch.close()
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)
        process.kill()
        process.wait()
        launch.end_all({"FLWR_HOME": str(home.flower / "flwr")})
    reports = [json.loads(line) for line in (folder / "runs/load/metrics.jsonl").read_text().splitlines()]
    return {
        "seconds": {"add_to_registry": round(added, 2), "register_and_start": round(registered, 2),
                    "connect_and_activate": round(entered, 2)},
        "idle": idle(crowd, watch, count),
        "rounds": {str(report["round"]): a_round(report, crowd, watch, count) for report in reports},
        "calls_tried_again": sum(node.refused for node in nodes),
        "rss_mib": {name: round(value, 1) for name, value in watch.peak.items()},
    }  # fmt: skip


def idle(crowd: Crowd, watch: Watch, count: int) -> dict[str, Any]:
    """Return what looking for messages costs when there are none."""
    looks = sorted(crowd.looks)
    return {
        "ms_per_look_median": round(1e3 * statistics.median(looks), 1) if looks else None,
        "ms_per_look_p95": round(1e3 * looks[int(0.95 * len(looks))], 1) if looks else None,
        "bytes_per_look": round(statistics.median(crowd.idle_bytes)) if looks else None,
        "looks_per_second": round(count / LOOK_EVERY, 1),
    }


def a_round(report: dict[str, Any], crowd: Crowd, watch: Watch, count: int) -> dict[str, Any]:
    """Return what a round cost, from its first query to its last answer, and its bytes, counted in two ways."""
    mine = [one for one in crowd.answers if one[0] == report["round"]]
    began, ended = min(one[1] for one in mine), max(one[2] for one in mine)
    rows = list(report["clients"].values())
    up, down = (statistics.mean(row[f"bytes_{way}"] for row in rows) for way in ("up", "down"))
    return {
        "answered": sum(row["status"] == "answered" for row in rows),
        "seconds": round(sum(report["seconds"].values()), 2),
        "seconds_asking_and_collecting": round(report["seconds"]["clients"], 2),
        "seconds_of_one_answer_median": round(statistics.median(one[2] - one[1] for one in mine), 3),
        "cpu_seconds": watch.between(began, ended),
        "cpu_ms_per_node": {name: round(1e3 * spent / count, 2) for name, spent in watch.between(began, ended).items()},
        "calls_per_node": round(statistics.mean(one[4] for one in mine), 2),
        "ledger_bytes_per_node": {"up": round(up), "down": round(down)},
        "wire_bytes_per_node": {
            "up": round(statistics.mean(one[3][0] for one in mine)),
            "down": round(statistics.mean(one[3][1] for one in mine)),
        },
    }


def kinds(result: dict[str, Any]) -> list[str]:
    """Return the kinds of database that were measured."""
    return sorted({name.rpartition(" ")[2] for name in result})


def model(result: dict[str, Any], database: str) -> dict[str, Any]:
    """Return what a node costs in a round, the median over all rounds, and what memory grows by with nodes."""
    found = {int(name.partition(",")[0]): one for name, one in result.items() if name.endswith(database)}
    rounds = [each for one in found.values() for each in one["rounds"].values()]
    calls = statistics.median(each["calls_per_node"] for each in rounds)
    over = {
        way: statistics.median(each["wire_bytes_per_node"][way] - each["ledger_bytes_per_node"][way] for each in rounds)
        for way in ("up", "down")
    }
    slopes = {
        part: round(
            statistics.linear_regression(list(found), [one["rss_mib"][part] for one in found.values()]).slope, 3
        )
        for part in ("front", "superlink", "serverapp")
        if len(found) > 1
    }
    return {
        "cpu_ms_per_node_and_round": {
            part: round(statistics.median(each["cpu_ms_per_node"][part] for each in rounds), 1)
            for part in ("front", "superlink", "serverapp")
        },
        "calls_per_node_and_round": calls,
        "framing_bytes_per_call": {way: round(value / calls) for way, value in over.items()},
        "bytes_per_idle_look": max(one["idle"]["bytes_per_look"] for one in found.values()),
        "rss_mib_per_node": slopes,
    }


def main() -> None:
    """Measure in turn, as in ``50:disk 200:memory``; save after each and keep what the file had of others."""
    result: dict[str, Any] = {}
    if "--more" in sys.argv:
        result = json.loads((RESULTS / "load.json").read_text())["nodes"]
    for word in [word for word in sys.argv[1:] if ":" in word]:
        count, _, database = word.partition(":")
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
            result[f"{count}, {database}"] = measure(int(count), database, Path(name))
        work = {
            "rows": ROWS,
            "classes": 10,
            "release": "float16",
            "seconds between looks": LOOK_EVERY,
        }
        save("load", {"work": work, "model": {kind: model(result, kind) for kind in kinds(result)}, "nodes": result})


if __name__ == "__main__":
    main()
