"""Groups of commands: their order in the help, and one suggestion for a word that they do not know."""

from __future__ import annotations

from typing import Any

import click
from typer.core import TyperGroup

PANELS = {
    "Run and look": ("run", "plan", "status", "resume", "report", "compare", "replay", "sweep", "predict"),
    "Privacy": ("audit", "ledger"),
    "Real devices": ("serve", "join", "nodes", "pki", "bench-device"),
    "More": ("config", "parts", "doctor", "publish", "version"),
}
"""Headings of the help to commands; what stands nowhere is under the last one."""
ORDER = [name for names in PANELS.values() for name in names]


class Commands(TyperGroup):
    """A group that suggests the nearest command once: click does so by itself from 8.4 on, and typer would again."""

    def __init__(self, **options: Any) -> None:
        """Make the group as typer does."""
        super().__init__(**options)
        if hasattr(click.exceptions, "NoSuchCommand"):
            self.suggest_commands = False


class Group(Commands):
    """All commands, those for a first run first."""

    def __init__(self, **options: Any) -> None:
        """Put each command under its heading."""
        super().__init__(**options)
        for name, command in self.commands.items():
            command.rich_help_panel = heading(name)  # type: ignore[attr-defined]

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands in the order of :data:`PANELS`."""
        return sorted(self.commands, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


def heading(name: str) -> str:
    """Return the heading of a command."""
    return next((title for title, names in PANELS.items() if name in names), list(PANELS)[-1])
