"""Frames that are wrong, hostile or damaged are refused before anything is allocated."""

import struct
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
from codec_scene import CHAINS, EXPERTISE, OTHER, SHA, ZSTD, conversation, floats, framed, query, release
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.codec import (
    IN_FULL,
    decode_query,
    decode_release,
    encode_query,
    encode_release,
    peek,
    remember,
    remember_feedback,
)
from fedkd.errors import CodecError, ExtraError, FingerprintError
from fedkd.events import NonPrivate
from fedkd.frames import pack_rows, varint
from fedkd.records import Query, Release, Teacher
from fedkd.release import prepare

FAST = settings(max_examples=200, deadline=None, derandomize=True, database=None)


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
