"""Which rows are asked: laws for every selection, then what each one promises."""

import numpy as np
import pytest

from fedkd.errors import DataError
from fedkd.random import generator
from fedkd.select import select

MEMBERS = [name if name == "all" else f"{name}(size=7)" for name in select.names()]


def ask(spec, asked, round_=1, seed=0):
    return select.build(spec)(asked, generator(seed, "round", round_, "select"))


@pytest.mark.parametrize("spec", MEMBERS)
def test_every_selection_names_each_row_once_in_order_and_draws_only_from_its_generator(spec):
    asked = np.arange(20) % 3
    rows = ask(spec, asked)
    assert rows.dtype == np.int64 and (np.diff(rows) > 0).all() and 0 <= rows.min() <= rows.max() < 20
    assert (rows == ask(spec, asked)).all()
    assert (asked == np.arange(20) % 3).all(), "what was given is not changed"


@pytest.mark.parametrize("spec", [spec for spec in MEMBERS if spec != "all"])
def test_every_sized_selection_has_its_size_and_differs_from_round_to_round(spec):
    asked = np.zeros(50, np.int64)
    drawn = [ask(spec, asked, round_) for round_ in range(1, 6)]
    assert {len(rows) for rows in drawn} == {7}
    assert len({rows.tobytes() for rows in drawn}) == 5


@pytest.mark.parametrize("name", [name for name in select.names() if name != "all"])
@pytest.mark.parametrize("size", [0, -3, 21])
def test_a_size_that_does_not_fit_is_refused_with_both_numbers(name, size):
    with pytest.raises(DataError, match=rf"size must be in \[1, 20\], the rows of the transfer set; got {size}"):
        ask(f"{name}(size={size})", np.zeros(20, np.int64))
    assert len(ask(f"{name}(size=20)", np.zeros(20, np.int64))) == 20


def test_all_asks_everything():
    assert ask("all", np.array([3, 0, 1])).tolist() == [0, 1, 2]


def test_uniform_is_uniform_and_forgets_what_was_asked():
    counts = np.zeros(20)
    for seed in range(2000):
        counts[ask("uniform(size=5)", np.arange(20), seed=seed)] += 1
    assert np.allclose(counts / 2000, 5 / 20, atol=0.05)  # five standard deviations


def test_a_budget_buys_no_row_twice_before_each_was_bought_once():
    asked = np.zeros(20, np.int64)
    for round_ in range(1, 12):
        asked[ask("budget(size=6)", asked, round_)] += 1
        assert np.ptp(asked) <= 1
    assert asked.sum() == 66


def test_a_budget_draws_at_random_among_those_asked_least():
    asked = np.array([2, 0, 1, 0, 2, 0])
    counts = np.zeros(6)
    for seed in range(1000):
        counts[ask("budget(size=2)", asked, seed=seed)] += 1
    assert counts[[0, 2, 4]].sum() == 0
    assert np.allclose(counts[[1, 3, 5]] / 1000, 2 / 3, atol=0.08)
    assert set(ask("budget(size=4)", asked)) == {1, 2, 3, 5}
