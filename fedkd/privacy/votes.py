"""PATE: a noisy count of votes, row by row, and what it cost given what the votes were (arXiv:1802.08908).

GNMax says the class with the most votes after Gaussian noise. Confident GNMax first asks, with noise of its own,
whether the largest count reaches a threshold, and says nothing where it does not. Both cost a number that is known
beforehand; that is the guarantee. Where clients agree the true cost is far less, but it depends on their votes, so it
is itself private: it is for whoever may see the votes anyway, and must not be published.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedkd.privacy.client_level import bits_for, protected
from fedkd.privacy.noise import Entropy, discrete_gaussian
from fedkd.privacy.rdp import ORDERS, epsilon_of
from fedkd.records import Release
from fedkd.softlabels import Array, one_hot

PRIVATE = (
    "Keep this file to yourself: unlike the epsilon of the privacy report, this one depends on what clients answered, "
    "so it is itself private data and has no guarantee."
)


@dataclass(frozen=True, eq=False)
class Voted:
    """The teacher (M, C), NaN where nothing is told; what it cost given the votes.

    ``cost`` (A,) is Renyi, by order, and private itself; None where no bound smaller than the guarantee is known.
    """

    teacher: Array
    cost: Array | None = None


def tally(releases: Iterable[Release], rows: int, classes: int) -> Array:
    """Return how many clients say each class (M, C), whole numbers; a row of weight 0 is no vote."""
    counts = np.zeros((rows, classes), np.int64)
    for r in releases:
        counts += one_hot(r.p.argmax(axis=1), classes, np.int64) * (r.w > 0)[:, None]
    return counts


def noisy(counts: Array, sigma: float, entropy: Entropy) -> Array:
    """Return ``counts`` of any shape with exact discrete Gaussian noise of ``sigma`` votes, in units far below one."""
    bits = bits_for(sigma)
    return np.asarray(counts + discrete_gaussian(counts.shape, (sigma * 2.0**bits) ** 2, entropy) / 2.0**bits)


def voted(
    releases: Sequence[Release],
    features: Array,
    *,
    classes: int,
    noise_multiplier: float,
    clients: int,
    threshold: float,
    test: float,
    smooth: bool,
    entropy: Entropy,
) -> Voted:
    """Return the class of most votes on each row, in one Gaussian event a client, and one more with a ``threshold``.

    Rows pass whose largest count is, with noise, at least ``threshold`` (a share of ``clients``). A client that falls
    silent moves each count by at most 1, all largest counts by sqrt(M) together, and all counts, centered, by
    sqrt(M (1 - 1/C)): the noise is ``noise_multiplier`` times that, in the test ``test`` times as much. ``smooth``
    looks at rows that are alike before it decides (:func:`~fedkd.privacy.client_level.protected`); by itself a row is
    told as in the paper, and only that has a cost of its own.
    """
    rows = len(features)
    if not rows:
        return Voted(np.zeros((0, classes), np.float32))
    counts = tally(releases, rows, classes)
    clear, first = np.ones(rows, bool), 0.0
    if threshold:
        first = test * noise_multiplier * math.sqrt(rows)
        clear = noisy(counts.max(axis=1), first, entropy) >= threshold * clients
    if smooth:
        votes = [Release(one_hot(r.p.argmax(axis=1), classes), r.w) for r in releases]
        p = protected(
            votes,
            features,
            classes=classes,
            noise_multiplier=noise_multiplier,
            clip=1.0,
            clients=clients,
            entropy=entropy,
        )
        return Voted(_told(p, clear))
    second = noise_multiplier * math.sqrt(rows * (1 - 1 / classes))
    p = noisy(counts, second, entropy)
    return Voted(_told(p, clear), cost(counts, clear, threshold * clients, first, second))


def cost(counts: Array, clear: Array, threshold: float, first: float, second: float) -> Array:
    """Return the data-dependent Renyi cost (A,) of a vote where one client's votes may fall silent.

    ``counts`` (M, C) were tested with noise ``first`` (0: no test) and, where ``clear`` (M,), told with ``second``. A
    test costs every row, an answer only those that are told.
    """
    spread = 1 - 1 / counts.shape[1]
    total = np.zeros(len(ORDERS))
    for row, told in zip(counts, clear, strict=True):
        if first > 0:
            total += renyi(log_passed(row, threshold, first, least=True), first)
        if told:
            total += renyi(log_wrong(row, second), second, squared=spread)
    return total


def log_wrong(counts: Array, sigma: float) -> float:
    """Return the log of a bound on the chance that noise makes another class win (Proposition 7).

    q <= sum over the other classes of P(N(0, 2 sigma^2) > n* - n_j), and never above 1 - 1/C.
    """
    behind = counts.max() - np.delete(counts, counts.argmax())
    logs = [_log_tail(float(gap) / (math.sqrt(2) * sigma)) for gap in behind]
    return min(float(np.logaddexp.reduce(logs)), math.log1p(-1 / len(counts)))


def log_passed(counts: Array, threshold: float, sigma: float, *, least: bool = False) -> float:
    """Return the log of the chance that the largest count passes the test, Phi((n* - T) / sigma).

    With ``least``, of the less likely outcome: that it does, or that it does not.
    """
    short = (threshold - float(counts.max())) / sigma
    return _log_tail(abs(short) if least else short)


def renyi(log_q: float, sigma: float, *, squared: float = 1.0, orders: Array = ORDERS) -> Array:
    """Return the Renyi cost of a noisy answer whose most likely outcome fails with a chance of at most e^``log_q``.

    Theorem 6 with the two higher orders of Proposition 10, where it applies, and never above the cost that holds for
    all data, alpha ``squared`` / (2 ``sigma``^2). ``squared`` is the squared L2 sensitivity: 2 if one vote may become
    another (the paper's neighbors), 1 - 1/C if it may fall silent and counts are centered, 1 for one largest count.
    """
    variance = 2 * sigma**2 / squared
    plain = np.asarray(orders / variance, np.float64)
    if log_q == -math.inf:
        return np.zeros_like(plain)
    second = math.sqrt(variance * -log_q)  # mu_2; mu_1 is one more
    first = second + 1
    if second <= 1:
        return plain
    first_cost, second_cost = first / variance, second / variance
    small = (second - 1) * second_cost - second * (math.log(first / (first - 1)) + math.log(second / (second - 1)))
    if log_q > small or -log_q <= second_cost:
        return plain
    log_right = math.log(-math.expm1(log_q))
    log_a = log_right - math.log(-math.expm1((log_q + second_cost) * (1 - 1 / second)))
    log_b = first_cost - log_q / (first - 1)
    bound = np.logaddexp(log_right + (orders - 1) * log_a, log_q + (orders - 1) * log_b) / (orders - 1)
    return np.where(orders < first, np.minimum(plain, np.maximum(bound, 0.0)), plain)


def private_note(rounds: Mapping[str, Sequence[float]], delta: float) -> dict[str, Any]:
    """Return what the server's owner may know of the ``rounds`` so far: their Renyi costs and the epsilon of all."""
    total = np.sum([np.asarray(costs, np.float64) for costs in rounds.values()], axis=0)
    epsilon = epsilon_of(total, delta)
    return {"PRIVATE": PRIVATE, "data_dependent_epsilon": epsilon, "delta": delta, "rounds": dict(rounds)}


def _told(p: Array, clear: Array) -> Array:
    return np.where(clear[:, None], one_hot(p.argmax(axis=1), p.shape[1]), np.float32("nan"))


def _log_tail(x: float) -> float:
    """Return the log of the chance that a standard normal number is above ``x``, also where it is below e^-700."""
    if x < 30:
        return math.log(math.erfc(x / math.sqrt(2)) / 2)
    return -x * x / 2 - math.log(x * math.sqrt(2 * math.pi)) + math.log1p(-1 / (x * x) + 3 / x**4)
