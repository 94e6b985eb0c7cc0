"""What an epsilon means for somebody who wants to know whether you took part, in plain words.

All of it bounds what anybody can do with everything that was released, whatever else they know, as long as the
assumptions of the guarantee hold (hypothesis tests: Wasserman and Zhou 2010; Gaussian: Dong et al., arXiv:1905.02383).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedkd.errors import ConfigError
from fedkd.events import Event, Neighbors, Unit, valid
from fedkd.privacy import gaussian, pld, rdp

EPSILONS = tuple(float(e) for e in np.arange(321) / 20)
"""Where a privacy curve is read; between them the bound is a little weak, never wrong."""


@dataclass(frozen=True)
class Attack:
    """The best that any test for membership can do.

    ``accuracy``: how often it is right when half of the cases are members, in [0.5, 1]. ``found``: the share of members
    it finds while ``false_alarms`` of the others are taken for members.
    """

    accuracy: float
    found: float
    false_alarms: float


def advantage(of: float | Sequence[Event], *, false_alarms: float = 0.01) -> Attack:
    """Return what an attacker can do at best against a mu (exact) or a list of events (from its privacy curve)."""
    _check(false_alarms)
    if isinstance(of, int | float):
        return _against_gaussian(float(of), false_alarms)
    alike = gaussian.together(of)
    if alike is not None and alike[1] < 1e-6:
        return _against_gaussian(alike[0] + 2 * alike[1], false_alarms)
    cost, known = rdp.total(of), all(valid(event) for event in of)
    curve = [(e, min(d, rdp.delta_of(cost, e))) for e, d in zip(EPSILONS, pld.curve(of, EPSILONS), strict=True)]
    pure = math.fsum(rdp.pure(event) for event in of)
    return _against_curve([*curve, (pure, 0.0)] if known else [(math.inf, 1.0)], false_alarms)


def bounded(epsilon: float, delta: float, *, false_alarms: float = 0.01) -> Attack:
    """Return what an attacker can do at best if nothing but one (``epsilon``, ``delta``) is known."""
    _check(false_alarms)
    if not (epsilon >= 0 and 0 <= delta <= 1):
        raise ConfigError(f"epsilon must be at least 0 and delta in [0, 1], got {epsilon} and {delta}")
    return _against_curve([(epsilon, delta)], false_alarms)


def sentence(attack: Attack, unit: Unit = Unit.EXAMPLE, neighbors: Neighbors = Neighbors.ADD_REMOVE) -> str:
    """Say it to a person whose data this is."""
    who = "an example took part" if unit is Unit.EXAMPLE else "a client's ballots were counted"
    if unit is Unit.CLIENT and neighbors is Neighbors.REPLACE_ONE:
        who = "a client holds its data or any other"
    those = "examples" if unit is Unit.EXAMPLE else "clients"
    if attack.accuracy >= 0.9995:
        return f"There is no bound worth the name on telling whether {who}."
    return (
        f"Whoever sees all that was released, and knows everything else, can tell whether {who} in at most "
        f"{_percent(attack.accuracy)} of even-odds cases (guessing: 50 %), and finds at most {_percent(attack.found)} "
        f"of such {those} while wrongly naming {_percent(attack.false_alarms)} of the others."
    )


def _against_gaussian(mu: float, false_alarms: float) -> Attack:
    """Accuracy Phi(mu/2); found Phi(Phi^-1(false alarms) + mu): the trade-off of two normals that lie mu apart."""
    return Attack(gaussian.cdf(mu / 2), gaussian.cdf(gaussian.quantile(false_alarms) + mu), false_alarms)


def _against_curve(curve: Sequence[tuple[float, float]], false_alarms: float) -> Attack:
    """Each (epsilon, delta) bounds found <= e^epsilon f + delta and <= 1 - e^-epsilon (1 - delta - f); total variation
    <= (e^epsilon - 1 + 2 delta) / (e^epsilon + 1), and accuracy is half of 1 plus that.
    """  # fmt: skip
    gap, found = 1.0, 1.0
    for epsilon, delta in curve:
        fall = math.exp(-epsilon)
        gap = min(gap, (1 - fall + 2 * delta * fall) / (1 + fall))
        rise = math.exp(min(epsilon, 700.0)) * false_alarms + delta
        found = min(found, rise, 1 - fall * max(0.0, 1 - delta - false_alarms))
    return Attack((1 + gap) / 2, found, false_alarms)


def _check(false_alarms: float) -> None:
    if not 0 < false_alarms < 1:
        raise ConfigError(f"`false_alarms` must be in (0, 1), got {false_alarms}")


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
