"""Shamir's secret sharing (1979): any ``threshold`` of the shares give the secret, fewer say nothing about it."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Iterable, Mapping, Sequence

from fedkd.errors import CodecError

PRIME = 2**521 - 1
SECRET, SHARE = 32, 66
"""Bytes of a secret and of a share."""


def split(secret: bytes, threshold: int, points: Iterable[int]) -> dict[int, bytes]:
    """Return a share (66 bytes) of ``secret`` (32 bytes) for each of the ``points``, whole numbers of at least 0.

    The secret is the value at -1 of a random polynomial of degree ``threshold`` - 1, so that clients may count from 0.
    """
    points = list(points)
    if not 1 <= threshold <= len(points):
        raise ValueError(f"threshold must be 1 to {len(points)} (the number of shares), got {threshold}")
    rest = [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    polynomial = [int.from_bytes(secret, "big"), *rest]
    return {point: _value(polynomial, point + 1).to_bytes(SHARE, "big") for point in points}


def combine(shares: Mapping[int, bytes]) -> bytes:
    """Return the secret of exactly as many shares as its threshold was; wrong shares give a wrong one, or an error."""
    factors = weights(tuple(shares))
    total = sum(factor * int.from_bytes(share, "big") for factor, share in zip(factors, shares.values(), strict=True))
    try:
        return (total % PRIME).to_bytes(SECRET, "big")
    except OverflowError:
        raise CodecError("shares that belong to no secret") from None


@functools.lru_cache(maxsize=64)  # the secrets of a round mostly are in the same hands
def weights(points: tuple[int, ...]) -> list[int]:
    """Return by how much each share counts in the secret: Lagrange's polynomials at -1."""
    found = []
    for own in points:
        above, below = 1, 1
        for other in points:
            if other != own:
                above = above * (other + 1) % PRIME
                below = below * (other - own) % PRIME
        found.append(above * pow(below, -1, PRIME) % PRIME)
    return found


def _value(polynomial: Sequence[int], x: int) -> int:
    total = 0
    for coefficient in reversed(polynomial):
        total = (total * x + coefficient) % PRIME
    return total
