"""The server's half: ask, collect, aggregate, sharpen, distill, evaluate, save. Knows no network and no framework.

A round needs a quorum and a deadline, not everyone. Whoever answers in time makes the teacher; answers are sorted by
client before they meet, so the order and the timing of arrivals decide nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedkd import metrics
from fedkd.aggregation import aggregator, in_chunks, stack
from fedkd.clock import Clock
from fedkd.collect import Collected, Collector, Exchange, Observer, by_number
from fedkd.config import Config
from fedkd.defense import outlier_scores, vet
from fedkd.errors import CheckpointError, ConfigError, FedkdError
from fedkd.expertise.space import space
from fedkd.feedback import Back, Outcome, feedback
from fedkd.files import load_arrays, save_arrays, write_atomic
from fedkd.labeled import Gems, labels
from fedkd.learner import Learner
from fedkd.lesson import study
from fedkd.masked_round import Sum, gather
from fedkd.memory import Memory, Pool
from fedkd.privacy.distributed import teacher_of_sum
from fedkd.privacy.ensemble import teacher_of
from fedkd.privacy.noise import entropy_of
from fedkd.privacy.votes import private_note
from fedkd.protect import check_classes, protection_of, scale_of_round
from fedkd.random import generator
from fedkd.recording import save_round
from fedkd.records import Query, Release, RoundReport, Teacher, TransferSet
from fedkd.release import prepare
from fedkd.select import Selection, select
from fedkd.softlabels import Array
from fedkd.state import State
from fedkd.teacher import sharpener

SMOOTH = 256
"""Principal components of the transfer set in which noisy labels are smoothed."""
OWNER = "privacy_private.json"
"""What the server's owner alone may know of a run's privacy, beside its checkpoint."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a simulation may measure with: a test set, and the true labels of the transfer set where they are known."""

    test: tuple[Array, Array] | None = None
    truth: Array | None = None


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
        self.collector = Collector(config, self.rows, observe)
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
            collected = Collected({}, dict(sorted(gathered.clients.items(), key=by_number)), gathered.latency)
        else:
            collected = self._collect(exchange, query, self._ask(exchange, query))
        clock.lap("clients")
        self.observe("aggregate", {"round": round_})

        # Sorted by client: neither the order nor the timing of arrivals can change a bit of the teacher.
        clients = sorted(collected.releases)
        releases = [collected.releases[key] for key in clients]
        trust = np.array([self.state.trust.get(key, 1.0) for key in clients])
        spoke = {key for key in clients if collected.clients[str(key)]["status"] in ("answered", "late")}
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
                known=self.collector.remembered(query, collected, self.state),
                trust={
                    **self.state.trust,
                    **{k: t for k, t in zip(clients, trust.tolist(), strict=True) if k in spoke},
                },
                told=self.collector.told(query, self.state),
                ballots=collected.ballots,
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
        return self.collector.ask(exchange, query, self.state)

    def _collect(self, exchange: Exchange, query: Query, sent: Mapping[str, int]) -> Collected:
        return self.collector.collect(exchange, query, sent)

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
        write_atomic(path, json.dumps(private_note(rounds, self.config.delta)).encode(), secret=True)

    def _gather(self, exchange: Exchange, query: Query) -> Sum:
        """Return the sum of the clients' ballots, none of which is seen on its own."""
        back = self.state.feedback
        asked = replace(query, feedback=back if isinstance(back, Teacher) else None)
        return gather(self.config, exchange, asked, self.collector.framed(asked), self.observe)

    def _unmasked(self, gathered: Sum, rows: Array) -> Array:
        """Return the teacher (n, C) of a sum that was noisy when it got here; all that follows is post-processing."""
        scale = scale_of_round(self.config, len(rows), self.classes)
        features = space(self.transfer, SMOOTH)[0][rows]
        teacher = teacher_of_sum(gathered.total, gathered.parties, scale, features, self.classes)
        sharp: Array = sharpener.build(self.config.sharpen)(teacher)
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
            "asked": float(sum(row["status"] != "away" for row in collected.clients.values())),
            "answered": float(sum(row["status"] == "answered" for row in collected.clients.values())),
            "away": float(sum(row["status"] == "away" for row in collected.clients.values())),
            "bytes_up": float(sum(row.get("bytes_up", 0) for row in collected.clients.values())),
            "bytes_down": float(sum(row.get("bytes_down", 0) for row in collected.clients.values())),
            "bytes_multicast": None if self.collector.multicast is None else float(self.collector.multicast),
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
