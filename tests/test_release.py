"""Mechanisms: what is done to soft labels before they leave."""

import importlib.util
import itertools
import sys

import numpy as np
import pytest

from fedkd.codec import decode_release, encode_release
from fedkd.errors import ExtraError, SpecError
from fedkd.events import NonPrivate
from fedkd.records import Query, Release
from fedkd.release import check, prepare, simplex_grid

A, B = [0.5, 0.3, 0.2], [0.1, 0.15, 0.75]


def rng(seed=0):
    return np.random.default_rng(seed)


def release(p):
    p = np.asarray(p, np.float32)
    return Release(p, np.ones(len(p), np.float32))


def test_float32_sends_what_there_is():
    sent = prepare("float32", release([A, B]), rng())
    assert (sent.p == np.array([A, B], np.float32)).all()
    assert sent.encoding == "float32"


def test_float16_rounds_by_at_most_2_to_the_minus_12():
    p = rng().dirichlet(np.ones(5), 1000).astype(np.float32)
    sent = prepare("float16", release(p), rng())
    assert sent.p.dtype == np.float32
    assert 0 < np.abs(sent.p - p).max() <= 2**-12
    assert (sent.p.astype(np.float16) == sent.p).all()


def test_argmax_by_hand():
    assert prepare("argmax", release([A, B]), rng()).p.tolist() == [[1, 0, 0], [0, 0, 1]]
    assert prepare("argmax", release([[0.2, 0.4, 0.4]]), rng()).p.tolist() == [[0, 1, 0]]


def test_quantize_by_hand():
    # 2 bits are 3 units. A: 1.5, .9, .6 -> 1, 0, 0; two missing go to the remainders .9 and .6: 1, 1, 1.
    # B: .3, .45, 2.25 -> 0, 0, 2; the missing one goes to the remainder .45: 0, 1, 2.
    sent = prepare("quantize(bits=2)", release([A, B]), rng())
    assert sent.p == pytest.approx(np.array([[1, 1, 1], [0, 1, 2]]) / 3)
    assert sent.encoding == "grid2"


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_quantize_finds_a_nearest_point_of_the_simplex(bits):
    units = 2**bits - 1
    grid = np.array([g for g in itertools.product(range(units + 1), repeat=3) if sum(g) == units]) / units
    p = rng().dirichlet(np.ones(3), 500).astype(np.float32)
    p = np.concatenate([p, np.eye(3), np.full((1, 3), 1 / 3), [[0.5, 0.5, 0.0]]]).astype(np.float32)
    sent = prepare(f"quantize(bits={bits})", release(p), rng()).p
    least = np.abs(p[:, None] - grid).sum(axis=2).min(axis=1)
    assert np.abs(p - sent).sum(axis=1) == pytest.approx(least, abs=1e-5)


def test_one_bit_is_the_argmax():
    p = rng().dirichlet(np.ones(6), 500).astype(np.float32)
    assert (prepare("quantize(bits=1)", release(p), rng()).p == prepare("argmax", release(p), rng()).p).all()


def test_one_bit_of_a_flat_row_is_some_class_and_not_zero_by_zero():
    sent = prepare("quantize(bits=1)", release(np.full((3000, 3), 1 / 3)), rng()).p
    assert (np.sort(sent, axis=1) == [0, 0, 1]).all()
    assert sent.mean(axis=0) == pytest.approx([1 / 3] * 3, abs=0.05)  # ties are broken at random, not by position


@pytest.mark.parametrize("bits", range(1, 9))
def test_quantizing_twice_is_quantizing_once(bits):
    p = rng().dirichlet(np.ones(7), 300).astype(np.float32)
    once = prepare(f"quantize(bits={bits})", release(p), rng())
    again = prepare(f"quantize(bits={bits})", once, rng(1))
    assert (once.p == again.p).all()


@pytest.mark.parametrize("bits", range(1, 9))
def test_no_entry_moves_by_more_than_one_unit(bits):
    p = rng().dirichlet(np.ones(7), 300).astype(np.float32)
    sent = prepare(f"quantize(bits={bits})", release(p), rng()).p
    assert np.abs(sent - p).max() < 1 / (2**bits - 1)


def test_rows_of_the_simplex_grid_sum_to_the_units_exactly_even_for_many_classes():
    p = rng().dirichlet(np.ones(3000) * 0.1, 20).astype(np.float32)
    assert (simplex_grid(p, 255, rng()).sum(axis=1, dtype=int) == 255).all()


def test_rows_that_sum_to_one_but_for_rounding_are_treated_as_if_they_did():
    p = np.array([A, B]) * [[1.0009], [0.9991]]
    assert (simplex_grid(p, 15, rng()) == simplex_grid(np.array([A, B]), 15, rng())).all()


@pytest.mark.parametrize("bits", [0, 9, -1])
def test_a_grid_that_the_wire_does_not_know_is_refused(bits):
    with pytest.raises(SpecError, match=rf"'bits' must be in 1..8, got {bits}"):
        prepare(f"quantize(bits={bits})", release([A]), rng())


def test_top_k_by_hand():
    # A: .5 and .3 of .8 are .625 and .375, both halves. B: .75 and .15 of .9; 1/6 rounds down to 0x3155, 1365 / 8192.
    sent = prepare("top_k(k=2)", release([A, B]), rng())
    assert sent.p.tolist() == [[0.625, 0.375, 0], [0, 1365 / 8192, 1 - 1365 / 8192]]
    assert sent.encoding == "top2"
    assert prepare("top_k(k=1)", release([A, B]), rng()).p.tolist() == [[1, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize("k", [1, 2, 3, 5, 64])
def test_top_k_keeps_the_most_probable_and_sums_to_one_exactly(k):
    p = np.concatenate([rng().dirichlet(np.ones(20) * 0.2, 300), np.full((1, 20), 0.05)]).astype(np.float32)
    sent = prepare(f"top_k(k={k})", release(p), rng())
    assert (sent.p.sum(axis=1, dtype=np.float64) == 1).all()
    assert (sent.p.argmax(axis=1) == p.argmax(axis=1)).all()
    kept = np.argsort(-p, axis=1, kind="stable")[:, :k]
    exact = np.zeros((301, 20))
    np.put_along_axis(exact, kept, np.take_along_axis(p, kept, axis=1), axis=1)
    exact /= exact.sum(axis=1, keepdims=True)
    assert (sent.p[exact == 0] == 0).all()
    down = exact - sent.p
    np.put_along_axis(down, kept[:, :1], 0, axis=1)
    assert down.min() >= -1e-7
    assert down.max() < 2**-12
    assert (prepare(f"top_k(k={k})", sent, rng()).p == sent.p).all()


@pytest.mark.parametrize("k", [0, 65])
def test_a_number_of_classes_that_the_wire_does_not_know_is_refused(k):
    with pytest.raises(SpecError, match=rf"'k' must be in 1..64, got {k}"):
        prepare(f"top_k(k={k})", release([A]), rng())


def test_weights_by_hand():
    w = np.array([0.5, 0.2, 0.0, 2.0**-30], np.float32)
    sent = prepare("weights(bits=4)", Release(np.array([A] * 4, np.float32), w), rng())
    assert sent.w.tolist() == [0.5, 0.25, 0.0, 2.0**-15]  # powers of two, and the last of fifteen places
    assert (sent.weight_bits, sent.encoding) == (4, "float32")
    assert prepare("weights(bits=1)", Release(sent.p, w), rng()).w.tolist() == [1, 1, 0, 1]
    with pytest.raises(SpecError, match="'bits' must be in 1..8, got 9"):
        prepare("weights(bits=9)", sent, rng())


def test_marks_change_nothing_but_the_coding_wherever_they_stand():
    plain = prepare("weights | quantize(bits=3)", release([A, B]), rng())
    for chain in ("delta | range_code | weights | quantize(bits=3)", "weights | range_code | quantize(bits=3) | delta"):
        marked = prepare(chain, release([A, B]), rng())
        assert marked.coding == {"delta", "range_code"}
        assert (marked.p == plain.p).all()
        assert (marked.w == plain.w).all()
        assert (marked.encoding, marked.weight_bits, marked.event) == (plain.encoding, 6, plain.event)


@pytest.mark.parametrize(
    "chain", ["range_code", "float32 | range_code", "range_code | argmax | float16", "top_k | range_code"]
)
def test_floats_cannot_be_range_coded(chain):
    with pytest.raises(SpecError, match="'range_code' needs labels or a grid, got (float|top)"):
        prepare(chain, release([A]), rng())
    with pytest.raises(SpecError, match="'range_code' needs labels or a grid"):
        check(chain)


def test_a_chain_is_checked_without_a_release():
    check("float16 | argmax | delta | range_code | weights(bits=4)")
    with pytest.raises(SpecError, match="one part between two '|' is empty"):
        check("")
    with pytest.raises(SpecError, match="must be in 1..8"):
        check("quantize(bits=12)")


def test_compression_names_what_it_lacks(monkeypatch):
    if importlib.util.find_spec("zstandard"):
        assert prepare("float16 | zstd", release([A]), rng()).coding == {"zstd"}
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ExtraError, match=r"'zstd' needs zstandard.*fedkd\[light\]"):
        check("float16 | zstd")


CHAINS = [
    "top_k(k=2) | quantize(bits=3)",
    "quantize(bits=3) | top_k(k=2) | weights | delta",
    "argmax | range_code | weights",
    "top_k | quantize(bits=5) | range_code",
    "float16 | float32",
    "quantize(bits=4) | float16",
    "argmax | float16",
    "quantize(bits=2) | argmax",
    "float16 | quantize(bits=8)",
    "argmax | quantize(bits=3)",
    "quantize(bits=8) | quantize(bits=2) | float32",
]


@pytest.mark.parametrize("chain", CHAINS)
def test_a_chain_runs_from_the_left_and_the_last_encoding_loses_nothing(chain):
    p = rng().dirichlet(np.ones(3), 50).astype(np.float32)
    by_hand, generator = release(p), rng()
    for step in chain.split("|"):
        by_hand = prepare(step, by_hand, generator)
    sent = prepare(chain, release(p), rng())
    assert (sent.p == by_hand.p).all()
    query = Query(1, np.arange(50), 3, "ab" * 32)
    assert (decode_release(encode_release(sent, query, 0), query)[1].p == sent.p).all()


def test_the_event_and_the_weights_pass_through_a_chain_untouched():
    w = np.array([0.25, 4.0], np.float32)
    sent = prepare("float16 | quantize(bits=4)", Release(np.array([A, B], np.float32), w, NonPrivate()), rng())
    assert sent.event == NonPrivate()
    assert sent.w is w


@pytest.mark.parametrize(
    ("chain", "words"),
    [
        ("argmax | float16", "one class only, and 'float16' would send them at full price"),
        ("argmax | weights | top_k(k=3)", "'top_k' would send them at full price"),
        ("quantize(bits=1) | delta | float32", "few levels only, and 'float32'"),
    ],
)
def test_a_finer_encoding_of_what_is_coarse_already_is_refused(chain, words):
    with pytest.raises(SpecError, match=words):
        check(chain)


def test_a_coarser_encoding_may_follow_a_finer_one():
    for chain in ("float16 | argmax", "top_k | quantize(bits=2)", "quantize(bits=4) | argmax", "float16 | float32"):
        check(chain)
