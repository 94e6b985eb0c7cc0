"""Schedules: their values by hand, and that they go down from one."""

import math

import pytest

from fedkd.errors import SpecError
from fedkd.schedule import check, schedule


def test_schedules_by_hand():
    assert schedule.build("constant")(0.9) == 1
    assert schedule.build("linear")(0.25) == 0.75
    assert [schedule.build("cosine")(t) for t in (0, 1 / 3, 0.5)] == pytest.approx([1, 0.75, 0.5])


def test_warmup_goes_up_and_then_the_cosine_down():
    rate = schedule.build("cosine(warmup=0.2)")
    assert [rate(t) for t in (0, 0.1, 0.2, 0.6)] == pytest.approx([0, 0.5, 1, 0.5])


@pytest.mark.parametrize("name", schedule.names())
def test_a_schedule_starts_at_one_never_rises_and_stays_a_share(name):
    values = [schedule.build(name)(i / 100) for i in range(100)]
    assert values[0] == 1
    assert all(0 <= b <= a for a, b in zip(values, values[1:], strict=False))
    assert all(math.isfinite(value) for value in values)


def test_a_warmup_of_all_steps_is_refused():
    check("cosine(warmup=0.1)")
    with pytest.raises(SpecError, match=r"'warmup' must be in \[0, 1\), got 1.0"):
        check("cosine(warmup=1.0)")
    with pytest.raises(SpecError, match="Did you mean 'cosine'"):
        check("cosin")
