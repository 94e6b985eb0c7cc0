"""How much a client's ballot should count on each sample, judged by the client itself.

Let client k hold n_k private examples with density p_k(x). The posterior of the pooled data is a mixture of experts,
sum_k n_k p_k(x) p_k(y|x) / sum_k n_k p_k(x): a ballot counts in proportion to how densely the client's own data
covers the sample. A plain mean pretends that all p_k are equal, which fails exactly where labels are skewed.

Members are functions ``(p (n, C), rows (n,), transfer, private (N, ...), rng) -> w (n,)``, w >= 0, on one scale for all
clients. All but ``uniform`` tell the server which samples a client knows, hence about its labels: none of them but
``private_sketch`` is a private mechanism. :func:`weigh` returns the weights together with what they cost.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from fedkd.events import NonPrivate, NoOp
from fedkd.expertise.density import density, distance, gaussian
from fedkd.expertise.plain import Expertise, Weights, confidence, entropy_, expertise, uniform
from fedkd.expertise.ratio import density_ratio, kulsif
from fedkd.expertise.sketch import Sketch, noisy_sketch, private_sketch, private_weights
from fedkd.expertise.space import intrinsic_dimension, kth_distance, nearest, principal_components, space
from fedkd.features import shapes
from fedkd.privacy.noise import Entropy, SeededEntropy
from fedkd.records import TransferSet
from fedkd.softlabels import Array

STATIC = {"density", "density_ratio", "distance", "gaussian", "kulsif", "private_sketch"}
"""Members that read the data and not the predictions: a client computes them once for all rounds."""

GATES = {"kulsif"}
"""Members that say yes or no: where they say no the client abstains."""

FREE = {"uniform", "confidence", "entropy"}
"""Members that read no private data beyond the soft labels that leave anyway, so they cost nothing more."""


def weigh(
    spec: str,
    p: Array,
    rows: Array,
    transfer: TransferSet,
    private: Array,
    rng: np.random.Generator,
    entropy: Entropy | None = None,
) -> Weights:
    """Return the weights of ``spec`` with the event that they are: :class:`NonPrivate` unless known to be less.

    Noise comes from ``entropy``; without it, from ``rng``, and is not private.
    """
    member: partial[Any] = expertise.build(spec)
    if member.func is private_sketch:
        return private_weights(rows, transfer, private, entropy or SeededEntropy(rng), **member.keywords)
    free = any(member.func is function for name, function in expertise if name in FREE)
    return Weights(member(p, rows, transfer, private, rng), NoOp() if free else NonPrivate())


__all__ = [
    "FREE",
    "GATES",
    "STATIC",
    "Expertise",
    "Sketch",
    "Weights",
    "confidence",
    "density",
    "density_ratio",
    "distance",
    "entropy_",
    "expertise",
    "gaussian",
    "intrinsic_dimension",
    "kth_distance",
    "kulsif",
    "nearest",
    "noisy_sketch",
    "principal_components",
    "private_sketch",
    "private_weights",
    "shapes",
    "space",
    "uniform",
    "weigh",
]
