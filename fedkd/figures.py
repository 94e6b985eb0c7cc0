"""The figures of a round under the names that other tools show them by: ``accuracy/student``, ``bytes/up``."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

from fedkd.config import Config
from fedkd.errors import ConfigError
from fedkd.journal import Run, real, round_bytes
from fedkd.privacy.report import statement
from fedkd.records import RoundReport

ACCURACIES = ("student", "ensemble", "local_mean", "local_best", "local_worst")
OTHERS = {
    "student_nll": "loss/student_nll",
    "teacher_nll": "loss/teacher_nll",
    "student_ece": "calibration/student_ece",
    "teacher_ece": "calibration/teacher_ece",
    "teacher_entropy": "teacher/entropy",
    "coverage": "teacher/coverage",
    "bytes_multicast": "bytes/multicast",
    "asked": "clients/asked",
    "answered": "clients/answered",
}


def figures(run: Run, report: RoundReport) -> dict[str, float]:
    """Return the figures of one round of ``run`` by name: shares 0 to 1, bytes, seconds, epsilon so far.

    What is not known has no name here; an epsilon that is infinite has none either, since no chart can show it.
    """
    named = {f"accuracy/{name}": real(report.metrics.get(name)) for name in ACCURACIES}
    named |= {name: real(report.metrics.get(key)) for key, name in OTHERS.items()}
    named |= {f"bytes/{way}": round_bytes(report, way) for way in ("up", "down")}
    named |= {f"seconds/{stage}": real(value) for stage, value in report.seconds.items()}
    named["seconds/round"] = sum(value for one in report.seconds.values() if (value := real(one)) is not None)
    epsilon = epsilon_of(spent_after(run, report.round))
    named["privacy/epsilon"] = epsilon if math.isfinite(epsilon) else None
    return {name: value for name, value in named.items() if value is not None}


def spent_after(run: Run, rounds: int) -> Mapping[str, Any]:
    """Return the privacy statement of a run after ``rounds`` rounds, empty where its configuration is not known.

    Settled by the configuration alone, so it is worked out once.
    """
    try:
        return _statement(Config.read(dict(run.config), where={}), rounds)
    except (ConfigError, ValueError, TypeError):
        return {}


@functools.lru_cache(maxsize=1024)
def _statement(config: Config, rounds: int) -> Mapping[str, Any]:
    return statement(config, rounds)


def epsilon_of(told: Mapping[str, Any]) -> float:
    """Return the epsilon of a privacy statement; what it does not say is infinite."""
    epsilon = real(told.get("epsilon"))
    return math.inf if epsilon is None else epsilon
