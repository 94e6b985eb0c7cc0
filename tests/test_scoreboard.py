"""Warnings at the end of a run: only what is measured, and causes that the numbers allow."""

import json

import numpy as np
from test_replay import run

from fedkd.config import Config
from fedkd.scoreboard import unsure, warnings

BOARD = {"student": 0.5, "local_best": 0.8, "local_mean": 0.4, "ensemble": 0.6}
ABOVE = {"student": 0.85, "local_best": 0.9, "local_mean": 0.5, "ensemble": 0.86}


def test_only_what_is_not_set_is_suggested():
    (both,) = warnings(Config(expertise="uniform", sharpen="none"), BOARD)
    assert "try expertise = density or sharpen = power" in both
    (one,) = warnings(Config(expertise="density", sharpen="none"), BOARD)
    assert "try sharpen = power" in one and "density" not in one


def test_the_parts_of_a_published_method_are_not_to_be_replaced():
    (said,) = warnings(Config(preset="fedmd"), BOARD)
    assert "the ensemble is below it too" in said and "try" not in said


def test_a_gap_within_two_standard_errors_of_the_test_set_is_none():
    # student 0.5 on 100 samples: two standard errors are 2 * sqrt(0.25 / 100) = 0.1
    config = Config(feedback="none")
    assert warnings(config, {"student": 0.5, "local_best": 0.59, "local_mean": 0.58}, test=100) == []
    assert len(warnings(config, {"student": 0.5, "local_best": 0.61, "local_mean": 0.58}, test=100)) == 1
    assert len(warnings(config, {"student": 0.5, "local_best": 0.59, "local_mean": 0.58}, test=10_000)) == 2


def test_a_student_behind_its_teacher_is_told_first():
    (said,) = warnings(Config(), BOARD)
    assert said.index("lags behind its teacher") < said.index("the ensemble is below it too")
    (little,) = warnings(Config(), ABOVE | {"ensemble": 0.95, "student": 0.92, "local_best": 0.96})
    assert "lags behind its teacher" in little  # by 3 points


def test_one_client_knows_most_only_if_it_did_so_alone():
    board = ABOVE | {"ensemble": 0.9}
    board["ensemble"], board["student"] = 0.91, 0.895
    assert "one client holds most" in warnings(Config(), board, first={"local_best": 0.9})[0]
    (learned,) = warnings(Config(), board, first={"local_best": 0.6})
    assert "one client holds most" not in learned and "data of their own" in learned
    assert "one client holds most" in warnings(Config(feedback="none"), board)[0]


def test_only_clients_that_were_alone_prove_that_distillation_made_it_worse():
    board = {"student": 0.5, "local_best": 0.8, "local_mean": 0.7, "ensemble": 0.9}
    assert "below the average local model (70.0%)" in warnings(Config(rounds=1), board)[1]
    assert len(warnings(Config(), board, first={"local_mean": 0.3, "local_best": 0.6})) == 1
    (_, harm) = warnings(Config(), board, first={"local_mean": 0.6, "local_best": 0.6})
    assert "below the average local model of round 1 (60.0%)" in harm


def test_one_client_is_warned_of_once():
    (said,) = warnings(Config(clients=1, rounds=1), {"student": 0.5, "local_best": 0.8, "local_mean": 0.8})
    assert "below the only client's own model (80.0%)" in said


def test_a_teacher_about_classes_is_not_held_against_the_labels_of_samples(tmp_path):
    classes = {
        "keys": "classes",
        "student": "none",
        "expertise": "uniform",
        "evidence": "none",
        "feedback": "others",
        "release": "float32",
    }
    summary = json.loads((run(tmp_path / "fd", **classes) / "summary.json").read_text())
    assert summary["reliability"] == {} and summary["scoreboard"]["ensemble"] is None


def test_a_private_student_that_is_far_too_unsure_is_told_and_how_to_mend_it():
    soft, sharp = (np.array([[top, 1 - top]] * 10) for top in (0.6, 0.9))
    y = np.zeros(10, int)
    private = Config(preset="private", protect="dp_sgd", rounds=1)
    (said,) = unsure(private, soft, y)
    assert "right in 100% and 60% sure" in said and "fedkd replay RUN --set 'sharpen=power(beta=8.0)'" in said
    assert unsure(private, sharp, y) == []
    for other in ({"protect": "none"}, {"record": False}, {"sharpen": "power"}, {"rounds": 2, "feedback": "teacher"}):
        assert unsure(private.model_copy(update=other), soft, y) == []
