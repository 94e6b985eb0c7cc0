from fedkd.config import Config
from fedkd.scoreboard import warnings

BOARD = {"student": 0.5, "local_best": 0.8, "local_mean": 0.4, "ensemble": 0.6}


def test_only_what_is_not_set_is_suggested():
    (both,) = warnings(Config(expertise="uniform", sharpen="none"), BOARD)
    assert "try expertise = density or sharpen = power" in both
    (one,) = warnings(Config(expertise="density", sharpen="none"), BOARD)
    assert "try sharpen = power" in one and "density" not in one
