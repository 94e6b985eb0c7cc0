"""Frames: nothing is lost on the way, old bytes stay readable, and hostile ones raise one kind of error."""

import hashlib
import importlib.util
import json
import struct
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.codec import (
    IN_FULL,
    Known,
    decode_query,
    decode_release,
    encode_query,
    encode_release,
    peek,
    remember,
    remember_feedback,
)
from fedkd.errors import CodecError, ExtraError, FingerprintError
from fedkd.events import Gaussian, NonPrivate, NoOp, SampledGaussian
from fedkd.frames import pack_rows, varint
from fedkd.records import Query, Release, Teacher
from fedkd.release import prepare
from fedkd.symbols import label_bits

GOLDEN = json.loads((Path(__file__).parent / "vectors" / "frames_v2.json").read_text(encoding="utf-8"))
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
FAST = settings(max_examples=200, deadline=None, derandomize=True, database=None)


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


# What goes in comes out.


@pytest.mark.parametrize("classes", [2, 3, 10, 17])
@pytest.mark.parametrize("rows", [0, 1, 5, 64])
@pytest.mark.parametrize("chain", CHAINS)
def test_soft_labels_come_back_bit_for_bit(chain, rows, classes):
    sent = release(chain, rows, classes)
    client, got = decode_release(encode_release(sent, query(rows, classes), 2**64 - 1), query(rows, classes))
    assert client == 2**64 - 1
    assert got.p.dtype == np.float32
    assert got.p.tobytes() == sent.p.tobytes()
    assert got.encoding == sent.encoding


@pytest.mark.parametrize("chain", [*PLAIN, "argmax | range_code", "quantize(bits=8) | range_code"])
def test_a_thousand_classes_come_back_bit_for_bit(chain):
    sent = release(chain, 20, 1000)
    got = decode_release(encode_release(sent, query(20, 1000), 0), query(20, 1000))[1]
    assert (got.p == sent.p).all()


@pytest.mark.parametrize("w", [[1] * 5, [0] * 5, [0.25] * 5, [1, 0, 0.5, 1e-30, 3e38], [1e-45] * 5])
def test_weights_come_back_bit_for_bit(w):
    sent = release(w=w)
    got = decode_release(encode_release(sent, query(), 0), query())[1].w
    assert got.dtype == np.float32
    assert (got == sent.w).all()


@pytest.mark.parametrize("event", [NonPrivate(), NoOp(), Gaussian(3.7), SampledGaussian(0.1, 1.5, 20)])
def test_the_event_comes_back(event):
    sent = Release(release().p, np.ones(5, np.float32), event)
    assert decode_release(encode_release(sent, query(), 0), query())[1].event == event


def test_an_event_that_we_do_not_know_costs_everything():
    frame = framed(b"\xfe\x00" + release().p.tobytes())
    assert decode_release(frame, query())[1].event == NonPrivate()


def test_what_was_decoded_can_be_written_to():
    got = decode_release(encode_release(release(w=[0.5] * 5), query(), 0), query())[1]
    got.p[0, 0] = got.w[0] = 0.0


@pytest.mark.parametrize("indices", [[], [0], [10], [0, 3, 9], list(range(10)), list(range(11))])
def test_asked_rows_come_back(indices):
    asked = Query(4, np.array(indices, np.int64), 3, SHA)
    got = decode_query(encode_query(asked, 11), SHA, 11)
    assert got.indices.tolist() == indices
    assert (got.round, got.classes, got.fingerprint, got.feedback) == (4, 3, SHA, None)


@pytest.mark.parametrize("where", [[], [4], [0, 7, 10], list(range(11))])
@pytest.mark.parametrize("chain", CHAINS)
def test_feedback_comes_back_bit_for_bit(chain, where):
    sent = release(chain, len(where))
    asked = Query(1, np.array([1, 2]), 3, SHA, Teacher(sent.p, np.array(where, np.int64)))
    got = decode_query(encode_query(asked, 11, sent.encoding, coding=sent.coding), SHA, 11, classes=3)
    assert got.indices.tolist() == [1, 2]
    assert got.feedback.indices.tolist() == where
    assert got.feedback.p.tobytes() == sent.p.tobytes()


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
DELTAS = ["float16 | delta", "top_k(k=2) | delta", "argmax | delta", "quantize(bits=3) | delta", "argmax | range_code"]
DELTAS += ["argmax | delta | range_code", "quantize(bits=3) | delta | range_code"]


@pytest.mark.parametrize("taught", [True, False])
@pytest.mark.parametrize("chain", [*DELTAS, *(f"weights(bits=4) | {chain}" for chain in DELTAS)])
def test_a_release_on_top_of_another_comes_back_bit_for_bit(chain, taught):
    rng = np.random.default_rng(0)
    asked = [np.sort(rng.permutation(90)[:n]) for n in (40, 60, 0, 90, 90)]
    frames = [step[2] for step in conversation(chain, w=EXPERTISE, taught=taught, size=90, asked=asked, rounds=5)]
    flags = [frame[4] >> 4 for frame in frames]
    assert [flag & 1 for flag in flags] == [0] + [int("delta" in chain)] * 4
    assert [flag & 2 for flag in flags] == [2 * ("range_code" in chain)] * 5


def test_rows_that_were_never_sent_are_sent_in_full_and_the_others_stay_as_they_were():
    first = Query(1, np.array([0, 2]), 3, SHA)
    sent = Release(np.eye(3, dtype=np.float32)[[1, 2]], np.array([1, 2], np.float32), encoding="label")
    known = remember(None, sent, first, 4)
    assert known.seen.tolist() == [True, False, True, False]
    assert (known.symbols[known.seen].tolist(), known.w[known.seen].tolist()) == ([1, 2], [1, 2])
    again = Query(5, np.array([1, 2]), 3, SHA)
    later = remember(
        known, Release(np.eye(3, dtype=np.float32)[[0, 0]], np.ones(2, np.float32), encoding="label"), again, 4
    )
    assert later.round == 5
    assert later.symbols[:3].tolist() == [1, 0, 0]
    assert later.w[:3].tolist() == [1, 1, 1]
    assert later.age.tolist() == [3, 3, 0, 3]  # rows that never changed are as old as can be
    assert known.symbols.tolist() == [1, 0, 2, 0]  # and it was not written to


def test_what_is_remembered_survives_a_file():
    *_, (q, _, _, got) = conversation("quantize(bits=2) | delta", rows=20)
    known = remember(None, got, q, 20)
    again = Known.from_arrays({name: array.copy() for name, array in known.to_arrays().items()})
    assert (again.round, again.encoding) == (3, "grid2")
    for name in ("symbols", "age", "w", "seen"):
        assert (getattr(again, name) == getattr(known, name)).all()


def test_a_delta_without_its_base_says_which_round_it_needs():
    (q1, one, _, _), (q2, two, frame, _), _ = conversation("argmax | delta", rows=50)
    for known in (None, remember(remember(None, one, q1, 50), two, q2, 50)):
        with pytest.raises(CodecError, match="client 3: needs the release of round 1, which is not here"):
            decode_release(frame, q2, known=known)


@pytest.mark.parametrize("chain", ["argmax | delta", "argmax | delta | range_code"])
def test_two_ends_that_remember_different_things_do_not_misunderstand_each_other(chain):
    (q1, one, _, _), (q2, _, frame, _), _ = conversation(chain, rows=50, w=EXPERTISE[:50])
    ours = remember(None, one, q1, 50)
    for name in ("symbols", "w", "seen"):
        other = getattr(ours, name).copy()
        other[7] = 1 - other[7]
        with pytest.raises(CodecError, match="checksum does not match, or its sender remembers something else"):
            decode_release(frame, q2, known=Known(**{**vars(ours), name: other}))
    decode_release(frame, q2, known=ours)


def test_a_release_that_leans_on_a_teacher_needs_the_same_teacher():
    (q1, one, _, _), (q2, _, frame, _), _ = conversation("argmax | range_code", rows=50)
    other = q2.feedback.p.copy()
    other[0] = other[0, ::-1]
    for feedback in (None, Teacher(other, q2.feedback.indices)):
        with pytest.raises(CodecError):
            decode_release(frame, Query(2, q2.indices, 10, SHA, feedback))


def test_a_release_in_another_encoding_starts_anew():
    (q1, one, _, _), (q2, _, frame, _), _ = conversation("argmax | delta", rows=50)
    known = remember(None, prepare("float16", one, np.random.default_rng(0)), q1, 50)
    again = prepare("argmax | delta", one, np.random.default_rng(0))
    assert decode_release(encode_release(again, q2, 3, known=known), q2, known=known)[1].coding == frozenset()
    with pytest.raises(CodecError, match="a delta of encoding 2 cannot follow a release in float16"):
        decode_release(frame, q2, known=known)


def test_a_memory_of_fewer_rows_or_other_classes_is_refused():
    (q1, one, _, _), (q2, two, _, _), _ = conversation("quantize(bits=2) | delta", rows=50)
    known = remember(None, one, q1, 50)
    for wide in (Query(2, np.arange(60), 10, SHA), Query(2, np.arange(50), 11, SHA)):
        p = np.full((len(wide.indices), wide.classes), 1 / wide.classes, np.float32)
        sent = prepare("quantize(bits=2) | delta", Release(p, np.ones(len(p), np.float32)), np.random.default_rng(0))
        with pytest.raises(CodecError, match="was remembered for"):
            encode_release(sent, wide, 3, known=known)


# What a client was told before.


def told(chain="argmax | delta", *, rows=5, seed=3, round_=2, base=None):
    """A query with feedback on five of eleven rows, and what is remembered of it."""
    sent = release(chain, rows, seed=seed)
    asked = query(2, round_=round_, feedback=Teacher(sent.p, np.arange(rows) * 2))
    return asked, sent, remember_feedback(base, asked, sent.encoding, 11)


@pytest.mark.parametrize("chain", [chain + " | delta" for chain in PLAIN[:5]] + DELTAS[-2:])
def test_feedback_on_top_of_another_comes_back_bit_for_bit_and_what_stays_costs_next_to_nothing(chain):
    first, one, known = told(chain)
    second, two, _ = told(chain, round_=3)  # the same again
    frame = encode_query(second, 11, two.encoding, coding=two.coding, known=known)
    assert frame[4] >> 4 & 1
    assert decode_query(frame, SHA, 11, known=known).feedback.p.tobytes() == one.p.tobytes()
    assert len(frame) <= len(encode_query(second, 11, two.encoding)) - len(one.p) * label_bits(3) // 8 + 8
    third, three, _ = told(chain, round_=4, seed=4)
    frame = encode_query(third, 11, three.encoding, coding=three.coding, known=known)
    assert decode_query(frame, SHA, 11, known=known).feedback.p.tobytes() == three.p.tobytes()


def test_a_sign_of_zero_is_not_lost():
    p = np.array([[0.0, 1.0], [1.0, 0.0]], np.float32)
    first = Query(2, np.arange(1), 2, SHA, Teacher(p, np.arange(2)))
    known = remember_feedback(None, first, "float32", 2)
    minus = p.copy()
    minus[0, 0] = -0.0
    second = Query(3, np.arange(1), 2, SHA, Teacher(minus, np.arange(2)))
    frame = encode_query(second, 2, "float32", coding={"delta"}, known=known)
    assert decode_query(frame, SHA, 2, known=known).feedback.p.tobytes() == minus.tobytes()


def test_a_delta_may_lean_on_less_than_its_reader_remembers():
    first, one, known = told("float32 | delta")
    fewer = Known(**{**vars(known), "seen": known.seen & (np.arange(11) < 3)})
    second, two, _ = told("float32 | delta", round_=3)
    frame = encode_query(second, 11, "float32", coding={"delta"}, known=fewer)
    assert len(frame) == len(encode_query(second, 11, "float32")) - 2 * 12 + 1 + 2 + 4
    for reader in (known, fewer):
        assert decode_query(frame, SHA, 11, known=reader).feedback.p.tobytes() == two.p.tobytes()


@pytest.mark.parametrize("chain", ["float32 | delta", "argmax | delta | range_code", "top_k(k=2) | delta"])
def test_feedback_that_leans_on_what_is_not_here_is_refused_and_asked_for_in_full(chain):
    first, one, known = told(chain)
    second, two, _ = told(chain, round_=3)
    frame = encode_query(second, 11, two.encoding, coding=two.coding, known=known)
    other, unseen = known.symbols.copy(), known.seen.copy()
    other[2] = (other[2] + 1) % 3 if other.ndim == 1 else other[2, ::-1]
    unseen[4] = False
    for wrong, sentence in [
        (None, "leans on that of round 2, which is not here"),
        (Known(**{**vars(known), "round": 1}), "leans on that of round 2, which is not here"),
        (Known(**{**vars(known), "encoding": "grid3"}), "which is not here"),
        (Known(**{**vars(known), "symbols": other}), "leans on something else than what is remembered here"),
        (Known(**{**vars(known), "seen": unseen}), "leans on something else than what is remembered here"),
    ]:
        with pytest.raises(CodecError, match=f"{sentence}; {IN_FULL}$"):
            decode_query(frame, SHA, 11, known=wrong)
    assert (
        decode_query(frame, SHA, 11, known=Known.from_arrays(known.to_arrays())).feedback.p.tobytes() == two.p.tobytes()
    )


def test_without_delta_in_the_chain_or_anything_known_a_query_is_what_it_was():
    second, two, known = told("argmax | delta", round_=3)
    plain = encode_query(second, 11, "label")
    assert encode_query(second, 11, "label", known=known) == plain
    assert encode_query(second, 11, "label", coding={"delta"}) == plain
    assert encode_query(second, 11, "label", coding={"delta"}, known=known) == plain  # of the same round: no base
    nothing = Known(**{**vars(known), "round": 1, "seen": np.zeros(11, bool)})
    assert encode_query(second, 11, "label", coding={"delta"}, known=nothing) == plain


# How many bytes that takes.

HEADER = 18 + 1 + 2 + 1 + 1  # ten classes, a thousand rows, round 2, client 0


@pytest.mark.parametrize(
    ("chain", "body"),
    [
        ("float32", 40_000),
        ("float16", 20_000),
        ("argmax", 500),
        ("quantize(bits=4)", 4500),
        ("quantize(bits=1)", 1125),
        ("top_k(k=3)", 1500 + 4000),
    ],
)
def test_a_thousand_rows_of_ten_classes_take_what_the_table_says(chain, body):
    frame = encode_release(release(chain, 1000, 10), query(1000, 10), 0)
    assert len(frame) == HEADER + 2 + body


def test_labels_that_mostly_stay_take_less_than_a_hundred_bytes_and_each_means_helps():
    def size(coding, **more):
        return len(list(conversation(f"weights(bits=4) | argmax{coding}", w=EXPERTISE, change=0.2, **more))[-1][2])

    plain, delta, ranged, both = size(""), size(" | delta"), size(" | range_code"), size(" | delta | range_code")
    assert plain == HEADER + 1 + (1 + 1 + 1 + 500) + 500  # event; form, bits and place of the weights; weights; labels
    assert both < 100 < delta < ranged < plain
    assert both < size(" | delta | range_code", taught=False)


def test_grids_that_mostly_stay_take_a_seventh():
    frames = [frame for _, _, frame, _ in conversation("quantize(bits=3) | delta | range_code")]
    assert len(frames[-1]) < 0.15 * (HEADER + 2 + 3375)


def test_one_weight_takes_four_bytes_and_none_takes_none():
    sizes = [len(encode_release(release("argmax", w=w), query(), 0)) for w in ([1] * 5, [0.5] * 5, [1, 1, 1, 1, 0])]
    assert [size - sizes[0] for size in sizes] == [0, 4, 20]


@pytest.mark.parametrize(
    "chain", ["argmax | delta", "argmax | delta | range_code", "weights | argmax | delta | range_code"]
)
def test_weights_that_stay_are_sent_once(chain):
    first, second, third = conversation(chain, w=EXPERTISE)
    bare = list(conversation(chain))
    assert len(first[2]) > len(bare[0][2]) + 400
    assert [len(second[2]), len(third[2])] == [len(bare[1][2]), len(bare[2][2])]


def test_only_the_weights_of_new_rows_are_sent():
    asked = [np.arange(500), np.arange(510)]
    plain = [len(step[2]) for step in conversation("argmax | delta", size=600, asked=asked, rounds=2)]
    heavy = [len(step[2]) for step in conversation("argmax | delta", size=600, asked=asked, rounds=2, w=EXPERTISE)]
    assert heavy[0] - plain[0] == 4 * 500
    assert heavy[1] - plain[1] == 4 * 10


def test_asking_takes_a_byte_for_all_rows_a_bit_each_for_many_and_little_for_few():
    least = 18 + 1 + 1 + 1 + 1 + 24 + 2
    assert len(encode_query(query(1000), 1000)) == least + 1
    assert len(encode_query(query(999), 1000)) == least + 1 + 125
    few = Query(2, np.arange(0, 10_000, 100), 3, SHA)
    assert len(encode_query(few, 10_000)) == least + 1 + 1 + (100 * 6 + 7) // 8 + (100 + 9999 // 64 + 1 + 7) // 8


def test_a_teacher_goes_down_in_fewer_bytes_when_range_coded():
    p = next(skewed())[0]
    for chain, most in (("argmax", 0.8), ("quantize(bits=3)", 0.3)):
        sent = prepare(chain, Release(p, np.ones(1000, np.float32)), np.random.default_rng(0))
        asked = Query(2, np.arange(1000), 10, SHA, Teacher(sent.p, np.arange(1000)))
        plain = encode_query(asked, 1000, sent.encoding)
        short = encode_query(asked, 1000, sent.encoding, coding={"range_code"})
        assert len(short) < most * len(plain)
        assert decode_query(short, SHA, 1000).feedback.p.tobytes() == sent.p.tobytes()


@pytest.mark.parametrize(("classes", "bits"), [(2, 1), (3, 2), (4, 2), (5, 3), (10, 4), (16, 4), (17, 5), (65_535, 16)])
def test_a_label_takes_the_logarithm_of_the_classes(classes, bits):
    assert label_bits(classes) == bits


# The bytes themselves.


def test_a_release_is_laid_out_as_documented():
    p = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]], np.float32)
    frame = encode_release(Release(p, np.full(5, 0.5, np.float32), NoOp(), "label"), query(), 7)
    # Event 1, one weight for all, 0.5; labels 2 0 1 2 0 in two bits each: 10 00 01 10, 00 and padding.
    assert frame == framed(bytes([1, 1]) + struct.pack("<f", 0.5) + bytes([0b10000110, 0b00000000]), code=2)
    assert frame[:6] == b"FKD" + bytes([2, 2, 2])
    assert frame[18:22] == bytes([3, 5, 2, 7])


def test_numbers_above_127_take_two_bytes():
    frame = encode_release(release("argmax", 300), query(300, round_=129), 2**14)
    assert frame[18:26] == bytes([3, 0xAC, 0x02, 0x81, 0x01, 0x80, 0x80, 0x01])


def test_a_grid_is_laid_out_as_documented():
    p = np.array([[0, 1, 2], [3, 0, 0]], np.float32) / 3
    frame = encode_release(Release(p, np.ones(2, np.float32), NonPrivate(), "grid2"), query(2), 7)
    assert frame == framed(bytes([0, 0, 0b00011100]), code=18, rows=2)  # 00 01, 11 00; the last class is implied


def test_the_most_probable_classes_are_laid_out_as_documented():
    p = np.array([[0.25, 0, 0.75], [0, 1, 0]], np.float32)
    frame = encode_release(Release(p, np.ones(2, np.float32), NonPrivate(), "top2"), query(2), 7)
    # Classes 2 0, 1 0 in two bits each; the second value of each row, 0.25 and 0, as half precision.
    assert frame == framed(bytes([0, 0, 0b10000100, 0, 0x34, 0, 0]), code=34, rows=2)


def test_levels_of_weights_are_laid_out_as_documented():
    p = np.eye(3, dtype=np.float32)
    w = np.array([0.5, 0, 2**-3], np.float32)
    frame = encode_release(Release(p, w, NonPrivate(), "label", weight_bits=4), query(3), 7)
    # Form 3, 4 bits, the largest weight is 2^-1: place -1 is 1 in zigzag; levels 15 0 13; labels 00 01 10.
    assert frame == framed(bytes([0, 3, 4, 1, 0xF0, 0xD0, 0b00011000]), code=2, rows=3)


def test_a_delta_is_laid_out_as_documented():
    first, second = Query(1, np.array([0, 1, 2]), 3, SHA), Query(2, np.arange(4), 3, SHA)
    eye, ones = np.eye(3, dtype=np.float32), np.array([1, 2, 3], np.float32)
    known = remember(None, Release(eye, ones, encoding="label"), first, 4)
    sent = Release(eye[[0, 2, 2, 1]], np.array([1, 2, 3, 4], np.float32), NonPrivate(), "label", frozenset({"delta"}))
    frame = encode_release(sent, second, 7, known=known)
    # Form 1 and 16: the weight of row 3, which is new. Bitmap of three known rows: the second differs. Labels 2 1.
    body = bytes([0, 17]) + struct.pack("<f", 4) + bytes([1, 0b01000000, 0b10010000])
    context = zlib.crc32(bytes([1, 1, 1, 0]) + floats(0, 1, 2) + floats(3, 3, 3) + floats(1, 2, 3))
    assert frame == framed(body, flags=1, code=2, rows=4, base=1, context=context)


def test_a_query_is_laid_out_as_documented():
    asked = Query(2, np.array([0, 9]), 3, SHA)
    body = bytes.fromhex(SHA)[8:] + bytes([10, 1, 0b10000000, 0b01000000])
    assert encode_query(asked, 10) == framed(body, kind=1, code=255, rows=0, client=0)


def test_a_delta_of_feedback_is_laid_out_as_documented():
    eye = np.eye(3, dtype=np.float32)
    first = Query(2, np.array([0, 9]), 3, SHA, Teacher(eye[[0, 1, 2]], np.array([1, 4, 7])))
    known = remember_feedback(None, first, "label", 10)
    second = Query(3, np.array([0, 9]), 3, SHA, Teacher(eye[[0, 0, 2, 1]], np.array([1, 4, 7, 8])))
    frame = encode_query(second, 10, "label", coding={"delta"}, known=known)
    # Ten rows, 0 and 9 asked; feedback on 1, 4, 7, 8; it leans on the first and the third of them, classes 0 and 2.
    body = bytes.fromhex(SHA)[8:] + bytes([10, 1, 0b10000000, 0b01000000, 1, 0b01001001, 0b10000000, 1, 0b10100000])
    body += struct.pack("<I", zlib.crc32(floats(0, 2))) + bytes([0b00010000])  # and the others are 0 and 1
    assert frame == framed(body, kind=1, flags=1, code=2, rows=4, round_=3, client=0, base=2)


@pytest.mark.parametrize("case", GOLDEN["releases"], ids=lambda case: case["name"])
def test_golden_releases_of_version_2_still_decode_and_are_still_written(case):
    asked = golden_query(case)
    known = None
    if case["after"]:
        before = next(other for other in GOLDEN["releases"] if other["name"] == case["after"])
        _, first = decode_release(bytes.fromhex(before["frame"]), golden_query(before))
        known = remember(None, first, golden_query(before), GOLDEN["transfer_rows"])
    frame = bytes.fromhex(case["frame"])
    client, got = decode_release(frame, asked, known=known)
    assert client == GOLDEN["client"]
    assert got.p.tolist() == case["p"]
    assert got.w.tolist() == case["w"]
    assert (got.encoding, sorted(got.coding), got.weight_bits) == (
        case["encoding"],
        case["coding"],
        case["weight_bits"],
    )
    assert type(got.event).__name__ == case["event"]
    assert encode_release(got, asked, client, known=known) == frame


def golden_query(case):
    back = case["feedback"]
    teacher = Teacher(np.array(back["p"], np.float32), np.array(back["indices"])) if back else None
    return Query(case["round"], np.array(case["indices"]), GOLDEN["classes"], GOLDEN["fingerprint"], teacher)


@pytest.mark.parametrize("case", GOLDEN["queries"], ids=lambda case: case["name"])
def test_golden_queries_of_version_2_still_decode_and_are_still_written(case):
    frame, rows, known = bytes.fromhex(case["frame"]), GOLDEN["transfer_rows"], None
    if case.get("after"):
        before = next(other for other in GOLDEN["queries"] if other["name"] == case["after"])
        first = decode_query(bytes.fromhex(before["frame"]), GOLDEN["fingerprint"], rows)
        known = remember_feedback(None, first, before["encoding"], rows)
    got = decode_query(frame, GOLDEN["fingerprint"], rows, known=known)
    assert (got.round, got.classes) == (case["round"], GOLDEN["classes"])
    assert got.indices.tolist() == case["indices"]
    assert encode_query(got, rows, case["encoding"], coding=case["coding"], known=known) == frame
    if case["feedback"] is None:
        assert got.feedback is None
    else:
        assert got.feedback.indices.tolist() == case["feedback"]["indices"]
        assert got.feedback.p.tolist() == case["feedback"]["p"]


# What is refused, and how that reads.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"round_": 3}, "client 7: frame has round 3, expected 2"),
        ({"classes": 4}, "client 7: frame has classes 4, expected 3"),
        ({"rows": 6}, "client 7: frame has rows 6, expected 5"),
        ({"kind": 1}, "frame is of kind 1, expected 2"),
        ({"code": 9}, "unknown encoding 9"),
        ({"code": 255}, "unknown encoding 255"),
        ({"flags": 2}, "encoding float32 is never range coded"),
        ({"flags": 1, "base": 2}, "impossible frame: 3 classes, 5 rows, round 2 on round 2"),
        ({"client": 2**64}, "a number in the frame is too long"),
        ({"classes": 0}, "impossible frame: 0 classes, 5 rows, round 2"),
        ({"round_": 0}, "impossible frame: 3 classes, 5 rows, round 0"),
        ({"rows": 2**32 - 1}, "impossible frame: 3 classes, 4294967295 rows, round 2"),
        ({"rows": 100_000, "classes": 60_000}, "impossible frame: 60000 classes, 100000 rows, round 2"),
    ],
)
def test_a_frame_that_answers_something_else_says_what(change, message):
    with pytest.raises(CodecError, match=message):
        decode_release(framed(b"\x00\x00" + release().p.tobytes(), **change), query())


def test_another_version_and_no_frame_at_all_say_so():
    frame = bytearray(encode_release(release(), query(), 7))
    frame[3] = 1
    with pytest.raises(CodecError, match="frame has version 1, this fedkd reads 2"):
        decode_release(bytes(frame), query())
    with pytest.raises(CodecError, match="not a fedkd frame"):
        decode_release(b"\x80\x04" + bytes(60), query())
    with pytest.raises(CodecError, match="frame of 0 bytes is shorter than its header of 18 and more"):
        decode_release(b"", query())


def test_an_answer_on_another_transfer_set_names_both():
    theirs = Query(2, np.arange(5), 3, OTHER)
    with pytest.raises(FingerprintError, match=f"client 7 .* expected {SHA[:16]}, got {OTHER[:16]}"):
        decode_release(encode_release(release(), theirs, 7), query())


def test_a_query_about_another_transfer_set_names_both():
    with pytest.raises(FingerprintError, match=f"the server's transfer set is {SHA[:16]}, ours is {OTHER[:16]}"):
        decode_query(encode_query(query(), 5), OTHER, 5)


def test_a_query_about_another_number_of_rows_or_classes_says_so():
    with pytest.raises(CodecError, match="query is about 5 rows, the transfer set has 6"):
        decode_query(encode_query(query(), 5), SHA, 6)
    with pytest.raises(CodecError, match="asks about 3 classes, this client knows 10"):
        decode_query(encode_query(query(), 5), SHA, 5, classes=10)


def test_feedback_on_other_rows_than_it_names_is_refused():
    body = bytes.fromhex(SHA)[8:] + b"\x05\x00" + b"\x01\b" + b"\x00" * 8
    with pytest.raises(CodecError, match="feedback names 1 rows and carries 2"):
        decode_query(framed(body, kind=1, code=2, rows=2), SHA, 5)


def floats(*rows):
    return np.array(rows, "<f4").tobytes()


@pytest.mark.parametrize(
    "bad",
    [
        [0.5, 0.5, 0.1],
        [0.5, 0.3, 0.1],
        [1.5, -0.5, 0.0],
        [np.nan, 0.5, 0.5],
        [np.inf, 0, 0],
        [3e38, 3e38, 3e38],
        [0, 0, 0],
    ],
)
def test_what_is_no_distribution_is_refused(bad):
    with pytest.raises(CodecError, match="soft labels are not distributions"):
        decode_release(framed(b"\x00\x00" + floats(*[[1, 0, 0]] * 4, bad)), query())


def test_every_half_that_is_no_number_is_refused_without_a_warning():
    for bits in (0x7C00, 0xFC00, 0x7C01, 0x7D00, 0x7E00, 0xFFFF):  # infinities, signaling and quiet NaN
        body = b"\x00\x00" + struct.pack("<HHH", bits, 0, 0)
        with pytest.raises(CodecError, match="soft labels are not distributions"):
            decode_release(framed(body, code=1, rows=1), query(1))


def test_half_precision_gets_room_for_rounding_and_not_more():
    flat = np.full((1, 1000), 1 / 1000)
    for scale, fine in ((1.0, True), (1.0009, True), (1.01, False), (1.4, False)):
        body = b"\x00\x00" + (flat * scale).astype("<f2").tobytes()
        frame = framed(body, code=1, rows=1, classes=1000)
        if fine:
            decode_release(frame, query(1, 1000))
        else:
            with pytest.raises(CodecError, match="not distributions"):
                decode_release(frame, query(1, 1000))


@pytest.mark.parametrize("classes", [2, 1000, 65_535])
def test_whatever_a_client_may_send_the_server_takes(classes):
    for off in (0.9991, 1.0, 1.0009):
        p = np.full((1, classes), off / classes, np.float32)
        for chain in ("float32", "float16"):
            sent = prepare(chain, Release(p, np.ones(1, np.float32)), np.random.default_rng(0))
            decode_release(encode_release(sent, query(1, classes), 0), query(1, classes))


def test_levels_that_sum_to_more_than_one_and_labels_beyond_the_classes_are_refused():
    with pytest.raises(CodecError, match="sum to more than one"):
        decode_release(framed(bytes([0, 0, 0b10110000]), code=18, rows=1), query(1))
    with pytest.raises(CodecError, match="label 3 is not one of 3 classes"):
        decode_release(framed(bytes([0, 0, 0b11000000]), code=2, rows=1), query(1))


@pytest.mark.parametrize("w", [-1.0, np.nan, np.inf])
def test_weights_must_be_finite_and_not_negative(w):
    for body in (b"\x00\x01" + floats(w), b"\x00\x02" + floats(1, 1, w, 1, 1)):
        with pytest.raises(CodecError, match="client 7: weights must be finite and not negative"):
            decode_release(framed(body + release().p.tobytes()), query())


def test_unknown_forms_are_refused():
    for form in (4, 15, 20, 32, 255):
        with pytest.raises(CodecError, match="unknown form of weights"):
            decode_release(framed(bytes([0, form])), query())
    with pytest.raises(CodecError, match="unknown form of weights"):  # 16: there is nothing that rows could keep
        decode_release(framed(b"\x00\x10"), query())
    for grid in (b"\x00\x00", b"\x09\x00", b"\x08\xf1\x0f", b"\x08\xf2\x0f"):
        with pytest.raises(CodecError, match="unknown grid of weights"):
            decode_release(framed(b"\x00\x03" + grid), query())
    with pytest.raises(CodecError, match="unknown form of rows 3"):
        decode_query(framed(bytes.fromhex(SHA)[8:] + b"\x05\x03", kind=1, code=255, rows=0), SHA, 5)


@pytest.mark.parametrize("top", [b"\x85\x00\x34\x00\x34", b"\x84\xff\x3f\x00\x34", b"\x84\x00\x34\x00\xb4"])
def test_values_of_the_most_probable_classes_must_make_a_distribution(top):
    body = b"\x00\x00" + top  # classes 2 0, 1 1; a value above one; one below zero
    with pytest.raises(CodecError, match="the 2 classes of a row must differ|not distributions"):
        decode_release(framed(body, code=34, rows=2), query(2))


def test_a_number_that_is_written_longer_than_it_needs_is_refused():
    good = framed(b"\x00\x00" + release().p.tobytes())
    for number in (b"\x83\x00", b"\xff" * 9 + b"\x02", b"\xff" * 12):
        with pytest.raises(CodecError, match="a number in the frame is too long"):
            peek(good[:18] + number + good[19:])


@pytest.mark.skipif(not ZSTD, reason="needs zstandard")
def test_a_small_frame_cannot_unpack_to_a_large_one():
    import zstandard

    bomb = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(100_000_000))
    assert len(bomb) < 10_000
    tracemalloc.start()
    try:
        with pytest.raises(CodecError, match="compressed frame holds more than 149 bytes"):
            decode_release(framed(bomb, flags=4), query())
        with pytest.raises(CodecError, match="compressed frame holds more than"):
            decode_query(framed(bomb, kind=1, flags=4, code=255, rows=0, client=0), SHA, 5)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(not ZSTD, reason="needs zstandard")
def test_what_is_no_compressed_frame_is_refused_and_what_is_no_shorter_is_not_compressed():
    for body in (b"", b"\x28\xb5\x2f\xfd", b"junk", bytes(100)):
        with pytest.raises(CodecError):
            decode_release(framed(body, flags=4), query())
    assert encode_release(release("float32 | zstd"), query(), 0)[4] == 2
    flat = Release(np.full((1000, 10), 0.1, np.float32), np.ones(1000, np.float32), coding=frozenset({"zstd"}))
    frame = encode_release(flat, query(1000, 10), 0)
    assert frame[4] == 2 + 4 * 16
    assert len(frame) < 100
    assert (decode_release(frame, query(1000, 10))[1].p == flat.p).all()


def test_without_zstandard_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    flat = Release(np.full((1000, 10), 0.1, np.float32), np.ones(1000, np.float32), coding=frozenset({"zstd"}))
    with pytest.raises(ExtraError, match=r"zstandard.*pip install 'fedkd\[light\]'"):
        encode_release(flat, query(1000, 10), 0)
    with pytest.raises(ExtraError, match="zstandard"):
        decode_release(framed(b"anything", flags=4), query())


def test_bytes_too_few_or_too_many_are_counted():
    body = b"\x00\x00" + release().p.tobytes()
    with pytest.raises(CodecError, match="frame ends early: 60 bytes expected, 59 left"):
        decode_release(framed(body[:-1]), query())
    with pytest.raises(CodecError, match="frame has 2 bytes too many"):
        decode_release(framed(body + b"ab"), query())


@pytest.mark.parametrize(
    ("classes", "round_", "client"), [(70_000, 1, 0), (3, 2**32, 0), (3, 1, 2**64), (3, 1, -1), (3, 0, 0)]
)
def test_what_no_frame_can_hold_is_refused_by_the_sender(classes, round_, client):
    sent = Release(np.eye(1, classes, dtype=np.float32), np.ones(1, np.float32), NonPrivate(), "label")
    with pytest.raises(CodecError):
        encode_release(sent, query(1, classes, round_=round_), client)


# Hostile bytes.

ASKED = query(3, 2, round_=3, feedback=Teacher(release("argmax", 2, 2).p, np.array([0, 2])))
BEFORE = remember(None, release("argmax", 3, 2, w=[1, 0, 0.5], seed=1), query(3, 2), 5)
TOLD = remember_feedback(None, query(3, 2, feedback=Teacher(ASKED.feedback.p[::-1], np.array([0, 2]))), "label", 5)
TOLD = remember_feedback(TOLD, query(3, 2, feedback=Teacher(ASKED.feedback.p[:1], np.array([0]))), "label", 5)
SMALL = [
    *(encode_release(release(chain, 3, 2, w=[1, 0, 0.5]), query(3, 2, round_=3), 7) for chain in CHAINS),
    encode_release(release("argmax | weights(bits=3) | range_code", 3, 2, w=[1, 0, 0.5]), query(3, 2, round_=3), 7),
    encode_release(release("argmax | delta", 3, 2, w=[1, 0, 0.5]), query(3, 2, round_=3), 7, known=BEFORE),
    encode_release(release("argmax | delta | range_code", 3, 2, w=[1, 0, 2]), ASKED, 7, known=BEFORE),
    encode_query(query(3, 2), 5),
    encode_query(query(0, 2), 5),
    encode_query(ASKED, 5, "label"),
    encode_query(ASKED, 5, "label", coding={"range_code"}),
    encode_query(ASKED, 5, "grid1", coding={"range_code"}),
    encode_query(ASKED, 5, "label", coding={"delta"}, known=TOLD),
    encode_query(ASKED, 5, "label", coding={"delta", "range_code"}, known=TOLD),
]


def decode_any(frame):
    if len(frame) < 5 or frame[4] & 15 == 1:
        return decode_query(frame, SHA, 5, known=TOLD)
    return decode_release(frame, ASKED, known=BEFORE)


@pytest.mark.parametrize("frame", SMALL)
def test_no_frame_survives_the_change_of_a_single_byte(frame):
    decode_any(frame)
    for place in range(len(frame)):
        for flip in (1, 2, 3, 16, 19, 32, 64, 0x80, 0xFF):  # 19 turns a label into a grid of one bit
            with pytest.raises(CodecError):
                decode_any(frame[:place] + bytes([frame[place] ^ flip]) + frame[place + 1 :])


@pytest.mark.parametrize("frame", SMALL)
def test_no_frame_survives_being_cut(frame):
    for length in range(len(frame)):
        with pytest.raises(CodecError):
            decode_any(frame[:length])


@FAST
@given(st.binary(max_size=200), st.booleans())
def test_random_bytes_raise_a_codec_error(noise, disguised):
    frame = b"FKD\x02" + noise if disguised else noise
    with pytest.raises(CodecError):
        decode_release(frame, query())
    with pytest.raises(CodecError):
        decode_query(frame, SHA, 5)
    if not disguised:
        with pytest.raises(CodecError):
            peek(frame)


@FAST
@given(
    st.binary(max_size=80),
    st.sampled_from([0, 1, 2, 17, 18, 20, 24, 33, 35, 96]),
    st.integers(1, 5),
    st.integers(0, 9),
    st.sampled_from([1, 2]),
    st.sampled_from([0, 0, 2, 4] if ZSTD else [0, 2]),
)
def test_random_bodies_with_a_right_checksum_are_distributions_or_a_codec_error(
    noise, code, classes, rows, kind, flags
):
    asked = Query(2, np.arange(rows), classes, SHA)
    head = b"" if kind == 2 else bytes.fromhex(SHA)[8:] + b"\x09\x00"
    frame = framed(head + noise, kind=kind, flags=flags, code=code, classes=classes, rows=rows)
    try:
        if kind == 2:
            got = decode_release(frame, asked)[1]
            p = got.p
            assert np.isfinite(got.w).all() and (got.w >= 0).all()
        else:
            p = decode_query(frame, SHA, 9).feedback.p
    except CodecError:
        return
    assert p.shape == (rows, classes)
    assert (p >= 0).all()
    assert np.abs(p.sum(axis=1) - 1).max(initial=0) < 0.01


@FAST
@given(noise=st.binary(max_size=30), ranged=st.booleans(), form=st.sampled_from([0, 1, 2, 3, 16, 17, 19]))
def test_random_deltas_with_a_right_checksum_are_distributions_or_a_codec_error(noise, ranged, form):
    (q1, one, _, _), (q2, _, _, _), _ = conversation("argmax | delta", rows=9, classes=4, taught=False, w=EXPERTISE)
    known = remember(None, one, q1, 9)
    parts = bytes([1] * 9) + known.symbols.astype("<f4").tobytes() + known.age.astype("<f4").tobytes()
    context = zlib.crc32(parts + known.w.tobytes())
    frame = framed(
        bytes([0, form]) + noise, flags=3 if ranged else 1, code=2, classes=4, rows=9, base=1, context=context
    )
    try:
        _, got = decode_release(frame, q2, known=known)
    except CodecError as error:
        assert "checksum" not in str(error)
        return
    assert (got.p.sum(axis=1) == 1).all()
    assert np.isfinite(got.w).all() and (got.w >= 0).all()


@FAST
@given(noise=st.binary(max_size=30), ranged=st.booleans(), code=st.sampled_from([0, 2, 18, 34]), rows=st.integers(0, 9))
def test_random_deltas_of_feedback_with_right_checksums_are_distributions_or_a_codec_error(noise, ranged, code, rows):
    p = np.eye(4, dtype=np.float32)[np.arange(9) % 4]
    encoding = {0: "float32", 2: "label", 18: "grid2", 34: "top2"}[code]
    known = remember_feedback(None, Query(1, np.arange(1), 4, SHA, Teacher(p, np.arange(9))), encoding, 9)
    head = bytes.fromhex(SHA)[8:] + b"\x09\x00" + pack_rows(np.arange(rows), 9)
    lean = np.arange(0, rows, 2)
    head += pack_rows(lean, rows) + struct.pack("<I", zlib.crc32(known.symbols[lean].astype("<f4").tobytes()))
    flags = 3 if ranged else 1
    frame = framed(head + noise, kind=1, flags=flags, code=code, classes=4, rows=rows, round_=2, client=0, base=1)
    try:
        got = decode_query(frame, SHA, 9, classes=4, known=known).feedback.p
    except CodecError as error:
        assert "checksum" not in str(error) and IN_FULL not in str(error)
        return
    assert got.shape == (rows, 4)
    assert np.abs(got.sum(axis=1) - 1).max(initial=0) < 0.01
    if not ranged:
        assert got[lean].tobytes() == p[lean].tobytes()


def test_a_delta_without_feedback_and_one_that_leans_on_other_rows_are_refused():
    head = bytes.fromhex(SHA)[8:] + b"\x05\x00"
    with pytest.raises(CodecError, match="a query without feedback leans on nothing"):
        decode_query(framed(head, kind=1, flags=1, code=255, rows=0, base=1), SHA, 5)
    asked = query(2, round_=1, feedback=Teacher(np.eye(3, dtype=np.float32)[:2], np.array([1, 3])))
    known = remember_feedback(None, asked, "label", 5)
    hostile = head + pack_rows(np.array([0, 1]), 5) + b"\x00" + struct.pack("<I", zlib.crc32(floats(0, 1)))
    with pytest.raises(CodecError, match=IN_FULL):  # row 0 was never told, whatever the checksum
        decode_query(framed(hostile, kind=1, flags=1, code=2, rows=2, base=1), SHA, 5, known=known)


def peak(decode):
    """Return the most memory that was in use while ``decode`` found out that it is given no frame."""
    tracemalloc.start()
    try:
        with pytest.raises(CodecError):
            decode()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("flags", "code"), [(0, 0), (0, 1), (0, 2), (0, 17), (0, 24), (0, 35), (2, 2), (2, 17), (2, 24)]
)
@pytest.mark.parametrize(("rows", "classes"), [(10_000_000, 65_535), (10_000_000, 100), (1000, 65_535), (0, 65_535)])
def test_a_huge_size_in_a_small_frame_allocates_nothing(code, rows, classes, flags):
    answer = framed(b"\x00\x02" + bytes(50), flags=flags, code=code, rows=rows, classes=classes)
    body = bytes.fromhex(SHA)[8:] + varint(1000) + b"\x00\x00" + bytes(50)
    asked = framed(body, kind=1, flags=flags, code=code, rows=rows, classes=classes)
    lean = framed(body, kind=1, flags=flags | 1, code=code, rows=rows, classes=classes, base=1)
    expected = Query(2, np.broadcast_to(0, (rows,)), classes, SHA)
    most = 1_000_000 if not flags else 30_000_000  # counts for each decision of the rows that both ends agreed on
    assert peak(lambda: decode_release(answer, expected)) < most
    assert peak(lambda: decode_query(asked, SHA, 1000)) < most
    assert peak(lambda: decode_query(lean, SHA, 1000, known=BEFORE)) < most


def test_labels_that_would_unpack_to_a_thousand_times_their_size_are_refused_by_whoever_knows_the_classes():
    body = bytes.fromhex(SHA)[8:] + varint(1000) + b"\x00\x00" + bytes(2000)
    frame = framed(body, kind=1, code=2, rows=1000, classes=65_000)
    tracemalloc.start()
    try:
        with pytest.raises(CodecError, match="asks about 65000 classes, this client knows 3"):
            decode_query(frame, SHA, 1000, classes=3)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_unpacking_a_grid_takes_a_few_bytes_for_each_entry():
    frame = encode_release(release("quantize(bits=8)", 2000, 100), query(2000, 100), 0)
    tracemalloc.start()
    try:
        decode_release(frame, query(2000, 100))
        assert tracemalloc.get_traced_memory()[1] < 32 * 2000 * 100
    finally:
        tracemalloc.stop()


def test_the_header_can_be_read_without_the_body():
    header = peek(encode_release(release(), query(), 7))
    assert (header.kind, header.classes, header.rows, header.round, header.client) == (2, 3, 5, 2, 7)
    assert header.fingerprint.hex() == SHA[:16]
