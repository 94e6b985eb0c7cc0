"""Symbols and weights: grids by hand, and models that are the same for both directions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.range_coder import Decoder, Encoder
from fedkd.symbols import (
    ANY,
    EIGHTHS,
    NOTHING,
    STEPS,
    WALK,
    Context,
    code_labels,
    code_levels,
    code_weights,
    to_soft_labels,
    to_symbols,
    weight_levels,
    weights_at,
)

FAST = settings(max_examples=60, deadline=None, derandomize=True, database=None)


# Weights.


def test_levels_of_weights_by_hand():
    # 4 bits, powers of 2: the largest, 1/2, is level 15; 2^-13.6 rounds to 2^-14, level 2; 2^-40 is below the window.
    w = np.array([0.5, 0.25, 0.0, 2**-13.6, 2**-40], np.float32)
    top, levels = weight_levels(w, 4)
    assert (top, levels.tolist()) == (-1, [15, 14, 0, 2, 1])
    assert weights_at(levels, top, 4).tolist() == [0.5, 0.25, 0.0, 2**-14, 2**-15]
    # 6 bits, powers of the square root of 2: 0.5 is place -2.
    top, levels = weight_levels(np.array([0.5, 0.36], np.float32), 6)
    assert (top, levels.tolist()) == (-2, [63, 62])
    assert weights_at(levels, top, 6) == pytest.approx([0.5, 0.5**1.5])


def test_steps_of_an_eighth_are_powers_of_two():
    assert np.abs(EIGHTHS / 2 ** (np.arange(8) / 8) - 1).max() < 1e-15


@FAST
@given(bits=st.integers(1, 8), seed=st.integers(0, 1000), spread=st.sampled_from([0.0, 3.0, 30.0]))
def test_a_weight_in_the_window_moves_by_half_a_step_and_zero_stays_zero(bits, seed, spread):
    rng = np.random.default_rng(seed)
    w = (2.0 ** rng.normal(-10, spread, 50)).clip(2**-126, 2**126).astype(np.float32)
    w[rng.random(50) < 0.1] = 0
    top, levels = weight_levels(w, bits)
    kept = weights_at(levels, top, bits)
    assert ((kept > 0) == (w > 0)).all()
    assert levels.max(initial=0) < 2**bits
    octaves = STEPS[bits] / 8
    inside = (w > 0) & (levels > 1)
    assert np.abs(np.log2(kept[inside] / w[inside])).max(initial=0) <= octaves / 2 + 1e-5
    assert (kept[levels == 1] * 2 ** (octaves / 2) >= w[levels == 1] * 0.999).all()  # never raised from the window down
    again = weight_levels(kept, bits)
    assert again[0] == top
    assert (weights_at(again[1], again[0], bits) == kept).all()


@pytest.mark.parametrize("bits", range(1, 9))
def test_no_weight_is_lost_at_the_ends_of_single_precision(bits):
    for w in ([1e-45, 1e-38], [3.4e38, 1e-45], [3.4e38], [1e-45], [0.0]):
        kept = rounded(np.array(w, np.float32), bits)
        assert np.isfinite(kept).all()
        assert ((kept > 0) == (np.array(w) > 0)).all()


def rounded(w, bits):
    top, levels = weight_levels(w, bits)
    return weights_at(levels, top, bits)


def test_weights_of_two_clients_lie_on_one_grid():
    a, b = (rounded(w, 6) for w in (np.array([0.3, 0.1]), np.array([700.0, 0.1])))
    assert a[1] == b[1]


# Models.


def drawn(seed, rows, classes, units, *, own, taught):
    """Draw levels (n, C), and a context in which both ends know something of some rows."""
    rng = np.random.default_rng(seed)
    levels = rng.multinomial(units, rng.dirichlet(np.full(classes, 0.2)), size=rows).astype(np.uint8)
    before = np.where(rng.random((rows, 1)) < 0.7, levels, rng.permuted(levels, axis=1))
    seen = rng.random(rows) < (0.7 if own else 0)
    teacher = rng.dirichlet(np.full(classes, 0.2), rows).astype(np.float32) * (rng.random((rows, 1)) < 0.6)
    age = rng.integers(4, size=rows)
    w = np.ones(rows, np.float32)
    return levels, Context(seen, before if own else None, age, w, teacher if taught else None)


@FAST
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(0, 20),
    classes=st.sampled_from([1, 2, 3, 10, WALK, WALK + 1, 40]),
    bits=st.integers(1, 8),
    own=st.booleans(),
    taught=st.booleans(),
)
def test_levels_and_labels_come_back_whatever_is_known(seed, rows, classes, bits, own, taught):
    units = 2**bits - 1
    levels, context = drawn(seed, rows, classes, units, own=own, taught=taught)
    writer = Encoder()
    wrote = code_levels(writer, levels, units, classes, context)
    labels = levels.argmax(axis=1).tolist()
    assert code_labels(writer, labels, classes, context) == labels
    reader = Decoder(writer.done())
    got = code_levels(reader, None, units, classes, context)
    assert [list(row.items()) for row in got] == [list(row.items()) for row in wrote]  # in the same order
    assert [sum(row.values()) for row in got] == [units] * rows
    assert all(levels[row, c] == level for row, found in enumerate(got) for c, level in found.items())
    assert code_labels(reader, ANY, classes, context) == labels
    reader.end()


@FAST
@given(seed=st.integers(0, 1000), bits=st.integers(1, 8))
def test_weight_levels_come_back(seed, bits):
    rng = np.random.default_rng(seed)
    levels, classes = rng.integers(2**bits, size=40).tolist(), rng.integers(3, size=40).tolist()
    own = [level if rng.random() < 0.5 else NOTHING for level in levels]
    writer = Encoder()
    assert code_weights(writer, levels, bits, own, classes) == levels
    reader = Decoder(writer.done())
    assert code_weights(reader, ANY, bits, own, classes) == levels
    reader.end()


def size_of(labels, context):
    coder = Encoder()
    code_labels(coder, labels.tolist(), 10, context)
    return len(coder.done())


def test_what_both_ends_know_makes_labels_cheap():
    rng = np.random.default_rng(0)
    labels = rng.integers(10, size=1000)
    nine_in_ten = np.where(rng.random(1000) < 0.9, labels, rng.integers(10, size=1000))
    none, every, teacher = np.zeros(1000, bool), np.ones(1000, bool), 0.9 * np.eye(10)[nine_in_ten] + 0.01
    blind = size_of(labels, Context(none))
    own = size_of(labels, Context(every, nine_in_ten, np.full(1000, 3), np.ones(1000)))
    taught = size_of(labels, Context(none, teacher=teacher))
    both = size_of(
        labels, Context(every, nine_in_ten, np.full(1000, 3), np.ones(1000), np.eye(10)[labels] * 0.9 + 0.01)
    )
    assert 415 < blind < 450  # log2(10) bits each
    assert both < 60 < own < 125
    assert taught < 125


def test_labels_that_changed_before_are_foreseen_to_change():
    rng = np.random.default_rng(0)
    restless = rng.random(1000) < 0.1
    before = rng.integers(10, size=1000)
    labels = np.where(restless & (rng.random(1000) < 0.5), (before + 1) % 10, before)
    every, w = np.ones(1000, bool), np.ones(1000)
    knowing = size_of(labels, Context(every, before, np.where(restless, 0, 3), w))
    assert knowing < 0.8 * size_of(labels, Context(every, before, np.full(1000, 3), w))


def test_the_checksum_is_about_what_is_used():
    own, age, w = np.array([1, 2, 0]), np.array([0, 1, 2]), np.array([1.0, 2.0, 4.0])
    seen = np.array([True, True, False])
    first = Context(seen, own, age, w).checksum()
    assert Context(seen).checksum() == 0
    assert Context(seen, np.array([1, 2, 9]), age, w).checksum() == first
    for other in (
        Context(np.array([True, False, True]), own, age, w),
        Context(seen, np.array([2, 1, 0]), age, w),
        Context(seen, own, np.array([1, 1, 2]), w),
        Context(seen, own, age, np.array([1.0, 3.0, 4.0])),
        Context(seen, own, age, w, np.eye(3)),
    ):
        assert other.checksum() != first


@pytest.mark.parametrize(
    ("encoding", "p"), [("label", [[0, 1, 0]]), ("grid2", [[1 / 3, 0, 2 / 3]]), ("top2", [[0.25, 0, 0.75]])]
)
def test_symbols_stand_for_soft_labels(encoding, p):
    p = np.array(p, np.float32)
    assert (to_soft_labels(to_symbols(p, encoding), encoding, 3) == p).all()
