"""Each aggregator by hand, on two clients and three classes; what holds for all of them is in test_laws.py."""

import tracemalloc

import numpy as np
import pytest

from fedkd.aggregation import aggregator, in_chunks, stack
from fedkd.errors import SpecError
from fedkd.records import Release

A, B = [0.6, 0.3, 0.1], [0.2, 0.2, 0.6]
P = np.array([[A], [B]])  # two clients, one row
EQUAL, SKEWED = np.ones((2, 1)), np.array([[1.0], [3.0]])


def teach(spec, p=P, w=EQUAL):
    return aggregator.build(spec)(np.asarray(p), np.asarray(w))


def test_mean_by_hand():
    assert teach("mean")[0] == pytest.approx([0.4, 0.25, 0.35])
    # (1 * .6 + 3 * .2) / 4 = 1.2 / 4, (.3 + .6) / 4, (.1 + 1.8) / 4
    assert teach("mean", w=SKEWED)[0] == pytest.approx([0.3, 0.225, 0.475])


def test_log_mean_by_hand():
    # Roots of .6 * .2 = .12, .3 * .2 = .06, .1 * .6 = .06: in proportion to sqrt 2, 1, 1.
    assert teach("log_mean")[0] == pytest.approx(np.array([2**0.5, 1, 1]) / (2 + 2**0.5))
    # Weights 1 and 3 of 4: .6^.25 * .2^.75 and so on.
    z = np.array([0.6 * 0.2**3, 0.3 * 0.2**3, 0.1 * 0.6**3]) ** 0.25
    assert teach("log_mean", w=SKEWED)[0] == pytest.approx(z / z.sum())


def test_log_mean_is_the_softmax_of_the_mean_logits():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(3, 4, 5))
    e = np.exp(z)
    mean = np.exp(z.mean(axis=0))
    expected = mean / mean.sum(axis=-1, keepdims=True)
    assert teach("log_mean", e / e.sum(axis=-1, keepdims=True), np.ones((3, 4))) == pytest.approx(expected)


def test_log_mean_lets_one_client_veto_a_class_and_mean_does_not():
    p = np.array([[[0.0, 0.5, 0.5]], [[0.9, 0.1, 0.0]]])
    assert teach("log_mean", p)[0].argmax() == 1
    assert teach("mean", p)[0].argmax() == 0


def test_vote_by_hand():
    assert teach("vote")[0].tolist() == [0.5, 0.0, 0.5]
    assert teach("vote", w=SKEWED)[0].tolist() == [0.25, 0.0, 0.75]
    assert teach("vote", [[[0.4, 0.4, 0.2]]], [[1.0]])[0].tolist() == [1.0, 0.0, 0.0]  # the lower class of a tie


def test_median_by_hand():
    # Two equal clients: halfway between them. With 3 of 4 the second is the median of every class.
    assert teach("median")[0] == pytest.approx([0.4, 0.25, 0.35])
    assert teach("median", w=SKEWED)[0] == pytest.approx(B)
    # Three: .6 .2 .3 -> .3; .3 .2 .3 -> .3; .1 .6 .4 -> .4. They sum to 1.
    assert teach("median", [[A], [B], [[0.3, 0.3, 0.4]]], np.ones((3, 1)))[0] == pytest.approx([0.3, 0.3, 0.4])


def test_median_weighs_clients_by_how_much_they_count_and_not_only_by_whether():
    p = np.array([[A], [B], [B]])
    assert teach("median", p, [[1.0], [1.0], [1.0]])[0] == pytest.approx(B)
    assert teach("median", p, [[3.0], [1.0], [1.0]])[0] == pytest.approx(A)


def test_trimmed_mean_by_hand():
    # Of a weight of 2, 0.4 goes on each side: 0.6 of each client stays.
    assert teach("trimmed_mean(trim=0.2)")[0] == pytest.approx([0.4, 0.25, 0.35])
    # Of 4, 1 goes on each side. Sorted by value, class 0: .2 fills [0, 3], .6 fills [3, 4]; [1, 3] stays, all .2.
    # Class 1: .2, .3 alike -> .2. Class 2: .1 fills [0, 1], .6 fills [1, 4] -> .6.
    assert teach("trimmed_mean(trim=0.25)", w=SKEWED)[0] == pytest.approx([0.2, 0.2, 0.6])
    assert teach("trimmed_mean(trim=0.0)", w=SKEWED)[0] == pytest.approx(teach("mean", w=SKEWED)[0])


def test_trimmed_mean_of_equal_weights_is_that_of_the_textbook():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), (10, 7))
    middle = np.sort(p, axis=0)[2:-2].mean(axis=0)
    expected = middle / middle.sum(axis=-1, keepdims=True)
    assert teach("trimmed_mean(trim=0.2)", p, np.ones((10, 7))) == pytest.approx(expected)


@pytest.mark.parametrize("trim", [-0.1, 0.5, 1.0])
def test_a_trim_that_leaves_nothing_is_refused(trim):
    with pytest.raises(SpecError, match=rf"'trim' must be in \[0, 0.5\), got {trim}"):
        teach(f"trimmed_mean(trim={trim})")


@pytest.mark.parametrize("spec", ["median", "trimmed_mean(trim=0.4)"])
def test_three_different_votes_are_a_tie_and_not_silence(spec):
    votes = np.eye(3)[:, None, :]  # each coordinate is 0, 0, 1: all medians are zero
    assert teach(spec, votes, np.ones((3, 1)))[0] == pytest.approx([1 / 3, 1 / 3, 1 / 3])


def test_a_mixture_of_experts_believes_whoever_knows():
    # Both are equally sure, but the first client knows 9 times as much about this sample.
    p = np.array([[[0.9, 0.05, 0.05]], [[0.05, 0.9, 0.05]]])
    # (9 * .9 + .05) / 10 = .815, (9 * .05 + .9) / 10 = .135
    assert teach("mean", p, [[0.9], [0.1]])[0] == pytest.approx([0.815, 0.135, 0.05])


@pytest.mark.parametrize("scale", [1e-43, 1e-38, 1e30, 3e38])
@pytest.mark.parametrize("name", aggregator.names())
def test_weights_near_the_ends_of_single_precision_neither_overflow_nor_vanish(name, scale):
    p = P.astype(np.float32)
    one = teach(name, p, np.ones((2, 1), np.float32))
    assert teach(name, p, np.full((2, 1), scale, np.float32)) == pytest.approx(one)


@pytest.mark.parametrize("name", aggregator.names())
def test_an_extreme_weight_in_one_row_does_not_touch_another(name):
    p = np.concatenate([P, P], axis=1).astype(np.float32)
    w = np.array([[3e38, 1.0], [3e38, 3.0]], np.float32)
    assert teach(name, p, w)[1].tolist() == teach(name, p[:, 1:], w[:, 1:])[0].tolist()


def test_a_thousand_clients_are_summed_without_loss():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(10), (1000, 3)).astype(np.float32)
    w = rng.random((1000, 3)).astype(np.float32)
    exact = (p.astype(np.float64) * w[..., None]).sum(axis=0) / w.astype(np.float64).sum(axis=0)[:, None]
    assert teach("mean", p, w) == pytest.approx(exact, rel=1e-4)
    share = teach("median", p, np.ones((1000, 3), np.float32))
    exact = np.median(p, axis=0)
    assert share == pytest.approx(exact / exact.sum(axis=-1, keepdims=True), rel=1e-4)


def test_many_classes_are_no_obstacle():
    p = np.full((2, 3, 5000), 1 / 5000, np.float32)
    for name, aggregate in aggregator:
        assert aggregate(p, np.ones((2, 3), np.float32)).sum(axis=1) == pytest.approx(1, abs=1e-3), name


def releases(clients, rows, classes=10):
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(classes), (clients, rows)).astype(np.float32)
    w = (rng.random((clients, rows)) * (rng.random((clients, rows)) > 0.3)).astype(np.float32)
    return [Release(p[k], w[k]) for k in range(clients)]


def test_stacking_takes_the_rows_of_each_client_in_their_order():
    some = releases(3, 6)
    ballots = stack(some, slice(2, 5))
    assert ballots.p.shape == (3, 3, 10)
    assert (ballots.p[1] == some[1].p[2:5]).all()
    assert (ballots.w[2] == some[2].w[2:5]).all()


@pytest.mark.parametrize("rows", [1, 7, 36, 37, 1000])
@pytest.mark.parametrize("name", aggregator.names())
def test_the_size_of_a_chunk_does_not_change_a_bit(name, rows):
    aggregate = aggregator.build(name)
    some = releases(9, 37)
    whole = stack(some, slice(None))
    assert np.array_equal(in_chunks(aggregate, some, rows=rows), aggregate(whole.p, whole.w), equal_nan=True)


def test_no_rows_make_an_empty_teacher():
    assert in_chunks(aggregator.build("mean"), releases(2, 0)).shape == (0, 10)


def test_aggregating_in_chunks_takes_the_memory_of_one_chunk():
    some = releases(20, 20_000)  # 16 MB of ballots
    tracemalloc.start()
    in_chunks(aggregator.build("mean"), some, rows=256)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000  # of which the teacher takes 0.8 MB
