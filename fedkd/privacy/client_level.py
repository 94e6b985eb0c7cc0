"""Client-level privacy: one noisy sum of all ballots, of which each client's share has been clipped as a whole.

What a client adds to a round is one vector, all its soft labels together: one clip, one draw of noise, one event. Its
norm is bounded in whole numbers, so no rounding can break the bound. What is done to the noisy mean afterwards is
post-processing and costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fedkd.errors import PrivacyError
from fedkd.privacy.noise import Entropy, discrete_gaussian
from fedkd.records import Release
from fedkd.softlabels import Array

SLACK = 1e-9
"""How much shorter than the clip a clipped vector is made, so that no last digit of a division can undo it."""

NOISE_UNITS = 4096
"""Standard deviation of the noise in units of the last place: fine enough that the whole numbers cost no epsilon."""


FLOOR = 0.05
"""A weighted teacher is divided by at least this much of the largest noisy sum of weights."""

LEAST_WEIGHT = 1e-30
"""What abstaining counts as where nobody may be seen to abstain."""

REACH = 5.0
"""Standard deviations of the noise on one client's labels that its frame can hold; what is beyond is cut off."""


def full_clip(rows: int, classes: int) -> float:
    """Return the largest L2 norm of ``rows`` centered soft labels of ``classes``: with this clip nothing is cut.

    >>> round(full_clip(1, 10), 4)
    0.9487
    """
    return math.sqrt(rows * (1 - 1 / classes))


def bits_for(noise: float) -> int:
    """Return how many binary places to keep so that noise of this standard deviation is ``NOISE_UNITS`` or more."""
    return max(0, math.ceil(math.log2(NOISE_UNITS / noise)))


def share(p: Array, w: Array, *, clip: float, bits: int) -> Array:
    """Return what one client adds, whole numbers (M, C) int64 of L2 norm at most ``clip`` 2^``bits``.

    Z = w (p - 1/C), scaled down as one vector if it is longer than ``clip``; rows without an answer (w = 0) add
    nothing. Rounding is toward zero, which never makes a vector longer. ``w`` (M,) counts as at most 1.
    """
    weight = np.clip(np.nan_to_num(np.asarray(w, np.float64), nan=0.0, posinf=1.0), 0.0, 1.0)
    centered = np.where(weight[:, None] > 0, np.nan_to_num(np.asarray(p, np.float64)) - 1 / p.shape[1], 0.0)
    z = weight[:, None] * centered
    norm = float(np.sqrt((z**2).sum()))
    return _whole(z * (clip * (1 - SLACK) / norm) if norm > clip * (1 - SLACK) else z, clip, bits)


def weighted_share(p: Array, w: Array, *, clip: float, bits: int, power: float, balance: float) -> Array:
    """Return what a client adds where its rows count differently: whole numbers (M, C + 1) of L2 norm ``clip`` 2^bits.

    [v (p - 1/C), ``balance`` v] with v = :func:`bounded` weights, as one vector that is made as long as it may be: only
    the ratios of a client's own weights count, and nobody's share is shorter than the noise was made for.
    """
    v = bounded(w, power)
    centered = np.where(v[:, None] > 0, np.nan_to_num(np.asarray(p, np.float64)) - 1 / p.shape[1], 0.0)
    z = np.concatenate([v[:, None] * centered, balance * v[:, None]], axis=1)
    norm = float(np.sqrt((z**2).sum()))
    return _whole(z * (clip * (1 - SLACK) / norm) if norm > 0 else z, clip, bits)


def bounded(w: Array, power: float) -> Array:
    """Return weights ``w`` (M,) >= 0 in [0, 1]: relative to the client's largest, to a ``power`` that all share.

    Expertise spans many orders, and noise drowns what counts little: a power below 1 keeps more rows above it.
    """
    given = np.nan_to_num(np.maximum(np.asarray(w, np.float64), 0.0), nan=0.0, posinf=np.finfo(np.float64).max)
    top = float(given.max(initial=0.0))
    return np.asarray((given / top) ** power if top > 0 else given)


def even_sized(p: Array, w: Array) -> tuple[Array, Array]:
    """Return ballots (M, C) and weights (M,) whose frame is as long as any other client's, and which leave no row out.

    Reports tell how many bytes came and how many rows were answered, and neither may depend on weights. So these are
    relative to the largest, at least ``LEAST_WEIGHT`` and never all the same; who abstains on all rows is undecided.
    """
    v = np.maximum(bounded(w, 1.0), LEAST_WEIGHT).astype(np.float32)
    if (v == v[:1]).all():
        v = np.where(np.arange(len(v)) % 2 == 0, np.float32(1), np.float32(1 - 2**-20))
    return p if np.any(w > 0) else np.full_like(p, 1 / p.shape[1]), v


def _whole(z: Array, clip: float, bits: int) -> Array:
    """Return ``z`` in units of 2^-``bits``, rounded toward zero; raise unless its L2 norm is at most ``clip``."""
    whole = np.trunc(z * 2.0**bits).astype(np.int64)
    if int((whole**2).sum()) > (clip * 2.0**bits) ** 2:  # in whole numbers: what is claimed is what was checked
        raise PrivacyError(f"a share of L2 norm above {clip:g} must not leave; this is a bug of fedkd")
    return whole


@dataclass(frozen=True, eq=False)
class NoisyMean:
    """The mean soft labels ``p`` (M, C), rows sum to about 1, with noise of standard deviation ``sd`` in each entry."""

    p: Array
    sd: float


def noisy_mean(shares: Iterable[Array], noise: Array, *, clients: int, bits: int, sigma: float) -> NoisyMean:
    """Return 1/C + (sum of shares + noise) / (``clients`` 2^bits).

    ``noise`` (M, C) are whole numbers of standard deviation ``sigma``, in the same units. ``clients`` is a number that
    was fixed in advance, never how many have answered: that would not be bounded by the clip.
    """
    total = noise.astype(np.int64)
    for one in shares:
        total = total + one
    scale = clients * 2.0**bits
    return NoisyMean(1 / total.shape[1] + total / scale, sigma / scale)


def protected(
    releases: Sequence[Release],
    features: Array,
    *,
    classes: int,
    noise_multiplier: float,
    clip: float,
    clients: int,
    entropy: Entropy,
) -> Array:
    """Return the teacher (M, C) of one noisy sum over ``releases``, which costs one Gaussian event a client.

    ``clip`` in (0, 1] is relative to :func:`full_clip`; ``features`` (M, d) are public. Of the weights only whether
    they are above 0 is read: all clients count alike.
    """
    rows = len(features)
    if not rows:
        return np.zeros((0, classes), np.float32)
    bound = clip * full_clip(rows, classes)
    bits = bits_for(noise_multiplier * bound)
    sigma = noise_multiplier * bound * 2.0**bits
    shares = (share(r.p, r.w > 0, clip=bound, bits=bits) for r in releases)
    noise = discrete_gaussian((rows, classes), sigma**2, entropy)
    return denoise(noisy_mean(shares, noise, clients=clients, bits=bits, sigma=sigma), features)


def weighted(
    releases: Sequence[Release],
    features: Array,
    *,
    classes: int,
    noise_multiplier: float,
    power: float,
    balance: float,
    entropy: Entropy,
) -> Array:
    """Return the teacher (M, C) of one noisy sum in which rows count by expertise; one Gaussian event a client.

    What is done to the sum, with public ``features`` (M, d), is :func:`divided`.
    """
    if not len(features):
        return np.zeros((0, classes), np.float32)
    total, sd = noisy_weights(
        releases,
        len(features),
        classes=classes,
        noise_multiplier=noise_multiplier,
        power=power,
        balance=balance,
        entropy=entropy,
    )
    return divided(total, sd, features, balance=balance)


def divided(total: Array, sd: float, features: Array, *, balance: float) -> Array:
    """Return soft labels (M, C) of a noisy sum (M, C + 1) of weighted ballots and, ``balance`` times, their weights.

    1/C + sum v (p - 1/C) / sum v with noise of ``sd`` above and below, both smoothed over ``features`` (M, d) before
    they are divided. The sum of weights is at least ``FLOOR`` of its largest, where noise would otherwise be divided by
    noise.
    """
    classes = total.shape[1] - 1
    smooth = smoothed(total, sd, features)
    above, below = smooth[:, :classes], smooth[:, classes:] / balance
    floor = FLOOR * float(below.max())
    mean = above / np.maximum(below, floor) if floor > 0 else np.zeros_like(above)
    return to_distributions(1 / classes + mean)


def noisy_weights(
    releases: Sequence[Release],
    rows: int,
    *,
    classes: int,
    noise_multiplier: float,
    power: float,
    balance: float,
    entropy: Entropy,
) -> tuple[Array, float]:
    """Return the noisy sum (M, C + 1) of all :func:`weighted_share`, of L2 norm 1 each, and the noise's deviation."""
    bits = bits_for(noise_multiplier)
    sigma = noise_multiplier * 2.0**bits
    total = discrete_gaussian((rows, classes + 1), sigma**2, entropy)
    for r in releases:
        total = total + weighted_share(r.p, r.w, clip=1.0, bits=bits, power=power, balance=balance)
    return total / 2.0**bits, noise_multiplier


def blurred(p: Array, noise_multiplier: float, entropy: Entropy) -> Array:
    """Return one client's soft labels (M, C) with Gaussian noise on all of them, squeezed so that rows sum to 1 again.

    One client's rows may all become others, which is sqrt(2 M) far; discrete noise of ``noise_multiplier`` times that
    is added to whole numbers, and one unit of rounding a number is part of the distance. The noise is many times what
    it hides: this is the control that shows why noise belongs into a sum.
    """
    rows, classes = p.shape
    if not rows:
        return np.zeros((0, classes), np.float32)
    distance = math.sqrt(2 * rows)
    bits = bits_for(noise_multiplier * distance)
    sigma = noise_multiplier * (distance * 2.0**bits + math.sqrt(rows * classes))
    honest = np.maximum(np.asarray(p, np.float64), 0)
    honest /= honest.sum(axis=1, keepdims=True)
    whole = np.trunc((honest - 1 / classes) * 2.0**bits).astype(np.int64)
    noisy = (whole + discrete_gaussian(p.shape, sigma**2, entropy)) / 2.0**bits
    most = blur_reach(rows, noise_multiplier)
    squeezed = 1 / classes + np.clip(noisy, -most, most) / (classes * most)
    return to_distributions(squeezed)


def blur_reach(rows: int, noise_multiplier: float) -> float:
    """Return how far from 1/C a number of :func:`blurred` may be before it is squeezed."""
    return 1 + REACH * noise_multiplier * math.sqrt(2 * rows)


def from_blurred(releases: Sequence[Release], features: Array, *, classes: int, noise_multiplier: float) -> Array:
    """Return the teacher (M, C) of releases that are :func:`blurred`: stretched back, averaged, smoothed."""
    rows = len(features)
    heard = [r.p.astype(np.float64) for r in releases if r.w.any()]
    if not rows or not heard:
        return np.full((rows, classes), np.nan, np.float32)
    stretch = classes * blur_reach(rows, noise_multiplier)
    mean = sum(heard) / len(heard) - 1 / classes
    sd = noise_multiplier * math.sqrt(2 * rows / len(heard))
    return denoise(NoisyMean(1 / classes + stretch * np.asarray(mean), sd), features)


def denoise(mean: NoisyMean, features: Array) -> Array:
    """Return soft labels (M, C): the noisy mean :func:`smoothed`, and rows made distributions at the end."""
    classes = mean.p.shape[1]
    return to_distributions(1 / classes + smoothed(mean.p - 1 / classes, mean.sd, features))


def smoothed(y: Array, sd: float, features: Array, *, ridges: int = 25) -> Array:
    """Return noisy numbers ``y`` (M, C) smoothed over samples that look alike, as far as noise of ``sd`` demands it.

    Ridge regression on public ``features`` (M, d) by its spectrum; how much to shrink is what Stein's unbiased risk
    estimate says is best, since the noise is known (Stein, 1981). What the features cannot express is kept or dropped
    by the same rule.
    """
    x = np.concatenate([features.astype(np.float64), np.ones((len(features), 1)) * float(features.std() or 1)], axis=1)
    values, vectors = np.linalg.eigh(x.T @ x)
    kept = values > 1e-9 * values[-1]
    values, basis = values[kept], x @ (vectors[:, kept] / np.sqrt(values[kept]))  # (M, r), orthonormal columns
    inside = basis.T @ y
    outside = y - basis @ inside
    cells, variance = y.size, sd**2
    energy = (inside**2).sum(axis=1)
    rest, rest_cells = float((outside**2).sum()), cells - inside.size
    keep = max(0.0, 1 - rest_cells * variance / rest) if rest > 0 else 0.0  # James and Stein's factor for what is left
    best, chosen = math.inf, np.ones_like(values)
    for ridge in np.geomspace(values[-1] * 1e-8, values[-1] * 10, ridges):
        factor = values / (values + ridge)
        risk = float(((1 - factor) ** 2 * energy).sum() + 2 * variance * y.shape[1] * factor.sum())
        if risk < best:
            best, chosen = risk, factor
    return np.asarray(basis @ (chosen[:, None] * inside) + keep * outside)


def to_distributions(p: Array) -> Array:
    """Return rows (M, C) float32 that are distributions: of entries that are 1e-6 or more, divided by their sum."""
    positive = np.maximum(p, 1e-6)
    return np.asarray(positive / positive.sum(axis=1, keepdims=True), np.float32)
