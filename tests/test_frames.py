"""Rows in the shortest form, numbers in seven bits a byte."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.errors import CodecError
from fedkd.frames import Reader, pack_rows, unpack_rows, varint

FAST = settings(max_examples=150, deadline=None, derandomize=True, database=None)


@FAST
@given(size=st.integers(0, 3000), share=st.sampled_from([0.0, 0.003, 0.05, 0.3, 0.9, 1.0]), seed=st.integers(0, 1000))
def test_rows_come_back_in_a_form_that_is_no_longer_than_the_others(size, share, seed):
    rows = np.flatnonzero(np.random.default_rng(seed).random(size) < share)
    packed = pack_rows(rows, size)
    reader = Reader(packed)
    assert unpack_rows(reader, size).tolist() == rows.tolist()
    reader.end()
    assert len(packed) <= 1 + (size + 7) // 8
    if len(rows):
        assert len(packed) <= 5 + len(rows) * (2 + np.log2(size / len(rows))) / 8


def test_few_rows_are_laid_out_as_documented():
    # Three of 64: floor(log2(64 / 3)) = 4 low bits, 0101 1111 0000; high parts 0 1 3 as 1 01 001, then a zero.
    assert pack_rows(np.array([5, 31, 48]), 64) == bytes([2, 3, 0b01011111, 0b00000000, 0b10100100])
    assert pack_rows(np.array([], np.int64), 64) == bytes([2, 0])


@pytest.mark.parametrize(
    "hostile", [b"\2\x40", b"\2\xff\xff\xff\xff\x0f", b"\2\3\x5f", b"\2\3\x5f\0\0", b"\2\3\0\0\xfe", b"\2\3\0\0\xe0"]
)
def test_rows_that_repeat_or_lie_outside_are_refused(hostile):
    with pytest.raises(CodecError):
        unpack_rows(Reader(hostile), 64)


@FAST
@given(noise=st.binary(max_size=30), size=st.integers(0, 200))
def test_random_bytes_are_sorted_rows_or_a_codec_error(noise, size):
    try:
        rows = unpack_rows(Reader(noise), size)
    except CodecError:
        return
    assert (np.diff(rows) > 0).all()
    assert not len(rows) or 0 <= rows[0] <= rows[-1] < size


@given(st.integers(0, 2**64 - 1))
@FAST
def test_numbers_come_back(number):
    assert Reader(varint(number)).varint() == number
    assert len(varint(number)) == max(1, -(-number.bit_length() // 7))
