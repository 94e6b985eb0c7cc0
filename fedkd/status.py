"""How a run is doing right now: ``status.json`` in its directory, written as things happen and read by whoever asks.

It says who was asked, who answered and how long that took; nothing that a client holds, and no score of its own.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, TypeAdapter, ValidationError

from fedkd.collect import by_number
from fedkd.errors import DataError, QuorumError
from fedkd.files import write_atomic
from fedkd.journal import CONFIG, METRICS, read_names, read_run, real
from fedkd.logs import moment, one_line, reason, seconds_of
from fedkd.records import RoundReport
from fedkd.rundir import DEPLOYMENT

STATUS = "status.json"
EVERY = 0.2
"""Least seconds between two writes."""
SHARE = 50
"""A write may take one part in this many of the time: where it is slow (many clients, a slow disk), it comes rarely."""
PULSE = 5.0
"""Seconds after which a run that does nothing new says that it is alive."""
STALE = 30.0
"""Seconds without a word after which a run that claims to be running probably is not."""
INTERRUPTED = "interrupted"
ENDED = ("done", "failed")
WAITING = "waiting for clients"
STATUSES = ("asked", "answered", "late", "silent", "refused", "lost")
"""Where a client is in a round: asked and awaited; answered in time, or late; silent to the end; refused, or its answer
was; lost, that is known, but not there when the round was asked."""

Moment = Annotated[float, BeforeValidator(seconds_of), PlainSerializer(moment, when_used="json-unless-none")]
"""Seconds since 1970; in a file the same in words, as UTC."""


@dataclass(frozen=True)
class Client:
    """One client: where it is in this round, bytes of the whole run, and seconds until its last answer.

    ``answered`` of ``asked`` rounds were in time, ``last`` is the latest of these; ``seen`` is when it last answered.
    ``node`` is the id of its node and ``name`` what that one is called, where a run is served: nothing goes by it.
    """

    status: str = "asked"
    reason: str | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float | None = None
    answered: int = 0
    asked: int = 0
    seen: Moment | None = None
    last: int | None = None
    node: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class Status:
    """A run at one moment. ``deadline`` is when the server stops waiting.

    ``state`` is starting, waiting for clients (nodes, where a run is served), asking, aggregating, distilling, scoring,
    done, or failed (``reason``).
    ``present`` of ``wanted`` clients are there while the run waits for them.
    """

    run: str
    engine: str
    started: Moment
    updated: Moment
    state: str = WAITING
    reason: str | None = None
    round: int = 0
    rounds: int = 0
    phase: str | None = None
    deadline: Moment | None = None
    present: int = 0
    wanted: int = 0
    clients: dict[str, Client] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether the run says that it has ended."""
        return self.state in ENDED

    @property
    def interrupted(self) -> bool:
        """Whether somebody stopped the run, which is no failure of its own."""
        return self.state == "failed" and (self.reason or "").startswith(INTERRUPTED)

    @property
    def waiting(self) -> bool:
        """Whether the run waits until enough clients are there to begin."""
        return self.state == WAITING

    def age(self, now: float) -> float:
        """Return the seconds since the run last said anything."""
        return max(0.0, now - self.updated)

    def stale(self, now: float) -> bool:
        """Say whether the run claims to be running and has said nothing for long: killed, or its machine sleeps."""
        return not self.ended and self.age(now) > STALE

    def left(self, now: float) -> float | None:
        """Return the seconds until the deadline, None where nobody is waited for."""
        return None if self.deadline is None or self.ended else max(0.0, self.deadline - now)

    def count(self, status: str) -> int:
        """Return how many clients have a status."""
        return sum(client.status == status for client in self.clients.values())

    def moved(self, way: str) -> int:
        """Return the bytes of the run so far, ``way`` "up" or "down"."""
        return sum(client.bytes_up if way == "up" else client.bytes_down for client in self.clients.values())

    def to_json(self, now: float) -> dict[str, Any]:
        """Return what ``fedkd status --json`` prints: all of this, and what follows from it at the time ``now``."""
        derived = {"age": round(self.age(now), 1), "stale": self.stale(now), "deadline_left": self.left(now)}
        totals = {"bytes_up": self.moved("up"), "bytes_down": self.moved("down")}
        return {**_FORM.dump_python(self, mode="json"), **derived, **totals}


_FORM = TypeAdapter(Status)


class Progress:
    """What the events of a run add up to. Totals of finished rounds come from their reports, the rest is live."""

    def __init__(self, status: Status) -> None:
        """Begin with ``status``, which has no clients yet."""
        self._status = status
        self._settled: dict[str, Client] = {}
        self._live: dict[str, Client] = {}
        self._done = 0
        self._nodes: dict[str, str] = {}

    def snapshot(self, **changes: Any) -> Status:
        """Return what is known now, clients in order; ``changes`` on top."""
        clients = dict(sorted(self._live.items(), key=by_number))
        for name in clients.keys() & self._nodes.keys():
            clients[name] = replace(clients[name], node=self._nodes[name])
        return replace(self._status, clients=clients, **changes)

    def recall(self, reports: Sequence[RoundReport]) -> None:
        """Count rounds that were finished before, where a run goes on."""
        for report in reports:
            self._settle(report, None)
        self._show(round=reports[-1].round if reports else 0)

    def apply(self, event: str, facts: Mapping[str, Any], now: float) -> bool:
        """Take in an event that happened at ``now``; say whether it changes anything."""
        match event:
            case "starting":
                self._show(state="starting", deadline=None)
            case "waiting":
                counts = {"present": int(facts["present"]), "wanted": int(facts["clients"])}
                self._show(state=WAITING, deadline=_after(now, facts["left"]), **counts)
            case "resume":
                self.recall(facts["reports"])
            case "round":
                self._live = dict(self._settled)
                self._show(state="asking", round=int(facts["round"]), phase=None, deadline=None)
            case "asked":
                self._ask(facts["sent"])
                self._show(state="asking", phase=facts.get("phase"), deadline=_after(now, facts["left"]))
            case "answer" | "late":
                self._hear(facts, now, late=event == "late")
            case "enough":
                self._show(deadline=_after(now, facts["left"]))
            case "aggregate":
                self._show(state="aggregating", phase=None, deadline=None)
            case "distill":
                self._show(state="distilling")
            case "report":
                self._settle(facts["report"], now)
            case "summary":
                self._show(state="scoring")
            case _:
                return False
        return True

    def end(self, error: BaseException | None) -> None:
        """Say how the run ended."""
        if isinstance(error, QuorumError):  # it waited as long as it may
            waited = {name: replace(c, status="silent") for name, c in self._live.items() if c.status == "asked"}
            self._live |= waited
        why = None if error is None else reason(error)
        if why == INTERRUPTED:
            resume = "" if self._status.engine == DEPLOYMENT else f"; to go on: fedkd resume {self._status.run}"
            why = f"{INTERRUPTED} after round {self._done}{resume}"
        self._show(state="done" if error is None else "failed", reason=why, phase=None, deadline=None)

    def _show(self, **changes: Any) -> None:
        self._status = replace(self._status, **changes)

    def _ask(self, sent: Mapping[str, int]) -> None:
        sent = {one_line(name): size for name, size in sent.items()}
        for name in self._live.keys() - sent.keys():
            if self._live[name] is self._settled.get(name):  # not yet touched in this round
                self._live[name] = replace(self._live[name], status="lost", reason=None, seconds=None)
        for name, size in sent.items():
            past, row = self._settled.get(name, Client()), self._live.get(name, Client())
            self._live[name] = replace(
                row,
                status="asked",
                reason=None,
                seconds=None,
                asked=past.asked + 1,
                answered=past.answered,
                bytes_down=row.bytes_down + size,
            )

    def _hear(self, facts: Mapping[str, Any], now: float, *, late: bool) -> None:
        name, error = one_line(str(facts["client"])), facts["error"]
        if (asked_as := one_line(str(facts["asked_as"]))) != name:  # it has only now said which client it is
            for rows in (self._live, self._settled):
                if asked_as in rows:
                    rows[name] = _joined(rows.pop(asked_as), rows.get(name))
        if facts.get("node"):
            self._nodes[name] = str(facts["node"])
        row = self._live.get(name, Client())
        row = replace(row, bytes_up=row.bytes_up + int(facts["bytes_up"]), seen=now)
        if late:
            row = replace(row, status="late") if row.status == "lost" else row
        elif error:
            row = replace(row, status="refused", reason=one_line(str(error)), seconds=facts["seconds"])
        else:
            past = self._settled.get(name, Client())
            last, count = facts.get("round", past.last), past.answered + 1
            row = replace(row, status="answered", seconds=facts["seconds"], answered=count, last=last)
        self._live[name] = row

    def _settle(self, report: RoundReport, now: float | None) -> None:
        """Replace what was counted live by what the report of the round says."""
        self._done = report.round
        for name, told in report.clients.items():
            name = one_line(name)
            past, live = self._settled.get(name, Client()), self._live.get(name, Client())
            status, down = one_line(str(told.get("status"))), int(real(told.get("bytes_down")) or 0)
            self._settled[name] = Client(
                status={"failed": "refused"}.get(status, status),
                reason=one_line(str(told["error"])) if told.get("error") else None,
                bytes_up=past.bytes_up + int(real(told.get("bytes_up")) or 0),
                bytes_down=past.bytes_down + down,
                seconds=real(report.latency.get(name)),
                answered=past.answered + (status == "answered"),
                asked=past.asked + (down > 0 or status != "late"),
                seen=live.seen if now is not None else past.seen,
                last=report.round if status == "answered" else past.last,
            )
        self._settled |= {name: row for name, row in self._live.items() if name not in report.clients}
        self._live = dict(self._settled)


def _after(now: float, seconds: float) -> float | None:
    """Return the time ``seconds`` from now, None where that is as good as never."""
    return now + seconds if seconds < 1e9 else None


def _joined(row: Client, other: Client | None) -> Client:
    """Return ``row`` with what was counted for the same client under its ``other`` name."""
    if other is None:
        return row
    return replace(
        row,
        bytes_up=row.bytes_up + other.bytes_up,
        bytes_down=row.bytes_down + other.bytes_down,
        answered=row.answered + other.answered,
        asked=row.asked + other.asked,
    )


class StatusFile:
    """An observer that keeps ``status.json`` of a run up to date, from a thread of its own: the loop waits for no disk.

    Use as a context manager: how it is left is how the run ended. A status that cannot be written is no reason to stop.
    Whoever only prepares a run ``gives_way``: it writes until another process does, and leaves a good end to that one.
    """

    def __init__(
        self,
        path: Path,
        *,
        engine: str = "",
        rounds: int = 0,
        resumes: bool = False,
        gives_way: bool = False,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Begin for the run directory ``path``; a run that ``resumes`` began when it first did."""
        self._path, self._now = path / STATUS, now
        self._gives_way, self._last = gives_way, b""
        started = now()
        if resumes:
            with contextlib.suppress(DataError):
                started = _read(self._path).started
        self._progress = Progress(Status(one_line(path.name), engine, started, now(), rounds=rounds))
        self._wake = threading.Condition()
        self._changed, self._over = False, False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="fedkd-status", daemon=True)

    def __enter__(self) -> StatusFile:
        self._write()
        self._thread.start()
        return self

    def __call__(self, event: str, facts: Mapping[str, Any]) -> None:
        """Take in one event."""
        with self._wake:
            if self._progress.apply(event, facts, self._now()):
                self._changed = True
                self._wake.notify()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        handed_on = self._gives_way and error is None
        with self._wake:
            if not handed_on:
                self._progress.end(error)
            self._over = True
            self._wake.notify()
        self._end.set()
        self._thread.join()
        if not handed_on:
            self._write()

    def _keep(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._changed or self._over, timeout=PULSE)
                if self._over:
                    return
            began = time.perf_counter()
            self._write()
            self._end.wait(max(EVERY, SHARE * (time.perf_counter() - began)))

    def _write(self) -> None:
        with self._wake:
            self._changed = False
            status = self._progress.snapshot(updated=self._now())
        with contextlib.suppress(OSError, ValueError):
            if not (self._gives_way and self._taken()):
                content = _FORM.dump_json(status)
                write_atomic(self._path, content, durable=False)
                self._last = content

    def _taken(self) -> bool:
        """Say whether another process has written since. If it does so just before we write, its next word shows it."""
        try:
            return bool(self._last) and self._path.read_bytes() != self._last
        except FileNotFoundError:
            return False


def read_status(path: Path) -> Status:
    """Return the status of the run directory ``path``: what it wrote, or else what its journal says.

    Raises :class:`DataError` if it is no run directory or ``status.json`` is damaged.
    """
    if (path / STATUS).exists():
        found, names = _read(path / STATUS), read_names(path)
        named = {key: replace(client, name=names.get(key)) for key, client in found.clients.items()}
        return replace(found, clients=named) if names else found
    try:
        began = (path / CONFIG).stat().st_mtime  # a run that writes no status yet has written its settings
    except OSError:
        began = 0.0
    try:
        run = read_run(path)
    except DataError:
        if not began:
            raise
        return Status(one_line(path.name), "", began, began, state="starting")
    state = "done" if run.finished else "starting"
    progress = Progress(Status(one_line(path.name), "", began, began, state=state, rounds=len(run.rounds)))
    progress.recall(run.rounds)
    return progress.snapshot()


def newest_run(root: Path = Path("runs")) -> Path | None:
    """Return the run below ``root``, or in a sweep there, that last said anything; None if there is none."""

    def touched(folder: Path) -> float:
        marks = [folder / name for name in (STATUS, METRICS, CONFIG)]
        return max((mark.stat().st_mtime for mark in marks if mark.is_file()), default=0.0)

    folders = [inner for outer in _folders(root) for inner in (outer, *_folders(outer))]
    found = [(when, folder) for folder in folders if (when := touched(folder))]
    return max(found)[1] if found else None


def _folders(root: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from (folder for folder in root.iterdir() if folder.is_dir())


def _read(path: Path) -> Status:
    try:
        return _FORM.validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise DataError(f"{path} is damaged or of another fedkd: {where}: {first['msg']}") from None
