"""A ledger in a folder of its own, a clock that is set by hand, and events that fill a budget exactly."""

import math

from fedkd.events import Gaussian, Neighbors, NoOp, Unit
from fedkd.privacy.ledger import Budget, Ledger

EPSILON_1, EPSILON_HALF = 4.3771782, 1.9930915
"""Epsilon of mu = 1 and mu = 1/2 at delta 1e-5 (PRIVACY known answers, rounded up)."""
QUARTER = Gaussian(2.0)
"""A quarter of mu^2 = 1: four of them are one Gaussian of noise multiplier 1."""


def delta_of(epsilon, mu):
    """The exact curve of a Gaussian (Balle and Wang, arXiv:1805.06530)."""

    def phi(x):
        return math.erfc(-x / math.sqrt(2)) / 2

    return phi(mu / 2 - epsilon / mu) - math.exp(epsilon) * phi(-mu / 2 - epsilon / mu)


def gaussian_filter(epsilon, delta):
    def fits(spent, event):
        events = [e for e in [*spent, event] if not isinstance(e, NoOp)]
        if not all(isinstance(e, Gaussian) for e in events):
            return False
        mu = math.sqrt(sum(e.count / e.noise_multiplier**2 for e in events))
        return mu == 0 or delta_of(epsilon, mu) <= delta

    return fits


class Clock:
    def __init__(self, now=1e9):
        self.now = now

    def __call__(self):
        return self.now


def opened(folder, **changes):
    given = {
        "fingerprint": "f00d",
        "unit": Unit.EXAMPLE,
        "neighbors": Neighbors.ADD_REMOVE,
        "budget": Budget(EPSILON_1, 1e-5),
        "fits": gaussian_filter,
        "clock": Clock(),
    }
    return Ledger.open(folder, **{**given, **changes})


def release(ledger, number, *, event=QUARTER, run="run-1"):
    ledger.reserve(f"r{number}", event, run=run, query_digest=f"q{number}")
    ledger.commit(f"r{number}", b"noisy %d" % number)
