"""Many runs from one file: every combination of settings with every seed, several at a time, each in its own process.

A sweep can be stopped at any moment. The same command goes on: finished runs stay, interrupted ones are resumed.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from fedkd import parts
from fedkd.config import Config, Resolved
from fedkd.errors import ConfigError, DataError, FedkdError, did_you_mean
from fedkd.files import write_atomic
from fedkd.journal import Run, read_run
from fedkd.preflight import check_data
from fedkd.report.table import Findings, Finished, Variant
from fedkd.rundir import RunDirectory
from fedkd.units import percent, seconds, size

TABLES = ("base", "grid", "cases", "seeds")
OURS = {"seed": "give 'seeds'", "output": "a sweep names its folders", "resume": "a sweep resumes by itself"}
"""Settings that a sweep decides itself, and what to do instead."""
MOST = 10_000
"""Runs of one sweep; more are a mistake in the grid."""
POLL = 0.2
"""Seconds between two looks at the runs."""
PATIENCE = 10.0
"""Seconds that runs are given to stop by themselves."""
LETTERS = 80
"""Of a variant's name in the name of a folder."""


@dataclass(frozen=True, eq=False)
class Job:
    """One run of a sweep: the variant that it belongs to, its complete configuration and where it is written."""

    variant: str
    config: Config
    origins: Mapping[str, str]
    path: Path

    @property
    def title(self) -> str:
        """The run in words."""
        return f"{self.variant}, seed {self.config.seed}"


@dataclass(frozen=True, eq=False)
class Sweep:
    """What a file asks for: variants by name, each with the settings that set it apart; and all runs."""

    name: str
    folder: Path
    variants: Mapping[str, Mapping[str, Any]]
    jobs: tuple[Job, ...]

    def of(self, variant: str) -> list[Job]:
        """Return the runs of a variant, one for each seed."""
        return [job for job in self.jobs if job.variant == variant]

    def findings(self) -> Findings:
        """Read all runs that are finished by now."""
        keys = tuple(dict.fromkeys(key for settings in self.variants.values() for key in settings))
        variants = []
        for name in self.variants:
            runs = (Finished(job.config.seed, job.path.name, finished_run(job.path)) for job in self.of(name))
            resolved = self.of(name)[0].config.model_dump()  # a preset or a default may set what another case names
            variants.append(Variant(name, {key: resolved[key] for key in keys}, tuple(runs)))
        return Findings(self.name, keys, tuple(variants))


@dataclass(frozen=True)
class Ending:
    """How a run ended: ``error`` is empty if it finished, else the last that it said."""

    job: Job
    error: str
    seconds: float


class Watcher(Protocol):
    """Who is told how a sweep goes."""

    def look(self, running: Sequence[Job]) -> None:
        """Take note of the runs that are on now; called several times a second."""
        ...

    def ended(self, ending: Ending) -> None:
        """Take note of a run that ended."""
        ...


def read_sweep(file: Path, *, name: str | None = None, root: Path = Path("runs")) -> Sweep:
    """Return the sweep that a TOML file describes; every combination is checked, and all that is wrong said at once.

    ``[base]`` holds settings of all runs, ``[grid]`` lists of values whose product is taken, ``[[cases]]`` settings
    that go together, with a ``name`` if they want one; ``seeds`` is a number of seeds or a list.
    """
    table = _read(file)
    seeds = _seeds(table.get("seeds", 1), file)
    base, grid, cases = _tables(table, file)
    count = len(seeds) * max(1, len(cases))
    for values in grid.values():
        count *= len(values)
    if count > MOST:
        raise ConfigError(f"{file}: {count:,} runs are more than a sweep may have ({MOST:,})")
    variants, layers = _variants(base, grid, cases, file)
    name = name or file.stem
    if not re.fullmatch(r"[\w.=-]*\w[\w.=-]*", name) or name.startswith("."):
        raise ConfigError(f"--name must be a plain folder name, got {name!r}")
    folder = root / name
    if (folder / "config.toml").exists():
        raise ConfigError(f"{folder} is a run, not a sweep: choose another --name")
    return Sweep(name, folder, variants, tuple(_jobs(layers, seeds, file, folder)))


def check(sweep: Sweep) -> None:
    """Raise :class:`ConfigError` if the data do not allow a run, or if it is there and was made with other settings."""
    problems: dict[str, list[str]] = {}
    for name in sweep.variants:
        try:
            check_data(sweep.of(name)[0].config)  # the first seed stands for all
        except FedkdError as error:
            problems.setdefault(str(error), []).append(name)
    if problems:
        raise ConfigError("\n".join(_blamed(line, names, len(sweep.variants)) for line, names in problems.items()))
    for job in sweep.jobs:
        there = job.path / "config.toml"
        if not there.exists():
            continue
        try:
            given = tomllib.loads(there.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{there} cannot be read ({error}): delete {job.path}, or choose another --name"
            ) from None
        wanted = job.config.model_dump()
        for key in wanted.keys() - {"output", "resume"}:
            if given.get(key) != wanted[key]:
                raise ConfigError(
                    f"{job.path} was made with {key} = {given.get(key)!r}, now it is {wanted[key]!r}: "
                    "choose another --name, or delete it"
                )


def finished_run(path: Path) -> Run | None:
    """Return what a run directory says if the run has come to its end."""
    try:
        run = read_run(path)
    except DataError:
        return None
    return run if run.finished else None


def run_jobs(jobs: Sequence[Job], *, workers: int, watcher: Watcher, command: str = "") -> list[Ending]:
    """Run all ``jobs`` that are not finished, ``workers`` at a time; a failure costs its own run only.

    Each is a process of its own that resumes a run directory, so it can be killed at any moment. When this process is
    interrupted, all of them save what they have and stop.
    """
    waiting = deque(job for job in jobs if finished_run(job.path) is None)
    running: dict[Job, tuple[subprocess.Popen[bytes], float]] = {}
    endings = []
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.popleft()
                running[job] = _start(job, command), time.monotonic()
            watcher.look(list(running))
            time.sleep(POLL)
            for job, (process, since) in list(running.items()):
                if process.poll() is not None:
                    del running[job]
                    endings.append(Ending(job, _why(job, process.returncode), time.monotonic() - since))
                    watcher.ended(endings[-1])
    finally:
        _stop([process for process, _ in running.values()])
    return endings


class Board:
    """Shows how a sweep goes: live bars in a terminal, else one plain line for each run that ended."""

    def __init__(self, sweep: Sweep, console: Console) -> None:
        """Prepare to show ``sweep``; what is finished already is counted, but not in the estimate of time."""
        self.console, self.jobs = console, sweep.jobs
        self.left = {job: job.config.rounds for job in sweep.jobs if finished_run(job.path) is None}
        self.ends, self.failed = len(sweep.jobs) - len(self.left), 0
        self.before = {job: rounds_done(job.path) for job in self.left}
        self.began = time.monotonic()
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[what]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self.rows: dict[Job, TaskID] = {}
        self.all = self.progress.add_task("all runs", total=len(sweep.jobs), completed=self.ends, what="")

    def __enter__(self) -> Board:
        if self.ends:
            self.console.print(f"{self.ends} of {len(self.jobs)} runs are finished already")
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def look(self, running: Sequence[Job]) -> None:
        """Draw the bars of the runs that are on."""
        for job in running:
            if job not in self.rows:
                self.rows[job] = self.progress.add_task(f"  {job.title}", total=job.config.rounds, what="rounds")
            done = rounds_done(job.path)
            self.left[job] = job.config.rounds - done
            self.progress.update(self.rows[job], completed=done)
        self.progress.update(self.all, completed=self.ends, what=f"runs, {self._time_left()}")

    def ended(self, ending: Ending) -> None:
        """Print how a run ended."""
        self.ends += 1
        self.failed += bool(ending.error)
        self.left.pop(ending.job, None)
        if ending.job in self.rows:
            self.progress.remove_task(self.rows.pop(ending.job))
        self.progress.update(self.all, completed=self.ends, what=f"runs, {self._time_left()}")
        width = len(str(len(self.jobs)))
        head = f"{self.ends:>{width}}/{len(self.jobs)} {ending.job.title}: "
        if ending.error:
            said = f"{head}failed: {ending.error}"
            self.console.print(said, style="yellow", markup=False, soft_wrap=True)
            return
        run = Finished(ending.job.config.seed, ending.job.path.name, finished_run(ending.job.path))
        moved = (run.value("bytes_up") or 0) + (run.value("bytes_down") or 0)
        score = f"student {percent(run.value('student'))}, {size(moved)} moved, {seconds(ending.seconds)}"
        tail = f"; {self._time_left()}" if self.left else ""
        self.console.print(f"{head}{score}{tail}", markup=False, soft_wrap=True)

    def _time_left(self) -> str:
        """Estimate from the rounds that were done since we began."""
        done = sum(job.config.rounds - done for job, done in self.before.items()) - sum(self.left.values())
        if not sum(self.left.values()):
            return "nearly done"
        if done <= 0:
            return "time left not known yet"
        return f"about {seconds((time.monotonic() - self.began) / done * sum(self.left.values()))} left"


def rounds_done(path: Path) -> int:
    """Return how many rounds the journal of a run holds."""
    try:
        return (path / "metrics.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


def write_findings(sweep: Sweep) -> Findings:
    """Write sweep.csv, .json, .tex and .html beside the runs and return what they say."""
    findings = sweep.findings()
    made = {"csv": findings.csv(), "json": findings.json(), "tex": findings.latex(), "html": findings.html()}
    for kind, text in made.items():
        write_atomic(sweep.folder / f"sweep.{kind}", text.encode())
    return findings


def _read(file: Path) -> dict[str, Any]:
    try:
        with open(file, "rb") as stream:
            return tomllib.load(stream)
    except OSError as error:
        raise ConfigError(f"cannot read sweep {str(file)!r}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not TOML: {error}") from None


def _seeds(given: Any, file: Path) -> list[int]:
    seeds = list(range(given)) if type(given) is int else given
    if not (isinstance(seeds, list) and seeds and all(type(s) is int and s >= 0 for s in seeds)):
        raise ConfigError(f"{file}: seeds must be a number of seeds from 1, or a list of them, got {given!r}")
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"{file}: seeds has one twice: {given!r}")
    return seeds


Tables = tuple[dict[str, Any], dict[str, list[Any]], list[dict[str, Any]]]


def _tables(table: Mapping[str, Any], file: Path) -> Tables:
    """Return base, grid and cases, their keys spelled as ours; raise for what cannot be read as such."""
    for key in table:
        if key not in TABLES:
            hint = did_you_mean(key, TABLES) or f" Known: {', '.join(TABLES)}."
            if key.replace("-", "_") in Config.model_fields:
                hint = " Settings of all runs go below [base], lists of values below [grid]."
            raise ConfigError(f"{file}: unknown key {key!r}.{hint}")
    base, grid, cases = table.get("base", {}), table.get("grid", {}), table.get("cases", [])
    for key, value in (("base", base), ("grid", grid)):
        if not isinstance(value, dict):
            raise ConfigError(f"{file}: {key} must be a table, got {value!r}")
    if not (isinstance(cases, list) and all(isinstance(case, dict) for case in cases)):
        raise ConfigError(f"{file}: cases must be tables, each below its own [[cases]]")
    base, grid = _spelled(base), _spelled(grid)
    cases = [_spelled(case) for case in cases]
    for key, values in grid.items():
        if not (isinstance(values, list) and values):
            raise ConfigError(f"{file}: grid: {key} must be a list of values, got {values!r}")
        if any(value in values[:i] for i, value in enumerate(values)):
            raise ConfigError(f"{file}: grid: {key} has a value twice")
        if key in base or any(key in case for case in cases):
            where = "base" if key in base else "cases"
            raise ConfigError(f"{file}: {key} is in grid and in {where}: which of them counts? Keep one.")
    for key, words in OURS.items():
        if key in base or key in grid or any(key in case for case in cases):
            raise ConfigError(f"{file}: {key} cannot be set in a sweep: {words}")
    return base, grid, cases


def _spelled(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key.replace("-", "_"): value for key, value in table.items()}


@dataclass(frozen=True, eq=False)
class _Layers:
    """The settings of a variant before the preset fills the rest, and the origin of each."""

    name: str
    values: dict[str, Any]
    origins: dict[str, str] = field(default_factory=dict)


def _variants(
    base: dict[str, Any], grid: dict[str, list[Any]], cases: list[dict[str, Any]], file: Path
) -> tuple[dict[str, dict[str, Any]], list[_Layers]]:
    """Return what sets each variant apart, by name, and all that it is made of."""
    apart: dict[str, dict[str, Any]] = {}
    layers = []
    for case in cases or [{}]:
        settings = {key: value for key, value in case.items() if key != "name"}
        called = str(case.get("name") or ", ".join(f"{k}={v}" for k, v in settings.items()))
        for values in itertools.product(*grid.values()):
            point = dict(zip(grid, values, strict=True))
            alone = len(grid) == 1 and not called
            told = [str(v) if alone else f"{k}={v}" for k, v in point.items()]
            name = ", ".join(([called] if called else []) + told) or "base"
            if name in apart:
                raise ConfigError(f"{file}: two combinations are called {name!r}: give each of [[cases]] a name")
            apart[name] = {**settings, **point}
            origins = {k: f"{file} {w}" for w, t in (("base", base), ("cases", settings), ("grid", point)) for k in t}
            layers.append(_Layers(name, {**base, **settings, **point}, origins))
    return apart, layers


def _jobs(layers: Sequence[_Layers], seeds: Sequence[int], file: Path, folder: Path) -> list[Job]:
    """Return all runs; raise one :class:`ConfigError` with every problem of every variant."""
    problems: dict[str, list[str]] = {}
    jobs: list[Job] = []
    taken: dict[str, int] = {}
    for layer in layers:
        slug = re.sub(r"[^\w.=]+", "-", layer.name).strip("-.")[:LETTERS].strip("-.") or "variant"
        taken[slug] = taken.get(slug, 0) + 1
        slug += f"-{taken[slug]}" if taken[slug] > 1 else ""
        preset = layer.values.get("preset", "expert")
        for seed in seeds:
            try:
                filled = parts.preset(str(preset))
                values = {"preset": preset, **filled, **layer.values, "seed": seed}
                origins = {**dict.fromkeys(filled, f"preset {preset}"), **layer.origins, "seed": f"{file} seeds"}
                config = Config.read(values, where={key: origins.get(key, str(file)) for key in values})
            except ConfigError as error:
                for line in str(error).splitlines():
                    problems.setdefault(line, []).append(layer.name)
                break
            jobs.append(Job(layer.name, config, origins, folder / f"{slug}-seed-{seed}"))
    if problems:
        raise ConfigError("\n".join(_blamed(line, names, len(layers)) for line, names in problems.items()))
    return jobs


def _blamed(line: str, names: Sequence[str], of: int) -> str:
    """Return a problem, with the combinations that have it unless all do."""
    if len(names) == of:
        return line
    return f"{line} (in {names[0]}{f' and {len(names) - 1} more of {of}' if len(names) > 1 else ''})"


def _start(job: Job, command: str) -> subprocess.Popen[bytes]:
    """Prepare the run directory and start a process that resumes it, from round 1 if there is nothing yet."""
    directory = RunDirectory(job.path)
    directory.note("inprocess", command)
    if not directory.config.exists():
        write_atomic(directory.config, Resolved(job.config, job.origins).to_toml().encode())
    with open(_log(job), "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "fedkd", "resume", str(job.path), "--workers", "1"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us: we hand it on, once
        )


def _log(job: Job) -> Path:
    return job.path.with_name(job.path.name + ".log")


def _why(job: Job, code: int) -> str:
    """Return why a run failed, or nothing; the log of one that did not is of no use."""
    if code == 0 and finished_run(job.path) is not None:
        _log(job).unlink(missing_ok=True)
        return ""
    if code < 0:
        return f"ended by signal {-code} ({_log(job)})"
    lines = [line.strip() for line in _log(job).read_text(encoding="utf-8", errors="replace").splitlines()]
    said = [i for i, line in enumerate(lines) if line.startswith("error ")]
    last = " ".join(filter(None, lines[said[-1] :])) if said else next((line for line in reversed(lines) if line), "")
    return f"{last.removeprefix('error ')[:300] or f'exit code {code}'} ({_log(job)})"


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Interrupt runs, as Ctrl-C would; end those that do not stop in time."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
    end = time.monotonic() + PATIENCE
    for process in processes:
        try:
            process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
