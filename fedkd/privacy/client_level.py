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
from fedkd.softlabels import Array, one_hot

SLACK = 1e-9
"""How much shorter than the clip a clipped vector is made, so that no last digit of a division can undo it."""

NOISE_UNITS = 4096
"""Standard deviation of the noise in units of the last place: fine enough that the whole numbers cost no epsilon."""


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
    if norm > clip * (1 - SLACK):
        z *= clip * (1 - SLACK) / norm
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
    votes: bool,
    entropy: Entropy,
) -> Array:
    """Return the teacher (M, C) of one noisy sum over ``releases``, which costs one Gaussian event a client.

    ``clip`` in (0, 1] is relative to :func:`full_clip`; ``features`` (M, d) are public. With ``votes`` only the most
    probable class of a ballot counts and the teacher is a class a row. Nothing else of the releases is read.
    """
    rows = len(features)
    if not rows:
        return np.zeros((0, classes), np.float32)
    bound = clip * full_clip(rows, classes)
    bits = bits_for(noise_multiplier * bound)
    sigma = noise_multiplier * bound * 2.0**bits
    ballots = ((one_hot(r.p.argmax(axis=1), classes) if votes else r.p, r.w > 0) for r in releases)
    shares = (share(p, w, clip=bound, bits=bits) for p, w in ballots)
    noise = discrete_gaussian((rows, classes), sigma**2, entropy)
    smooth = denoise(noisy_mean(shares, noise, clients=clients, bits=bits, sigma=sigma), features)
    return one_hot(smooth.argmax(axis=1), classes) if votes else smooth


def denoise(mean: NoisyMean, features: Array, *, ridges: int = 25) -> Array:
    """Return soft labels (M, C): the noisy mean smoothed over samples that look alike, as far as noise demands it.

    Ridge regression of the labels on public ``features`` (M, d) by its spectrum; how much to shrink is what Stein's
    unbiased risk estimate says is best, since the noise is known (Stein, 1981). What the features cannot express is
    kept or dropped by the same rule. Rows are made distributions at the end (:func:`to_distributions`).
    """
    y = mean.p - 1 / mean.p.shape[1]
    x = np.concatenate([features.astype(np.float64), np.ones((len(features), 1)) * float(features.std() or 1)], axis=1)
    values, vectors = np.linalg.eigh(x.T @ x)
    kept = values > 1e-9 * values[-1]
    values, basis = values[kept], x @ (vectors[:, kept] / np.sqrt(values[kept]))  # (M, r), orthonormal columns
    inside = basis.T @ y
    outside = y - basis @ inside
    cells, variance = y.size, mean.sd**2
    energy = (inside**2).sum(axis=1)
    rest, rest_cells = float((outside**2).sum()), cells - inside.size
    keep = max(0.0, 1 - rest_cells * variance / rest) if rest > 0 else 0.0  # James and Stein's factor for what is left
    best, chosen = math.inf, np.ones_like(values)
    for ridge in np.geomspace(values[-1] * 1e-8, values[-1] * 10, ridges):
        factor = values / (values + ridge)
        risk = float(((1 - factor) ** 2 * energy).sum() + 2 * variance * y.shape[1] * factor.sum())
        if risk < best:
            best, chosen = risk, factor
    smooth = basis @ (chosen[:, None] * inside) + keep * outside + 1 / y.shape[1]
    return to_distributions(smooth)


def to_distributions(p: Array) -> Array:
    """Return rows (M, C) float32 that are distributions: of entries that are 1e-6 or more, divided by their sum."""
    positive = np.maximum(p, 1e-6)
    return np.asarray(positive / positive.sum(axis=1, keepdims=True), np.float32)
