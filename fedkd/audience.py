"""What each client has of the feedback, as far as the server knows: a delta leans on that and on nothing else.

All clients that are told the same share one memory of the newest feedback on every row, and a client costs one bit a
row: does it have that? An answer to a query proves that its sender has what came with it. A row that changes is had by
nobody until it is told again, so who was absent keeps what is still true, and gets the rest when it next goes down: the
cache signals and catch-up packages of SCARLET (arXiv:2504.19602) in one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from fedkd.codec import Known, encode_query, remember_feedback, rows_equal
from fedkd.records import Query
from fedkd.softlabels import Array
from fedkd.symbols import to_symbols

EVERYONE = -1
"""Stands for all clients where they are told the same."""

MOST_FRAMES = 32
"""So many different deltas are written in a round; clients beyond share one that leans on what they all have."""


@dataclass(frozen=True, eq=False)
class Audience:
    """Clients that are told the same: what they were ``told``, and which of its rows each ``has``, packed bits (M,).

    ``heard`` is the round of the last query that a client has answered. Equal bits are one object.
    """

    told: Known | None = None
    has: Mapping[int, bytes] = field(default_factory=dict)
    heard: Mapping[int, int] = field(default_factory=dict)

    def tell(self, query: Query, encoding: str, size: int) -> Audience:
        """Return what is known once ``query`` was sent: nobody has the rows that it changes."""
        told = remember_feedback(self.told, query, encoding, size)
        if told is None or self.told is None or self.told.encoding != encoding:
            return Audience(told)
        stays = rows_equal(told.symbols, self.told.symbols)
        return replace(self, told=told, has=_each(self.has, self.has, lambda bits: bits & stays, size))

    def hear(self, clients: Iterable[int], query: Query) -> Audience:
        """Return what is known once ``clients`` have answered ``query``: they have of it what is still the newest."""
        told, back, clients = self.told, query.feedback, sorted(clients)
        if told is None or back is None or not clients:
            return self
        rows = back.indices
        fresh = np.zeros(len(told.seen), bool)
        fresh[rows[rows_equal(to_symbols(back.p, told.encoding), told.symbols[rows])]] = True
        has = _each(self.has, clients, lambda bits: bits | fresh, len(fresh))
        heard = {key: max(self.heard.get(key, 0), query.round) for key in clients}
        return replace(self, has={**self.has, **has}, heard={**self.heard, **heard})

    def forget(self, clients: Collection[int]) -> Audience:
        """Return what is known once it is doubtful that ``clients`` have anything."""
        has = {key: bits for key, bits in self.has.items() if key not in clients}
        return replace(self, has=has, heard={key: round_ for key, round_ in self.heard.items() if key in has})

    def frames(self, query: Query, encoding: str, coding: Collection[str], whole: bytes) -> dict[int, bytes]:
        """Return a delta for each client to which one is shorter than ``whole``, the frame that leans on nothing."""
        told, back = self.told, query.feedback
        if told is None or back is None:
            return {}
        size = len(told.seen)
        bits = {packed: _bits(packed, size)[back.indices] for packed in set(self.has.values())}
        alike: dict[bytes, list[int]] = {}
        for key in sorted(self.has):
            alike.setdefault(bits[self.has[key]].tobytes(), []).append(key)
        groups = sorted(alike.items(), key=lambda group: (-len(group[1]), group[1]))
        if len(groups) > MOST_FRAMES:
            rest = groups[MOST_FRAMES - 1 :]
            common = np.logical_and.reduce([np.frombuffer(mask, bool) for mask, _ in rest])
            groups[MOST_FRAMES - 1 :] = [(common.tobytes(), [key for _, keys in rest for key in keys])]
        frames: dict[int, bytes] = {}
        for mask, keys in groups:
            seen = np.zeros(size, bool)
            seen[back.indices] = np.frombuffer(mask, bool)
            known = replace(told, seen=seen, round=min(self.heard[key] for key in keys))
            frame = encode_query(query, size, encoding, coding=coding, known=known)
            if len(frame) < len(whole):
                frames |= dict.fromkeys(keys, frame)
        return frames

    def to_arrays(self) -> dict[str, Array]:
        """Return all of it as arrays, for a file."""
        if self.told is None:
            return {}
        clients, rows = sorted(self.has), (len(self.told.seen) + 7) // 8
        different = sorted(set(self.has.values()))
        place = {bits: at for at, bits in enumerate(different)}
        return {
            **self.told.to_arrays(),
            "clients": np.array(clients, np.uint64),
            "heard": np.array([self.heard[key] for key in clients], np.int64),
            "which": np.array([place[self.has[key]] for key in clients], np.int64),
            "has": np.frombuffer(b"".join(different), np.uint8).reshape(len(different), rows),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> Audience:
        """Return what :meth:`to_arrays` wrote."""
        clients, different = arrays["clients"].tolist(), [row.tobytes() for row in arrays["has"]]
        has = {key: different[at] for key, at in zip(clients, arrays["which"].tolist(), strict=True)}
        return cls(Known.from_arrays(arrays), has, dict(zip(clients, arrays["heard"].tolist(), strict=True)))


def _each(
    has: Mapping[int, bytes], clients: Iterable[int], change: Callable[[Array], Array], size: int
) -> dict[int, bytes]:
    """Return the bits of ``clients`` after ``change``, which is called once for those who had the same."""
    none, made, same = np.packbits(np.zeros(size, bool)).tobytes(), dict[bytes, bytes](), dict[bytes, bytes]()
    for key in clients:
        before = has.get(key, none)
        if before not in made:
            after = np.packbits(change(_bits(before, size))).tobytes()
            made[before] = same.setdefault(after, after)
    return {key: made[has.get(key, none)] for key in clients}


def _bits(packed: bytes, size: int) -> Array:
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=size).astype(bool)
