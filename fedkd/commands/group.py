"""The order of the commands in ``fedkd --help``, by what one comes for."""

from __future__ import annotations

from typing import Any

import click
from typer.core import TyperGroup

PANELS = {
    "Run and look": ("run", "plan", "status", "resume", "report", "compare", "replay", "sweep"),
    "Privacy": ("audit", "ledger"),
    "Real devices": ("serve", "join", "nodes", "pki", "bench-device"),
    "More": ("config", "parts", "doctor", "publish", "version"),
}
"""Headings of the help to commands; what stands nowhere is under the last one."""
ORDER = [name for names in PANELS.values() for name in names]
SUGGEST = not hasattr(click.exceptions, "NoSuchCommand")
"""Whether typer has to name the nearest command: a click that knows this error does so itself, and once is enough."""


class Group(TyperGroup):
    """All commands, those for a first run first."""

    def __init__(self, **given: Any) -> None:
        """Put each command under its heading."""
        super().__init__(**given)
        for name, command in self.commands.items():
            command.rich_help_panel = heading(name)  # type: ignore[attr-defined]

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands in the order of :data:`PANELS`."""
        return sorted(self.commands, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


def heading(name: str) -> str:
    """Return the heading of a command."""
    return next((title for title, names in PANELS.items() if name in names), list(PANELS)[-1])
