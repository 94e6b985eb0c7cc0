"""Our node and Flower's own programs: a real SuperLink, a stock SuperNode beside it, and what each of them answers."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from flower_processes import superlink, supernode
from front_stand_in import Front, serving

from fedkd.config import Config
from fedkd.fleet.home import Home
from fedkd.flower import launch
from fedkd.recording import path_of

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
CONFIG = Config(
    clients=2, rounds=2, learner="linear", student="none", local_epochs=1, evaluate=False, pooled=False,
    deadline=90.0, grace=60.0,
)  # fmt: skip


class Warm:
    """A node as its owner starts it, in a process of its own, on data in ``folder``."""

    def __init__(self, folder, url, k, *, once=False):
        folder.mkdir(exist_ok=True)
        self.folder, self.k, self.log = folder, k, folder / "log"
        plain = ["--insecure"] if url.startswith("http:") else []
        words = [url, *plain, "--demo", str(k), "--home", str(folder / "home"), *(["--once"] if once else [])]
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


def test_a_node_answers_as_a_stock_supernode_does_to_the_byte_and_keeps_its_name(tmp_path, warm):
    first, second = (CONFIG.model_copy(update={"output": str(tmp_path / name), "clients": 1, "quorum": 1.0})
                     for name in ("one", "two"))  # fmt: skip
    (tmp_path / "link").mkdir()
    with superlink(tmp_path / "link", app_dir=ROOT) as center:
        front = Front(first, center.address)
        with serving(front) as port:
            node = warm(tmp_path / "node", f"http://127.0.0.1:{port}/", 0)
            node.until("online")
            name = node.name
            assert node.end() == 130
            node.again()
            node.until("online", times=2)
            follow(center, first)
            assert node.name == name
            assert node.end() == 130
        assert front.requests.count("/v1/fleet/register-node") == 1
        assert front.requests.count("/v1/fleet/deactivate-node") == 0
        # The node that has just gone still counts as there, so a stock one gets a SuperLink of its own.
    (tmp_path / "link2").mkdir()
    mine = {"data": f"npz:{tmp_path / 'node' / 'home' / 'shard-0.npz'}", "state-dir": str(tmp_path / "stock")}
    with superlink(tmp_path / "link2", app_dir=ROOT) as center, supernode(center, 0, 1, **mine):
        follow(center, second)
    for round_ in (1, 2):
        ours, theirs = (path_of(tmp_path / run / "ballots", round_).read_bytes() for run in ("one", "two"))
        assert ours == theirs
    measured = [[row["metrics"] for row in rows(tmp_path / run)] for run in ("one", "two")]
    assert measured[0] == measured[1]  # bytes up and down among them: the salt is as long for both


def test_nodes_that_die_when_they_have_answered_have_answered(tmp_path, warm):
    config = CONFIG.model_copy(update={"output": str(tmp_path / "run"), "quorum": 1.0})
    (tmp_path / "link").mkdir()
    with superlink(tmp_path / "link", app_dir=ROOT) as center:
        front = Front(config, center.address)
        with serving(front) as port:
            nodes = [warm(tmp_path / f"node-{k}", f"http://127.0.0.1:{port}/", k) for k in range(2)]
            for node in nodes:
                node.until("online")
            nodes[1].process.send_signal(signal.SIGSTOP)  # so that the next question does not come while the other dies
            try:
                run = center.link.submit(ROOT, config.to_run_config())
                nodes[0].until("round 1  answered")
                nodes[0].end(signal.SIGKILL)
                nodes[0].again()
                nodes[0].until("online", times=2)
            finally:
                nodes[1].process.send_signal(signal.SIGCONT)
            for node in nodes:
                node.until("round 2  answered")
                node.end(signal.SIGKILL)
            lines = []
            assert center.link.follow(run, lines.append) == 0, "\n".join(lines)
    assert [[row["status"] for row in found["clients"].values()] for found in rows(tmp_path / "run")] == [
        ["answered"] * 2
    ] * 2


def test_a_superlink_that_is_started_again_finds_its_nodes_as_they_were(tmp_path, warm):
    config = CONFIG.model_copy(update={"output": str(tmp_path / "run"), "rounds": 1, "clients": 1})
    kept = ("--database", str(tmp_path / "state.db"))
    front = Front(config, "")
    with serving(front) as port:
        for turn in ("first", "second"):
            (tmp_path / turn).mkdir()
            with superlink(tmp_path / turn, app_dir=ROOT, arguments=kept) as center:
                front.fleet = center.address
                if turn == "first":
                    node = warm(tmp_path / "node", f"http://127.0.0.1:{port}/", 0)
                    node.until("online")
                    name = node.name
                    continue
                node.until("the server answers again")
                follow(center, config)
        assert node.name == name
        assert front.requests.count("/v1/fleet/register-node") == 1
        assert "502" in node.said()
    assert rows(tmp_path / "run")[0]["metrics"]["answered"] == 1


def test_a_node_joins_a_served_run_over_tls_by_a_code_that_works_once(tmp_path, warm):
    home, log = tmp_path / "server", tmp_path / "log"
    sets = ("learner=linear", "student=none", "clients=1", "rounds=1", "local_epochs=1", "pooled=false")
    words = ["serve", *(word for pair in sets for word in ("--set", pair)), "--demo", "--host", "127.0.0.1"]
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "fedkd", *words, "--port", "0", "--home", str(home), "--name", "run"],
            cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "COLUMNS": "200"},
        )  # fmt: skip
    try:
        end = time.monotonic() + 90
        while not (url := re.search(r"https://127[^' ]+#code=[^' ]+", log.read_text())):
            assert time.monotonic() < end and server.poll() is None, log.read_text()
            time.sleep(0.1)
        node = warm(tmp_path / "node", url[0], 0, once=True)
        node.until("online")
        late = warm(tmp_path / "late", url[0], 0)
        assert late.process.wait(60) == 2
        assert "not joined: this join code is used up" in late.said()
        assert node.process.wait(120) == 0, node.said()
        assert "round 1  answered" in node.said()
        assert server.wait(60) == 0, log.read_text()
    finally:
        launch.end(server)
        launch.end_all({"FLWR_HOME": f"{home}/flower/flwr"})
    assert rows(tmp_path / "runs" / "run")[0]["metrics"]["answered"] == 1
