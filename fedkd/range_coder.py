"""An adaptive binary range coder: decisions that can be foreseen cost next to nothing, to the bit the same everywhere.

Range coding after Martin (1979), with the byte-wise carry of LZMA; chances are counted while coding (as in CABAC, which
CFD uses, arXiv:2012.00632), so that no table travels. All arithmetic is on integers: both ends stay in step on every
platform. Of the libraries, constriction comes nearest, but it has no wheel for Linux on aarch64, wants chances as
floats, and leaves counting and contexts to Python, where the time goes.

Each decision names its contexts from the general to the special. One that has seen little leans on the one before it:
p_i = (ones_i + S p_{i-1}) / (seen_i + S), p_0 = 1/2, which learns within a few decisions where labels are few.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol

import numpy as np

from fedkd.errors import CodecError
from fedkd.softlabels import Array

ONE = 1 << 16
"""Chances are counted in this many parts."""

SURE = 16
"""No chance is nearer to 0 or 1 than this many parts, so a decision costs at least 0.00035 bit."""

PER_BYTE = 23_000
"""A byte holds fewer decisions than this, 8 bits at the least cost: it bounds what a short frame can claim."""

LIMIT = 1023
"""Counts are halved beyond this many decisions, so that what was long ago is forgotten."""

STRENGTH = 2
"""How many decisions a context's predecessor is worth."""

TOP, FULL = 1 << 24, 1 << 32


class Coder(Protocol):
    """What a model of the data sees of either end: the same calls write and read it, so they cannot differ."""

    def bit(self, value: int, *contexts: Hashable) -> int:
        """Code ``value``, 0 or 1, and return it; a decoder does not look at ``value`` and returns what was written."""
        ...


class Encoder:
    """Collects decisions into bytes."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._counts: dict[Hashable, list[int]] = {}
        self._out = bytearray()
        self._low, self._range = 0, FULL - 1

    def bit(self, value: int, *contexts: Hashable) -> int:
        """Write ``value``, 0 or 1, and return it."""
        chance, seen = _chance(self._counts, contexts)
        bound = self._range * chance >> 16
        if value:
            self._range = bound
        else:
            self._low += bound
            self._range -= bound
        if self._low >= FULL:
            self._low -= FULL
            self._carry()
        while self._range < TOP:
            self._out.append(self._low >> 24)
            self._low = (self._low << 8) & (FULL - 1)
            self._range <<= 8
        _learn(seen, value)
        return value

    def done(self) -> bytes:
        """Return all that was written; nothing may follow."""
        top = -(-self._low // TOP)  # the range is at least TOP, so one byte names a number within it
        if top > 255:
            self._carry()
        return bytes(self._out) + bytes([top & 255])

    def _carry(self) -> None:
        at = len(self._out) - 1
        while self._out[at] == 255:
            self._out[at] = 0
            at -= 1
        self._out[at] += 1


class Decoder:
    """Reads decisions back; bytes that run out, or are left, raise :class:`CodecError`."""

    def __init__(self, data: bytes) -> None:
        """Start at the front of ``data``."""
        self._counts: dict[Hashable, list[int]] = {}
        self._data, self._at = data, 4
        self._code, self._range = int.from_bytes(data[:4].ljust(4, b"\0"), "big"), FULL - 1

    def bit(self, value: int, *contexts: Hashable) -> int:
        """Return the next decision; ``value`` is not looked at."""
        chance, seen = _chance(self._counts, contexts)
        bound = self._range * chance >> 16
        value = int(self._code < bound)
        if value:
            self._range = bound
        else:
            self._code -= bound
            self._range -= bound
        while self._range < TOP:
            if self._at > len(self._data) + 2:  # an encoder has written a byte for each shift, and one at the end
                raise CodecError(f"range coded data end early, after {len(self._data)} bytes")
            following = self._data[self._at] if self._at < len(self._data) else 0
            self._code = (self._code << 8) | following
            self._range <<= 8
            self._at += 1
        _learn(seen, value)
        return value

    def end(self) -> None:
        """Raise :class:`CodecError` unless all bytes were needed."""
        if len(self._data) != self._at - 3:
            raise CodecError(f"range coded data have {len(self._data)} bytes, expected {self._at - 3}")


def _chance(counts: dict[Hashable, list[int]], contexts: tuple[Hashable, ...]) -> tuple[int, list[list[int]]]:
    """Return the chance of a one, in parts of ``ONE``, and the counts to teach."""
    chance, seen = ONE >> 1, []
    for context in contexts:
        pair = counts.get(context)
        if pair is None:
            pair = counts[context] = [0, 0]
        else:
            chance = ((pair[1] << 16) + STRENGTH * chance) // (pair[0] + pair[1] + STRENGTH)
        seen.append(pair)
    return min(max(chance, SURE), ONE - SURE), seen


def _learn(seen: list[list[int]], value: int) -> None:
    for pair in seen:
        pair[value] += 1
        if pair[0] + pair[1] > LIMIT:
            pair[0] >>= 1
            pair[1] >>= 1


def number(coder: Coder, value: int, bits: int, most: int, *contexts: Hashable) -> int:
    """Code ``value`` in 0..most < 2^bits, highest bit first; bits that ``most`` leaves no choice cost nothing."""
    got, node = 0, 1
    for place in range(bits - 1, -1, -1):
        high = got | (1 << place)
        bit = coder.bit((value >> place) & 1, *[(context, node) for context in contexts]) if high <= most else 0
        got |= bit << place
        node = 2 * node + bit
    return got


def encode(symbols: Array, contexts: Array, alphabet: int, n_contexts: int) -> bytes:
    """Return ``symbols`` (n,) in 0..alphabet-1 as bytes; both ends know ``contexts`` (n,) in 0..n_contexts-1."""
    for what, values, count in (("symbols", symbols, alphabet), ("contexts", contexts, n_contexts)):
        _check(what, values, count)
    coder = Encoder()
    _walk(coder, symbols, contexts, alphabet)
    return coder.done()


def decode(data: bytes, contexts: Array, alphabet: int, n_contexts: int) -> Array:
    """Return the symbols (n,) that :func:`encode` wrote given the same ``contexts``."""
    _check("contexts", contexts, n_contexts)
    coder = Decoder(data)
    found = _walk(coder, np.broadcast_to(0, len(contexts)), contexts, alphabet)
    coder.end()
    return np.array(found, np.int64)


def _walk(coder: Coder, symbols: Array, contexts: Array, alphabet: int) -> list[int]:
    bits = max(1, (alphabet - 1).bit_length())
    pairs = zip(symbols.tolist(), contexts.tolist(), strict=True)
    return [number(coder, symbol, bits, alphabet - 1, "any", context) for symbol, context in pairs]


def _check(what: str, values: Array, count: int) -> None:
    if len(values) and (values.min() < 0 or values.max() >= count):
        raise CodecError(f"{what} must be in 0..{count - 1}, got {values.min()}..{values.max()}")
