"""Expertise from one noisy vector: the private form of a density ratio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fedkd.errors import SpecError
from fedkd.events import Gaussian
from fedkd.expertise.plain import Weights, above_zero, expertise
from fedkd.expertise.space import CHUNK, Project, space
from fedkd.privacy.noise import Entropy, SeededEntropy
from fedkd.random import generator
from fedkd.records import TransferSet
from fedkd.softlabels import Array, middle

SIGMA = 3.7
"""Noise over sensitivity: epsilon 1 at delta 1e-5 for one example added or removed."""


@dataclass(frozen=True, eq=False)
class Sketch:
    """The sum of the features of all private examples with noise (D,), and the event of releasing it."""

    total: Array
    event: Gaussian


class Fourier:
    """Random Fourier features (Rahimi and Recht, 2007) of unit norm: their inner product is a Gaussian kernel.

    Cosine and sine of each frequency, so the norm is one for any input. The frequencies come from a public stream.
    """

    def __init__(self, dimensions: int, features: int, bandwidth: float) -> None:
        """Draw ``features`` / 2 frequencies in ``dimensions`` dimensions for a kernel of ``bandwidth``."""
        draws = generator(0, "private sketch").standard_normal((dimensions, features // 2))
        self.frequencies = (draws / bandwidth).astype(np.float32)
        self.amplitude = (features // 2) ** -0.5

    @property
    def sensitivity(self) -> float:
        """The largest L2 norm of one example's features: how far adding or removing it moves the sum."""
        return float(np.sqrt(self.frequencies.shape[1]) * self.amplitude)

    def __call__(self, z: Array) -> Array:
        """Return the features (n, D) of rows ``z`` (n, d); a row that is not finite has none."""
        with np.errstate(invalid="ignore"):
            angle = z @ self.frequencies
        known = np.isfinite(angle).all(axis=1, keepdims=True)
        angle = np.where(known, angle, 0)
        return np.asarray(known * self.amplitude * np.concatenate([np.cos(angle), np.sin(angle)], axis=1), np.float32)


_PUBLIC: dict[tuple[Any, ...], tuple[Fourier, Array, Array, Array]] = {}


def noisy_sketch(z: Array, fourier: Fourier, sigma: float, entropy: Entropy) -> Sketch:
    """Return the sum of the features of rows ``z`` (N, d) plus Gaussian noise of ``sigma`` times its sensitivity.

    Neighbors are data sets that differ by one example added or removed; ``sigma`` = 0 adds no noise.
    """
    total = np.zeros(2 * fourier.frequencies.shape[1])
    for start in range(0, len(z), CHUNK):
        total += fourier(z[start : start + CHUNK]).sum(axis=0, dtype=np.float64)
    total += sigma * fourier.sensitivity * entropy.normals(len(total))
    return Sketch(total, Gaussian(noise_multiplier=sigma))


def private_weights(
    rows: Array,
    transfer: TransferSet,
    private: Array,
    entropy: Entropy,
    *,
    sigma: float = SIGMA,
    features: int = 2000,
    dimensions: int = 40,
    scale: float = 0.5,
    floor: float = 0.03,
) -> Weights:
    """Return the weights of :func:`private_sketch` together with the event that they are."""
    above_zero("private_sketch", features=features, dimensions=dimensions, scale=scale, floor=floor)
    if not 0 <= sigma < np.inf:
        raise SpecError(f"expertise 'private_sketch': 'sigma' must be at least 0 and finite, got {sigma}.")
    if features < 2:
        raise SpecError(f"expertise 'private_sketch': 'features' must be at least 2, got {features}.")
    public, project = space(transfer, dimensions)
    fourier, mean, variances, directions = _of_public(transfer, public, features, dimensions, scale)
    sketch = noisy_sketch(_rows_of(private, project, public), fourier, sigma, entropy)
    # All below is post-processing of the sketch and of public data.
    size = max(1.0, float(sketch.total @ mean / (mean @ mean)))
    ridge = 1e-4 + 0.5 * sigma / size  # directions in which public data varies less than this hold noise only
    theta = (directions @ (sketch.total @ directions / (variances + ridge))).astype(np.float32)
    w = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), CHUNK):
        w[start : start + CHUNK] = fourier(public[rows[start : start + CHUNK]]) @ theta
    return Weights(np.maximum(w, np.float32(floor * size)), sketch.event)


@expertise
def private_sketch(
    p: Array,
    rows: Array,
    transfer: TransferSet,
    private: Array,
    rng: np.random.Generator,
    *,
    sigma: float = SIGMA,
    features: int = 2000,
    dimensions: int = 40,
    scale: float = 0.5,
    floor: float = 0.03,
) -> Array:
    """Count a ballot by n_k p_private(x) / p_public(x), from one noisy sum over the private data.

    The sum is S = sum phi(x) + noise; phi are ``features`` random Fourier features of unit norm, of a Gaussian kernel
    whose bandwidth is ``scale`` times the median distance of the transfer set (in ``dimensions`` principal components,
    between shapes where inputs are images). S, released once, is all that private data is read for. Its noise has the
    standard deviation ``sigma`` times the L2 sensitivity of S, so 3.7 is epsilon 1 at delta 1e-5 for one example added
    or removed. The ratio is the least-squares fit (uLSIF, Kanamori et al., 2009), which takes S and public moments
    only; it is at least ``floor`` times the noisy number of examples. As a member it takes its noise from a seeded
    ``rng``, which is not private; with ``protect = dp_sgd`` a client calls :func:`private_weights` with the operating
    system's entropy.
    """
    return private_weights(
        rows,
        transfer,
        private,
        SeededEntropy(rng),
        sigma=sigma,
        features=features,
        dimensions=dimensions,
        scale=scale,
        floor=floor,
    ).w


def _rows_of(private: Array, project: Project, public: Array) -> Array:
    return project(private) if len(private) else np.zeros((0, public.shape[1]), np.float32)


def _of_public(
    transfer: TransferSet, public: Array, features: int, dimensions: int, scale: float
) -> tuple[Fourier, Array, Array, Array]:
    """Return the features, their public mean (D,), and second moments as variances (r,) along directions (D, r)."""
    key = (transfer.fingerprint, features, dimensions, scale)
    found = _PUBLIC.get(key)
    if found is None:
        fourier = Fourier(public.shape[1], features, scale * _median_distance(public))
        size = 2 * fourier.frequencies.shape[1]
        starts = range(0, len(public), CHUNK)
        mean = np.sum([fourier(public[at : at + CHUNK]).sum(axis=0, dtype=np.float64) for at in starts], axis=0)
        if len(public) < size:  # few samples: they span all directions that count
            phi = fourier(public).astype(np.float64)
            variances, mixes = np.linalg.eigh(phi @ phi.T / len(public))
            kept = variances > 1e-9 * variances[-1]
            variances, directions = variances[kept], phi.T @ mixes[:, kept] / np.sqrt(variances[kept] * len(public))
        else:
            second = np.zeros((size, size))
            for at in starts:
                phi = fourier(public[at : at + CHUNK]).astype(np.float64)
                second += phi.T @ phi
            variances, directions = np.linalg.eigh(second / len(public))
        found = (fourier, mean / len(public), np.maximum(variances, 0), directions)
        _PUBLIC.clear()  # one transfer set at a time is what a process serves
        _PUBLIC[key] = found
    return found


def _median_distance(public: Array) -> float:
    probe = public[:: max(1, len(public) // 500)].astype(np.float64)
    squares = (probe**2).sum(axis=1)
    d2 = squares[:, None] + squares - 2 * probe @ probe.T
    return float(np.sqrt(max(middle(d2[np.triu_indices(len(d2), 1)]), 0.0))) or 1.0 if len(probe) > 1 else 1.0
