"""A transfer set of points and what a member makes of it."""

import numpy as np

from fedkd.dataset import fingerprint
from fedkd.expertise import (
    expertise,
)
from fedkd.records import TransferSet


def transfer(x):
    x = np.asarray(x, np.float32)
    return TransferSet(x, fingerprint(x))


def weights_of(spec, pool, private, *, rows=None, p=None, seed=0):
    rows = np.arange(len(pool)) if rows is None else np.asarray(rows)
    p = np.full((len(rows), 2), 0.5, np.float32) if p is None else p
    return expertise.build(spec)(p, rows, transfer(pool), np.asarray(private, np.float32), np.random.default_rng(seed))


def normal(rows, columns, *, at=0.0, scale=1.0, seed=0):
    return (at + scale * np.random.default_rng(seed).standard_normal((rows, columns))).astype(np.float32)


# Shapes.


def square(at, size=5, *, light=1.0, ground=0.0):
    x = np.full((1, 1, 28, 28), ground, np.float32)
    x[..., at : at + size, at : at + size] = light
    return x
