"""Federated distillation in Flower's familiar form: ``FederatedDistillation(config).start(grid=grid)``.

The round loop is ours (quorum, deadline, late answers, resume), not a subclass of Flower's ``Strategy``, which knows
weights only. Any ``Grid`` will do: Flower's simulation, a SuperLink, or ours that runs clients in this machine.
"""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedkd.codec import peek
from fedkd.collect import Observer, Reply
from fedkd.config import Config
from fedkd.errors import CheckpointError, CodecError, FedkdError, QuorumError
from fedkd.federation import Federation, federation
from fedkd.flower.mailbox import Spoiled, mailbox
from fedkd.flower.messages import QUERY, query_content, read_answer, size_of
from fedkd.journal import UNNAMED
from fedkd.learner import Learner, set_threads
from fedkd.logs import telling
from fedkd.privacy.purse import begin_run
from fedkd.privacy.report import in_ledger
from fedkd.records import RoundReport
from fedkd.rounds import Evaluation, Loop
from fedkd.rundir import DEPLOYMENT, NETWORKED, SERVED, RunDirectory
from fedkd.scoreboard import build_student, summarize
from fedkd.status import StatusFile

POLL = 0.1
"""Seconds between two looks at a grid that cannot wake us, at the least."""
SHARE = 3.0
"""A look that took long is followed by a pause this many times as long: nodes need the SuperLink, too."""
PUSH = 500
"""Messages that are sent in one call."""


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
        set_threads(config.threads)
        directory = RunDirectory(Path(config.output)) if config.output else None
        if directory is None:
            with telling("run") as log:
                return self._run(grid, shared, student, None, both(log, self.observe))
        directory.note(DEPLOYMENT, _flwr_run(config))  # our own engines have written who they are already
        directory.begin(config)
        name, engine = directory.path.name, directory.began()["engine"]
        goes_on = config.resume or engine == SERVED  # which began when its server did
        with (
            telling(name) as log,
            StatusFile(directory.path, engine=engine, rounds=config.rounds, resumes=goes_on) as status,
        ):
            return self._run(grid, shared, student, directory, both(status, log, self.observe))

    def _run(
        self,
        grid: Grid,
        shared: Federation,
        student: Learner | None,
        directory: RunDirectory | None,
        observe: Observer,
    ) -> Result:
        config = self.config
        loop = Loop(
            config,
            shared.transfer,
            shared.dataset.classes,
            student,
            evaluation=Evaluation(shared.test(), shared.truth) if config.evaluate else None,
            public_labels=shared.truth if config.labels != "none" else None,
            checkpoint=directory.checkpoint if directory else None,
            ballots=directory.path / "ballots" if directory and config.record else None,
            observe=observe if directory is None else both(_journal(directory), observe),
        )
        if directory is not None:
            directory.rewrite(loop.state.reports)
        if loop.state.reports:
            observe("resume", {"reports": loop.state.reports, "round": loop.state.round})
        exchange = GridExchange(grid, ttl=config.deadline * (2 if config.late else 1))
        exchange.wait_for(config.clients, quorum=config.quorum, timeout=config.deadline, observe=observe)
        all_runs = self._charge(directory)
        reports = loop.run(exchange)
        began = directory.began() if directory is not None else {"engine": "", "command": self.command}
        simulated = hasattr(grid, "partition_of") or began["engine"] not in ("", *NETWORKED)
        observe("summary", {"pooled": config.pooled and simulated})
        return self._finish(
            loop, shared, student, reports, directory, simulated, began["command"] or self.command, all_runs
        )

    def _charge(self, directory: RunDirectory | None) -> float | None:
        """Charge the server's ledger, if it keeps one: when the clients are there, and before any is asked."""
        if not self.config.ledger:
            return None
        return begin_run(self.config, directory.name_in_ledger() if directory else uuid.uuid4().hex)

    def _finish(
        self,
        loop: Loop,
        shared: Federation,
        student: Learner | None,
        reports: list[RoundReport],
        directory: RunDirectory | None,
        simulated: bool,
        command: str,
        all_runs: float | None,
    ) -> Result:
        summary = summarize(self.config, shared, student, loop.state, command=command, simulated=simulated)
        if all_runs is not None:
            summary["privacy"] |= in_ledger(self.config, all_runs)
        if directory is not None:
            try:
                directory.finish(summary, student)
            except OSError as error:
                raise CheckpointError(
                    f"cannot write {directory.path}: {error.strerror}. All rounds are saved; make room and run: "
                    f"fedkd resume {directory.path}"
                ) from error
        return Result(student, reports, summary)


def both(*observers: Observer) -> Observer:
    """Return an observer that tells each of ``observers`` in turn."""

    def observe(event: str, facts: Mapping[str, Any]) -> None:
        for one in observers:
            one(event, facts)

    return observe


def _journal(directory: RunDirectory) -> Observer:
    def observe(event: str, facts: Mapping[str, Any]) -> None:
        if event == "report":
            directory.append(facts["report"])

    return observe


class GridExchange:
    """The round loop's view of a Flower grid. A malformed or missing answer costs its own client only."""

    def __init__(self, grid: Grid, *, ttl: float) -> None:
        """Wrap ``grid``; an unanswered message expires after ``ttl`` seconds."""
        self.grid, self.ttl = grid, ttl
        self._mailbox = mailbox(grid)
        self._present: list[int] = []  # who was there when it was last asked
        self._open: dict[str, tuple[int, int, str, float]] = {}  # message id -> round, node, its name then, when sent
        self._outstanding: Counter[int] = Counter()  # round -> how many of those
        self._names: dict[int, str] = {}  # node -> client, as it named itself
        self._holders: dict[str, int] = {}  # and back: client -> the node that answers for it

    def wait_for(
        self, clients: int, *, quorum: float, timeout: float, observe: Observer = lambda event, facts: None
    ) -> None:
        """Wait until ``clients`` nodes are there; after ``timeout`` go on with a quorum of them, or give up."""
        end, told = time.monotonic() + timeout, -1
        while (present := len(list(self.grid.get_node_ids()))) < clients:
            if present != told:
                told, left = present, max(0.0, end - time.monotonic())
                observe("waiting", {"present": present, "clients": clients, "left": left})
            if time.monotonic() > end:
                if present >= max(1, quorum * clients):
                    return
                raise QuorumError(f"{present} of {clients} clients joined within {timeout:g} s (clients = {clients})")
            time.sleep(POLL)

    def ask(
        self, round_: int, frame: bytes, personal: Mapping[str, bytes], acknowledged: Mapping[str, int]
    ) -> Mapping[str, int]:
        """Send every node that is online now the ``personal`` frame of its client, or else ``frame``."""
        present = set(self.grid.get_node_ids())
        self._present = nodes = sorted(present)
        # A node that is gone frees its client: without a key, a SuperNode that restarts is another node.
        self._names = {node: name for node, name in self._names.items() if node in present}
        self._holders = {name: node for node, name in self._names.items()}
        names = {node: self._name(node) for node in nodes}
        parts = {node: (personal.get(name, frame), acknowledged.get(name, 0)) for node, name in names.items()}
        contents = {part: query_content(*part) for part in set(parts.values())}  # a grid sends one object once
        self._push(round_, {node: contents[part] for node, part in parts.items()})
        sizes = {part: size_of(content) for part, content in contents.items()}
        return {names[node]: sizes[part] for node, part in parts.items()}

    def tell(self, round_: int, personal: Mapping[str, bytes]) -> Mapping[str, int]:
        """Send the nodes of those clients that have a ``personal`` frame theirs."""
        nodes = {node: self._name(node) for node in sorted(self.grid.get_node_ids())}
        contents = {node: query_content(personal[name]) for node, name in nodes.items() if name in personal}
        self._push(round_, contents)
        return {nodes[node]: size_of(content) for node, content in contents.items()}

    def again(self, round_: int, client: str, frame: bytes, acknowledged: int) -> int:
        """Send the node of ``client`` another frame of the same round."""
        node = next((node for node in self._present if self._name(node) == client), None)
        if node is None:
            return 0
        content = query_content(frame, acknowledged)
        self._push(round_, {node: content})
        return size_of(content)

    def _push(self, round_: int, contents: Mapping[int, RecordDict]) -> None:
        nodes = list(contents)
        for some in (nodes[at : at + PUSH] for at in range(0, len(nodes), PUSH)):
            messages = [
                Message(contents[node], dst_node_id=node, message_type=QUERY, ttl=self.ttl, group_id=str(round_))
                for node in some
            ]
            ids = list(self.grid.push_messages(messages))
            now = time.monotonic()
            # Flower gives no id to what it could not take, as for a node that was unregistered just now: it is silent.
            sent = {id_: (round_, node, self._name(node), now) for id_, node in zip(ids, some, strict=True) if id_}
            self._open |= sent
            self._outstanding[round_] += len(sent)

    def open(self, round_: int) -> int:
        """Return how many answers of ``round_`` are outstanding."""
        return self._outstanding[round_]

    def poll(self, timeout: float) -> list[Reply]:
        """Return the answers that have arrived; wait for at most ``timeout`` seconds if there are none."""
        end = time.monotonic() + timeout
        wait = getattr(self.grid, "wait", None)
        while True:
            began = time.monotonic()
            replies = self._pull()
            took = time.monotonic() - began
            left = end - time.monotonic()
            if replies or left <= 0 or not self._open:
                return replies
            if wait is not None:
                wait(min(left, 1.0))
            else:
                time.sleep(min(left, max(POLL, SHARE * took)))

    def _pull(self) -> list[Reply]:
        found = (self._read(one) for one in self._mailbox.take(self._open.keys()))
        return [reply for reply in found if reply is not None]

    def _read(self, message: Message | Spoiled) -> Reply | None:
        asked = message.asked if isinstance(message, Spoiled) else message.metadata.reply_to_message_id
        sent = self._open.pop(asked, None)
        if sent is None:
            return None  # a second answer to the same message
        round_, node, asked_as, when = sent
        self._outstanding[round_] -= 1
        reply = self._reply(message, round_, node, asked_as, time.monotonic() - when)
        return reply if hasattr(self.grid, "partition_of") else replace(reply, node=str(node))

    def _reply(self, message: Message | Spoiled, round_: int, node: int, asked_as: str, latency: float) -> Reply:
        if isinstance(message, Spoiled):
            return Reply(round_, asked_as, None, message.why, None, 0, latency, asked_as)
        if message.has_error():
            error = f"Flower error {message.error.code}: {message.error.reason}"[:200]
            return Reply(round_, asked_as, None, error, None, 0, latency, asked_as)
        try:
            size = size_of(message.content)
            frame, accuracy, client, error_ = read_answer(message.content)
            if frame is None:
                self._bound(node, client or asked_as)
                # Who refuses says nothing that could be checked: it speaks for whom it was heard as, or for its node.
                return Reply(round_, self._name(node), None, error_, accuracy, size, latency, asked_as)
            client = self._bound(node, str(peek(frame).client))
        except (FedkdError, CodecError, KeyError, ValueError, TypeError, AttributeError) as error:
            return Reply(round_, asked_as, None, f"{type(error).__name__}: {error}", None, 0, latency, asked_as)
        self._names[node] = client
        self._holders[client] = node
        return Reply(round_, client, frame, error_, accuracy, size, latency, asked_as)

    def _bound(self, node: int, client: str) -> str:
        """Return ``client`` if ``node`` may answer for it: nobody answers in the name of another node's client."""
        local = getattr(self.grid, "partition_of", None)
        if self._holders.get(client, node) != node or (local is not None and str(local(node)) != client):
            raise CodecError(f"answers in the name of client {client}, who is another node (same partition-id twice?)")
        return client

    def _name(self, node: int) -> str:
        """Return the client that ``node`` said it is, or the node's own name until it has answered once."""
        local = getattr(self.grid, "partition_of", None)
        return self._names.get(node) or (str(local(node)) if local is not None else f"{UNNAMED}{node:x}")


def _flwr_run(config: Config) -> str:
    """Return the ``flwr run`` that gives this configuration, but for the name of the SuperLink."""
    plain = Config(preset=config.preset).to_run_config()
    changed = {key: value for key, value in config.to_run_config().items() if value != plain[key]}
    if config.preset != Config().preset:
        changed = {"preset": config.preset, **changed}
    words = " ".join(f"{key}={json.dumps(value)}" for key, value in changed.items() if key != "resume")
    return f"flwr run . SUPERLINK --stream -c '{words}'"
