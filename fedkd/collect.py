"""Asking and collecting: who is told what, whose answers count, and what each side knows of the other afterwards.

A round needs a quorum and a deadline, not everyone. Whatever is wrong with an answer costs its sender a row of the
report, and nobody else anything.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from fedkd.absence import Kept, kept, of_the_absent, onto
from fedkd.audience import EVERYONE, Audience
from fedkd.codec import IN_FULL, Known, decode_release, encode_query, peek, remember
from fedkd.config import Config
from fedkd.errors import CodecError, FedkdError, QuorumError
from fedkd.protect import demand, protection_of
from fedkd.records import Query, Release, Teacher
from fedkd.release import form
from fedkd.state import State

Observer = Callable[[str, Mapping[str, Any]], None]
"""Is told what happens as it happens: an event and its facts, never anything that clients hold.

``waiting`` (present of clients), ``resume`` (reports), ``round``, ``asked`` (clients, sent: bytes by client, phase of a
masked round), ``answer`` and ``late`` (:func:`arrival`), ``enough`` (a quorum is there), ``aggregate``, ``distill``,
``report``, ``summary``. Where something is waited for, ``left`` says for how many seconds.
"""


@dataclass(frozen=True)
class Reply:
    """What came back from one client: a frame, or the reason why there is none.

    ``client`` is who it says it is, ``asked_as`` the name under which it was asked: its node's, until it has answered.
    ``node`` is the id of its node on the network, empty where there is none.
    """

    round: int
    client: str
    frame: bytes | None
    error: str | None
    accuracy: float | None
    bytes_up: int
    latency: float
    asked_as: str
    node: str = ""


class Exchange(Protocol):
    """The network as the loop sees it."""

    def ask(
        self, round_: int, frame: bytes, personal: Mapping[str, bytes], acknowledged: Mapping[str, int]
    ) -> Mapping[str, int]:
        """Send every client present its ``personal`` frame, or else ``frame``; return bytes sent, by client.

        ``acknowledged`` is the round of a client's last release that is here, for those whose deltas start from it.
        """
        ...

    def again(self, round_: int, client: str, frame: bytes, acknowledged: int) -> int:
        """Send one client another frame, since it could not read its last one; return bytes sent."""
        ...

    def tell(self, round_: int, personal: Mapping[str, bytes]) -> Mapping[str, int]:
        """Send those clients that have a ``personal`` frame and are present theirs; return bytes sent, by client."""
        ...

    def open(self, round_: int) -> int:
        """Return how many answers of ``round_`` are still outstanding."""
        ...

    def poll(self, timeout: float) -> list[Reply]:
        """Return answers of any round that have arrived; block for at most ``timeout`` seconds if there are none."""
        ...


@dataclass(frozen=True, eq=False)
class Collected:
    """The answers of a round: releases on its rows by client, and a row of the report for everyone asked or away.

    ``ballots`` is what will be known of each client's last words after it.
    """

    releases: dict[int, Release]
    clients: dict[str, dict[str, Any]]
    latency: dict[str, float]
    ballots: dict[int, Kept] = field(default_factory=dict)


def remembers(config: Config) -> bool:
    """Say whether last ballots may be kept: not where a server must not hold them singly, or deals rows anew."""
    return config.remember > 0 and protection_of(config).place in ("nowhere", "training")


class Collector:
    """What the server remembers of a conversation: queries of two rounds, late answers, who lacks what."""

    def __init__(self, config: Config, rows: int, observe: Observer) -> None:
        """Start with nothing said; queries are about ``rows`` rows."""
        self.config, self.rows, self.observe = config, rows, observe
        self.state: State
        self.multicast: int | None = None
        """Bytes of the frames of the last question, equal ones counted once: what a radio that all hear would carry."""
        self._late: dict[int, tuple[Query, Release]] = {}
        self._late_bytes: dict[str, int] = {}
        self._queries: dict[int, tuple[Query, Mapping[int, Query]]] = {}
        self._leaning: set[str] = set()
        self._proofs: set[tuple[int, int]] = set()
        self._refused: set[int] = set()

    def ask(self, exchange: Exchange, query: Query, state: State) -> Mapping[str, int]:
        """Send the query with what goes back: one frame for all, or one for each client with a teacher of its own."""
        self.state = state
        back = state.feedback
        shared = replace(query, feedback=back if isinstance(back, Teacher) else None)
        teachers = {} if back is None or isinstance(back, Teacher) else back
        own = {key: replace(query, feedback=teacher) for key, teacher in teachers.items()}
        self._queries = {r: q for r, q in self._queries.items() if r >= query.round - 1} | {query.round: (shared, own)}
        whole, personal = self.framed(shared), {str(key): self.framed(mine) for key, mine in own.items()}
        deltas: dict[str, bytes] = {}
        for name, told in {EVERYONE: shared, **own}.items():
            if (audience := self.state.told.get(name)) is not None:
                way = form(self.config.broadcast)
                full = personal.get(str(name), whole)
                deltas |= {str(k): f for k, f in audience.frames(told, way.encoding, way.coding, full).items()}
        self._leaning, self._proofs, self._refused = set(deltas), set(), set()
        own_frames = personal | deltas
        sent = exchange.ask(query.round, whole, own_frames, self._acknowledged)
        self.multicast = sum(map(len, {own_frames.get(name, whole) for name in sent}))
        return sent

    def collect(self, exchange: Exchange, query: Query, sent: Mapping[str, int]) -> Collected:
        """Return the answers to ``query``; raise :class:`QuorumError` where there are too few within the deadline."""
        config = self.config
        need = max(1, math.ceil(config.quorum * len(sent) - 1e-9))  # 0.07 * 100 is a little more than 7
        end = time.monotonic() + config.deadline
        clients: dict[str, dict[str, Any]] = {}
        releases: dict[int, Release] = {}
        latency: dict[str, float] = {}
        met, waiting = False, dict(sent)
        self.observe("asked", {"round": query.round, "clients": len(sent), "sent": dict(sent), "left": config.deadline})
        while exchange.open(query.round) and (left := end - time.monotonic()) > 0:
            for reply in exchange.poll(left):
                if self._ask_again(exchange, reply, query, waiting):
                    continue
                self._take(reply, query, releases, clients)
                if reply.round == query.round:
                    latency[reply.client] = reply.latency
                    if reply.client in clients and reply.asked_as in waiting:
                        clients[reply.client]["bytes_down"] = waiting.pop(reply.asked_as)
                    error = clients.get(reply.client, {}).get("error")
                    self.observe("answer", arrival(reply, error))
                else:
                    self.observe("late", arrival(reply, reply.error))
            if not met and len(releases) >= need:
                met, end = True, min(end, time.monotonic() + config.grace)
                self.observe("enough", {"round": query.round, "left": max(0.0, end - time.monotonic())})
        for name, size in waiting.items():
            silent = {
                "status": "silent",
                "bytes_up": 0,
                "bytes_down": size,
                "local": None,
                "error": "no answer in time",
            }
            clients.setdefault(name, silent)
        fresh = {key: Kept(query.round, query.indices, release) for key, release in releases.items()}
        for key, (past, release) in sorted(self._late.items()):
            if key not in releases:
                fresh[key] = Kept(past.round, past.indices, release)
                releases[key] = onto(query.indices, past.indices, release)
                row = clients.setdefault(str(key), {"bytes_up": 0, "bytes_down": 0, "local": None})
                row |= {"status": "late", "error": None}
        for name, size in self._late_bytes.items():  # they travelled, whether they count or not
            clients.setdefault(name, {"status": "silent", "bytes_up": 0, "bytes_down": 0, "local": None, "error": None})
            clients[name]["bytes_up"] += size
        self._late, self._late_bytes = {}, {}
        failed = {int(name) for name, row in clients.items() if row["status"] == "failed" and name.isdecimal()}
        for key, release in of_the_absent(self.state.ballots, query, releases.keys() | failed).items():
            releases[key] = release
            clients.setdefault(
                str(key), {"status": "away", "bytes_up": 0, "bytes_down": 0, "local": None, "error": None}
            )
        on_time = sum(row["status"] == "answered" for row in clients.values())
        heard = any(release.w.any() for release in releases.values()) or not len(query.indices)
        if on_time < need or not heard:
            errors = {name: str(row["error"]) for name, row in clients.items() if row.get("error")}
            why = "".join(f" {line[0].upper()}{line[1:].rstrip('.')}." for line in folded(errors, len(sent))[:3])
            why = why if on_time < need else " None of their ballots has any weight."
            within = f" within {config.deadline:g} s" if waiting else ""
            saved = " Nothing of the rounds before is lost." if query.round > 1 else ""
            raise QuorumError(
                f"round {query.round}: {on_time} of {len(sent)} clients answered{within}, "
                f"{need} needed (quorum = {config.quorum:g}).{why}{saved}"
            )
        return Collected(
            releases,
            dict(sorted(clients.items(), key=by_number)),
            dict(sorted(latency.items(), key=by_number)),
            kept(self.state.ballots, query.round, fresh, config.remember) if remembers(config) else {},
        )

    def told(self, query: Query, state: State) -> dict[int, Audience]:
        """Return what clients have of the feedback, now that this round's has been told and answered."""
        way, (shared, own) = form(self.config.broadcast), self._queries.get(query.round, (query, {}))
        if "delta" not in way.coding:
            return {}
        told = dict(state.told)
        for name, mine in {EVERYONE: shared, **own}.items():
            if mine.feedback is not None:
                told[name] = told.get(name, Audience()).tell(mine, way.encoding, self.rows)
        told = {name: audience.forget(self._refused) for name, audience in told.items()}
        heard: dict[tuple[int, int], list[int]] = {}
        for round_, key in self._proofs:
            if round_ == query.round or key not in self._refused:
                heard.setdefault((round_, key if key in self._queries[round_][1] else EVERYONE), []).append(key)
        for (round_, name), keys in heard.items():
            shared, own = self._queries[round_]
            if name in told:
                told[name] = told[name].hear(keys, own.get(name, shared))
        return told

    def remembered(self, query: Query, collected: Collected, state: State) -> dict[int, Known]:
        """Return what deltas of the next round start from: the last release of each client that answered in time."""
        known = dict(state.known)
        if "delta" not in form(self.config.release).coding:
            return known
        for key, release in collected.releases.items():
            if collected.clients.get(str(key), {}).get("status") == "answered":  # in time, that is
                base = known.get(key) if "delta" in release.coding else None  # in full: its sender may have lost it
                known[key] = remember(base, release, query, self.rows)
        return known

    @property
    def _acknowledged(self) -> dict[str, int]:
        return {str(key): known.round for key, known in self.state.known.items()}

    def framed(self, query: Query) -> bytes:
        """Return a query in full."""
        way = form(self.config.broadcast)
        return encode_query(query, self.rows, way.encoding, coding=way.coding)

    def _ask_again(self, exchange: Exchange, reply: Reply, query: Query, sent: dict[str, int]) -> bool:
        """Send the query in full if ``reply`` says that its sender lost what our delta leans on; once in a round."""
        name = reply.asked_as  # whatever it says who it is
        if reply.round != query.round or name not in self._leaning or IN_FULL not in (reply.error or ""):
            return False
        self._leaning.remove(name)
        self._refused.add(int(name))
        shared, own = self._queries[query.round]
        frame = self.framed(own.get(int(name), shared))
        more = exchange.again(query.round, name, frame, self._acknowledged.get(name, 0))
        sent[name] = sent.get(name, 0) + more
        self._late_bytes[name] = self._late_bytes.get(name, 0) + reply.bytes_up
        return True

    def _take(
        self, reply: Reply, query: Query, releases: dict[int, Release], clients: dict[str, dict[str, Any]]
    ) -> None:
        """Count one reply. Whatever is wrong with it costs its sender a row of the report and nobody else anything."""
        asked = self._queries.get(reply.round)
        row: dict[str, Any] = {
            "status": "failed",
            "bytes_up": reply.bytes_up,
            "local": reply.accuracy if self.config.protect == "none" else None,
            "error": reply.error,
        }
        try:
            if reply.frame is None:
                raise FedkdError(reply.error or "no frame")
            if asked is None:
                return  # older than the round before: too late for anything
            key = peek(reply.frame).client
            if str(key) != reply.client:
                raise CodecError(f"answers in the name of client {key}")
            shared, own = asked
            answered = own.get(key, shared)
            _, release = decode_release(reply.frame, answered, known=self.state.known.get(key))
            demand(self.config, release.event, f"client {key}")
        except FedkdError as error:
            row["error"] = str(error)
            if reply.client.isdecimal():
                self._refused.add(int(reply.client))
            if reply.round == query.round:
                clients.setdefault(reply.client, row)
            return
        self._proofs.add((reply.round, key))
        if reply.round != query.round:
            self._late_bytes[reply.client] = self._late_bytes.get(reply.client, 0) + reply.bytes_up
            if self.config.late:
                self._late[key] = (answered, release)
        elif key not in releases:  # the first answer counts; a second one is ignored
            releases[key] = release
            clients[reply.client] = {**row, "status": "answered", "error": None}


def arrival(reply: Reply, error: str | None) -> dict[str, Any]:
    """Return what an observer is told of a reply, and of the ``error`` for which it does not count."""
    return {
        "round": reply.round,
        "client": reply.client,
        "asked_as": reply.asked_as,
        "bytes_up": reply.bytes_up,
        "seconds": reply.latency,
        "error": error,
        "node": reply.node or None,
    }


def folded(errors: Mapping[str, str], asked: int) -> list[str]:
    """Return one line for each different one of the ``errors`` of clients, the most frequent first.

    >>> folded({"0": "no memory", "2": "no memory", "1": "no disk"}, 4)
    ['clients 0, 2: no memory', 'client 1: no disk']
    """
    who: dict[str, list[str]] = {}
    for name, error in sorted(errors.items(), key=by_number):
        who.setdefault(error.replace(f"of client {name} ", "of this client "), []).append(name)
    lines = []
    for error, names in sorted(who.items(), key=lambda item: -len(item[1])):
        few = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        whose = f"all {asked} clients" if len(names) == asked > 1 else f"client{'s'[: len(names) > 1]} {few}"
        lines.append(f"{whose}: {error}")
    return lines


def by_number(item: tuple[str, Any]) -> tuple[int, str]:
    """Return what sorts clients by their numbers, and those without one after them."""
    return (int(item[0]), "") if item[0].isdecimal() else (1 << 64, item[0])
