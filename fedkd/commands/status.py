"""``fedkd status``: how a run is doing, once or until it ends, as a table, as JSON or for Prometheus."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fedkd.errors import DataError, FedkdError
from fedkd.journal import called
from fedkd.rundir import SERVED, find
from fedkd.status import INTERRUPTED, STATUSES, Client, Status, newest_run, read_status
from fedkd.units import seconds, short, size

LOOK = 0.5
"""Seconds between two looks at a run that is followed."""
LISTED = 200
"""Clients that the table lists; of more, those that answered are counted only."""
COLORS = {"answered": "green", "late": "yellow", "silent": "red", "refused": "red", "lost": "red", "asked": ""}

out = Console(highlight=False)


def status(
    run: Annotated[Path | None, typer.Argument(help="Run directory or its name; the newest, if not given.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="As JSON; with --follow one object a line.")] = False,
    serve: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Serve metrics for Prometheus on this port of 127.0.0.1.")
    ] = None,
) -> None:
    """Show how a run is doing: its state, and for each client what it sent and when.

    Exit code 0 while it runs and when it is done, 1 where it failed or was stopped, 2 where there is no such run.
    """
    path = the_run(run)
    with contextlib.ExitStack() as stack:
        if serve is not None:
            from fedkd.metrics_page import listen

            port = stack.enter_context(listen(path, serve))
            where = f"metrics of {path.name} on http://127.0.0.1:{port}/metrics; Ctrl-C ends it"
            Console(stderr=True, highlight=False).print(where, markup=False, soft_wrap=True)
        last = watch(path, json_=json_, follow=follow, forever=serve is not None)
    raise typer.Exit(exit_code(last, time.time()))


def the_run(run: Path | None) -> Path:
    """Return the directory of ``run``, or of the newest run here; raise with the nearest match if there is none."""
    if run is not None:
        return find(run).path
    newest = newest_run()
    if newest is None:
        raise FedkdError("no runs here yet; try: fedkd run")
    return newest


def exit_code(found: Status, now: float) -> int:
    """Return 1 for a run that failed or was killed, else 0."""
    return int(found.state == "failed" or found.stale(now))


def watch(
    path: Path,
    *,
    json_: bool = False,
    follow: bool = False,
    forever: bool = False,
    console: Console = out,
    pause: Callable[[float], None] = time.sleep,
) -> Status:
    """Show the run once; with ``follow`` until it ends or goes stale; ``forever`` also after that, until Ctrl-C."""
    found, said = read_status(path), ""
    live = Live(console=console, auto_refresh=False) if follow and console.is_terminal and not json_ else None
    with live or contextlib.nullcontext():
        while True:
            now = time.time()
            last = not follow or found.ended or found.stale(now)
            if live is not None:
                live.update(screen(found, now), refresh=True)
            elif (gist := _gist(found, now)) != said:
                said = gist
                if json_:
                    told: list[RenderableType] = [json.dumps(found.to_json(now))]
                else:
                    told = screen(found, now).renderables if last else [headline(found, now)]
                for one in told:
                    console.print(one, markup=False, soft_wrap=not isinstance(one, Table))
            if last and not forever:
                return found
            pause(LOOK)
            if follow:
                found = _again(path, found)


def _gist(found: Status, now: float) -> str:
    """Return what is worth another line where lines cannot be drawn again."""
    counts = [found.count(status) for status in STATUSES]
    return repr((found.state, found.stale(now), found.round, found.phase, found.present, counts))


def _again(path: Path, found: Status) -> Status:
    """Return the status now. A run that fails before a round is saved leaves its name free, and nothing to read."""
    try:
        return read_status(path)
    except DataError:
        if (path / "config.toml").exists():
            raise
        return replace(
            found, state="failed", reason=found.reason or "it failed before a round was saved, and left nothing"
        )


def screen(found: Status, now: float) -> Group:
    """Return what ``fedkd status`` prints of a run at the time ``now``."""
    style = "bold red" if found.state == "failed" or found.stale(now) else "bold"
    lines = [Text(headline(found, now), style=style)]
    if found.reason:
        lines.append(Text(f"  {found.reason}"))
    if found.stale(now):
        why = f"  stale: it claims to be running and has said nothing for {seconds(found.age(now))}; was it killed?"
        lines.append(Text(f"{why} To go on: fedkd resume {found.run}", style="red"))
    return Group(*lines, *([table(found, now)] if found.clients else []))


def headline(found: Status, now: float) -> str:
    """Return a run in one line: state, round, how many clients are where, bytes, time."""
    waits = found.waiting and found.engine == SERVED
    state = "waiting for nodes" if waits else INTERRUPTED if found.interrupted else found.state
    words = [f"{found.run}: {'stale, was ' if found.stale(now) else ''}{state}"]
    if found.waiting:
        words.append(f"{found.present} of {found.wanted} are here")
    if found.round:
        words.append(f"round {found.round} of {found.rounds}" + (f" ({found.phase})" if found.phase else ""))
    words += [f"{count} {status}" for status in STATUSES if (count := found.count(status))]
    if found.clients:
        words.append(f"{size(found.moved('up'))} up, {size(found.moved('down'))} down")
    if (left := found.left(now)) is not None:
        words.append(f"for {seconds(left)} more" if found.waiting else f"deadline in {seconds(left)}")
    if found.started:
        over = found.ended or found.stale(now)
        took = seconds((found.updated if over else now) - found.started)
        words.append(f"after {took}" if over else f"{took} so far")
    return ", ".join(words)


def table(found: Status, now: float) -> Table:
    """Return the clients of a run, one a row; of very many, those that are not well."""
    shown = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("client", "status", "up", "down", "answer after", "rounds", "last seen"):
        shown.add_column(title, justify="left" if title in ("client", "status") else "right")
    shown.add_column("", justify="left", overflow="fold")
    rows = list(found.clients.items())
    if len(rows) > LISTED:
        rows = [row for row in rows if row[1].status not in ("answered", "asked")][:LISTED]
    for name, client in rows:
        shown.add_row(*_cells(name, client, now))
    if len(rows) < len(found.clients):
        shown.add_row(Text(f"and {len(found.clients) - len(rows)} more"))
    return shown


def _cells(name: str, client: Client, now: float) -> list[Text]:
    ago = "–" if client.seen is None else f"{seconds(max(0.0, now - client.seen))} ago"
    rounds = f"{client.answered} of {client.asked}"
    numbers = (size(client.bytes_up), size(client.bytes_down), seconds(client.seconds), rounds, ago)
    mark = Text(client.status, style=COLORS.get(client.status, ""))
    return [Text(short(called(name, client.name), 24)), mark, *map(Text, numbers), Text(client.reason or "")]
