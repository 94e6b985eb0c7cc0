"""Each defense by hand on three clients and three classes, and what it bounds."""

import numpy as np
import pytest

from fedkd.aggregation import aggregator
from fedkd.attack import LARGEST, attack
from fedkd.defense import JUDGES, defense, disagreement, outlier_scores, row_shares, vet
from fedkd.errors import SpecError

A, B = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.2, 0.6])
FAR = np.sqrt(0.16 + 0.01 + 0.25)  # |A - B|
SPECS = [*defense.names(), "cap(share=0.1)", "budget(most=1.0)", "exp_guard(eta=5.0, base='median')",
         "cross_check(steps=1)", "drop_outliers(z=1.0)", "dawid_skene(steps=1)"]  # fmt: skip


def run(spec, p, w, past=None):
    p, w = np.asarray(p, np.float64), np.asarray(w, np.float64)
    return vet(spec, p, w, np.ones(len(p)) if past is None else np.asarray(past, np.float64))


def rows(*ballots):
    """Return ballots (K, 1, C), one row of each."""
    return np.array(ballots, np.float64)[:, None, :]


def crowd(honest, liars, lie, *, classes=4, n=200, seed=0):
    """Return ballots (K, n, C), liars last, and the truth (n,): honest ones are mostly right, in their own way."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(classes, size=n)
    p = 0.6 * np.eye(classes)[truth] + 0.4 * rng.dirichlet(np.full(classes, 2.0), (honest + liars, n))
    p = p.astype(np.float32)
    made = attack.build(lie)()
    for k in range(honest, honest + liars):
        p[k], _ = made.ballot(p[k], np.ones(n, np.float32), np.random.default_rng(k))
    return p, truth


# What holds for all of them.


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("seed", range(4))
def test_a_defense_returns_ballots_that_an_aggregator_takes(spec, seed):
    rng = np.random.default_rng(seed)
    k, m, c = rng.integers(1, 7), rng.integers(0, 9), rng.integers(2, 6)
    p = rng.dirichlet(np.ones(c), (k, m)).astype(np.float32)
    w = (rng.random((k, m)) * (rng.random((k, m)) < 0.7)).astype(np.float32)
    w[rng.integers(k)] = 0  # one abstains everywhere
    past = rng.uniform(0.1, 1, k)
    p[w == 0] = np.nan
    before = p.copy(), w.copy(), past.copy()
    for array in (p, w, past):
        array.flags.writeable = False
    vetted = vet(spec, p, w, past)
    assert (vetted.p.shape, vetted.w.shape, vetted.trust.shape) == (p.shape, w.shape, (k,))
    assert vetted.p.dtype == vetted.w.dtype == np.float32
    assert (vetted.w[w == 0] == 0).all() and np.isfinite(vetted.w).all() and (vetted.w >= 0).all()
    if spec.split("(")[0] != "drop_outliers":
        assert (vetted.w[w > 0] > 0).all()  # distrusted, but not silenced
    heard = vetted.p[vetted.w > 0]
    assert np.abs(heard.sum(axis=-1) - 1).max(initial=0) < 1e-5 and heard.min(initial=0) >= 0
    assert (vetted.trust >= 0).all() and (vetted.trust <= 1).all()
    silent = ~(w > 0).any(axis=1)
    assert (vetted.trust[silent] == past[silent]).all()
    assert np.array_equal(p, before[0], equal_nan=True) and (w == before[1]).all() and (past == before[2]).all()
    teacher = aggregator.build("mean")(vetted.p, vetted.w)
    assert np.isfinite(teacher[(vetted.w > 0).any(axis=0)]).all()


@pytest.mark.parametrize("spec", SPECS)
def test_an_unanswered_row_is_never_read(spec):
    rng = np.random.default_rng(1)
    p = rng.dirichlet(np.ones(3), (5, 20)).astype(np.float32)
    w = (rng.random((5, 20)) * (rng.random((5, 20)) < 0.6)).astype(np.float32)
    one, other = (np.where((w > 0)[..., None], p, np.float32(junk)) for junk in (np.nan, 1e30))
    first, second = vet(spec, one, w, np.ones(5)), vet(spec, other, w, np.ones(5))
    assert (first.w == second.w).all() and (first.trust == second.trust).all()
    assert (first.p[w > 0] == second.p[w > 0]).all()


@pytest.mark.parametrize("spec", SPECS)
def test_the_order_of_clients_of_rows_and_of_classes_does_not_matter(spec):
    rng = np.random.default_rng(2)
    p = rng.dirichlet(np.ones(4), (6, 30))
    w = rng.random((6, 30)) + 0.1
    past = rng.uniform(0.5, 1, 6)
    plain = vet(spec, p, w, past)
    clients, places, classes = rng.permutation(6), rng.permutation(30), rng.permutation(4)
    mixed = vet(spec, p[clients][:, places][..., classes], w[clients][:, places], past[clients])
    assert mixed.trust == pytest.approx(plain.trust[clients])
    assert row_shares(mixed.w) == pytest.approx(row_shares(plain.w)[clients][:, places])
    assert mixed.p == pytest.approx(plain.p[clients][:, places][..., classes])


@pytest.mark.parametrize("spec", SPECS)
def test_a_claim_at_either_end_of_single_precision_neither_overflows_nor_silences(spec):
    p = np.tile(np.eye(3, dtype=np.float32)[:, None], (2, 4, 1))
    w = np.ones((6, 4), np.float32)
    w[0], w[1] = LARGEST, np.finfo(np.float32).tiny
    vetted = vet(spec, p, w, np.ones(6))
    assert np.isfinite(vetted.w).all() and np.isfinite(vetted.trust).all()
    assert np.isfinite(aggregator.build("mean")(vetted.p, vetted.w)).all()


def test_a_chain_runs_from_the_left_and_only_one_part_of_it_judges():
    p, w = rows(A, A, B), np.array([[8.0], [1.0], [1.0]])
    chained = run("cap(share=0.5) | cross_check", p, w)
    by_hand = run("cross_check", p, run("cap(share=0.5)", p, w).w)
    assert (chained.w == by_hand.w).all() and (chained.trust == by_hand.trust).all()
    with pytest.raises(SpecError, match="one part that judges is enough, got exp_guard and cross_check"):
        run("exp_guard | cap | cross_check", p, w)
    assert set(defense.names()) - {"none", "cap", "budget"} == JUDGES


# Scores.


def test_outlier_scores_by_hand():
    p = np.array([[A, A], [A, B]])
    teacher = np.array([A, A])
    assert outlier_scores(p, np.ones((2, 2)), teacher) == pytest.approx([0, FAR / 2])
    assert outlier_scores(p, np.array([[1.0, 1.0], [3.0, 1.0]]), teacher) == pytest.approx([0, FAR / 4])
    nobody = np.array([[1.0, 1.0], [0.0, 0.0]])
    assert np.isnan(outlier_scores(p, nobody, teacher)).tolist() == [False, True]
    assert outlier_scores(p, np.ones((2, 2)), np.array([[np.nan] * 3, A])) == pytest.approx([0, FAR])


def test_disagreement_is_the_distance_to_the_others_where_both_claim_to_know():
    # One row, three equal clients, A A B: the others of the first say (A + B) / 2, those of the third A.
    assert disagreement(rows(A, A, B), np.ones((3, 1))) == pytest.approx([FAR / 2, FAR / 2, FAR])
    # Two rows and two clients, who agree on the first and not on the second: v (1 - v) is 1/4 and 3/16.
    p = np.array([[A, A], [A, B]])
    w = np.array([[1.0, 1.0], [1.0, 3.0]])
    assert disagreement(p, w) == pytest.approx(np.full(2, FAR * (3 / 16) / (1 / 4 + 3 / 16)))
    # Each is alone where it answers: nothing to compare.
    assert np.isnan(disagreement(p, np.eye(2))).all()


def test_an_expert_is_not_blamed_for_what_it_disclaims_to_know():
    # The second client is wrong where it says that it does not know, the third where it says that it does.
    p = np.array([[A, A], [A, B], [B, A], [A, A]])
    w = np.array([[1.0, 1.0], [1.0, 0.001], [1.0, 1.0], [1.0, 1.0]])
    scores = disagreement(p, w)
    # The second is off from nobody but the third in what counts: a third of |A - B|.
    assert scores[1] == pytest.approx(FAR / 3, rel=0.01)
    # The third is off by |A - B| on the first row, where v (1 - v) is 3/16, and agrees on the second, where it is 2/9.
    assert scores[2] == pytest.approx(FAR * (3 / 16) / (3 / 16 + 2 / 9), rel=0.01)
    plain = outlier_scores(p, np.ones((4, 2)), aggregator.build("mean")(p, np.ones((4, 2))))
    assert plain[1] == pytest.approx(plain[2])  # all rows alike: no telling them apart


# Bounds on boasting.


def test_cap_by_hand():
    # Shares .8 .1 .1: the first is clipped to what the others have together.
    assert row_shares(run("cap(share=0.5)", rows(A, A, B), [[8.0], [1.0], [1.0]]).w)[:, 0] == pytest.approx(
        [0.5, 0.25, 0.25]
    )
    # .6 .3 .1 at 2/5: the first two are clipped to c = .4 (2 c + .1), c = .2.
    assert row_shares(run("cap(share=0.4)", rows(A, A, B), [[6.0], [3.0], [1.0]]).w)[:, 0] == pytest.approx(
        [0.4, 0.4, 0.2]
    )
    # Nobody is above the bound: nothing changes. And three cannot have less than a third each.
    assert row_shares(run("cap(share=0.7)", rows(A, A, B), [[6.0], [3.0], [1.0]]).w)[:, 0] == pytest.approx(
        [0.6, 0.3, 0.1]
    )
    assert run("cap(share=0.3)", rows(A, A, B), [[6.0], [3.0], [1.0]]).w[:, 0] == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("share", [0.15, 0.25, 0.5, 0.9])
def test_no_client_has_more_than_the_cap_of_a_row_whatever_it_claims(share):
    rng = np.random.default_rng(0)
    w = np.exp(rng.normal(0, 8, (12, 300))).astype(np.float32)
    w[3] = LARGEST
    w[:, :50] *= rng.random((12, 50)) < 0.8
    v = row_shares(vet(f"cap(share={share})", np.zeros((12, 300, 2), np.float32), w, np.ones(12)).w)
    enough = (w > 0).sum(axis=0) > 1 / share
    assert v[:, enough].max() <= share * (1 + 1e-5)
    assert v[3, enough & (w[3] > 0)] == pytest.approx(share, rel=1e-4)
    # Who is within the bound keeps its ratio to others within it.
    within = (v[:, 60] < share * 0.999) & (w[:, 60] > 0)
    ratio = v[within, 60] / w[within, 60]
    assert ratio == pytest.approx(np.full(len(ratio), ratio[0]), rel=1e-3)


@pytest.mark.parametrize("aggregate", ["vote", "mean"])
def test_a_one_hot_ballot_under_a_cap_moves_a_row_by_the_cap_and_no_more(aggregate):
    rng = np.random.default_rng(1)
    p = np.eye(4, dtype=np.float32)[rng.integers(4, size=(8, 100))]
    w = rng.random((8, 100)).astype(np.float32) + 0.1
    w[0] = LARGEST

    def teach(ballots):
        vetted = vet("cap(share=0.25)", ballots, w, np.ones(8))
        return aggregator.build(aggregate)(vetted.p, vetted.w)

    before = teach(p)
    for lie in np.eye(4, dtype=np.float32):
        changed = p.copy()
        changed[0] = lie
        # From one class to another: half the L1 distance is the weight of the client.
        assert np.abs(teach(changed) - before).sum(axis=1).max() / 2 <= 0.25 * (1 + 1e-5)
    uncapped = aggregator.build(aggregate)(p, w)
    assert (uncapped.argmax(axis=1) == p[0].argmax(axis=1)).all()  # without it, the boaster dictates


def test_a_vote_bounds_what_any_ballot_can_do_and_log_mean_does_not():
    # Nine agree, the tenth is free to say what it likes: a tenth of the row is all it moves.
    honest = np.tile(np.array([0.5, 0.3, 0.2]), (9, 1, 1))
    w = np.ones((10, 1))
    for liar in ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1e-30, 0.0, 1.0], [1 / 3, 1 / 3, 1 / 3]):
        teacher = aggregator.build("vote")(np.concatenate([honest, [[liar]]]), w)[0]
        assert teacher[0] >= 0.9 - 1e-9
    veto = aggregator.build("log_mean")(np.concatenate([honest, [[[0.0, 0.5, 0.5]]]]), w)[0]
    assert veto[0] < 0.2


def test_budget_by_hand():
    # Two rows: the first client claims 9 of 10 of both, the two others share the rest. Of two rows each may have 2/3:
    # so the first has a third of each row, and the others the rest, as equals.
    w = np.array([[9.0, 9.0], [0.5, 0.5], [0.5, 0.5]])
    assert row_shares(run("budget(most=1.0)", np.zeros((3, 2, 3)), w).w) == pytest.approx(
        np.full((3, 2), 1 / 3), rel=1e-2
    )
    # 1.5 / 3 of two rows is one: half of each for the first.
    v = row_shares(run("budget(most=1.5)", np.zeros((3, 2, 3)), w).w)
    assert v[0] == pytest.approx([0.5, 0.5], rel=1e-2)
    assert v[1] == pytest.approx([0.25, 0.25], rel=1e-2)


@pytest.mark.parametrize("most", [1.0, 1.5, 3.0])
def test_no_client_has_more_than_its_budget_over_all_rows(most):
    rng = np.random.default_rng(0)
    w = np.exp(rng.normal(0, 3, (10, 400))).astype(np.float32)
    w[0] = LARGEST
    w[7] = 0
    v = row_shares(vet(f"budget(most={most})", np.zeros((10, 400, 2), np.float32), w, np.ones(10)).w)
    assert v.sum(axis=1).max() <= 400 * most / 9 * 1.01
    assert v[0].sum() == pytest.approx(400 * most / 9, rel=0.02)


def test_a_boast_by_any_factor_gains_nothing_beyond_the_budget():
    rng = np.random.default_rng(1)
    w = np.exp(rng.normal(0, 3, (10, 400)))
    shares = []
    for factor in (1e3, 1e6, 1e30):
        boasted = w.copy()
        boasted[0] *= factor
        shares.append(row_shares(run("budget", np.zeros((10, 400, 2)), boasted).w))
    assert shares[1] == pytest.approx(shares[0], rel=0.02, abs=1e-4)
    assert shares[2] == pytest.approx(shares[0], rel=0.02, abs=1e-4)


def test_honest_experts_keep_their_weights_under_a_budget():
    w = np.array([[1.0, 0.001, 0.001], [0.001, 1.0, 0.001], [0.001, 0.001, 1.0]])
    assert row_shares(run("budget(most=1.2)", np.zeros((3, 3, 2)), w).w) == pytest.approx(row_shares(w))
    capped = row_shares(run("cap(share=0.5)", np.zeros((3, 3, 2)), w).w)
    assert capped.max() == pytest.approx(0.5)  # which is what a cap takes from them


# Judges.


def test_exp_guard_by_hand():
    # The mean of A, A, B is a third of the way from A to B: distances 1/3, 1/3, 2/3 of |A - B|.
    vetted = run("exp_guard(eta=2.0)", rows(A, A, B), np.ones((3, 1)))
    fall = np.exp(-2.0 * FAR / 3)
    assert vetted.trust == pytest.approx([1, 1, fall])
    assert vetted.w[2, 0] / vetted.w[0, 0] == pytest.approx(fall)
    # The median is A: distances 0, 0, |A - B|.
    assert run("exp_guard(eta=2.0, base='median')", rows(A, A, B), np.ones((3, 1))).trust[2] == pytest.approx(
        np.exp(-2.0 * FAR)
    )


def test_exp_guard_remembers():
    trust = np.ones(3)
    for round_ in range(1, 4):
        trust = run("exp_guard(eta=1.0)", rows(A, A, B), np.ones((3, 1)), trust).trust
        assert trust == pytest.approx([1, 1, np.exp(-round_ * FAR / 3)])


def test_who_was_silent_keeps_its_trust_and_does_not_gain_by_the_company():
    w = np.array([[0.0], [1.0], [1.0]])
    vetted = run("exp_guard", rows([np.nan] * 3, A, A), w, [0.3, 0.5, 0.5])
    assert vetted.trust == pytest.approx([0.3, 0.5, 0.5])


@pytest.mark.parametrize("spec", ["exp_guard(eta=10.0, base='median')", "cross_check", "drop_outliers"])
@pytest.mark.parametrize("lie", ["lma", "cpa", "rank_shuffle", "collude", "hips", "random(concentration=0.1)"])
def test_four_liars_of_ten_lose_their_say_and_the_honest_do_not(spec, lie):
    p, truth = crowd(6, 4, lie)
    vetted = vet(spec, p, np.ones(p.shape[:2], np.float32), np.ones(10))
    assert vetted.trust[:6].min() > 2 * vetted.trust[6:].max()
    teacher = aggregator.build("mean")(vetted.p, vetted.w)
    assert (teacher.argmax(axis=1) == truth).mean() > 0.99


def test_four_colluders_of_ten_win_where_nobody_looks():
    p, truth = crowd(6, 4, "collude")
    teacher = aggregator.build("mean")(p, np.ones(p.shape[:2]))
    assert (teacher.argmax(axis=1) == truth).mean() < 0.7


def test_drop_outliers_silences_the_odd_one_and_lets_it_come_back():
    p = np.tile(A, (5, 4, 1))
    p[4] = B
    vetted = run("drop_outliers", p, np.ones((5, 4)))
    assert vetted.trust.tolist() == [1, 1, 1, 1, 0]
    assert (vetted.w[4] == 0).all() and (vetted.w[:4] > 0).all()
    p[4] = A
    assert run("drop_outliers", p, np.ones((5, 4)), vetted.trust).trust.tolist() == [1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    "spec",
    ["cap(share=0.0)", "cap(share=1.5)", "budget(most=0.9)", "exp_guard(eta=-1.0)", "cross_check(steps=0)",
     "cross_check(claims=0.0)", "drop_outliers(z=0.0)", "dawid_skene(prior=0.0)"],
)  # fmt: skip
def test_an_option_out_of_range_is_refused(spec):
    with pytest.raises(SpecError, match=spec.split("(")[0]):
        run(spec, rows(A, B), np.ones((2, 1)))


def test_trust_does_not_drain_from_the_honest_while_a_newcomer_keeps_his():
    # Three honest clients take turns in being nearest to the truth; the fourth is absent for a long time, then lies.
    rng = np.random.default_rng(0)
    truth, trust = np.eye(3)[np.arange(12) % 3], np.ones(4)
    for _ in range(300):
        p = np.stack([0.7 * truth + 0.3 * rng.dirichlet(np.ones(3), 12) for _ in range(4)])
        trust = run("exp_guard", p, np.array([[1.0], [1], [1], [0]]) * np.ones(12), trust).trust
    assert trust[:3].max() == pytest.approx(1.0) and trust[3] == 1.0
    p[3] = np.roll(truth, 1, axis=1)
    vetted = run("exp_guard", p, np.ones((4, 12)), trust)
    assert (aggregator.build("mean")(vetted.p, vetted.w).argmax(axis=1) == truth.argmax(axis=1)).all()


def test_who_tells_the_truth_where_it_claims_most_is_judged_by_all_that_it_says():
    # A liar claims 1e27 on three rows where it is honest, and 1e3 on all others, where it lies.
    rng = np.random.default_rng(0)
    truth = np.eye(5)[rng.integers(0, 5, 200)]
    p = np.stack([0.8 * truth + 0.2 * rng.dirichlet(np.ones(5), 200) for _ in range(6)])
    w = np.exp(rng.normal(0, 1, (6, 200)))
    p[0, 3:], w[0] = np.roll(truth, 1, axis=1)[3:], np.where(np.arange(200) < 3, 1e27, 1e3)
    trust = run("cross_check", p, w).trust
    assert trust[0] < 0.1 * trust[1:].min()


def test_rows_that_nobody_else_answers_cost_a_client_no_budget():
    p, w = np.full((3, 10, 3), 1 / 3), np.ones((3, 10))
    w[1:, :4] = 0  # the first is alone on four rows of ten
    assert run("budget(most=1.2)", p, w).w[:, 4:] == pytest.approx(1 / 3)


def test_four_of_ten_who_claim_to_know_everything_are_not_the_judges():
    # Six experts know a class each (of six), two rows a class; four colluders say class 0 and claim to know it all.
    truth = np.repeat(np.arange(6), 2)
    p = np.full((10, 12, 6), 0.02)
    p[np.arange(10)[:, None], np.arange(12), truth] = 0.9
    w = np.where(np.arange(6)[:, None] == truth, 100.0, 1.0)
    p[6:], w = np.eye(6)[0], np.concatenate([w, np.full((4, 12), 1e6)])
    plain = aggregator.build("mean")(p, w)
    assert (plain.argmax(axis=1) == 0).all()
    vetted = run("budget | cross_check(eta=10)", p, w)
    assert (aggregator.build("mean")(vetted.p, vetted.w).argmax(axis=1) == truth).all()
    assert vetted.trust[:6].min() > 10 * vetted.trust[6:].max()
    taken_at_their_word = disagreement(p, w)
    assert taken_at_their_word[:6].min() > taken_at_their_word[6:].max(), "then the experts are the outliers"
