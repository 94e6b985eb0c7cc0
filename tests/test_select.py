"""Which rows are asked: laws for every selection, then what each one promises."""

import numpy as np
import pytest

from fedkd.errors import DataError
from fedkd.memory import Memory, Pool
from fedkd.random import generator
from fedkd.records import Teacher
from fedkd.select import select

SIZED = [name for name in select.names() if name != "all"]
MEMBERS = ["all", *(f"{name}(size=7)" for name in SIZED)]


def confident(rows):
    """What a student might say: row m is of class m % 4, the more certain the larger m."""
    p = np.full((len(rows), 4), 0.25)
    for at, row in enumerate(rows):
        p[at] = (1 - row / 20) / 4
        p[at, row % 4] += row / 20
    return p


def pool(rows=20, *, asked=None, stamp=None, round_=5):
    stamp = np.ones(rows, np.int64) if stamp is None else np.asarray(stamp)
    p = np.where(stamp[:, None] > 0, np.float32(0.25), np.float32("nan")) * np.ones((rows, 4), np.float32)
    asked = np.zeros(rows, np.int64) if asked is None else np.asarray(asked)
    return Pool(Memory(asked, p, stamp), round_, confident, lambda: np.arange(rows) % 2 == 1)


def ask(spec, given, round_=1, seed=0):
    return select.build(spec)(given, generator(seed, "round", round_, "select"))


@pytest.mark.parametrize("spec", MEMBERS)
def test_every_selection_names_each_row_once_in_order_and_draws_only_from_its_generator(spec):
    given = pool(stamp=np.arange(20) % 3, asked=np.arange(20) % 3)
    chosen = ask(spec, given)
    for rows in (chosen.ask, chosen.learn):
        assert rows.dtype == np.int64 and (np.diff(rows) > 0).all() and 0 <= rows.min() <= rows.max() < 20
    assert set(chosen.ask) <= set(chosen.learn) and set(chosen.forget) <= set(chosen.ask)
    again = ask(spec, given)
    assert (chosen.ask == again.ask).all() and (chosen.learn == again.learn).all()
    assert (given.memory.asked == np.arange(20) % 3).all(), "what was given is not changed"


@pytest.mark.parametrize("name", [name for name in SIZED if name not in ("fixed", "cache_miss")])
def test_every_drawn_selection_has_its_size_and_differs_from_round_to_round(name):
    given = pool(rows=50)
    given = Pool(given.memory, 5, lambda rows: confident(rows % 20), given.wrong)
    drawn = [ask(f"{name}(size=7)", given, round_).ask for round_ in range(1, 6)]
    assert {len(rows) for rows in drawn} == {7}
    assert len({rows.tobytes() for rows in drawn}) == 5


@pytest.mark.parametrize("name", SIZED)
@pytest.mark.parametrize("size", [0, -3, 21])
def test_a_size_that_does_not_fit_is_refused_with_both_numbers(name, size):
    with pytest.raises(DataError, match=rf"size must be in \[1, 20\], the rows of the transfer set; got {size}"):
        ask(f"{name}(size={size})", pool())
    assert len(ask(f"{name}(size=20)", pool()).learn) == 20


@pytest.mark.parametrize(
    ("name", "missing"), [("uncertain", "a student"), ("balanced", "a student"), ("wrong", "labels")]
)
def test_a_selection_that_needs_more_than_there_is_says_so(name, missing):
    with pytest.raises(DataError, match=missing):
        ask(f"{name}(size=5)", Pool(pool().memory, 5))


def test_all_asks_everything():
    assert ask("all", pool(3, asked=[3, 0, 1])).ask.tolist() == [0, 1, 2]


def test_fixed_asks_the_same_rows_in_every_round():
    assert ask("fixed(size=3)", pool(), 1).ask.tolist() == ask("fixed(size=3)", pool(), 2).ask.tolist() == [0, 1, 2]


def test_uniform_is_uniform_and_forgets_what_was_asked():
    counts = np.zeros(20)
    for seed in range(2000):
        counts[ask("uniform(size=5)", pool(asked=np.arange(20)), seed=seed).ask] += 1
    assert np.allclose(counts / 2000, 5 / 20, atol=0.05)  # five standard deviations


def test_a_budget_buys_no_row_twice_before_each_was_bought_once():
    asked = np.zeros(20, np.int64)
    for round_ in range(1, 12):
        asked[ask("budget(size=6)", pool(asked=asked), round_).ask] += 1
        assert np.ptp(asked) <= 1
    assert asked.sum() == 66


def test_a_budget_draws_at_random_among_those_asked_least():
    given = pool(6, asked=[2, 0, 1, 0, 2, 0])
    counts = np.zeros(6)
    for seed in range(1000):
        counts[ask("budget(size=2)", given, seed=seed).ask] += 1
    assert counts[[0, 2, 4]].sum() == 0
    assert np.allclose(counts[[1, 3, 5]] / 1000, 2 / 3, atol=0.08)
    assert set(ask("budget(size=4)", given).ask) == {1, 2, 3, 5}


def test_a_cache_is_asked_again_only_for_what_it_lacks_or_has_had_too_long():
    given = pool(5, stamp=[0, 4, 3, 1, 0], round_=5)
    chosen = ask("cache_miss(size=5, duration=2)", given)
    assert chosen.ask.tolist() == [0, 3, 4]  # 5 - 3 = 2 rounds is not too long, 5 - 1 = 4 is
    assert chosen.learn.tolist() == [0, 1, 2, 3, 4]
    assert chosen.forget.tolist() == []
    assert ask("cache_miss(size=5, duration=2, store=False)", given).forget.tolist() == [3]


@pytest.mark.parametrize(("store", "share"), [(True, 0.186), (False, 0.299)])
def test_storing_what_replaces_an_expired_row_saves_what_the_authors_code_buys_twice(store, share):
    """METHODS: 1000 of 10,000 rows a round, D = 50: 29.9 % of the rows are asked, 18.6 % with storing."""
    memory, asked, rounds = Memory.empty(1000, 2), 0, 400
    part = select.build(f"cache_miss(size=100, duration=50, store={store})")
    for round_ in range(1, rounds + 1):
        chosen = part(Pool(memory, round_), generator(0, round_))
        p = np.full((len(chosen.ask), 2), 0.5, np.float32)
        memory = memory.count(chosen.ask).learn(Teacher(p, chosen.ask), round_).forget(chosen.forget)
        asked += len(chosen.ask)
    assert asked / (100 * rounds) == pytest.approx(share, abs=0.02)


def test_the_uncertain_are_asked_in_proportion_to_exp_of_their_entropy():
    p = np.array([[1.0, 0.0], [0.5, 0.5]])  # exp(H) = 1 and 2
    given = Pool(pool(2).memory, 5, lambda rows: p[rows])
    second = sum(ask("uncertain(size=1)", given, seed=seed).ask[0] for seed in range(3000))
    assert second / 3000 == pytest.approx(2 / 3, abs=0.04)


@pytest.mark.parametrize("name", ["uncertain", "balanced"])
def test_before_the_first_lesson_no_row_is_preferred_to_another(name):
    given = Pool(Memory.empty(4, 2), 1, lambda rows: np.array([[1.0, 0.0], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])[rows])
    first = sum(0 in ask(f"{name}(size=2)", given, seed=seed).ask for seed in range(2000))
    assert first / 2000 == pytest.approx(0.5, abs=0.06)


def test_balanced_asks_the_rare_class_as_often_as_the_common_one():
    p = np.eye(2)[[0] * 17 + [1] * 3]
    given = Pool(pool().memory, 5, lambda rows: p[rows])
    assert (ask("balanced(size=6)", given).ask >= 17).sum() == 3
    assert (ask("balanced(size=4)", given).ask >= 17).sum() == 2
    assert len(ask("balanced(size=15)", given).ask) == 15


def test_wrong_asks_what_the_student_gets_wrong_and_learns_from_all():
    chosen = ask("wrong(size=20)", pool())
    assert chosen.ask.tolist() == list(range(1, 20, 2))
    assert chosen.learn.tolist() == list(range(20))
    assert set(ask("wrong(size=3)", pool()).ask) < set(range(1, 20, 2))
