"""What a method does with ballots, from its preset: the paper's equation by hand on three classes."""

import math

import numpy as np
import pytest
import torch

from fedkd.aggregation import aggregator
from fedkd.defense import vet
from fedkd.losses import distill_loss
from fedkd.parts import preset
from fedkd.teacher import sharpener
from simulations.scene import play

A, B = [0.6, 0.3, 0.1], [0.2, 0.2, 0.6]
NAN = [math.nan] * 3
TINY = {
    "transfer": "split(size=200)", "clients": 3, "rounds": 2, "learner": "mlp", "student": "mlp", "local_epochs": 2,
    "distill_epochs": 2, "feedback_epochs": 1, "pooled": False,
}  # fmt: skip


def teach(name, p, w):
    """Return the teacher (M, C) of preset ``name`` on ballots ``p`` (K, M, C) with weights ``w`` (K, M)."""
    keys = preset(name)
    t = aggregator.build(keys.get("aggregate", "mean"))(np.asarray(p, np.float64), np.asarray(w, np.float64))
    return sharpener.build(keys.get("sharpen", "none"))(t)


def test_fed_aux_is_the_softmax_of_the_mean_logits_weighted_by_scores():
    # z = (2 ln 2, ln 2, 0) and (0, 0, 4 ln 2), scores 3 and 1: (6, 3, 4) ln 2 / 4.
    p = [[[4 / 7, 2 / 7, 1 / 7]], [[1 / 18, 1 / 18, 16 / 18]]]
    e = 2 ** np.array([6 / 4, 3 / 4, 4 / 4])
    assert teach("fed_aux", p, [[3.0], [1.0]])[0] == pytest.approx(e / e.sum())
    assert teach("fed_aux", p, [[0.3], [0.1]])[0] == pytest.approx(e / e.sum())  # only ratios of scores count


def test_fed_et_learns_the_class_of_the_consensus_and_a_little_of_those_who_disagree():
    # Variances over classes are as 19 to 16: (14.6, 8.9, 11.5) / 35, a label of class 0.
    t = teach("fed_et", [[A], [B]], np.ones((2, 1)))
    assert t[0] == pytest.approx(np.array([14.6, 8.9, 11.5]) / 35, abs=1e-5)
    z = torch.tensor([[math.log(2), 0.0, 0.0]], dtype=torch.float64)  # says 1/2, 1/4, 1/4
    divergence = float((t[0] * np.log(t[0] / [0.5, 0.25, 0.25])).sum())
    loss = distill_loss.build(preset("fed_et")["distill"])(z, torch.from_numpy(t))
    assert float(loss) == pytest.approx(0.95 * math.log(2) + 0.05 * divergence, abs=1e-9)


def test_selective_fd_is_the_mean_of_those_who_answer_where_it_is_not_ambiguous():
    # Row 0: one abstains. Row 1: the mean .4 .25 .35 is 1.2 from its class. Row 2: .5 .3 .2 is 1.0 from it and stays.
    p, w = [[A, A, A], [NAN, B, [0.4, 0.3, 0.3]]], [[1.0, 1.0, 1.0], [0.0, 1.0, 1.0]]
    t = teach("selective_fd", p, w)
    assert t[0] == pytest.approx(A)
    assert np.isnan(t[1]).all()
    assert t[2] == pytest.approx([0.5, 0.3, 0.2])


def test_cronus_drops_two_liars_of_five_one_in_each_pass():
    p = [[A], [A], [A], [[0.0, 0.0, 1.0]], [[0.0, 0.1, 0.9]]]
    assert teach("cronus", p, np.ones((5, 1)))[0] == pytest.approx(A)


def test_byzantine_fd_distrusts_round_by_round_who_is_far_from_the_geometric_median():
    # Of A, A, B it is A, and B is sqrt(.16 + .01 + .25) away; the mean is not A but for what B still weighs.
    p, w, trust = np.array([[A], [A], [B]]), np.ones((3, 1)), np.ones(3)
    for round_ in (1, 2):
        vetted = vet(preset("byzantine_fd")["defend"], p, w, trust)
        trust = vetted.trust
        fall = math.exp(-round_ * math.sqrt(0.42))
        assert trust == pytest.approx([1, 1, fall], abs=1e-4)
        mean = (2 * np.array(A) + fall * np.array(B)) / (2 + fall)
        assert aggregator.build("mean")(vetted.p, vetted.w)[0] == pytest.approx(mean, abs=1e-4)
        assert teach("byzantine_fd", vetted.p, vetted.w)[0] == pytest.approx(A, abs=1e-4)


def test_coding_of_cfd_takes_bytes_and_leaves_every_label():
    coded = play("cfd", **TINY)
    plain = play("cfd", **TINY, release="quantize(bits=1)", broadcast="quantize(bits=1)")
    for a, b in zip(coded, plain, strict=True):
        assert a.metrics["student"] == b.metrics["student"] and a.metrics["ensemble"] == b.metrics["ensemble"]
    assert coded[-1].metrics["bytes_up"] < plain[-1].metrics["bytes_up"] / 2
    assert coded[-1].metrics["bytes_down"] < plain[-1].metrics["bytes_down"]


def test_tiny_is_the_default_in_a_seventh_of_the_bytes_or_less():
    reports = {name: play(name, rounds=2, clients=4, distill_epochs=2, pooled=False) for name in ("expert", "tiny")}
    for way in ("bytes_up", "bytes_down"):
        moved = {name: sum(r.metrics[way] for r in rounds) for name, rounds in reports.items()}
        assert moved["tiny"] < 0.15 * moved["expert"], way
    first = {name: rounds[0].metrics["ensemble"] for name, rounds in reports.items()}
    assert abs(first["tiny"] - first["expert"]) < 0.05
