"""What every frame has: a header that is checked first, a reader that cannot be led past the end, packed integers.

All numbers are little-endian. A frame is a header of 22 to 45 bytes and a body:

====== ===== ==========================================================================================
offset bytes meaning
====== ===== ==========================================================================================
0      4     ``b"FKD"`` and the version, 2
4      1     kind in the low half: 1 query, 2 release, 3 to 6 secure aggregation; flags in the high half: 1 delta,
             2 range coded, 4 zstd, 8 taught
5      1     encoding of soft labels: 0 float32, 1 float16, 2 label, 16 + b grid of b bits, 32 + k top k, 255 none
6      8     first bytes of the transfer set's SHA-256
14     4     CRC-32 of all other bytes, XOR that of the context
18     1-3   classes C
..     1-4   rows n of the soft labels
..     1-5   round, from 1
..     1-10  key of the client (0 in a query)
..     0-5   the round that a delta starts from, if there is one
====== ===== ==========================================================================================

From offset 18 on numbers are varints: seven bits a byte, the lowest first, the high bit set on all but the last. With
flag 4 the body is one zstd frame. The *context* is what both ends must know to read a delta or range coded labels; its
checksum keeps two ends that remember different things from misunderstanding each other.
"""

from __future__ import annotations

import importlib
import io
import zlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedkd.errors import CodecError, ExtraError
from fedkd.softlabels import Array

VERSION = 2
QUERY, RELEASE = 1, 2
KEYS, SHARES, MASKED, UNMASK = 3, 4, 5, 6
DELTA, RANGE, ZSTD, TAUGHT = 1, 2, 4, 8
NONE = 255
MAX_ROWS = 10_000_000
MAX_CLASSES = 65_535
MAX_CELLS = 1 << 30
"""Rows times classes: a label takes few bits on the wire and C floats in memory."""
MAX_TOP = 64
CODES = {
    "float32": 0,
    "float16": 1,
    "label": 2,
    **{f"grid{b}": 16 + b for b in range(1, 9)},
    **{f"top{k}": 32 + k for k in range(1, MAX_TOP + 1)},
}
NAMES = {code: name for name, code in CODES.items()}
FIXED = 18
WINDOW = 1 << 23
"""The most that a zstd frame may make us remember while we read it."""


@dataclass(frozen=True)
class Header:
    """What comes before the body; ``base`` is the round that a delta starts from, 0 for none."""

    kind: int
    encoding: int
    classes: int
    rows: int
    round: int
    client: int
    fingerprint: bytes
    flags: int = 0
    base: int = 0

    @property
    def name(self) -> str:
        """The encoding as a release calls it."""
        return NAMES[self.encoding]


def write(header: Header, body: bytes, *, context: int = 0) -> bytes:
    """Return the frame; ``context`` is the checksum of what its reader must know besides."""
    if header.flags & ZSTD:
        zstandard = find_zstd()
        small = zstandard.ZstdCompressor(level=10, write_content_size=False).compress(body)
        if len(small) < len(body):
            body = small
        else:
            header = replace(header, flags=header.flags & ~ZSTD)
    numbers = [header.classes, header.rows, header.round, header.client, *([header.base] if header.base else [])]
    _check(header)  # what nobody would read is not sent
    start = b"FKD" + bytes([VERSION, header.kind | header.flags << 4, header.encoding]) + header.fingerprint
    rest = b"".join(varint(number) for number in numbers) + body
    return start + (zlib.crc32(rest, zlib.crc32(start)) ^ context).to_bytes(4, "little") + rest


def peek(frame: bytes) -> Header:
    """Return the header of a frame whose version and length are right, without reading its body."""
    return _open(frame)[0]


def read(frame: bytes, kind: int, header: Header, *, limit: int, context: int = 0) -> Reader:
    """Return the body behind ``header``, unharmed and of ``kind``; a compressed one may unpack to ``limit`` bytes."""
    if header.kind != kind:
        raise CodecError(f"frame is of kind {header.kind}, expected {kind}")
    sum_ = zlib.crc32(frame[FIXED:], zlib.crc32(frame[: FIXED - 4])) ^ context
    if sum_.to_bytes(4, "little") != frame[FIXED - 4 : FIXED]:
        leans = ", or its sender remembers something else" if header.flags & (DELTA | TAUGHT) else ""
        raise CodecError(f"frame is damaged: its checksum does not match{leans}")
    if header.encoding not in NAMES and not (kind != RELEASE and header.encoding == NONE):
        raise CodecError(f"unknown encoding {header.encoding}")
    reader = _open(frame)[1]
    return Reader(_expand(reader.rest(), limit)) if header.flags & ZSTD else reader


def _open(frame: bytes) -> tuple[Header, Reader]:
    if len(frame) < FIXED:
        raise CodecError(f"frame of {len(frame)} bytes is shorter than its header of {FIXED} and more")
    if frame[:3] != b"FKD":
        raise CodecError("not a fedkd frame")
    if frame[3] != VERSION:
        raise CodecError(f"frame has version {frame[3]}, this fedkd reads {VERSION}: both sides need the same fedkd")
    reader = Reader(frame, FIXED)
    flags = frame[4] >> 4
    classes, rows, round_, client = (reader.varint() for _ in range(4))
    base = reader.varint() if flags & DELTA else 0
    header = Header(frame[4] & 15, frame[5], classes, rows, round_, client, frame[6:14], flags, base)
    _check(header)
    return header, reader


def _check(header: Header) -> None:
    classes, rows, round_ = header.classes, header.rows, header.round
    if not (
        1 <= classes <= MAX_CLASSES
        and 0 <= rows <= MAX_ROWS
        and rows * classes <= MAX_CELLS
        and 1 <= round_ < 1 << 32
        and bool(header.base) == bool(header.flags & DELTA)
        and 0 <= header.base < round_
        and 0 <= header.client < 1 << 64
    ):
        since = f" on round {header.base}" if header.base else ""
        raise CodecError(f"impossible frame: {classes} classes, {rows} rows, round {round_}{since}")


class Reader:
    """Takes bytes from the front and refuses to read past the end, so no length is believed before it is seen."""

    def __init__(self, body: bytes, at: int = 0) -> None:
        """Start at offset ``at``."""
        self.body, self.at = body, at

    def take(self, count: int) -> bytes:
        """Return the next ``count`` bytes."""
        if count > len(self.body) - self.at:
            raise CodecError(f"frame ends early: {count} bytes expected, {len(self.body) - self.at} left")
        self.at += count
        return self.body[self.at - count : self.at]

    def byte(self) -> int:
        """Return the next byte."""
        return self.take(1)[0]

    def varint(self) -> int:
        """Return the next number of at most 64 bits, written as short as can be."""
        value = 0
        for place in range(10):
            byte = self.byte()
            value |= (byte & 127) << (7 * place)
            if byte < 128:
                if (place and not byte) or value >= 1 << 64:
                    break
                return value
        raise CodecError("a number in the frame is too long")

    def rest(self) -> bytes:
        """Return all that is left."""
        return self.take(len(self.body) - self.at)

    def end(self) -> None:
        """Raise :class:`CodecError` if anything is left."""
        if self.at != len(self.body):
            raise CodecError(f"frame has {len(self.body) - self.at} bytes too many")


def varint(number: int) -> bytes:
    """Return ``number`` >= 0 in seven bits a byte, the lowest first."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes(out) + bytes([number])


def pack_bits(values: Array, bits: int) -> bytes:
    """Write unsigned integers, ``bits`` each, most significant bit first, padded with zeros to a whole byte."""
    flat = values.reshape(-1).astype(np.uint32)
    planes = np.empty((flat.size, bits), np.uint8)
    for place in range(bits):
        planes[:, place] = (flat >> (bits - 1 - place)) & 1
    return np.packbits(planes).tobytes()


def unpack_bits(reader: Reader, count: int, bits: int) -> Array:
    """Return ``count`` unsigned integers of ``bits`` each."""
    raw = np.frombuffer(reader.take((count * bits + 7) // 8), np.uint8)
    planes = np.unpackbits(raw, count=count * bits).reshape(count, bits)
    values = np.zeros(count, np.uint32)
    for place in range(bits):
        values <<= 1
        values |= planes[:, place]
    return values


def pack_rows(indices: Array, size: int) -> bytes:
    """Write which of ``size`` rows are meant, ``indices`` sorted, in the shortest of three forms.

    0: all. 1: a bitmap. 2: few of many in about 2 + log2(size / n) bits each (Elias and Fano, 1974): how many (varint),
    the low bits of each, then a unary code of the high bits. How many low bits follows from how many rows.
    """
    count = len(indices)
    if count == size:
        return b"\0"
    low = _low_bits(count, size)
    sparse = b"\2" + varint(count)
    if count:
        marks = np.zeros(_unary(count, size, low), np.uint8)
        marks[(indices >> low) + np.arange(count)] = 1
        lows = pack_bits(indices & ((1 << low) - 1), low) if low else b""
        sparse += lows + np.packbits(marks).tobytes()
    if len(sparse) < 1 + (size + 7) // 8:
        return sparse
    marks = np.zeros(size, np.uint8)
    marks[indices] = 1
    return b"\1" + np.packbits(marks).tobytes()


def unpack_rows(reader: Reader, size: int) -> Array:
    """Return the sorted rows of ``size`` that :func:`pack_rows` wrote."""
    form = reader.byte()
    if form == 0:
        return np.arange(size)
    if form == 1:
        raw = np.frombuffer(reader.take((size + 7) // 8), np.uint8)
        return np.flatnonzero(np.unpackbits(raw, count=size))
    if form != 2:
        raise CodecError(f"unknown form of rows {form}")
    count = reader.varint()
    if not count:
        return np.arange(0)
    if count >= size:
        raise CodecError(f"{count} rows were named one by one, of {size}")
    low = _low_bits(count, size)
    lows = unpack_bits(reader, count, low) if low else np.zeros(count, np.int64)
    length = _unary(count, size, low)
    raw = np.frombuffer(reader.take((length + 7) // 8), np.uint8)
    places = np.flatnonzero(np.unpackbits(raw, count=length))
    rows = (places[:count] - np.arange(len(places[:count]))) << low
    if len(places) == count:
        rows |= lows.astype(np.int64)
    if len(places) != count or (np.diff(rows) <= 0).any() or rows[-1] >= size:
        raise CodecError(f"rows must be {count} different ones of {size}, in order")
    return rows


def _low_bits(count: int, size: int) -> int:
    return max(0, (size // max(count, 1)).bit_length() - 1)


def _unary(count: int, size: int, low: int) -> int:
    """Return the bits of the unary part: a one for each row, a zero for each step of the high bits."""
    return count + ((size - 1) >> low) + 1


def find_zstd() -> Any:
    """Return the module that compresses, or say how to install it."""
    try:
        return importlib.import_module("zstandard")
    except ImportError:
        raise ExtraError("release mechanism 'zstd'", "zstandard", "light") from None


def _expand(data: bytes, limit: int) -> bytes:
    """Return what a zstd frame holds, piece by piece, so that no size it claims is believed."""
    zstandard = find_zstd()
    pieces = zstandard.ZstdDecompressor(max_window_size=WINDOW).stream_reader(io.BytesIO(data))
    body = bytearray()
    try:
        while piece := pieces.read(1 << 16):
            body += piece
            if len(body) > limit:
                raise CodecError(f"compressed frame holds more than {limit} bytes")
    except zstandard.ZstdError as error:
        raise CodecError(f"compressed frame cannot be read: {error}") from None
    return bytes(body)
