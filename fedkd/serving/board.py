"""What a server shows in its terminal: how to join, what happens, and a table of nodes that stays below it."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fedkd.units import seconds, size


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
            table = [node_table(rows, now=time.time(), width=self._console.width)] if rows else []
            self._live.update(Group(*table))


COLUMNS = ("node", "state", "heard", "from", "client", "rounds", "last", "calls", "up", "down", "speed", "key")
LEFT = ("node", "state", "from", "client", "key")
WIDE = 110
"""Letters that a terminal has for all columns; a narrower one does without these."""
LEFT_OUT = ("from", "calls", "up", "down")


def node_table(rows: list[dict[str, object]], *, now: float, width: int = WIDE) -> Table:
    """Return the nodes as a table: who, in which state, heard when and from where, its rounds, calls and bytes.

    A column that nobody has anything in is left out, and some are where there is little ``width``.
    """
    columns = list(zip(COLUMNS, *(_cells(row, now) for row in rows), strict=True))
    shown = [(title, *known) for title, *known in columns if any(known) and (width >= WIDE or title not in LEFT_OUT)]
    table = Table(box=None, pad_edge=False)
    for title, *_ in shown:
        table.add_column(title, justify="left" if title in LEFT else "right")
    for row in zip(*(known for _, *known in shown), strict=True):
        table.add_row(*map(Text, row))
    return table


def _cells(row: Mapping[str, object], now: float) -> list[str]:
    heard, speed, calls = row["heard"], row.get("speed"), row["calls"]
    return [
        str(row["name"]),
        f"revoked {_ago(row['revoked'], now)}" if row.get("revoked") else str(row["state"]),
        _ago(heard, now) if heard else "",
        str(row["address"]),
        str(row.get("client") or ""),
        str(row.get("rounds") or ""),
        str(row.get("last") or ""),
        str(calls) if calls else "",
        size(float(str(row["bytes_in"]))) if calls else "",
        size(float(str(row["bytes_out"]))) if calls else "",
        f"{size(float(str(speed)))}/s" if speed else "",
        str(row["key"]),
    ]


def _ago(moment: object, now: float) -> str:
    passed = round(now - float(str(moment)))
    return f"{seconds(passed)} ago" if passed > 0 else "just now"


def qr(text: str) -> str:
    """Return ``text`` as a QR code of half blocks, whose light parts are drawn: to be shown white on black."""
    import segno

    drawn = io.StringIO()
    segno.make(text, error="l", micro=False).terminal(drawn, border=2, compact=True)
    return drawn.getvalue()
