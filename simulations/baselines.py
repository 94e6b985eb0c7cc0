"""Baselines that share weights, to be compared with only: FedAvg, and FedDF, which distills into the average.

fedkd itself never sends weights. Both need one torch architecture for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedkd import metrics
from fedkd.client import training_of
from fedkd.config import Config
from fedkd.federation import federation
from fedkd.learner import Learner, make_learner, set_threads
from fedkd.random import derive, generator
from fedkd.softlabels import TINY, Array, softmax

State = dict[str, Array]


@dataclass(frozen=True)
class WeightRound:
    """Accuracy of the global model after a round, and the bytes of weights that a client has sent and got in it."""

    accuracy: float
    bytes_each_way: int


def average(states: Sequence[State], sizes: Sequence[int]) -> State:
    """Return sum_k n_k theta_k / sum_k n_k of float arrays (FedAvg, arXiv:1602.05629); integers are the first's.

    ``sizes`` (K,) are the samples n_k of the clients.
    """
    share = np.asarray(sizes, np.float64) / sum(sizes)
    mean = {}
    for name, first in states[0].items():
        stacked = np.stack([state[name] for state in states])
        floats = np.issubdtype(first.dtype, np.floating)
        mean[name] = np.tensordot(share, stacked, axes=1).astype(first.dtype) if floats else first
    return mean


def mean_logits(ballots: Sequence[Array]) -> Array:
    """Return softmax of the mean of logits (M, C), FedDF's teacher (Lin et al., arXiv:2006.07242)."""
    return softmax(np.mean([np.log(np.maximum(p, TINY)) for p in ballots], axis=0))


def play_weights(config: Config, *, distill: bool = False) -> list[WeightRound]:
    """Run FedAvg with the data, model and local passes of ``config``; with ``distill``, FedDF on its transfer set."""
    shared = federation(config.data, config.transfer, config.partition, config.clients, config.seed)
    shape, classes = shared.transfer.inputs.shape[1:], shared.dataset.classes

    def model() -> Learner:
        training = training_of(config, distill_epochs=config.distill_epochs)
        seed = derive(config.seed, "server", "student", "init")
        return make_learner(config.student, shape=shape, classes=classes, training=training, seed=seed)

    center, local = model(), model()
    set_threads(config.threads)
    x_test, y_test = shared.test()
    reports = []
    for round_ in range(1, config.rounds + 1):
        states, sizes, ballots = [], [], []
        for k in range(config.clients):
            x, y = shared.private(k)
            if not len(y):
                continue
            local.load(center.state())
            local.fit(x, y, rng=generator(config.seed, "client", k, "round", round_, "fit"))
            states.append(local.state())
            sizes.append(len(y))
            if distill:
                ballots.append(local.predict(shared.transfer.inputs))
        center.load(average(states, sizes))
        if distill:
            w = np.ones(len(shared.transfer), np.float32)
            rng = generator(config.seed, "server", "round", round_, "distill")
            center.distill(shared.transfer.inputs, mean_logits(ballots).astype(np.float32), w=w, rng=rng)
        size = sum(value.nbytes for value in center.state().values())
        reports.append(WeightRound(metrics.accuracy(center.predict(x_test), y_test) or 0.0, size))
    return reports
