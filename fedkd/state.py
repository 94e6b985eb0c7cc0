"""All that the server remembers from round to round, as arrays and back."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from fedkd.absence import Kept
from fedkd.audience import Audience
from fedkd.codec import Known
from fedkd.feedback import Back
from fedkd.memory import Memory
from fedkd.recording import pack_soft_labels, unpack_soft_labels
from fedkd.records import Release, RoundReport, Teacher
from fedkd.softlabels import Array


@dataclass(eq=False)
class State:
    """Everything that lives across rounds on the server but the student. Saved after each of them.

    ``round`` is the last that was finished. Of it: the ``teacher``, and the ``feedback`` that goes out with the next
    query. The student's last ``lesson``, each row of which ``counts`` (n,), is that of round ``taught``. What the
    student said where public labels found it right is ``kept`` (M, C). By client: the release ``known`` here, how far
    it is in ``trust``, what it was ``told``, and its last ``ballots``.
    """

    round: int = 0
    memory: Memory = field(default_factory=lambda: Memory.empty(0, 1))
    feedback: Back = None
    teacher: Teacher | None = None
    lesson: Teacher | None = None
    counts: Array | None = None
    taught: int = 0
    kept: Array | None = None
    known: dict[int, Known] = field(default_factory=dict)
    trust: dict[int, float] = field(default_factory=dict)
    told: dict[int, Audience] = field(default_factory=dict)
    ballots: dict[int, Kept] = field(default_factory=dict)
    reports: list[RoundReport] = field(default_factory=list)

    @property
    def last_lesson(self) -> dict[str, Any]:
        """The fields that say what the student was taught last, for a round that teaches it nothing."""
        return {"lesson": self.lesson, "counts": self.counts, "taught": self.taught}

    def to_arrays(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Return arrays and a header for a file."""
        memory = self.memory
        arrays = {"asked": memory.asked, "memory.p": memory.p, "memory.stamp": memory.stamp}
        for name, teacher in self._teachers().items():
            arrays |= {f"{name}.p": teacher.p, f"{name}.indices": teacher.indices}
        arrays |= {name: array for name, array in (("kept", self.kept), ("counts", self.counts)) if array is not None}
        for key, known in self.known.items():
            arrays |= {f"known.{key}.{name}": array for name, array in known.to_arrays().items()}
        for key, audience in self.told.items():
            arrays |= {f"told.{key}.{name}": array for name, array in audience.to_arrays().items()}
        ballots = {}
        for key, one in self.ballots.items():
            form, p = pack_soft_labels(one.release)
            arrays |= {f"ballot.{key}.p": p, f"ballot.{key}.w": one.release.w, f"ballot.{key}.rows": one.indices}
            ballots[str(key)] = {"round": one.round, "form": form}
        header = {
            "round": self.round,
            "taught": self.taught,
            "reports": [asdict(report) for report in self.reports],
            "trust": {str(key): value for key, value in self.trust.items()},
            "ballots": ballots,
        }
        return arrays, header

    @classmethod
    def from_arrays(cls, arrays: dict[str, Array], header: dict[str, Any]) -> State:
        """Return what :meth:`to_arrays` wrote; other arrays are ignored."""
        names = [name.removesuffix(".indices") for name in arrays if name.endswith(".indices")]
        teachers = {name: Teacher(arrays[f"{name}.p"], arrays[f"{name}.indices"]) for name in names}
        personal = {int(name[9:]): teacher for name, teacher in teachers.items() if name.startswith("feedback.")}
        return cls(
            round=header["round"],
            memory=Memory(arrays["asked"], arrays["memory.p"], arrays["memory.stamp"]),
            feedback=personal or teachers.get("feedback"),
            teacher=teachers.get("teacher"),
            lesson=teachers.get("lesson", teachers.get("teacher")),
            counts=arrays.get("counts"),
            taught=header["taught"],
            kept=arrays.get("kept"),
            known={key: Known.from_arrays(part) for key, part in _by_key("known.", arrays).items()},
            trust={int(key): value for key, value in header["trust"].items()},
            told={key: Audience.from_arrays(part) for key, part in _by_key("told.", arrays).items()},
            ballots={
                key: _kept(part, header["ballots"][str(key)], arrays["memory.p"].shape[1])
                for key, part in _by_key("ballot.", arrays).items()
            },
            reports=[RoundReport(**report) for report in header["reports"]],
        )

    def _teachers(self) -> dict[str, Teacher]:
        """Return the teachers under the names that they have in a file."""
        named = {"teacher": self.teacher}
        if self.lesson is not self.teacher:
            named["lesson"] = self.lesson
        if isinstance(self.feedback, Teacher):
            named["feedback"] = self.feedback
        elif self.feedback is not None:
            named |= {f"feedback.{key}": teacher for key, teacher in self.feedback.items()}
        return {name: teacher for name, teacher in named.items() if teacher is not None}


def _kept(part: dict[str, Array], about: dict[str, Any], classes: int) -> Kept:
    p = unpack_soft_labels(about["form"], part["p"], classes)
    return Kept(about["round"], part["rows"], Release(p, part["w"]))


def _by_key(prefix: str, arrays: dict[str, Array]) -> dict[int, dict[str, Array]]:
    """Return the arrays of a file that are called ``prefix`` KEY.NAME, by key and name."""
    parts: dict[int, dict[str, Array]] = {}
    for name, array in arrays.items():
        if name.startswith(prefix):
            _, key, field_ = name.split(".")
            parts.setdefault(int(key), {})[field_] = array
    return parts
