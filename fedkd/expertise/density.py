"""Expertise as the density of a client's own data around a sample."""

from __future__ import annotations

import numpy as np

from fedkd.expertise.plain import above_zero, expertise
from fedkd.expertise.space import Around, around, kth_distance, mean_digamma, nearest, principal_components, space
from fedkd.expertise.space import typical_distance as typical
from fedkd.records import TransferSet
from fedkd.softlabels import Array

RANGE = 80.0
"""Weights stay within e^-RANGE .. e^RANGE, which single precision can hold: to be far away is not to be silent."""


@expertise
def density(
    p: Array,
    rows: Array,
    transfer: TransferSet,
    private: Array,
    rng: np.random.Generator,
    *,
    neighbors: int = 5,
    dimensions: int = 80,
    sharpness: float = 1.5,
    concentration: float = 100.0,
) -> Array:
    """Count a ballot by the density of the client's data over that of the transfer set, to a power.

    The j-th nearest of n examples lies at a distance r_j with log(n p(x)) = psi(j) - m log r_j + const on average, m
    the intrinsic dimension of the data and psi the digamma function (Loftsgaarden and Quesenberry, 1965); the mean over
    the ``neighbors`` nearest is taken, once among the client's examples and once among the transfer set, and the
    difference is log(n_k p_k(x) / (n p(x))). The transfer set's part is the same for all clients, so it does not move
    the teacher; it makes weights of all rows alike in size, so that few bits can hold them. Distances are those between
    shapes where inputs are images, in ``dimensions`` principal components of the transfer set; m is that of the
    transfer set too, so nothing needs tuning to the data. ``sharpness`` above 1 makes up for what m is underestimated
    by. Nobody's data is taken to be more than ``concentration`` times as concentrated as the transfer set, so that a
    near copy of a sample does not set the scale of all weights. Range e^-80 .. e^80; a client without data abstains.
    """
    options = {"neighbors": neighbors, "dimensions": dimensions, "sharpness": sharpness}
    above_zero("density", **options, concentration=concentration)
    if not len(private):
        return np.zeros(len(rows), np.float32)
    public, project = space(transfer, dimensions)
    theirs = around(public, (transfer.fingerprint, dimensions, "space"), neighbors)
    r = nearest(public[rows], project(private), min(neighbors, len(private)))
    log_w = sharpness * log_ratio(r, rows, theirs, len(private), concentration)
    return np.asarray(np.exp(np.clip(log_w, -RANGE, RANGE)), np.float32)


def log_ratio(r: Array, rows: Array, theirs: Around, examples: int, concentration: float) -> Array:
    """Return log(n_k p_k(x) / (n p(x))) of ``rows`` (n,) whose nearest of n_k ``examples`` are ``r`` (n, k) away.

    ``theirs`` is the transfer set around its own rows. At most log(``concentration`` n_k / n).
    """
    # An equal sample is at distance zero, which has no logarithm.
    log_r = np.log(np.maximum(r, 0.1 * np.exp(theirs.log_r[rows, None]))).mean(axis=1)
    found = mean_digamma(r.shape[1]) - theirs.mean_digamma - theirs.dimension * (log_r - theirs.log_r[rows])
    return np.asarray(np.minimum(found, np.log(concentration * examples / theirs.rows)))


@expertise
def distance(
    p: Array,
    rows: Array,
    transfer: TransferSet,
    private: Array,
    rng: np.random.Generator,
    *,
    bandwidth: float = 0.1,
    neighbors: int = 5,
    dimensions: int = 40,
) -> Array:
    """Count a ballot by exp(-d / h), d the distance to the k-th nearest private example.

    Distances are taken in the ``dimensions`` leading principal components of the transfer set, which everyone can
    compute; h is ``bandwidth`` times the median distance of the transfer set to its own k-th neighbor, so it needs
    no tuning to the scale of the inputs. Range (0, 1]; a client without data abstains.
    """
    above_zero("distance", bandwidth=bandwidth, neighbors=neighbors, dimensions=dimensions)
    if not len(private):
        return np.zeros(len(rows), np.float32)
    public, project = principal_components(transfer, dimensions)
    k = min(neighbors, len(private))
    scale = typical(public, (transfer.fingerprint, dimensions), neighbors)
    w = np.exp(-kth_distance(public[rows], project(private), k) / (bandwidth * scale))
    return np.maximum(w, np.finfo(np.float32).tiny, dtype=np.float32)


@expertise
def gaussian(
    p: Array,
    rows: Array,
    transfer: TransferSet,
    private: Array,
    rng: np.random.Generator,
    *,
    dimensions: int = 80,
    shrinkage: float = 30.0,
    temperature: float = 4.0,
) -> Array:
    """Count a ballot by the Gaussian density n_k N(x; mean, covariance) of the client's data, to the power 1 / T.

    The mean and covariance of the private data are all that is remembered of it, taken between shapes where inputs are
    images, in ``dimensions`` principal components of the transfer set. The covariance is mixed with that of the
    transfer set as if the latter were ``shrinkage`` further examples. ``temperature`` allows for data that is no single
    Gaussian. Range e^-80 .. e^80; a client without data abstains.
    """
    above_zero("gaussian", dimensions=dimensions, shrinkage=shrinkage, temperature=temperature)
    if not len(private):
        return np.zeros(len(rows), np.float32)
    public, project = space(transfer, dimensions)
    z = project(private).astype(np.float64)
    center = public.mean(axis=0, dtype=np.float64)
    common = _scatter(public - center) / len(public)
    ridge = (1e-6 * np.trace(common) / len(common) or 1.0) * np.eye(len(common))  # a transfer set may be one point
    common = common + ridge
    mean = z.mean(axis=0)
    covariance = (_scatter(z - mean) + shrinkage * common) / (len(z) + shrinkage)
    asked = public[rows].astype(np.float64)
    # Relative to the transfer set's own density at its center, so that numbers are of moderate size.
    log_w = np.log(len(z)) + _log_normal(asked - mean, covariance) - _log_normal(np.zeros((1, len(common))), common)
    return np.asarray(np.exp(np.clip(log_w / temperature, -RANGE, RANGE)), np.float32)


def _scatter(x: Array) -> Array:
    """Return the sum of outer products (d, d) of rows ``x`` (n, d)."""
    x = x.astype(np.float64)
    return np.asarray(x.T @ x)


def _log_normal(x: Array, covariance: Array) -> Array:
    """Return the log-density (n,) of rows ``x`` (n, d) under N(0, covariance), up to the constant in 2 pi."""
    root = np.linalg.cholesky(covariance)
    z = np.linalg.solve(root, x.T)
    return np.asarray(-0.5 * (z**2).sum(axis=0) - np.log(np.diag(root)).sum())
