"""Where the randomness of a guarantee comes from, and exact discrete Gaussian noise.

Noise that someone can compute again protects nothing. So what spends privacy takes an :class:`Entropy`: in earnest
:class:`SystemEntropy`, in tests and simulations that must repeat :class:`SeededEntropy`, whose ``private`` is false.
"""

from __future__ import annotations

import math
import os
from fractions import Fraction
from typing import Protocol

import numpy as np

from fedkd.errors import ConfigError
from fedkd.random import generator
from fedkd.softlabels import Array

Shape = int | tuple[int, ...]

SEEDED = "NO PRIVACY (seeded)"
"""What a report says of noise that does not come from the system."""

NARROW = 58
"""Up to this many bits a denominator and what is compared with it are machine words; beyond, Python's integers."""


class Entropy(Protocol):
    """A source of random 64-bit words and of what is made of them; ``private`` says whether nobody can repeat it."""

    private: bool

    def words(self, count: int) -> Array:
        """Return uniform words (count,) uint64."""
        ...

    def normals(self, shape: Shape) -> Array:
        """Return standard normal numbers of ``shape``, float64."""
        ...

    def coins(self, count: int, rate: float) -> Array:
        """Return bools (count,), each true with probability ``rate`` by itself."""
        ...


class SystemEntropy:
    """The operating system's secure generator (``os.urandom``) for every word.

    No seed of ours comes between: numpy's generators are not made to be unpredictable, and one is told apart from
    chance, or gone back to its seed, from what it put out. Words come at about 300 MB/s, so logarithm and cosine cost
    more than they do. Normals are floating point and carry its rounding: those that are added to a clipped sum in
    training never leave as they are, and what is released itself takes :func:`discrete_gaussian`.
    """

    private = True

    def words(self, count: int) -> Array:
        """Return uniform words (count,) uint64."""
        return np.frombuffer(os.urandom(8 * count), "<u8").astype(np.uint64, copy=False)

    def normals(self, shape: Shape) -> Array:
        """Return standard normal numbers by Box and Muller, of 53 bits each; none is beyond 8.6."""
        size = math.prod(shape) if isinstance(shape, tuple) else shape
        half = -(-size // 2)
        first, second = self.words(2 * half).reshape(2, half) >> np.uint64(11)
        radius = np.sqrt(-2 * np.log((first + np.uint64(1)) * 2.0**-53))  # of a number in (0, 1]
        angle = second * (2 * np.pi * 2.0**-53)
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:size].reshape(shape)

    def coins(self, count: int, rate: float) -> Array:
        """Return bools (count,), true with probability ``rate`` rounded down to 53 bits."""
        return np.asarray((self.words(count) >> np.uint64(11)) < np.uint64(math.floor(rate * 2**53)))


class SeededEntropy:
    """A generator that anyone with its seed can run again: for tests and simulations. It protects nothing."""

    private = False

    def __init__(self, generator: np.random.Generator) -> None:
        """Draw from ``generator``."""
        self.generator = generator

    def words(self, count: int) -> Array:
        """Return uniform words (count,) uint64."""
        return self.generator.integers(0, 2**64, count, np.uint64)

    def normals(self, shape: Shape) -> Array:
        """Return standard normal numbers of ``shape``, float64."""
        return self.generator.standard_normal(shape)

    def coins(self, count: int, rate: float) -> Array:
        """Return bools (count,), each true with probability ``rate``."""
        return np.asarray(self.generator.random(count) < rate)


def discrete_gaussian(shape: Shape, sigma_squared: Fraction | float, entropy: Entropy) -> Array:
    """Return integers of ``shape``, int64, drawn exactly: n has probability proportional to exp(-n^2 / (2 sigma^2)).

    Rejection from a discrete Laplace distribution with integer arithmetic alone (Canonne, Kamath and Steinke,
    arXiv:2004.00010), many at a time. ``sigma_squared`` > 0 is the parameter, the variance but for tiny ones. A float
    is rounded up to a fraction that machine words hold, by less than a millionth for sigma in 0.5..100 and a
    thousandth up to 10,000; a Fraction is taken as it is. Where 2 sigma^2 t^2 (times the denominators, t = sigma + 1)
    reaches 2^58, from sigma = 19,000 on, Python's integers do the work: the same distribution, some ten times slower.
    """
    if not 0 < sigma_squared < 2.0**100:
        raise ConfigError(f"sigma_squared must be above 0 and below 2^100, got {sigma_squared}")
    exact = sigma_squared if isinstance(sigma_squared, Fraction) else _rounded_up(float(sigma_squared))
    size = math.prod(shape) if isinstance(shape, tuple) else shape
    found = np.empty(0, np.int64)
    while len(found) < size:
        candidates = _candidates(int(2.4 * (size - len(found))) + 16, exact, entropy)
        found = np.concatenate([found, candidates])
    return found[:size].reshape(shape)


def _rounded_up(sigma_squared: float) -> Fraction:
    """Return the next fraction above whose denominator is a power of two, the finest that machine words can hold."""
    bits = 20
    while bits and 2 * sigma_squared * 4**bits * (math.isqrt(int(sigma_squared)) + 1) ** 2 >= 2 ** (NARROW - 1):
        bits -= 1
    return Fraction(math.ceil(Fraction(sigma_squared) * 2**bits), 2**bits)


def _candidates(count: int, sigma_squared: Fraction, entropy: Entropy) -> Array:
    """Return those of at most ``count`` discrete Laplace integers that are accepted."""
    n, d = sigma_squared.numerator, sigma_squared.denominator
    t = math.isqrt(n // d) + 1
    y = _discrete_laplace(count, t, entropy)
    # Accept with probability exp(-(|y| - sigma^2 / t)^2 / (2 sigma^2)) = exp(-a^2 / b), a and b whole numbers.
    whole, rest = _square_over(np.abs(y), t * d, n, 2 * n * d * t * t)
    accepted = _flip_exp(rest, 2 * n * d * t * t, entropy)
    left, flips = np.flatnonzero(accepted & (whole > 0)), 0
    while len(left):  # exp(-whole) is as many flips of exp(-1)
        true = _flip_exp(np.ones(len(left), np.int64), 1, entropy)
        accepted[left[~true]] = False
        flips += 1
        left = left[true & (whole[left] > flips)]
    return np.asarray(y[accepted])


def _square_over(y: Array, scale: int, minus: int, b: int) -> tuple[Array, Array]:
    """Return quotient and remainder of (y * scale - minus)^2 by ``b``, without overflow for any y >= 0."""
    if b >= 2**NARROW or int(y.max(initial=0)) * scale >= 2**62:
        square = (y.astype(object) * scale - minus) ** 2
        return square // b, square % b if b >= 2**NARROW else (square % b).astype(np.int64)
    a = np.abs(y * scale - minus)
    far = np.flatnonzero(a >= 2**31)  # a few in the tail, whose squares do not fit
    near = a.copy()
    near[far] = 0
    whole, rest = np.divmod(near * near, b)
    if len(far):
        square = a[far].astype(object) ** 2
        whole[far], rest[far] = np.minimum(square // b, 2**40), square % b
    return whole, rest


def _discrete_laplace(count: int, t: int, entropy: Entropy) -> Array:
    """Return at most ``count`` integers, n with probability proportional to exp(-|n| / t)."""
    u = below(count, t, entropy)
    u = u[_flip_exp(u, t, entropy)]
    v, going = np.zeros(len(u), np.int64), np.arange(len(u))
    while len(going):
        going = going[_flip_exp(np.ones(len(going), np.int64), 1, entropy)]
        v[going] += 1
    x = u + v * t
    negative = below(len(x), 2, entropy) == 1
    return np.asarray(np.where(negative, -x, x)[(x != 0) | ~negative])  # else zero would come twice


def _flip_exp(numerator: Array, denominator: int, entropy: Entropy) -> Array:
    """Return bools, true with probability exp(-numerator / denominator), for numerators in 0..denominator.

    Of flips with probability g, g / 2, g / 3, ... the first false one is at an odd place with probability exp(-g).
    """
    odd = np.ones(len(numerator), bool)
    going, place = np.arange(len(numerator)), 1
    while len(going):
        true = below(len(going), denominator, entropy) < numerator[going]
        if place > 1:
            true &= below(len(going), place, entropy) == 0
        going = going[true.astype(bool)]
        odd[going] = ~odd[going]
        place += 1
    return odd


def below(count: int, bound: int, entropy: Entropy) -> Array:
    """Return uniform whole numbers (count,) in 0..bound - 1: int64, or Python's own where ``bound`` is wide."""
    if bound >= 2**62:
        return _wide_below(count, bound, entropy)
    limit = 2**64 - 2**64 % bound  # words from here on would favor small numbers
    words = entropy.words(count)
    while limit < 2**64 and (over := np.flatnonzero(words >= np.uint64(limit))).size:
        words = words.copy()
        words[over] = entropy.words(len(over))
    return np.asarray((words % np.uint64(bound)).astype(np.int64))


def _wide_below(count: int, bound: int, entropy: Entropy) -> Array:
    found = np.empty(0, object)
    bits = bound.bit_length()
    each = -(-bits // 64)
    while len(found) < count:
        words = entropy.words(2 * each * (count - len(found))).reshape(each, -1).astype(object)
        whole = words[0]
        for row in words[1:]:
            whole = (whole << 64) + row
        whole = whole >> (64 * each - bits)
        found = np.concatenate([found, whole[whole < bound]])
    return found[:count]


def entropy_of(kind: str, seed: int, *name: str | int) -> Entropy:
    """Return the entropy of a configuration: the system's, or for ``kind = "seeded"`` the stream ``name`` of a seed."""
    return SeededEntropy(generator(seed, "noise", *name)) if kind == "seeded" else SystemEntropy()
