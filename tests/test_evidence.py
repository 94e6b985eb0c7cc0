"""What a client's labeled examples add to its ballots: by hand, against density, and where models know little."""

import numpy as np
import pytest

from fedkd.aggregation import aggregator
from fedkd.client import Site, answer
from fedkd.codec import decode_release, encode_query
from fedkd.config import Config
from fedkd.dataset import fingerprint
from fedkd.errors import ConfigError, SpecError
from fedkd.evidence import ABSENT, beside, evidence, log_ratios
from fedkd.expertise import expertise
from fedkd.records import Query, TransferSet
from fedkd.softlabels import check_soft_labels

OPTIONS = {"neighbors": 5, "dimensions": 80, "concentration": 100.0}
P = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], np.float32)
W = np.array([2.0, 0.5], np.float32)


def transfer(x):
    x = np.asarray(x, np.float32)
    return TransferSet(x, fingerprint(x))


def normal(rows, columns, *, at=0.0, scale=1.0, seed=0):
    return (at + scale * np.random.default_rng(seed).standard_normal((rows, columns))).astype(np.float32)


POOL = transfer(normal(60, 3))


def density(private, *, pool=POOL):
    rows = np.arange(len(pool))
    return expertise.build("density")(np.ones((len(pool), 1)), rows, pool, private, np.random.default_rng(0))


def said(spec, private, y, *, classes=3, pool=POOL):
    return evidence.build(spec)(pool, np.asarray(private, np.float32), np.asarray(y), classes)


def labels(rows, classes, *, seed=0):
    """Labels of all classes in turn, mixed."""
    return np.random.default_rng(seed).permutation(np.arange(rows) % classes)


# Ballots beside evidence.


def test_ballots_by_hand_on_two_clients_and_three_classes():
    # One row. The first says (.5 x 1, .3 x 2, .2 x 4) / 1.9; the second (.1 x 3, .1 x 1, .8 / 2) / .8.
    p = beside(P, np.log([[1.0, 2.0, 4.0], [3.0, 1.0, 0.5]]))
    assert p == pytest.approx(np.array([[5 / 19, 6 / 19, 8 / 19], [3 / 8, 1 / 8, 4 / 8]]), rel=1e-5)
    # The teacher is their mean by weights 4 and 1, where the ballots alone have class 0.
    teacher = aggregator.build("mean")(p[:, None], W[:, None])
    assert teacher[0] == pytest.approx((4 * np.array([5, 6, 8]) / 19 + np.array([3, 1, 4]) / 8) / 5, rel=1e-5)
    assert teacher[0].argmax() == 2
    assert aggregator.build("mean")(P[:, None], W[:, None])[0].argmax() == 0


def test_the_sharpness_is_the_power_of_the_density_ratio(monkeypatch):
    # p_c l_c^s with densities (1, 2, 3) and s = 1/2.
    monkeypatch.setattr("fedkd.evidence.log_ratios", lambda *a, **k: np.log([[1.0, 2.0, 3.0]]))
    p = beside(P[:1], said("neighbors(sharpness=0.5)", POOL.inputs, np.zeros(60)))
    votes = P[0] * np.sqrt([1.0, 2.0, 3.0])
    assert p[0] == pytest.approx(votes / votes.sum(), rel=1e-5)


def test_what_a_model_rules_out_stays_so():
    p = beside(np.array([[1.0, 0, 0], [0, 0.5, 0.5]], np.float32), np.array([[-9, 9, 9.0]] * 2))
    assert p.tolist() == [[1, 0, 0], [0, 0.5, 0.5]]


@pytest.mark.parametrize("far", [-5000.0, 5000.0])
def test_no_evidence_is_too_much_for_single_precision(far):
    assert beside(P, np.full((2, 3), far)) == pytest.approx(P, rel=1e-6)
    assert beside(P, np.array([[far, 0, 0]] * 2)).sum(axis=1) == pytest.approx([1, 1])


def test_nothing_said_changes_nothing():
    assert beside(P, said("none", POOL.inputs, np.zeros(60))[:2]) == pytest.approx(P, rel=1e-6)
    assert beside(P[:0], np.zeros((0, 3))).shape == (0, 3)


# Log ratios, class by class.


def test_log_ratios_are_those_of_density_of_each_class():
    x, y = normal(40, 3, seed=1, at=0.5), labels(40, 2)
    apart = log_ratios(POOL, x, y, 3, **OPTIONS)
    for c in (0, 1):
        assert np.exp(1.5 * apart[:, c]) == pytest.approx(density(x[y == c]), rel=1e-4)
    assert (apart[:, 2] == ABSENT).all()


def test_evidence_speaks_for_the_class_of_the_nearest_examples():
    left, right = normal(20, 3, at=-2), normal(20, 3, at=2)
    pool = transfer(np.concatenate([left, right]))
    y = np.repeat([0, 1], 20)
    e = said("neighbors", np.concatenate([normal(20, 3, at=-2, seed=1), normal(20, 3, at=2, seed=2)]), y, pool=pool)
    assert (e[:, :2].argmax(axis=1) == y).mean() > 0.9
    assert (e[:, 2] < e[:, :2].min(axis=1)).all()


def test_a_class_of_one_example_counts_by_its_one_neighbor():
    # In one dimension: rows 0, 1, .. 9, two neighbors among them; the example of class 1 is at 3.
    pool = transfer(np.arange(10.0)[:, None])
    x, y = np.array([[7.0], [8.0], [3.0]]), np.array([0, 0, 1])
    apart = log_ratios(pool, x, y, 2, neighbors=2, dimensions=1, concentration=1e9)
    theirs = np.log([1.0, 2.0]).mean()  # at the end, row 0: its neighbors are 1 and 2 away
    dimension = 1.0
    digamma = {1: -np.euler_gamma, 2: 0.5 - np.euler_gamma}
    one = digamma[1] - digamma[2] - dimension * (np.log(3.0) - theirs)
    two = digamma[2] - digamma[2] - dimension * (np.log([7.0, 8.0]).mean() - theirs)
    assert apart[0] == pytest.approx([two, one], abs=1e-3)


def test_a_copy_of_a_row_is_capped_class_by_class():
    x = np.concatenate([POOL.inputs[:1]] * 6 + [normal(30, 3, seed=1)])
    y = np.array([0] * 6 + [1] * 30)
    apart = log_ratios(POOL, x, y, 2, neighbors=5, dimensions=3, concentration=2.0)
    assert apart[0, 0] == pytest.approx(np.log(2.0 * 6 / 60))
    assert np.isfinite(apart).all()


def test_nobody_believes_more_in_a_class_never_seen_than_in_one_far_away():
    far, y = np.full((3, 3), 1e12, np.float32), np.array([1, 1, 1])
    apart = log_ratios(POOL, far, y, 3, **OPTIONS)
    assert (apart[:, 1] < ABSENT).all()
    assert (apart <= apart[:, 1:2]).all()


# Laws that need more than one part.


@pytest.mark.parametrize("at", [0.0, 3.0, 30.0])
def test_who_has_one_class_says_it_more_surely(at):
    x, p = normal(30, 3, at=at, seed=3), np.random.default_rng(0).dirichlet(np.ones(3), 60).astype(np.float32)
    judged = beside(p, said("neighbors", x, np.ones(30, int)))
    assert (judged[:, 1] >= p[:, 1]).all()
    assert judged[:, 1].mean() > p[:, 1].mean()


def test_on_flat_ballots_evidence_of_sharpness_one_is_the_posterior_of_the_data():
    # n_kc p_kc(x) / sum_c n_kc p_kc(x), each density as that part estimates it from the examples of one class.
    x, y = normal(40, 3, seed=5), labels(40, 3)
    p = beside(np.full((60, 3), 1 / 3, np.float32), said("neighbors(sharpness=1.0)", x, y))
    each = np.stack([density(x[y == c]) ** (1 / 1.5) for c in range(3)], axis=1)
    assert p == pytest.approx(each / each.sum(axis=1, keepdims=True), rel=1e-3)


def test_a_client_without_examples_leaves_its_ballots_alone():
    e = said("neighbors", np.zeros((0, 3)), np.zeros(0, int))
    assert beside(P, e[:2]) == pytest.approx(P, rel=1e-6)


def test_evidence_helps_where_models_know_little_and_data_knows_much():
    # Two clients with equal data and ballots that are right a little more often than not.
    rng = np.random.default_rng(0)
    truth = labels(200, 3)
    centers = np.array([[0, 0], [3, 0], [0, 3]], np.float32)
    pool = transfer(centers[truth] + rng.standard_normal((200, 2)))
    rows, teacher = np.arange(200), {}
    for spec in ("none", "neighbors"):
        votes = []
        for k in (1, 2):
            y = labels(150, 3, seed=k)
            x = (centers[y] + np.random.default_rng(k).standard_normal((150, 2))).astype(np.float32)
            guess = np.random.default_rng(k + 9).dirichlet(np.ones(3), 200)
            p = (0.9 * guess + 0.1 * np.eye(3)[truth]).astype(np.float32)
            w = expertise.build("density")(p, rows, pool, x, rng)
            votes.append((beside(p, said(spec, x, y, pool=pool)), w))
        p, w = (np.stack(each) for each in zip(*votes, strict=True))
        teacher[spec] = (aggregator.build("mean")(p, w).argmax(axis=1) == truth).mean()
    assert teacher["neighbors"] > teacher["none"] + 0.15


# Options, configuration, client.


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("neighbors(sharpness=0.0)", "evidence 'neighbors': 'sharpness' must be above 0 and finite"),
        ("neighbors(neighbors=0)", "'neighbors' must be above 0"),
        ("neighbours", "Did you mean 'neighbors'"),
    ],
)
def test_options_out_of_range_are_refused(spec, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Config.read({"evidence": spec}, where="here")
    with pytest.raises(SpecError, match=sentence):
        said(spec, np.zeros((0, 3)), np.zeros(0, int))


def test_ballots_about_classes_take_no_evidence():
    keys = {"keys": "classes", "student": "none", "expertise": "uniform"}
    with pytest.raises(ConfigError, match="set evidence = 'none', not 'neighbors'"):
        Config.read(keys, where="here")
    assert Config.read({**keys, "evidence": "none"}, where="here").keys == "classes"


CONFIG = Config(learner="constant", release="float32", evidence="neighbors", evaluate=False)
X, Y = normal(30, 3, seed=4), np.where(normal(30, 3, seed=4)[:, 0] > 0, 2, 1)


def release_of(config, *, round_=1, rows=(0, 5, 9), folder=None):
    owner = Site(0, X, Y, 3, POOL, state=None if folder is None else folder / "state")
    query = Query(round_, np.array(rows), 3, POOL.fingerprint)
    return decode_release(answer(owner, encode_query(query, 60), config).frame, query)[1]


def test_a_client_releases_ballots_with_evidence_in_them_and_weights_without():
    rows = np.array([0, 5, 9])
    for weigh in ("density", "uniform"):
        config = CONFIG.model_copy(update={"expertise": weigh})
        plain = release_of(config.model_copy(update={"evidence": "none"}))
        got = release_of(config)
        assert got.p == pytest.approx(beside(plain.p, said("neighbors", X, Y)[rows]), rel=1e-5)
        assert (got.w == plain.w).all()
        assert np.abs(got.p - plain.p).max() > 0.1
        check_soft_labels(got.p, 3, 3)


def test_evidence_is_computed_once(tmp_path, monkeypatch):
    first = release_of(CONFIG, folder=tmp_path)
    monkeypatch.setattr("fedkd.evidence.nearest", lambda *a, **k: pytest.fail("computed twice"))
    second = release_of(CONFIG, folder=tmp_path, round_=2)
    assert second.p == pytest.approx(first.p, rel=0.02)  # the model has moved a little
    assert (second.w == first.w).all()


def test_a_liar_lies_about_the_labels_of_its_evidence_too(monkeypatch):
    seen = []
    real = evidence.build("neighbors").func

    def listen(transfer, private, y, classes):
        seen.append(y)
        return real(transfer, private, y, classes)

    monkeypatch.setattr("fedkd.client.evidence.build", lambda spec: listen)
    lying = CONFIG.model_copy(update={"attack": "label_flip(share=1.0)"})
    honest, liar = release_of(CONFIG), release_of(lying)
    assert (seen[0] == Y).all() and (seen[1] == 2 - Y).all()
    assert np.abs(honest.p - liar.p).max() > 0.1
