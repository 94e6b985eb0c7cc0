"""Frames: what travels, byte by byte. Versioned, checked before anything is allocated, and never a pickle.

All numbers are little-endian. A frame is a header of 36 bytes and a body:

====== ===== ==========================================================================================
offset bytes meaning
====== ===== ==========================================================================================
0      4     ``b"FKD"`` and the version, 1
4      1     kind: 1 query, 2 release
5      1     encoding of soft labels: 0 float32, 1 float16, 2 label, 16 + b grid of b bits, 255 none
6      2     classes C
8      4     rows n of the soft labels
12     4     round, from 1
16     8     key of the client (0 in a query)
24     8     first bytes of the transfer set's SHA-256
32     4     CRC-32 of the 32 bytes before and of the body
====== ===== ==========================================================================================

Body of a release: event (1), weights (1: 0 all one, 1 one float32 for all, 2 a float32 each), the weights, soft labels.
Body of a query: transfer set's SHA-256 (32), rows M of the transfer set (4), rows asked (1: 0 all, 1 bitmap), the
bitmap, and with feedback: rows (1, as above), the bitmap, soft labels.
Soft labels: float32 or float16 row by row; ``label``: ceil(log2 C) bits each, packed; ``grid``: b bits for all classes
of a row but the last, which the sum implies.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np

from fedkd import events
from fedkd.errors import CodecError, FingerprintError
from fedkd.records import Query, Release, Teacher
from fedkd.softlabels import Array, one_hot

VERSION = 1
HEADER = struct.Struct("<3sBBBHIIQ8sI")
QUERY, RELEASE = 1, 2
NONE = 255
MAX_ROWS = 10_000_000
MAX_CLASSES = 65_535
MAX_CELLS = 1 << 30
"""Rows times classes: a label takes few bits on the wire and C floats in memory."""

_CODES = {"float32": 0, "float16": 1, "label": 2, **{f"grid{b}": 16 + b for b in range(1, 9)}}
_NAMES = {code: name for name, code in _CODES.items()}


@dataclass(frozen=True)
class Header:
    """The fixed part of a frame."""

    kind: int
    encoding: int
    classes: int
    rows: int
    round: int
    client: int
    fingerprint: bytes


def encode_release(release: Release, query: Query, client: int) -> bytes:
    """Return the frame that answers ``query``; ``client`` is a 64-bit key."""
    w = release.w.astype("<f4")
    if (w == 1).all():
        weights = b"\x00"
    elif (w == w[:1]).all():
        weights = b"\x01" + w[:1].tobytes()
    else:
        weights = b"\x02" + w.tobytes()
    body = bytes([events.to_code(release.event)]) + weights + _pack(release.p, release.encoding)
    code = _CODES[release.encoding]
    return _frame(RELEASE, code, query.classes, len(release.p), query.round, client, query.fingerprint, body)


def decode_release(frame: bytes, query: Query) -> tuple[int, Release]:
    """Return ``(client, release)`` of an answer to ``query``; raise :class:`CodecError` on anything else."""
    header, body = _open(frame, RELEASE)
    if header.fingerprint != bytes.fromhex(query.fingerprint)[:8]:
        raise FingerprintError(
            f"client {header.client} answered for another transfer set: expected {query.fingerprint[:16]}, "
            f"got {header.fingerprint.hex()}"
        )
    for what, got, expected in (
        ("round", header.round, query.round),
        ("classes", header.classes, query.classes),
        ("rows", header.rows, len(query.indices)),
    ):
        if got != expected:
            raise CodecError(f"client {header.client}: frame has {what} {got}, expected {expected}")
    reader = _Reader(body)
    event = events.from_code(reader.byte())
    mode = reader.byte()
    if mode not in (0, 1, 2):
        raise CodecError(f"unknown form of weights {mode}")
    count = (0, 1, header.rows)[mode]
    w = np.frombuffer(reader.take(4 * count), "<f4") if count else np.ones(1, np.float32)
    w = np.broadcast_to(w, (header.rows,)).astype(np.float32)
    if not (np.isfinite(w).all() and (w >= 0).all()):
        raise CodecError(f"client {header.client}: weights must be finite and not negative")
    p = _unpack(reader, header)
    reader.end()
    # Class by class in memory, as aggregation wants them: turned while others still compute, not when all are there.
    return header.client, Release(np.asfortranarray(p), w, event, _NAMES[header.encoding])


def encode_query(query: Query, size: int, encoding: str = "float16") -> bytes:
    """Return the frame of ``query`` on a transfer set of ``size`` rows; feedback must lie on the grid ``encoding``."""
    body = bytes.fromhex(query.fingerprint) + struct.pack("<I", size) + _pack_rows(query.indices, size)
    rows, code = 0, NONE
    if query.feedback is not None:
        rows, code = len(query.feedback.p), _CODES[encoding]
        body += _pack_rows(query.feedback.indices, size) + _pack(query.feedback.p, encoding)
    return _frame(QUERY, code, query.classes, rows, query.round, 0, query.fingerprint, body)


def decode_query(frame: bytes, fingerprint: str, size: int, *, classes: int | None = None) -> Query:
    """Return the query of a frame; raise :class:`FingerprintError` unless it is about our transfer set.

    ``classes``, where it is known, is checked before feedback is unpacked.
    """
    header, body = _open(frame, QUERY)
    reader = _Reader(body)
    theirs = reader.take(32).hex()
    if theirs != fingerprint:
        raise FingerprintError(
            f"the server's transfer set is {theirs[:16]}, ours is {fingerprint[:16]}: "
            "both sides must hold the same samples in the same order"
        )
    if classes not in (None, header.classes):
        raise CodecError(f"the server asks about {header.classes} classes, this client knows {classes}")
    (rows,) = struct.unpack("<I", reader.take(4))
    if rows != size:
        raise CodecError(f"query is about {rows} rows, the transfer set has {size}")
    indices = _unpack_rows(reader, size)
    feedback = None
    if header.encoding != NONE:
        where = _unpack_rows(reader, size)
        if len(where) != header.rows:
            raise CodecError(f"feedback names {len(where)} rows and carries {header.rows}")
        feedback = Teacher(_unpack(reader, header), where)
    reader.end()
    return Query(header.round, indices, header.classes, fingerprint, feedback)


def peek(frame: bytes) -> Header:
    """Return the header of a frame whose version and length are right, without reading its body."""
    if len(frame) < HEADER.size:
        raise CodecError(f"frame of {len(frame)} bytes is shorter than its header of {HEADER.size}")
    magic, version, kind, encoding, classes, rows, round_, client, fingerprint, _ = HEADER.unpack_from(frame)
    if magic != b"FKD":
        raise CodecError("not a fedkd frame")
    if version != VERSION:
        raise CodecError(f"frame has version {version}, this fedkd reads {VERSION}: both sides need the same fedkd")
    if not (1 <= classes <= MAX_CLASSES and rows <= MAX_ROWS and rows * classes <= MAX_CELLS and round_ >= 1):
        raise CodecError(f"impossible frame: {classes} classes, {rows} rows, round {round_}")
    return Header(kind, encoding, classes, rows, round_, client, fingerprint)


def _frame(kind: int, code: int, classes: int, rows: int, round_: int, client: int, sha: str, body: bytes) -> bytes:
    prefix = bytes.fromhex(sha)[:8]
    try:
        head = HEADER.pack(b"FKD", VERSION, kind, code, classes, rows, round_, client, prefix, 0)[:-4]
    except struct.error as error:
        what = f"{classes} classes, {rows} rows, round {round_} and client {client}"
        raise CodecError(f"no frame can hold {what}: {error}") from None
    frame = head + struct.pack("<I", zlib.crc32(body, zlib.crc32(head))) + body
    peek(frame)  # what nobody would read is not sent
    return frame


def _open(frame: bytes, kind: int) -> tuple[Header, bytes]:
    header = peek(frame)
    if header.kind != kind:
        raise CodecError(f"frame is of kind {header.kind}, expected {kind}")
    body = frame[HEADER.size :]
    if zlib.crc32(body, zlib.crc32(frame[: HEADER.size - 4])) != HEADER.unpack_from(frame)[-1]:
        raise CodecError("frame is damaged: its checksum does not match")
    if header.encoding not in _NAMES and not (kind == QUERY and header.encoding == NONE):
        raise CodecError(f"unknown encoding {header.encoding}")
    return header, body


class _Reader:
    """Takes bytes from the front and refuses to read past the end, so no length is believed before it is seen."""

    def __init__(self, body: bytes) -> None:
        self.body, self.at = body, 0

    def take(self, count: int) -> bytes:
        if count > len(self.body) - self.at:
            raise CodecError(f"frame ends early: {count} bytes expected, {len(self.body) - self.at} left")
        self.at += count
        return self.body[self.at - count : self.at]

    def byte(self) -> int:
        return self.take(1)[0]

    def end(self) -> None:
        if self.at != len(self.body):
            raise CodecError(f"frame has {len(self.body) - self.at} bytes too many")


def label_bits(classes: int) -> int:
    """Return the bits that one of ``classes`` classes takes."""
    return max(1, (classes - 1).bit_length())


def _pack_bits(values: Array, bits: int) -> bytes:
    """Write unsigned integers, ``bits`` each, most significant bit first, padded with zeros to a whole byte."""
    flat = values.reshape(-1).astype(np.uint32)
    planes = np.empty((flat.size, bits), np.uint8)
    for place in range(bits):
        planes[:, place] = (flat >> (bits - 1 - place)) & 1
    return np.packbits(planes).tobytes()


def _unpack_bits(reader: _Reader, count: int, bits: int) -> Array:
    raw = np.frombuffer(reader.take((count * bits + 7) // 8), np.uint8)
    planes = np.unpackbits(raw, count=count * bits).reshape(count, bits)
    values = np.zeros(count, np.uint32)
    for place in range(bits):
        values <<= 1
        values |= planes[:, place]
    return values


def _pack(p: Array, encoding: str) -> bytes:
    if encoding == "label":
        return _pack_bits(p.argmax(axis=1), label_bits(p.shape[1]))
    if encoding.startswith("grid"):
        bits = int(encoding[4:])
        return _pack_bits(np.rint(p[:, :-1] * (2**bits - 1)), bits)
    return np.ascontiguousarray(p, {"float32": "<f4", "float16": "<f2"}[encoding]).tobytes()


def _unpack(reader: _Reader, header: Header) -> Array:
    """Return soft labels (rows, classes); whatever is not a distribution raises :class:`CodecError`."""
    n, classes, encoding = header.rows, header.classes, _NAMES[header.encoding]
    if encoding == "label":
        labels = _unpack_bits(reader, n, label_bits(classes))
        if n and labels.max() >= classes:
            raise CodecError(f"label {labels.max()} is not one of {classes} classes")
        return one_hot(labels, classes)
    if encoding.startswith("grid"):
        bits = int(encoding[4:])
        units = 2**bits - 1
        levels = _unpack_bits(reader, n * (classes - 1), bits).reshape(n, classes - 1).astype(np.int64)
        last = units - levels.sum(axis=1, keepdims=True)
        if n and last.min() < 0:
            raise CodecError("soft labels sum to more than one")
        return (np.concatenate([levels, last], axis=1) / np.float32(units)).astype(np.float32)
    kind, width = ("<f4", 4) if encoding == "float32" else ("<f2", 2)
    with np.errstate(invalid="ignore"):  # a signaling NaN; it is refused below
        p = np.frombuffer(reader.take(n * classes * width), kind).reshape(n, classes).astype(np.float32)
    # Clients may be off by 1e-3. Half precision rounds by a share of 2^-11, tiny entries by at most 2^-25.
    slack = 1.001e-3 + (2.0**-10 + classes * 2.0**-25 if width == 2 else 0.0)
    if n and not (np.isfinite(p).all() and p.min() >= 0 and np.abs(p.sum(axis=1, dtype=np.float64) - 1).max() <= slack):
        raise CodecError("soft labels are not distributions: NaN, a negative entry or a sum that is not 1")
    return p


def _pack_rows(indices: Array, size: int) -> bytes:
    if len(indices) == size:
        return b"\x00"
    marks = np.zeros(size, np.uint8)
    marks[indices] = 1
    return b"\x01" + np.packbits(marks).tobytes()


def _unpack_rows(reader: _Reader, size: int) -> Array:
    mode = reader.byte()
    if mode == 0:
        return np.arange(size)
    if mode != 1:
        raise CodecError(f"unknown form of rows {mode}")
    raw = np.frombuffer(reader.take((size + 7) // 8), np.uint8)
    return np.flatnonzero(np.unpackbits(raw, count=size))
