"""Public unlabeled inputs that server and clients all predict on. Labels are dropped here, before anyone sees them.

Besides the members of this registry every data set spec is a transfer set: ``"npz:pool.npz"``, ``"fashion_mnist"``.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import numpy as np

from fedkd.dataset import Dataset, as_inputs, check_ending, dataset, fingerprint, read
from fedkd.errors import DataError, SpecError, did_you_mean
from fedkd.records import TransferSet
from fedkd.registry import Registry, parse
from fedkd.softlabels import Array

transfer = Registry("transfer set")


@transfer
def split(data: Dataset, rng: np.random.Generator, *, size: int = 400) -> tuple[Array, Array]:
    """Cut ``size`` rows from the train part of the data; the clients share what remains.

    Returns their indices (size,), in a random order because the order of a file may tell its labels, and those of the
    remaining rows, sorted.
    """
    rows = len(data.x)
    if not 1 <= size < rows:
        raise DataError(f"transfer 'split': size must be in [1, {rows - 1}] for {rows} train rows, got {size}")
    order = np.argsort(rng.random(rows), kind="stable")
    return order[:size], np.sort(order[size:])


def check(spec: str) -> functools.partial[Any]:
    """Return the built part of a transfer spec without loading anything; raise :class:`SpecError` if there is none."""
    check_ending(spec)
    name, _ = parse(spec)
    for registry in (transfer, dataset):
        if name in registry.names():
            return registry.build(spec)
    known = [*transfer.names(), *dataset.names()]
    raise SpecError(f"unknown transfer set {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}.")


def is_cut(spec: str) -> bool:
    """Return whether ``spec`` cuts the transfer set from the data, so that clients do without these rows."""
    return parse(spec)[0] in transfer.names()


def pool(spec: str) -> TransferSet:
    """Return all train rows of a data set as a transfer set, in the order of its files and without labels."""
    return unlabeled(read(spec).x)


def unlabeled(x: Array) -> TransferSet:
    """Return ``x`` (M, ...) as learners see it, with the fingerprint by which both sides know that it is the same."""
    inputs = as_inputs(x)
    return TransferSet(inputs, fingerprint(inputs))


def contained(x: Array, pool: Array) -> Array:
    """Return for each row of ``x`` (N, ...) whether ``pool`` (M, ...) holds the same inputs, by a hash of content."""
    known = {_digest(row) for row in pool}
    return np.array([_digest(row) in known for row in x], dtype=bool)


def _digest(row: Array) -> bytes:
    inputs = np.ascontiguousarray(as_inputs(row), dtype="<f4")
    return hashlib.blake2b(repr(row.shape).encode() + inputs.tobytes(), digest_size=16).digest()
