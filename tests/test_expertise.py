"""How much a ballot counts: by hand, against brute force, and on data where a plain mean fails."""

import importlib
import math

import numpy as np
import pytest
from expertise_scene import normal, square, weights_of

from fedkd import expertise as module
from fedkd.aggregation import aggregator
from fedkd.errors import SpecError
from fedkd.expertise import (
    expertise,
    intrinsic_dimension,
)

SCALE_FREE = ["distance", "density_ratio", "gaussian", "density", "private_sketch(sigma=0.0)"]
P = np.array([[1.0, 0.0], [0.5, 0.5], [0.8, 0.2]], np.float32)


# The predictions as a measure.


def test_uniform_is_one():
    assert weights_of("uniform", normal(3, 2), normal(4, 2)).tolist() == [1, 1, 1]


def test_confidence_by_hand():
    assert weights_of("confidence", normal(3, 2), normal(4, 2), p=P) == pytest.approx([1.0, 0.5, 0.8])
    assert weights_of("confidence(power=2.0)", normal(3, 2), normal(4, 2), p=P) == pytest.approx([1.0, 0.25, 0.64])


def test_entropy_by_hand():
    # H / ln 2 is 0, 1 and -(.8 log2 .8 + .2 log2 .2) = .7219; the floor is .01.
    share = -(0.8 * math.log2(0.8) + 0.2 * math.log2(0.2))
    expected = [1 / 0.01, 1 / 1.01, 1 / (share + 0.01)]
    assert weights_of("entropy", normal(3, 2), normal(4, 2), p=P) == pytest.approx(expected, rel=1e-5)


# The data as a measure.


def test_distance_falls_with_the_distance_to_the_data():
    line = np.linspace(0, 10, 50)[:, None]
    w = weights_of("distance(bandwidth=1.0)", line, np.zeros((20, 1)))
    assert (np.diff(w) < 0).all()
    assert w[0] == 1.0
    assert (np.diff(weights_of("distance", line, np.zeros((20, 1)))) <= 0).all()


def test_distance_by_hand():
    # Rows at 0, 2 .. 18; from each the nearest other is 2 away, so h = 2 * bandwidth = 1. The example is at 21.
    line = 2 * np.arange(10.0)[:, None]
    w = weights_of("distance(bandwidth=0.5, neighbors=1)", line, [[21.0]], rows=[9, 8])
    assert w == pytest.approx([math.exp(-3), math.exp(-5)])
    # The second nearest other is 2 away inside and 4 away at both ends: the median is 2. The second example is at 22.
    w = weights_of("distance(bandwidth=0.5, neighbors=2)", line, [[20.0], [22.0]], rows=[9])
    assert w == pytest.approx([math.exp(-4)])


def test_density_by_hand():
    # Rows on a line, 2 apart: the two nearest others of 18 are 2 away. Examples at 20 and 24 are 2 and 6 away, so the
    # mean log distance is larger by log(3) / 2, times m, times sharpness; psi(1) and psi(2) are on both sides.
    line = 2 * np.arange(40.0)[:, None]
    m = intrinsic_dimension(line.astype(np.float32))
    assert m == pytest.approx(1.0, abs=0.3)
    for sharpness in (1.0, 2.0):
        w = weights_of(f"density(neighbors=2, sharpness={sharpness})", line, [[20.0], [24.0]], rows=[9])
        assert np.log(w) == pytest.approx([-sharpness * m * np.log(3) / 2], abs=1e-3)


def test_a_client_that_holds_the_transfer_set_has_the_density_of_it():
    # Its nearest example is the row itself, so it is somewhat denser than what is left without the row, never sparser.
    pool = normal(400, 3)
    w = weights_of("density(sharpness=1.0)", pool, normal(400, 3, seed=5))
    assert abs(np.log(w).mean()) < 0.3
    assert (weights_of("density", pool, pool) > 1).all()


def test_the_transfer_set_may_be_larger_than_what_stands_for_it(monkeypatch):
    pool, private = normal(900, 2), normal(300, 2, seed=3) * 0.5
    whole = np.log(weights_of("density", pool, private))
    module = importlib.import_module("fedkd.expertise.space")  # the package has a function of this name
    monkeypatch.setattr(module, "REFERENCE", 300)
    monkeypatch.setattr(module, "_AROUND", {})
    part = np.log(weights_of("density", pool, private))
    # A third of the rows is a third of the density, up to the power and what the estimate scatters.
    m = intrinsic_dimension(pool.astype(np.float32))
    assert (part - whole).mean() == pytest.approx(1.5 * m / 2 * math.log(3), abs=0.35)
    assert np.corrcoef(part, whole)[0, 1] > 0.9


def test_density_is_the_density_of_the_data_times_their_number():
    # A uniform square: a client with four times the examples is four times as dense, one that is spread out a quarter.
    pool = np.random.default_rng(0).random((2000, 2)).astype(np.float32)
    inside = np.flatnonzero((np.abs(pool - 0.5) < 0.3).all(axis=1))
    draw = np.random.default_rng(1)
    few, many, wide = draw.random((500, 2)), draw.random((2000, 2)), draw.random((500, 2)) * 2 - 0.5
    m = intrinsic_dimension(pool)
    spec = f"density(neighbors=10, sharpness={2 / m})"  # two dimensions, whatever the estimate
    few, many, wide = (np.log(weights_of(spec, pool, one, rows=inside)).mean() for one in (few, many, wide))
    assert many - few == pytest.approx(math.log(4), abs=0.15)
    assert few - wide == pytest.approx(math.log(4), abs=0.25)


def test_the_order_of_a_large_transfer_set_does_not_decide_who_stands_for_it(monkeypatch):
    # Classes in turn, and so many rows that every fourth would be of one class: the others would look deserted.
    module = importlib.import_module("fedkd.expertise.space")
    monkeypatch.setattr(module, "REFERENCE", 300)
    monkeypatch.setattr(module, "_AROUND", {})
    pool = normal(1200, 2) + 50 * np.eye(4, 2)[np.arange(1200) % 4]
    dense, sparse = (np.repeat(pool[:1], 20, axis=0) + scale * normal(20, 2, seed=1) for scale in (0.1, 1.0))
    ratio = weights_of("density", pool, dense, rows=[0]) / weights_of("density", pool, sparse, rows=[0])
    assert ratio > 3


def test_no_copy_of_a_sample_claims_more_than_its_share():
    # 50 copies of one row: 100 times as concentrated as 200 rows is 100 * 50 / 200 = 25 times as dense, to the power 2.
    pool = normal(200, 3)
    w = weights_of("density(sharpness=2.0)", pool, np.repeat(pool[:1], 50, axis=0))
    assert w[0] == pytest.approx(625, rel=1e-4)
    assert w.max() == w[0]


def test_density_is_fair_to_clients_with_fewer_examples_than_neighbors():
    # One example 6 away says psi(1) - m log 6; two say (psi(1) + psi(2)) / 2 - m log 6: half an example more in log.
    # The transfer set around 20 has its nearest at 1, 1, 2, 2, 3; psi(1..5) are -.5772, .4228, .9228, 1.2561, 1.5061.
    line = np.arange(40.0)[:, None]
    m = intrinsic_dimension(line.astype(np.float32))
    public = 0.7061 - m * (2 * math.log(2) + math.log(3)) / 5
    one = weights_of("density(sharpness=1.0)", line, [[26.0]], rows=[20])
    two = weights_of("density(sharpness=1.0)", line, [[26.0]] * 2, rows=[20])
    assert np.log(one) == pytest.approx([-0.5772 - m * math.log(6) - public], abs=1e-3)
    assert np.log(two) == pytest.approx([-0.0772 - m * math.log(6) - public], abs=1e-3)


def test_density_compares_images_by_shape():
    # Dark squares left, dark squares right: a light square on the left is left, though its pixels are all different.
    draw = np.random.default_rng(0)
    left, right = (np.concatenate([square(at + i % 3, light=-0.5 - i / 40) for i in range(20)]) for at in (4, 16))
    asked = np.concatenate([square(5), square(17)])
    pool = np.concatenate([asked, left[:5] + 0, right[:5] + 0, draw.random((30, 1, 28, 28)) * 0.1])
    ratio = weights_of("density", pool, left, rows=[0, 1]) / weights_of("density", pool, right, rows=[0, 1])
    assert ratio[0] > 10 and ratio[1] < 0.1


def test_a_copy_of_a_sample_counts_much_and_not_everything():
    pool = normal(200, 3)
    w = weights_of("density(neighbors=1)", pool, pool[:1])
    assert w[0] == w.max()
    assert w.max() < 1e20 and w.min() > 0


def test_gaussian_by_hand():
    # One dimension, transfer variance v = 4 (and mean 0), two examples 0 and 2: mean 1, scatter 2; shrunk by 2 examples
    # of v the variance is (2 + 2 * 4) / (2 + 2) = 2.5. At T = 1: 2 N(x; 1, 2.5) / N(0; 0, 4) = 2 * exp(-(x-1)^2/5) *
    # sqrt(4 / 2.5).
    pool = np.array([[-2.0], [2.0], [-2.0], [2.0]])
    w = weights_of("gaussian(shrinkage=2.0, temperature=1.0)", pool, [[0.0], [2.0]], rows=[0, 1])
    expected = [2 * math.exp(-((x - 1) ** 2) / 5) * math.sqrt(4 / 2.5) for x in (-2, 2)]
    assert w == pytest.approx(expected, rel=1e-3)
    half = weights_of("gaussian(shrinkage=2.0, temperature=2.0)", pool, [[0.0], [2.0]], rows=[0, 1])
    assert half == pytest.approx(np.sqrt(expected), rel=1e-3)


def test_gaussian_follows_the_direction_in_which_the_data_varies():
    pool = normal(500, 2)
    along = np.concatenate([normal(300, 1, seed=1, scale=2.0), normal(300, 1, seed=2, scale=0.1)], axis=1)
    pool[:2] = [[2, 0], [0, 2]]
    w = weights_of("gaussian(temperature=1.0)", pool, along, rows=[0, 1])
    assert w[0] > 100 * w[1]


# The gate.


def brute_kulsif(private, noise, near, at, width, penalty):
    """Minimize the least-squares objective of KuLSIF itself, over coefficients of all kernels, by a linear solve."""
    centers = np.concatenate([noise, near])
    gauss = lambda a, b: np.exp(-((a[:, None] - b[None]) ** 2).sum(axis=2) / (2 * width**2))  # noqa: E731
    k, kn, kp = gauss(centers, centers), gauss(noise, centers), gauss(near, centers)
    system = kn.T @ kn / len(noise) + penalty * k
    return gauss(at, centers) @ np.linalg.lstsq(system, kp.mean(axis=0), rcond=1e-13)[0]


def test_kulsif_minimizes_its_objective():
    pool, private = normal(30, 2, scale=3.0), normal(40, 2, seed=1)
    rng = np.random.default_rng(3)
    ranked = np.argsort(private @ rng.standard_normal(2, np.float32), kind="stable")[rng.permutation(40)]
    near, held = private[ranked[:20]], private[ranked[20:]]
    noise = rng.uniform(pool.min(axis=0), pool.max(axis=0), (30, 2)).astype(np.float32)
    args = [np.asarray(a, np.float64) for a in (private, noise, near)]
    on = brute_kulsif(*args, pool.astype(np.float64), 1.0, 30**-0.5)
    least = np.quantile(brute_kulsif(*args, held.astype(np.float64), 1.0, 30**-0.5), 0.25)
    w = weights_of("kulsif(width=1.0, auxiliary=30, share=0.5)", pool, private, seed=3)
    clear = np.abs(on - least) > 1e-3
    assert clear.sum() > 20
    assert (w[clear] == (on > least)[clear]).all()
    assert 0 < w.sum() < 30


def test_kulsif_answers_what_is_like_the_private_data_and_abstains_elsewhere():
    pool = np.concatenate([normal(300, 3), normal(300, 3, at=8.0, seed=1)])
    w = weights_of("kulsif(width=2.0)", pool, normal(400, 3, seed=2))
    assert set(np.unique(w)) == {0.0, 1.0}
    assert 0.6 < w[:300].mean() < 0.9  # the first quartile of its own data is turned away
    assert w[300:].max() == 0
    assert weights_of("kulsif(width=2.0, quantile=0.0)", pool, normal(400, 3, seed=2))[:300].mean() > 0.95


# All that read the data.


def test_distance_uses_what_neighbors_there_are():
    line = np.arange(10.0)[:, None]
    assert weights_of("distance(neighbors=5)", line, [[0.0]])[0] == 1.0
    assert np.isfinite(weights_of("distance(neighbors=5)", line[:2], [[0.0]])).all()


@pytest.mark.parametrize("spec", SCALE_FREE)
def test_the_scale_of_the_inputs_does_not_matter(spec):
    pool, private = normal(300, 5), normal(100, 5, at=0.5, seed=1)
    one = weights_of(spec, pool, private)
    ten = weights_of(spec, pool * 10, private * 10)
    assert ten == pytest.approx(one, rel=2e-2)
    assert one.max() / one.min() > 3


@pytest.mark.parametrize("spec", SCALE_FREE)
def test_where_the_data_lies_does_not_matter(spec):
    pool, private = normal(300, 5), normal(100, 5, at=0.5, seed=1)
    assert weights_of(spec, pool + 100, private + 100) == pytest.approx(weights_of(spec, pool, private), rel=2e-2)


@pytest.mark.parametrize("spec", ["distance", "density"])
def test_a_row_far_from_all_data_is_still_an_answer(spec):
    w = weights_of(spec, [[0.0], [0.1], [0.2], [1e6]], [[0.0]])
    assert 0 < w[3] < 1e30
    assert w[3] < w[2] or spec == "density"  # where there is no transfer data either, little is much


def test_a_transfer_set_of_repeated_rows_has_a_scale_too():
    pool = np.repeat([[0.0], [1.0], [5.0]], [20, 20, 2], axis=0)  # the median distance to a neighbor is zero
    w = weights_of("distance", pool, [[0.0]])
    assert w[0] == 1.0
    assert 0 < w[-1] < w[25] < 1
    assert weights_of("distance", pool * 1000, [[0.0]]) == pytest.approx(w)
    assert np.isfinite(weights_of("density_ratio", pool, [[0.0]])).all()
    dense = weights_of("density", pool, [[0.0]] * 5)
    assert dense[0] > 1 > dense[25] > 0
    assert weights_of("density", pool * 1000, [[0.0]] * 5) == pytest.approx(dense, rel=1e-4)


def test_one_and_the_same_row_everywhere_weighs_the_same_everywhere():
    for spec in module.STATIC:
        w = weights_of(spec, np.ones((8, 3)), np.ones((4, 3)))
        assert np.isfinite(w).all()
        assert np.ptp(w) < 1e-6


def test_the_density_ratio_is_above_one_inside_and_below_one_outside():
    pool, private = normal(1500, 2, scale=2.0), normal(1500, 2, scale=1.0, seed=1)
    w = weights_of("density_ratio", pool, private)
    radius = np.linalg.norm(pool, axis=1)
    assert np.median(w[radius < 0.7]) > 1.5
    assert np.median(w[radius > 3]) < 0.3


def test_the_density_ratio_is_close_to_the_true_one_in_the_middle():
    # Two Gaussians a unit apart: p_private / p_public = exp(x - 1/2), from e^-1 to 1 for x in -1/2 .. 1/2.
    pool, private = normal(3000, 1), normal(3000, 1, at=1.0, seed=1)
    w = weights_of("density_ratio(penalty=1.0)", pool, private)
    middle = np.abs(pool[:, 0] - 0.5) < 1.0
    true = np.exp(pool[middle, 0] - 0.5)
    assert np.median(np.abs(np.log(w[middle] / true))) < 0.25
    assert np.corrcoef(np.log(w[middle]), np.log(true))[0, 1] > 0.8


def test_the_density_ratio_of_the_transfer_set_to_itself_is_one():
    pool = normal(400, 4)
    assert weights_of("density_ratio", pool, pool) == pytest.approx(np.ones(400), rel=1e-4)


@pytest.mark.parametrize("penalty", [1e-12, 1e-6, 0.01, 1.0, 1e6])
@pytest.mark.parametrize("apart", [0.0, 1.0, 100.0])
def test_the_density_ratio_stays_within_its_range_and_on_its_side(penalty, apart):
    pool, private = normal(200, 3), normal(20, 3, at=apart, seed=1)
    w = weights_of(f"density_ratio(penalty={penalty})", pool, private)
    assert (w >= math.exp(-8) * 0.999).all() and (w <= math.exp(8) * 1.001).all()
    if apart == 100.0 and penalty <= 0.01:
        assert np.median(w) < 0.5  # nothing private is anywhere near


def test_the_cache_never_answers_for_another_transfer_set():
    private = normal(10, 2)
    first = weights_of("distance", normal(30, 2, seed=1), private)
    weights_of("distance", normal(30, 2, seed=2), private)
    weights_of("distance(dimensions=1)", normal(30, 2, seed=1), private)
    assert (weights_of("distance", normal(30, 2, seed=1), private) == first).all()


def test_a_client_without_data_abstains():
    for spec in module.STATIC - {"private_sketch"}:  # to abstain would tell that it has none
        assert weights_of(spec, normal(5, 2), np.zeros((0, 2))).tolist() == [0] * 5


@pytest.mark.parametrize(
    "spec",
    [
        "distance(bandwidth=0)",
        "distance(bandwidth=-1.0)",
        "distance(neighbors=0)",
        "distance(dimensions=0)",
        "confidence(power=-1.0)",
        "density_ratio(penalty=0)",
        "density_ratio(features=0)",
        "entropy(floor=0)",
        "distance(bandwidth=1e999)",
        "density(sharpness=0)",
        "gaussian(temperature=-1.0)",
        "gaussian(shrinkage=0)",
        "kulsif(width=0)",
        "private_sketch(floor=0)",
        "private_sketch(scale=0)",
    ],
)
def test_an_option_without_meaning_is_refused(spec):
    name, option = spec.split("(")[0], spec.split("(")[1].split("=")[0]
    with pytest.raises(SpecError, match=f"expertise '{name}': '{option}' must be above 0"):
        weights_of(spec, normal(3, 2), normal(3, 2))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("kulsif(share=0.6)", r"'share' must be in \(0, 0.5\], got 0.6"),
        ("kulsif(quantile=1.0)", r"'quantile' must be in \[0, 1\), got 1.0"),
        ("private_sketch(sigma=-1.0)", "'sigma' must be at least 0 and finite, got -1.0"),
        ("private_sketch(sigma=1e999)", "'sigma' must be at least 0 and finite, got inf"),
        ("private_sketch(features=1)", "'features' must be at least 2, got 1"),
    ],
)
def test_an_option_out_of_its_range_is_refused(spec, message):
    with pytest.raises(SpecError, match=f"expertise '{spec.split('(')[0]}': {message}"):
        weights_of(spec, normal(3, 2), normal(3, 2))


def test_static_members_are_those_that_do_not_read_the_predictions():
    for name, _ in expertise:
        one = weights_of(name, normal(3, 2), normal(3, 2, seed=1), p=P)
        other = weights_of(name, normal(3, 2), normal(3, 2, seed=1), p=P[[1, 0, 1]])
        if name in module.STATIC:
            assert (one == other).all(), name
        elif name != "uniform":
            assert (one != other).any(), name


@pytest.mark.parametrize("spec", ["distance", "density_ratio", "gaussian", "density", "private_sketch(sigma=0.5)"])
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
        weights.append(weights_of(spec, pool, x))
    mean = aggregator.build("mean")
    plain = mean(np.stack(ballots), np.ones((2, 240), np.float32))
    expert = mean(np.stack(ballots), np.stack(weights))
    assert (plain.argmax(axis=1) == truth).mean() < 0.6
    assert plain[np.arange(240), truth].max() < 0.5
    assert (expert.argmax(axis=1) == truth).mean() > 0.99
    assert expert[np.arange(240), truth].mean() > 0.8
