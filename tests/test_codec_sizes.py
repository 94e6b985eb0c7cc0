"""Frames take the bytes that the table says, and are laid out as documented."""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from codec_scene import EXPERTISE, SHA, conversation, floats, framed, query, release, skewed

from fedkd.codec import (
    decode_query,
    decode_release,
    encode_query,
    encode_release,
    remember,
    remember_feedback,
)
from fedkd.events import NonPrivate, NoOp
from fedkd.records import Query, Release, Teacher
from fedkd.release import prepare
from fedkd.symbols import label_bits

GOLDEN = json.loads((Path(__file__).parent / "vectors" / "frames_v2.json").read_text(encoding="utf-8"))


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
