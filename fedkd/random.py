"""Independent random streams, named by what they are for.

A stream depends on the seed and its name only, never on who ran before. So results do not depend on scheduling,
and a resumed run draws what the uninterrupted one would have drawn.
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive(seed: int, *name: str | int) -> int:
    """Return a 64-bit seed for the stream ``name``, as in ``derive(0, "client", 7, "round", 3)``."""
    plain = (str(part) if isinstance(part, str) else int(part) for part in name)  # numpy's own ints have another repr
    text = repr((int(seed), *plain)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little")


def generator(seed: int, *name: str | int) -> np.random.Generator:
    """Return the numpy generator of the stream ``name``; equal names give equal draws."""
    return np.random.Generator(np.random.PCG64(derive(seed, *name)))
