"""What goes back to the clients with the next query: functions ``(teacher, answer) -> Teacher or None``.

``answer(rows)`` gives the student's soft labels on rows of the transfer set. Rows that nobody answered never go back.
"""

from __future__ import annotations

from collections.abc import Callable

from fedkd.records import Teacher
from fedkd.registry import Registry
from fedkd.softlabels import Array

feedback = Registry("feedback")

Answer = Callable[[Array], Array]


@feedback
def none(teacher: Teacher, answer: Answer) -> None:
    """Send nothing back: clients never see the ensemble."""


@feedback
def teacher(teacher: Teacher, answer: Answer) -> Teacher:
    """Send the teacher of the round (FedMD, arXiv:1910.03581; DS-FL, arXiv:2008.06180)."""
    return Teacher(teacher.p[teacher.answered], teacher.indices[teacher.answered])


@feedback
def student(teacher: Teacher, answer: Answer) -> Teacher:
    """Send what the student says on the same rows: dual distillation (CFD, arXiv:2012.00632)."""
    rows = teacher.indices[teacher.answered]
    return Teacher(answer(rows), rows)
