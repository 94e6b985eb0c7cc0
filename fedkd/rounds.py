"""The server's half: ask, collect, aggregate, sharpen, distill, evaluate, save. Knows no network and no framework.

A round needs a quorum and a deadline, not everyone. Whoever answers in time makes the teacher; answers are sorted by
client before they meet, so the order and the timing of arrivals decide nothing.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fedkd import metrics
from fedkd.aggregation import aggregator, in_chunks, stack
from fedkd.audience import EVERYONE, Audience
from fedkd.clock import Clock
from fedkd.codec import IN_FULL, Known, decode_release, encode_query, peek, remember
from fedkd.config import Config
from fedkd.defense import outlier_scores, vet
from fedkd.errors import CheckpointError, CodecError, ConfigError, FedkdError, QuorumError
from fedkd.expertise.space import space
from fedkd.feedback import Back, Outcome, feedback
from fedkd.files import load_arrays, save_arrays, write_atomic
from fedkd.labeled import Gems, labels
from fedkd.learner import Learner
from fedkd.lesson import study
from fedkd.masked_round import Sum, gather
from fedkd.memory import Memory, Pool
from fedkd.privacy.client_level import denoise
from fedkd.privacy.distributed import mean_of
from fedkd.privacy.ensemble import teacher_of
from fedkd.privacy.noise import entropy_of
from fedkd.privacy.votes import private_note
from fedkd.protect import check_classes, demand, protection_of, scale_of_round
from fedkd.random import generator
from fedkd.recording import save_round
from fedkd.records import Query, Release, RoundReport, Teacher, TransferSet
from fedkd.release import form, prepare
from fedkd.select import Selection, select
from fedkd.softlabels import Array
from fedkd.state import State
from fedkd.teacher import sharpener

Observer = Callable[[str, Mapping[str, Any]], None]

SMOOTH = 256
"""Principal components of the transfer set in which noisy labels are smoothed."""
OWNER = "privacy_private.json"
"""What the server's owner alone may know of a run's privacy, beside its checkpoint."""


@dataclass(frozen=True)
class Reply:
    """What came back from one client: a frame, or the reason why there is none.

    ``client`` is who it says it is, ``asked_as`` the name under which it was asked: its node's, until it has answered.
    """

    round: int
    client: str
    frame: bytes | None
    error: str | None
    accuracy: float | None
    bytes_up: int
    latency: float
    asked_as: str


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
class Evaluation:
    """What a simulation may measure with: a test set, and the true labels of the transfer set where they are known."""

    test: tuple[Array, Array] | None = None
    truth: Array | None = None


@dataclass(frozen=True, eq=False)
class Collected:
    """The answers of a round: releases on its rows by client, and a row of the report for everyone asked."""

    releases: dict[int, Release]
    clients: dict[str, dict[str, Any]]
    latency: dict[str, float]


class Loop:
    """One run of the server. ``student`` may be None; then the teacher is all there is."""

    def __init__(
        self,
        config: Config,
        transfer: TransferSet,
        classes: int,
        student: Learner | None,
        *,
        evaluation: Evaluation | None = None,
        public_labels: Array | None = None,
        checkpoint: Path | None = None,
        ballots: Path | None = None,
        observe: Observer = lambda event, facts: None,
    ) -> None:
        """Set up round 1; with ``config.resume`` and a checkpoint, the round after it. ``ballots`` keeps answers."""
        check_classes(config, classes)
        self.config, self.transfer, self.classes, self.student = config, transfer, classes, student
        self.evaluation = evaluation or Evaluation()
        self.public_labels = public_labels
        self.rules: Gems | None = labels.build(config.labels)()
        if self.rules is not None and public_labels is None:
            raise ConfigError(f"labels = {config.labels!r} needs a transfer set with labels, got {config.transfer!r}")
        self.checkpoint, self.ballots, self.observe = checkpoint, ballots, observe
        self.rows = classes if config.keys == "classes" else len(transfer)
        self.state = State(memory=Memory.empty(self.rows, classes))
        self._late: dict[int, tuple[Query, Release]] = {}
        self._late_bytes: dict[str, int] = {}
        self._queries: dict[int, tuple[Query, Mapping[int, Query]]] = {}
        self._leaning: set[str] = set()
        self._proofs: set[tuple[int, int]] = set()
        self._refused: set[int] = set()
        if config.resume and checkpoint is not None and checkpoint.exists():
            self._load(checkpoint)

    def run(self, exchange: Exchange) -> list[RoundReport]:
        """Run the rounds that are left and return the reports of all."""
        while self.state.round < self.config.rounds:
            self.step(exchange)
        return self.state.reports

    def step(self, exchange: Exchange) -> RoundReport:
        """Run one round; when it raises, the state and the checkpoint are those of the round before."""
        config, clock = self.config, Clock()
        round_ = self.state.round + 1
        self.observe("round", {"round": round_})
        selection = self._selection(round_)
        query = Query(round_, selection.ask, self.classes, self.transfer.fingerprint)
        chosen = protection_of(config)
        if chosen.place == "shares":
            gathered = self._gather(exchange, query)
            collected = Collected({}, dict(sorted(gathered.clients.items(), key=_by_number)), gathered.latency)
        else:
            collected = self._collect(exchange, query, self._ask(exchange, query))
        clock.lap("clients")

        # Sorted by client: neither the order nor the timing of arrivals can change a bit of the teacher.
        clients = sorted(collected.releases)
        releases = [collected.releases[key] for key in clients]
        trust = np.array([self.state.trust.get(key, 1.0) for key in clients])
        if chosen.place == "shares":
            ensemble = self._unmasked(gathered, selection.ask)
        elif self.config.protect != "none" and chosen.place != "training":
            ensemble = self._protected(releases, selection.ask)
        else:
            ensemble, trust = self._ensemble(releases, selection.ask, trust)
        fresh = Teacher(ensemble, selection.ask)
        memory = self.state.memory.count(selection.ask).learn(fresh, round_)
        rows = (
            np.union1d(selection.learn, memory.recent(round_, config.replay)) if config.replay > 1 else selection.learn
        )
        teacher = memory.lesson(rows)
        clock.lap("aggregate")
        self.observe("distill", {"round": round_})
        student_before = self.student.state() if self.student is not None else {}
        model_before = dict(vars(self.student)) if getattr(self.student, "refits", False) else {}
        try:
            lesson, kept = self._lesson(teacher)
            studied, counts = self._studied(lesson, round_)
            self._distill(studied, counts, round_)
            clock.lap("distill")
            measured = self._measure(teacher, fresh, collected)
            clock.lap("evaluate")
            outcome = Outcome(lesson, self._answer, clients, selection.ask, lambda: stack(releases, slice(None)))
            rows_of = self._judged(collected, releases, fresh, trust)
            report = RoundReport(round_, measured, rows_of, clock.seconds, collected.latency)
            following = State(
                round=round_,
                memory=memory.forget(selection.forget),
                feedback=self._feedback(outcome, round_),
                teacher=teacher,
                **({"lesson": studied, "counts": counts, "taught": round_} if counts.any() else self.state.last_lesson),
                kept=kept,
                known=self._remember(query, collected),
                trust={**self.state.trust, **dict(zip(clients, trust.tolist(), strict=True))},
                told=self._told(query),
                reports=[*self.state.reports, report],
            )
            if self.ballots is not None:
                save_round(self.ballots, query, collected.releases, selection=selection)
            if self.checkpoint is not None:
                self._save(self.checkpoint, following)
        except BaseException:
            if self.student is not None:
                self.student.load(student_before)
                vars(self.student).update(model_before)  # one that refits has no state, but another model by now
            raise
        self.state = following
        self.observe("report", {"report": report})
        return report

    def _selection(self, round_: int) -> Selection:
        if self.config.keys == "classes":
            everything = np.arange(self.classes)
            return Selection(everything, everything, everything[:0])
        rng = generator(self.config.seed, "server", "round", round_, "select")
        pool = Pool(
            self.state.memory,
            round_,
            self._answer if self.student is not None else None,
            self._wrong if self.rules is not None else None,
        )
        chosen: Selection = select.build(self.config.select)(pool, rng)
        return chosen

    def _wrong(self) -> Array:
        return np.asarray(self._answer(np.arange(self.rows)).argmax(axis=1) != self.public_labels)

    def _ask(self, exchange: Exchange, query: Query) -> Mapping[str, int]:
        """Send the query with what goes back: one frame for all, or one for each client with a teacher of its own."""
        back = self.state.feedback
        shared = replace(query, feedback=back if isinstance(back, Teacher) else None)
        teachers = {} if back is None or isinstance(back, Teacher) else back
        own = {key: replace(query, feedback=teacher) for key, teacher in teachers.items()}
        self._queries = {r: q for r, q in self._queries.items() if r >= query.round - 1} | {query.round: (shared, own)}
        whole, personal = self._framed(shared), {str(key): self._framed(mine) for key, mine in own.items()}
        deltas: dict[str, bytes] = {}
        for name, told in {EVERYONE: shared, **own}.items():
            if (audience := self.state.told.get(name)) is not None:
                way = form(self.config.broadcast)
                full = personal.get(str(name), whole)
                deltas |= {str(k): f for k, f in audience.frames(told, way.encoding, way.coding, full).items()}
        self._leaning, self._proofs, self._refused = set(deltas), set(), set()
        return exchange.ask(query.round, whole, personal | deltas, self._acknowledged)

    @property
    def _acknowledged(self) -> dict[str, int]:
        return {str(key): known.round for key, known in self.state.known.items()}

    def _framed(self, query: Query) -> bytes:
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
        frame = self._framed(own.get(int(name), shared))
        more = exchange.again(query.round, name, frame, self._acknowledged.get(name, 0))
        sent[name] = sent.get(name, 0) + more
        self._late_bytes[name] = self._late_bytes.get(name, 0) + reply.bytes_up
        return True

    def _told(self, query: Query) -> dict[int, Audience]:
        """Return what clients have of the feedback, now that this round's has been told and answered."""
        way, (shared, own) = form(self.config.broadcast), self._queries.get(query.round, (query, {}))
        if "delta" not in way.coding:
            return {}
        told = dict(self.state.told)
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

    def _remember(self, query: Query, collected: Collected) -> dict[int, Known]:
        """Return what deltas of the next round start from: the last release of each client that answered in time."""
        known = dict(self.state.known)
        if "delta" not in form(self.config.release).coding:
            return known
        for key, release in collected.releases.items():
            if collected.clients.get(str(key), {}).get("status") == "answered":  # in time, that is
                base = known.get(key) if "delta" in release.coding else None  # in full: its sender may have lost it
                known[key] = remember(base, release, query, self.rows)
        return known

    def _ensemble(self, releases: Sequence[Release], rows: Array, trust: Array) -> tuple[Array, Array]:
        """Return the sharpened soft labels (n, C) of the releases, and how far each is trusted after that (K,)."""
        if self.rules is not None and self.public_labels is not None and releases:
            ballots = stack(releases, slice(None))
            w = self.rules.credit(ballots.p, ballots.w, self.public_labels[rows])
            releases = [replace(release, w=w[k]) for k, release in enumerate(releases)]
        if self.config.defend != "none" and releases:
            ballots = stack(releases, slice(None))
            vetted = vet(self.config.defend, ballots.p, ballots.w, trust)
            releases = [replace(r, p=vetted.p[k], w=vetted.w[k]) for k, r in enumerate(releases)]
            trust = vetted.trust
        ensemble = in_chunks(aggregator.build(self.config.aggregate), releases)
        sharp: Array = sharpener.build(self.config.sharpen)(ensemble)
        return sharp.astype(np.float32, copy=False), trust

    def _protected(self, releases: Sequence[Release], rows: Array) -> Array:
        """Return the teacher (n, C) of ballots that are noisy, or of their noisy sum; the rest is post-processing."""
        round_, features = self.state.round + 1, space(self.transfer, SMOOTH)[0][rows]
        entropy = entropy_of(self.config.noise, self.config.seed, "server", "round", round_)
        noisy = teacher_of(self.config, releases, features, self.classes, entropy)
        self._tell_owner(round_, noisy.cost)
        sharp: Array = sharpener.build(self.config.sharpen)(noisy.teacher)
        return sharp.astype(np.float32, copy=False)

    def _tell_owner(self, round_: int, cost: Array | None) -> None:
        """Keep what the votes really cost where only the server's owner looks: the number is private itself."""
        if cost is None or self.checkpoint is None:
            return
        path, rounds = self.checkpoint.with_name(OWNER), dict[str, Sequence[float]]()
        if round_ > 1 and path.exists():
            rounds = json.loads(path.read_text(encoding="utf-8"))["rounds"]
        rounds = {r: costs for r, costs in rounds.items() if int(r) < round_} | {str(round_): cost.tolist()}
        write_atomic(path, json.dumps(private_note(rounds, self.config.delta)).encode())
        path.chmod(0o600)

    def _gather(self, exchange: Exchange, query: Query) -> Sum:
        """Return the sum of the clients' ballots, none of which is seen on its own."""
        back = self.state.feedback
        asked = replace(query, feedback=back if isinstance(back, Teacher) else None)
        return gather(self.config, exchange, asked, self._framed(asked), self.observe)

    def _unmasked(self, gathered: Sum, rows: Array) -> Array:
        """Return the teacher (n, C) of a sum that was noisy when it got here; all that follows is post-processing."""
        scale = scale_of_round(self.config, len(rows), self.classes)
        mean = mean_of(gathered.total, gathered.parties, scale, self.classes)
        sharp: Array = sharpener.build(self.config.sharpen)(denoise(mean, space(self.transfer, SMOOTH)[0][rows]))
        return sharp.astype(np.float32, copy=False)

    def _judged(
        self, collected: Collected, releases: Sequence[Release], teacher: Teacher, trust: Array
    ) -> dict[str, dict[str, Any]]:
        """Return the clients' rows of the report, with the outlier score and the trust of those that were heard."""
        rows = {name: {k: v for k, v in row.items() if k != "trust"} for name, row in collected.clients.items()}
        if self.config.protect != "none":
            return rows  # how far a ballot is from the teacher is not part of what was accounted for
        for key, release, trusted in zip(sorted(collected.releases), releases, trust.tolist(), strict=True):
            (far,) = outlier_scores(release.p[None], release.w[None], teacher.p)
            row = {"outlier": float(far) if np.isfinite(far) else None}
            rows[str(key)] = {**rows[str(key)], **row, **({"trust": trusted} if self.config.defend != "none" else {})}
        return rows

    def _lesson(self, teacher: Teacher) -> tuple[Teacher, Array | None]:
        """Return what the student is taught; with public labels, also what it says where it is right."""
        if self.rules is None or self.public_labels is None:
            return teacher, None
        y, says = self.public_labels[teacher.indices], self._answer(teacher.indices)
        kept = np.full_like(self.state.memory.p, np.nan) if self.state.kept is None else self.state.kept.copy()
        p = self.rules.targets(says, kept[teacher.indices], teacher.p, y)
        kept[teacher.indices] = self.rules.keep(says, kept[teacher.indices], y)
        return Teacher(p, teacher.indices), kept

    def _collect(self, exchange: Exchange, query: Query, sent: Mapping[str, int]) -> Collected:
        config = self.config
        need = max(1, math.ceil(config.quorum * len(sent) - 1e-9))  # 0.07 * 100 is a little more than 7
        end = time.monotonic() + config.deadline
        clients: dict[str, dict[str, Any]] = {}
        releases: dict[int, Release] = {}
        latency: dict[str, float] = {}
        met, waiting = False, dict(sent)
        self.observe("asked", {"round": query.round, "clients": len(sent)})
        while exchange.open(query.round) and (left := end - time.monotonic()) > 0:
            for reply in exchange.poll(left):
                if self._ask_again(exchange, reply, query, waiting):
                    continue
                self._take(reply, query, releases, clients)
                if reply.round == query.round:
                    latency[reply.client] = reply.latency
                    if reply.client in clients and reply.asked_as in waiting:
                        clients[reply.client]["bytes_down"] = waiting.pop(reply.asked_as)
                    self.observe(
                        "answer", {"client": reply.client, "error": clients.get(reply.client, {}).get("error")}
                    )
            if not met and len(releases) >= need:
                met, end = True, min(end, time.monotonic() + config.grace)
        for name, size in waiting.items():
            silent = {
                "status": "silent",
                "bytes_up": 0,
                "bytes_down": size,
                "local": None,
                "error": "no answer in time",
            }
            clients.setdefault(name, silent)
        for key, (past, release) in sorted(self._late.items()):
            if key not in releases:
                releases[key] = _onto(query.indices, past.indices, release)
                row = clients.setdefault(str(key), {"bytes_up": 0, "bytes_down": 0, "local": None})
                row |= {"status": "late", "error": None}
        for name, size in self._late_bytes.items():  # they travelled, whether they count or not
            clients.setdefault(name, {"status": "silent", "bytes_up": 0, "bytes_down": 0, "local": None, "error": None})
            clients[name]["bytes_up"] += size
        self._late, self._late_bytes = {}, {}
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
            releases, dict(sorted(clients.items(), key=_by_number)), dict(sorted(latency.items(), key=_by_number))
        )

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

    def _studied(self, teacher: Teacher, round_: int) -> tuple[Teacher, Array]:
        """Return what the student is to learn of the teacher, and how much each row counts (n,)."""
        counts = teacher.answered.astype(np.float32)
        if self.student is None or self.config.lesson == "none":
            return teacher, counts
        rows = np.arange(self.rows)
        p, w = np.full((self.rows, self.classes), np.nan, np.float32), np.zeros(self.rows, np.float32)
        p[teacher.indices], w[teacher.indices] = teacher.p, counts
        own = self._answer(rows) if round_ > 1 else np.full_like(p, np.nan)
        p, w = study(self.config.lesson, p, w, own)
        taught = np.flatnonzero(w)
        return Teacher(p[taught], taught), w[taught]

    def _distill(self, lesson: Teacher, counts: Array, round_: int) -> None:
        if self.student is None:
            return
        rng = generator(self.config.seed, "server", "round", round_, "distill")
        known = counts > 0
        x = self.transfer.inputs[lesson.indices[known]]
        self.student.distill(x, lesson.p[known], w=counts[known], rng=rng)

    def _answer(self, rows: Array) -> Array:
        if self.student is None:
            raise FedkdError("this needs a student, got student = 'none'")
        return self.student.predict(self.transfer.inputs[rows])

    def _feedback(self, outcome: Outcome, round_: int) -> Back:
        back: Back = feedback.build(self.config.feedback)(outcome)
        if back is None or isinstance(back, Teacher):
            return self._broadcast(back, generator(self.config.seed, "server", "round", round_, "broadcast"))
        rngs = {key: generator(self.config.seed, "server", "round", round_, "broadcast", key) for key in back}
        sent = {key: self._broadcast(teacher, rngs[key]) for key, teacher in back.items()}
        return {key: teacher for key, teacher in sent.items() if teacher is not None}

    def _broadcast(self, teacher: Teacher | None, rng: np.random.Generator) -> Teacher | None:
        if teacher is None:
            return None
        sent = prepare(self.config.broadcast, Release(teacher.p, np.ones(len(teacher.p), np.float32)), rng)
        return Teacher(sent.p, teacher.indices)

    def _measure(self, teacher: Teacher, fresh: Teacher, collected: Collected) -> dict[str, float | None]:
        test, truth = self.evaluation.test, self.evaluation.truth
        p = self.student.predict(test[0]) if self.student is not None and test is not None else None
        y = None if test is None else test[1]
        known = truth is not None and self.config.keys == "samples"
        t = truth[teacher.indices] if known and truth is not None else None
        local = [row["local"] for row in collected.clients.values() if row.get("local") is not None]
        answered = np.zeros(len(fresh.indices), bool)
        for release in collected.releases.values():
            answered |= release.w > 0
        return {
            "student": None if p is None or y is None else metrics.accuracy(p, y),
            "ensemble": None if t is None else metrics.accuracy(teacher.p, t),
            "local_mean": float(np.mean(local)) if local else None,
            "local_best": max(local, default=None),
            "local_worst": min(local, default=None),
            "student_nll": None if p is None or y is None else metrics.nll(p, y),
            "student_ece": None if p is None or y is None else metrics.ece(p, y),
            "teacher_nll": None if t is None else metrics.nll(teacher.p, t),
            "teacher_ece": None if t is None else metrics.ece(teacher.p, t),
            "teacher_entropy": metrics.mean_entropy(teacher.p),
            "coverage": float(answered.mean()) if len(answered) else None,
            "asked": float(len(collected.clients)),
            "answered": float(sum(row["status"] == "answered" for row in collected.clients.values())),
            "bytes_up": float(sum(row.get("bytes_up", 0) for row in collected.clients.values())),
            "bytes_down": float(sum(row.get("bytes_down", 0) for row in collected.clients.values())),
        }

    def _save(self, path: Path, state: State) -> None:
        arrays, header = state.to_arrays()
        if self.student is not None:
            arrays |= {f"student.{name}": array for name, array in self.student.state().items()}
        try:
            save_arrays(path, arrays, {**header, "run": self._identity()})
        except OSError as error:
            raise CheckpointError(
                f"cannot write {path}: {error.strerror}. Round {state.round} is not saved; the checkpoint of round "
                f"{state.round - 1} is whole. Make room and run: fedkd resume {path.parent}"
            ) from error

    def _load(self, path: Path) -> None:
        arrays, header = load_arrays(path)
        if header.get("run") != self._identity():
            raise CheckpointError(f"{path} belongs to another configuration; resume with the config.toml beside it")
        self.state = State.from_arrays(arrays, header)
        if self.student is None:
            return
        kept = {name.removeprefix("student."): a for name, a in arrays.items() if name.startswith("student.")}
        if kept:
            self.student.load(kept)
        elif self.state.lesson is not None and self.state.counts is not None:
            if not getattr(self.student, "refits", False):
                raise CheckpointError(
                    f"student {self.student.architecture!r} keeps no state: give it state() and load() to resume"
                )
            # Each lesson is the first to such a student: the last one makes it.
            self._distill(self.state.lesson, self.state.counts, self.state.taught)

    def _identity(self) -> dict[str, Any]:
        """What must agree for a checkpoint to be ours."""
        return {**self.config.identity(), "fingerprint": self.transfer.fingerprint}


def _onto(rows: Array, past: Array, release: Release) -> Release:
    """Return a late release on the rows asked now; rows that it does not know get weight 0."""
    if not len(past):  # a round that asked nothing
        return Release(np.full((len(rows), release.p.shape[1]), np.nan, np.float32), np.zeros(len(rows), np.float32))
    place = np.minimum(np.searchsorted(past, rows), len(past) - 1)
    known = past[place] == rows
    return Release(release.p[place], np.where(known, release.w[place], 0).astype(np.float32), release.event)


def folded(errors: Mapping[str, str], asked: int) -> list[str]:
    """Return one line for each different one of the ``errors`` of clients, the most frequent first.

    >>> folded({"0": "no memory", "2": "no memory", "1": "no disk"}, 4)
    ['clients 0, 2: no memory', 'client 1: no disk']
    """
    who: dict[str, list[str]] = {}
    for name, error in sorted(errors.items(), key=_by_number):
        who.setdefault(error.replace(f"of client {name} ", "of this client "), []).append(name)
    lines = []
    for error, names in sorted(who.items(), key=lambda item: -len(item[1])):
        few = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        whose = f"all {asked} clients" if len(names) == asked > 1 else f"client{'s'[: len(names) > 1]} {few}"
        lines.append(f"{whose}: {error}")
    return lines


def _by_number(item: tuple[str, Any]) -> tuple[int, str]:
    return (int(item[0]), "") if item[0].isdigit() else (1 << 64, item[0])
