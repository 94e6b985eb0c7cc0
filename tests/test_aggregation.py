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


def test_variance_by_hand():
    # Squares sum to .46 and .44, less 1/3: weights in proportion to .38 / 3 and .32 / 3, that is, 19 to 16.
    variance = np.array([0.46 - 1 / 3, 0.44 - 1 / 3])
    expected = (variance[:, None] * [A, B]).sum(axis=0) / variance.sum()
    assert expected[0] == pytest.approx((19 * 0.6 + 16 * 0.2) / 35)
    assert teach("variance")[0] == pytest.approx(expected, abs=1e-5)
    tripled = (variance[:, None] * [[1.0], [3.0]] * [A, B]).sum(axis=0)
    assert teach("variance", w=SKEWED)[0] == pytest.approx(tripled / tripled.sum(), abs=1e-5)


@pytest.mark.parametrize("name", ["variance", "entropy"])
def test_a_flat_ballot_counts_little_beside_a_certain_one_and_alone_it_is_the_answer(name):
    flat = [1 / 3, 1 / 3, 1 / 3]
    assert teach(name, [[[1.0, 0.0, 0.0]], [flat]])[0, 0] > 0.99
    assert teach(name, [[flat], [flat]])[0] == pytest.approx(flat)


def test_entropy_by_hand():
    # H of (1/2, 1/2, 0) is ln 2, of (1, 0, 0) it is 0. With floor 1: weights 1 / (ln 2 / ln 3 + 1) and 1.
    weight = 1 / (np.log(2) / np.log(3) + 1)
    teacher = teach("entropy(floor=1.0)", [[[0.0, 0.5, 0.5]], [[1.0, 0.0, 0.0]]])[0]
    assert teacher == pytest.approx([1 / (1 + weight), weight / 2 / (1 + weight), weight / 2 / (1 + weight)])


def test_the_geometric_median_of_three_corners_is_their_middle_and_a_majority_is_the_median():
    assert teach("geometric_median", np.eye(3)[:, None, :], np.ones((3, 1)))[0] == pytest.approx([1 / 3] * 3)
    # Of two it is any point between, and the mean is where the iteration starts; 3 of 4 are a majority.
    assert teach("geometric_median")[0] == pytest.approx([0.4, 0.25, 0.35])
    assert teach("geometric_median", w=SKEWED)[0] == pytest.approx(B, abs=1e-4)


def test_the_geometric_median_sees_its_ballots_under_equal_angles():
    # Fermat's point of an isosceles triangle: unit vectors to the three ballots sum to zero.
    p = np.array([[[0.6, 0.3, 0.1]], [[0.3, 0.6, 0.1]], [[0.2, 0.2, 0.6]]])
    center = teach("geometric_median(steps=1000, tolerance=0.0)", p, np.ones((3, 1)))[0]
    off = p[:, 0] - center
    assert (off / np.linalg.norm(off, axis=1, keepdims=True)).sum(axis=0) == pytest.approx(np.zeros(3), abs=1e-6)
    assert center[0] == pytest.approx(center[1])
    far = np.abs(p[:, 0] - p.mean(axis=0)[0]).sum()
    assert np.linalg.norm(off, axis=1).sum() < np.linalg.norm(p[:, 0] - p.mean(axis=0)[0], axis=1).sum() < far


def test_one_step_of_weiszfeld_by_hand():
    # From the mean (2/3, 1/3, 0) of two ballots at (1, 0, 0), at distance sqrt 2 / 3, and one at (0, 1, 0), at twice
    # that: weights 1, 1 and 1/2.
    p = np.array([[[1.0, 0.0, 0.0]], [[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]]])
    assert teach("geometric_median(steps=1)", p, np.ones((3, 1)))[0] == pytest.approx([0.8, 0.2, 0.0])


def line(*at):
    """Return ballots (K, 1, 3) on the line from class 0 to class 1."""
    return np.array([[[1 - t, t, 0.0]] for t in at])


def test_cronus_drops_the_farthest_twice_and_filter_all_at_once():
    # Of 5, f = 2: one goes in each pass. Mean of 0 0 0 .1 .9 is .2, so .9 goes; mean of the rest .025, so .1 goes.
    p = line(0.0, 0.0, 0.0, 0.1, 0.9)
    assert teach("cronus(byzantine=0.4)", p, np.ones((5, 1)))[0] == pytest.approx([1.0, 0.0, 0.0])
    # At once: off .2 by .2 .2 .2 .1 .7: .9 goes, and a third of each ballot at 0, so 2 of them and .1 are left.
    assert teach("filter(byzantine=0.4)", p, np.ones((5, 1)))[0] == pytest.approx([1 - 0.1 / 3, 0.1 / 3, 0.0])


def test_cronus_drops_colluders_who_tie_one_and_all():
    # Four of ten say the same lie: each pass takes two of them away, half of each and then the other half.
    p = np.array([[[0.6, 0.3, 0.1]]] * 6 + [[[0.0, 0.0, 1.0]]] * 4)
    for spec in ("cronus(byzantine=0.4)", "filter(byzantine=0.4)"):
        assert teach(spec, p, np.ones((10, 1)))[0] == pytest.approx([0.6, 0.3, 0.1])


def test_cronus_keeps_all_where_it_counts_on_fewer_than_two_liars():
    p = line(0.0, 0.0, 0.0, 0.1, 0.9)
    assert teach("cronus(byzantine=0.2)", p, np.ones((5, 1)))[0] == pytest.approx(teach("mean", p, np.ones((5, 1)))[0])
    assert teach("filter(byzantine=0.2)", p, np.ones((5, 1)))[0] == pytest.approx(line(0.025)[0, 0])


def test_cronus_counts_on_liars_among_those_who_answered():
    # 10 clients, but 5 answered: f is 2 and not 4.
    p = np.concatenate([line(0.0, 0.0, 0.0, 0.1, 0.9), np.full((5, 1, 3), np.nan)])
    w = np.concatenate([np.ones((5, 1)), np.zeros((5, 1))])
    assert teach("cronus(byzantine=0.4)", p, w)[0] == pytest.approx([1.0, 0.0, 0.0])


def test_cronus_weighs_the_mean_and_the_direction():
    # One client holds nearly all the weight: the mean is there, and it is the others that stick out.
    p, w = line(0.9, 0.0, 0.0, 0.5, 0.1), np.array([[1000.0], [1.0], [1.0], [1.0], [1.0]])
    assert teach("cronus(byzantine=0.4)", p, w)[0] == pytest.approx(line(0.9)[0, 0], abs=1e-2)
    assert teach("cronus(byzantine=0.4)", p, w)[0, 1] > teach("mean", p, w)[0, 1]


def test_the_direction_is_the_same_from_either_side_of_the_matrix():
    # With as many clients as classes the smaller Gram matrix is taken; an empty class more must change nothing.
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), (5, 30))
    padded = np.concatenate([p, np.zeros((5, 30, 3))], axis=2)
    for spec in ("cronus(byzantine=0.4)", "filter(byzantine=0.4)"):
        assert teach(spec, padded, np.ones((5, 30)))[:, :4] == pytest.approx(teach(spec, p, np.ones((5, 30))))


@pytest.mark.parametrize("spec", ["cronus(byzantine=0.4)", "filter(byzantine=0.4)", "geometric_median", "median"])
def test_four_of_ten_who_all_say_the_same_lie_do_not_get_their_way_and_a_mean_gives_in(spec):
    rng = np.random.default_rng(0)
    truth = rng.integers(1, 5, size=200)
    honest = 0.7 * np.eye(5)[truth] + 0.3 * rng.dirichlet(np.full(5, 5.0), (6, 200))
    p = np.concatenate([honest, np.broadcast_to(np.eye(5)[0], (4, 200, 5))])
    w = np.ones((10, 200))
    assert (teach(spec, p, w).argmax(axis=1) == truth).all()
    wrong = np.abs(teach(spec, p, w) - honest.mean(axis=0)).sum(axis=1).mean()
    assert wrong < 0.6 * np.abs(teach("mean", p, w) - honest.mean(axis=0)).sum(axis=1).mean()


@pytest.mark.parametrize(
    "spec",
    ["cronus(byzantine=0.6)", "filter(byzantine=-0.1)", "entropy(floor=0.0)", "geometric_median(steps=0)",
     "geometric_median(tolerance=-1.0)"],
)  # fmt: skip
def test_an_option_out_of_range_is_refused(spec):
    with pytest.raises(SpecError, match=spec.split("(")[0]):
        teach(spec)


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
