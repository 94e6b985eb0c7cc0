"""What the server remembers of each row of the transfer set: how often it was asked, and the newest teacher on it.

Selections look at it, the student learns from it, and late clients catch up from it. Pure functions on frozen values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedkd.records import Teacher
from fedkd.softlabels import Array


@dataclass(frozen=True, eq=False)
class Memory:
    """Rows of the transfer set: ``asked`` (M,) times, newest teacher ``p`` (M, C) of round ``stamp`` (M,).

    Where no teacher is known, ``p`` is NaN and ``stamp`` 0.
    """

    asked: Array
    p: Array
    stamp: Array

    @classmethod
    def empty(cls, rows: int, classes: int) -> Memory:
        """Return the memory of a server that has asked nothing."""
        return cls(np.zeros(rows, np.int64), np.full((rows, classes), np.nan, np.float32), np.zeros(rows, np.int64))

    def count(self, rows: Array) -> Memory:
        """Return the memory after ``rows`` were asked once more."""
        asked = self.asked.copy()
        asked[rows] += 1
        return Memory(asked, self.p, self.stamp)

    def learn(self, teacher: Teacher, round_: int) -> Memory:
        """Return the memory with the answered rows of a round's teacher; where nobody answered the old row stays."""
        p, stamp = self.p.copy(), self.stamp.copy()
        rows = teacher.indices[teacher.answered]
        p[rows], stamp[rows] = teacher.p[teacher.answered], round_
        return Memory(self.asked, p, stamp)

    def forget(self, rows: Array) -> Memory:
        """Return the memory without a teacher on ``rows``."""
        p, stamp = self.p.copy(), self.stamp.copy()
        p[rows], stamp[rows] = np.nan, 0
        return Memory(self.asked, p, stamp)

    def lesson(self, rows: Array) -> Teacher:
        """Return the newest teacher on ``rows``; NaN where there is none."""
        return Teacher(self.p[rows], rows)

    def recent(self, round_: int, rounds: int) -> Array:
        """Return the rows whose teacher is one of the last ``rounds`` up to ``round_``: a buffer of teachers."""
        return np.flatnonzero((self.stamp > 0) & (self.stamp > round_ - rounds))


@dataclass(frozen=True, eq=False)
class Pool:
    """What a selection may look at: the memory, the round to be asked, and ``answer(rows)``, the student's soft labels.

    ``wrong()`` gives the rows (M,) bool that the student gets wrong, where the transfer set has public labels.
    """

    memory: Memory
    round: int
    answer: Callable[[Array], Array] | None = None
    wrong: Callable[[], Array] | None = None

    def __len__(self) -> int:
        return len(self.memory.asked)
