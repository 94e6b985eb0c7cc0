"""A network of our own making for the round loop: clients that answer at once, late, wrongly or not at all."""

import numpy as np

from fedkd.codec import decode_query, encode_release
from fedkd.collect import Reply
from fedkd.config import Config
from fedkd.dataset import fingerprint
from fedkd.records import Release, TransferSet
from fedkd.rounds import Evaluation, Loop
from fedkd.softlabels import one_hot

ROWS, CLASSES = 12, 3
INPUTS = np.linspace(0, 1, ROWS * 2, dtype=np.float32).reshape(ROWS, 2)
TRANSFER = TransferSet(INPUTS, fingerprint(INPUTS))
TRUTH = np.arange(ROWS) % CLASSES


class Student:
    """Remembers the mean of the teachers it saw: enough to see what it was taught."""

    architecture, parameters = "mean", 0

    def __init__(self):
        self.seen = np.zeros((ROWS, CLASSES), np.float32)
        self.lessons = 0

    def distill(self, x, p, *, w, rng):
        rows = [int(np.flatnonzero((row == INPUTS).all(axis=1))[0]) for row in x]
        self.seen = self.seen.copy()
        self.seen[rows] += p * np.float32(rng.uniform(0.9, 1.1))
        self.lessons += 1

    def predict(self, x):
        seen = self.seen[[int(np.flatnonzero((row == INPUTS).all(axis=1))[0]) for row in x]].reshape(-1, CLASSES)
        total = seen.sum(axis=1, keepdims=True)
        return np.where(total > 0, seen / np.maximum(total, 1e-9), np.float32(1 / CLASSES)).astype(np.float32)

    def state(self):
        return {"seen": self.seen, "lessons": np.array(self.lessons)}

    def load(self, state):
        self.seen, self.lessons = state["seen"], int(state["lessons"])


def truthful(query, client):
    """The ballot of an honest client: mostly right, a little different for each client and round."""
    p = 0.7 * one_hot(TRUTH[query.indices], CLASSES) + 0.1
    p[:, client % CLASSES] += 0.01 * query.round
    return Release((p / p.sum(axis=1, keepdims=True)).astype(np.float32), np.ones(len(p), np.float32))


class Network:
    """Clients by behavior: a function ``(query, client) -> Release, bytes, exception, or None for silence``."""

    def __init__(self, *behaviors, order=None, delays=()):
        self.behaviors, self.order, self.delays = behaviors, order, dict(delays)
        self.waiting, self.frames, self.personal, self.acknowledged = [], [], [], []

    def ask(self, round_, frame, personal, acknowledged):
        self.frames.append(frame)
        self.personal.append(personal)
        self.acknowledged.append(dict(acknowledged))
        for client in self.order or range(len(self.behaviors)):
            query = decode_query(personal.get(str(client), frame), TRANSFER.fingerprint, ROWS)
            try:
                made = self.behaviors[client](query, client)
            except RuntimeError as error:
                self.waiting.append((round_, Reply(round_, str(client), None, str(error), None, 9, 0.1, str(client))))
                continue
            for one in made if isinstance(made, list) else [made]:
                if one is not None:
                    sent = one if isinstance(one, bytes) else encode_release(one, query, client)
                    due = round_ + self.delays.get((client, round_), 0)
                    self.waiting.append((due, Reply(round_, str(client), sent, None, 0.5, len(sent), 0.1, str(client))))
        self.now = round_
        return {str(client): len(frame) for client in range(len(self.behaviors))}

    def open(self, round_):
        return sum(1 for _, reply in self.waiting if reply.round == round_) + sum(
            behavior is silent for behavior in self.behaviors
        )

    def poll(self, timeout):
        here = [reply for due, reply in self.waiting if due <= self.now]
        self.waiting = [(due, reply) for due, reply in self.waiting if due > self.now]
        if not here:
            CLOCK.forward(timeout)
        return here


def silent(query, client):
    return None


class FakeTime:
    """Time that passes only when the loop waits: a deadline is tested in no time at all."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def forward(self, seconds):
        self.now += seconds


CLOCK = FakeTime()


def settings(**keys):
    base = {
        "rounds": 2,
        "expertise": "uniform",
        "evidence": "none",
        "release": "float32",
        "broadcast": "float32",
        "deadline": 10.0,
        "grace": 10.0,
    }
    return Config(**{**base, **keys})


def loop(config=None, *, checkpoint=None, observe=lambda event, facts: None):
    evaluation = Evaluation((INPUTS, TRUTH), TRUTH)
    return Loop(
        config or settings(),
        TRANSFER,
        CLASSES,
        Student(),
        evaluation=evaluation,
        checkpoint=checkpoint,
        observe=observe,
    )


def without_time(reports):
    return [(r.round, r.metrics, r.clients) for r in reports]
