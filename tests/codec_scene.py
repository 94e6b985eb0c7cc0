"""Queries, releases and frames that the tests of the codec share."""

import hashlib
import importlib.util
import struct
import zlib

import numpy as np

from fedkd.codec import (
    decode_release,
    encode_release,
    remember,
)
from fedkd.frames import varint
from fedkd.records import Query, Release, Teacher
from fedkd.release import prepare

SHA, OTHER = hashlib.sha256(b"ours").hexdigest(), hashlib.sha256(b"theirs").hexdigest()
PLAIN = ["float32", "float16", "argmax", "top_k(k=2)", *(f"quantize(bits={b})" for b in range(1, 9))]
ZSTD = importlib.util.find_spec("zstandard") is not None
CHAINS = [
    *PLAIN,
    "argmax | range_code",
    "quantize(bits=1) | range_code",
    "quantize(bits=3) | range_code",
    "range_code | quantize(bits=8)",
    "argmax | delta | range_code",
    *(["float16 | zstd", "top_k(k=3) | zstd | delta"] if ZSTD else []),
]


def query(rows=5, classes=3, *, round_=2, feedback=None):
    return Query(round_, np.arange(rows), classes, SHA, feedback)


def release(chain="float32", rows=5, classes=3, w=None, seed=0):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(classes), rows).astype(np.float32)
    w = np.ones(rows, np.float32) if w is None else np.asarray(w, np.float32)
    return prepare(chain, Release(p, w), rng)


def framed(body, *, kind=2, flags=0, code=0, classes=3, rows=5, round_=2, client=7, base=0, sha=SHA, context=0):
    """Build a frame as its table in the module's docstring says, with the right checksum, whatever it holds."""
    start = b"FKD\x02" + bytes([kind | flags << 4, code]) + bytes.fromhex(sha)[:8]
    numbers = [classes, rows, round_, client, *([base] if base else [])]
    rest = b"".join(varint(number) for number in numbers) + body
    return start + struct.pack("<I", zlib.crc32(start + rest) ^ context) + rest


# What both ends remember.


def skewed(rows=1000, classes=10, *, seed=0, rounds=3, change=0.1):
    """Yield what a client says of fixed rows in each round, of which few labels change, and what a teacher says."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(classes, size=rows)
    said = np.where(rng.random(rows) < 0.4, truth, rng.choice([1, 2, 5], rows) % classes)
    for _ in range(rounds):
        p = np.full((rows, classes), 0.05 / classes) + rng.random((rows, classes)) * 0.02
        p[np.arange(rows), said] += 0.8
        teacher = np.full((rows, classes), 0.02) + 0.9 * np.eye(classes)[truth]
        yield (p / p.sum(axis=1, keepdims=True)).astype(np.float32), (teacher / teacher.sum(axis=1)[:, None])
        said = np.where(rng.random(rows) < change, truth, said)


def conversation(chain, *, w=None, taught=True, rows=1000, classes=10, size=None, asked=None, **skew):
    """Yield (query, release, frame, decoded) of several rounds in which both ends remember what arrived."""
    theirs = ours = None
    for number, (p, teacher) in enumerate(skewed(size or rows, classes, **skew), start=1):
        which = np.arange(rows) if asked is None else asked[number - 1]
        back = Teacher(teacher.astype(np.float16).astype(np.float32), np.arange(size or rows))
        q = Query(number, which, classes, SHA, back if taught and number > 1 else None)
        each = np.ones(len(which), np.float32) if w is None else w[which].astype(np.float32)
        sent = prepare(chain, Release(p[which], each), np.random.default_rng(number))
        frame = encode_release(sent, q, 3, known=theirs)
        _, got = decode_release(frame, q, known=ours)
        assert got.p.tobytes() == sent.p.tobytes()
        assert got.w.tobytes() == sent.w.tobytes()
        yield q, sent, frame, got
        theirs, ours = remember(theirs, sent, q, size or rows), remember(ours, got, q, size or rows)


EXPERTISE = 2.0 ** np.random.default_rng(1).normal(-20, 6, 2000)


def floats(*rows):
    return np.array(rows, "<f4").tobytes()
