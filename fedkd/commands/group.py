"""How groups of commands answer a word that they do not know: with one suggestion."""

from __future__ import annotations

from typing import Any

import click
from typer.core import TyperGroup


class Commands(TyperGroup):
    """A group that suggests the nearest command once: click does so by itself from 8.4 on, and typer would again."""

    def __init__(self, **options: Any) -> None:
        """Make the group as typer does."""
        super().__init__(**options)
        if hasattr(click.exceptions, "NoSuchCommand"):
            self.suggest_commands = False
