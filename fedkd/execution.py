"""One run from the command line: the name it gets, what its end leaves, and how to go on after it."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from fedkd.config import Config, Resolved
from fedkd.errors import FedkdError, QuorumError
from fedkd.files import write_atomic
from fedkd.rundir import RunDirectory, next_run

TERMINATED = 128 + signal.SIGTERM
"""Exit code of a run that was ended by SIGTERM, as a shell would report it."""
Run = Callable[[Config, Path], Any]
"""Runs a configuration in a run directory and returns the run's summary."""

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def place(resolved: Resolved, name: str | None) -> Path:
    """Return the directory of a new run, or of the one to continue; raise if the name is no good or taken."""
    from fedkd.preflight import check_data

    if name is not None and resolved.config.output:
        raise FedkdError(f"--name {name} and output = {resolved.config.output!r} both name the run; give one of them")

    if name is not None and (not name or "/" in name or name.startswith(".")):
        raise FedkdError(f"--name must be a plain folder name, got {name!r}")
    given = Path(resolved.config.output) if resolved.config.output else Path("runs") / name if name else None
    if given is not None and not resolved.config.resume and (given / "config.toml").exists():
        done = finished(RunDirectory(given))
        instead = "" if done else f", or continue it: fedkd resume {given}"
        state = " and is finished" if done else ""
        raise FedkdError(f"run {given.name!r} exists already{state}: choose another name{instead}")
    check_data(resolved.config)  # before there is a directory: what cannot start leaves no name taken
    try:
        path = given or next_run(Path("runs"), resolved.config.preset.replace("_", "-"))
    except OSError as error:
        raise FedkdError(f"cannot write to runs/ here: {error.strerror}") from None
    return path.resolve()


def execute(resolved: Resolved, path: Path, run: Run, *, resuming: bool = False) -> None:
    """Let ``run`` do its work in ``path`` and write the report; whatever stops it, say how to go on."""
    ledger = resolved.config.ledger and str(Path(resolved.config.ledger).resolve())  # apps may run in another folder
    settings = resolved.config.model_copy(update={"output": str(path), "resume": resuming, "ledger": ledger})
    with RunDirectory(path).alone():
        _execute(settings, resolved, run, resuming)


def _execute(settings: Config, resolved: Resolved, run: Run, resuming: bool) -> None:
    from fedkd.report import write_report

    path = Path(settings.output)
    directory = RunDirectory(path)
    if not resuming and directory.config.exists():  # since its name was looked up, another run has come and gone
        raise FedkdError(f"run {path.name!r} exists already: choose another name")
    before = {entry.name for entry in path.iterdir()}

    def interrupted() -> str:
        return f"interrupted after round {_rounds_done(directory)}; continue with: fedkd resume {short(path)}"

    try:
        with interruptible(interrupted):
            if not resuming:
                write_atomic(directory.config, resolved.to_toml().encode())
            summary = run(settings, path)
    except OSError as error:
        saved = f" What was finished is saved: fedkd resume {short(path)}" if directory.checkpoint.exists() else ""
        _tidy(directory, before)
        raise FedkdError(f"cannot write {error.filename or path}: {error.strerror}.{saved}") from error
    except Exception as error:
        _tidy(directory, before, keep_log=isinstance(error, QuorumError))
        raise
    from fedkd.screen import scoreboard

    write_report(path)
    scoreboard(summary, short(path), out)


class Terminated(KeyboardInterrupt):
    """SIGTERM: as orderly an end as Ctrl-C."""


@contextlib.contextmanager
def interruptible(said: Callable[[], str]) -> Iterator[None]:
    """End the program in order on Ctrl-C and on SIGTERM: print what ``said`` returns, exit as a shell expects."""

    def terminate(*_: object) -> None:
        raise Terminated

    usual = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except KeyboardInterrupt as interrupt:
        err.print(said(), soft_wrap=True)
        sys.exit(TERMINATED if isinstance(interrupt, Terminated) else 130)
    finally:
        signal.signal(signal.SIGTERM, usual)


def _tidy(directory: RunDirectory, before: set[str], *, keep_log: bool = False) -> None:
    """Remove what a run wrote that never saved a round, so that its name is free; ``before`` was there already.

    A traceback of a client in clients.log is worth keeping, and takes no name.
    """
    if directory.checkpoint.exists():
        return
    files = [directory.config, directory.origin, directory.identity, directory.terms, directory.status]
    files += [directory.names, directory.metrics, directory.table, directory.path / "clients.log"]
    for file in files[: -1 if keep_log else None]:
        if file.name not in before:
            file.unlink(missing_ok=True)
    for folder in (directory.clients, directory.ballots):
        if folder.name not in before:
            shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # it is not there, or not empty
        directory.path.rmdir()


def outcome(code: int, path: Path) -> Any:
    """Return the summary that a Flower run left in ``path``; raise if its exit ``code`` says that it failed."""
    directory = RunDirectory(path)
    if code:
        going_on = f" Continue: fedkd resume {short(path)}" if directory.checkpoint.exists() else ""
        raise FedkdError(f"the Flower run failed; the log above says why.{going_on}")
    return _read(directory.summary)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def finished(directory: RunDirectory) -> int:
    """Return how many rounds a run has that came to its end, 0 for one that did not."""
    try:
        ended = _read(directory.summary).get("finished") is True
    except (OSError, ValueError, AttributeError):
        return 0
    return _rounds_done(directory) if ended else 0


def _rounds_done(directory: RunDirectory) -> int:
    return len(directory.metrics.read_text(encoding="utf-8").splitlines()) if directory.metrics.exists() else 0


def short(path: Path) -> Path:
    """Return ``path`` as one would type it here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
