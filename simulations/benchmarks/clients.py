"""Clients of a benchmark, trained once a seed: their data, their local models' ballots, and the transfer set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedkd.client import training_of
from fedkd.config import Config
from fedkd.dataset import Dataset, as_inputs, fingerprint, load
from fedkd.evidence import beside, evidence
from fedkd.expertise import expertise
from fedkd.learner import make_learner, set_threads
from fedkd.partition import partition
from fedkd.random import derive, generator
from fedkd.records import TransferSet
from fedkd.softlabels import Array


@dataclass(frozen=True, eq=False)
class Clients:
    """Shares of the data by client, as rows, and a transfer set with its labels, which only a benchmark knows."""

    seed: int
    data: Dataset
    transfer: TransferSet
    truth: Array
    shares: list[Array]

    def ballot(self, k: int, config: Config, y: Array | None = None) -> Array:
        """Return what a small CNN that learned the data of client ``k``, or its labels ``y``, says (M, C)."""
        x = as_inputs(self.data.x[self.shares[k]])
        model = make_learner(
            "cnn",
            shape=x.shape[1:],
            classes=self.data.classes,
            training=training_of(config, distill_epochs=1),
            seed=derive(self.seed, "client", k),
        )
        set_threads(1)
        model.fit(x, self.data.y[self.shares[k]] if y is None else y, rng=generator(self.seed, "client", k))
        return model.predict(self.transfer.inputs)

    def weights(self, member: str, ballots: list[Array]) -> Array:
        """Return how much each ballot counts (K, M) by the expertise ``member``."""
        weigh, rows = expertise.build(member), np.arange(len(self.truth))
        private = (as_inputs(self.data.x[share]) for share in self.shares)
        return np.stack(
            [
                weigh(p, rows, self.transfer, x, generator(self.seed, "expertise", k))
                for k, (p, x) in enumerate(zip(ballots, private, strict=True))
            ]
        )

    def judged(self, member: str, ballots: list[Array]) -> Array:
        """Return the ballots (K, M, C) beside the evidence ``member``."""
        look, said = evidence.build(member), []
        for p, share in zip(ballots, self.shares, strict=True):
            said.append(
                beside(p, look(self.transfer, as_inputs(self.data.x[share]), self.data.y[share], self.data.classes))
            )
        return np.stack(said)


def deal(name: str, spec: str, clients: int, seed: int, *, transfer: int, private: int | None) -> Clients:
    """Return ``clients`` that share ``private`` rows (None: all) by ``spec``; ``transfer`` others are public."""
    data = load(name)
    order = generator(seed, "order").permutation(len(data.y))
    pool, mine = order[:transfer], order[transfer:][:private]
    inputs = as_inputs(data.x[pool])
    shares = [mine[part] for part in partition.build(spec)(data.y[mine], clients, generator(seed, "partition"))]
    return Clients(seed, data, TransferSet(inputs, fingerprint(inputs)), data.y[pool], shares)
