"""What the server remembers of each row."""

import numpy as np

from fedkd.memory import Memory
from fedkd.records import Teacher

NAN = np.float32("nan")


def test_the_newest_answer_stays_and_silence_erases_nothing():
    first = Teacher(np.array([[0.9, 0.1], [NAN, NAN]], np.float32), np.array([0, 2]))
    second = Teacher(np.array([[NAN, NAN], [0.2, 0.8]], np.float32), np.array([0, 2]))
    empty = Memory.empty(3, 2)
    memory = empty.learn(first, 1).learn(second, 2)
    assert memory.stamp.tolist() == [1, 0, 2]
    assert memory.lesson(np.array([0, 2])).p.tolist() == np.array([[0.9, 0.1], [0.2, 0.8]], np.float32).tolist()
    assert memory.lesson(np.array([0, 1, 2])).answered.tolist() == [True, False, True]
    assert not empty.stamp.any() and np.isnan(empty.p).all(), "what was given is not changed"


def test_recent_rows_are_those_of_the_last_rounds():
    memory = Memory(np.zeros(4, np.int64), np.zeros((4, 2), np.float32), np.array([0, 1, 4, 5]))
    assert memory.recent(5, 1).tolist() == [3]
    assert memory.recent(5, 2).tolist() == [2, 3]
    assert memory.recent(5, 99).tolist() == [1, 2, 3]


def test_what_is_forgotten_is_unknown_again_and_what_is_counted_is_only_that():
    memory = Memory(np.zeros(3, np.int64), np.full((3, 2), 0.5, np.float32), np.array([1, 2, 3]))
    after = memory.count(np.array([0, 2])).forget(np.array([1]))
    assert after.asked.tolist() == [1, 0, 1]
    assert after.stamp.tolist() == [1, 0, 3]
    assert np.isnan(after.p[1]).all() and (after.p[[0, 2]] == 0.5).all()
