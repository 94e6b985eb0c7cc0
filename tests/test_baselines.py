"""Baselines that share weights."""

import numpy as np
import pytest

from fedkd.config import Config
from fedkd.events import Gaussian
from fedkd.privacy.noise import SeededEntropy
from simulations.baselines import average, mean_logits, play_weights
from simulations.papers import fedavg
from simulations.private_baselines import Recipe, descend, dp_fedavg, private_average

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


def test_dp_fedavg_by_hand_on_two_clients_and_three_classes():
    """One row a client, one step from no opinion: a step of 3 moves the own class by 2, others by -1."""
    v = np.array([[1.0]])
    shares = [(v, np.array([0])), (v, np.array([1]))]
    assert descend(np.zeros((1, 3)), v, np.array([0]), 1, 3.0) == pytest.approx(np.array([[2.0, -1.0, -1.0]]))
    free, event = dp_fedavg(shares, 3, Recipe(1, 1, 3.0, clip=10.0), 0.0, SeededEntropy(np.random.default_rng(0)))
    assert free == pytest.approx(np.array([[0.5, 0.5, -1.0]]))  # the mean of (2, -1, -1) and (-1, 2, -1)
    short, _ = dp_fedavg(
        shares, 3, Recipe(1, 1, 3.0, clip=np.sqrt(6) / 2), 0.0, SeededEntropy(np.random.default_rng(0))
    )
    assert short == pytest.approx(free / 2)  # both moves have length sqrt(6)
    assert event == Gaussian(0.0, 1)


def test_the_noise_of_dp_fedavg_is_on_the_sum_and_one_client_moves_it_by_no_more_than_the_clip():
    clip, noise = 0.5, 2.0
    updates = [np.full((100, 100), 9.0), np.zeros((100, 100))]
    silent = private_average(updates, clip, 0.0, SeededEntropy(np.random.default_rng(0)))
    assert np.linalg.norm(2 * silent) == pytest.approx(clip)
    noisy = private_average(updates, clip, noise, SeededEntropy(np.random.default_rng(0)))
    assert np.std(2 * (noisy - silent)) == pytest.approx(noise * clip, rel=0.03)  # of 10,000 draws


def test_dp_fedavg_learns_and_noise_costs():
    rng = np.random.default_rng(0)
    y = np.arange(300) % 3
    v = 2 * np.eye(3)[y] + rng.standard_normal((300, 3))
    shares = [(v[k::10], y[k::10]) for k in range(10)]

    def right(noise):
        weights, event = dp_fedavg(shares, 3, Recipe(4, 2, 1.0, 1.0), noise, SeededEntropy(np.random.default_rng(1)))
        assert event == Gaussian(noise, 4)
        return np.mean((v @ weights).argmax(axis=1) == y)

    assert right(0.0) > 0.8 > right(300.0)
