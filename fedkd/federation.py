"""Who holds what in a simulation: data, transfer set and shares, equal on every machine that knows the seed."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass

import numpy as np

from fedkd import transfer as transfers
from fedkd.dataset import Dataset, as_inputs, load
from fedkd.errors import DataError
from fedkd.partition import partition as partitions
from fedkd.random import generator
from fedkd.records import TransferSet
from fedkd.softlabels import Array

LEAK = 0.01  # share of transfer rows that may also be private or test rows before it counts as a mistake


@dataclass(frozen=True, eq=False)
class Federation:
    """A data set, the public transfer set, and the rows ``parts[k]`` of the train part that client k holds.

    ``truth`` (M,) are the labels of the transfer rows, known only where they were cut from labeled data. They are for
    evaluation only: no client, teacher or student may see them.
    """

    dataset: Dataset
    transfer: TransferSet
    truth: Array | None
    parts: list[Array]

    def private(self, k: int) -> tuple[Array, Array]:
        """Return inputs (N_k, ...) float32 and labels (N_k,) of client ``k``, which never leave it."""
        return self.rows(self.parts[k])

    def pooled(self) -> tuple[Array, Array]:
        """Return all that the clients hold together: the data that a federation does without."""
        return self.rows(np.sort(np.concatenate(self.parts)))

    def test(self) -> tuple[Array, Array]:
        """Return the test part, inputs float32 and labels."""
        return self._test

    @functools.cached_property
    def _test(self) -> tuple[Array, Array]:
        return as_inputs(self.dataset.x_test), self.dataset.y_test

    def rows(self, rows: Array) -> tuple[Array, Array]:
        """Return inputs float32 and labels of ``rows`` (n,) of the train part."""
        return as_inputs(self.dataset.x[rows]), self.dataset.y[rows]


@functools.lru_cache(maxsize=4)
def federation(data: str, transfer: str, partition: str, clients: int, seed: int) -> Federation:
    """Return the federation that these specs and the seed describe.

    The streams for the transfer set and for the partition are independent: another partition, or another number of
    clients, leaves the transfer set as it was.
    """
    whole = load(data)
    if clients < 1:
        raise DataError(f"clients must be at least 1, got {clients}")
    built = transfers.check(transfer)
    if transfers.is_cut(transfer):
        public, rows = built(whole, generator(seed, "transfer"))
        shared, truth = transfers.unlabeled(whole.x[public]), whole.y[public]
    else:
        shared, truth, rows = transfers.pool(transfer), None, np.arange(len(whole.x))
        _check_pool(shared, whole, data, transfer)
    deal = partitions.build(partition)
    dealt = deal(_keys(deal, whole, data)[rows], clients, generator(seed, "partition"))
    return Federation(whole, shared, truth, [rows[part] for part in dealt])


def _keys(deal: functools.partial[list[Array]], whole: Dataset, data: str) -> Array:
    """Return what a partition goes by: the labels, or the column that it has as an option."""
    option = inspect.signature(deal).parameters.get("column")
    if option is None:
        return whole.y
    if option.default not in whole.columns:
        known = f"its columns are {', '.join(sorted(whole.columns))}" if whole.columns else "it has no columns"
        raise DataError(f"data {data!r} has no column {option.default!r} to deal by; {known}")
    return whole.columns[option.default]


def _check_pool(shared: TransferSet, whole: Dataset, data: str, transfer: str) -> None:
    """Refuse a public set whose rows learners cannot take, or that is partly the private data or the test part."""
    if shared.inputs.shape[1:] != whole.x.shape[1:]:
        raise DataError(
            f"transfer {transfer!r} has rows of shape {shared.inputs.shape[1:]}, data {data!r} of {whole.x.shape[1:]}; "
            "they must be alike"
        )
    for what, x in (("private", whole.x), ("test", whole.x_test)):
        found = int(transfers.contained(shared.inputs, x).sum())
        if found > LEAK * len(shared):
            raise DataError(
                f"{found} of {len(shared)} rows of transfer {transfer!r} are {what} rows of data {data!r}; "
                "use 'split(size=...)' to cut a public part, or another set"
            )
