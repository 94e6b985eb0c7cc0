"""A federation by function calls: whoever is away in a round is not asked, and joins in again when it is back."""

from fedkd.config import Config
from simulations.benchmarks.absence import LEAST, there
from simulations.scene import run

TINY = {"clients": 3, "rounds": 3, "learner": "constant", "student": "constant", "pooled": False}


def test_who_is_away_is_not_asked_and_who_is_back_answers_again():
    reports = run(Config(**TINY), present=lambda client, round_: (client, round_) not in {(1, 1), (1, 2), (2, 2)})
    assert [sorted(k for k, row in report.clients.items() if row["status"] == "answered") for report in reports] == [
        ["0", "2"],
        ["0"],
        ["0", "1", "2"],
    ]
    assert [row["status"] for row in reports[1].clients.values()] == ["answered", "away"]
    assert (reports[1].metrics["asked"], reports[1].metrics["away"]) == (1, 1)


def test_half_are_away_and_never_all():
    rounds = [there(0, 20, round_) for round_ in range(200)]
    assert 9 < sum(map(len, rounds)) / 200 < 11
    assert min(len(there(seed, 3, 1)) for seed in range(100)) == LEAST
    assert there(1, 20, 1) == there(1, 20, 1) != there(2, 20, 1)
