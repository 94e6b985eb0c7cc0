"""The ballots of each round, kept: ``ballots/round-0001.safetensors`` in the run directory, compact and exact.

What the server received is all that its half of a round depends on, so with these files that half can be run again
without asking anybody (:mod:`fedkd.replay`). They hold what clients released and nothing more; treat them alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedkd import events
from fedkd.codec import MAX_CELLS, MAX_CLASSES, MAX_ROWS
from fedkd.errors import CheckpointError
from fedkd.files import load_arrays, save_arrays
from fedkd.records import Query, Release
from fedkd.select import Selection
from fedkd.softlabels import Array, one_hot

KIND = "ballots 1"
"""What a file is and the version of its form; it stands in the header."""

_UNITS = {f"grid{bits}": np.float32(2**bits - 1) for bits in range(1, 9)}


@dataclass(frozen=True, eq=False)
class Recorded:
    """One round as the server saw it: the query without feedback, the selected rows, and the releases by client."""

    query: Query
    selection: Selection
    releases: dict[int, Release]


def path_of(folder: Path, round_: int) -> Path:
    """Return where the ballots of round ``round_`` lie."""
    return folder / f"round-{round_:04d}.safetensors"


def save_round(
    folder: Path, query: Query, releases: Mapping[int, Release], *, selection: Selection | None = None
) -> Path:
    """Write the ballots of a round, whole or not at all; :func:`load_round` gives the same bits back.

    Without ``selection`` the rows asked are those learned from. Labels take one byte (or two), levels of a grid one
    byte a class, half precision two; what would not come back exactly is kept as it is.
    """
    chosen = selection or Selection(query.indices, query.indices, query.indices[:0])
    arrays = _pack_rows("ask", query.indices) | _pack_rows("learn", chosen.learn) | _pack_rows("forget", chosen.forget)
    clients: dict[str, Any] = {}
    for key, release in releases.items():
        form, arrays[f"{key}.p"] = pack_soft_labels(release)
        arrays[f"{key}.w"] = _pack_weights(release.w)
        event = [events.to_code(release.event), asdict(release.event)]
        clients[str(key)] = {"form": form, "encoding": release.encoding, "event": event}
    header = {
        "kind": KIND,
        "round": query.round,
        "classes": query.classes,
        "fingerprint": query.fingerprint,
        "rows": {"ask": len(query.indices), "learn": len(chosen.learn), "forget": len(chosen.forget)},
        "clients": clients,
    }
    path = path_of(folder, query.round)
    try:
        save_arrays(path, arrays, header)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path}: {error.strerror}. Make room and resume; record = false keeps no ballots"
        ) from error
    return path


def load_round(path: Path) -> Recorded:
    """Return what :func:`save_round` wrote, bit for bit; raise :class:`CheckpointError` on anything else."""
    arrays, header = load_arrays(path)
    if not isinstance(header, dict) or header.get("kind") != KIND:
        found = header.get("kind") if isinstance(header, dict) else None
        raise CheckpointError(f"{path} holds no ballots of this fedkd: expected {KIND!r}, got {str(found)[:40]!r}")
    try:
        return _read(arrays, header)
    except (KeyError, ValueError, TypeError, IndexError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{path} is damaged: {' '.join(str(error).split())[:200]}") from None


def _read(arrays: Mapping[str, Array], header: Mapping[str, Any]) -> Recorded:
    classes, counts = header["classes"], header["rows"]
    if not (type(classes) is int and 1 <= classes <= MAX_CLASSES and type(header["round"]) is int):
        raise ValueError(f"expected a round and a number of classes, got {header['round']!r} and {classes!r}")
    ask, learn, forget = (_unpack_rows(name, arrays, counts[name]) for name in ("ask", "learn", "forget"))
    if len(ask) * classes > MAX_CELLS:
        raise ValueError(f"{len(ask)} rows of {classes} classes are more than any frame holds")
    releases = {}
    for key, about in header["clients"].items():
        p = unpack_soft_labels(about["form"], arrays[f"{key}.p"], classes)
        if p.shape != (len(ask), classes):
            raise ValueError(f"ballots of client {key} must have shape {(len(ask), classes)}, got {p.shape}")
        w = np.broadcast_to(arrays[f"{key}.w"], (len(ask),)).copy()
        code, fields = about["event"]
        event = events.from_fields(code, fields)  # what is unknown fails closed
        releases[int(key)] = Release(np.asfortranarray(p), w, event, str(about["encoding"]))
    query = Query(header["round"], ask, classes, str(header["fingerprint"]))
    return Recorded(query, Selection(ask, learn, forget), releases)


def pack_soft_labels(release: Release) -> tuple[str, Array]:
    """Return the form that the soft labels are kept in, and them in it: the compact one if it gives every bit back."""
    p, encoding = release.p, release.encoding
    form = encoding if encoding in ("label", *_UNITS) else "float16"  # a late answer forgot its encoding
    if p.dtype == np.float32:
        with np.errstate(all="ignore"):  # NaN or what is too large; it does not come back, and then it is kept whole
            kept = _to_form(form, p)
        if _same_bits(_from_form(form, kept, p.shape[1]), p):
            return form, kept
    return "whole", p


def unpack_soft_labels(form: str, kept: Array, classes: int) -> Array:
    """Return soft labels (n, C) as they were before :func:`pack_soft_labels`; raise ValueError on what is none."""
    if form not in ("whole", "float16", "label", *_UNITS):
        raise ValueError(f"unknown form of soft labels {str(form)[:20]!r}")
    if form == "label" and len(kept) and int(kept.max()) >= classes:
        raise ValueError(f"label {kept.max()} is not one of {classes} classes")
    return _from_form(form, kept, classes)


def _to_form(form: str, p: Array) -> Array:
    if form == "label":
        return np.asarray(p.argmax(axis=1).astype(np.uint8 if p.shape[1] <= 256 else np.uint16))
    return np.asarray(np.rint(p * _UNITS[form]).astype(np.uint8) if form in _UNITS else p.astype(np.float16))


def _from_form(form: str, kept: Array, classes: int) -> Array:
    if form == "label":
        return one_hot(kept, classes)
    if form in _UNITS:
        return (kept / _UNITS[form]).astype(np.float32)
    return np.asarray(kept.astype(np.float32) if form == "float16" else kept)


def _pack_weights(w: Array) -> Array:
    """Return one weight where all are equal, else all."""
    return w[:1] if len(w) and _same_bits(np.full_like(w, w[0]), w) else w


def _pack_rows(name: str, rows: Array) -> dict[str, Array]:
    """Return the sorted ``rows`` as a bitmap; nothing where they are the first ones without a gap."""
    if np.array_equal(rows, np.arange(len(rows))):
        return {}
    marks = np.zeros(int(rows[-1]) + 1, bool)
    marks[rows] = True
    return {name: np.packbits(marks)}


def _unpack_rows(name: str, arrays: Mapping[str, Array], count: int) -> Array:
    if not (type(count) is int and 0 <= count <= MAX_ROWS):
        raise ValueError(f"impossible number of rows {count!r}")
    rows = np.flatnonzero(np.unpackbits(arrays[name])) if name in arrays else np.arange(count)
    if len(rows) != count:
        raise ValueError(f"{name!r} names {len(rows)} rows, expected {count}")
    return rows


def _same_bits(a: Array, b: Array) -> bool:
    """Say whether two arrays are equal to the last bit; NaN equals itself, and -0 is not 0."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
