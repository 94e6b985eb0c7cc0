"""Renyi differential privacy (arXiv:1702.07476): events cost a number for each order alpha, and costs add up.

What budgets are enforced with: valid also when each event was chosen after the answers before it, for an order that was
not (:class:`fedkd.privacy.accountant.Filter`). In numpy alone, so that a small device can do it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from fedkd.errors import ConfigError
from fedkd.events import (
    DistributedGaussian,
    Event,
    Gaussian,
    Laplace,
    NonPrivate,
    NoOp,
    Pure,
    RandomizedResponse,
    SampledGaussian,
    ZeroConcentrated,
    valid,
)
from fedkd.privacy.gaussian import drift
from fedkd.softlabels import Array

ORDERS: Array = np.concatenate([[1.25], np.arange(13, 110) / 10, np.arange(11, 64), np.arange(64, 520, 8)])
"""The orders: fine where large epsilons have their best one, up to 512 so that the least epsilon seen is about 0.01."""

LEAST_NOISE = 0.02
"""Below this noise multiplier sampling is not counted on: epsilon is beyond a thousand either way."""


def rdp(event: Event) -> Array:
    """Return what ``event`` costs at each of :data:`ORDERS` (A,), in [0, inf]; infinite for what is not valid."""
    if not valid(event) or isinstance(event, NonPrivate):
        return np.full(len(ORDERS), np.inf)
    if isinstance(event, NoOp):
        return np.zeros(len(ORDERS))
    if isinstance(event, ZeroConcentrated):
        return event.rho * ORDERS
    return event.count * _once(replace(event, count=1))


def total(events: Iterable[Event]) -> Array:
    """Return what all ``events`` cost together (A,)."""
    return sum((rdp(event) for event in events), np.zeros(len(ORDERS)))


def room(epsilon: float, delta: float) -> Array:
    """Return how much each order may cost (A,) for (``epsilon``, ``delta``): the reverse of :func:`epsilon_of`."""
    return epsilon - _surcharge(delta)


def epsilon_of(cost: Array, delta: float) -> float:
    """Return an epsilon that holds with ``delta`` in (0, 1): min over orders of
    cost + ln(1 - 1/alpha) - ln(alpha delta) / (alpha - 1) (Canonne, Kamath and Steinke, arXiv:2004.00010, Prop. 12).
    """  # fmt: skip
    least = float(cost.min())
    if least == 0 or delta >= math.sqrt(-math.expm1(-least)):  # total variation alone is below delta: Bretagnolle-Huber
        return 0.0
    return max(0.0, float((cost + _surcharge(delta)).min()))


def delta_of(cost: Array, epsilon: float) -> float:
    """Return a delta in [0, 1] that holds with ``epsilon``, the reverse of :func:`epsilon_of`."""
    least = float(cost.min())
    log_delta = (ORDERS - 1) * (cost - epsilon + np.log1p(-1 / ORDERS)) - np.log(ORDERS)
    return min(1.0, math.exp(min(0.0, float(log_delta.min()))), math.sqrt(-math.expm1(-least)))


def pure(event: Event) -> float:
    """Return the epsilon of ``event`` with delta = 0, infinite where it has none. These add up too."""
    if isinstance(event, NoOp):
        return 0.0
    if valid(event) and isinstance(event, RandomizedResponse | Pure):
        return event.count * event.epsilon
    if valid(event) and isinstance(event, Laplace) and event.noise_multiplier > 0:
        return event.count / event.noise_multiplier
    return math.inf


def poisson(rate: float, noise_multiplier: float) -> Array:
    """Cost of Gaussian noise on a Poisson sample, neighbors add or remove one unit (arXiv:1908.10530).

    (alpha - 1) rdp = ln E[((1 - q) + q e^((2x - 1) / 2z^2))^alpha] over x ~ N(0, z^2): for whole alpha a binomial sum,
    for the others by the trapezoidal rule, exact to rounding here, as the integrand is analytic and falls off like x's
    density.
    """
    q, z = rate, noise_multiplier
    if q == 0:
        return np.zeros(len(ORDERS))
    if q == 1 or z < LEAST_NOISE:
        return _ratio(ORDERS, 2 * z * z)
    return np.array([_poisson_log(q, z, float(alpha)) / (alpha - 1) for alpha in ORDERS])


def fixed(rate: float, noise_multiplier: float) -> Array:
    """Cost of Gaussian noise on a sample of fixed size, drawn without replacement; neighbors replace one unit.

    The bound of Wang, Balle and Kasiviswanathan (arXiv:1808.00087, Theorem 27) at whole orders, and between them by
    convexity of (alpha - 1) rdp. ``noise_multiplier`` is relative to the sensitivity under replacement.
    """
    if rate == 0:
        return np.zeros(len(ORDERS))
    plain = _ratio(ORDERS, 2 * noise_multiplier**2)
    if rate == 1 or noise_multiplier < LEAST_NOISE:
        return plain
    low, high = np.floor(ORDERS).astype(int), np.ceil(ORDERS).astype(int)
    terms = _fixed_terms(rate, noise_multiplier, int(high.max()))
    log_moments = {alpha: _fixed_log(terms, alpha) for alpha in {*low.tolist(), *high.tolist()}}
    share = ORDERS - low
    below, above = (np.array([log_moments[alpha] for alpha in side.tolist()]) for side in (low, high))
    cost: Array = np.minimum(plain, ((1 - share) * below + share * above) / (ORDERS - 1))
    return cost


def laplace(epsilon: float) -> Array:
    """Cost of Laplace noise of scale 1 / ``epsilon`` relative to the sensitivity (arXiv:1702.07476, Table II)."""
    a = ORDERS
    rise = np.log(a / (2 * a - 1)) + (a - 1) * epsilon
    fall = np.log((a - 1) / (2 * a - 1)) - a * epsilon
    cost: Array = np.minimum(epsilon, np.logaddexp(rise, fall) / (a - 1))
    return cost


def response(classes: int, epsilon: float) -> Array:
    """Cost of one randomized response: ln(a^alpha b^(1-alpha) + b^alpha a^(1-alpha) + (C - 2) b) / (alpha - 1).

    a is the chance to keep the class, b = a e^-epsilon that of any one other. With two classes it is the worst of all
    mechanisms that are ``epsilon``-private.
    """
    log_b = -epsilon - math.log1p((classes - 1) * math.exp(-epsilon))
    log_a = log_b + epsilon
    terms = [ORDERS * log_a + (1 - ORDERS) * log_b, ORDERS * log_b + (1 - ORDERS) * log_a]
    if classes > 2:
        terms.append(np.full(len(ORDERS), math.log(classes - 2) + log_b))
    cost: Array = np.clip(np.logaddexp.reduce(terms, axis=0) / (ORDERS - 1), 0.0, epsilon)
    return cost


def distributed(event: DistributedGaussian) -> Array:
    """Cost of a sum with discrete noise by ``parties`` (arXiv:2102.06387, Theorem 1): alpha epsilon^2 / 2, where
    epsilon^2 = min(1/z^2 + tau d / 2, (1/z + tau sqrt d)^2). A sum needs shares of at least 0.71 units.
    """  # fmt: skip
    if event.noise_multiplier == 0 or (event.parties > 1 and event.share**2 < 0.5):
        return np.full(len(ORDERS), np.inf)
    tau, mu = drift(event.parties, event.share), 1 / event.noise_multiplier
    return ORDERS * min(mu * mu + tau * event.dimension / 2, (mu + tau * math.sqrt(event.dimension)) ** 2) / 2


@functools.lru_cache(maxsize=256)
def _once(event: Event) -> Array:
    """Return the cost of one release, read-only since it is shared by all who ask."""
    match event:
        case Gaussian():
            cost = _ratio(ORDERS, 2 * event.noise_multiplier**2)
        case SampledGaussian(rate=rate, noise_multiplier=z):
            cost = fixed(rate, z) if event.fixed else poisson(rate, z)
        case Laplace():
            cost = laplace(1 / event.noise_multiplier) if event.noise_multiplier > 0 else np.full(len(ORDERS), np.inf)
        case RandomizedResponse():
            cost = response(event.classes, event.epsilon)
        case Pure():
            cost = response(2, event.epsilon)
        case DistributedGaussian():
            cost = distributed(event)
        case _:
            cost = np.full(len(ORDERS), np.inf)
    cost.setflags(write=False)
    return cost


def _surcharge(delta: float) -> Array:
    """Return what the way from Renyi to (epsilon, ``delta``) costs at each order."""
    if not 0 < delta < 1:
        raise ConfigError(f"`delta` must be in (0, 1), got {delta}")
    cost: Array = np.log1p(-1 / ORDERS) - (math.log(delta) + np.log(ORDERS)) / (ORDERS - 1)
    return cost


def _ratio(above: Array, below: float) -> Array:
    """Return ``above / below``, infinite where there is nothing below."""
    return above / below if below > 0 else np.full(len(above), np.inf)


@functools.cache
def _log_factorials(n: int) -> Array:
    return np.array([math.lgamma(k + 1) for k in range(n + 1)])


def _log_choose(n: int) -> Array:
    """Return ln C(n, k) for k = 0..n."""
    fact = _log_factorials(n)
    logs: Array = fact[n] - fact - fact[::-1]
    return logs


def _poisson_log(q: float, z: float, alpha: float) -> float:
    """Return (alpha - 1) times the cost at ``alpha``."""
    if alpha == int(alpha):
        k = np.arange(int(alpha) + 1)
        terms = _log_choose(int(alpha)) + (alpha - k) * math.log1p(-q) + k * math.log(q) + (k * k - k) / (2 * z * z)
    else:
        step = min(z, z * z) / 8  # singular at a distance pi z^2 from the real line: an error of e^(-16 pi^2)
        x = np.arange(-14 * z, alpha + 14 * z + step, step)
        terms = alpha * np.logaddexp(math.log1p(-q), math.log(q) + (2 * x - 1) / (2 * z * z)) - x * x / (2 * z * z)
        terms += math.log(step / (z * math.sqrt(2 * math.pi)))
    return max(0.0, float(np.logaddexp.reduce(terms)))


def _fixed_terms(q: float, z: float, most: int) -> Array:
    """Return ln of q^j times the bound on the j-th moment of the ratio minus 1, for j = 0..``most``."""
    j = np.arange(most + 1)
    plain = math.log(2) + (j - 1) * j / (2 * z * z)  # 2 e^((j-1) rdp(j))
    even = np.array([_centered(1 / z, n) for n in range(0, most + 2, 2)])
    terms = np.minimum(plain, math.log(4) + (even[j // 2] + even[(j + 1) // 2]) / 2)
    bound: Array = terms + j * math.log(q)
    return bound


def _centered(mu: float, n: int) -> float:
    """Return ln E[(e^(mu x - mu^2/2) - 1)^n] over standard normal x for even n, or infinity where it is of no use."""
    if n * mu > 60:
        return math.inf  # far above 1 the "- 1" is nothing, and the plain moment is the better bound
    x = np.arange(-14 - math.sqrt(n), 14 + math.sqrt(n) + n * mu, 0.04)
    with np.errstate(divide="ignore"):
        terms = n * np.log(np.abs(np.expm1(mu * x - mu * mu / 2))) - x * x / 2 if n else -x * x / 2
    return float(np.logaddexp.reduce(terms)) + math.log(0.04 / math.sqrt(2 * math.pi))


def _fixed_log(terms: Array, alpha: int) -> float:
    """Return the bound on (alpha - 1) times the cost at a whole ``alpha``."""
    if alpha < 2:
        return 0.0
    return float(np.logaddexp.reduce([0.0, *(_log_choose(alpha) + terms[: alpha + 1])[2:]]))
