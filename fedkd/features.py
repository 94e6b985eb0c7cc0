"""Fixed features of inputs: nothing in them is fitted, so they are public, and a linear model on them can be private.

A member of :data:`features` takes inputs (N, ...) to float32 rows (N, D). It is computed row by row from that row
alone: everyone computes the same numbers, and changing one example changes one row (what DP-SGD needs).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

from fedkd.errors import SpecError
from fedkd.registry import Registry, split
from fedkd.softlabels import Array

features = Registry("features")

CHUNK = 1000
"""Rows that are worked on at a time."""

PIECE = 200_000
"""Numbers of input that features are computed from at a time: what they need besides is ten times as much."""

SIDE = 8
"""Images of fewer pixels a side have no shapes."""


def build(spec: str) -> Callable[[Array], Array]:
    """Return the features that ``spec`` names: one member, or several as in ``"shapes, scattering"``, side by side.

    Of several, each is given rows of length 1, so that none drowns the others.
    """
    parts: list[Callable[[Array], Array]] = [features.build(one) for one in split(spec, ",")]
    return parts[0] if len(parts) == 1 else functools.partial(_side_by_side, parts)


def in_pieces(member: Callable[[Array], Array], x: Array) -> Array:
    """Return ``member(x)`` (n, D) of inputs (n, ...), made piece by piece: the same to the bit, in less memory."""
    rows = max(1, PIECE // max(1, math.prod(x.shape[1:])))
    first = member(x[:rows])
    if len(x) <= rows:
        return np.asarray(first, np.float32)
    found = np.empty((len(x), first.shape[1]), np.float32)
    found[:rows] = first
    for start in range(rows, len(x), rows):
        found[start : start + rows] = member(x[start : start + rows])
    return found


def _side_by_side(parts: list[Callable[[Array], Array]], x: Array) -> Array:
    rows = [part(x) for part in parts]
    lengths = [np.maximum(np.linalg.norm(z, axis=1, keepdims=True), np.float32(1e-6)) for z in rows]
    return np.concatenate([z / length for z, length in zip(rows, lengths, strict=True)], axis=1)


@features
def raw(x: Array) -> Array:
    """Return the inputs (N, ...) as rows (N, D), each of length at most 1: for what is no image."""
    flat = x.reshape(len(x), math.prod(x.shape[1:])).astype(np.float32, copy=False)
    return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), np.float32(1)))


@features
def shapes(x: Array, *, cells: int = 7, bins: int = 8) -> Array:
    """Return histograms of oriented gradients (N, D), square-rooted, of images (N, channels, height, width).

    Edge strength by direction (``bins``, a line and its opposite are one) in up to ``cells`` x ``cells`` cells, each
    block of 2 x 2 cells normalized (Dalal and Triggs, 2005); the root keeps a few strong edges from deciding alone.
    Blind to brightness and small shifts, so that near means alike far more often than among pixels. Nothing is
    fitted: everyone computes the same numbers. Range [0, 1].
    """
    n, _, height, width = x.shape
    cells = min(cells, height // 2, width // 2)
    gx, gy = np.zeros(x.shape, np.float32), np.zeros(x.shape, np.float32)
    gx[..., 1:-1] = x[..., 2:] - x[..., :-2]
    gy[..., 1:-1, :] = x[..., 2:, :] - x[..., :-2, :]
    strength = np.hypot(gx, gy)
    strongest = strength.argmax(axis=1)[:, None]  # the channel with the clearest edge speaks for the pixel
    gx, gy, strength = (np.take_along_axis(a, strongest, axis=1)[:, 0] for a in (gx, gy, strength))
    angle = np.arctan2(gy, gx) % np.pi * (bins / np.pi)
    low = angle.astype(np.int64)
    share = (angle - low) * strength  # what goes to the next direction
    place = (np.arange(height) * cells // height)[:, None] * cells + np.arange(width) * cells // width
    cell = (np.arange(n)[:, None, None] * cells**2 + place) * bins
    size = n * cells**2 * bins
    histogram = np.bincount((cell + low % bins).ravel(), (strength - share).ravel(), size)
    histogram += np.bincount((cell + (low + 1) % bins).ravel(), share.ravel(), size)
    h = np.maximum(histogram, 0).astype(np.float32).reshape(n, cells, cells, bins)
    block = np.concatenate([h[:, :-1, :-1], h[:, 1:, :-1], h[:, :-1, 1:], h[:, 1:, 1:]], axis=3)
    block /= np.sqrt((block**2).sum(axis=3, keepdims=True) + 0.1)  # of a flat block the noise is not blown up
    return np.asarray(np.sqrt(block).reshape(n, math.prod(block.shape[1:])))


@features
def scattering(x: Array, *, angles: int = 8, groups: int = 27) -> Array:
    """Return the scattering transform (N, D), two scales and second order, of images (N, channels, height, width).

    Moduli of wavelets in ``angles`` directions, of the image and of those moduli again, averaged over 4 x 4 pixels
    (Bruna and Mallat, arXiv:1203.1513): 1 + 2 L + L^2 maps a channel. Then every one of ``groups`` groups of maps gets
    mean 0 and variance 1 in each example, as in Tramer and Boneh (arXiv:2011.11660), so every row has nearly the
    same length.
    """
    if x.ndim != 4:
        raise SpecError(f"features 'scattering' need images (N, channels, height, width), got {x.shape}.")
    n, channels, height, width = x.shape
    maps = _scatter(x.reshape(n * channels, height, width).astype(np.float32, copy=False), angles)
    return group_norm(maps.reshape(n, channels * maps.shape[1], *maps.shape[2:]), groups)


def group_norm(maps: Array, groups: int) -> Array:
    """Return maps (N, M, h, w) as rows (N, M h w), each group of neighboring maps with mean 0 and variance 1.

    ``groups`` is reduced to the next number that divides M.
    """
    n, count, height, width = maps.shape
    groups = next(g for g in range(min(groups, count), 0, -1) if count % g == 0)
    grouped = maps.reshape(n, groups, count // groups * height * width)
    centered = grouped - grouped.mean(axis=2, keepdims=True)
    deviation = np.sqrt((centered**2).mean(axis=2, keepdims=True) + 1e-5)
    return np.asarray((centered / deviation).reshape(n, count * height * width), np.float32)


def _scatter(x: Array, angles: int) -> Array:
    """Return scattering maps (N, 1 + 2 L + L^2, h, w) of gray images (N, H, W), h and w about a quarter of H and W."""
    height, width = (4 * -(-size // 4) for size in x.shape[1:])
    below, right = height - x.shape[1] + 4, width - x.shape[2] + 4
    padded = np.pad(x, ((0, 0), (4, below), (4, right)), mode="symmetric")  # filters would wrap around otherwise
    low, low_half, fine, coarse = _filters(padded.shape[1], padded.shape[2], angles)
    image = np.fft.fft2(padded)
    zeroth = [_average(image, low, 4)]
    first, second = [], []
    for wavelet in fine:
        modulus = np.fft.fft2(np.abs(np.fft.ifft2(image * wavelet)))
        first.append(_average(modulus, low, 4))
        second += [_average(_modulus_at_half(modulus, larger), low_half, 2) for larger in coarse]
    first += [_average(_modulus_at_half(image, wavelet), low_half, 2) for wavelet in coarse]
    return np.stack(zeroth + first + second, axis=1)[:, :, 1:-1, 1:-1]


def _modulus_at_half(spectrum: Array, wavelet: Array) -> Array:
    """Return the spectrum of |x * wavelet| on every other pixel, which is all that a coarse wavelet needs."""
    return np.asarray(np.fft.fft2(np.abs(np.fft.ifft2(_fold(spectrum * wavelet, 2)))))


def _average(spectrum: Array, low: Array, step: int) -> Array:
    """Return the real images of ``spectrum`` (N, H, W) times ``low``, every ``step``-th pixel."""
    return np.asarray(np.fft.ifft2(_fold(spectrum * low, step)).real, np.float32)


def _fold(spectrum: Array, step: int) -> Array:
    """Return the spectrum of every ``step``-th pixel of the images with ``spectrum`` (N, H, W): aliases add up."""
    n, height, width = spectrum.shape
    return np.asarray(spectrum.reshape(n, step, height // step, step, width // step).mean(axis=(1, 3)))


@functools.lru_cache(maxsize=8)
def _filters(height: int, width: int, angles: int) -> tuple[Array, Array, Array, Array]:
    """Return spectra: the low pass (H, W), the same on every other pixel, fine and coarse wavelets (angles, H, W).

    A Morlet wavelet of scale j has frequency 3 pi / 4 / 2^j, width 0.8 * 2^j and slant 4 / angles; the low pass has
    width 1.6.
    """
    turns = np.pi * np.arange(angles) / angles
    fine, coarse = (np.stack([_morlet(height, width, scale, turn, 4 / angles) for turn in turns]) for scale in (1, 2))
    low, half = _bump(height, width, 1.6), _bump(height // 2, width // 2, 0.8)
    return low / low[0, 0], half / half[0, 0], fine, coarse


def _morlet(height: int, width: int, scale: float, turn: float, slant: float) -> Array:
    bump = functools.partial(_bump, height, width, 0.8 * scale, turn=turn, slant=slant)
    wave, envelope = bump(center=0.75 * np.pi / scale), bump()
    return np.asarray(wave - wave[0, 0] / envelope[0, 0] * envelope)  # blind to brightness


def _bump(
    height: int, width: int, sigma: float, *, turn: float = 0.0, slant: float = 1.0, center: float = 0.0
) -> Array:
    """Return the spectrum (H, W) of a Gaussian of ``sigma`` pixels along ``turn`` that waves at ``center`` radians."""
    total = np.zeros((height, width))
    for down in (-2, -1, 0, 1, 2):  # frequencies beyond a pixel's come back as lower ones
        for right in (-2, -1, 0, 1, 2):
            v = 2 * np.pi * (np.fft.fftfreq(height)[:, None] + down)
            u = 2 * np.pi * (np.fft.fftfreq(width) + right)
            along, across = np.cos(turn) * u + np.sin(turn) * v - center, np.cos(turn) * v - np.sin(turn) * u
            total += np.exp(-(sigma**2) * (along**2 + (across / slant) ** 2) / 2)
    return total.astype(np.float32)
