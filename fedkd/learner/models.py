"""Small networks of our own, and torchvision's by name. All take inputs (B, ...) and return logits (B, C).

Weights of our convolutions lie channels last, which halves the time of a step on a CPU and changes no number's meaning.
"""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fedkd.errors import ExtraError, SpecError, did_you_mean
from fedkd.learner.protocol import check_shape

T = TypeVar("T")


def seeded(seed: int, make: Callable[[], T]) -> T:
    """Return ``make()`` with torch's generator seeded, and leave the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed & (2**63 - 1))
        return make()


def is_module(model: Any) -> bool:
    """Say whether ``model`` is a torch network."""
    return isinstance(model, nn.Module)


def build(kind: str, shape: tuple[int, ...], classes: int, **options: Any) -> nn.Module:
    """Return the network ``kind`` for inputs of ``shape`` (without the batch)."""
    makers: dict[str, Callable[..., nn.Module]] = {
        "cnn": cnn,
        "lenet": lenet,
        "mlp": mlp,
        "torchvision": from_torchvision,
    }
    return makers[kind](shape, classes, **options)


def mlp(
    shape: tuple[int, ...], classes: int, *, hidden: int, layers: int = 1, dropout: float = 0.0, inputs: float = 0.0
) -> nn.Module:
    """``layers`` hidden layers on flattened inputs; ``dropout`` of hidden units, ``inputs`` of input values."""
    widths = [math.prod(shape), *[hidden] * layers]
    parts: list[nn.Module] = [nn.Flatten()]
    for i, (before, after) in enumerate(itertools.pairwise(widths)):
        share = dropout if i else inputs
        parts += [*([nn.Dropout(share)] if share else []), nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*parts, *([nn.Dropout(dropout)] if dropout else []), nn.Linear(hidden, classes))


class MaxPool(nn.Module):
    """2x2 max pooling, in a form that takes half the time where no gradient is asked for; the numbers are equal."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, c, H // 2, W // 2) of (B, c, H, W)."""
        if torch.is_grad_enabled():
            return nn.functional.max_pool2d(x, 2)
        height, width = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
        rows = torch.maximum(x[:, :, 0:height:2], x[:, :, 1:height:2])
        return torch.maximum(rows[..., 0:width:2], rows[..., 1:width:2])


def cnn(shape: tuple[int, ...], classes: int, *, width: int, hidden: int) -> nn.Module:
    """Two 3x3 convolutions, each with ReLU and 2x2 pooling, then one hidden layer."""
    channels, height, breadth = image(shape, "cnn")
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.ReLU(),
        MaxPool(),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        MaxPool(),
        nn.Flatten(),
        nn.Linear(2 * width * (height // 4) * (breadth // 4), hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    ).to(memory_format=torch.channels_last)


def lenet(shape: tuple[int, ...], classes: int, *, dropout: float) -> nn.Module:
    """5x5 convolutions of 10 and 20 maps, each pooled, then 50 hidden units: 21,840 parameters at 1x28x28."""
    channels, height, breadth = image(shape, "lenet")
    flat = 20 * (((height - 4) // 2 - 4) // 2) * (((breadth - 4) // 2 - 4) // 2)
    return nn.Sequential(
        nn.Conv2d(channels, 10, 5),
        MaxPool(),
        nn.ReLU(),
        nn.Conv2d(10, 20, 5),
        nn.Dropout2d(dropout),
        MaxPool(),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(flat, 50),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(50, classes),
    ).to(memory_format=torch.channels_last)


class FromTorchvision(nn.Module):
    """A torchvision classifier behind the resizing and the channels that it expects."""

    def __init__(self, body: nn.Module, size: int) -> None:
        """Wrap ``body``; ``size`` > 0 resizes inputs to size x size."""
        super().__init__()
        self.body, self.size = body, size

    def forward(self, x: Tensor) -> Tensor:
        """Return logits; networks with auxiliary heads return their main one."""
        if self.size:
            x = nn.functional.interpolate(x, size=(self.size, self.size), mode="bilinear", align_corners=False)
        if x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        out = self.body(x)
        return out if isinstance(out, Tensor) else out[0]


def from_torchvision(shape: tuple[int, ...], classes: int, *, name: str, size: int) -> nn.Module:
    """Return torchvision's ``name``, with random weights and ``classes`` outputs."""
    try:
        models = importlib.import_module("torchvision.models")
    except ModuleNotFoundError:
        raise ExtraError("learner 'torchvision'", "torchvision", "torch") from None
    known = models.list_models(module=models)  # classifiers only: those that detect would download a backbone
    if name not in known:
        raise SpecError(f"torchvision has no classifier {name!r}.{did_you_mean(name, known)}")
    image(shape, f"torchvision({name!r})")
    options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    network = FromTorchvision(models.get_model(name, weights=None, num_classes=classes, **options), size).eval()
    try:
        with torch.inference_mode():
            network(torch.zeros(1, *shape))
    except (RuntimeError, AssertionError):  # torch says it in terms of a layer deep inside
        raise SpecError(f"torchvision's {name!r} cannot take inputs {shape}; resize them, as in size=224.") from None
    return network


def image(shape: tuple[int, ...], who: str) -> tuple[int, int, int]:
    """Return (channels, height, width) of an image shape, or say that the learner ``who`` cannot take these inputs."""
    check_shape(who, shape)
    return shape[0], shape[1], shape[2]


def count(network: nn.Module) -> int:
    """Return how many numbers a network learns."""
    return sum(p.numel() for p in network.parameters())
