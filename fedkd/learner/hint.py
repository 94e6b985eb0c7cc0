"""What a hidden layer of a teacher network adds to a student's lesson, where both are on one machine.

Clients of a federation share predictions only, so this is for models that one party holds: a large model of its own
that teaches the small one which it deploys. :meth:`.TorchLearner.distill` takes it as ``hint``.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from fedkd.errors import SpecError, did_you_mean
from fedkd.losses import attention_loss, feature_loss

LOSSES = {"feature": feature_loss, "attention": attention_loss}


class Hint:
    """``weight`` times the distance of a hidden layer of ``student`` from one of ``teacher``, on the same inputs.

    ``kind = "feature"`` matches the outputs (FitNets, arXiv:1412.6550), which must have one shape; ``"attention"``
    matches where they are large (arXiv:1612.03928), for maps (B, c, H, W) of one height and width, whatever their
    channels. Layers are named as in ``named_modules()``: ``"3"`` is the fourth of a ``Sequential``. To be used as a
    context manager, which takes the hooks off the networks at its end.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        layer: str,
        teacher_layer: str | None = None,
        kind: str = "attention",
        weight: float = 1.0,
    ) -> None:
        """Find both layers; ``teacher_layer`` is that of the student unless it is given."""
        if kind not in LOSSES:
            raise SpecError(f"hint: unknown kind {kind!r}, expected one of {', '.join(LOSSES)}.")
        if not 0 <= weight < float("inf"):
            raise SpecError(f"hint: 'weight' must be at least 0, got {weight}.")
        self.kind, self.weight, self.teacher = kind, weight, teacher
        self.layers = _layer(student, layer, "student"), _layer(teacher, teacher_layer or layer, "teacher")
        self.hidden: list[Tensor | None] = [None, None]
        self.hooks: list[Any] = []

    def __enter__(self) -> Self:
        """Start to listen to both layers."""
        for who, module in enumerate(self.layers):
            self.hooks.append(module.register_forward_hook(lambda _m, _i, out, who=who: self._hear(who, out)))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Leave the networks as they were."""
        while self.hooks:
            self.hooks.pop().remove()
        self.hidden = [None, None]

    def __call__(self, x: Tensor) -> Tensor:
        """Return (B,) for the inputs (B, ...) that the student has just seen; the teacher sees them here."""
        was_training = self.teacher.training
        self.teacher.eval()
        with torch.no_grad():
            self.teacher(x)
        self.teacher.train(was_training)
        ours, its = self.hidden
        if ours is None or its is None:
            raise SpecError("hint: use it in a 'with' block, after the student has seen the inputs.")
        same = ours.shape == its.shape if self.kind == "feature" else _alike(ours, its)
        if not same:
            need = "one shape" if self.kind == "feature" else "maps of one height and width"
            raise SpecError(
                f"hint: kind {self.kind!r} needs {need}, got {tuple(ours.shape[1:])} and {tuple(its.shape[1:])}."
            )
        return self.weight * LOSSES[self.kind](ours, its.detach())

    def _hear(self, who: int, out: Tensor) -> None:
        self.hidden[who] = out


def _layer(network: nn.Module, name: str, who: str) -> nn.Module:
    known: dict[str, nn.Module] = dict(network.named_modules())
    known.pop("", None)
    if name not in known:
        raise SpecError(f"hint: the {who} has no layer {name!r}.{did_you_mean(name, known)}")
    return known[name]


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.dim() == b.dim() == 4 and a.shape[2:] == b.shape[2:]
