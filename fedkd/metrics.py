"""Metrics on soft labels ``p`` (n, C) and true classes ``y`` (n,). NaN rows of ``p`` (no answer) do not count."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedkd.softlabels import TINY, Array, entropy


def _answered(p: Array, y: Array) -> tuple[Array, Array]:
    ok = np.isfinite(p).all(axis=1)
    return p[ok], y[ok]


def accuracy(p: Array, y: Array) -> float | None:
    """Return the share of rows whose most probable class is right, in [0, 1]; None without rows."""
    p, y = _answered(p, y)
    return float((p.argmax(axis=1) == y).mean()) if len(y) else None


def nll(p: Array, y: Array) -> float | None:
    """Return the mean negative log-likelihood of the true class, in nats."""
    p, y = _answered(p, y)
    chosen = p[np.arange(len(y)), y].astype(np.float64)
    return float(-np.log(np.maximum(chosen, TINY)).mean()) if len(y) else None


def reliability(p: Array, y: Array, *, bins: int = 10) -> list[dict[str, Any]]:
    """Return mean confidence, accuracy and count of rows for each bin of confidence (Guo et al., arXiv:1706.04599)."""
    p, y = _answered(p, y)
    if not len(y):
        return []
    confidence, right = p.max(axis=1).astype(np.float64), p.argmax(axis=1) == y
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    rows = []
    for b in range(bins):
        inside = place == b
        if inside.any():
            rows.append(
                {
                    "confidence": float(confidence[inside].mean()),
                    "accuracy": float(right[inside].mean()),
                    "count": int(inside.sum()),
                }
            )
    return rows


def ece(p: Array, y: Array, *, bins: int = 10) -> float | None:
    """Return the expected calibration error: mean gap of confidence and accuracy over ``bins`` bins, in [0, 1]."""
    rows = reliability(p, y, bins=bins)
    total = sum(row["count"] for row in rows)
    return sum(row["count"] * abs(row["confidence"] - row["accuracy"]) for row in rows) / total if total else None


def mean_entropy(p: Array) -> float | None:
    """Return the mean entropy of the answered rows, in nats."""
    p = p[np.isfinite(p).all(axis=1)]
    return float(entropy(p.astype(np.float64)).mean()) if len(p) else None


def confusion(p: Array, y: Array) -> list[list[int]]:
    """Return counts (C, C): rows are true classes, columns the most probable ones."""
    classes = p.shape[1]
    p, y = _answered(p, y)
    table = np.zeros((classes, classes), np.int64)
    np.add.at(table, (y, p.argmax(axis=1)), 1)
    return [[int(n) for n in row] for row in table]
