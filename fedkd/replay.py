"""The server's half of a run again, from its recorded ballots: other rules, another student, or without some clients.

No client is asked. The loop is :class:`fedkd.rounds.Loop` itself with the same random streams; only what it would have
collected comes from files. So a replay that changes nothing ends with the same student, bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from fedkd.collect import Collected, Exchange, Observer, Reply
from fedkd.config import Config, Resolved, resolve
from fedkd.errors import CheckpointError, ConfigError, QuorumError
from fedkd.federation import Federation, federation
from fedkd.feedback import Back, Outcome
from fedkd.files import load_arrays, whole_or_nothing, write_atomic
from fedkd.journal import part, read_run, real
from fedkd.learner import Learner, set_threads
from fedkd.recording import Recorded, load_round, path_of
from fedkd.records import Query, RoundReport, Teacher
from fedkd.registry import parse
from fedkd.rounds import Evaluation, Loop
from fedkd.rundir import REPLAY, RunDirectory, next_run
from fedkd.scoreboard import build_student, summarize
from fedkd.select import Selection
from fedkd.softlabels import Array
from fedkd.units import percent, points

TEACHER = ("defend", "aggregate", "sharpen", "replay")
"""Keys that decide the teacher."""
LEARNING = ("augment", "schedule", "batch_size", "learning_rate", "seed")
"""Keys that clients had trained by, too."""
STUDENT = ("student", "lesson", "distill", "distill_epochs", *LEARNING)
"""Keys that decide what the student makes of it."""
SERVER = ("rounds", *TEACHER, *STUDENT, "pooled")
"""All keys that a replay may change; whatever else there is decides what clients answer."""

MOVED_BY: dict[str, tuple[str, ...]] = {"none": (), "teacher": TEACHER, "clusters": (), "personal": (), "others": ()}
"""Kind of feedback to the keys that would have changed what went back; all keys, where a kind is not listed."""
BLIND = ("all", "uniform", "fixed", "budget")
"""Selections that look at neither teacher nor student, so that a replay would have asked the same rows."""


@dataclass(frozen=True, eq=False)
class Recording:
    """A run whose ballots were kept: its configuration, its federation, and its journal, one report a round."""

    directory: RunDirectory
    config: Config
    shared: Federation
    reports: list[RoundReport]
    summary: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of the run directory."""
        return self.directory.path.resolve().name

    @property
    def clients(self) -> list[int]:
        """Clients whose ballots counted in some round."""
        counted = ("answered", "late", "away")
        rows = [(key, row) for report in self.reports for key, row in report.clients.items()]
        return sorted({int(key) for key, row in rows if row.get("status") in counted and key.isdecimal()})

    def round(self, number: int) -> Recorded:
        """Return what was recorded of a round; raise :class:`CheckpointError` unless it is about this federation."""
        path = path_of(self.directory.path / "ballots", number)
        if not path.exists():
            why = "its record is false" if not self.config.record else "an older fedkd wrote it, or it is a replay"
            raise CheckpointError(f"run {self.name!r} has no ballots of round {number}: {why}")
        recorded = load_round(path)
        asked = recorded.query
        if (asked.round, asked.fingerprint) != (number, self.shared.transfer.fingerprint):
            raise CheckpointError(
                f"{path} is about round {asked.round} on transfer set {asked.fingerprint[:16]}, "
                f"expected round {number} on {self.shared.transfer.fingerprint[:16]}: has the data changed?"
            )
        return recorded


@dataclass(frozen=True)
class Value:
    """What client ``client`` is worth: accuracy with all minus accuracy without it, of teacher and student.

    ``local`` is the test accuracy of its own model, as it was reported. None is "not known".
    """

    client: int
    teacher: float | None
    student: float | None = None
    local: float | None = None


@dataclass(frozen=True, eq=False)
class Replay:
    """What a replay leaves in ``path``: student, one report a round, summary, and the clients' values if asked for."""

    path: Path
    student: Learner | None
    reports: list[RoundReport]
    summary: dict[str, Any]
    values: list[Value]
    notes: list[str]


class Replayed(Loop):
    """The round loop on recorded answers. Without a student it makes the teachers only."""

    def __init__(
        self,
        recording: Recording,
        config: Config,
        student: Learner | None,
        *,
        without: Sequence[int] = (),
        observe: Observer = lambda event, facts: None,
    ) -> None:
        """Set up round 1 as the server of the run did; ballots of the clients in ``without`` are left out."""
        shared = recording.shared
        super().__init__(
            config,
            shared.transfer,
            shared.dataset.classes,
            student,
            evaluation=Evaluation(shared.test(), shared.truth) if config.evaluate else None,
            public_labels=shared.truth if config.labels != "none" else None,
            observe=observe,
        )
        self.recording, self.without = recording, frozenset(without)
        self._recorded: Recorded | None = None

    def again(self, recorded: Recorded) -> RoundReport:
        """Run the next round on what was recorded of it."""
        self._recorded = recorded
        return self.step(Nobody())

    @property
    def _now(self) -> Recorded:
        if self._recorded is None:
            raise CheckpointError("there are no recorded ballots to run a round on")
        return self._recorded

    def _selection(self, round_: int) -> Selection:
        return self._now.selection

    def _ask(self, exchange: Exchange, query: Query) -> Mapping[str, int]:
        return {}

    def _collect(self, exchange: Exchange, query: Query, sent: Mapping[str, int]) -> Collected:
        gone = {str(key) for key in self.without}
        report = self.recording.reports[query.round - 1]
        multicast = real(report.metrics.get("bytes_multicast"))
        self.collector.multicast = None if multicast is None else int(multicast)  # of the run, as all bytes are
        releases = {key: release for key, release in self._now.releases.items() if key not in self.without}
        if not any(release.w.any() for release in releases.values()) and len(query.indices):
            left_out = ", ".join(str(key) for key in sorted(self.without))
            raise QuorumError(f"round {query.round}: no ballot is left without client {left_out}")
        clients = {name: row for name, row in report.clients.items() if name not in gone}
        return Collected(releases, clients, {k: v for k, v in report.latency.items() if k not in gone})

    def _lesson(self, teacher: Teacher) -> tuple[Teacher, Array | None]:
        return super()._lesson(teacher) if self.student is not None else (teacher, None)

    def _feedback(self, outcome: Outcome, round_: int) -> Back:
        return None  # nobody is there to learn from it


class Nobody:
    """The network of a replay: there is nobody on it."""

    def ask(self, *asked: Any) -> Mapping[str, int]:
        """Send nothing."""
        return {}

    def tell(self, *asked: Any) -> Mapping[str, int]:
        """Send nothing."""
        return {}

    def again(self, *asked: Any) -> int:
        """Send nothing."""
        return 0

    def open(self, round_: int) -> int:
        """Return that no answer is outstanding."""
        return 0

    def poll(self, timeout: float) -> list[Reply]:
        """Return no answer."""
        return []


def open_recording(directory: RunDirectory) -> Recording:
    """Read a finished or stopped run; raise where it is none, or where its data is not here any more."""
    config = resolve(file=directory.config, environ={}).config
    run = read_run(directory.path)
    shared = federation(config.data, config.transfer, config.partition, config.clients, config.seed)
    recording = Recording(directory, config, shared, run.rounds, run.summary)
    if [report.round for report in run.rounds] != list(range(1, len(run.rounds) + 1)):
        raise CheckpointError(f"run {recording.name!r} lacks rounds in its journal; a replay needs all from 1")
    recording.round(1)
    return recording


def changed(recording: Recording, sets: Sequence[str] = ()) -> Resolved:
    """Return the run's configuration with ``key=value`` settings, which only the server's half may know."""
    before, rounds = recording.config, len(recording.reports)
    after = resolve(file=recording.directory.config, sets=sets, environ={}).config
    keys = [text.partition("=")[0].strip().replace("-", "_") for text in sets]
    for key in keys:
        if key not in SERVER:
            raise ConfigError(
                f"--set {key}: clients would have to answer again; a replay can change only {', '.join(SERVER)}"
            )
    if "rounds" in keys and after.rounds > rounds:
        raise ConfigError(f"--set rounds: must be at most {rounds}, the rounds recorded, got {after.rounds}")
    number = after.rounds if "rounds" in keys else rounds
    after = after.model_copy(update={"rounds": number, "resume": False})
    moved = [key for key in keys if getattr(after, key) != getattr(before, key)]
    origins = dict.fromkeys(Config.model_fields, f"run {recording.name}")
    return Resolved(after, origins | dict.fromkeys(moved, "replay, server only"))


def _place(recording: Recording, name: str | None) -> Path:
    """Return the directory of the replay, beside the run: ``name``, or the first free ``RUN-replay-001``."""
    run = recording.directory.path.resolve()
    if name is None:
        return next_run(run.parent, f"{run.name}-replay")
    if not name or "/" in name or name.startswith("."):
        raise ConfigError(f"--name must be a plain folder name, got {name!r}")
    if (run.parent / name).exists():
        raise ConfigError(f"run {name!r} exists already: choose another name")
    return run.parent / name


def _check_clients(recording: Recording, without: Sequence[int]) -> None:
    """Raise :class:`ConfigError` unless all of ``without`` answered in the run and somebody else did too."""
    known = recording.clients
    for key in without:
        if key not in known:
            listed = ", ".join(map(str, known))
            raise ConfigError(f"--without {key}: no ballots of this client; the run has those of {listed}")
    if not set(known) - set(without):
        raise ConfigError("--without: must leave at least one client, got all of them")


def _check_values(recording: Recording) -> None:
    """Raise :class:`ConfigError` unless there are true labels to measure the value of clients with."""
    config = recording.config
    if not config.evaluate or recording.shared.truth is None or config.keys != "samples":
        raise ConfigError(
            "--leave-one-out needs true labels of the transfer set: a simulation with evaluate = true, "
            f"keys = 'samples' and transfer = 'split(...)', got {config.evaluate}, {config.keys!r}, {config.transfer!r}"
        )


def replay(
    recording: Recording,
    settings: Resolved,
    *,
    without: Sequence[int] = (),
    name: str | None = None,
    leave_one_out: bool = False,
    students: bool = False,
    observe: Observer = lambda event, facts: None,
    command: str = "",
) -> Replay:
    """Run all recorded rounds again with ``settings`` of :func:`changed`; write a run directory beside the run's.

    ``leave_one_out`` also measures the value of each client, of the teacher and, with ``students``, of students
    distilled anew. All of them go through a round together, so that its ballots are read once.
    """
    _check_clients(recording, without)
    if leave_one_out or students:
        _check_values(recording)
    path = _place(recording, name)
    directory, shared = RunDirectory(path), recording.shared
    config = settings.config.model_copy(update={"output": str(path)})
    with whole_or_nothing(path):
        write_atomic(directory.config, settings.to_toml().encode())
        directory.note(REPLAY, command)

        def record(event: str, facts: Mapping[str, Any]) -> None:
            if event == "report":
                directory.append(facts["report"])
            observe(event, facts)

        student = build_student(config, shared)
        set_threads(config.threads)
        loop = Replayed(recording, config, student, without=without, observe=record)
        others: dict[int, Replayed] = {}
        for key in recording.clients if leave_one_out or students else ():
            if key not in without:
                own = build_student(config, shared) if students else None
                others[key] = Replayed(recording, config, own, without=[*without, key])
        for number in range(1, config.rounds + 1):
            recorded = recording.round(number)
            loop.again(recorded)
            for key, other in list(others.items()):
                try:
                    other.again(recorded)
                except QuorumError:
                    del others[key]  # alone in a round: nothing can be said without it
        observe("summary", {"pooled": _pooled(recording, config) is None and config.pooled})
        summary = _summary(recording, config, loop, without, command)
        values = _values(recording, loop, others, without) if leave_one_out or students else []
        directory.finish(summary, student)
        if values:
            _save_values(path / "value.json", config, summary, values)
    notes = [*value_caveats(config), *_steps(loop, students)] if values else []
    if summary["replay_of"]["identical"]:
        what = "With all clients" if values else "Nothing was changed"
        notes.append(f"{what}: student and metrics equal those of {recording.name}, bit for bit.")
    elif summary["replay_of"]["exact"]:
        notes.append("Exact: a run with these settings would have made the same student.")
    return Replay(path, student, loop.state.reports, summary, values, notes)


def caveats(before: Config, after: Config, *, without: Sequence[int] = ()) -> list[str]:
    """Return in what a replay differs from a run with the same changes; an empty list: in nothing."""
    moved = {key for key in (*TEACHER, *STUDENT) if getattr(before, key) != getattr(after, key)}
    notes = []
    for key in sorted(moved & set(LEARNING)):
        what = "data and clients are those of seed" if key == "seed" else "clients had trained with"
        notes.append(f"{key} = {getattr(after, key)} is the student's only: {what} {getattr(before, key)}.")
    if not moved and not without:
        return []
    if parse(before.select)[0] not in BLIND and (after.rounds > 1 or moved & set(LEARNING)):
        notes.append(f"NOT exact (select = {before.select}): the rows asked are those that the run chose.")
    if after.rounds == 1:
        return notes
    back = parse(before.feedback)[0]
    cause = [f"without {_clients(without)}"] if without and back != "none" else []
    cause += sorted(moved & set((*TEACHER, *STUDENT) if before.labels != "none" else MOVED_BY.get(back, SERVER)))
    if back != "none" and "distill" in moved and "distill" not in cause:
        cause.append("distill, which clients use too")
    if cause and back != "none":
        notes.append(
            f"NOT exact ({', '.join(cause)}; feedback = {before.feedback}): exact for round 1; later rounds: clients "
            "had learned from the old teacher."
        )
        if without:
            notes.append(f"What {_clients(without)} taught the others in earlier rounds is still in their ballots.")
    return notes


def value_caveats(config: Config) -> list[str]:
    """Return in what the value of a client differs from that of its whole presence; an empty list: in nothing."""
    if config.rounds == 1 or parse(config.feedback)[0] == "none":
        return []
    return [
        f"NOT exact (feedback = {config.feedback}): a client's ballots are left out; what it taught the others in "
        "earlier rounds is still in theirs."
    ]


def _steps(loop: Replayed, students: bool) -> list[str]:
    """Return what a single row is worth: a value of a few rows may be chance."""
    teacher = loop.state.teacher
    rows = {} if teacher is None else {"transfer set": int(teacher.answered.sum())}
    rows |= {"test set": len(loop.recording.shared.dataset.y_test)} if students else {}
    return [f"One row of the {name} is {100 / count:.2g} points." for name, count in rows.items() if count]


def value_table(values: Sequence[Value]) -> Table:
    """Return the values of clients, in percentage points, as a table for a terminal."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    with_students = any(value.student is not None for value in values)
    for title in ("client", "teacher", *(["student"] if with_students else []), "local model"):
        table.add_column(title, justify="right")
    for value in values:
        student = [points(value.student)] if with_students else []
        table.add_row(str(value.client), points(value.teacher), *student, percent(value.local))
    return table


def hit_rate(full: Teacher, other: Teacher, truth: Array) -> float | None:
    """Return the accuracy of ``other`` on the rows that ``full`` answers; a row that it does not answer is wrong.

    ``truth`` (M,) are the labels of the whole transfer set. Counting answered rows only would praise silence.
    """
    rows, heard = full.indices[full.answered], other.indices[other.answered]
    right = heard[other.p[other.answered].argmax(axis=1) == truth[heard]]
    return float(np.isin(rows, right).mean()) if len(rows) else None


def _values(
    recording: Recording, loop: Replayed, others: Mapping[int, Replayed], without: Sequence[int]
) -> list[Value]:
    truth, full = recording.shared.truth, loop.state.teacher
    if truth is None or full is None:
        return []
    after = loop.state.reports[-1]
    with_all = hit_rate(full, full, truth)
    values = []
    for key in recording.clients:
        if key in without:
            continue
        other = others.get(key)
        teacher = other.state.teacher if other is not None else None
        score = hit_rate(full, teacher, truth) if teacher is not None else None
        student = other.state.reports[-1].metrics["student"] if other is not None else None
        local = after.clients.get(str(key), {}).get("local")
        values.append(Value(key, _less(with_all, score), _less(after.metrics["student"], student), local))

    return sorted(values, key=_rank)


def _rank(value: Value) -> tuple[float, ...]:
    """Sort the most valuable first, by student where it is known; whoever a round cannot do without leads."""
    known = [-each for each in (value.student, value.teacher) if each is not None]
    return (*(known or [-np.inf]), value.client)


def _less(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _save_values(path: Path, config: Config, summary: Mapping[str, Any], values: Sequence[Value]) -> None:
    content = {
        "replay_of": summary["replay_of"],
        "value": "accuracy with all minus accuracy without: teacher on the transfer set, student on the test set",
        "notes": value_caveats(config),
        "with_all": {"teacher": summary["scoreboard"]["ensemble"], "student": summary["scoreboard"]["student"]},
        "clients": [asdict(value) for value in values],
    }
    write_atomic(path, json.dumps(content, indent=1, allow_nan=False).encode())


def _summary(
    recording: Recording, config: Config, loop: Replayed, without: Sequence[int], command: str
) -> dict[str, Any]:
    """Return the summary of a run with ``replay_of``; what makes it differ from a real run stands in its warnings."""
    before = recording.config
    pooled = _pooled(recording, config)
    ask = config.model_copy(update={"pooled": config.pooled and pooled is None})
    summary = summarize(ask, recording.shared, loop.student, loop.state, command=command)
    summary["config"]["pooled"] = config.pooled
    if pooled is not None:
        summary["scoreboard"]["pooled"] = pooled
    keys = [key for key in SERVER if getattr(config, key) != getattr(before, key)]
    notes = caveats(before, config, without=without)
    exact = not notes
    if config.rounds < before.rounds:
        notes.insert(0, f"{config.rounds} of {before.rounds} rounds were replayed.")
    same = None if keys or without else _same(recording, loop)
    if same is False:
        notes.append(
            "Nothing was changed, yet this is not the run's student: another machine, library, device or threads > 1."
        )
    summary["replay_of"] = {
        "run": recording.name,
        "changed": {key: [getattr(before, key), getattr(config, key)] for key in keys},
        "without": sorted(without),
        "identical": same,
        "exact": exact,
    }
    summary["warnings"] = [*notes, *summary["warnings"]]
    return summary


def _pooled(recording: Recording, config: Config) -> float | None:
    """Return the run's pooled-data reference where this replay would train just the same one, else None."""
    same = all(
        getattr(config, key) == getattr(recording.config, key)
        for key in ("student", "batch_size", "learning_rate", "seed", "rounds")
    )
    return real(part(recording.summary, "scoreboard").get("pooled")) if same and config.pooled else None


def _same(recording: Recording, loop: Replayed) -> bool | None:
    """Say whether student and metrics equal those of the run to the last bit; None if it kept nothing to compare."""
    if recording.summary.get("finished") is not True:
        return None
    mine, theirs = (
        [(report.round, report.metrics) for report in reports] for reports in (loop.state.reports, recording.reports)
    )
    if mine != theirs or loop.student is None or not recording.directory.student.exists():
        return mine == theirs
    state, (kept, _) = loop.student.state(), load_arrays(recording.directory.student)
    return state.keys() == kept.keys() and all(
        np.asarray(state[name]).tobytes() == kept[name].tobytes() for name in kept
    )


def _clients(keys: Sequence[int]) -> str:
    return f"client{'s' if len(keys) > 1 else ''} {', '.join(map(str, sorted(keys)))}"
