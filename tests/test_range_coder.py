"""The range coder: what goes in comes out, in as many bytes as there is information, and never more is read."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.errors import CodecError
from fedkd.range_coder import PER_BYTE, Decoder, Encoder, decode, encode, number

GOLDEN = json.loads((Path(__file__).parent / "vectors" / "range_coder.json").read_text(encoding="utf-8"))
FAST = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def source(rng, alphabet, n_contexts, n, *, alpha=0.3):
    """Draw symbols whose chances depend on a context, and the context of each."""
    chances = rng.dirichlet(np.full(alphabet, alpha), n_contexts)
    contexts = rng.integers(n_contexts, size=n)
    return (chances[contexts].cumsum(axis=1) < rng.random((n, 1))).sum(axis=1).clip(max=alphabet - 1), contexts


def conditional_entropy(symbols, contexts):
    """Return the bytes that the empirical conditional entropy amounts to."""
    bits = 0.0
    for context in np.unique(contexts):
        counts = np.bincount(symbols[contexts == context])
        counts = counts[counts > 0]
        bits -= (counts * np.log2(counts / counts.sum())).sum()
    return bits / 8


@FAST
@given(
    alphabet=st.integers(1, 300),
    n_contexts=st.integers(1, 9),
    n=st.integers(0, 80),
    alpha=st.sampled_from([0.01, 1.0]),
    seed=st.integers(0, 2**32),
)
def test_symbols_come_back(alphabet, n_contexts, n, alpha, seed):
    symbols, contexts = source(np.random.default_rng(seed), alphabet, n_contexts, n, alpha=alpha)
    data = encode(symbols, contexts, alphabet, n_contexts)
    assert decode(data, contexts, alphabet, n_contexts).tolist() == symbols.tolist()


@FAST
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 3)), max_size=300))
def test_decisions_come_back(made):
    coder = Encoder()
    assert [coder.bit(value, "all", context) for value, context in made] == [value for value, _ in made]
    reader = Decoder(coder.done())
    assert [reader.bit(0, "all", context) for _, context in made] == [value for value, _ in made]
    reader.end()


@pytest.mark.parametrize(("alphabet", "n_contexts"), [(2, 1), (3, 2), (10, 1), (10, 5), (100, 1)])
def test_a_long_source_takes_its_conditional_entropy(alphabet, n_contexts):
    symbols, contexts = source(np.random.default_rng(alphabet), alphabet, n_contexts, 4000)
    least = conditional_entropy(symbols, contexts)
    assert least < len(encode(symbols, contexts, alphabet, n_contexts)) < 1.05 * least + 8
    blind = len(encode(symbols, np.zeros_like(contexts), alphabet, 1))
    assert n_contexts == 1 or blind > 1.1 * least  # a context that is ignored costs


def test_a_thousand_labels_of_ten_classes_are_enough_to_learn_from():
    symbols, contexts = source(np.random.default_rng(0), 10, 4, 1000)
    assert len(encode(symbols, contexts, 10, 4)) < 1.1 * conditional_entropy(symbols, contexts)


def test_what_can_be_foreseen_costs_next_to_nothing():
    zeros = np.zeros(10_000, np.int64)
    assert len(encode(zeros, zeros, 2, 1)) <= 4
    assert encode(zeros, zeros, 1, 1) == encode(zeros[:0], zeros[:0], 10, 1) == b"\0"


def test_the_first_decisions_cost_what_the_counts_say():
    # After n ones the chance of a one is (n + 2 / 2) / (n + 2): 1/2, 2/3, 3/4 ... and their product is 1 / (n + 1).
    coder = Encoder()
    for _ in range(127):
        coder.bit(1, "any")
    assert coder._range / 2**32 == pytest.approx(1 / 128, rel=0.01)


def test_a_new_context_leans_on_the_general_one():
    def price(*contexts):
        coder = Encoder()
        for _ in range(50):
            coder.bit(1, "all")
        before = coder._range
        coder.bit(1, *contexts)
        return math.log2(before / coder._range)

    assert price("all", "new") == pytest.approx(price("all"), abs=1e-3)
    assert price("new") == pytest.approx(1, abs=1e-3)


def test_what_was_long_ago_is_forgotten():
    rng = np.random.default_rng(0)
    turned = np.concatenate([rng.random(9000) < 0.02, rng.random(3000) < 0.98]).astype(np.int64)
    where = np.zeros(len(turned), np.int64)
    both, known = len(encode(turned, where, 2, 1)), len(encode(turned, (np.arange(12_000) >= 9000).astype(int), 2, 2))
    counted = 12_000 * 0.811 / 8  # what it would take by the share of ones in all of it, a quarter
    assert known < both < 3.5 * known < counted


@pytest.mark.parametrize("most", [0, 1, 4, 6, 7])
def test_a_number_takes_only_the_bits_that_its_largest_value_leaves_open(most):
    coder = Encoder()
    for value in range(most + 1):
        assert number(coder, value, 3, most, "any") == value
    reader = Decoder(coder.done())
    assert [number(reader, 0, 3, most, "any") for _ in range(most + 1)] == list(range(most + 1))
    assert most or coder.done() == b"\0"


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_golden_bytes_are_still_written_and_read(case):
    symbols, contexts = np.array(case["symbols"], np.int64), np.array(case["contexts"], np.int64)
    sizes = case["alphabet"], case["n_contexts"]
    assert encode(symbols, contexts, *sizes).hex() == case["data"]
    assert decode(bytes.fromhex(case["data"]), contexts, *sizes).tolist() == case["symbols"]


# Hostile bytes.


@FAST
@given(noise=st.binary(max_size=40), alphabet=st.integers(1, 40), n=st.integers(0, 60))
def test_random_bytes_are_symbols_or_a_codec_error(noise, alphabet, n):
    contexts = np.zeros(n, np.int64)
    try:
        got = decode(noise, contexts, alphabet, 1)
    except CodecError:
        return
    assert len(got) == n
    assert n == 0 or 0 <= got.min() <= got.max() < alphabet


@FAST
@given(seed=st.integers(0, 1000), extra=st.binary(min_size=1, max_size=5))
def test_bytes_too_few_or_too_many_are_refused(seed, extra):
    symbols, contexts = source(np.random.default_rng(seed), 5, 2, 40)
    data = encode(symbols, contexts, 5, 2)
    with pytest.raises(CodecError, match=f"have {len(data) + len(extra)} bytes, expected {len(data)}"):
        decode(data + extra, contexts, 5, 2)
    with pytest.raises(CodecError):
        decode(b"", contexts, 5, 2)


@pytest.mark.parametrize("noise", [b"\0", b"\xff", b"\0" * 4, b"\xff" * 4, b"\x80\0\0\0"])
def test_a_byte_cannot_claim_more_decisions_than_it_can_hold(noise):
    reader, count = Decoder(noise), 0
    with pytest.raises(CodecError, match=f"end early, after {len(noise)} bytes"):
        while count <= PER_BYTE * len(noise):
            reader.bit(0, "any")
            count += 1
    assert count <= PER_BYTE * len(noise)


@pytest.mark.parametrize(("symbols", "contexts"), [([3], [0]), ([-1], [0]), ([0], [2]), ([0], [-1])])
def test_symbols_and_contexts_must_be_in_range(symbols, contexts):
    with pytest.raises(CodecError, match=r"must be in 0\.\."):
        encode(np.array(symbols), np.array(contexts), 3, 2)
