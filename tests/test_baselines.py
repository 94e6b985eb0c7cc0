"""Baselines that share weights."""

import numpy as np
import pytest

from fedkd.config import Config
from simulations.baselines import average, mean_logits, play_weights
from simulations.papers import fedavg

TINY = {
    "clients": 3, "rounds": 3, "partition": "iid", "learner": "mlp", "student": "mlp", "local_epochs": 3,
    "distill_epochs": 3, "feedback_epochs": 1, "pooled": False,
}  # fmt: skip


def test_the_average_by_hand_weighs_clients_by_their_samples():
    states = [
        {"a": np.array([1.0, 2.0], np.float32), "n": np.array(3)},
        {"a": np.array([5.0, 2.0], np.float32), "n": np.array(9)},
    ]
    mean = average(states, [3, 1])
    assert mean["a"].tolist() == [2.0, 2.0]
    assert mean["a"].dtype == np.float32
    assert mean["n"] == 3


def test_the_mean_of_logits_by_hand_is_the_normalized_geometric_mean():
    p = [np.array([[0.8, 0.2]]), np.array([[0.2, 0.8]])]
    assert mean_logits(p) == pytest.approx(np.array([[0.5, 0.5]]))
    q = [np.array([[0.9, 0.1]]), np.array([[0.5, 0.5]])]
    assert mean_logits(q)[0, 0] == pytest.approx(3 / 4)  # sqrt(.45) : sqrt(.05) = 3 : 1


def test_averaging_learns_and_counts_the_bytes_of_the_weights():
    rounds = play_weights(Config(**TINY))
    assert rounds[-1].accuracy > rounds[0].accuracy > 0.2
    assert rounds[0].bytes_each_way == 4 * (64 * 64 + 64 + 64 * 10 + 10)


def test_the_table_of_baselines_has_a_line_for_each_round(capsys):
    fedavg.main(["--small"], TINY)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[-1].split()[0] == "3"
