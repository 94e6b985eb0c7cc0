"""What a ledger says to people and other programs: a check of the whole, a table, JSON and CSV. Changes nothing."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from fedkd.errors import ConfigError, LedgerError
from fedkd.events import Event, to_code
from fedkd.privacy.chain import Head, inspect
from fedkd.privacy.ledger import DAY, Account, Reservation, read_payload

Spent = Callable[[Sequence[Event], float], float]
"""Epsilon of some events at a delta."""
FORMATS = ("json", "csv")


@dataclass(frozen=True, eq=False)
class Report:
    """A ledger whose chain holds: what it says, its head, and the releases whose bytes can no longer be sent again."""

    account: Account
    head: Head
    torn: int
    unsendable: tuple[str, ...]

    @property
    def reservations(self) -> tuple[Reservation, ...]:
        """All that was spent, in order."""
        return tuple(self.account.reservations.values())

    @property
    def uncommitted(self) -> int:
        """How many releases were paid for and never made: crashes, or one that is under way."""
        return sum(entry.payload is None for entry in self.reservations)


def verify(folder: Path, *, seen: Head | None = None) -> Report:
    """Check the ledger in ``folder`` from its first record to its last; raise :class:`LedgerError` if it is broken."""
    records = inspect(folder, seen=seen)
    account = Account()
    for body in records.bodies:
        account.add(body)
    if not account.budgets:
        raise LedgerError(f"there is no ledger in {folder}")
    committed = [entry for entry in account.reservations.values() if entry.payload is not None]
    gone = tuple(entry.release_id for entry in committed if read_payload(folder, entry) is None)
    return Report(account, records.head, records.torn, gone)


def sentences(report: Report) -> list[str]:
    """Return what :func:`verify` found, a sentence a line, the worst last."""
    account = report.account
    lines = [
        f"the chain holds: {report.head.count} records, {len(report.reservations)} releases, head {report.head.hash}"
    ]
    if report.uncommitted:
        lines.append(f"releases paid for and not made, after a crash or still under way: {report.uncommitted}")
    if account.repairs or report.torn:
        torn = account.repairs + bool(report.torn)
        lines.append(f"crashes that left a torn record, for which nothing was released: {torn}")
    if report.unsendable:
        lines.append(
            f"releases whose bytes are missing or altered, so that no retry gets them: {len(report.unsendable)}"
        )
    if account.losses:
        lines.append(
            f"losses of records that were accepted: {account.losses}, unreadable lines: {account.unreadable}; what was "
            "spent in them is not known, and no guarantee covers it"
        )
    return lines


def totals(report: Report, epsilon: Spent) -> list[str]:
    """Return what was spent in every window, a line each; ``epsilon(events, delta)`` is the accountant."""
    account, budget = report.account, report.account.budgets[-1]
    said = f"at delta {budget.delta:g}, unit {account.unit}, neighbors {account.neighbors}"
    lines = [_spending("in all", account.spent(), budget.epsilon, epsilon, budget.delta) + f" ({said})"]
    runs = list(dict.fromkeys(entry.run for entry in report.reservations))
    if len(runs) > 1 or budget.per_run is not None:
        lines += [
            _spending(f"run {run}", account.spent(run=run), budget.per_run, epsilon, budget.delta) for run in runs
        ]
    if budget.per_period is not None:
        recent = account.spent(since=account.last - DAY * budget.period_days)
        what = f"last {budget.period_days:g} days on record"
        lines.append(_spending(what, recent, budget.per_period, epsilon, budget.delta))
    return lines


def table(report: Report, *, last: int = 40) -> Table:
    """Return the ``last`` releases as a table for the terminal."""
    account, shown = report.account, report.reservations[-last:]
    budget = account.budgets[-1]
    grid = Table(box=SIMPLE_HEAD, title_justify="left", caption_justify="left")
    grid.title = f"data {account.fingerprint[:16]} · unit {account.unit} · neighbors {account.neighbors}"
    limits = ", ".join(f"{window} {limit:g}" for window, limit in budget.windows.items())
    grid.caption = f"{len(shown)} of {len(report.reservations)} releases; budget: {limits} at delta {budget.delta:g}"
    for name in ("time (UTC)", "run", "release", "event", "released"):
        grid.add_column(name, overflow="fold")
    for entry in shown:
        when = _utc(entry.time).removesuffix("+00:00").replace("T", " ")
        grid.add_row(when, entry.run, entry.release_id, str(entry.event), "yes" if entry.payload else "no")
    return grid


def export(folder: Path, format: str) -> str:
    """Return the checked ledger as "json" (all of it) or "csv" (one line a release), events included."""
    if format not in FORMATS:
        raise ConfigError(f"a ledger is exported as {' or '.join(FORMATS)}, got {format!r}")
    report = verify(folder)
    rows = [_row(entry) for entry in report.reservations]
    if format == "json":
        account = report.account
        about = {
            "fingerprint": account.fingerprint,
            "unit": account.unit,
            "neighbors": account.neighbors,
            "budgets": [asdict(budget) for budget in account.budgets],
            "opened": _utc(account.opened),
            "repairs": account.repairs,
            "losses": account.losses,
            "head": asdict(report.head),
        }
        return json.dumps({**about, "releases": rows}, indent=1, allow_nan=False) + "\n"
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("time", "run", "release_id", "query_digest", "payload", "event"))
    writer.writerows([*list(row.values())[:-1], json.dumps(row["event"])] for row in rows)
    return stream.getvalue()


def _row(entry: Reservation) -> dict[str, Any]:
    event = {"kind": type(entry.event).__name__, "code": to_code(entry.event), **asdict(entry.event)}
    return {
        "time": _utc(entry.time),
        "run": entry.run,
        "release_id": entry.release_id,
        "query_digest": entry.query_digest,
        "payload": entry.payload,
        "event": event,
    }


def _spending(what: str, events: Sequence[Event], limit: float | None, epsilon: Spent, delta: float) -> str:
    spent = epsilon(events, delta)
    said = "infinite" if math.isinf(spent) else f"{spent:.4g}"
    return f"{what}: epsilon {said}" + (f" of {limit:g}" if limit is not None else "")


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
