"""The mechanisms of fedkd on two neighbors that differ as much as they may: what :mod:`fedkd.privacy.audit` runs.

Each function returns a ``release(present, entropy)``: the real code with and without one unit, and of its output the
number that tells most, the projection on the direction in which the outputs differ without noise. The data around the
unit is small and fixed, since the guarantee holds for any.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedkd.errors import PrivacyError
from fedkd.events import NonPrivate
from fedkd.expertise.sketch import Fourier, noisy_sketch
from fedkd.privacy.client_level import blurred, noisy_weights, protected, weighted_share
from fedkd.privacy.distributed import contribution, scale_of
from fedkd.privacy.noise import Entropy, SeededEntropy
from fedkd.privacy.responses import randomized
from fedkd.privacy.votes import noisy, tally
from fedkd.random import generator
from fedkd.records import Release
from fedkd.softlabels import Array, one_hot

Statistic = Callable[[bool, Entropy], float]

Train = Callable[[Array, Array, float, Entropy], Array]
"""``train(x, y, noise_multiplier, entropy)``: a new model that learned by DP-SGD, as the array of its numbers."""

STRANGER = 3.0
"""How long the audited example is, along a direction that no other example has: its gradient is always cut."""


def projected(noisy: Callable[[bool, Entropy], Array], clean: Callable[[bool], Array]) -> Statistic:
    """Return the release whose number is ``noisy`` output along the difference that the unit makes to ``clean``."""
    direction = (clean(True).astype(np.float64) - clean(False)).ravel()
    length = float(np.linalg.norm(direction))
    if not length > 0:
        raise PrivacyError("the unit changes nothing in what is released, so there is nothing to audit")
    direction /= length
    return lambda present, entropy: float(noisy(present, entropy).ravel() @ direction)


def sketch(sigma: float, *, features: int = 32, dimensions: int = 4) -> Statistic:
    """Return the expertise sketch with noise ``sigma`` where one of nine examples is present or not."""
    z = generator(0, "audit", "sketch").standard_normal((9, dimensions)).astype(np.float32)
    fourier = Fourier(dimensions, features, 1.0)

    def noisy(present: bool, entropy: Entropy, noise: float = sigma) -> Array:
        return noisy_sketch(z if present else z[1:], fourier, noise, entropy).total

    return projected(noisy, lambda present: noisy(present, _quiet(), 0.0))


def mean(
    noise_multiplier: float,
    *,
    clip: float = 1.0,
    rows: int = 8,
    classes: int = 3,
    others: int = 10,
) -> Statistic:
    """Return the noisy mean of ballots, smoothed as the server does, where one client answers or is silent.

    The client is certain of one class in every row, which no ballot can exceed. Others say the same, so that smoothing
    keeps it; there are many silent ones, so that no entry is near 0, where it would be cut. Votes that are smoothed are
    soft labels that are certain; that the class of the largest sum is taken then is post-processing.
    """
    ballot = _certain(rows, classes)

    def noisy_mean(present: bool, entropy: Entropy) -> Array:
        return protected(
            [ballot] * (others + present),
            np.zeros((rows, 1), np.float32),
            classes=classes,
            noise_multiplier=noise_multiplier,
            clip=clip,
            clients=100 * others,
            entropy=entropy,
        )

    return projected(noisy_mean, lambda present: (ballot.p - 1 / classes) * (others + present))


def weights(
    noise_multiplier: float,
    *,
    power: float,
    balance: float,
    rows: int = 8,
    classes: int = 3,
    others: int = 10,
) -> Statistic:
    """Return the noisy sum of weighted ballots and weights, which all else is made of; one client answers or not."""
    ballot = _certain(rows, classes)
    alone = weighted_share(ballot.p, ballot.w, clip=1.0, bits=20, power=power, balance=balance)

    def noisy_sum(present: bool, entropy: Entropy) -> Array:
        ballots = [ballot] * (others + present)
        return noisy_weights(
            ballots,
            rows,
            classes=classes,
            noise_multiplier=noise_multiplier,
            power=power,
            balance=balance,
            entropy=entropy,
        )[0]

    return projected(noisy_sum, lambda present: alone * (others + present))


def votes(noise_multiplier: float, *, rows: int = 8, classes: int = 3, others: int = 10) -> Statistic:
    """Return the noisy counts of votes where one client votes or is silent, as far as they tell classes apart.

    What all classes of a row have in common moves no largest count, so it is not looked at.
    """
    ballot = _certain(rows, classes)
    sigma = noise_multiplier * np.sqrt(rows * (1 - 1 / classes))

    def counted(present: bool, entropy: Entropy) -> Array:
        return noisy(tally([ballot] * (others + present), rows, classes), sigma, entropy)

    return projected(counted, lambda present: (ballot.p - 1 / classes) * (others + present))


def largest(noise_multiplier: float, *, rows: int = 8, classes: int = 3, others: int = 10) -> Statistic:
    """Return the noisy largest counts that a threshold is compared with, where one client votes or is silent."""
    ballot = _certain(rows, classes)

    def clean(present: bool) -> Array:
        return np.asarray(tally([ballot] * (others + present), rows, classes).max(axis=1))

    return projected(lambda present, entropy: noisy(clean(present), noise_multiplier * np.sqrt(rows), entropy), clean)


def answers(epsilon: float, *, classes: int = 3) -> Statistic:
    """Return what one randomized answer tells of two classes: 1 for the one, -1 for the other, 0 for neither."""

    def release(present: bool, entropy: Entropy) -> float:
        (said,) = randomized(np.array([0 if present else 1]), classes, epsilon, entropy)
        return float(said == 0) - float(said == 1)

    return release


def labels(noise_multiplier: float, *, rows: int = 8, classes: int = 3) -> Statistic:
    """Return one client's soft labels with noise of its own, where it is certain of one class or of another."""
    either = [one_hot(np.full(rows, c, np.int64), classes) for c in (1, 0)]
    return projected(
        lambda present, entropy: blurred(either[present], noise_multiplier, entropy), lambda present: either[present]
    )


def shares(
    noise_multiplier: float,
    *,
    clip: float = 1.0,
    least: int = 3,
    rows: int = 8,
    classes: int = 3,
    clients: int = 10,
    power: float = 1.0,
    balance: float = 0.0,
) -> Statistic:
    """Return the sum of ``least`` clients' parts without masks, and without the noise of one who knows its own.

    Another of them has a ballot or nothing. With a ``balance`` weights are part of the sum.
    """
    scale = scale_of(
        rows,
        classes,
        noise_multiplier=noise_multiplier,
        clip=clip,
        least=least,
        clients=clients,
        power=power,
        balance=balance,
    )
    certain = one_hot(np.zeros(rows, np.int64), classes)
    each = certain - 1 / classes
    if balance:  # all rows weigh the same
        each = np.concatenate([each, np.full((rows, 1), balance)], axis=1)
    w = np.ones(rows, np.float32)

    def noisy(present: bool, entropy: Entropy) -> Array:
        parts = [contribution(certain, w * (present or k > 0), scale, entropy) for k in range(least - 1)]
        return np.asarray(np.sum(parts, axis=0))

    return projected(noisy, lambda present: each * (least - 2 + present))


def training(train: Train, noise_multiplier: float, *, dimensions: int = 6, classes: int = 3) -> Statistic:
    """Return all numbers of a model after DP-SGD on five examples and, where it is present, one unlike them.

    A number is a fair test of the whole guarantee where every step takes all examples (rate 1); of sampled steps it
    sees what moves the model in the end.
    """
    x, y, present_x, present_y = _examples(dimensions, classes)

    def noisy(present: bool, entropy: Entropy, noise: float = noise_multiplier) -> Array:
        return train(present_x, present_y, noise, entropy) if present else train(x, y, noise, entropy)

    return projected(noisy, lambda present: noisy(present, _quiet(), 0.0))


def inclusion(train_all: Train, train: Train, *, dimensions: int = 6, classes: int = 3) -> Statistic:
    """Return 1 where the example took part in the only step of ``train``, else 0; ``train_all`` takes all of them.

    Without noise: sampled noise is as private as is claimed where the noise is right and no example comes more often.
    """
    x, y, present_x, present_y = _examples(dimensions, classes)
    whole = train_all(present_x, present_y, 0.0, _quiet()) - train_all(x, y, 0.0, _quiet())
    alone = whole.ravel() / float(whole.ravel() @ whole.ravel())
    base = train(x[:0], y[:0], 0.0, _quiet())

    def release(present: bool, entropy: Entropy) -> float:
        moved = train(present_x[-1:] if present else x[:0], present_y[-1:] if present else y[:0], 0.0, entropy) - base
        return float(moved.ravel() @ alone > 0.5)

    return release


def _examples(dimensions: int, classes: int) -> tuple[Array, Array, Array, Array]:
    """Return examples and labels, and the same with a stranger after them."""
    x = generator(0, "audit", "examples").standard_normal((5, dimensions)).astype(np.float32)
    x[:, -1] = 0
    stranger = np.zeros((1, dimensions), np.float32)
    stranger[0, -1] = STRANGER
    y = np.arange(5) % classes
    return x, y, np.concatenate([x, stranger]), np.append(y, 0)


def _certain(rows: int, classes: int) -> Release:
    return Release(one_hot(np.zeros(rows, np.int64), classes), np.ones(rows, np.float32), NonPrivate())


def _quiet() -> Entropy:
    """Return an entropy for runs whose noise is multiplied by zero."""
    return SeededEntropy(generator(0, "audit", "quiet"))
