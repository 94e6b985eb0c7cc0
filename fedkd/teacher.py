"""Sharpening: pure functions on the teacher (M, C) that lower its entropy. NaN rows (no answer) stay NaN."""

from __future__ import annotations

import numpy as np

from fedkd.errors import SpecError
from fedkd.registry import Registry
from fedkd.softlabels import Array, one_hot, softmax

sharpener = Registry("sharpener")


@sharpener
def none(p: Array) -> Array:
    """Leave the teacher as it is."""
    return p


@sharpener
def era(p: Array, *, temperature: float = 0.1) -> Array:
    """Entropy-reduction aggregation: softmax of the mean *probabilities* over T (DS-FL, arXiv:2008.06180).

    No T is the identity: T is not a temperature of logits, and a flat row stays flat.
    """
    if temperature <= 0:
        raise SpecError(f"sharpener 'era': 'temperature' must be above 0, got {temperature}.")
    return softmax(p, temperature=max(temperature, 1e-9))  # below that it is the argmax, and then 0 / 0


@sharpener
def power(p: Array, *, beta: float = 2.0) -> Array:
    """p^beta, normalized (enhanced ERA of SCARLET, arXiv:2504.19602): beta 1 is the identity, infinity the argmax.

    A zero stays zero, and classes that tie stay tied.
    """
    if beta <= 0:
        raise SpecError(f"sharpener 'power': 'beta' must be above 0, got {beta}.")
    # Relative to the largest, so that no power underflows everywhere; 1e9 is the argmax in single precision.
    q = (p / p.max(axis=-1, keepdims=True)) ** min(beta, 1e9)
    return np.asarray(q / q.sum(axis=-1, keepdims=True))


@sharpener
def argmax(p: Array) -> Array:
    """One-hot of the most probable class; ties go to the lower class."""
    answered = np.isfinite(p).all(axis=-1, keepdims=True)
    hard = one_hot(np.where(answered, p, 0.0).argmax(axis=-1), p.shape[-1], p.dtype)
    return np.where(answered, hard, np.nan).astype(p.dtype, copy=False)


@sharpener
def gate(p: Array, *, threshold: float = 1.0) -> Array:
    """Drop ambiguous rows: NaN where ||one-hot(p) - p||_1 = 2 (1 - max p) is above ``threshold`` (Selective-FD).

    The server's selector of Shao et al. (Nat. Commun. 2024); what is left stays as it is. ``threshold`` is in (0, 2];
    the default asks for a majority.
    """
    if not 0 < threshold <= 2:
        raise SpecError(f"sharpener 'gate': 'threshold' must be in (0, 2], got {threshold}.")
    ambiguous = 2 * (1 - p.max(axis=-1, keepdims=True)) > threshold
    return np.where(ambiguous, np.nan, p).astype(p.dtype, copy=False)
