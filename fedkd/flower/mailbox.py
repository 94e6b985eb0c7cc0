"""Answers out of a grid. Whatever is wrong with one costs its sender only, and nobody waits for an upload of another's.

Flower's ``pull_messages`` hands out many answers at once, but one that cannot be parsed takes all of them with it, and
one whose objects are still on their way, or never come, stops everybody for up to three minutes. To ask for one at a
time costs a call for each that is open, at each look. So from a SuperLink we take many names in one call and the
objects of each by ourselves.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from flwr.app import Message
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from google.protobuf.message import DecodeError

from fedkd.envelope import MAX_FRAME

MALFORMED = (DecodeError, AttributeError, KeyError, IndexError, TypeError, ValueError, AssertionError, RecursionError)
"""What Flower raises when it cannot parse a reply."""
BATCH = 100
"""Messages in one call. If the call is lost, so are the answers that it would have brought: not too many."""
MAX_OBJECTS = 1000
SPELL = 1.0
"""Seconds after which a look ends, if it found anything: a deadline may have come."""

ELSEWHERE = "malformed reply (it answers a message that another node was asked)"


@dataclass(frozen=True)
class Spoiled:
    """An answer that cannot be read: the message that it replies to, and why."""

    asked: str
    why: str


class Mailbox(Protocol):
    """Where answers arrive."""

    def take(self, ids: Collection[str]) -> Iterator[Message | Spoiled]:
        """Yield the answers to the messages ``ids`` that are there by now, each once."""
        ...


def mailbox(grid: Grid) -> Mailbox:
    """Return the mailbox that suits ``grid``."""
    if hasattr(grid, "wait"):  # our own, which parses nothing that could fail
        return Whole(grid)
    if hasattr(type(grid), "_runtime_client") and hasattr(grid, "node"):  # Flower's HttpGrid; tests pin these names
        return Batched(grid)
    return OneByOne(grid)


class Whole:
    """All at once, from a grid whose answers are in order."""

    def __init__(self, grid: Grid) -> None:
        """Take from ``grid``."""
        self._grid = grid

    def take(self, ids: Collection[str]) -> Iterator[Message | Spoiled]:
        """Yield the answers to the messages ``ids``."""
        yield from self._grid.pull_messages(list(ids))


class OneByOne:
    """One name a call, from any grid: what cannot be parsed costs its sender only."""

    def __init__(self, grid: Grid) -> None:
        """Take from ``grid``."""
        self._grid = grid

    def take(self, ids: Collection[str]) -> Iterator[Message | Spoiled]:
        """Yield the answers to the messages ``ids``; what the network does not bring is for the next look."""
        for id_ in list(ids):
            try:
                found = list(self._grid.pull_messages([id_]))
            except MALFORMED as error:
                yield Spoiled(id_, f"malformed reply ({type(error).__name__})")
            except Exception:  # the network: look again, until the deadline
                continue
            else:
                yield from (message if _answers(message, id_) else Spoiled(id_, ELSEWHERE) for message in found)


@dataclass
class _Claimed:
    """An answer that is ours to fetch: Flower tells of it once."""

    name: str
    asked: str
    missing: list[str]
    contents: dict[str, bytes] = field(default_factory=dict)
    size: int = 0


class Batched:
    """Many names a call, from a SuperLink; its answers in the order in which they are complete."""

    def __init__(self, grid: Any) -> None:
        """Take from ``grid``, an ``HttpGrid`` of Flower's."""
        self._grid = grid
        self._claimed: dict[str, _Claimed] = {}  # message asked -> what answers it

    def take(self, ids: Collection[str]) -> Iterator[Message | Spoiled]:
        """Yield the answers to the messages ``ids`` that are complete by now, and those that never will be."""
        end = time.monotonic() + SPELL
        yield from self._claim([id_ for id_ in ids if id_ not in self._claimed])
        for claimed in list(self._claimed.values()):
            if claimed.asked not in ids:  # nobody waits for it any more
                del self._claimed[claimed.asked]
                continue
            try:
                found = self._fetched(claimed)
            except MALFORMED as error:
                found = Spoiled(claimed.asked, f"malformed reply ({type(error).__name__})")
            except Exception:  # the network: look again, until the deadline
                return
            if found is not None:
                del self._claimed[claimed.asked]
                yield found
                if time.monotonic() > end:
                    return

    def _claim(self, ids: list[str]) -> Iterator[Spoiled]:
        """Learn which answers have come. The SuperLink forgets them by telling, so they are kept here."""
        for batch in (ids[at : at + BATCH] for at in range(0, len(ids), BATCH)):
            try:
                told = self._grid._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=batch))
            except Exception:  # the network, or a SuperLink that starts again
                return
            for message, tree in zip(told.messages_list, told.message_object_trees, strict=True):
                asked, name = message.metadata.reply_to_message_id, message.metadata.message_id
                try:
                    self._claimed[asked] = _Claimed(name, asked, _names(iterate_object_tree(tree)))
                except ValueError as error:
                    yield Spoiled(asked, f"malformed reply ({error})")

    def _fetched(self, claimed: _Claimed) -> Message | Spoiled | None:
        """Return an answer if all of it is here, None if something is still on its way; wait for nothing."""
        run_id = self._grid.run.run_id
        while claimed.missing:
            asked = PullObjectRequest(node=self._grid.node, run_id=run_id, object_id=claimed.missing[0])
            told = self._grid._runtime_client.PullObject(asked)
            if not told.object_found:
                return Spoiled(claimed.asked, "the answer was announced and never sent in full")
            if not told.object_available:
                return None
            claimed.contents[claimed.missing.pop(0)] = told.object_content
            claimed.size += len(told.object_content)
            if claimed.size > 2 * MAX_FRAME:
                return Spoiled(claimed.asked, f"malformed reply (more than {2 * MAX_FRAME} bytes)")
        self._grid._runtime_client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=self._grid.node, run_id=run_id, message_object_id=claimed.name)
        )
        message = inflate_object_from_contents(claimed.name, claimed.contents)
        if not isinstance(message, Message):
            raise TypeError("no message")
        message.metadata.__dict__["_message_id"] = claimed.name
        return message if _answers(message, claimed.asked) else Spoiled(claimed.asked, ELSEWHERE)


def _answers(message: Message, asked: str) -> bool:
    """Return whether an answer replies to what it came for: the SuperLink checks the envelope, not what lies in it."""
    return message.metadata.reply_to_message_id == asked


def _names(tree: Iterable[Any]) -> list[str]:
    """Return the names of the objects of a tree, each once; raise ValueError if there are too many."""
    found: dict[str, None] = {}
    for node in tree:
        found[node.object_id] = None
        if len(found) > MAX_OBJECTS:
            raise ValueError(f"more than {MAX_OBJECTS} objects")
    return list(found)
