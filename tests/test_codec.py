"""Frames: nothing is lost on the way, old bytes stay readable, and hostile ones raise one kind of error."""

import hashlib
import json
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd import codec, events
from fedkd.codec import decode_query, decode_release, encode_query, encode_release, peek
from fedkd.errors import CodecError, FingerprintError
from fedkd.events import NonPrivate, NoOp
from fedkd.records import Query, Release, Teacher
from fedkd.release import prepare

GOLDEN = json.loads((Path(__file__).parent / "vectors" / "frames_v1.json").read_text(encoding="utf-8"))
SHA, OTHER = hashlib.sha256(b"ours").hexdigest(), hashlib.sha256(b"theirs").hexdigest()
CHAINS = ["float32", "float16", "argmax", *(f"quantize(bits={b})" for b in range(1, 9))]
FAST = settings(max_examples=200, deadline=None, derandomize=True, database=None)


def query(rows=5, classes=3, *, round_=2, feedback=None):
    return Query(round_, np.arange(rows), classes, SHA, feedback)


def release(chain="float32", rows=5, classes=3, w=None, seed=0):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(classes), rows).astype(np.float32)
    w = np.ones(rows, np.float32) if w is None else np.asarray(w, np.float32)
    return prepare(chain, Release(p, w), rng)


def framed(body, *, kind=2, code=0, classes=3, rows=5, round_=2, client=7, sha=SHA):
    """Build a frame as its table in the module's docstring says, with the right checksum, whatever it holds."""
    head = b"FKD\x01" + struct.pack("<BBHIIQ", kind, code, classes, rows, round_, client) + bytes.fromhex(sha)[:8]
    return head + struct.pack("<I", zlib.crc32(head + body)) + body


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


@pytest.mark.parametrize("chain", ["argmax", "quantize(bits=1)", "quantize(bits=8)", "float16"])
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


@pytest.mark.parametrize("event", [NonPrivate(), NoOp()])
def test_the_event_comes_back(event):
    sent = Release(release().p, np.ones(5, np.float32), event)
    assert decode_release(encode_release(sent, query(), 0), query())[1].event == event


def test_an_event_that_we_do_not_know_costs_everything():
    frame = framed(b"\xfe\x00" + release().p.tobytes())
    assert events.epsilon(decode_release(frame, query())[1].event) == float("inf")


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
    got = decode_query(encode_query(asked, 11, sent.encoding), SHA, 11, classes=3)
    assert got.indices.tolist() == [1, 2]
    assert got.feedback.indices.tolist() == where
    assert got.feedback.p.tobytes() == sent.p.tobytes()


# How many bytes that takes.


@pytest.mark.parametrize(
    ("chain", "body"),
    [("float32", 40_000), ("float16", 20_000), ("argmax", 500), ("quantize(bits=4)", 4500), ("quantize(bits=1)", 1125)],
)
def test_a_thousand_rows_of_ten_classes_take_what_the_table_says(chain, body):
    frame = encode_release(release(chain, 1000, 10), query(1000, 10), 0)
    assert len(frame) == 36 + 2 + body


def test_one_weight_takes_four_bytes_and_none_takes_none():
    sizes = [len(encode_release(release("argmax", w=w), query(), 0)) for w in ([1] * 5, [0.5] * 5, [1, 1, 1, 1, 0])]
    assert [size - sizes[0] for size in sizes] == [0, 4, 20]


def test_asking_for_all_rows_takes_one_byte_and_for_some_a_bit_each():
    assert len(encode_query(query(1000), 1000)) == 36 + 32 + 4 + 1
    assert len(encode_query(query(999), 1000)) == 36 + 32 + 4 + 1 + 125


@pytest.mark.parametrize(("classes", "bits"), [(2, 1), (3, 2), (4, 2), (5, 3), (10, 4), (16, 4), (17, 5), (65_535, 16)])
def test_a_label_takes_the_logarithm_of_the_classes(classes, bits):
    assert codec.label_bits(classes) == bits


# The bytes themselves.


def test_a_release_is_laid_out_as_documented():
    p = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]], np.float32)
    frame = encode_release(Release(p, np.full(5, 0.5, np.float32), NoOp(), "label"), query(), 7)
    # Event 1, one weight for all, 0.5; labels 2 0 1 2 0 in two bits each: 10 00 01 10, 00 and padding.
    assert frame == framed(bytes([1, 1]) + struct.pack("<f", 0.5) + bytes([0b10000110, 0b00000000]), code=2)
    assert frame[:8] == b"FKD" + bytes([1, 2, 2, 3, 0])


def test_a_grid_is_laid_out_as_documented():
    p = np.array([[0, 1, 2], [3, 0, 0]], np.float32) / 3
    frame = encode_release(Release(p, np.ones(2, np.float32), NonPrivate(), "grid2"), query(2), 7)
    assert frame == framed(bytes([0, 0, 0b00011100]), code=18, rows=2)  # 00 01, 11 00; the last class is implied


def test_a_query_is_laid_out_as_documented():
    asked = Query(2, np.array([0, 9]), 3, SHA)
    body = bytes.fromhex(SHA) + struct.pack("<I", 10) + bytes([1, 0b10000000, 0b01000000])
    assert encode_query(asked, 10) == framed(body, kind=1, code=255, rows=0, client=0)


@pytest.mark.parametrize("case", GOLDEN["releases"], ids=lambda case: case["name"])
def test_golden_releases_of_version_1_still_decode_and_are_still_written(case):
    asked = Query(GOLDEN["round"], np.array(GOLDEN["indices"]), GOLDEN["classes"], GOLDEN["fingerprint"])
    frame = bytes.fromhex(case["frame"])
    client, got = decode_release(frame, asked)
    assert client == GOLDEN["client"]
    assert got.p.tolist() == case["p"]
    assert got.w.tolist() == case["w"]
    assert got.encoding == case["encoding"]
    assert type(got.event).__name__ == case["event"]
    assert encode_release(got, asked, client) == frame


@pytest.mark.parametrize("case", GOLDEN["queries"], ids=lambda case: case["name"])
def test_golden_queries_of_version_1_still_decode(case):
    got = decode_query(bytes.fromhex(case["frame"]), GOLDEN["fingerprint"], GOLDEN["transfer_rows"])
    assert (got.round, got.classes) == (GOLDEN["round"], GOLDEN["classes"])
    assert got.indices.tolist() == case["indices"]
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
    frame[3] = 2
    with pytest.raises(CodecError, match="frame has version 2, this fedkd reads 1"):
        decode_release(bytes(frame), query())
    with pytest.raises(CodecError, match="not a fedkd frame"):
        decode_release(b"\x80\x04" + bytes(60), query())
    with pytest.raises(CodecError, match="frame of 0 bytes is shorter than its header of 36"):
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
    body = bytes.fromhex(SHA) + struct.pack("<I", 5) + b"\x00" + b"\x01\b" + b"\x00" * 8
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
    with pytest.raises(CodecError, match="unknown form of weights 3"):
        decode_release(framed(b"\x00\x03"), query())
    with pytest.raises(CodecError, match="unknown form of rows 2"):
        decode_query(framed(bytes.fromhex(SHA) + struct.pack("<I", 5) + b"\x02", kind=1, code=255, rows=0), SHA, 5)


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

SMALL = [
    *(encode_release(release(chain, 3, 2, w=[1, 0, 0.5]), query(3, 2), 7) for chain in CHAINS),
    encode_query(query(3, 2), 3),
    encode_query(query(3, 2), 5),
    encode_query(query(3, 2, feedback=Teacher(release("argmax", 2, 2).p, np.array([0, 4]))), 5, "label"),
]


def decode_any(frame):
    if frame[4:5] == b"\x01" or len(frame) < 5:
        return decode_query(frame, SHA, 5)
    return decode_release(frame, query(3, 2))


@pytest.mark.parametrize("frame", SMALL)
def test_no_frame_survives_the_change_of_a_single_byte(frame):
    def decode(frame):
        return decode_query(frame, SHA, size) if asks else decode_release(frame, query(3, 2))

    asks, size = frame[4] == 1, 3 if frame is SMALL[-3] else 5
    decode(frame)
    for place in range(len(frame)):
        for flip in (1, 2, 3, 19, 0x80, 0xFF):  # 19 turns a label into a grid of one bit
            damaged = frame[:place] + bytes([frame[place] ^ flip]) + frame[place + 1 :]
            with pytest.raises(CodecError):
                decode(damaged)


@pytest.mark.parametrize("frame", SMALL)
def test_no_frame_survives_being_cut(frame):
    for length in range(len(frame)):
        with pytest.raises(CodecError):
            decode_any(frame[:length])


@FAST
@given(st.binary(max_size=200))
def test_random_bytes_raise_a_codec_error(noise):
    for decode in (lambda: decode_release(noise, query()), lambda: decode_query(noise, SHA, 5), lambda: peek(noise)):
        with pytest.raises(CodecError):
            decode()


@FAST
@given(
    st.binary(max_size=80),
    st.sampled_from([0, 1, 2, 17, 18, 20, 24]),
    st.integers(1, 5),
    st.integers(0, 9),
    st.sampled_from([1, 2]),
)
def test_random_bodies_with_a_right_checksum_are_distributions_or_a_codec_error(noise, code, classes, rows, kind):
    asked = Query(2, np.arange(rows), classes, SHA)
    head = b"" if kind == 2 else bytes.fromhex(SHA) + struct.pack("<I", 9)
    frame = framed(head + noise, kind=kind, code=code, classes=classes, rows=rows)
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


@pytest.mark.parametrize("code", [0, 1, 2, 17, 24])
@pytest.mark.parametrize(("rows", "classes"), [(10_000_000, 65_535), (10_000_000, 100), (1000, 65_535), (0, 65_535)])
def test_a_huge_size_in_a_small_frame_allocates_nothing(code, rows, classes):
    answer = framed(b"\x00\x02" + bytes(50), code=code, rows=rows, classes=classes)
    everything = b"\x00" + bytes(50)
    asked = framed(
        bytes.fromhex(SHA) + struct.pack("<I", 1000) + everything, kind=1, code=code, rows=rows, classes=classes
    )
    expected = Query(2, np.broadcast_to(0, (rows,)), classes, SHA)
    tracemalloc.start()
    try:
        for decode in (lambda: decode_release(answer, expected), lambda: decode_query(asked, SHA, 1000)):
            with pytest.raises(CodecError):
                decode()
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_labels_that_would_unpack_to_a_thousand_times_their_size_are_refused_by_whoever_knows_the_classes():
    body = bytes.fromhex(SHA) + struct.pack("<I", 1000) + b"\x00\x00" + bytes(2000)
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
