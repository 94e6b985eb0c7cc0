"""What is told of Flower: all its words go to a file, those of a run to the terminal, and how its ServerApp starts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol

CLAIM = 30
"""Seconds in which a ServerApp must ask for its work, or Flower 1.41 starts another. It has no setting for that."""
FLOWERS = re.compile(r"(INFO|DEBUG) *:|Using SuperLink: |Successfully installed \S+ to ")
"""How the lines begin in which Flower says what it does. Its warnings and errors are not among them."""


class Transcript:
    """Keeps every line of a run in a file and shows those that a reader of the terminal wants. A context manager."""

    def __init__(self, path: Path, show: Callable[[str], None]) -> None:
        """Write to the end of ``path``; ``show`` gets what is not only of use to those who look for a fault."""
        self._path, self._show = path, show

    def __enter__(self) -> Transcript:
        self._file = self._path.open("a", encoding="utf-8", buffering=1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __call__(self, line: str) -> None:
        """Take in one line."""
        self._file.write(f"{line}\n")
        if not is_flowers(line):
            self._show(line)


def is_flowers(line: str) -> bool:
    """Return whether a line only tells what Flower does, and nothing of the run or of what went wrong.

    >>> [is_flowers(line) for line in ("INFO :", "ERROR :     ServerApp raised an exception", "    1    96.5%")]
    [True, False, False]
    """
    return FLOWERS.match(line) is not None


class Asked(Protocol):
    """Who knows how a run starts."""

    def starting(self, run: str) -> tuple[str, bool]:
        """Return when its ServerApp was last started, empty if it was not yet, and whether it runs now."""


class Start:
    """Notices that Flower gave up on a ServerApp which was slow to import, and began again."""

    def __init__(self, run: str) -> None:
        """Watch the start of a run by its id."""
        self._run, self._since, self._times, self._over = run, "", 0, False

    def look(self, asked: Asked) -> str:
        """Return what there is to say of the start now: a line for each attempt after the first, else nothing."""
        if self._over:
            return ""
        since, self._over = asked.starting(self._run)
        if not since or since == self._since:
            return ""
        self._since, self._times = since, self._times + 1
        if self._times == 1:
            return ""
        return (
            f"the ServerApp did not start within the {CLAIM} s that Flower gives it; Flower starts it again (attempt "
            f"{self._times}). Is this machine very busy?"
        )
