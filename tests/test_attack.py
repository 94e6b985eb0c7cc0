"""What dishonest clients do, by hand on three classes, and what no attack may do."""

import numpy as np
import pytest

from fedkd.attack import LARGEST, attack, derangement, dishonest, worst_of
from fedkd.errors import SpecError
from fedkd.records import Release
from fedkd.release import prepare
from fedkd.softlabels import check_soft_labels

P = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.2, 0.3, 0.5]], np.float32)
W = np.array([1.0, 0.5, 0.25], np.float32)


def rng(seed=0):
    return np.random.default_rng(seed)


def lie(spec, p=P, w=W, seed=0):
    return attack.build(spec)().ballot(p, w, rng(seed))[0]


def test_a_flipped_label_is_counted_from_the_other_end():
    flipped = attack.build("label_flip")().labels(np.array([0, 1, 2, 3, 3]), 4, rng())
    assert flipped.tolist() == [3, 2, 1, 0, 0]
    assert attack.build("label_flip")().ballot is None  # it says honestly what it learned from them


def test_a_derangement_leaves_no_class_in_its_place_and_is_consistent():
    for seed in range(50):
        to = derangement(5, rng(seed))
        assert sorted(to) == list(range(5))
        assert (to != np.arange(5)).all()
    y = np.array([0, 1, 2, 0, 1, 2])
    flipped = attack.build("label_flip(derange=True)")().labels(y, 3, rng())
    assert (flipped[:3] == flipped[3:]).all() and (flipped != y).all()


def test_the_least_likely_class_gets_all():
    assert lie("lma").tolist() == [[0, 0, 1], [1, 0, 0], [1, 0, 0]]


def test_the_least_correlated_class_gets_all():
    # Columns: classes 0 and 1 rise and fall against each other, class 2 goes along with 1.
    p = np.array([[0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.1, 0.6, 0.3]], np.float32)
    correlation = np.corrcoef(p.T)
    assert correlation[0].argmin() in (1, 2) and correlation[1].argmin() == 0
    expected = np.eye(3)[[correlation[0].argmin()] * 2 + [0, 0]]
    assert lie("cpa", p, np.ones(4)).tolist() == expected.tolist()


def test_cpa_of_a_client_that_says_the_same_of_everything_is_still_another_class():
    same = np.full((4, 3), [0.2, 0.7, 0.1], np.float32)
    assert (lie("cpa", same, np.ones(4)).argmax(axis=1) != 1).all()


def test_hips_says_what_an_honest_client_says_of_the_second_class():
    # Rows 0 and 3 are of class 0, 1 and 2 of class 1; the second of row 0 is 1, of row 1 it is 2, which none is.
    p = np.array([[0.6, 0.3, 0.1], [0.1, 0.5, 0.4], [0.3, 0.7, 0.0], [0.8, 0.0, 0.2]], np.float32)
    hidden = lie("hips", p, np.ones(4))
    assert hidden[0] == pytest.approx([0.2, 0.6, 0.2])  # the mean of rows 1 and 2
    assert hidden[1] == pytest.approx([0.1, 0.4, 0.5])  # its own with the two exchanged
    assert hidden[2] == pytest.approx([0.7, 0.15, 0.15])  # the mean of rows 0 and 3


def test_hips_is_no_bolder_than_the_honest():
    p = rng().dirichlet(np.full(5, 0.5), 300).astype(np.float32)
    hidden = lie("hips", p, np.ones(300))
    assert hidden.max() <= p.max()
    assert (hidden.argmax(axis=1) != p.argmax(axis=1)).mean() > 0.9


def test_colluders_that_share_their_ballots_pick_the_one_that_hurts_most():
    # -ln .6 < -ln .2 on the first row, whose truth is class 0; the other way round on the second, whose truth is 2.
    p = np.array([[[0.6, 0.3, 0.1], [0.8, 0.1, 0.1]], [[0.2, 0.2, 0.6], [0.0, 0.0, 1.0]]])
    worst = worst_of(p, np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    assert worst.tolist() == [[0.2, 0.2, 0.6], [0.8, 0.1, 0.1]]


def test_ranks_are_reversed_and_values_are_kept():
    assert lie("rank_shuffle") == pytest.approx(np.array([[0.1, 0.2, 0.7], [0.6, 0.1, 0.3], [0.5, 0.3, 0.2]]))
    p = rng().dirichlet(np.ones(6), 100).astype(np.float32)
    shuffled = lie("rank_shuffle(shuffle=True)", p, np.ones(100))
    assert (np.sort(shuffled, axis=1) == np.sort(p, axis=1)).all()
    assert (np.take_along_axis(shuffled, p.argmax(axis=1)[:, None], axis=1)[:, 0] == p.min(axis=1)).all()


def test_colluders_say_one_class_of_everything():
    assert lie("collude(target=2)").tolist() == [[0, 0, 1]] * 3
    with pytest.raises(SpecError, match=r"must be in 0..2, got 3"):
        lie("collude(target=3)")


def test_noise_of_low_concentration_is_certain_and_says_nothing_of_the_row():
    p = np.tile(P, (500, 1))
    noise = lie("random(concentration=0.01)", p, np.ones(1500))
    assert np.median(noise.max(axis=1)) > 0.99
    assert noise.mean(axis=0) == pytest.approx([1 / 3] * 3, abs=0.05)
    assert lie("random(concentration=1e-300)", p, np.ones(1500)).sum(axis=1) == pytest.approx(1)


@pytest.mark.parametrize("name", [name for name in attack.names() if name != "none"])
def test_every_ballot_lie_follows_the_protocol_and_is_the_same_each_time(name):
    made = attack.build(f"{name}(share=0.3, boast=1e3)")()
    assert made.share == 0.3
    p = rng(3).dirichlet(np.full(7, 0.5), 40).astype(np.float32)
    w = rng(4).random(40).astype(np.float32)
    w[::5] = 0
    before = p.copy(), w.copy()
    q, v = made.ballot(p, w, rng(1))
    check_soft_labels(q, 40, 7)
    assert q.dtype == v.dtype == np.float32
    assert v == pytest.approx(w * 1000)
    assert (v[::5] == 0).all()
    again = made.ballot(p, w, rng(1))
    assert (again[0] == q).all() and (again[1] == v).all()
    assert (p == before[0]).all() and (w == before[1]).all()
    assert made.ballot(p[:0], w[:0], rng())[0].shape == (0, 7)
    assert (q == p).all() == (name == "label_flip")  # that one has been lied to, and does not lie


def test_a_boast_is_the_same_claim_times_a_factor_and_infinity_is_the_largest_everywhere():
    assert attack.build("lma(boast=2.0)")().ballot(P, W, rng())[1].tolist() == [2.0, 1.0, 0.5]
    assert attack.build("lma(boast=1e60)")().ballot(P, W, rng())[1].tolist() == [LARGEST] * 3
    infinite = attack.build("lma(boast=1e999)")().ballot(P, np.array([1e-30, 0, 1], np.float32), rng())[1]
    assert infinite.tolist() == [LARGEST, 0.0, LARGEST]
    assert attack.build("lma")().ballot(P, W, rng())[1] is W


def test_the_largest_claim_can_be_sent():
    w = np.array([LARGEST, 1.0], np.float32)
    sent = prepare("argmax | weights(bits=6)", Release(P[:2], w), rng())
    assert sent.w[0] == LARGEST


@pytest.mark.parametrize(
    ("share", "clients", "count"), [(0.2, 10, 2), (0.4, 10, 4), (0.3, 10, 3), (0.2, 4, 0), (1, 3, 3)]
)
def test_so_many_are_dishonest(share, clients, count):
    made = attack.build(f"lma(share={share})")()
    bad = dishonest(made, clients, rng())
    assert len(bad) == count and bad <= set(range(clients))
    assert bad == dishonest(made, clients, rng())


def test_more_attackers_are_the_same_and_others():
    some, more = (dishonest(attack.build(f"lma(share={share})")(), 10, rng(5)) for share in (0.2, 0.4))
    assert some < more
    assert len({frozenset(dishonest(attack.build("lma")(), 10, rng(seed))) for seed in range(20)}) > 5


def test_the_honest_are_left_alone():
    made = attack.build("none")()
    assert (made.labels, made.ballot, dishonest(made, 10, rng())) == (None, None, set())


@pytest.mark.parametrize(
    "spec", ["lma(share=1.5)", "lma(share=-0.1)", "cpa(boast=0.0)", "random(concentration=0.0)", "collude(target=-1)"]
)
def test_an_option_out_of_range_is_refused(spec):
    with pytest.raises(SpecError, match=spec.split("(")[0]):
        attack.build(spec)()
