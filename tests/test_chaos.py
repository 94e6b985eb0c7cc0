"""One real federation in which most of what can go wrong does, each fault counted; what healthy nodes say is not lost.

``fedkd serve`` with a SuperLink on disk behind its front, six nodes that speak the Fleet API, five rounds, a server
that is killed in between and resumed.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fedkd.client import Answer
from fedkd.envelope import answer_records
from fedkd.errors import FedkdError
from fedkd.federation import federation
from fedkd.fleet.link import Address, trusting
from fedkd.fleet.objects import Parcel, Tree, name_of, pack, pack_message
from fedkd.flower import launch
from fedkd.serving import pki
from fedkd.serving.home import Home
from fedkd.serving.invites import Registry
from fedkd.status import read_status
from simulations.benchmarks.light_node import LightNode

ROOT = Path(__file__).resolve().parent.parent
NODES, ROUNDS = 6, 5
SETTINGS = (
    f"clients={NODES}", f"rounds={ROUNDS}", "learner=linear", "student=linear", "expertise=uniform", "evidence=none",
    "partition=iid", "quorum=0.5", "deadline=60", "grace=8", "late=true", "remember=0", "pooled=false", "feedback=none",
)  # fmt: skip


class Actor(LightNode):
    """A node that knows the truth, lives in a thread, and does what its part says in a round."""

    def __init__(self, truth, part, injected, *arguments, **options):
        super().__init__(*arguments, longest=1.0, **options)
        self.truth, self.part, self.injected = truth, part, injected
        self.said, self.asked, self.errors = {}, {}, []
        self.away = threading.Event()  # set while it is dead
        self.thread = threading.Thread(target=self.live, daemon=True)

    def believe(self, rng, rows, classes):
        p = 0.3 * rng.dirichlet(np.ones(classes), len(rows))
        p[np.arange(len(rows)), self.truth[rows]] += 0.7
        return p.astype(np.float32)

    def live(self):
        while not self.ended.wait(0.3):
            try:
                if not self.away.is_set() and (task := self.pull()) is not None:
                    self.asked[task.round] = task
                    self.part.get(task.round, type(self).honest)(self, task)
            except FedkdError as error:  # of a run that is over; or nobody is there
                self.errors.append(str(error))

    def honest(self, task):
        self.said[task.round] = self.records(task)
        self.push(task, self.said[task.round])

    def count(self, fault):
        self.injected[fault] += 1

    # Parts.

    def malformed(self, task):
        """A message whose record is no protobuf; all names are right."""
        self.count("malformed")
        metadata, whole = self.pack(task, {})
        record = pack("ConfigRecord", b"\xff\xff\xff", [])
        content = pack("RecordDict", json.dumps({"release": name_of(record)}).encode(), [name_of(record)])
        _, _, body = whole.objects[whole.tree.name].partition(b"\0")
        message = pack("Message", body, [name_of(content)])
        tree = Tree(name_of(message), (Tree(name_of(content), (Tree(name_of(record)),)),))
        objects = {name_of(one): one for one in (record, content, message)}
        parcel = Parcel(tree, objects)
        assert self.send(metadata, parcel, self.announce(metadata, parcel)) == 3

    def garbled(self, task):
        self.count("wrong frame")
        self.push(task, answer_records(Answer(os.urandom(500), None)))

    def twice(self, task):
        """The same answer again, and then another one to the same question."""
        self.honest(task)
        metadata, parcel = self.pack(task, self.said[task.round])
        for records in (self.said[task.round], self.records(task)):
            self.count("duplicated answer")
            metadata, parcel = self.pack(task, records)
            assert not self.announce(metadata, parcel)["objects_to_push"]

    def replayed(self, task):
        self.count("replayed answer")
        self.push(task, self.said[min(self.said)])

    def wrong_hash(self, task):
        """An object that is not what its name says; then it is gone for the round."""
        self.count("wrong hash")
        metadata, parcel = self.pack(task, self.records(task))
        told = self.announce(metadata, parcel)
        spoiled = Parcel(parcel.tree, {name: content[:-1] + b"x" for name, content in parcel.objects.items()})
        with contextlib.suppress(FedkdError):
            assert self.send(metadata, spoiled, told) == 0

    def thief(self, task):
        """Answer in the place of the first node: the envelope is right, what lies in it is not."""
        self.count("stolen place")
        end = time.monotonic() + 20
        while task.round not in self.victim.asked and time.monotonic() < end:
            time.sleep(0.05)
        metadata, _ = self.pack(task, {})
        stolen = self.victim.asked[task.round].metadata["message_id"]
        parcel = pack_message({**metadata, "reply_to_message_id": stolen}, self.records(task))
        self.send(metadata, parcel, self.announce(metadata, parcel))

    def answered_and_died(self, task):
        self.honest(task)
        self.count("answered and died")
        self.away.set()

    def killed_when_asked(self, task):
        self.count("killed when asked")
        self.away.set()


class Served:
    """A ``fedkd`` command in the background and what it prints."""

    def __init__(self, *words, cwd):
        path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fedkd", *words], cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
            env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"},
        )  # fmt: skip
        self.lines = []
        self.reader = threading.Thread(target=lambda: self.lines.extend(iter(self.process.stdout.readline, "")))
        self.reader.start()

    def says(self, pattern, seconds=120):
        return until(lambda: re.search(pattern, "".join(self.lines)), seconds, lambda: "".join(self.lines))

    def close(self):
        self.process.kill()
        self.process.wait()
        self.reader.join()
        self.process.stdout.close()


def until(condition, seconds=120.0, context=lambda: ""):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"waited in vain\n{context()}"
        time.sleep(0.1)
    return found


@pytest.mark.slow
def test_nothing_of_a_healthy_node_is_lost_whatever_the_others_and_the_server_do(tmp_path):
    home = Home(tmp_path / "home")
    made = pki.init(home.pki, ["127.0.0.1"])
    shared = federation("digits", "split(size=400)", "iid", NODES, 0)
    injected, registry, context = Counter(), Registry(home.registry), trusting(made.ca.read_text())
    parts = {
        1: {3: Actor.honest},
        2: {2: Actor.answered_and_died},
        3: {1: Actor.malformed, 2: Actor.wrong_hash, 3: Actor.killed_when_asked},
        4: {1: Actor.garbled, 2: Actor.thief, 3: Actor.killed_when_asked},
        5: {1: Actor.twice, 2: Actor.replayed},
    }
    actors = [
        Actor(
            shared.truth, parts.get(k, {}), injected, Address("", 0, True), context, shared.transfer,
            source=f"127.2.0.{k + 1}", bandwidth=20_000.0 if k == 1 else None,
        )
        for k in range(NODES)
    ]  # fmt: skip
    for k, actor in enumerate(actors):
        actor.victim = actors[0]
        registry.add(actor.identity.public, f"node-{k}")
    metrics = tmp_path / "runs/chaos/metrics.jsonl"

    def reports():
        return [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []

    with contextlib.ExitStack() as stack:
        sets = [word for pair in SETTINGS for word in ("--set", pair)]
        stack.callback(launch.end_all, {"FLWR_HOME": f"{home.flower}/flwr"})
        served = Served(
            *("serve", *sets, "--host", "127.0.0.1", "--port", "0", "--home", str(home.folder), "--name", "chaos"),
            cwd=tmp_path,
        )
        stack.callback(served.close)
        port = int(served.says(r"https://127\.0\.0\.1:(\d+)/#code=")[1])
        for actor in actors:
            stack.callback(actor.ended.set)
            actor.link.address = Address("127.0.0.1", port, True)
            actor.enter()
            actor.thread.start()
        until(lambda: len(reports()) >= 3, context=lambda: "".join(served.lines))
        injected["server killed"] += 1
        served.process.kill()  # nobody tells SuperLink and ServerApp
        again = Served("resume", "runs/chaos", cwd=tmp_path)
        stack.callback(again.close)
        again.says(r"/#code=")
        for actor in actors:
            actor.away.clear()
            actor.enter()
        assert again.process.wait(timeout=120) == 0, "".join(again.lines)
        again.reader.join()
    keys = [str(actor.node_id) for actor in actors]
    found = reports()
    assert [report["round"] for report in found] == [1, 2, 3, 4, 5]
    rows = {report["round"]: report["clients"] for report in found}

    def row(round_, k):
        here = rows[round_]
        return here.get(keys[k]) or here[f"node-{int(keys[k]):x}"]

    assert injected == {
        "malformed": 1, "wrong frame": 1, "duplicated answer": 2, "replayed answer": 1, "wrong hash": 1,
        "stolen place": 1, "answered and died": 1, "killed when asked": 2, "server killed": 1,
    }  # fmt: skip
    honest = {1: (0, 1, 2, 5), 2: (0, 1, 2), 3: (0, 1, 5), 4: range(NODES), 5: range(NODES)}
    lost = [(r, k) for r, those in honest.items() for k in those if row(r, k)["status"] != "answered"]
    assert lost == []
    assert all(row(r, k)["error"] is None for r, those in honest.items() for k in those)
    visible = {
        (1, 3): ("failed", "malformed reply (DecodeError)"),
        (1, 4): ("failed", "CodecError"),
        (2, 3): ("silent", "no answer in time"),
        (2, 4): ("failed", "malformed reply (it answers a message that another node was asked)"),
        (2, 5): ("failed", "frame has round 1, expected 2"),
        (3, 2): ("silent", "no answer in time"),
        (3, 3): ("silent", "no answer in time"),
        (3, 4): ("silent", "no answer in time"),
    }
    for (round_, k), (status, why) in visible.items():
        assert (row(round_, k)["status"], why in row(round_, k)["error"]) == (status, True), (round_, k, row(round_, k))
    page = (tmp_path / "runs/chaos/report.html").read_text()
    assert "frame has round 1, expected 2" in page  # it shows the last reason of each client
    assert "22 of 30 answers came in time" in page
    assert read_status(tmp_path / "runs/chaos").state == "done"
    summary = json.loads((tmp_path / "runs/chaos/summary.json").read_text())
    assert summary["finished"] is True
    assert summary["scoreboard"]["student"] > 0.8
