"""Client-level noise that nobody has to be trusted with: each client adds its part, and only the sum is ever seen.

A client's clipped vector is that of :mod:`fedkd.privacy.client_level`, with weights or without. To it comes discrete
Gaussian noise of 1 / (K_min - 1) of the variance that the sum needs: whoever takes part knows its own, so that of the
others must suffice (Kairouz, Liu and Steinke, arXiv:2102.06387). More clients make the sum noisier than it must be,
fewer make no sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedkd.events import DistributedGaussian
from fedkd.privacy.client_level import (
    NOISE_UNITS,
    NoisyMean,
    bits_for,
    denoise,
    divided,
    full_clip,
    share,
    weighted_share,
)
from fedkd.privacy.noise import Entropy, discrete_gaussian
from fedkd.secagg.masks import check_room
from fedkd.softlabels import Array

MOST_NUMBERS = 1 << 30
"""How many numbers a vector may have for what :func:`event` says of it to be true."""
TAIL = 8
"""Standard deviations of noise for which a sum must have room: beyond it falls one number in 10^15."""


@dataclass(frozen=True)
class Scale:
    """What a vector of a round is measured in.

    ``clip`` is its largest L2 norm, ``bits`` the binary places that are kept, ``sigma`` the standard deviation of all
    noise that a sum needs, in units of the last of them; any ``others`` clients bring that much together. Where rows
    count by expertise they do so to a ``power``, and a weight takes part ``balance`` times; 0 where all count alike.
    """

    clip: float
    bits: int
    sigma: float
    others: int
    power: float = 1.0
    balance: float = 0.0


def scale_of(
    rows: int,
    classes: int,
    *,
    noise_multiplier: float,
    clip: float,
    least: int,
    clients: int,
    power: float = 1.0,
    balance: float = 0.0,
) -> Scale:
    """Return the scale for ballots on ``rows`` by up to ``clients``, of which ``least`` make a sum.

    ``clip`` in (0, 1] is relative to :func:`full_clip`; with a ``balance``, where rows count by expertise, each vector
    is of length 1 instead. Raises :class:`PrivacyError` if the sum may not fit.
    """
    bound = 1.0 if balance else clip * full_clip(max(rows, 1), classes)
    bits = bits_for(noise_multiplier * bound)
    sigma = noise_multiplier * bound * 2.0**bits
    others = max(1, least - 1)
    most = clients * min(1.0, bound) * 2.0**bits + TAIL * sigma * math.sqrt(clients / others)
    check_room(most, f"{clients} clients with noise for {least}")
    return Scale(bound, bits, sigma, others, power, balance)


def event(noise_multiplier: float, least: int, count: int = 1) -> DistributedGaussian:
    """Return what ``count`` sums of ``least`` clients or more cost, at any scale, also towards one of the clients."""
    others = max(1, least - 1)
    return DistributedGaussian(noise_multiplier, others, NOISE_UNITS / math.sqrt(others), MOST_NUMBERS, count)


def contribution(p: Array, w: Array, scale: Scale, entropy: Entropy) -> Array:
    """Return what one client adds, noise included: whole numbers (M * C,) int64; (M * (C + 1),) with weights."""
    if scale.balance:
        mine = weighted_share(p, w, clip=scale.clip, bits=scale.bits, power=scale.power, balance=scale.balance)
    else:
        mine = share(p, w, clip=scale.clip, bits=scale.bits)
    return (mine + discrete_gaussian(mine.shape, scale.sigma**2 / scale.others, entropy)).reshape(-1)


def mean_of(total: Array, parties: int, scale: Scale, classes: int) -> NoisyMean:
    """Return the noisy mean of the ballots of ``parties`` clients, from the sum (M * C,) of what they added."""
    unit = parties * 2.0**scale.bits
    sd = scale.sigma * math.sqrt(parties / scale.others) / unit
    return NoisyMean(1 / classes + total.reshape(-1, classes).astype(np.float64) / unit, sd)


def teacher_of_sum(total: Array, parties: int, scale: Scale, features: Array, classes: int) -> Array:
    """Return the teacher (M, C) of the sum of what ``parties`` clients added; ``features`` (M, d) are public."""
    if not scale.balance:
        return denoise(mean_of(total, parties, scale, classes), features)
    sums = total.reshape(-1, classes + 1).astype(np.float64) / 2.0**scale.bits
    sd = scale.sigma * math.sqrt(parties / scale.others) / 2.0**scale.bits
    return divided(sums, sd, features, balance=scale.balance) if len(sums) else np.zeros((0, classes), np.float32)
