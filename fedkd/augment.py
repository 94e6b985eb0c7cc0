"""Augmentation: other views of the inputs that a network learns, drawn anew in each step; the labels stay.

A member is a function ``(x (B, ...), rng) -> x``, which never writes to what it is given. A chain such as
``"flip | shift(pixels=1)"`` runs from the left. A student that is taught one label for all views of a transfer row
needs no further answer for them.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from fedkd.errors import SpecError
from fedkd.registry import Registry
from fedkd.softlabels import Array

augment = Registry("augmentation")


@augment
def none(x: Array, rng: np.random.Generator) -> Array:
    """Leave the inputs as they are."""
    return x


@augment
def flip(x: Array, rng: np.random.Generator) -> Array:
    """Mirror every second image (B, C, H, W), at random, left to right: right for clothes, wrong for digits."""
    _images(x, "flip")
    mirrored = rng.random(len(x)) < 0.5
    return np.where(mirrored[:, None, None, None], x[..., ::-1], x)


@augment
def shift(x: Array, rng: np.random.Generator, *, pixels: int = 2) -> Array:
    """Move images (B, C, H, W) by up to ``pixels`` each way, zeros come in: the jitter of Hinton, arXiv:1503.02531."""
    _images(x, "shift")
    if pixels < 1:
        raise SpecError(f"augmentation 'shift': 'pixels' must be at least 1, got {pixels}.")
    wide = np.pad(x, ((0, 0), (0, 0), (pixels, pixels), (pixels, pixels)))
    windows = sliding_window_view(wide, x.shape[2:], axis=(2, 3))  # (B, C, 2 pixels + 1, 2 pixels + 1, H, W), no copy
    down, right = rng.integers(0, 2 * pixels + 1, (2, len(x)))
    return windows[np.arange(len(x)), :, down, right]


def check(spec: str) -> None:
    """Raise :class:`SpecError` unless ``spec`` is a chain of augmentations with options in range."""
    x = np.zeros((2, 1, 2, 2), np.float32)
    for part in augment.chain(spec):
        part(x, np.random.default_rng(0))


def _images(x: Array, who: str) -> None:
    if x.ndim != 4:
        raise SpecError(f"augmentation {who!r} needs images (channels, height, width), got inputs {x.shape[1:]}.")
