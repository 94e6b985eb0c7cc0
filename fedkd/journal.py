"""The journal of a run, read back: what metrics.jsonl, summary.json and config.toml in its directory say.

Reading never makes a run look better than it was: a number that cannot be believed is not known (None), a torn line is
left out with a note, and privacy that is not stated in full is none.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from fedkd.errors import DataError, did_you_mean
from fedkd.logs import one_line
from fedkd.records import RoundReport
from fedkd.units import short

METRICS, SUMMARY, CONFIG = "metrics.jsonl", "summary.json", "config.toml"
MARKS = (METRICS, SUMMARY, CONFIG)  # any of them makes a directory a run directory
NODES = "nodes.json"  # what the owners of a served run's nodes call them, by client
UNNAMED = "node-"  # how the key of a client begins that has not said which one it is
LARGEST = 1e15  # number that is believed


@dataclass(frozen=True, eq=False)
class Run:
    """What a run directory says: its finished rounds in order, its summary (may be empty) and what was odd about it."""

    path: Path
    rounds: list[RoundReport]
    summary: dict[str, Any]
    config_text: str = ""
    notes: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)

    def called(self, key: str) -> str:
        """Return a client as people know it: by the name of its node too, where that has one."""
        return called(key, self.names.get(key))

    @property
    def name(self) -> str:
        """The name that the run gave itself, or that of its directory."""
        return str(self.summary.get("name") or self.path.resolve().name)

    @property
    def finished(self) -> bool:
        """Whether the summary says that the run came to its end."""
        return self.summary.get("finished") is True

    @cached_property
    def scoreboard(self) -> dict[str, Any]:
        """The scoreboard of the summary; while there is none, what the last round and the bytes so far say."""
        given = part(self.summary, "scoreboard")
        names = ("student", "ensemble", "local_mean", "local_best", "local_worst")
        board: dict[str, Any] = {name: self.last(name) for name in names}
        asked = [status for key in self.clients for status in self.statuses(key) if status != "away"]
        for way, counted in (("up", asked.count("answered")), ("down", len(asked))):
            moved = self.moved(way)
            board[f"bytes_{way}_per_client"] = moved / counted if moved is not None and counted else None
        return board | {key: value for key, value in given.items() if value is not None}

    @cached_property
    def clients(self) -> list[str]:
        """Keys of all clients that the run heard of; numbers in their order, then words."""
        keys = {key for r in self.rounds for key in r.clients} | set(part(self.summary, "clients"))
        return sorted(keys, key=lambda key: (0, int(key), "") if key.isdecimal() and len(key) < 30 else (1, 0, key))

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration: of the summary, or of config.toml while there is no summary."""
        try:
            return part(self.summary, "config") or tomllib.loads(self.config_text)
        except tomllib.TOMLDecodeError:
            return {}

    @property
    def alone(self) -> bool:
        """Whether nothing had come back to the clients yet when their own models were last scored."""
        return self.rounds[-1].round == 1 or self.config.get("feedback") == "none"

    @property
    def fedavg(self) -> tuple[bool | None, str, float | None]:
        """Whether FedAvg could have run here, why (not), and its bytes each way per client and round."""
        fedavg = part(self.scoreboard, "fedavg")
        possible = fedavg.get("possible")
        cost = real(fedavg.get("bytes_per_client_round"))
        return possible if isinstance(possible, bool) else None, short(str(fedavg.get("why") or ""), 200), cost

    @property
    def guarantee(self) -> str:
        """The privacy guarantee in the words of the run; empty where it states none."""
        return short(str(part(self.summary, "privacy").get("guarantee") or "").strip(), 80)

    @property
    def epsilon(self) -> float | None:
        """The finite epsilon that the run claims; None where it claims none, or says that there is no guarantee."""
        claimed = real(part(self.summary, "privacy").get("epsilon"))
        none = not self.guarantee or self.guarantee.upper().startswith("NO")
        return None if none or claimed is None or claimed < 0 else claimed

    @property
    def unstated(self) -> list[str]:
        """What a claim of privacy needs beside epsilon and this run does not say."""
        privacy = part(self.summary, "privacy")
        return [key for key in ("delta", "unit", "neighbors") if privacy.get(key) in (None, "")]

    @property
    def has_guarantee(self) -> bool:
        """Whether the run states a finite epsilon in full: with delta, unit and neighbors. All else fails closed."""
        return self.epsilon is not None and not self.unstated

    def series(self, metric: str) -> list[tuple[float, float | None]]:
        """Return (round, value) of a metric; None where it is not known."""
        return [(float(r.round), real(r.metrics.get(metric))) for r in self.rounds]

    def last(self, metric: str) -> float | None:
        """Return the value of a metric in the last round that knows it."""
        return next((y for _, y in reversed(self.series(metric)) if y is not None), None)

    def first(self, metric: str) -> float | None:
        """Return the value of a metric in round 1, in which nothing has come back to the clients yet."""
        return next((real(r.metrics.get(metric)) for r in self.rounds if r.round == 1), None)

    def missing(self, score: str) -> str:
        """Return why a score of the scoreboard is not known, in a few words."""
        if score in ("student", "pooled") and self.config.get("student") == "none":
            return "no student (student = none)"
        if score == "ensemble" and self.config.get("keys") == "classes":
            return "not about samples (keys = classes)"
        if score == "pooled" and self.config.get("pooled") is False:
            return "not trained (pooled = false)"
        if score in ("local_mean", "local_best") and self.config.get("protect", "none") != "none":
            return "not sent (protect)"
        return "not measured (evaluate = false)" if self.config.get("evaluate") is False else "not known"

    def statuses(self, key: str) -> list[str]:
        """Return how a client did in each round in which it was asked."""
        return [str(s) for r in self.rounds if (s := part(r.clients, key).get("status"))]

    def moved(self, way: str) -> float | None:
        """Return the bytes of all rounds and clients, ``way`` "up" or "down"."""
        return total(round_bytes(r, way) for r in self.rounds)

    def traffic(self) -> list[float]:
        """Return, for each round, the bytes moved so far by all clients, up and down."""
        each = ((round_bytes(r, "up") or 0.0) + (round_bytes(r, "down") or 0.0) for r in self.rounds)
        return list(accumulate(each))


def called(key: str, name: str | None) -> str:
    """Return what a client is shown as, where its node may have a ``name``.

    >>> called("1", "pi"), called("node-bca46022ad01", "pi"), called("1", None)
    ('pi (1)', 'pi', '1')
    """
    return key if not name else name if key.startswith(UNNAMED) else f"{name} ({key})"


def read_names(path: Path) -> dict[str, str]:
    """Return what the nodes of a served run are called, by client. Devices chose these names: they are cleaned."""
    try:
        found = json.loads((path / NODES).read_text(encoding="utf-8"))
        return {key: short(one_line(name), 40) for key, name in found.items() if isinstance(name, str)}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def read_run(path: Path) -> Run:
    """Read a run directory; raise :class:`DataError` if it is none, has no finished round or holds a damaged line.

    The last line of metrics.jsonl may be torn (the process was killed while writing): it is left out, with a note.
    """
    path = Path(path)
    _check_run_directory(path)
    notes: list[str] = []
    rounds: dict[int, RoundReport] = {}
    for report in _read_metrics(path / METRICS, notes):
        if report.round in rounds:
            notes.append(f"{METRICS} holds round {report.round} more than once; the later line counts.")
        rounds[report.round] = report
    if not rounds:
        raise DataError(f"{str(path)!r} has no finished round in {METRICS}{'; ' + notes[0] if notes else '.'}")
    summary = _read_summary(path / SUMMARY, notes)
    reports = [rounds[r] for r in sorted(rounds)]
    return Run(path, reports, summary, _read_config(path / CONFIG), tuple(notes), read_names(path))


def is_run_directory(path: Path) -> bool:
    """Whether ``path`` is a directory in which a run has begun."""
    return path.is_dir() and any((path / mark).is_file() for mark in MARKS)


def total(values: Iterable[float | None]) -> float | None:
    """Return the sum of what is known, None if nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def real(value: object) -> float | None:
    """Return a JSON value as a float, or None: null, NaN, words and what no run can measure are all "not known"."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
        return None
    return float(value) if abs(value) > 1 / LARGEST else 0.0


def part(table: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the table under ``key``, empty where there is none."""
    value = table.get(key)
    return value if isinstance(value, dict) else {}


def listed(table: Mapping[str, Any], key: str) -> list[Any]:
    """Return the list under ``key``, empty where there is none."""
    value = table.get(key)
    return value if isinstance(value, list) else []


def round_bytes(report: RoundReport, way: str) -> float | None:
    """Return the bytes of a round over all clients, ``way`` "up" or "down"; the sum over clients where no total is."""
    stated = real(report.metrics.get(f"bytes_{way}"))
    if stated is not None:
        return stated
    return total(real(row.get(f"bytes_{way}")) for row in report.clients.values())


def _check_run_directory(path: Path) -> None:
    if is_run_directory(path):
        return
    if path.is_file():
        hint = f" Give its directory: {str(path.parent)!r}." if is_run_directory(path.parent) else ""
        raise DataError(f"{str(path)!r} is a file, expected a run directory.{hint}")
    try:
        siblings = sorted(p.name for p in path.parent.iterdir() if p.name != path.name and is_run_directory(p))
    except OSError:
        siblings = []
    hint = did_you_mean(path.name, siblings)
    if path.is_dir():
        raise DataError(f"{str(path)!r} is no run directory: it has no {METRICS}.{hint}")
    raise DataError(f"there is no run directory {str(path)!r}.{hint}")


def _read_metrics(path: Path, notes: list[str]) -> list[RoundReport]:
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error.strerror}") from None
    numbered = [(i, line) for i, line in enumerate(lines, start=1) if line.strip()]
    reports = []
    for i, line in numbered:
        try:
            reports.append(_round_report(json.loads(line)))
        except (ValueError, RecursionError) as error:
            if i == numbered[-1][0]:
                notes.append(f"The last line of {METRICS} (line {i}) is torn and was left out.")
                break
            raise DataError(f"{str(path)!r} line {i} is damaged: {_one_line(error)}") from None
    return reports


def _round_report(line: Any) -> RoundReport:
    number = line.get("round") if isinstance(line, dict) else None
    if type(number) is not int or not 1 <= number <= LARGEST:
        raise ValueError("expected an object with the key 'round', a whole number from 1")
    clients = {str(key): row for key, row in part(line, "clients").items() if isinstance(row, dict)}
    return RoundReport(line["round"], part(line, "metrics"), clients, part(line, "seconds"), part(line, "latency"))


def _read_summary(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        summary = json.loads(path.read_bytes())
        if not isinstance(summary, dict):
            raise ValueError(f"expected an object, got {type(summary).__name__}")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        notes.append(f"{SUMMARY} is damaged and was left out: {_one_line(error)}")
        return {}
    return summary


def _read_config(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""  # the page then shows what the summary says


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
