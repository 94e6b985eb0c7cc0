"""A run directory: everything that a run leaves, in formats that other tools read."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedkd.config import Config, Resolved
from fedkd.errors import CheckpointError, FedkdError, did_you_mean
from fedkd.files import save_arrays, write_atomic
from fedkd.journal import NODES
from fedkd.learner import Learner
from fedkd.locks import KNOWN, Busy, lock
from fedkd.privacy.report import files_of
from fedkd.records import RoundReport

DEPLOYMENT, REPLAY, SERVED = "deployment", "replay", "serve"
UNLOCKABLE = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF}
"""What file systems without locks answer."""
NETWORKED = frozenset({DEPLOYMENT, SERVED})
"""Engines whose clients are elsewhere: nobody here has their data."""


class RunDirectory:
    """``config.toml``, ``metrics.jsonl`` and ``.csv``, ``checkpoint.safetensors``, ``student.safetensors``,
    ``status.json``, ``summary.json``, ``origin.json``, ``report.html`` and ``clients/``, what simulated clients keep. A
    run that was served has ``serve.json``, how and where, and ``nodes.json``, what its nodes are called.
    """

    def __init__(self, path: Path) -> None:
        """Name a directory; nothing is written yet."""
        self.path = path
        self.checkpoint = path / "checkpoint.safetensors"
        self.metrics = path / "metrics.jsonl"
        self.table = path / "metrics.csv"
        self.config = path / "config.toml"
        self.clients = path / "clients"
        self.ballots = path / "ballots"
        self.student = path / "student.safetensors"
        self.summary = path / "summary.json"
        self.origin = path / "origin.json"
        self.identity = path / "run.id"
        self.terms = path / "serve.json"
        self.status = path / "status.json"
        self.names = path / NODES

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Make the folder and keep every other process from running in it until this one has ended."""
        with contextlib.ExitStack() as held:
            try:
                handle = self._lock()
            except Busy:
                raise FedkdError(
                    f"another process is running {self.path.name!r}: choose another name, or wait until it has ended"
                ) from None
            except OSError as error:
                if error.errno not in UNLOCKABLE:
                    raise FedkdError(f"cannot write to {self.path}: {error.strerror}") from None
            else:
                if handle is not None:
                    held.callback(os.close, handle)
            yield

    def _lock(self) -> int | None:
        """Make the folder and return what holds it, nothing where the system has no locks."""
        while True:
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                return lock(self.path, folder=True) if KNOWN else None
            except FileNotFoundError:  # a run of this name failed and took its folder along
                continue

    def note(self, engine: str, command: str) -> None:
        """Write down which engine runs this and the command that started it; what began a run stays, also on resume."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not self.origin.exists():
            write_atomic(self.origin, json.dumps({"engine": engine, "command": command}).encode())

    def began(self) -> dict[str, str]:
        """Return ``engine`` and ``command`` of the run; a run that nobody noted came over a network."""
        try:
            noted = json.loads(self.origin.read_text(encoding="utf-8"))
            return {"engine": str(noted["engine"]), "command": str(noted["command"])}
        except (OSError, ValueError, KeyError, TypeError):
            return {"engine": DEPLOYMENT, "command": ""}

    def begin(self, config: Config) -> None:
        """Make the directory; unless the run resumes, what an earlier run of the same name left goes away."""
        self.path.mkdir(parents=True, exist_ok=True)
        if config.resume:  # maybe from round 1: then there is no checkpoint yet, and clients repeat what they answered
            self.clients.mkdir(exist_ok=True)
            return
        if self.checkpoint.exists() or self.metrics.exists():  # else whoever is about to run this has just named it
            self.identity.unlink(missing_ok=True)
        for file in (
            self.checkpoint,
            self.metrics,
            self.table,
            self.student,
            self.summary,
            *([] if self.began()["engine"] == SERVED else [self.status]),  # there since it waits for its nodes
            self.names,
            self.path / "report.html",
        ):
            file.unlink(missing_ok=True)
        for folder in (self.clients, self.ballots):
            shutil.rmtree(folder, ignore_errors=True)
        self.clients.mkdir()
        if not self.config.exists():
            write_atomic(self.config, Resolved(config, {}).to_toml().encode())

    def name_in_ledger(self) -> str:
        """Return the name under which this run is charged, ever the same until it is begun anew."""
        if not self.identity.exists():
            plain = "".join(c for c in self.path.name if c.isascii() and (c.isalnum() or c in "-_"))[:60]
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomic(self.identity, f"run-{plain}-{uuid.uuid4().hex}".encode())
        return self.identity.read_text(encoding="utf-8")

    def rewrite(self, reports: Sequence[RoundReport]) -> None:
        """Make the journal agree with the checkpoint: a crash may have come between the two."""
        write_atomic(self.metrics, "".join(_line(report) for report in reports).encode())
        write_atomic(self.table, _csv(reports).encode())

    def append(self, report: RoundReport) -> None:
        """Add a round to the journal. A full disk costs the journal's line, not the run: the checkpoint has it too."""
        try:
            with open(self.metrics, "a", encoding="utf-8") as stream:
                stream.write(_line(report))
            new = not self.table.exists() or not self.table.stat().st_size
            with open(self.table, "a", encoding="utf-8", newline="") as stream:
                stream.write(_csv([report], header=new))
        except OSError as error:
            raise CheckpointError(
                f"cannot write {self.metrics}: {error.strerror}. Round {report.round} is in the checkpoint; make room "
                f"and run: fedkd resume {self.path}"
            ) from error

    def finish(self, summary: dict[str, Any], student: Learner | None) -> None:
        """Write the student and the summary."""
        if student is not None and student.state():
            save_arrays(self.student, student.state(), {"architecture": student.architecture})
        summary = {"name": self.path.name, **summary}
        write_atomic(self.summary, json.dumps(summary, indent=1, allow_nan=False).encode())
        for name, text in files_of(summary["privacy"]).items():
            write_atomic(self.path / name, text.encode())


def find(path: Path) -> RunDirectory:
    """Return the run directory at ``path`` or ``runs/path``, or the one run of that name in a sweep.

    Raises :class:`FedkdError` with the nearest match if there is none, and if several sweeps have one.
    """
    for candidate in (path, Path("runs") / path):
        if (candidate / "config.toml").exists():
            return RunDirectory(candidate)
    swept = sorted(file.parent for file in Path("runs").glob("*/*/config.toml") if file.parent.name == str(path))
    if len(swept) == 1:
        return RunDirectory(swept[0])
    if swept:
        raise FedkdError(
            f"several sweeps have a run {str(path)!r}: {some([str(one) for one in swept])}; name one of these"
        )
    runs, sweeps = runs_here(Path("runs"))
    known = f" Runs here: {some(runs)}." if runs else "" if sweeps else " No runs here yet; try: fedkd run"
    known += f" Sweeps here, with runs in them: {some(sweeps)}." if sweeps else ""
    raise FedkdError(f"no run {str(path)!r}.{did_you_mean(path.name, runs)}{known}")


def runs_here(root: Path) -> tuple[list[str], list[str]]:
    """Return the names of the runs below ``root``, and of the sweeps, which are folders of runs."""
    sweeps = {file.parent.parent.name for file in root.glob("*/*/config.toml")}
    return sorted(file.parent.name for file in root.glob("*/config.toml")), sorted(sweeps)


def some(names: Sequence[str], most: int = 8) -> str:
    """Return the first of ``names``, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def next_run(root: Path, stem: str) -> Path:
    """Make and return ``stem-001``, ``stem-002``, ... under ``root``: the first that nobody else has taken."""
    root.mkdir(parents=True, exist_ok=True)
    taken = [int(p.name.rpartition("-")[2]) for p in root.glob(f"{stem}-*") if p.name.rpartition("-")[2].isdecimal()]
    number = max(taken, default=0) + 1
    while True:
        path = root / f"{stem}-{number:03d}"
        try:
            path.mkdir()
            return path
        except FileExistsError:  # another run started in this very moment
            number += 1


def _line(report: RoundReport) -> str:
    return json.dumps(asdict(report), allow_nan=False) + "\n"


def _csv(reports: Sequence[RoundReport], *, header: bool = True) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    for i, report in enumerate(reports):
        row = {"round": report.round, **report.metrics, **{f"seconds_{k}": v for k, v in report.seconds.items()}}
        if header and i == 0:
            writer.writerow(row)
        writer.writerow(["" if value is None else value for value in row.values()])
    return stream.getvalue()
