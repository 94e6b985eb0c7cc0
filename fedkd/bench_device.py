"""What this device can do: arithmetic, memory, disk, the way to a server, and what rounds of a run would cost here.

Everything is measured here and now. Each learner is tried in a process of its own (:mod:`fedkd.trial_round`).
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from fedkd.config import Config, mixed
from fedkd.errors import ConfigError, FedkdError
from fedkd.fleet.__main__ import FRUGAL
from fedkd.fleet.home import Home
from fedkd.fleet.joining import Invitation, about, contact
from fedkd.site import remembers
from fedkd.stored import measures, transfer_measures
from fedkd.trial_round import Cost, Task

USUAL = Task(Config(learner="linear").to_run_config(), shape=(1, 28, 28), classes=10, rows=1000, examples=500)
"""What is tried if nobody says what: images of Fashion-MNIST's size."""
SYNCS = 20
RECORD = 300
"""Bytes of one entry in a ledger."""
NEEDS = {"sklearn": ("forest", "logistic", "boosting"), "torch": ("cnn", "lenet", "mlp", "torchvision")}
TRIED = ("linear", "logistic", "cnn")
MEMORY_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Device:
    """A machine: its ``kind`` of processor, ``cores``, bytes of memory in all and free, float32 GFLOP/s of one core."""

    kind: str
    cores: int
    memory: int | None
    free: int | None
    gflops: float


@dataclass(frozen=True)
class Disk:
    """Milliseconds until ``RECORD`` bytes are on the disk of ``folder``: the median and the ``worst`` of ``SYNCS``."""

    folder: str
    median: float
    worst: float


@dataclass(frozen=True)
class Server:
    """The way to a server: seconds of a request on an open connection, and bytes a second that come down."""

    address: str
    latency: float
    down: float


@dataclass(frozen=True)
class Trial:
    """What rounds cost with ``learner``, or why that is not known; ``fits``: in the memory that is free now."""

    learner: str
    cost: Cost | None
    error: str = ""
    fits: bool | None = None


@dataclass(frozen=True)
class Findings:
    """All that was found; ``task`` is what a round was taken to be."""

    device: Device
    disk: Disk
    server: Server | None
    task: Task
    trials: tuple[Trial, ...]

    def to_json(self) -> str:
        """Return all numbers as JSON: seconds, bytes, inputs a second."""
        return json.dumps(asdict(self), indent=1)


def bench(
    task: Task,
    learners: Iterable[str],
    *,
    folder: Path | None = None,
    seconds: float = 25.0,
    server: Server | None = None,
    tell: Callable[[str], None] = lambda words: None,
) -> Findings:
    """Measure this device; trials of ``learners`` take ``seconds`` in all, and those that have no time are left out."""
    tell("arithmetic")
    device = examine_device()
    tell("disk")
    disk = time_disk(folder or remembers())
    end, trials = time.monotonic() + seconds, []
    for learner in learners:
        tell(learner)
        found = try_learner(task, learner, timeout=end - time.monotonic())
        if found.cost is not None and found.cost.memory is not None and device.free is not None:
            found = replace(found, fits=found.cost.memory <= device.free)
        trials.append(found)
    return Findings(device, disk, server, task, tuple(trials))


def examine_device() -> Device:
    """Return what the machine is and how fast one of its cores multiplies matrices."""
    known = _memory_lines()
    total, free = known.get("MemTotal"), known.get("MemAvailable")
    for name in MEMORY_FILES:  # a container may have less than its machine
        limit = Path(name)
        if total is not None and free is not None and limit.exists() and limit.read_text().strip().isdigit():
            most = int(limit.read_text())
            total, free = min(total, most), min(free, most)
    return Device(_kind(), os.cpu_count() or 1, total, free, multiply())


def multiply(*, size: int = 384, seconds: float = 0.5) -> float:
    """Return GFLOP/s of float32 products of (``size``, ``size``) matrices on one core, the best of several."""
    a = np.full((size, size), 0.5, np.float32)
    best, end = 0.0, time.perf_counter() + seconds
    with threadpool_limits(1):
        a @ a
        while best == 0 or time.perf_counter() < end:
            start = time.perf_counter()
            a @ a
            best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best / 1e9


def time_disk(folder: Path) -> Disk:
    """Return how long an entry of a ledger takes to be on the disk that ``folder`` lies on."""
    there = next(path for path in (folder, *folder.resolve().parents) if path.is_dir())
    taken = []
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            for _ in range(SYNCS):
                start = time.perf_counter()
                file.write(b"\0" * RECORD)
                file.flush()
                os.fsync(file.fileno())
                taken.append(1e3 * (time.perf_counter() - start))
    except OSError as error:
        raise ConfigError(f"cannot write to {there}: {error.strerror}") from None
    return Disk(str(there), float(np.sort(taken)[len(taken) // 2]), max(taken))


def visit(url: str, *, examples: int, insecure: bool = False) -> tuple[Server, Task]:
    """Return how far the server at a join address is, and what its run asks of a client with ``examples``.

    Nothing is said of this device; a code in the address is not used up.
    """
    invitation = Invitation.of(url, insecure=insecure)
    with tempfile.TemporaryDirectory() as name:
        joined = invitation.home()
        link = contact(invitation, Home(joined if joined.is_dir() else Path(name)))
        try:
            told = about(link)  # opens the connection
            start = time.perf_counter()
            about(link)
            latency = time.perf_counter() - start
            before, start = link.received, time.perf_counter()
            link.get(f"/fedkd/transfer/{told['fingerprint']}", limit=2**29)
            speed = (link.received - before) / (time.perf_counter() - start)
        finally:
            link.close()
    task = Task(told["config"], tuple(told["shape"]), told["classes"], told["rows"], examples)
    return Server(str(invitation.address), latency, speed), task


def task_of(config: Config, *, examples: int) -> Task:
    """Return what a run of ``config`` asks of a client with ``examples``."""
    data = measures(config.data, labeled=True)
    public = transfer_measures(config, data)
    return Task(config.to_run_config(), tuple(public.shape), data.classes, public.rows, examples)


def candidates(task: Task | None) -> list[str]:
    """Return the learners to try: those of the run of ``task`` and the light ones, as far as they are installed."""
    missing = {name for package, names in NEEDS.items() if importlib.util.find_spec(package) is None for name in names}
    asked = [] if task is None else mixed(Config.from_run_config(task.run_config).learner)
    # Light ones first: they are what a small device will take, if time is short.
    order = ["linear", *sorted(asked, key=_weight)] if asked else list(TRIED)
    return [spec for spec in dict.fromkeys(order) if spec.partition("(")[0].strip() not in missing]


def try_learner(task: Task, learner: str, *, timeout: float) -> Trial:
    """Run rounds of ``task`` with ``learner`` in a process of its own, for at most ``timeout`` seconds."""
    if timeout <= 0:
        return Trial(learner, None, "no time left; say --seconds")
    asked = json.dumps({**asdict(task), "learner": learner})
    environment = {**FRUGAL, **os.environ}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "fedkd.trial_round", asked],
            env=environment, capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Trial(learner, None, f"not done within {timeout:.0f} s; say --seconds")
    except OSError as error:
        raise FedkdError(f"cannot start another process here: {error.strerror}") from None
    try:
        told = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip() or f"ended with exit code {done.returncode}").splitlines()[-1]
        return Trial(learner, None, last[:200])
    return Trial(learner, None, told["error"]) if "error" in told else Trial(learner, Cost(**told))


def _weight(spec: str) -> int:
    return next((i for i, names in enumerate(NEEDS.values(), 1) if spec.partition("(")[0].strip() in names), 0)


def _kind() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    named = dict(reversed([(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines)]))
    name = named.get("Model") or named.get("model name") or platform.processor() or "unknown"
    return f"{name}, {platform.machine()}"


def _memory_lines() -> dict[str, int]:
    """Return what the system says of its memory, in bytes."""
    path = Path("/proc/meminfo")
    lines = path.read_text(encoding="ascii").splitlines() if path.exists() else []
    return {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines if line.split()[1:2]}
