"""What must hold for every registered part, also for one registered tomorrow that this file never heard of."""

import importlib.util
import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.aggregation import aggregator, in_chunks
from fedkd.codec import decode_release, encode_release, remember
from fedkd.dataset import fingerprint
from fedkd.events import NoOp
from fedkd.evidence import beside, evidence
from fedkd.expertise import GATES, expertise
from fedkd.feedback import Outcome, feedback
from fedkd.records import Ballots, Query, Release, Teacher, TransferSet
from fedkd.release import mechanism
from fedkd.softlabels import check_soft_labels
from fedkd.teacher import sharpener

REGISTRIES = (aggregator, sharpener, mechanism, expertise, evidence, feedback)
FURTHER = {
    "trimmed_mean": ["trimmed_mean(trim=0.0)", "trimmed_mean(trim=0.45)"],
    "cronus": ["cronus(byzantine=0.4)", "cronus(byzantine=0.5)"],
    "filter": ["filter(byzantine=0.4)", "filter(byzantine=0.5)"],
    "geometric_median": ["geometric_median(steps=1)", "geometric_median(steps=200, tolerance=0.0)"],
    "entropy": ["entropy(floor=1.0)"],
    "era": ["era(temperature=2.0)"],
    "power": ["power(beta=0.5)", "power(beta=100.0)"],
    "quantize": [f"quantize(bits={bits})" for bits in range(1, 9)],
    "top_k": [f"top_k(k={k})" for k in (1, 2, 9, 64)],
    "weights": [f"weights(bits={bits})" for bits in range(1, 9)],
    "distance": ["distance(neighbors=1, dimensions=2, bandwidth=1.0)"],
    "density_ratio": ["density_ratio(penalty=1.0, features=10)"],
    "gaussian": ["gaussian(dimensions=2, shrinkage=1.0, temperature=1.0)"],
    "density": ["density(neighbors=1, dimensions=2, sharpness=0.5)"],
    "kulsif": ["kulsif(width=0.5, auxiliary=20, share=0.5)"],
    "neighbors": ["neighbors(neighbors=1, dimensions=2, sharpness=1.0)", "neighbors(sharpness=30.0)"],
    "private_sketch": ["private_sketch(features=10, dimensions=2, sigma=0.0)"],
}
"""Options, besides the defaults, with which a part must obey the laws too."""

FAST = settings(max_examples=25, deadline=None, derandomize=True, database=None)
NAN = np.float32("nan")


def specs(registry):
    return [spec for name in registry.names() for spec in [name, *FURTHER.get(name, [])]]


def members(registry):
    bare = {"zstd"} if importlib.util.find_spec("zstandard") is None else set()
    skip = pytest.mark.skip(reason="needs zstandard")
    return pytest.mark.parametrize("spec", [pytest.param(s, marks=skip) if s in bare else s for s in specs(registry)])


def soft(rng, *shape):
    """Draw soft labels without ties, some rows of them almost certain."""
    return rng.dirichlet(np.full(shape[-1], rng.choice([0.3, 1.0, 5.0])), shape[:-1]).astype(np.float32)


@st.composite
def ballots(draw, *, clients=6, silent=True):
    """Draw p (K, M, C), w (K, M) with NaN in place of every answer that was not given."""
    k, m, c = draw(st.integers(1, clients)), draw(st.integers(0, 6)), draw(st.integers(2, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    p, w = soft(rng, k, m, c), rng.uniform(0.1, 3, (k, m)).astype(np.float32)
    if draw(st.booleans()):
        w[:] = 1
    if silent and draw(st.booleans()):
        w[rng.random((k, m)) < 0.5] = 0
    p[w == 0] = NAN
    return p, w


def frozen(*arrays):
    for array in arrays:
        array.flags.writeable = False
    return arrays


# All parts.


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.kind)
def test_every_part_says_what_it_is_and_takes_its_options_by_name(registry):
    assert len(registry.names()) >= 2
    for name, function in registry:
        first = (inspect.getdoc(function) or "").split("\n")[0]
        assert len(first) > 20 and first[-1] in ".:", f"{registry.kind} {name} has no docstring: {first!r}"
        assert function.__name__.rstrip("_") == name
        for parameter in inspect.signature(function).parameters.values():
            assert parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY), f"{name}: {parameter}"
            if parameter.kind is parameter.KEYWORD_ONLY:
                assert parameter.annotation is not parameter.empty, f"{name}: {parameter} has no type"
            else:
                assert parameter.default is parameter.empty, f"{name}: {parameter} should be keyword-only"
        assert registry.build(name).func is function


def test_further_options_are_those_of_registered_parts():
    known = {name for registry in REGISTRIES for name in registry.names()}
    assert FURTHER.keys() <= known


# Aggregators.


@members(aggregator)
@FAST
@given(made=ballots())
def test_a_teacher_is_a_distribution_where_anyone_answered_and_nan_where_nobody_did(spec, made):
    p, w = made
    teacher = aggregator.build(spec)(p, w)
    answered = (w > 0).any(axis=0)
    assert teacher.shape == p.shape[1:]
    assert teacher.dtype == np.float32
    assert np.isnan(teacher[~answered]).all()
    check_soft_labels(teacher[answered], int(answered.sum()), p.shape[2])
    assert np.abs(teacher[answered].sum(axis=1) - 1).max(initial=0) < 1e-5


@members(aggregator)
@FAST
@given(made=ballots(), junk=st.sampled_from([np.nan, np.inf, -np.inf, -1e30, 7.0]))
def test_an_unanswered_row_is_never_read(spec, made, junk):
    p, w = made
    other = np.where((w == 0)[..., None], np.float32(junk), p)
    aggregate = aggregator.build(spec)
    assert np.array_equal(aggregate(other, w), aggregate(p, w), equal_nan=True)


@members(aggregator)
@FAST
@given(made=ballots(), seed=st.integers(0, 1000))
def test_the_order_of_clients_does_not_matter(spec, made, seed):
    p, w = made
    order = np.random.default_rng(seed).permutation(len(p))
    aggregate = aggregator.build(spec)
    assert aggregate(p[order], w[order]) == pytest.approx(aggregate(p, w), abs=1e-6, nan_ok=True)
    back = np.argsort(order)  # sorted by client again: not a bit may differ
    assert np.array_equal(aggregate(p[order][back], w[order][back]), aggregate(p, w), equal_nan=True)


@members(aggregator)
@FAST
@given(made=ballots(), seed=st.integers(0, 1000))
def test_permuting_classes_permutes_the_teacher(spec, made, seed):
    p, w = made
    order = np.random.default_rng(seed).permutation(p.shape[2])
    aggregate = aggregator.build(spec)
    assert aggregate(p[..., order], w) == pytest.approx(aggregate(p, w)[..., order], abs=1e-6, nan_ok=True)


@members(aggregator)
@FAST
@given(made=ballots(), rows=st.integers(1, 6))
def test_a_chunk_of_rows_gives_the_same_bits_as_all_of_them(spec, made, rows):
    p, w = made
    aggregate = aggregator.build(spec)
    whole = aggregate(p, w)
    pieces = [aggregate(p[:, at : at + rows], w[:, at : at + rows]) for at in range(0, p.shape[1], rows)]
    assert np.array_equal(np.concatenate([whole[:0], *pieces]), whole, equal_nan=True)
    releases = [Release(p[k], w[k]) for k in range(len(p))]
    assert np.array_equal(in_chunks(aggregate, releases, rows=rows), whole, equal_nan=True)


@members(aggregator)
@FAST
@given(made=ballots(), scale=st.sampled_from([1e-30, 0.1, 7.0, 1e30]))
def test_only_the_ratio_of_weights_counts(spec, made, scale):
    p, w = made
    aggregate = aggregator.build(spec)
    assert aggregate(p, w * np.float32(scale)) == pytest.approx(aggregate(p, w), abs=1e-5, nan_ok=True)


@members(aggregator)
@FAST
@given(made=ballots(clients=1, silent=False), copies=st.integers(1, 5))
def test_clients_that_agree_are_believed(spec, made, copies):
    p, w = made
    hard = np.eye(p.shape[2], dtype=np.float32)[p.argmax(axis=2)]  # a vote, so that it is one for vote as well
    aggregate = aggregator.build(spec)
    assert aggregate(np.repeat(hard, copies, axis=0), np.repeat(w, copies, axis=0)) == pytest.approx(hard[0], abs=1e-6)


@members(aggregator)
@FAST
@given(made=ballots())
def test_an_aggregator_changes_nothing_that_it_was_given(spec, made):
    p, w = frozen(*made)
    before = p.copy(), w.copy()
    aggregator.build(spec)(p, w)
    assert np.array_equal(p, before[0], equal_nan=True)
    assert np.array_equal(w, before[1])


@members(aggregator)
def test_double_precision_stays_double(spec):
    p = np.random.default_rng(0).dirichlet(np.ones(3), (4, 5))
    teacher = aggregator.build(spec)(p, np.ones((4, 5)))
    assert teacher.dtype == np.float64
    assert np.abs(teacher.sum(axis=1) - 1).max() < 1e-12


@pytest.mark.parametrize(("spec", "share"), [("median", 0.49), ("trimmed_mean(trim=0.3)", 0.299)])
@pytest.mark.parametrize("lie", ["one_hot", "least_likely", "noise", "colluding"])
def test_liars_cannot_leave_the_range_of_the_honest(spec, share, lie):
    rng = np.random.default_rng(0)
    for clients in (3, 5, 11, 20):
        liars = int(share * clients)
        honest = rng.dirichlet(np.full(4, 5.0), (clients - liars, 30)).astype(np.float32)
        worst = np.eye(4, dtype=np.float32)[honest.mean(axis=0).argmin(axis=1)]
        lies = {
            "one_hot": np.eye(4, dtype=np.float32)[rng.integers(4, size=(liars, 30))],
            "least_likely": np.broadcast_to(worst, (liars, 30, 4)),
            "noise": rng.dirichlet(np.full(4, 0.01), (liars, 30)).astype(np.float32),
            "colluding": np.broadcast_to(np.eye(4, dtype=np.float32)[0], (liars, 30, 4)),
        }[lie]
        p = rng.permutation(np.concatenate([honest, lies]), axis=0)
        teacher = aggregator.build(spec)(p, np.ones(p.shape[:2], np.float32))
        # Each coordinate lies in the honest range before it is divided by their sum, which lies in that of the sums.
        low, high = honest.min(axis=0), honest.max(axis=0)
        assert (teacher >= low / high.sum(axis=1, keepdims=True) - 1e-5).all()
        assert (teacher <= high / low.sum(axis=1, keepdims=True) + 1e-5).all()


@pytest.mark.parametrize("spec", ["median", "trimmed_mean(trim=0.3)"])
def test_liars_change_nothing_where_the_honest_agree_and_mean_is_not_so(spec):
    rng = np.random.default_rng(1)
    truth = soft(rng, 1, 20, 5)
    p = np.concatenate([np.repeat(truth, 8, axis=0), np.eye(5, dtype=np.float32)[rng.integers(5, size=(2, 20))]])
    w = np.ones((10, 20), np.float32)
    assert aggregator.build(spec)(p, w) == pytest.approx(truth[0], abs=1e-6)
    assert np.abs(aggregator.build("mean")(p, w) - truth[0]).max() > 0.1


# Sharpeners.


@st.composite
def teachers(draw):
    m, c = draw(st.integers(0, 8)), draw(st.integers(2, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    p = soft(rng, m, c)
    p[rng.random(m) < 0.3] = NAN
    return p


@members(sharpener)
@FAST
@given(p=teachers(), seed=st.integers(0, 1000))
def test_a_sharpener_makes_distributions_row_by_row_and_class_by_class(spec, p, seed):
    (p,) = frozen(p)
    before = p.copy()
    sharpen = sharpener.build(spec)
    sharp = sharpen(p)
    silent = np.isnan(p).any(axis=1)
    assert sharp.shape == p.shape
    assert sharp.dtype == np.float32
    assert np.isnan(sharp[silent]).all()
    taught = ~np.isnan(sharp).any(axis=1)  # a gate may drop rows, and then drops them whole
    assert np.isnan(sharp[~taught]).all()
    check_soft_labels(sharp[taught], int(taught.sum()), p.shape[1])
    order = np.random.default_rng(seed).permutation(p.shape[1])
    assert sharpen(p[:, order]) == pytest.approx(sharp[:, order], abs=1e-6, nan_ok=True)
    one_by_one = np.concatenate([p[:0], *(sharpen(p[row : row + 1]) for row in range(len(p)))])
    assert np.array_equal(one_by_one, sharp, equal_nan=True)
    assert np.array_equal(p, before, equal_nan=True)


@members(sharpener)
@FAST
@given(p=teachers())
def test_a_sharpener_keeps_the_order_of_the_classes(spec, p):
    p = p[np.isfinite(p).all(axis=1)]
    sharp = sharpener.build(spec)(p)
    p, sharp = p[np.isfinite(sharp).all(axis=1)], sharp[np.isfinite(sharp).all(axis=1)]
    assert (np.take_along_axis(sharp, p.argmax(axis=1)[:, None], axis=1)[:, 0] == sharp.max(axis=1, initial=0)).all()
    ranked = np.take_along_axis(sharp, np.argsort(p, axis=1), axis=1)
    assert (np.diff(ranked, axis=1)[:, :-1] >= 0).all()


# Mechanisms.


@st.composite
def releases(draw):
    n, c = draw(st.integers(0, 9)), draw(st.integers(2, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    p = soft(rng, n, c)
    if draw(st.booleans()):
        p[: n // 2] = np.float32(1 / c)  # flat rows: every class is a tie
    return Release(p, rng.random(n).astype(np.float32), NoOp())


@members(mechanism)
@FAST
@given(release=releases(), seed=st.integers(0, 1000))
def test_a_mechanism_makes_distributions_and_nothing_else_of_the_release(spec, release, seed):
    frozen(release.p, release.w)
    before = release.p.copy(), release.w.copy()
    step = mechanism.build(spec)
    sent = step(release, np.random.default_rng(seed))
    assert check_soft_labels(sent.p, *release.p.shape) is sent.p  # single precision already
    assert sent.event == release.event
    assert ((sent.w > 0) == (before[1] > 0)).all()
    assert sent.weight_bits or np.array_equal(sent.w, before[1])
    assert np.array_equal(release.p, before[0])
    assert np.array_equal(release.w, before[1])
    again = step(release, np.random.default_rng(seed))
    assert again.p.tobytes() == sent.p.tobytes()


@members(mechanism)
@FAST
@given(release=releases(), seed=st.integers(0, 1000))
def test_what_a_mechanism_made_crosses_the_wire_unchanged(spec, release, seed):
    sent = mechanism.build(spec)(release, np.random.default_rng(seed))
    rows, classes = sent.p.shape
    query = Query(1, np.arange(rows), classes, "cd" * 32)
    got = decode_release(encode_release(sent, query, 5), query)[1]
    assert got.p.tobytes() == sent.p.tobytes()
    assert got.w.tobytes() == sent.w.tobytes()
    assert (got.event, got.encoding) == (sent.event, sent.encoding)
    known = remember(None, got, query, rows)
    following = Query(2, query.indices, classes, query.fingerprint)
    again = decode_release(encode_release(sent, following, 5, known=known), following, known=known)[1]
    assert again.p.tobytes() == sent.p.tobytes()
    assert again.w.tobytes() == sent.w.tobytes()


@members(mechanism)
@FAST
@given(release=releases(), seed=st.integers(0, 1000))
def test_a_mechanism_knows_no_class_from_another(spec, release, seed):
    p = release.p[len(release.p) // 2 :]  # without the flat rows, whose ties may be broken by position
    order = np.random.default_rng(seed).permutation(p.shape[1])
    step = mechanism.build(spec)
    plain = step(Release(p, release.w[: len(p)]), np.random.default_rng(0)).p
    mixed = step(Release(p[:, order], release.w[: len(p)]), np.random.default_rng(0)).p
    assert (mixed == plain[:, order]).all()


@members(mechanism)
def test_a_mechanism_runs_on_nothing(spec):
    nothing = Release(np.ones((0, 1), np.float32), np.ones(0, np.float32))
    assert mechanism.build(spec)(nothing, np.random.default_rng(0)).p.shape == (0, 1)


# Expertise.

SPACE = np.random.default_rng(7).standard_normal((40, 4)).astype(np.float32)
TRANSFER = TransferSet(SPACE, fingerprint(SPACE))


@st.composite
def clients(draw):
    """Draw soft labels, the rows that they are about, and private data (N, 4)."""
    n, c, private = draw(st.integers(0, 12)), draw(st.integers(2, 5)), draw(st.sampled_from([1, 2, 30]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows = np.sort(rng.permutation(len(SPACE))[:n])
    return soft(rng, n, c), rows, (rng.standard_normal((private, 4)) * 2).astype(np.float32)


@members(expertise)
@FAST
@given(made=clients(), seed=st.integers(0, 1000))
def test_expertise_is_a_weight_for_each_row_that_depends_on_nothing_else(spec, made, seed):
    p, rows, private = made
    frozen(p, rows, private)
    weigh = expertise.build(spec)
    w = weigh(p, rows, TRANSFER, private, np.random.default_rng(seed))
    assert w.shape == (len(rows),)
    assert w.dtype == np.float32
    assert np.isfinite(w).all() and (w >= 0).all()
    assert (w > 0).all() or spec.split("(")[0] in GATES
    again = weigh(p, rows, TRANSFER, private, np.random.default_rng(seed))
    assert (again == w).all()
    back = weigh(p[::-1], rows[::-1], TRANSFER, private, np.random.default_rng(seed))
    assert back[::-1] == pytest.approx(w, rel=1e-4)
    half = len(rows) // 2
    part = weigh(p[half:], rows[half:], TRANSFER, private, np.random.default_rng(seed))
    assert part == pytest.approx(w[half:], rel=1e-4)


@members(expertise)
@FAST
@given(made=clients(), seed=st.integers(0, 1000))
def test_expertise_depends_neither_on_the_order_of_private_data_nor_on_that_of_classes(spec, made, seed):
    p, rows, private = made
    rng = np.random.default_rng(seed)
    weigh = expertise.build(spec)
    w = weigh(p, rows, TRANSFER, private, np.random.default_rng(0))
    mixed = weigh(p[:, rng.permutation(p.shape[1])], rows, TRANSFER, rng.permutation(private), np.random.default_rng(0))
    assert mixed == pytest.approx(w, rel=1e-3)


@members(expertise)
def test_expertise_of_a_client_without_data_is_finite(spec):
    p = np.full((3, 2), 0.5, np.float32)
    w = expertise.build(spec)(p, np.arange(3), TRANSFER, np.zeros((0, 4), np.float32), np.random.default_rng(0))
    assert np.isfinite(w).all() and (w >= 0).all()


# Evidence.


@members(evidence)
@FAST
@given(made=clients(), seed=st.integers(0, 1000))
def test_evidence_makes_ballots_and_changes_nothing_that_it_was_given(spec, made, seed):
    p, rows, private = made
    y = np.random.default_rng(seed).integers(p.shape[1], size=len(private))
    frozen(p, private, y)
    e = evidence.build(spec)(TRANSFER, private, y, p.shape[1])
    assert e.shape == (len(TRANSFER), p.shape[1])
    assert e.dtype == np.float32
    assert np.isfinite(e).all()
    frozen(e)
    judged = beside(p, e[rows])
    assert check_soft_labels(judged, *p.shape) is judged  # single precision already
    assert np.abs(judged.sum(axis=1) - 1).max(initial=0) < 1e-5
    half = len(rows) // 2
    assert np.array_equal(beside(p[half:], e[rows[half:]]), judged[half:])


@members(evidence)
@FAST
@given(made=clients(), seed=st.integers(0, 1000))
def test_evidence_knows_no_order_of_examples_and_no_class_from_another(spec, made, seed):
    p, _, private = made
    classes, rng = p.shape[1], np.random.default_rng(seed)
    y = rng.integers(classes, size=len(private))
    find = evidence.build(spec)
    e = find(TRANSFER, private, y, classes)
    order, names = rng.permutation(len(private)), rng.permutation(classes)
    mixed = find(TRANSFER, private[order], names[y[order]], classes)
    assert mixed[:, names] == pytest.approx(e, rel=1e-3, abs=1e-3)


@members(evidence)
def test_evidence_of_a_client_without_data_takes_no_side(spec):
    e = evidence.build(spec)(TRANSFER, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), 3)
    assert (e == e[:1, :1]).all()
    assert np.isfinite(e).all()


# Feedback.


@members(feedback)
@FAST
@given(made=ballots())
def test_feedback_is_about_answered_rows_only(spec, made):
    p, w = frozen(*made)
    rows = np.arange(p.shape[1]) * 2 + 1
    teacher = Teacher(aggregator.build("mean")(p, w), rows)
    keys = [7 * k for k in range(len(p))]

    def student(asked):
        assert set(asked) <= set(rows[teacher.answered])
        return np.full((len(asked), p.shape[2]), 1 / p.shape[2], np.float32)

    back = feedback.build(spec)(Outcome(teacher, student, keys, rows, lambda: Ballots(p, w)))
    if back is None:
        return
    for key, one in {-1: back}.items() if isinstance(back, Teacher) else back.items():
        assert key == -1 or key in keys
        assert set(one.indices.tolist()) <= set(rows[teacher.answered].tolist())
        assert one.p.dtype == np.float32
        check_soft_labels(one.p, len(one.indices), p.shape[2])


@members(feedback)
@FAST
@given(made=ballots(), seed=st.integers(0, 1000))
def test_feedback_does_not_depend_on_the_order_of_clients(spec, made, seed):
    p, w = made
    order = np.random.default_rng(seed).permutation(len(p))
    rows = np.arange(p.shape[1])
    teacher = Teacher(aggregator.build("mean")(p, w), rows)

    def answer(asked):
        return np.full((len(asked), p.shape[2]), 1 / p.shape[2], np.float32)

    make = feedback.build(spec)
    plain = make(Outcome(teacher, answer, list(range(len(p))), rows, lambda: Ballots(p, w)))
    mixed = make(Outcome(teacher, answer, order.tolist(), rows, lambda: Ballots(p[order], w[order])))
    if isinstance(plain, dict):
        for key in plain:
            assert mixed[key].p == pytest.approx(plain[key].p, abs=1e-4)
