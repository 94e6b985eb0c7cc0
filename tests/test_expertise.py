"""How much a ballot counts: by hand, against brute force, and on data where a plain mean fails."""

import math

import numpy as np
import pytest

from fedkd import expertise as module
from fedkd.aggregation import aggregator
from fedkd.dataset import fingerprint
from fedkd.errors import SpecError
from fedkd.expertise import expertise, kth_distance, principal_components
from fedkd.records import TransferSet

P = np.array([[1.0, 0.0], [0.5, 0.5], [0.8, 0.2]], np.float32)


def transfer(x):
    x = np.asarray(x, np.float32)
    return TransferSet(x, fingerprint(x))


def weigh(spec, pool, private, *, rows=None, p=None, seed=0):
    rows = np.arange(len(pool)) if rows is None else np.asarray(rows)
    p = np.full((len(rows), 2), 0.5, np.float32) if p is None else p
    return expertise.build(spec)(p, rows, transfer(pool), np.asarray(private, np.float32), np.random.default_rng(seed))


def normal(rows, columns, *, at=0.0, scale=1.0, seed=0):
    return (at + scale * np.random.default_rng(seed).standard_normal((rows, columns))).astype(np.float32)


# The predictions as a measure.


def test_uniform_is_one():
    assert weigh("uniform", normal(3, 2), normal(4, 2)).tolist() == [1, 1, 1]


def test_confidence_by_hand():
    assert weigh("confidence", normal(3, 2), normal(4, 2), p=P) == pytest.approx([1.0, 0.5, 0.8])
    assert weigh("confidence(power=2.0)", normal(3, 2), normal(4, 2), p=P) == pytest.approx([1.0, 0.25, 0.64])


def test_entropy_by_hand():
    # H / ln 2 is 0, 1 and -(.8 log2 .8 + .2 log2 .2) = .7219; the floor is .01.
    share = -(0.8 * math.log2(0.8) + 0.2 * math.log2(0.2))
    expected = [1 / 0.01, 1 / 1.01, 1 / (share + 0.01)]
    assert weigh("entropy", normal(3, 2), normal(4, 2), p=P) == pytest.approx(expected, rel=1e-5)


# Distances.


@pytest.mark.parametrize("k", [1, 2, 5, 30])
def test_the_distance_to_the_kth_neighbor_is_that_of_brute_force(k):
    x, to = normal(50, 3), normal(30, 3, seed=1)
    exact = np.sort(np.linalg.norm(x[:, None].astype(float) - to, axis=2), axis=1)[:, k - 1]
    assert kth_distance(x, to, k) == pytest.approx(exact, rel=1e-5)
    assert (kth_distance(x, to, k, cells=90) == kth_distance(x, to, k)).all()  # three rows at a time


def test_the_distance_of_a_row_to_itself_is_zero_even_far_from_the_origin():
    x = normal(20, 3, at=1000.0)
    assert (kth_distance(x, x, 1) == 0).all()


def test_no_rows_have_no_distances():
    assert kth_distance(np.zeros((0, 3), np.float32), normal(4, 3), 1).shape == (0,)


@pytest.mark.parametrize(("rows", "width"), [(200, 6), (6, 200), (50, 1), (60, 1200), (1, 3)])
def test_all_principal_components_keep_the_distances(rows, width):
    x = normal(rows, width) * np.linspace(0.1, 3, width, dtype=np.float32) + 5
    z, project = principal_components(transfer(x), max(rows, width))
    exact = np.linalg.norm(x[:, None] - x[None], axis=2)
    assert np.linalg.norm(z[:, None] - z[None], axis=2) == pytest.approx(exact, rel=1e-3, abs=1e-3)
    assert project(x) == pytest.approx(z, abs=1e-4)


@pytest.mark.parametrize("width", [20, 1200])  # as many as go through a (d, d) matrix, and more
def test_the_leading_component_is_the_direction_of_most_variance(width):
    direction = np.zeros(width, np.float32)
    direction[[1, 3]] = 3 / 5, 4 / 5
    along = normal(500, 1, scale=10.0)
    x = along * direction + 0.1 * normal(500, width, seed=1) + 7
    z, _ = principal_components(transfer(x), 1)
    assert z.shape == (500, 1)
    assert abs(np.corrcoef(z[:, 0], along[:, 0])[0, 1]) > 0.999


def test_images_are_taken_as_rows_of_values():
    x = normal(30, 12)
    flat, _ = principal_components(transfer(x), 4)
    image, project = principal_components(transfer(x.reshape(30, 3, 2, 2)), 4)
    assert np.abs(image) == pytest.approx(np.abs(flat), abs=1e-4)
    assert project(x[:2].reshape(2, 3, 2, 2)) == pytest.approx(image[:2], abs=1e-4)


# The data as a measure.


def test_density_falls_with_the_distance_to_the_data():
    line = np.linspace(0, 10, 50)[:, None]
    w = weigh("density(bandwidth=1.0)", line, np.zeros((20, 1)))
    assert (np.diff(w) < 0).all()
    assert w[0] == 1.0
    assert (np.diff(weigh("density", line, np.zeros((20, 1)))) <= 0).all()


def test_density_by_hand():
    # Rows at 0, 2 .. 18; from each the nearest other is 2 away, so h = 2 * bandwidth = 1. The example is at 21.
    line = 2 * np.arange(10.0)[:, None]
    w = weigh("density(bandwidth=0.5, neighbors=1)", line, [[21.0]], rows=[9, 8])
    assert w == pytest.approx([math.exp(-3), math.exp(-5)])
    # The second nearest other is 2 away inside and 4 away at both ends: the median is 2. The second example is at 22.
    w = weigh("density(bandwidth=0.5, neighbors=2)", line, [[20.0], [22.0]], rows=[9])
    assert w == pytest.approx([math.exp(-4)])


def test_density_uses_what_neighbors_there_are():
    line = np.arange(10.0)[:, None]
    assert weigh("density(neighbors=5)", line, [[0.0]])[0] == 1.0
    assert np.isfinite(weigh("density(neighbors=5)", line[:2], [[0.0]])).all()


@pytest.mark.parametrize("spec", ["density", "density_ratio"])
def test_the_scale_of_the_inputs_does_not_matter(spec):
    pool, private = normal(300, 5), normal(100, 5, at=0.5, seed=1)
    one = weigh(spec, pool, private)
    ten = weigh(spec, pool * 10, private * 10)
    assert ten == pytest.approx(one, rel=2e-2)
    assert one.max() / one.min() > 3


@pytest.mark.parametrize("spec", ["density", "density_ratio"])
def test_where_the_data_lies_does_not_matter(spec):
    pool, private = normal(300, 5), normal(100, 5, at=0.5, seed=1)
    assert weigh(spec, pool + 100, private + 100) == pytest.approx(weigh(spec, pool, private), rel=2e-2)


def test_a_row_far_from_all_data_is_still_an_answer():
    w = weigh("density", [[0.0], [0.1], [0.2], [1e6]], [[0.0]])
    assert 0 < w[3] < w[2]


def test_a_transfer_set_of_repeated_rows_has_a_scale_too():
    pool = np.repeat([[0.0], [1.0], [5.0]], [20, 20, 2], axis=0)  # the median distance to a neighbor is zero
    w = weigh("density", pool, [[0.0]])
    assert w[0] == 1.0
    assert 0 < w[-1] < w[25] < 1
    assert weigh("density", pool * 1000, [[0.0]]) == pytest.approx(w)
    assert np.isfinite(weigh("density_ratio", pool, [[0.0]])).all()


def test_one_and_the_same_row_everywhere_weighs_the_same_everywhere():
    for spec in ("density", "density_ratio"):
        w = weigh(spec, np.ones((8, 3)), np.ones((4, 3)))
        assert np.isfinite(w).all()
        assert np.ptp(w) < 1e-6


def test_the_density_ratio_is_above_one_inside_and_below_one_outside():
    pool, private = normal(1500, 2, scale=2.0), normal(1500, 2, scale=1.0, seed=1)
    w = weigh("density_ratio", pool, private)
    radius = np.linalg.norm(pool, axis=1)
    assert np.median(w[radius < 0.7]) > 1.5
    assert np.median(w[radius > 3]) < 0.3


def test_the_density_ratio_is_close_to_the_true_one_in_the_middle():
    # Two Gaussians a unit apart: p_private / p_public = exp(x - 1/2), from e^-1 to 1 for x in -1/2 .. 1/2.
    pool, private = normal(3000, 1), normal(3000, 1, at=1.0, seed=1)
    w = weigh("density_ratio(penalty=1.0)", pool, private)
    middle = np.abs(pool[:, 0] - 0.5) < 1.0
    true = np.exp(pool[middle, 0] - 0.5)
    assert np.median(np.abs(np.log(w[middle] / true))) < 0.25
    assert np.corrcoef(np.log(w[middle]), np.log(true))[0, 1] > 0.8


def test_the_density_ratio_of_the_transfer_set_to_itself_is_one():
    pool = normal(400, 4)
    assert weigh("density_ratio", pool, pool) == pytest.approx(np.ones(400), rel=1e-4)


@pytest.mark.parametrize("penalty", [1e-12, 1e-6, 0.01, 1.0, 1e6])
@pytest.mark.parametrize("apart", [0.0, 1.0, 100.0])
def test_the_density_ratio_stays_within_its_range_and_on_its_side(penalty, apart):
    pool, private = normal(200, 3), normal(20, 3, at=apart, seed=1)
    w = weigh(f"density_ratio(penalty={penalty})", pool, private)
    assert (w >= math.exp(-8) * 0.999).all() and (w <= math.exp(8) * 1.001).all()
    if apart == 100.0 and penalty <= 0.01:
        assert np.median(w) < 0.5  # nothing private is anywhere near


def test_the_cache_never_answers_for_another_transfer_set():
    private = normal(10, 2)
    first = weigh("density", normal(30, 2, seed=1), private)
    weigh("density", normal(30, 2, seed=2), private)
    weigh("density(dimensions=1)", normal(30, 2, seed=1), private)
    assert (weigh("density", normal(30, 2, seed=1), private) == first).all()


def test_a_client_without_data_abstains():
    for spec in ("density", "density_ratio"):
        assert weigh(spec, normal(5, 2), np.zeros((0, 2))).tolist() == [0] * 5


@pytest.mark.parametrize(
    "spec",
    [
        "density(bandwidth=0)",
        "density(bandwidth=-1.0)",
        "density(neighbors=0)",
        "density(dimensions=0)",
        "confidence(power=-1.0)",
        "density_ratio(penalty=0)",
        "density_ratio(features=0)",
        "entropy(floor=0)",
        "density(bandwidth=1e999)",
    ],
)
def test_an_option_without_meaning_is_refused(spec):
    name, option = spec.split("(")[0], spec.split("(")[1].split("=")[0]
    with pytest.raises(SpecError, match=f"expertise '{name}': '{option}' must be above 0"):
        weigh(spec, normal(3, 2), normal(3, 2))


def test_static_members_are_those_that_do_not_read_the_predictions():
    for name, _ in expertise:
        one = weigh(name, normal(3, 2), normal(3, 2, seed=1), p=P)
        other = weigh(name, normal(3, 2), normal(3, 2, seed=1), p=P[[1, 0, 1]])
        if name in module.STATIC:
            assert (one == other).all(), name
        elif name != "uniform":
            assert (one != other).any(), name


@pytest.mark.parametrize("spec", ["density", "density_ratio"])
def test_two_experts_with_disjoint_classes_teach_the_right_thing_and_their_plain_mean_does_not(spec):
    centers = np.array([[0, 0], [6, 0], [0, 6], [6, 6]], np.float32)
    truth = np.repeat(np.arange(4), 60)
    pool = centers[truth] + normal(240, 2, scale=0.7)
    ballots, weights = [], []
    for known in ([0, 1], [2, 3]):
        y = np.repeat(known, 60)
        x = centers[y] + normal(120, 2, scale=0.7, seed=known[0] + 1)
        # Each client gives its nearer class 94 %, sure of itself also where it has never been.
        nearest = np.array(known)[np.linalg.norm(pool[:, None] - centers[known], axis=2).argmin(axis=1)]
        p = np.full((240, 4), 0.02, np.float32)
        p[np.arange(240), nearest] = 0.94
        ballots.append(p)
        weights.append(weigh(spec, pool, x))
    mean = aggregator.build("mean")
    plain = mean(np.stack(ballots), np.ones((2, 240), np.float32))
    expert = mean(np.stack(ballots), np.stack(weights))
    assert (plain.argmax(axis=1) == truth).mean() < 0.6
    assert plain[np.arange(240), truth].max() < 0.5
    assert (expert.argmax(axis=1) == truth).mean() > 0.99
    assert expert[np.arange(240), truth].mean() > 0.8
