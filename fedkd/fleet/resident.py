"""The process of a node: reads its folder, answers until it is interrupted, prints a line for what happens."""

from __future__ import annotations

import ctypes
import logging
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from fedkd.errors import ConfigError, FedkdError
from fedkd.fleet.home import Home
from fedkd.fleet.identity import Identity
from fedkd.fleet.limit import cap_memory
from fedkd.fleet.link import Address, Link, trusting
from fedkd.fleet.node import Node
from fedkd.units import size

INTERRUPTED = 130
_MMAP_THRESHOLD = -3


def main(arguments: Sequence[str] | None = None) -> int:
    """Be the node in a folder until interrupted; with ``--once`` until a run is over. Return the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    once = "--once" in given
    folders = [word for word in given if word != "--once"]
    try:
        if len(folders) != 1 or folders[0].startswith("-"):
            raise ConfigError("expected: python -m fedkd.fleet FOLDER [--once]")
        signal.signal(signal.SIGTERM, _interrupt)
        live(Home(Path(folders[0])), once=once)
    except FedkdError as error:
        print(f"error {printable(str(error))}", file=sys.stderr, flush=True)
        return 2
    except MemoryError:
        print("error not enough memory for this node; raise --max-memory", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what was begun goes on when the node is started again", file=sys.stderr, flush=True)
        return INTERRUPTED
    return 0


def live(home: Home, *, once: bool = False) -> int:
    """Be the node of ``home``, printing a line for each thing that happens; return how many answers left."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    with home.locked():
        settings = home.settings()
        if settings is None:
            raise ConfigError(f"there is no node in {home.path}; run: fedkd join URL --home {home.path}")
        cap_memory(settings.memory)
        address = Address.of(settings.url, insecure=True)
        context = trusting(home.known_authority()) if address.secure else None
        link = Link(address, context, Identity.at(home.key), bandwidth=settings.bandwidth)
        give_back = frugal()

        def observe(event: str, facts: Mapping[str, Any]) -> None:
            give_back()
            show(event, {**facts, "memory": memory()})

        node = Node(home, link, settings, home.common(settings.about), observe=observe)
        return node.run(once=once)


def frugal() -> Callable[[], None]:
    """Have freed memory go back to the system, where the C library can be told so; return what gives back the rest."""
    try:
        library = ctypes.CDLL(None)
        # Else it grows with the largest array that was ever freed. A smaller one gives back no more, and asking the
        # system for every array took a third of the time of a round on 6000 images.
        library.mallopt(_MMAP_THRESHOLD, 4 * 2**20)
        trim = library.malloc_trim
    except (OSError, AttributeError, TypeError):  # not the GNU library
        return lambda: None
    return lambda: trim(0)


def memory(status: Path = Path("/proc/self/status")) -> tuple[int, int] | None:
    """Return how many bytes of memory this process holds, and the most that it ever did; None where nobody says."""
    try:
        lines = dict(line.split(":", 1) for line in status.read_text(encoding="ascii").splitlines())
        now, most = (1024 * int(lines[key].split()[0]) for key in ("VmRSS", "VmHWM"))
        return now, most
    except (OSError, ValueError, KeyError, IndexError):
        return None


def show(event: str, facts: Mapping[str, Any]) -> None:
    """Print what happens to a node, a line each, in plain words."""
    line = sentence(event, facts)
    if line:
        print(f"{time.strftime('%H:%M:%S')}  {printable(line)}", flush=True)


def sentence(event: str, facts: Mapping[str, Any]) -> str:
    """Return what happened to a node as a line of text, empty if nobody wants to know."""
    told = str(facts.get("round", ""))
    round_ = f"round {told}" if told.isdigit() else "round ?"
    match event:
        case "online":
            return f"online as node {facts['node']}, waiting for questions"
        case "answered":
            held = facts.get("memory")
            room = f", memory {size(held[0])}, at most {size(held[1])}" if held else ""
            return f"{round_}  answered, {size(facts['bytes'])}, {facts['seconds']:.1f} s{room}"
        case "refused":
            return f"{round_}  refused: {facts['error']}"
        case "expired":
            return f"{round_}  came {facts['late']:.0f} s too late to be answered"
        case "over":
            return "the run is over"
        case "away":
            return f"{facts['error']}; trying again"
        case "back":
            return "the server answers again"
        case "odd":
            return f"odd: {facts['error']}"
    return ""


def printable(text: str) -> str:
    """Return ``text`` without what could move a terminal's cursor: some of it comes from the server."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
