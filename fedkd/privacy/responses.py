"""Randomized response: what a client answers, what many answers say together, and exactly what they cost.

One answer keeps its class with chance a = e^epsilon / (e^epsilon + C - 1) and says any one other with b = a e^-epsilon.
Against another true class its loss is +epsilon, 0 or -epsilon with chances a, (C - 2) b and b, so after n answers it is
epsilon times the sum of n such signs. Adding up n epsilons, or the advanced composition of binary answers, says several
times too much; an accountant that forgets n says far too little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fedkd.errors import ConfigError
from fedkd.privacy.client_level import NoisyMean, denoise
from fedkd.privacy.noise import Entropy, below
from fedkd.records import Release
from fedkd.softlabels import Array, one_hot

NOTHING = 1e-40
"""Tails of less than this are moved to where they cost more: to infinity above, and up to the rest below."""


AGREE = 0.5
"""The share of clients that is taken to vote alike on a row, where too few are asked to see it."""


def keep_probability(classes: int, epsilon: float) -> float:
    """Return the chance a that an answer is the true class: e^epsilon / (e^epsilon + C - 1)."""
    if classes < 2 or not epsilon >= 0:
        raise ConfigError(f"randomized response needs 2 classes and epsilon >= 0, got {classes} and {epsilon}")
    return 1 / (1 + (classes - 1) * math.exp(-epsilon))


def randomized(labels: Array, classes: int, epsilon: float, entropy: Entropy) -> Array:
    """Return an answer (n,) for each of ``labels`` (n,): the class itself with chance a, else any other one.

    Each answer by itself is ``epsilon``-private for whoever's label it is, whatever all the others are: neighbors
    replace one label by another. The chance to tell a lie is rounded up to 53 bits, never down, so that no rounding
    lets more through and no epsilon is so large that nobody lies.
    """
    keep_probability(classes, epsilon)  # raises if they make no sense
    others = (classes - 1) * math.exp(-epsilon)
    lies = entropy.coins(len(labels), min(1.0, (math.floor(others / (1 + others) * 2**53) + 2) / 2**53))
    shift = np.where(lies, 1 + below(len(labels), classes - 1, entropy), 0)
    return np.asarray((np.asarray(labels, np.int64) + shift) % classes)


def dealt(rows: int, labels: int, client: int, rng: np.random.Generator) -> Array:
    """Return which of ``rows`` one client answers: ``labels`` of them, or all, dealt in turn from a public shuffle.

    So all rows are answered about equally often, and which ones somebody answers says nothing of its data.
    """
    order, start = rng.permutation(rows), client * labels % max(rows, 1)  # a node's number may have 64 bits
    places = (start + np.arange(min(labels, rows))) % max(rows, 1)
    return np.asarray(np.sort(order[places]))


def from_answers(releases: Sequence[Release], features: Array, *, classes: int, epsilon: float) -> Array:
    """Return the teacher (M, C) of randomized answers: :func:`shares`, smoothed over ``features`` (M, d) as far as
    their noise demands, and NaN on rows that nobody answered.
    """
    teacher = np.full((len(features), classes), np.nan, np.float32)
    if not len(features) or not any(r.w.any() for r in releases):
        return teacher
    p, sd = shares(np.stack([r.p for r in releases]), np.stack([r.w for r in releases]), epsilon)
    answered = np.isfinite(p).all(axis=1)
    teacher[answered] = denoise(NoisyMean(p[answered], sd), features[answered])
    return teacher


def shares(p: Array, w: Array, epsilon: float) -> tuple[Array, float]:
    """Return unbiased shares (M, C) of the votes behind randomized ones, and about their standard deviation.

    ``p`` (K, M, C) one-hot answers, of which those with ``w`` (K, M) > 0 were given: (f - b) / (a - b) of a class that
    a share f of them says. Single shares are below 0 or above 1; rows sum to 1. A row that nobody answered is NaN.
    The deviation is also that of whom was asked, if ``AGREE`` of all clients vote alike.
    """
    classes = p.shape[2]
    a = keep_probability(classes, epsilon)
    b = (1 - a) / (classes - 1)
    heard = w > 0
    votes = one_hot(np.where(heard[..., None], p, 0).argmax(axis=2), classes, np.float64)
    count = heard.sum(axis=0)
    said = np.where(heard[..., None], votes, 0).sum(axis=0) / np.where(count > 0, count, np.nan)[:, None]
    answered = count > 0
    fewer = math.sqrt(float((1 / count[answered]).mean())) if answered.any() else 0.0
    return (said - b) / (a - b), deviation(classes, epsilon, agree=AGREE) * fewer


def deviation(classes: int, epsilon: float, *, agree: float = 1.0) -> float:
    """Return the standard deviation of a class's share that is read off one answer, over the classes on average.

    Of answers with the shares f = b + (a - b) p it is the root of (1 - sum f^2) / C, over a - b; of n answers, 1 /
    sqrt(n) of that. ``agree`` is how many clients vote alike, p of their class; the others are spread over all.
    """
    a = keep_probability(classes, epsilon)
    b = (1 - a) / (classes - 1)
    most, rest = b + (a - b) * agree, b + (a - b) * (1 - agree) / (classes - 1)
    return math.sqrt((1 - most**2 - (classes - 1) * rest**2) / classes) / (a - b)


def epsilon_of(classes: int, epsilon: float, count: int, delta: float) -> float:
    """Return the exact epsilon of ``count`` answers at ``delta`` in [0, 1), at most ``count * epsilon``.

    delta(e) = sum over losses l > e of P(l) (1 - e^(e - l)), solved for e on the segment where it crosses ``delta``.
    """
    losses, chances, beyond = _losses(classes, epsilon, count)
    if not len(losses):
        return 0.0
    if delta <= beyond:
        return count * epsilon
    above = beyond + np.cumsum(chances)  # P(loss >= l), from the greatest loss down
    log_below = np.logaddexp.accumulate(np.log(chances) - losses)  # and what the neighbor gives it, ln Q(loss >= l)
    ends = np.append(losses[1:], 0.0)  # delta falls within [ends, losses] as above - e^epsilon below
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = np.where(above > delta, np.log(above - delta) - log_below, -np.inf)
    reached = np.flatnonzero(crossing >= ends)
    return min(count * epsilon, float(crossing[reached[0]])) if len(reached) else 0.0


def delta_of(classes: int, epsilon: float, count: int, target: float) -> float:
    """Return the exact delta of ``count`` answers at the epsilon ``target`` >= 0, in [0, 1]."""
    losses, chances, beyond = _losses(classes, epsilon, count)
    if target >= count * epsilon:
        return 0.0
    return min(1.0, beyond + float(chances @ np.maximum(0.0, -np.expm1(target - losses))))


def _losses(classes: int, epsilon: float, count: int) -> tuple[Array, Array, float]:
    """Return the losses above 0 from the greatest down, their chances, and the chance that was moved to infinity."""
    keep = keep_probability(classes, epsilon)
    other = keep * math.exp(-epsilon)
    low, chances, beyond = -count, np.ones(1), 0.0
    power, low_power = np.array([other, (classes - 2) * other, keep]), -1
    low, left = 0, count
    while left:  # convolution by squaring: all terms are positive, so every chance keeps its digits
        if left % 2:
            chances, low, lost = _trim(np.convolve(chances, power), low + low_power)
            beyond += lost
        left //= 2
        if left:
            power, low_power, lost = _trim(np.convolve(power, power), 2 * low_power)
            beyond += lost * left
    losses = epsilon * (low + np.arange(len(chances)))
    kept = (losses > 0) & (chances > 0)
    return losses[kept][::-1], chances[kept][::-1], beyond


def _trim(chances: Array, low: int) -> tuple[Array, int, float]:
    """Return ``chances`` of ``low``, ``low + 1``, ... without tails, the new ``low``, and what was lost above."""
    upper = len(chances) - int(np.searchsorted(np.cumsum(chances[::-1]), NOTHING))
    lower = int(np.searchsorted(np.cumsum(chances), NOTHING))
    kept = chances[lower:upper].copy()
    kept[0] += chances[:lower].sum()
    return kept, low + lower, float(chances[upper:].sum())
