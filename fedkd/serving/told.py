"""What is told of a run: Flower's words go to a file, others to the terminal; how it starts; what nodes are called."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

from fedkd.errors import DataError
from fedkd.files import write_atomic
from fedkd.journal import NODES, UNNAMED, read_names
from fedkd.serving.gate import Gate
from fedkd.serving.invites import Registry
from fedkd.status import Client, read_status

CLAIM = 30
"""Seconds in which a ServerApp must ask for its work, or Flower 1.41 starts another. It has no setting for that."""
FLOWERS = re.compile(r"(INFO|DEBUG) *:|Using SuperLink: |Successfully installed \S+ to ")
"""How the lines begin in which Flower says what it does. Its warnings and errors are not among them."""

FAULT = re.compile(r"ERROR *: *ServerApp raised an exception")
VERDICT = re.compile(r"ERROR *: *Exit Code")
OURS = re.compile(r"fedkd\.errors\.\w+: (.+)")


class Transcript:
    """Keeps every line of a run in a file and shows those that a reader of the terminal wants. A context manager.

    With an error of ours, which says in one line what is wrong, Flower prints a traceback and advice of its own. Then
    these are not shown and ``reason`` is that line; of all other errors everything is shown, when they have been told.
    """

    def __init__(self, path: Path, show: Callable[[str], None]) -> None:
        """Write to the end of ``path``; ``show`` gets what is not only of use to those who look for a fault."""
        self._path, self._show, self._held = path, show, list[str]()
        self.reason = ""

    def __enter__(self) -> Transcript:
        self._file = self._path.open("a", encoding="utf-8", buffering=1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self.reason = own_error(self._held)
        for line in [] if self.reason else self._held:
            self._show(line)

    def __call__(self, line: str) -> None:
        """Take in one line."""
        self._file.write(f"{line}\n")
        if self._held or FAULT.match(line):
            self._held.append(line)
        elif not is_flowers(line):
            self._show(line)


def own_error(lines: Sequence[str]) -> str:
    """Return what an error of ours says, if that is how a traceback in ``lines`` ends; else an empty text."""
    end = next((i for i, line in enumerate(lines) if VERDICT.match(line)), len(lines))
    said = [line for line in lines[:end] if line.strip()]
    found = OURS.fullmatch(said[-1]) if said else None
    return found[1] if found is not None else ""


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


def keep_names(run: Path, registry: Registry) -> None:
    """Write down what the nodes behind the clients of a run are called, for status and report; no matter if that fails.

    The ServerApp knows which node answers for which client, and the registry what it is called.
    """
    known = {member.node_id: member.name for member in registry.members() if member.node_id}
    names = read_names(run) | {key: known[node] for node, (key, _) in _clients(run).items() if node in known}
    if names != read_names(run):
        with contextlib.suppress(OSError):
            write_atomic(run / NODES, json.dumps(names, indent=1).encode(), durable=False)


def with_rounds(rows: list[dict[str, object]], run: Path) -> list[dict[str, object]]:
    """Return the rows of nodes with what each is in a run: its client, answered of asked rounds, and the last one."""
    clients = _clients(run)
    for row in rows:
        if (found := clients.get(str(row["node_id"]))) is not None:
            key, client = found
            row |= {
                "client": None if key.startswith(UNNAMED) else key,
                "rounds": f"{client.answered} of {client.asked}",
                "last": client.last,
            }
    return rows


@contextlib.contextmanager
def measured(run: Path, port: int | None, gates: Sequence[Gate]) -> Iterator[int | None]:
    """Serve the metrics of a run on ``port`` of this machine's loopback until the end of the block; None: nobody asked.

    ``gates`` may be empty until the front has one. What it counts is that of nodes that were let in.
    """
    if port is None:
        yield None
        return
    from fedkd.metrics_page import listen  # needs a library that few servers have

    def counts() -> Mapping[str, float]:
        seen = [traffic for gate in gates for traffic in list(gate.traffic.values())]
        return {"calls": sum(one.calls for one in seen), "refused": sum(one.refused for one in seen)}

    with listen(run, port, gate=counts) as taken:
        yield taken


def _clients(run: Path) -> dict[str, tuple[str, Client]]:
    """Return the clients of a run by the ids of their nodes, each with its key."""
    try:
        clients = read_status(run).clients
    except DataError:  # it has not begun
        return {}
    return {node: (key, client) for key, client in clients.items() if (node := client.node or _node_of(key))}


def _node_of(key: str) -> str:
    """Return the id of the node that a client is named after which has not said who it is, else an empty text."""
    with contextlib.suppress(ValueError):
        if key.startswith(UNNAMED):
            return str(int(key.removeprefix(UNNAMED), 16))
    return ""
