"""Exact accounting of Gaussian noise: composed Gaussian mechanisms are one, with mu^2 = sum of 1 / noise_multiplier^2.

delta(epsilon) = Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu) (Balle and Wang, arXiv:1805.06530). Written
with x = epsilon/mu - mu/2, y = epsilon/mu + mu/2 and Mills' ratio M(x) = Phi(-x) / phi(x) it is phi(x) (M(x) - M(y)),
which keeps its digits far out in the tails, where the two terms above are equal or zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from fedkd.errors import ConfigError
from fedkd.events import DistributedGaussian, Event, Gaussian, NoOp, SampledGaussian, valid

ROOM = 1e-12
"""How far, in logarithm, all numbers of a release together may be from rounded Gaussians, beyond what parties add."""


def phi(x: float) -> float:
    """Return the density of the standard normal distribution at ``x``."""
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def cdf(x: float) -> float:
    """Return the chance that a standard normal number is below ``x``, with full relative precision below 0 too."""
    return math.erfc(-x / math.sqrt(2)) / 2


def quantile(p: float) -> float:
    """Return the x with ``cdf(x) = p``, for ``p`` in (0, 1)."""
    if p > 0.5:
        return -quantile(1 - p)
    return _bisect(cdf, p, -40.0, 0.0)


def mills(x: float) -> float:
    """Return Phi(-x) / phi(x) for x >= -5: by erfc, and from 10 on by its continued fraction, which erfc outlives."""
    if x < 10:
        return cdf(-x) / phi(x)
    tail = x
    for k in range(60, 0, -1):
        tail = x + k / tail
    return 1 / tail


def delta_of(epsilon: float, mu: float) -> float:
    """Return the exact delta of a ``mu``-Gaussian mechanism at ``epsilon`` >= 0, in [0, 1]."""
    _check(epsilon=epsilon)
    if mu == 0 or epsilon == math.inf:
        return 0.0 if mu < math.inf else 1.0
    if mu == math.inf:
        return 1.0
    x, y = epsilon / mu - mu / 2, epsilon / mu + mu / 2
    if x < -5:
        return max(0.0, cdf(-x) - phi(x) * mills(y))
    return max(0.0, phi(x) * (mills(x) - mills(y)))


def epsilon_of(mu: float, delta: float) -> float:
    """Return the least epsilon >= 0 at which a ``mu``-Gaussian mechanism has ``delta``, infinite for delta = 0."""
    _check(delta=delta)
    if mu == 0:
        return 0.0
    if mu == math.inf or delta == 0:
        return math.inf
    if delta_of(0.0, mu) <= delta:
        return 0.0
    most = mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta))  # by concentration (arXiv:1605.02065), never too small
    return _bisect(lambda epsilon: -delta_of(epsilon, mu), -delta, 0.0, most)


def mu_of(epsilon: float, delta: float) -> float:
    """Return the greatest mu whose mechanism is (``epsilon``, ``delta``)-differentially private."""
    _check(epsilon=epsilon, delta=delta)
    if epsilon == math.inf:
        return math.inf
    if delta == 0:
        return 0.0
    most = 1.0
    while delta_of(epsilon, most) < delta:
        most *= 2
    return _bisect(lambda mu: delta_of(epsilon, mu), delta, 0.0, most, least=True)


def sigma_of(epsilon: float, delta: float) -> float:
    """Return the least noise, as a multiple of the sensitivity, that gives (``epsilon``, ``delta``) in one release."""
    mu = mu_of(epsilon, delta)
    return 1 / mu if mu > 0 else math.inf


def compose(mus: Iterable[float]) -> float:
    """Return the mu of all mechanisms together: the root of the sum of squares."""
    return math.hypot(*mus)


def equivalent(event: Event) -> tuple[float, float] | None:
    """Return (mu, slack) of an event that is as private as Gaussian noise, or None where that is not known.

    With a slack s, chances are within a factor e^s of those of a mu-Gaussian mechanism, so it is (epsilon + 2 s,
    e^s delta)-private. Only discrete noise has one. Its argument: an integer near a continuous Gaussian x of variance
    sigma^2 - r^2, drawn with discrete Gaussian chances of deviation r around x, is post-processing and moves with x by
    whole numbers; its chances are those of a discrete Gaussian of variance sigma^2 up to a factor e^(4 e^(-2 pi^2 r^2))
    (Poisson summation; Micciancio and Peikert 2013), and a sum of such noises is one of them up to :func:`drift`.
    """
    if isinstance(event, NoOp) or (isinstance(event, SampledGaussian) and valid(event) and event.rate == 0):
        return 0.0, 0.0
    if isinstance(event, SampledGaussian) and event.rate == 1:  # a sample of all
        event = Gaussian(event.noise_multiplier, event.count)
    if not valid(event) or not isinstance(event, Gaussian | DistributedGaussian):
        return None
    z = event.noise_multiplier
    if z == 0:
        return math.inf, 0.0
    if isinstance(event, Gaussian):
        return math.sqrt(event.count) / z, 0.0
    numbers = event.dimension * event.count
    blur = math.log(8 * numbers / ROOM) / (2 * math.pi**2)  # r^2, so that all numbers together stay within ROOM
    variance = event.parties * event.share**2
    if variance <= 2 * blur or event.share**2 < 0.5:
        return None  # noise of less than a few units: too coarse to be likened to a continuous one
    mu = math.sqrt(event.count / (1 - blur / variance)) / z
    return mu, ROOM + numbers * drift(event.parties, event.share)


def drift(parties: int, share: float) -> float:
    """Return how far, in logarithm, a sum of discrete Gaussians is at most from one discrete Gaussian, for one number.

    tau = 10 sum_{k<n} e^(-2 pi^2 share^2 k / (k+1)) (arXiv:2102.06387, Corollary 12), for share^2 >= 1/2.
    """
    least = 2 * math.pi**2 * share**2
    terms = (math.exp(-least * k / (k + 1)) for k in range(1, min(parties, 1000)))
    rest = max(0, parties - 1000) * math.exp(-least * 1000 / 1001)  # each of the rest is smaller than this
    return 10 * (math.fsum(terms) + rest)


def together(events: Iterable[Event]) -> tuple[float, float] | None:
    """Return (mu, slack) of all events if each is :func:`equivalent` to a Gaussian, else None."""
    parts = [equivalent(event) for event in events]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return compose(mu for mu, _ in known), sum(slack for _, slack in known)


def spent(events: Iterable[Event], delta: float) -> float:
    """Return the exact epsilon of events that are all Gaussian, infinite when one of them is not."""
    all_of = together(events)
    if all_of is None:
        return math.inf
    mu, slack = all_of
    return epsilon_of(mu, delta * math.exp(-slack)) + 2 * slack if mu > 0 else 0.0


def _bisect(rising: Callable[[float], float], target: float, low: float, high: float, *, least: bool = False) -> float:
    """Return where ``rising`` reaches ``target``: the end above it, or with ``least`` the one below."""
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high) or high - low <= 1e-14 * abs(high):
            break
        low, high = (low, middle) if rising(middle) >= target else (middle, high)
    return low if least else high


def _check(*, epsilon: float = 0.0, delta: float = 0.0) -> None:
    if not epsilon >= 0:
        raise ConfigError(f"`epsilon` must be at least 0, got {epsilon}")
    if not 0 <= delta < 1:
        raise ConfigError(f"`delta` must be in [0, 1), got {delta}")
