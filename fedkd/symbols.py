"""Soft labels and weights as small integers, packed as they are or range coded against what both ends know already.

A *symbol* is what a row of soft labels is on its grid: a class (n,) for ``label``, units of each class (n, C) for
``grid``, and the floats themselves (n, C) for all else. A model (``code_...``) is one function for both directions:
with an encoder it writes what it is given, with a decoder it returns what was written and looks at nothing else.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fedkd.errors import CodecError
from fedkd.frames import Reader, pack_bits, unpack_bits
from fedkd.range_coder import Coder, number
from fedkd.softlabels import Array, one_hot

STEPS = {1: 32, 2: 32, 3: 16, 4: 8, 5: 8, 6: 4, 7: 2, 8: 1}
"""Bits of a weight to the step of its grid in eighths of an octave: a range of 14 octaves or more before fine steps."""

EIGHTHS = np.array([math.sqrt(math.sqrt(math.sqrt(2**i))) for i in range(8)])
"""2^(i/8) from square roots, which every platform rounds correctly; a power need not be."""

CUTS = (1 / 16, 1 / 4, 1 / 2, 3 / 4, 15 / 16)
"""How sure the teacher is, in six kinds."""

LEAST, MOST = -1008, 1016
"""The ends of the grid in eighths of an octave, 2^-126 and 2^127: beyond, single precision would lose weights."""

OLD = 3
"""What has not changed for so many releases is not told apart: labels that change are those that changed before."""

WALK = 16
"""So many classes of a row are asked one by one; where there are more, naming one takes fewer decisions."""

NOTHING = -1
"""Stands for a class or a level that is not known."""


@dataclass(frozen=True, eq=False)
class Context:
    """What both ends know of the n asked rows: the client's last release, where ``seen`` (n,), and the teacher.

    ``own`` are symbols, ``age`` (n,) for how many releases they have been these, up to ``OLD``, and ``w`` (n,) weights;
    ``teacher`` (n, C) is 0 throughout a row that it says nothing of.
    """

    seen: Array
    own: Array | None = None
    age: Array | None = None
    w: Array | None = None
    teacher: Array | None = None

    def checksum(self) -> int:
        """Return a CRC-32 of all of it, 0 if that is nothing."""
        parts: list[bytes] = []
        if self.own is not None and self.age is not None and self.w is not None:
            kept = [np.ascontiguousarray(array[self.seen], "<f4") for array in (self.own, self.age, self.w)]
            parts = [self.seen.astype(np.uint8).tobytes(), *(array.tobytes() for array in kept)]
        if self.teacher is not None:
            parts.append(np.ascontiguousarray(self.teacher, "<f4").tobytes())
        return zlib.crc32(b"".join(parts)) if parts else 0

    def own_classes(self) -> Array:
        """Return the class (n,) that the client said last, ``NOTHING`` where it did not."""
        if self.own is None:
            return np.full(len(self.seen), NOTHING, np.int64)
        classes = np.asarray(self.own if self.own.ndim == 1 else self.own.argmax(axis=1), np.int64)
        return np.asarray(np.where(self.seen, classes, NOTHING))

    def ages(self) -> list[int]:
        """Return for how many releases (n,) the client has said the same, 0 to ``OLD``."""
        return [0] * len(self.seen) if self.age is None else list(map(int, self.age))

    def teacher_classes(self) -> tuple[Array, Array]:
        """Return the teacher's class (n,), ``NOTHING`` where it has none, and how sure it is of it, in 0..5."""
        if self.teacher is None:
            return np.full(len(self.seen), NOTHING), np.zeros(len(self.seen), np.int64)
        most = self.teacher.max(axis=1, initial=0)
        classes = np.asarray(np.where(most > 0, self.teacher.argmax(axis=1), NOTHING))
        return classes, np.asarray(np.searchsorted(CUTS, most, side="right"))


def label_bits(classes: int) -> int:
    """Return the bits that one of ``classes`` classes takes."""
    return max(1, (classes - 1).bit_length())


def units_of(encoding: str) -> int:
    """Return the units that the levels of a row sum to on the grid ``encoding``."""
    return int(2 ** int(encoding[4:]) - 1)


def codable(encoding: str) -> bool:
    """Return whether there is a model for the symbols of ``encoding``."""
    return encoding == "label" or encoding.startswith("grid")


def to_symbols(p: Array, encoding: str) -> Array:
    """Return the symbols of soft labels ``p`` (n, C) that lie on the grid ``encoding``."""
    if encoding == "label":
        return np.asarray(p.argmax(axis=1), np.uint16)
    if encoding.startswith("grid"):
        return np.asarray(np.rint(p * units_of(encoding)), np.uint8)
    return p.astype(np.float32)


def to_soft_labels(symbols: Array, encoding: str, classes: int) -> Array:
    """Return the soft labels (n, C) that these symbols stand for: the inverse of :func:`to_symbols`."""
    if encoding == "label":
        return one_hot(symbols, classes)
    if encoding.startswith("grid"):
        return (symbols / np.float32(units_of(encoding))).astype(np.float32)
    return symbols.astype(np.float32)


# Packed as they are.


def pack(symbols: Array, encoding: str, classes: int) -> bytes:
    """Return the symbols as bytes, row by row; ``grid`` leaves out the last class, ``top`` the first value."""
    if encoding == "label":
        return pack_bits(symbols, label_bits(classes))
    if encoding.startswith("grid"):
        return pack_bits(symbols[:, :-1], int(encoding[4:]))
    if encoding.startswith("top"):
        kept = np.argsort(-symbols, axis=1, kind="stable")[:, : int(encoding[3:])]
        values = np.take_along_axis(symbols, kept, axis=1)[:, 1:]
        return pack_bits(kept, label_bits(classes)) + np.ascontiguousarray(values, "<f2").tobytes()
    return np.ascontiguousarray(symbols, {"float32": "<f4", "float16": "<f2"}[encoding]).tobytes()


def unpack(reader: Reader, rows: int, encoding: str, classes: int) -> Array:
    """Return the symbols of ``rows`` rows; whatever is not a distribution raises :class:`CodecError`."""
    if encoding == "label":
        return _known_classes(unpack_bits(reader, rows, label_bits(classes)), classes).astype(np.uint16)
    if encoding.startswith("grid"):
        levels = unpack_bits(reader, rows * (classes - 1), int(encoding[4:])).reshape(rows, classes - 1)
        last = units_of(encoding) - levels.sum(axis=1, keepdims=True, dtype=np.int64)
        if rows and last.min() < 0:
            raise CodecError("soft labels sum to more than one")
        return np.concatenate([levels.astype(np.uint8), last.astype(np.uint8)], axis=1)
    if encoding.startswith("top"):
        return _unpack_top(reader, rows, min(int(encoding[3:]), classes), classes)
    kind, width = ("<f4", 4) if encoding == "float32" else ("<f2", 2)
    p = _floats(reader, (rows, classes), kind)
    # Clients may be off by 1e-3. Half precision rounds by a share of 2^-11, tiny entries by at most 2^-25.
    slack = 1.001e-3 + (2.0**-10 + classes * 2.0**-25 if width == 2 else 0.0)
    if rows and not (p.min() >= 0 and np.abs(p.sum(axis=1, dtype=np.float64) - 1).max() <= slack):
        raise CodecError(NO_DISTRIBUTIONS)
    return p


NO_DISTRIBUTIONS = "soft labels are not distributions: NaN, a negative entry or a sum that is not 1"


def _unpack_top(reader: Reader, rows: int, k: int, classes: int) -> Array:
    kept = _known_classes(unpack_bits(reader, rows * k, label_bits(classes)), classes).reshape(rows, k)
    rest = _floats(reader, (rows, k - 1), "<f2").astype(np.float64)
    first = 1 - rest.sum(axis=1, keepdims=True)  # exact: halves are multiples of 2^-24
    if rows and not (rest.min(initial=0) >= 0 and first.min() >= 0):
        raise CodecError(NO_DISTRIBUTIONS)
    if (np.diff(np.sort(kept.astype(np.int64), axis=1), axis=1) == 0).any():
        raise CodecError(f"the {k} classes of a row must differ")
    p = np.zeros((rows, classes), np.float32)
    np.put_along_axis(p, kept.astype(np.int64), np.concatenate([first, rest], axis=1).astype(np.float32), axis=1)
    return p


def _floats(reader: Reader, shape: tuple[int, int], kind: str) -> Array:
    raw = np.frombuffer(reader.take(shape[0] * shape[1] * np.dtype(kind).itemsize), kind).reshape(shape)
    with np.errstate(invalid="ignore"):  # a signaling NaN; it is refused below
        p = raw.astype(np.float32)
    if not np.isfinite(p).all():
        raise CodecError(NO_DISTRIBUTIONS)
    return p


def _known_classes(labels: Array, classes: int) -> Array:
    if labels.size and labels.max() >= classes:
        raise CodecError(f"label {labels.max()} is not one of {classes} classes")
    return labels


# Range coded.


def code_labels(coder: Coder, labels: Iterable[int], classes: int, context: Context) -> list[int]:
    """Code classes (n,): is it what the client said last? what the teacher said? else the class itself.

    Nine labels in ten stay from one round to the next, and the teacher foretells most of the others.
    """
    bits, got = label_bits(classes), []
    tops, sures = context.teacher_classes()
    known_to_both = context.own_classes().tolist(), context.ages(), tops.tolist(), sures.tolist()
    for label, own, age, top, sure in zip(labels, *known_to_both, strict=False):  # ``ANY`` is endless
        known = own != NOTHING
        if known and coder.bit(label == own, ("own", age, own == top), ("own", age, own, top)):
            got.append(own)
        elif top not in (NOTHING, own) and coder.bit(
            label == top, ("top", known), ("top", known, top), ("top", known, top, sure)
        ):
            got.append(top)
        else:
            special = [("class", own), ("class", own, top)] if known or top != NOTHING else []
            got.append(number(coder, label, bits, classes - 1, "class", *special))
    return got


def code_levels(coder: Coder, levels: Array | None, units: int, classes: int, context: Context) -> list[dict[int, int]]:
    """Code levels (n, C) that sum to ``units`` in each row; return by class those that are not zero.

    Is the row what the client said last? Else ``WALK`` classes are told, the likeliest first: does it have any units,
    and how many of those left? Nothing is told when none are left. Units beyond are told by naming their classes.
    """
    wide, deep, got = label_bits(classes), units.bit_length(), []
    tops, _ = context.teacher_classes()
    known_to_both = zip(context.own_classes().tolist(), context.ages(), tops.tolist(), strict=True)
    for row, (own, age, top) in enumerate(known_to_both):
        said = {} if levels is None else _largest_first(levels[row])
        before = {} if own == NOTHING or context.own is None else _largest_first(context.own[row])
        if before and coder.bit(said == before, ("own", age, own == top), ("own", age, own, top)):
            got.append(before)
            continue
        found, left = dict[int, int](), units
        for place, c in enumerate(_likeliest(context, row, units, classes, own=own != NOTHING, top=top != NOTHING)):
            level = said.get(c, 0)
            if place < classes - 1:
                kind = (min(place, 3), left == units, before.get(c, 0) if before else NOTHING)
                if not coder.bit(level > 0, ("some", kind[:2]), ("some", kind), ("some", kind, c)):
                    continue
                level = 1 + number(coder, level - 1, deep, left - 1, ("level", kind[:2]), ("level", kind))
            else:
                level = left
            found[c] = level
            left -= level
            if not left:
                break
        others = iter([(c, level) for c, level in said.items() if c not in found])
        while left:
            c, level = next(others, (0, 0))
            c = number(coder, c, wide, classes - 1, "class", ("class", own, top))
            if c in found:
                raise CodecError(f"class {c} is named twice in row {row}")
            level = 1 + number(coder, level - 1, deep, left - 1, "rest", ("rest", left))
            found[c] = level
            left -= level
        got.append(found)
    return got


def _largest_first(levels: Array) -> dict[int, int]:
    """Return the levels of a row (C,) that are not zero by class, the largest first, ties by class."""
    some = np.flatnonzero(levels)
    order = some[np.argsort(-levels[some].astype(np.int64), kind="stable")]
    return dict(zip(order.tolist(), levels[order].tolist(), strict=True))


def _likeliest(context: Context, row: int, units: int, classes: int, *, own: bool, top: bool) -> Iterator[int]:
    """Yield up to ``WALK`` classes, by what client and teacher said of the row last if they did; else all if few."""
    likely = np.zeros(classes)
    if own and context.own is not None:
        likely += context.own[row] / units
    if top and context.teacher is not None:
        likely += context.teacher[row]
    for _ in range(min(classes, WALK) if own or top or classes <= WALK else 0):
        c = int(likely.argmax())
        yield c
        likely[c] = -1


def code_weights(coder: Coder, levels: Iterable[int], bits: int, own: list[int], classes: list[int]) -> list[int]:
    """Code weight levels (n,): is it what it was? else the level, which depends on the class that the client names."""
    got = []
    for level, before, label in zip(levels, own, classes, strict=False):
        if before != NOTHING and coder.bit(level == before, "weight as before"):
            got.append(before)
        else:
            got.append(number(coder, level, bits, 2**bits - 1, "weight", ("weight", label)))
    return got


ANY = itertools.repeat(0)
"""What a decoder gives in place of values."""


# Weights.


def weight_levels(w: Array, bits: int, top: int | None = None) -> tuple[int, Array]:
    """Return the place of the largest weight on the grid of ``bits`` bits, or ``top``, and the level (n,) of each.

    The grid has the powers of 2^(step / 8), so it is common to all clients; a release sees a window of it that ends at
    its largest weight. Level 0 is weight 0, the highest level the largest weight; what is below the window is level 1.
    """
    step, most = STEPS[bits], 2**bits - 1
    some = w > 0
    exact = np.log2(w, where=some, out=np.zeros(len(w)), dtype=np.float64)
    place = np.clip(np.rint(8 / step * exact), LEAST // step, MOST // step).astype(np.int64)
    if top is None:
        top = max(int(place[some].max(initial=LEAST // step)), most - 1 + LEAST // step)
    return top, np.where(some, np.clip(most - (top - place), 1, most), 0)


def weights_at(levels: ArrayLike, top: int, bits: int) -> Array:
    """Return the weights (n,) float32 of ``levels`` below the place ``top``."""
    levels = np.asarray(levels, np.int64)
    eighths = (levels - (2**bits - 1) + top) * STEPS[bits]
    w = np.where(levels, np.ldexp(EIGHTHS[eighths & 7], eighths >> 3), 0.0)
    return np.asarray(w, np.float32)
