"""Queries and releases as frames (:mod:`fedkd.frames`): versioned, checked before anything is allocated, no pickle.

Body of a release: event (1, and 8 for each of its numbers), weights, soft labels, and with flag 2 the range coded rest.

- *Weights* start with a byte: 0 all one, 1 one float32 for all, 2 a float32 each, 3 levels: bits (1), the place of the
  largest on the grid (varint; zigzag: 0, -1, 1, -2 ...), and the levels, packed unless they are range coded. 16 is
  added if all rows that the server knows keep their weights; then these are about the other rows only.
- *Soft labels*: float32 or float16 row by row; ``label``: ceil(log2 C) bits each, packed; ``grid``: b bits for all
  classes of a row but the last, which the sum implies; ``top``: k classes a row, packed, the most probable first, then
  k - 1 float16 a row, for all but the first, which the sum implies. In a delta (flag 1) that is not range coded, these
  are preceded by the rows that differ, of those that the server knows, and are about these and the unknown ones.
- *Range coded*: labels or levels of all rows, then the levels of the weights (:mod:`fedkd.symbols`). Flag 8: the
  teacher that came with the query is part of the context.

Body of a query: the rest of the transfer set's SHA-256 (24), rows M of the transfer set (varint), rows asked, and with
feedback: its rows, in a delta (flag 1) those of them that it leans on and a CRC-32 of what the client was told of them
(4), and soft labels as above. Packed, those rows stay as they are and are left out; range coded, they are the context.
So a delta may lean on less than the client remembers, and many clients can read the same one. Rows are as in
:func:`fedkd.frames.pack_rows`.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from fedkd import events
from fedkd.errors import CodecError, FingerprintError
from fedkd.frames import (
    CODES,
    DELTA,
    NAMES,
    NONE,
    QUERY,
    RANGE,
    RELEASE,
    TAUGHT,
    ZSTD,
    Header,
    Reader,
    pack_bits,
    pack_rows,
    read,
    unpack_bits,
    unpack_rows,
    varint,
    write,
)
from fedkd.frames import MAX_CELLS as MAX_CELLS
from fedkd.frames import MAX_CLASSES as MAX_CLASSES
from fedkd.frames import MAX_ROWS as MAX_ROWS
from fedkd.frames import VERSION as VERSION
from fedkd.frames import peek as peek
from fedkd.range_coder import PER_BYTE, Coder, Decoder, Encoder
from fedkd.records import Query, Release, Teacher
from fedkd.softlabels import Array
from fedkd.symbols import (
    ANY,
    LEAST,
    MOST,
    NOTHING,
    OLD,
    STEPS,
    Context,
    codable,
    code_labels,
    code_levels,
    code_weights,
    pack,
    to_soft_labels,
    to_symbols,
    units_of,
    unpack,
    weight_levels,
    weights_at,
)

ONES, ONE, EACH, LEVELS = range(4)
KEPT = 16
FLAGS = {"delta": DELTA, "range_code": RANGE, "zstd": ZSTD}
IN_FULL = "send it in full"
"""What a client says when it lacks what a query leans on; the server then sends it all."""


@dataclass(frozen=True, eq=False)
class Known:
    """What client and server both remember of a client's releases up to ``round``, the last that arrived.

    It also holds what one end remembers of the feedback up to a round; then ages and weights mean nothing.

    For each row of the transfer set: was it ``seen`` (M,), its ``symbols`` (M,) or (M, C), for how many releases they
    have been these, ``age`` (M,), and its weight ``w`` (M,).
    """

    round: int
    encoding: str
    symbols: Array
    age: Array
    w: Array
    seen: Array

    def to_arrays(self) -> dict[str, Array]:
        """Return all of it as arrays, for a file."""
        about = np.array([self.round, CODES[self.encoding]], np.int64)
        return {"about": about, "symbols": self.symbols, "age": self.age, "w": self.w, "seen": self.seen}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> Known:
        """Return what :meth:`to_arrays` wrote."""
        round_, code = arrays["about"].tolist()
        return cls(round_, NAMES[code], arrays["symbols"], arrays["age"], arrays["w"], arrays["seen"])


def remember(known: Known | None, release: Release, query: Query, size: int) -> Known:
    """Return what is known after ``release`` answered ``query`` on a transfer set of ``size`` rows.

    Rows that it says nothing of stay as they were, unless soft labels are coded in another way from now on.
    """
    symbols, rows = to_symbols(release.p, release.encoding), query.indices
    shape = (size, *symbols.shape[1:])
    if known is None or known.encoding != release.encoding or known.symbols.shape != shape:
        blank, zeros = np.zeros(shape, symbols.dtype), np.zeros(size, np.float32)
        known = Known(0, release.encoding, blank, np.full(size, OLD, np.uint8), zeros, np.zeros(size, bool))
    every, age, w, seen = known.symbols.copy(), known.age.copy(), known.w.copy(), known.seen.copy()
    stays = ~seen[rows] | rows_equal(symbols, every[rows])
    age[rows] = np.where(stays, np.minimum(age[rows] + 1, OLD), 0)
    every[rows], w[rows], seen[rows] = symbols, release.w, True
    return Known(query.round, release.encoding, every, age, w, seen)


def remember_feedback(known: Known | None, query: Query, encoding: str, size: int) -> Known | None:
    """Return what is known after ``query`` has told its feedback, which lies on the grid ``encoding``."""
    back = query.feedback
    if back is None:
        return known
    told = Release(back.p, np.ones(len(back.p), np.float32), encoding=encoding)
    return remember(known, told, replace(query, indices=back.indices), size)


def encode_release(release: Release, query: Query, client: int, *, known: Known | None = None) -> bytes:
    """Return the frame that answers ``query``; ``client`` is a 64-bit key.

    A release marked ``delta`` leaves out what is in ``known``, the client's last release that the server has; without
    one it is sent in full. What is marked ``range_code`` but has no model is sent as it is.
    """
    encoding, classes, coding = release.encoding, query.classes, release.coding
    usable = known is not None and known.encoding == encoding and known.round < query.round
    base = known if usable and "delta" in coding else None
    ranged = "range_code" in coding and codable(encoding)
    context = _context(query, base, taught=ranged)
    symbols = to_symbols(release.p, encoding)
    weights, rest, bits, top = _pack_weights(release, context, ranged=ranged)
    body = events.pack(release.event) + weights
    if ranged:
        coder = Encoder()
        said, _ = _code(coder, symbols, encoding, classes, context)
        if bits:
            levels = weight_levels(release.w[rest], bits, top)[1].tolist()
            _code_weights(coder, levels, rest, bits, top, said, context)
        body += coder.done()
    else:
        if base is not None:
            stays = context.seen & rows_equal(symbols, context.own)
            body += pack_rows(np.flatnonzero(~stays[context.seen]), int(context.seen.sum()))
            symbols = symbols[~stays]
        body += pack(symbols, encoding, classes)
    flags = DELTA * (base is not None) | RANGE * ranged | ZSTD * ("zstd" in coding)
    flags |= TAUGHT * (context.teacher is not None)
    sha, since = bytes.fromhex(query.fingerprint)[:8], base.round if base is not None else 0
    header = Header(RELEASE, CODES[encoding], classes, len(release.p), query.round, client, sha, flags, since)
    return write(header, body, context=context.checksum())


def decode_release(frame: bytes, query: Query, *, known: Known | None = None) -> tuple[int, Release]:
    """Return ``(client, release)`` of an answer to ``query``; raise :class:`CodecError` on anything else.

    ``known`` is what :func:`remember` made of that client's releases; a delta against anything else is refused.
    """
    header = peek(frame)
    rows, classes, who = len(query.indices), query.classes, f"client {header.client}"
    if header.base and (known is None or known.round != header.base):
        raise CodecError(f"{who}: needs the release of round {header.base}, which is not here")
    base = known if header.base else None
    if base is not None and CODES[base.encoding] != header.encoding:
        raise CodecError(f"{who}: a delta of encoding {header.encoding} cannot follow a release in {base.encoding}")
    taught = bool(header.flags & TAUGHT)
    context = _context(query, base, taught=taught) if taught or base is not None else None
    limit = 64 + rows * (4 * classes + 5)
    reader = read(frame, RELEASE, header, limit=limit, context=context.checksum() if context is not None else 0)
    if header.fingerprint != bytes.fromhex(query.fingerprint)[:8]:
        raise FingerprintError(
            f"{who} answered for another transfer set: expected {query.fingerprint[:16]}, "
            f"got {header.fingerprint.hex()}"
        )
    for what, got, expected in (
        ("round", header.round, query.round),
        ("classes", header.classes, classes),
        ("rows", header.rows, rows),
    ):
        if got != expected:
            raise CodecError(f"{who}: frame has {what} {got}, expected {expected}")
    code = reader.byte()
    event = events.unpack(code, reader.take(events.size(code)))
    w, rest, bits, top = _unpack_weights(reader, header, context)
    if header.flags & RANGE:
        coder = _decoder(reader, header)
        context = context or _context(query, None, taught=False)
        said, found = _code(coder, None, header.name, classes, context)
        if len(rest):
            w[rest] = weights_at(_code_weights(coder, ANY, rest, bits, top, said, context), top, bits)
        coder.end()
        symbols = _as_symbols(said, found, classes)
    elif base is not None and context is not None and context.own is not None:
        changed = unpack_rows(reader, int(context.seen.sum()))
        fresh = ~context.seen
        fresh[np.flatnonzero(context.seen)[changed]] = True
        symbols = context.own.copy()
        symbols[fresh] = unpack(reader, int(fresh.sum()), header.name, classes)
    else:
        symbols = unpack(reader, rows, header.name, classes)
    reader.end()
    # Class by class in memory, as aggregation wants them: turned while others still compute, not when all are there.
    p = np.asfortranarray(to_soft_labels(symbols, header.name, classes))
    coding = frozenset(name for name, flag in FLAGS.items() if header.flags & flag)
    return header.client, Release(p, w, event, header.name, coding, bits)


def encode_query(
    query: Query,
    size: int,
    encoding: str = "float16",
    *,
    coding: Collection[str] = (),
    known: Known | None = None,
) -> bytes:
    """Return the frame of ``query`` on a transfer set of ``size`` rows; feedback must lie on the grid ``encoding``.

    Of ``coding``, ``range_code`` (for labels and levels), ``zstd`` and ``delta`` apply. A delta leans on those rows of
    ``known``, the feedback up to a round before, that are marked as seen there: all its readers must have them.
    """
    sha = bytes.fromhex(query.fingerprint)
    body = sha[8:] + varint(size) + pack_rows(query.indices, size)
    rows, code, flags, since = 0, NONE, ZSTD * ("zstd" in coding), 0
    if query.feedback is not None:
        back = query.feedback
        rows, code = len(back.p), CODES[encoding]
        symbols = to_symbols(back.p, encoding)
        body += pack_rows(back.indices, size)
        ranged = "range_code" in coding and codable(encoding)
        lean, own = np.zeros(rows, bool), None
        if "delta" in coding and known is not None and known.encoding == encoding and known.round < query.round:
            own = known.symbols[back.indices]
            lean = known.seen[back.indices] & (True if ranged else rows_equal(symbols, own))
        if own is not None and lean.any():
            flags, since = flags | DELTA, known.round if known is not None else 0
            body += pack_rows(np.flatnonzero(lean), rows) + _checksum(own[lean])
        if ranged:
            flags |= RANGE
            coder = Encoder()
            _code(coder, symbols, encoding, query.classes, Context(lean, own))
            body += coder.done()
        else:
            body += pack(symbols[~lean], encoding, query.classes)
    return write(Header(QUERY, code, query.classes, rows, query.round, 0, sha[:8], flags, since), body)


def decode_query(
    frame: bytes, fingerprint: str, size: int, *, classes: int | None = None, known: Known | None = None
) -> Query:
    """Return the query of a frame; raise :class:`FingerprintError` unless it is about our transfer set.

    ``classes``, where it is known, is checked before feedback is unpacked. ``known`` is what
    :func:`remember_feedback` made of all queries so far; a delta that leans on anything else is refused, and the error
    ends with ``IN_FULL``.
    """
    header = peek(frame)
    limit = 64 + size + size * 4 * (classes or header.classes)
    reader = read(frame, QUERY, header, limit=limit)
    theirs = (header.fingerprint + reader.take(24)).hex()
    if theirs != fingerprint:
        raise FingerprintError(
            f"the server's transfer set is {theirs[:16]}, ours is {fingerprint[:16]}: "
            "both sides must hold the same samples in the same order"
        )
    if classes not in (None, header.classes):
        raise CodecError(f"the server asks about {header.classes} classes, this client knows {classes}")
    rows = reader.varint()
    if rows != size:
        raise CodecError(f"query is about {rows} rows, the transfer set has {size}")
    indices = unpack_rows(reader, size)
    feedback = None
    if header.encoding != NONE:
        where = unpack_rows(reader, size)
        if len(where) != header.rows:
            raise CodecError(f"feedback names {len(where)} rows and carries {header.rows}")
        lean, own = _leaned_on(reader, header, where, size, known)
        if header.flags & RANGE:
            coder = _decoder(reader, header)
            said, found = _code(coder, None, header.name, header.classes, Context(lean, own))
            coder.end()
            symbols = _as_symbols(said, found, header.classes)
        else:
            symbols = unpack(reader, len(where) - int(lean.sum()), header.name, header.classes)
            if own is not None:
                own[~lean] = symbols
                symbols = own
        feedback = Teacher(to_soft_labels(symbols, header.name, header.classes), where)
    elif header.flags & DELTA:
        raise CodecError("a query without feedback leans on nothing")
    reader.end()
    return Query(header.round, indices, header.classes, fingerprint, feedback)


def _leaned_on(
    reader: Reader, header: Header, where: Array, size: int, known: Known | None
) -> tuple[Array, Array | None]:
    """Return which rows (n,) of ``where`` a query leans on, and what we were told of all of them, if it does."""
    if not header.flags & DELTA:
        return np.zeros(len(where), bool), None
    lean = np.zeros(len(where), bool)
    lean[unpack_rows(reader, len(where))] = True
    checksum = reader.take(4)
    shape = (size,) if header.name == "label" else (size, header.classes)
    if known is None or known.round < header.base or (known.encoding, known.symbols.shape) != (header.name, shape):
        raise CodecError(f"feedback leans on that of round {header.base}, which is not here; {IN_FULL}")
    own = known.symbols[where]
    if not known.seen[where[lean]].all() or _checksum(own[lean]) != checksum:
        raise CodecError(f"feedback leans on something else than what is remembered here; {IN_FULL}")
    return lean, own


def _checksum(symbols: Array) -> bytes:
    return zlib.crc32(np.ascontiguousarray(symbols, "<f4").tobytes()).to_bytes(4, "little")


def _context(query: Query, base: Known | None, *, taught: bool) -> Context:
    """Return what both ends know of the asked rows: the release ``base``, and the teacher if it is used."""
    rows, back = query.indices, query.feedback
    seen, own, age, w, teacher = np.zeros(len(rows), bool), None, None, None, None
    if base is not None:
        width = (query.classes,) if base.symbols.ndim == 2 else ()
        if base.symbols.shape[1:] != width or rows.max(initial=-1) >= len(base.symbols):
            raise CodecError(
                f"round {base.round} was remembered for {base.symbols.shape} symbols: too few for the query"
            )
        seen, own, age, w = base.seen[rows], base.symbols[rows], base.age[rows], base.w[rows]
    if taught and back is not None and len(back.indices):
        place = np.minimum(np.searchsorted(back.indices, rows), len(back.indices) - 1)
        told = back.indices[place] == rows
        if told.any():
            teacher = np.where(told[:, None], back.p[place], np.float32(0))
    return Context(seen, own, age, w, teacher)


def rows_equal(symbols: Array, others: Array | None) -> Array:
    """Return for which rows (n,) the symbols are the same, to the bit: 0.0 is not -0.0."""
    if others is None:
        return np.zeros(len(symbols), bool)
    if symbols.dtype == others.dtype == np.float32:
        symbols, others = symbols.view(np.uint32), others.view(np.uint32)
    return np.asarray((symbols == others).all(axis=tuple(range(1, symbols.ndim))))


def _pack_weights(release: Release, context: Context, *, ranged: bool) -> tuple[bytes, Array, int, int]:
    """Return the bytes of the weights, and the rows, bits and top of those that the range coded rest is to hold."""
    none = np.zeros(0, np.int64)
    w, rows, form = release.w.astype("<f4"), np.arange(len(release.w)), 0
    if context.w is not None and context.seen.any() and (context.w == w)[context.seen].all():
        rows, form = np.flatnonzero(~context.seen), KEPT
    w, bits = w[rows], release.weight_bits
    if (w == 1).all():
        return bytes([form + ONES]), none, 0, 0
    if (w == w[:1]).all():
        return bytes([form + ONE]) + w[:1].tobytes(), none, 0, 0
    if not bits:
        return bytes([form + EACH]) + w.tobytes(), none, 0, 0
    top, levels = weight_levels(w, bits)
    head = bytes([form + LEVELS, bits]) + varint(2 * top if top >= 0 else -2 * top - 1)
    return (head, rows, bits, top) if ranged else (head + pack_bits(levels, bits), none, 0, 0)


def _unpack_weights(reader: Reader, header: Header, context: Context | None) -> tuple[Array, Array, int, int]:
    """Return the weights (n,), and the rows, bits and top of those that are range coded and still to come."""
    form = reader.byte()
    kept, form = form >= KEPT, form % KEPT if form < 2 * KEPT else form
    if form > LEVELS or (kept and (context is None or context.w is None)):
        raise CodecError(f"unknown form of weights {form}")
    new = ~context.seen if kept and context is not None else None
    count = header.rows if new is None else int(new.sum())
    given, bits, top = np.ones(1, np.float32), 0, 0
    if form == LEVELS:
        bits, top = reader.byte(), reader.varint()
        top = -(top + 1 >> 1) if top & 1 else top >> 1
        if bits not in STEPS or not LEAST <= top * STEPS[bits] <= MOST:
            raise CodecError(f"unknown grid of weights: {bits} bits below {top}")
        if not header.flags & RANGE:
            given = weights_at(unpack_bits(reader, count, bits), top, bits)
    elif form != ONES:
        given = np.frombuffer(reader.take(4 * (1 if form == ONE else count)), "<f4")
    if not (np.isfinite(given).all() and (given >= 0).all()):
        raise CodecError(f"client {header.client}: weights must be finite and not negative")
    rows = np.arange(count) if new is None else np.flatnonzero(new)
    w = np.zeros(header.rows, np.float32) if context is None or context.w is None else context.w.copy()
    w[rows] = given
    later = rows if form == LEVELS and header.flags & RANGE else rows[:0]
    return w, later, bits, top


def _decoder(reader: Reader, header: Header) -> Decoder:
    """Return a decoder of the rest of the body, if that can hold as many rows as the header says."""
    if not codable(header.name):
        raise CodecError(f"encoding {header.name} is never range coded")
    data = reader.rest()
    if header.classes > 1 and header.rows > PER_BYTE * len(data):
        raise CodecError(f"frame ends early: {len(data)} bytes cannot hold {header.rows} rows")
    return Decoder(data)


def _code(
    coder: Coder, symbols: Array | None, encoding: str, classes: int, context: Context
) -> tuple[list[int], list[dict[int, int]] | None]:
    """Code the symbols of all rows; return the class that each names, and on a grid the levels that are not zero."""
    if encoding == "label":
        return code_labels(coder, ANY if symbols is None else symbols.tolist(), classes, context), None
    levels = code_levels(coder, symbols, units_of(encoding), classes, context)
    return [max(row, key=lambda c: row[c]) for row in levels], levels


def _code_weights(
    coder: Coder, levels: Iterable[int], rows: Array, bits: int, top: int, said: list[int], context: Context
) -> list[int]:
    """Code the weight levels of ``rows``; ``said`` (n,) are the classes that the client names."""
    own = np.full(len(rows), NOTHING)
    if context.w is not None:
        own = np.where(context.seen[rows], weight_levels(context.w[rows], bits, top)[1], NOTHING)
    return code_weights(coder, levels, bits, own.tolist(), np.array(said, np.int64)[rows].tolist())


def _as_symbols(said: list[int], levels: list[dict[int, int]] | None, classes: int) -> Array:
    if levels is None:
        return np.array(said, np.uint16)
    symbols = np.zeros((len(levels), classes), np.uint8)
    for row, some in enumerate(levels):
        symbols[row, list(some)] = list(some.values())
    return symbols
