"""What a server shows in its terminal: how to join, what happens, and a table of nodes that stays below it."""

from __future__ import annotations

import io
import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fedkd.units import size


class TerminalBoard:
    """Shows on ``console``; a terminal gets the QR code and the live table, anything else plain lines only."""

    def __init__(self, console: Console) -> None:
        """Show nothing yet."""
        self._console, self._url = console, ""
        self._live = Live(console=console, refresh_per_second=1, transient=True) if console.is_terminal else None

    def __enter__(self) -> TerminalBoard:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the table away."""
        if self._live is not None:
            self._live.stop()

    def line(self, text: str | Text) -> None:
        """Print one line."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def invite(self, url: str) -> None:
        """Print the line that joins, and the code that phones read."""
        self._url = url
        if self._live is not None:
            self._console.print(Text(qr(url), style="white on black"))  # dark on light for a scanner, in any theme
        self.line(f"join with: fedkd join '{url}'")

    def nodes(self, rows: list[dict[str, object]]) -> None:
        """Show the nodes as they are now."""
        if self._live is not None:
            self._live.update(Group(node_table(rows, now=time.time())) if rows else Group())


def node_table(rows: list[dict[str, object]], *, now: float) -> Table:
    """Return the nodes as a table: who, in which state, heard when and from where, calls and bytes."""
    table = Table(box=None, pad_edge=False)
    for column in ("node", "state", "heard", "from", "calls", "up", "down", "key"):
        table.add_column(column, justify="right" if column in ("heard", "calls", "up", "down") else "left")
    for row in rows:
        heard = float(str(row["heard"]))
        table.add_row(
            Text(str(row["name"])),
            str(row["state"]),
            f"{now - heard:.0f} s ago" if heard else "",
            str(row["address"]),
            str(row["calls"]) if row["calls"] else "",
            size(int(str(row["bytes_in"]))) if row["calls"] else "",
            size(int(str(row["bytes_out"]))) if row["calls"] else "",
            str(row["key"]),
        )
    return table


def qr(text: str) -> str:
    """Return ``text`` as a QR code of half blocks, whose light parts are drawn: to be shown white on black."""
    import segno

    drawn = io.StringIO()
    segno.make(text, error="l", micro=False).terminal(drawn, border=2, compact=True)
    return drawn.getvalue()
