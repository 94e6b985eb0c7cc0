"""What a run looks like in a terminal: a live table with progress bars, or one plain line for each round."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fedkd.collect import folded
from fedkd.config import Config, mixed
from fedkd.errors import QuorumError
from fedkd.preflight import liars
from fedkd.records import RoundReport
from fedkd.units import ceiling, size

LISTED = 40
"""Letters that the changed settings may take in the header; where they take more, they are counted."""
COLUMNS = "ensem: the teacher; local, best: clients' own models, mean and best; up/cl, down/cl: of one client"
SPARKS = "▁▂▃▄▅▆▇█"


class Screen:
    """An observer of a run. Use as a context manager; ``plain`` is chosen where the output is no terminal."""

    def __init__(
        self,
        config: Config,
        name: str,
        console: Console | None = None,
        *,
        without: Collection[int] = (),
        introduced: bool = False,
    ) -> None:
        """Prepare to show the run ``name``; the clients in ``without`` are left out of it.

        Where it was ``introduced`` already, it is not said again what run this is.
        """
        self.config, self.name, self.without, self.introduced = config, name, without, introduced
        self.console = console or Console(highlight=False, width=None)
        self.plain = not self.console.is_terminal
        self.reports: list[RoundReport] = []
        self.progress = Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            console=self.console,
        )
        self._task = self.progress.add_task("starting workers", total=max(1, config.clients))
        self._shown = False  # whether the header has been printed: only once there is something to tell
        self._asked, self._errors = 0, dict[str, str]()
        self._live = Live(get_renderable=self._render, console=self.console, refresh_per_second=8, transient=False)

    def __enter__(self) -> Screen:
        if not self.plain:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if not any(isinstance(one, QuorumError) for one in exception):  # which names them itself
            self._tell_errors()
        if not self.plain:
            self.progress.stop_task(self._task)
            self.progress.update(self._task, visible=False)
            self._live.stop()

    def __call__(self, event: str, facts: Mapping[str, Any]) -> None:
        """Show one event of the run."""
        if not self._shown:
            self._shown = True
            self._header()
        if event == "asked":
            label = f"round {facts['round']}/{self.config.rounds}: clients"
            self._asked, self._errors = facts["clients"], {}
            self.progress.reset(self._task, total=max(1, facts["clients"]), description=label)
        elif event == "answer":
            self.progress.advance(self._task)
            if facts.get("error"):
                self._errors[str(facts["client"])] = str(facts["error"])
        elif event == "distill":
            self._tell_errors()
            self.progress.update(self._task, description=f"round {facts['round']}/{self.config.rounds}: distilling")
        elif event == "summary":
            label = "training the pooled-data reference" if facts["pooled"] else "scoring"
            self.progress.update(self._task, description=label)
        elif event == "report":
            self.reports.append(facts["report"])
            if self.plain:
                self.console.print(_plain(facts["report"]))

    def _header(self) -> None:
        for line in () if self.introduced else introduction(self.config, self.name, self.without):
            self.console.print(line, soft_wrap=True)
        self.console.print(f"  columns   {COLUMNS}", style="dim", soft_wrap=True)
        if self.plain:
            self.console.print(_HEADER)

    def _tell_errors(self) -> None:
        for line in folded(self._errors, self._asked):
            self.console.print(f"  {line}", style="yellow", markup=False, soft_wrap=True)
        self._errors = {}

    def _render(self) -> Group:
        if not self._shown:
            return Group(self.progress)
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for title in ("round", "student", "ensem", "local", "best", "up/cl", "down/cl", "time", ""):
            table.add_column(title, justify="right")
        for report in self.reports[-20:]:
            table.add_row(*_cells(report))
        if self.reports:
            table.columns[-1]._cells[-1] = sparkline([r.metrics["student"] for r in self.reports])
        return Group(table, self.progress)


def introduction(config: Config, name: str, without: Collection[int] = ()) -> list[str]:
    """Return what run this is, in lines of rich's markup: name, seed, preset; data; clients; what hides them."""
    models = ", ".join(mixed(config.learner)[: config.clients])
    count = f"{config.clients - len(without)} of {config.clients}" if without else f"{config.clients}"
    lie = f"; {liars(config)} of {config.clients} lie, attack {config.attack}" if config.attack != "none" else ""
    if config.protect == "none" or config.noise != "system":
        why = "protect = none" if config.protect == "none" else "noise = seeded"
        privacy = f"[bold red]NONE[/bold red] ({why})"
    else:
        goal = f"epsilon {config.epsilon:g} at delta {config.delta:g} ({escape(config.protect)})"
        privacy = f"at most [bold]{goal}[/bold]"
    return [
        f"[bold]fedkd[/bold]  {escape(name)}  seed {config.seed}  preset {config.preset}{escape(changes(config))}",
        f"  data      {escape(f'{config.data}, {config.partition}, transfer {config.transfer}')}",
        f"  clients   {count}: {escape(f'{models}; student {config.student}{lie}')}",
        *([f"  without   {', '.join(map(str, sorted(without)))}"] if without else []),
        f"  privacy   {privacy}",
    ]


def changes(config: Config) -> str:
    """Return what ``config`` sets otherwise than its preset does, but for what the header says anyway."""
    plain = Config(preset=config.preset).model_dump()
    shown = {"preset", "seed", "data", "partition", "transfer", "clients", "learner", "student", "protect"}
    changed = {
        key: value
        for key, value in config.model_dump().items()
        if value != plain[key] and key not in shown | {"output", "resume"}
    }
    listed = "".join(f", {key} = {value}" for key, value in changed.items())
    return listed if len(listed) <= LISTED else f", {len(changed)} settings changed"


def scoreboard(summary: Mapping[str, Any], path: Path | None, console: Console) -> None:
    """Print how the run ended, in a few honest lines."""
    board = summary["scoreboard"]
    console.print()
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    own = (("best local model", "local_best"), ("mean local model", "local_mean"))
    for label, key in (
        ("student", "student"),
        ("ensemble (on the transfer set)", "ensemble"),
        *((("the only client's model", "local_mean"),) if len(summary["clients"]) == 1 else own),
        ("pooled-data reference", "pooled"),
    ):
        if board.get(key) is not None:
            table.add_row(label, f"{board[key]:.1%}")
    console.print(table)
    fedavg = board["fedavg"]
    up, down = (size(board[f"bytes_{way}_per_client"]) for way in ("up", "down"))
    against = (
        f"FedAvg would send {size(fedavg['bytes_per_client_round'])} each way"
        if fedavg["possible"]
        else f"FedAvg is impossible here ({escape(fedavg['why'])})"
    )
    console.print(f"sent per client and round: {up} up, {down} down; {against}", soft_wrap=True)
    privacy = summary["privacy"]
    if privacy["epsilon"] == "infinite":
        seen = "predictions can reveal who is in the data" if privacy["guarantee"] == "NONE" else privacy["why"]
        console.print(f"privacy: [bold red]{escape(privacy['guarantee'])}[/bold red] - {escape(seen)}", soft_wrap=True)
    else:
        about = f"one {privacy['unit']}, neighbors {privacy['neighbors']}, {privacy['guarantee']}"
        console.print(
            f"privacy: [bold]epsilon {ceiling(privacy['epsilon'])}[/bold] at delta {privacy['delta']:g} for "
            f"{escape(about)}. {escape(privacy['attacker'])}",
            soft_wrap=True,
        )
        if "ledger" in privacy:
            console.print(escape(privacy["ledger"]), soft_wrap=True)
    for warning in summary["warnings"]:
        console.print(f"[yellow]warning[/yellow] {escape(warning)}", soft_wrap=True)
    if path is not None:
        console.print(f"report {path / 'report.html'}", soft_wrap=True)


def sparkline(values: list[float | None]) -> str:
    """Return one character for each value, from the lowest to the highest."""
    known = [v for v in values if v is not None]
    if not known:
        return ""
    low, span = min(known), (max(known) - min(known)) or 1.0
    return "".join(" " if v is None else SPARKS[round((v - low) / span * (len(SPARKS) - 1))] for v in values[-12:])


_HEADER = f"{'round':>5} {'student':>8} {'ensem':>7} {'local':>7} {'best':>7} {'up/cl':>8} {'down/cl':>8} {'time':>7}"


def _cells(report: RoundReport) -> list[str]:
    m = report.metrics
    asked, answered = m["asked"] or 1, m["answered"] or 1

    def percent(key: str) -> str:
        value = m[key]
        return "-" if value is None else f"{value:.1%}"

    return [
        str(report.round),
        *(percent(key) for key in ("student", "ensemble", "local_mean", "local_best")),
        size((m["bytes_up"] or 0) / answered),
        size((m["bytes_down"] or 0) / asked),
        f"{sum(report.seconds.values()):.1f} s",
        "",
    ]


def _plain(report: RoundReport) -> str:
    c = _cells(report)
    missing = sum(row["status"] != "answered" for row in report.clients.values())
    note = f"  {missing} of {len(report.clients)} clients missing" if missing else ""
    return f"{c[0]:>5} {c[1]:>8} {c[2]:>7} {c[3]:>7} {c[4]:>7} {c[5]:>8} {c[6]:>8} {c[7]:>7}{note}"
