"""What rounds of a run cost a client on this machine: two of them, on inputs that are made up.

``python -m fedkd.trial_round JSON`` prints JSON; :mod:`fedkd.bench_device` starts it. A process for each learner, since
what Python has once loaded it keeps: only so are the numbers of each its own.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.client import Site, answer, build_learner
from fedkd.codec import encode_query
from fedkd.config import Config
from fedkd.dataset import fingerprint
from fedkd.errors import FedkdError
from fedkd.fleet.resident import frugal
from fedkd.protect import protection_of
from fedkd.random import generator
from fedkd.records import Query, Teacher, TransferSet
from fedkd.release import form
from fedkd.softlabels import Array, normalize

STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Task:
    """What a client is to do: its ``examples``, ``rows`` of a transfer set, inputs of ``shape``, ``run_config``."""

    run_config: Mapping[str, Any]
    shape: tuple[int, ...]
    classes: int
    rows: int
    examples: int


@dataclass(frozen=True)
class Cost:
    """What rounds cost: seconds of the ``first`` and of a ``later`` one, bytes of memory at the most, of both frames.

    ``fit`` and ``predict`` are inputs a second, all passes of a round counted as one. What is not known is None.
    """

    first: float
    later: float | None
    memory: int | None
    down: int
    up: int
    fit: float
    predict: float


def measure(task: Task, learner: str) -> Cost:
    """Return what rounds of ``task`` cost with ``learner``. All rows are asked for, whatever the run selects.

    Secure aggregation takes several messages and is left out; the rest of the round is the same.
    """
    config = Config.from_run_config(task.run_config)
    changed: dict[str, Any] = {"evaluate": False, "attack": "none"}
    if protection_of(config).place == "shares":
        changed |= {"protect": "none", "epsilon": 0.0}
    config = config.model_copy(update=changed)
    public, x, y = _made_up(task)
    give_back = frugal()
    with tempfile.TemporaryDirectory() as folder:
        state, ledger = Path(folder) / "state.safetensors", Path(folder) / "ledger"
        site = Site(0, x, y, task.classes, public, state=state, ledger=ledger, learner=learner)
        asked = np.arange(task.classes if config.keys == "classes" else task.rows)
        seconds, frames = [], []
        for round_ in range(1, min(config.rounds, 2) + 1):
            back = None if round_ == 1 or config.feedback == "none" else _teacher(asked, task.classes)
            query = Query(round_, asked, task.classes, public.fingerprint, back)
            frame = encode_query(query, len(asked), form(config.broadcast).encoding if back is None else "float16")
            start = time.perf_counter()
            reply = answer(site, frame, config)
            seconds.append(time.perf_counter() - start)
            frames.append((len(frame), len(reply.frame)))
            give_back()
        memory = peak()
        fit, predict = _rates(site, config, task)
    later = seconds[1] if len(seconds) > 1 else None
    return Cost(seconds[0], later, memory, frames[-1][0], frames[-1][1], fit, predict)


def peak() -> int | None:
    """Return the most bytes of memory that this process has had, where the system tells."""
    if not STATUS.exists():
        return None
    line = next(line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def _rates(site: Site, config: Config, task: Task) -> tuple[float, float]:
    """Return inputs a second that a new model learns and predicts."""
    learner, rng = build_learner(site, config), generator(0, "trial")
    start = time.perf_counter()
    learner.fit(site.x, site.y, rng=rng)
    fitted = time.perf_counter()
    fresh = rng.random((min(task.rows, 500), *task.shape), np.float32)  # of the transfer set much is known already
    learning, start = fitted - start, time.perf_counter()
    learner.predict(fresh)
    return len(site.x) / learning, len(fresh) / (time.perf_counter() - start)


def _made_up(task: Task) -> tuple[TransferSet, Array, Array]:
    """Return inputs in which each class has values of its own, so that a model finds about as much as in real ones."""
    rng = generator(0, "trial inputs")
    centers = rng.random((task.classes, *task.shape), np.float32)
    y = np.arange(task.examples) % task.classes

    def inputs(labels: Array) -> Array:
        x = rng.random((len(labels), *task.shape), np.float32)
        x += centers[labels]
        x /= 2
        return x

    x = inputs(y)
    public = inputs(np.arange(task.rows) % task.classes)
    return TransferSet(public, fingerprint(public)), x, y


def _teacher(rows: Array, classes: int) -> Teacher:
    p = normalize(generator(0, "trial teacher").exponential(size=(len(rows), classes)))
    return Teacher(p.astype(np.float16).astype(np.float32), rows)


def main(arguments: Sequence[str]) -> int:
    """Measure what ``arguments`` says in JSON, and print the cost or the error in JSON."""
    asked = json.loads(arguments[0])
    learner = asked.pop("learner")
    task = Task(**{**asked, "shape": tuple(asked["shape"])})
    try:
        told: dict[str, Any] = asdict(measure(task, learner))
    except MemoryError:
        told = {"error": "not enough memory"}
    except FedkdError as error:
        told = {"error": str(error)}
    print(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
