"""Distillation losses: ``(z (B, C) student logits, p (B, C) teacher) -> (B,)``. The caller weighs and reduces.

They use methods of tensors only, so this file imports no framework and a configuration can be checked without one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fedkd.errors import SpecError
from fedkd.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

distill_loss = Registry("distillation loss")

FLOOR = 1e-6
"""The least teacher probability whose logarithm is matched: half precision knows nothing smaller."""


@distill_loss
def kl(
    z: Tensor,
    p: Tensor,
    *,
    temperature: float = 1.0,
    hard: float = 0.0,
    smoothing: float = 0.0,
    floor: float = FLOOR,
) -> Tensor:
    """(1 - hard) T^2 KL(p_T || softmax(z / T)) + hard CE(argmax p, z), p_T = softmax(log p / T).

    Soft gradients shrink with 1 / T^2, so the factor T^2 keeps their weight against the hard part (Hinton et al.,
    arXiv:1503.02531). ``smoothing`` in [0, 1) first mixes the teacher with the uniform distribution.
    At T other than 1, probabilities below ``floor`` count as that much: lower it only for labels in single precision.
    """
    if smoothing:
        p = (1 - smoothing) * p + smoothing / p.shape[-1]
    log_p = (p.clamp_min(floor).log() / temperature).log_softmax(-1) if temperature != 1 else p.clamp_min(1e-30).log()
    target = log_p.exp() if temperature != 1 else p
    soft = temperature**2 * (target * (log_p - (z / temperature).log_softmax(-1))).sum(-1)
    return (1 - hard) * soft + hard * _cross_entropy(z, p.argmax(-1, keepdim=True)) if hard else soft


@distill_loss
def cross_entropy(z: Tensor, p: Tensor) -> Tensor:
    """Cross entropy against soft labels: the gradient of ``kl`` at T = 1, with the teacher's entropy left in."""
    return -(p * z.log_softmax(-1)).sum(-1)


@distill_loss
def logit_matching(z: Tensor, p: Tensor) -> Tensor:
    """Half the squared distance of centered logits, over C: the limit of ``kl`` at high T (Hinton et al., section 2.1).

    Logits of a distribution are known up to a constant, hence the centering (Ba and Caruana, arXiv:1312.6184).
    """
    log_p = p.clamp_min(FLOOR).log()
    gap = (z - z.mean(-1, keepdim=True)) - (log_p - log_p.mean(-1, keepdim=True))
    return gap.pow(2).sum(-1) / (2 * z.shape[-1])


@distill_loss
def mae(z: Tensor, p: Tensor) -> Tensor:
    """Mean absolute difference of centered logits: FedMD's digest step (arXiv:1910.03581)."""
    log_p = p.clamp_min(FLOOR).log()
    return ((z - z.mean(-1, keepdim=True)) - (log_p - log_p.mean(-1, keepdim=True))).abs().mean(-1)


@distill_loss
def hard(z: Tensor, p: Tensor) -> Tensor:
    """Cross entropy against the teacher's most probable class."""
    return _cross_entropy(z, p.argmax(-1, keepdim=True))


def feature_loss(h: Tensor, h_teacher: Tensor) -> Tensor:
    """Mean squared difference (B,) of two hidden layers (B, ...) of one shape: the hint of FitNets (arXiv:1412.6550).

    For models that share a layer width; between other models see :func:`attention_loss`.
    """
    return (h - h_teacher).pow(2).flatten(1).mean(-1)


def attention_loss(h: Tensor, h_teacher: Tensor) -> Tensor:
    """Squared distance (B,) of attention maps of (B, c, H, W) and (B, c', H, W) (arXiv:1612.03928, eq. 2).

    A map is the mean square over channels as a vector of length 1, so widths and scales may differ.
    """
    ours, its = (one.pow(2).mean(1).flatten(1) for one in (h, h_teacher))
    ours, its = (one / one.norm(dim=-1, keepdim=True).clamp_min(FLOOR) for one in (ours, its))
    distance: Tensor = (ours - its).pow(2).sum(-1)
    return distance


def check(spec: str) -> None:
    """Raise :class:`SpecError` unless ``spec`` names a loss with options in range."""
    options = distill_loss.build(spec).keywords
    for key, low, high, inside in (
        ("temperature", 0.0, math.inf, "above 0"),
        ("temperature", 0.0, 1000.0, "at most 1000; 'logit_matching' is the limit"),
        ("hard", -1e-300, 1.0, "in [0, 1]"),
        ("floor", 0.0, 1.0, "in (0, 1]"),
        ("smoothing", -1e-300, 1.0 - 1e-12, "in [0, 1)"),
    ):
        value = options.get(key)
        if value is not None and not low < value <= high:
            raise SpecError(f"distillation loss {spec!r}: {key!r} must be {inside}, got {value}.")


def _cross_entropy(z: Tensor, label: Tensor) -> Tensor:
    return -z.log_softmax(-1).gather(-1, label).squeeze(-1)
