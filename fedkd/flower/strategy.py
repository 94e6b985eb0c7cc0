"""Federated distillation in Flower's familiar form: ``FederatedDistillation(config).start(grid=grid)``.

The round loop is ours (quorum, deadline, late answers, resume), not a subclass of Flower's ``Strategy``, which knows
weights only. Any ``Grid`` will do: Flower's simulation, a SuperLink, or ours that runs clients in this machine.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from fedkd.codec import peek
from fedkd.config import Config
from fedkd.errors import CheckpointError, CodecError, FedkdError, QuorumError
from fedkd.federation import Federation, federation
from fedkd.flower.messages import QUERY, query_content, read_answer, size_of
from fedkd.learner import Learner
from fedkd.records import RoundReport
from fedkd.rounds import Evaluation, Loop, Observer, Reply
from fedkd.rundir import RunDirectory
from fedkd.scoreboard import build_student, summarize

POLL = 0.1
"""Seconds between two looks at a grid that cannot wake us."""


@dataclass(frozen=True, eq=False)
class Result:
    """What a run leaves: the student (None if there is none), one report a round, and the summary of summary.json."""

    student: Learner | None
    reports: list[RoundReport]
    summary: dict[str, Any]


class FederatedDistillation:
    """One federation, from the first query to the report.

    >>> result = FederatedDistillation(Config(rounds=5)).start(grid=grid)  # doctest: +SKIP
    >>> result.summary["scoreboard"]["student"]  # doctest: +SKIP
    0.91
    """

    def __init__(self, config: Config, *, observe: Observer = lambda event, facts: None, command: str = "") -> None:
        """Take a configuration; ``observe(event, facts)`` is told what happens as it happens."""
        self.config, self.observe, self.command = config, observe, command

    def start(self, *, grid: Grid) -> Result:
        """Run all rounds on ``grid``; write the run directory if ``config.output`` names one."""
        config = self.config
        shared = federation(config.data, config.transfer, config.partition, config.clients, config.seed)
        student = build_student(config, shared)
        directory = RunDirectory(Path(config.output)) if config.output else None
        if directory is not None:
            directory.begin(config)
        loop = Loop(
            config,
            shared.transfer,
            shared.dataset.classes,
            student,
            evaluation=Evaluation(shared.test(), shared.truth) if config.evaluate else None,
            checkpoint=directory.checkpoint if directory else None,
            observe=self._tell(directory),
        )
        if directory is not None:
            directory.rewrite(loop.state.reports)
        exchange = GridExchange(grid, ttl=config.deadline * (2 if config.late else 1))
        exchange.wait_for(config.clients, quorum=config.quorum, timeout=config.deadline)
        reports = loop.run(exchange)
        return self._finish(loop, shared, student, reports, directory)

    def _tell(self, directory: RunDirectory | None) -> Observer:
        def observe(event: str, facts: Mapping[str, Any]) -> None:
            if event == "report" and directory is not None:
                directory.append(facts["report"])
            self.observe(event, facts)

        return observe

    def _finish(
        self,
        loop: Loop,
        shared: Federation,
        student: Learner | None,
        reports: list[RoundReport],
        directory: RunDirectory | None,
    ) -> Result:
        self.observe("summary", {"pooled": self.config.pooled})
        summary = summarize(self.config, shared, student, loop.state, command=self.command)
        if directory is not None:
            try:
                directory.finish(summary, student)
            except OSError as error:
                raise CheckpointError(
                    f"cannot write {directory.path}: {error.strerror}. All rounds are saved; make room and run: "
                    f"fedkd resume {directory.path}"
                ) from error
        return Result(student, reports, summary)


class GridExchange:
    """The round loop's view of a Flower grid. A malformed or missing answer costs its own client only."""

    def __init__(self, grid: Grid, *, ttl: float) -> None:
        """Wrap ``grid``; an unanswered message expires after ``ttl`` seconds."""
        self.grid, self.ttl = grid, ttl
        self._open: dict[str, tuple[int, int, float]] = {}  # message id -> (round, node, when it was sent)
        self._names: dict[int, str] = {}  # node -> client, as it named itself

    def wait_for(self, clients: int, *, quorum: float, timeout: float) -> None:
        """Wait until ``clients`` nodes are there; after ``timeout`` go on with a quorum of them, or give up."""
        end = time.monotonic() + timeout
        while (present := len(list(self.grid.get_node_ids()))) < clients:
            if time.monotonic() > end:
                if present >= max(1, quorum * clients):
                    return
                raise QuorumError(f"{present} of {clients} clients joined within {timeout:g} s (clients = {clients})")
            time.sleep(POLL)

    def ask(self, round_: int, frame: bytes) -> Mapping[str, int]:
        """Send ``frame`` to every node that is online now."""
        content = query_content(frame)
        size = size_of(content)
        nodes = sorted(self.grid.get_node_ids())
        messages = [
            Message(content, dst_node_id=node, message_type=QUERY, ttl=self.ttl, group_id=str(round_)) for node in nodes
        ]
        ids = list(self.grid.push_messages(messages))
        now = time.monotonic()
        self._open |= {id_: (round_, node, now) for id_, node in zip(ids, nodes, strict=True)}
        return {self._name(node): size for node in nodes}

    def open(self, round_: int) -> int:
        """Return how many answers of ``round_`` are outstanding."""
        return sum(1 for r, _, _ in self._open.values() if r == round_)

    def poll(self, timeout: float) -> list[Reply]:
        """Return the answers that have arrived; wait for at most ``timeout`` seconds if there are none."""
        end = time.monotonic() + timeout
        wait = getattr(self.grid, "wait", None)
        while True:
            replies = [reply for message in self._pull() if (reply := self._read(message)) is not None]
            left = end - time.monotonic()
            if replies or left <= 0 or not self._open:
                return replies
            if wait is not None:
                wait(min(left, 1.0))
            else:
                time.sleep(min(left, POLL))

    def _pull(self) -> Iterable[Message]:
        if hasattr(self.grid, "wait"):  # our own grid parses nothing that could fail here
            return list(self.grid.pull_messages(list(self._open)))
        found: list[Message] = []
        for id_ in list(self._open):
            try:
                found += self.grid.pull_messages([id_])
            except Exception:  # Flower raises whatever a malformed reply provokes; one id a call confines it
                self._open.pop(id_)
        return found

    def _read(self, message: Message) -> Reply | None:
        sent = self._open.pop(message.metadata.reply_to_message_id, None)
        if sent is None:
            return None  # a second answer to the same message
        round_, node, when = sent
        latency, asked_as = time.monotonic() - when, self._name(node)
        if message.has_error():
            error = f"Flower error {message.error.code}: {message.error.reason}"[:200]
            return Reply(round_, asked_as, None, error, None, 0, latency, asked_as)
        try:
            size = size_of(message.content)
            frame, accuracy, client, error_ = read_answer(message.content)
            if frame is not None:
                client = str(peek(frame).client)
        except (FedkdError, CodecError, KeyError, ValueError, TypeError, AttributeError) as error:
            return Reply(round_, asked_as, None, f"{type(error).__name__}: {error}", None, 0, latency, asked_as)
        self._names[node] = client or asked_as
        return Reply(round_, self._names[node], frame, error_, accuracy, size, latency, asked_as)

    def _name(self, node: int) -> str:
        """Return the client that ``node`` said it is, or the node's own name until it has answered once."""
        local = getattr(self.grid, "partition_of", None)
        return self._names.get(node) or (str(local(node)) if local is not None else f"node-{node:x}")
