"""The server's half of a masked round: keys, masked ballots, and what takes the masks off, each within a deadline.

Who does not answer in one phase is not asked in the next. A client that is lost before its vector came is left out of
the sum; one that is lost later has been counted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from fedkd.codec import peek
from fedkd.collect import arrival
from fedkd.config import Config
from fedkd.errors import CodecError, FedkdError, QuorumError
from fedkd.protect import numbers_of_round, rules_of
from fedkd.records import Query
from fedkd.secagg import server
from fedkd.secagg.client import Rules
from fedkd.softlabels import Array

if TYPE_CHECKING:
    from fedkd.collect import Exchange, Observer, Reply

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Sum:
    """The sum of what ``parties`` clients added, a row of the report for everyone, and seconds by client."""

    total: Array
    parties: int
    clients: dict[str, dict[str, Any]]
    latency: dict[str, float]


@dataclass(eq=False)
class Gathering:
    """One masked round of ``query``, whose frame is ``question``."""

    config: Config
    exchange: Exchange
    query: Query
    question: bytes
    rules: Rules
    observe: Observer
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    latency: dict[str, float] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    asked: int = 0

    def run(self) -> Sum:
        """Return the sum; raise :class:`QuorumError` where too few are left for one."""
        query, rules = self.query, self.rules
        first = self.exchange.ask(query.round, server.ask_keys(query), {}, {})
        self.asked = len(first)
        cards = self._phase("keys", first, server.read_card)
        self._need(len(cards), "sent keys")
        usable = server.sound(list(cards.values()), query.round, rules)
        self._drop(cards.keys() - {one.client for one in usable}, "keys that others would not take")
        self._need(len(usable), "sent keys that others take")
        members = server.roster(usable, rules)
        shares = None
        if rules.robust:
            shares = self._ask("secrets", server.ask_shares(query, members), server.read_shares)
            self._need(len(shares), "shared secrets")
        count = numbers_of_round(self.config, len(query.indices), query.classes)
        questions = server.ask_masked(query, self.question, members, shares)
        self._drop((shares or questions).keys() - questions.keys(), "secrets that lack a neighbor")
        words = self._ask("ballots", questions, lambda frame: server.read_masked(frame, count))
        self._need(len(words), "sent ballots")
        lost = [client for client in questions if client not in words]
        silent = [client for client in lost if self.rows[self.names[client]]["status"] == "silent"]
        if silent and not rules.robust:  # the ballot may come after all, and would be naked without its masks
            raise QuorumError(
                f"round {query.round}: client {silent[0]} fell silent with its ballot on the way; a strict round is "
                "lost with it. Use dropout = 'robust', or a longer grace."
            )
        said: Mapping[int, Mapping[int, bytes]] = {}
        if rules.robust or lost:
            unmask = server.ask_unmask(query, members, list(questions), list(words))
            said = self._ask("masks", unmask, server.read_unmask)
        try:
            total = server.total(words, list(questions), members, said, rules, query.round)
        except FedkdError as error:
            raise QuorumError(f"round {query.round}: {error}. Nothing of the rounds before is lost.") from None
        for client in words:
            self.rows[self.names[client]]["status"] = "answered"
            self.rows[self.names[client]]["error"] = None
        return Sum(total, len(words), self.rows, self.latency)

    def _drop(self, clients: Iterable[int], why: str) -> None:
        for client in clients:
            self.rows[self.names[client]] |= {"status": "failed", "error": why}

    def _ask(self, phase: str, questions: Mapping[int, bytes], read: Callable[[bytes], T]) -> dict[int, T]:
        sent = self.exchange.tell(self.query.round, {self.names[client]: f for client, f in questions.items()})
        return self._phase(phase, sent, read)

    def _phase(self, phase: str, sent: Mapping[str, int], read: Callable[[bytes], T]) -> dict[int, T]:
        """Return what those who were ``sent`` a question answered, by client, sorted; wait no longer than we may."""
        facts = {"round": self.query.round, "clients": len(sent), "phase": phase}
        self.observe("asked", {**facts, "sent": dict(sent), "left": self.config.deadline})
        for name, size in sent.items():
            row = {"status": "silent", "bytes_up": 0, "bytes_down": 0, "local": None, "error": f"no {phase} in time"}
            self.rows.setdefault(name, row)
            self.rows[name] |= {"error": f"no {phase} in time", "bytes_down": self.rows[name]["bytes_down"] + size}
        answers: dict[int, T] = {}
        waiting, end = set(sent), time.monotonic() + self.config.deadline
        met = False
        while waiting and (left := end - time.monotonic()) > 0:
            replies = self.exchange.poll(left)
            for reply in replies:
                self._take(reply, waiting, answers, read)
            if not replies and not self.exchange.open(self.query.round):
                break
            if not met and len(answers) >= self._enough:
                met, end = True, min(end, time.monotonic() + self.config.grace)
                self.observe("enough", {"round": self.query.round, "left": max(0.0, end - time.monotonic())})
        return dict(sorted(answers.items()))

    def _take(self, reply: Reply, waiting: set[str], answers: dict[int, T], read: Callable[[bytes], T]) -> None:
        if reply.round != self.query.round or reply.asked_as not in waiting:
            return  # of a round or a phase that is over: whoever was declared gone is gone
        row = self.rows.pop(reply.asked_as)
        self.rows[reply.client] = row
        row["bytes_up"] += reply.bytes_up
        waiting.remove(reply.asked_as)
        try:
            if reply.frame is None:
                raise FedkdError(reply.error or "no frame")
            key = peek(reply.frame).client
            if str(key) != reply.client:
                raise CodecError(f"answers in the name of client {key}")
            answers[key] = read(reply.frame)
            self.names[key] = reply.client
            self.latency[reply.client] = self.latency.get(reply.client, 0.0) + reply.latency
        except FedkdError as error:
            row |= {"status": "failed", "error": str(error)}
        self.observe("answer", arrival(reply, row["error"] if row["status"] == "failed" else None))

    @property
    def _enough(self) -> int:
        return max(self.rules.least, math.ceil(self.config.quorum * self.asked - 1e-9))

    def _need(self, count: int, what: str) -> None:
        if count < self._enough:
            errors = {name: str(row["error"]) for name, row in self.rows.items() if row["status"] != "answered"}
            why = "".join(f" Client {name}: {error}." for name, error in sorted(errors.items())[:3])
            raise QuorumError(
                f"round {self.query.round}: {count} of {self.asked} clients {what}, {self._enough} needed "
                f"(least = {self.rules.least}, quorum = {self.config.quorum:g}).{why}"
            )


def gather(config: Config, exchange: Exchange, query: Query, question: bytes, observe: Observer) -> Sum:
    """Return the sum of a masked round of ``query``, whose frame is ``question``."""
    return Gathering(config, exchange, query, question, rules_of(config), observe).run()
