"""Soft labels: distributions over classes, one row a sample. Pure functions on arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkd.errors import SoftLabelError

Array = NDArray[Any]

TINY = 1e-12  # the least probability whose logarithm is taken


def softmax(z: Array, *, temperature: float = 1.0) -> Array:
    """Return the soft labels (..., C) of the logits ``z`` (..., C); T > 1 softens (Hinton et al., arXiv:1503.02531)."""
    e = np.exp((z - z.max(axis=-1, keepdims=True)) / temperature)
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def normalize(p: Array) -> Array:
    """Divide rows (..., C) by their sum. A row of zeros (nobody answered) becomes NaN."""
    total = p.sum(axis=-1, keepdims=True)
    return np.asarray(np.divide(p, total, out=np.full_like(p, np.nan), where=total > 0))


def entropy(p: Array) -> Array:
    """Return the entropy (...,) of rows (..., C), in nats, in [0, ln C]."""
    return np.asarray(np.maximum(-(p * np.log(np.maximum(p, TINY))).sum(axis=-1), 0))  # a sum of 1.0001 is no -0.0001


def one_hot(labels: Array, classes: int, dtype: Any = np.float32) -> Array:
    """Return (..., C) rows with a one at each label."""
    labels = np.asarray(labels)
    p = np.zeros((*labels.shape, classes), dtype)
    np.put_along_axis(p, labels[..., None].astype(np.int64), 1, axis=-1)
    return p


def check_soft_labels(p: Array, rows: int, classes: int, *, whose: str = "soft labels") -> Array:
    """Return ``p`` as float32 (rows, classes); raise :class:`SoftLabelError` unless its rows are distributions."""
    p = np.asarray(p)
    if p.ndim != 2 or p.shape[1] != classes:
        raise SoftLabelError(f"{whose} must have {classes} classes, shape ({rows}, {classes}), got shape {p.shape}")
    if p.shape[0] != rows:
        raise SoftLabelError(f"{whose} must have {rows} rows, one for each queried sample, got {p.shape[0]}")
    if not np.issubdtype(p.dtype, np.floating):
        raise SoftLabelError(f"{whose} must be floating point probabilities, got {p.dtype}")
    if not np.isfinite(p).all():
        bad = int((~np.isfinite(p)).any(axis=1).sum())
        raise SoftLabelError(f"{whose} must be finite, got NaN or infinity in {bad} of {rows} rows")
    if rows and (p.min() < 0 or np.abs(p.sum(axis=1, dtype=np.float64) - 1).max() > 1e-3):
        worst = p[np.abs(p.sum(axis=1, dtype=np.float64) - 1).argmax()]
        raise SoftLabelError(
            f"{whose} must be probabilities that sum to 1, got a row with minimum {p.min():.3g} "
            f"and sum {worst.sum():.4g}; are these logits?"
        )
    return p.astype(np.float32, copy=False)


def distinct(values: Array) -> Array:
    """Return the distinct ``values``, sorted.

    ``np.unique`` alone would load masked arrays, for which there is no use here and which take 10 MB of a device.
    """
    return np.asarray(np.unique(values, return_counts=True)[0])


def middle(values: Array) -> float:
    """Return the median of ``values`` (n,), n > 0; ``np.median`` would load masked arrays too."""
    found = np.sort(values, axis=None)
    return float(found[(len(found) - 1) // 2 : len(found) // 2 + 1].mean())
