"""What the framework costs: a round of the in-process engine over a bare PyTorch loop that does the same work.

Fashion-MNIST, 10 clients x 2000 images, CNN, one pass, 2000 transfer images. Also 2 workers over 1, and 1000 trivial
clients.
Run: python -m simulations.benchmarks.overhead (about 5 minutes on 2 cores; needs the Fashion-MNIST data set)
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from fedkd.config import Config
from fedkd.engine import run_in_process
from fedkd.federation import federation
from fedkd.learner import models
from simulations.benchmarks.bench import save, spread

ROUNDS, REPEATS, EPOCHS, STUDENT_EPOCHS, ASKED = 1, 3, 1, 1, 2000
COMMON: dict[str, Any] = {
    "data": "fashion_mnist",
    "transfer": "split(size=40000)",  # leaves 20,000 private images, 2000 a client
    "partition": "iid",
    "clients": 10,
    "rounds": ROUNDS,
    "learner": "cnn",
    "student": "cnn",
    "select": f"uniform(size={ASKED})",
    "expertise": "uniform",
    "release": "float32",
    "feedback": "none",
    "local_epochs": EPOCHS,
    "distill_epochs": STUDENT_EPOCHS,
    "pooled": False,
    "evaluate": False,
}


def bare(config: Config) -> list[float]:
    """Return seconds a round of the same work in one process: plain PyTorch, no fedkd but the data and the network.

    As in ours, a warm first round is left out.
    """
    torch.set_num_threads(1)
    shared = federation(config.data, config.transfer, config.partition, config.clients, config.seed)
    data = [tuple(map(torch.from_numpy, shared.private(k))) for k in range(config.clients)]
    public = torch.from_numpy(shared.transfer.inputs)
    nets = [models.build("cnn", (1, 28, 28), 10, width=16, hidden=64) for _ in range(config.clients)]
    student = models.build("cnn", (1, 28, 28), 10, width=16, hidden=64)

    def train(net: nn.Module, x: torch.Tensor, y: torch.Tensor, epochs: int) -> None:
        optimizer = torch.optim.Adam(net.parameters(), lr=config.learning_rate, fused=True)  # as ours is
        for _ in range(epochs):
            order = torch.randperm(len(x))
            for i in range(0, len(x), config.batch_size):
                rows = order[i : i + config.batch_size]
                optimizer.zero_grad(set_to_none=True)
                nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()

    def predict(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return torch.cat([net(x[i : i + 512]).softmax(-1) for i in range(0, len(x), 512)])

    seconds = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        rows = torch.randperm(len(public))[:ASKED]
        asked = public[rows]
        ballots = []
        for net, (x, y) in zip(nets, data, strict=True):
            train(net, x, y, EPOCHS)
            ballots.append(predict(net, asked))
        train(student, asked, torch.stack(ballots).mean(0), STUDENT_EPOCHS)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


class Stopwatch:
    """An observer that measures rounds from outside: checkpoint and journal included."""

    def __init__(self) -> None:
        """Start without rounds."""
        self.seconds: list[float] = []
        self._start = 0.0

    def __call__(self, event: str, facts: Mapping[str, Any]) -> None:
        """Note when a round begins and when its report is there."""
        if event == "round":
            self._start = time.perf_counter()
        elif event == "report":
            self.seconds.append(time.perf_counter() - self._start)


def ours(config: Config, workers: int) -> list[float]:
    """Return wall seconds a round of the in-process engine, with a warm first round left out."""
    watch = Stopwatch()
    longer = config.model_copy(update={"rounds": config.rounds + 1})  # the first round waits for imports
    with tempfile.TemporaryDirectory() as folder:
        settings = longer.model_copy(update={"output": os.path.join(folder, "run")})
        run_in_process(settings, workers=workers, observe=watch)
    return watch.seconds[1:]


def trivial(clients: int, workers: int) -> float:
    """Return milliseconds a client of a round in which clients do next to nothing."""
    config = Config(
        clients=clients,
        rounds=3,
        partition="iid",
        transfer="split(size=100)",
        learner="constant",
        student="constant",
        expertise="uniform",
        release="argmax",
        pooled=False,
        evaluate=False,
    )
    return 1e3 * min(ours(config, workers)) / clients


def main() -> None:
    """Measure in turn, so that a slow moment of the machine hits all alike, and save."""
    config = Config.read(COMMON, where="benchmark")
    rows: dict[str, list[float]] = {"bare": [], "one worker": [], "two workers": []}
    for _ in range(REPEATS):
        rows["bare"].append(statistics.median(bare(config)))
        for name, workers in (("one worker", 1), ("two workers", 2)):
            rows[name].append(statistics.median(ours(config, workers)))
    ratio = [a / b for a, b in zip(rows["one worker"], rows["bare"], strict=True)]
    speedup = [a / b for a, b in zip(rows["one worker"], rows["two workers"], strict=True)]
    save(
        "overhead",
        {
            "work": {**COMMON, "rounds measured": ROUNDS, "repeats": REPEATS},
            "seconds_per_round": {name: spread(values, 3) for name, values in rows.items()},
            "one_worker_over_bare_pytorch": spread(ratio, 3),
            "two_workers_speedup": spread(speedup, 3),
            "milliseconds_per_trivial_client": {
                f"{n} clients, {w} workers": round(trivial(n, w), 2) for n, w in ((1000, 1), (1000, 2))
            },
            "cores": os.cpu_count(),
            "numpy": np.__version__,
        },
    )


if __name__ == "__main__":
    main()
