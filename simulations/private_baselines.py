"""A baseline that shares weights under client-level privacy, to be compared with only: DP-FedAvg.

McMahan, Ramage, Talwar and Zhang, "Learning Differentially Private Recurrent Language Models", arXiv:1710.06963, with
all clients in each round (the sum's noise then needs no amplification) and a linear model, for which a pass is cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedkd.events import Event, Gaussian
from fedkd.privacy.noise import Entropy
from fedkd.softlabels import Array, one_hot, softmax


@dataclass(frozen=True)
class Recipe:
    """Rounds, gradient steps of a client in each, their length, and the most (L2) that a client may move the sum by."""

    rounds: int
    local_steps: int
    step: float
    clip: float


def clipped(update: Array, clip: float) -> Array:
    """Return ``update``, scaled down to Euclidean length ``clip`` where it is longer."""
    return update * min(1.0, clip / max(float(np.linalg.norm(update)), 1e-30))


def private_average(updates: Sequence[Array], clip: float, noise_multiplier: float, entropy: Entropy) -> Array:
    """Return the mean of clipped ``updates`` (each (D, C)); noise of ``noise_multiplier * clip`` is on their sum.

    A client that stays silent moves the sum by at most ``clip``; their number is public (zero-out neighbors).
    """
    total = np.sum([clipped(update, clip) for update in updates], axis=0)
    return np.asarray((total + noise_multiplier * clip * entropy.normals(total.shape)) / len(updates))


def descend(weights: Array, v: Array, y: Array, steps: int, step: float) -> Array:
    """Return ``weights`` (D, C) after gradient steps of softmax regression on rows ``v`` (n, D) with labels (n,)."""
    target = one_hot(y, weights.shape[1])
    for _ in range(steps):
        weights = weights - step * (v.T @ (softmax(v @ weights) - target)) / max(len(y), 1)
    return weights


def dp_fedavg(
    shares: Sequence[tuple[Array, Array]], classes: int, recipe: Recipe, noise_multiplier: float, entropy: Entropy
) -> tuple[Array, Event]:
    """Return weights (D, C) learned from ``shares``, rows (n_k, D) and labels (n_k,) of each client, and their cost."""
    weights: Array = np.zeros((shares[0][0].shape[1], classes))
    for _ in range(recipe.rounds):
        moves = [descend(weights, v, y, recipe.local_steps, recipe.step) - weights for v, y in shares]
        weights = weights + private_average(moves, recipe.clip, noise_multiplier, entropy)
    return weights, Gaussian(noise_multiplier, recipe.rounds)
