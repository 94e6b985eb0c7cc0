"""Our node and Flower's own programs: a real SuperLink, a stock SuperNode beside it, and what each of them answers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from flower_processes import superlink, supernode
from front_stand_in import Front, serving

from fedkd.config import Config
from fedkd.fleet.home import Home

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
CONFIG = Config(
    clients=2, rounds=2, learner="linear", student="none", local_epochs=1, evaluate=False, pooled=False,
    deadline=90.0, grace=60.0,
)  # fmt: skip


class Warm:
    """A node as its owner starts it, in a process of its own, on data in ``folder``."""

    def __init__(self, folder, port, k, front, **more):
        folder.mkdir(exist_ok=True)
        self.folder, self.k, self.log = folder, k, folder / "log"
        x, y = front.shared.private(k)
        np.savez(folder / "mine.npz", x=x, y=y)
        words = [f"http://127.0.0.1:{port}/", "--insecure", "--data", f"npz:{folder / 'mine.npz'}",
                 "--home", str(folder / "home")]  # fmt: skip
        words += [word for key, value in more.items() for word in (f"--{key}", value)]
        self.start(["join", *words])

    def start(self, words):
        command = [sys.executable, "-m", "fedkd", *words]
        if words[0] == "fedkd.fleet":
            command = [sys.executable, "-m", *words]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(self.folder), "NO_COLOR": "1"},
            )  # fmt: skip

    def again(self):
        self.start(["fedkd.fleet", str(self.folder / "home")])

    def end(self, sign=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(sign)
        return self.process.wait(20)

    def said(self):
        return self.log.read_text()

    def until(self, words, times=1, seconds=60):
        end = time.monotonic() + seconds
        while self.said().count(words) < times:
            assert time.monotonic() < end, self.said()
            assert self.process.poll() is None or words in self.said(), self.said()
            time.sleep(0.05)

    @property
    def name(self):
        return Home(self.folder / "home").settings().node_id


@pytest.fixture
def warm(request):
    """Makes nodes, and ends them."""
    made = []

    def make(*given, **named):
        made.append(Warm(*given, **named))
        return made[-1]

    yield make
    for node in made:
        node.end(signal.SIGKILL)


def rows(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def follow(center, config):
    lines = []
    run = center.link.submit(ROOT, config.to_run_config())
    assert center.link.follow(run, lines.append) == 0, "\n".join(lines)


def test_a_node_answers_as_a_stock_supernode_does_to_the_byte_and_outlives_runs_and_restarts(tmp_path, warm):
    (tmp_path / "link").mkdir()
    first, second = (CONFIG.model_copy(update={"output": str(tmp_path / name), "clients": 1, "quorum": 1.0})
                     for name in ("one", "two"))  # fmt: skip
    with superlink(tmp_path / "link", app_dir=ROOT) as center:
        front = Front(first, center.address)
        with serving(front) as port:
            node = warm(tmp_path / "node", port, 0, front)
            node.until("online")
            follow(center, first)
            name = node.name
            assert node.end() == 130
            node.again()
            node.until("online", times=2)
            assert node.name == name
            node.end(signal.SIGKILL)  # and while it is away, it counts as there
            assert front.requests.count("/v1/fleet/register-node") == 1
            assert front.requests.count("/v1/fleet/activate-node") == 2
    state = {"data": f"npz:{tmp_path / 'node' / 'mine.npz'}", "state-dir": str(tmp_path / "stock"),
             "ledger-dir": str(tmp_path / "ledger")}  # fmt: skip
    (tmp_path / "link2").mkdir()
    with superlink(tmp_path / "link2", app_dir=ROOT) as center, supernode(center, name, 1, **state):
        follow(center, second)
    for round_ in (1, 2):
        ours, theirs = ((tmp_path / run / "ballots" / f"round-{round_:03d}.safetensors") for run in ("one", "two"))
        assert ours.read_bytes() == theirs.read_bytes()
    down = [[row["metrics"]["bytes_down"] for row in rows(tmp_path / run)] for run in ("one", "two")]
    up = [[row["metrics"]["bytes_up"] for row in rows(tmp_path / run)] for run in ("one", "two")]
    assert (down[0], up[0]) == (down[1], up[1])
