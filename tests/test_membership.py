"""Membership inference on a whole federation: bounds by hand, a leak that is seen, noise that closes it, a picture."""

import json
import math
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from fedkd.audits import membership
from fedkd.audits.membership import Claim, attack_membership, claim_of, membership_report
from fedkd.audits.shadows import play
from fedkd.commands.audit import audit_app
from fedkd.config import Config
from fedkd.errors import ConfigError
from fedkd.federation import federation
from fedkd.privacy.audit import Interval, over_examples
from simulations.privacy import mia

LINEAR = {"clients": 2, "rounds": 1, "learner": "linear", "student": "none", "evidence": "none", "expertise": "uniform"}
SURE = Interval(0.5, 0.4, 0.6)


def test_a_promise_bounds_who_is_found_by_hand():
    claim = Claim(math.log(3), 0.001, "")
    assert claim.at_most(0.01) == pytest.approx(0.031)  # 3 * 0.01 + delta
    assert claim.at_most(0.5) == pytest.approx(1 - (1 - 0.001 - 0.5) / 3)  # and from the other side
    assert claim.at_most(1.0) == 1
    assert Claim(math.inf, 0.0, "").at_most(0.001) == 1


def test_nothing_is_promised_without_protection_with_seeded_noise_or_of_labels_that_the_server_sees():
    assert claim_of(Config(), "student").told == "no bound: privacy NONE"
    assert "seeded" in claim_of(Config(preset="private", noise="seeded"), "student").told
    labels = claim_of(Config(preset="private_clients"), "labels")
    assert labels.epsilon == math.inf
    assert "is trusted" in labels.told


def test_a_promise_to_clients_is_half_as_good_for_another_example():
    hidden = claim_of(Config(preset="private", epsilon=1.0), "labels")
    assert (hidden.epsilon, hidden.delta) == (pytest.approx(1.0, abs=1e-3), 1e-5)
    clients = claim_of(Config(preset="private_clients", epsilon=1.0), "teacher")
    assert clients.epsilon == pytest.approx(2.0, abs=1e-3)
    assert clients.delta == pytest.approx((1 + math.e) * 1e-5, rel=1e-2)


def test_every_candidate_is_in_half_of_the_runs_and_never_in_both_of_a_pair():
    config = Config(**LINEAR)
    shared = federation(config.data, config.transfer, config.partition, 2, config.seed)
    attacked, others = membership._candidates(config, shared, 8, 60)
    assert others == {}
    assert (attacked.member[::2] ^ attacked.member[1::2]).all()
    assert [len(attacked.of(run, k)) for run in range(8) for k in (0, 1)] == [60] * 16
    assert set(attacked.owner[attacked.of(3, 1)]) == {1}
    assert not np.array_equal(attacked.member[0], attacked.member[2])


def test_clients_that_are_not_attacked_keep_what_they_have():
    config = Config(**{**LINEAR, "clients": 6})
    shared = federation(config.data, config.transfer, config.partition, 6, config.seed)
    attacked, others = membership._candidates(config, shared, 6, 500)
    assert len(others) == 2
    assert set(others) | set(attacked.owner.tolist()) == set(range(6))
    assert all(len(y) == len(shared.parts[k]) for k, (_, y) in others.items())
    assert max(map(len, (shared.parts[k] for k in others))) <= min(len(shared.parts[k]) for k in set(attacked.owner))


def test_an_interval_over_examples_takes_all_scores_of_one_together():
    scores = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    member = scores > 0.5

    def above(members, others):
        return float(members.mean() - others.mean())

    found = over_examples(scores, member, above, rng=np.random.default_rng(0), times=50)
    assert found == Interval(1.0, 1.0, 1.0)  # each example tells all by itself, so drawing anew changes nothing
    with pytest.raises(ConfigError, match="one shape"):
        over_examples(scores, member[:1], above, rng=np.random.default_rng(0))


def found(claim, scores, member):
    return membership.Found(
        "student", SURE, SURE, (Interval(0.3, 0.2, 0.4), Interval(0.1, 0.0, 0.2)), claim, scores, member
    )


def test_more_found_than_promised_is_a_failure_and_without_a_promise_there_is_none():
    scores, member = np.array([[3.0, 1.0, 2.0, 0.0]]), np.array([[True, False, True, False]])
    broken = found(Claim(0.1, 1e-5, "epsilon 0.1"), scores, member)  # at 1 %: at most 1.1 %, surely 20 %
    right = found(Claim(4.0, 1e-5, "epsilon 4"), scores, member)  # at most 55 %
    none = found(Claim(math.inf, 0.0, "no bound"), scores, member)
    assert [one.passed for one in (broken, right, none)] == [False, True, True]
    results = [membership_report(Config(), [one], shadows=6).facts["result"] for one in (broken, right, none)]
    assert results == ["FAIL", "PASS", "no claim"]


def test_the_curve_of_four_scores_by_hand():
    scores, member = np.array([[3.0, 2.0, 1.0, 0.0]]), np.array([[True, False, True, False]])
    curve = found(Claim(math.inf, 0.0, ""), scores, member).curve(np.array([0.0, 0.49, 0.5, 1.0]))
    assert curve.tolist() == [0.5, 0.5, 1.0, 1.0]


def test_a_run_shows_what_every_client_said_and_one_that_is_away_says_nothing():
    config = Config(**{**LINEAR, "clients": 3, "rounds": 2, "quorum": 0.1})
    shared = federation(config.data, config.transfer, config.partition, 3, config.seed)
    held = {k: shared.private(k) for k in (0, 2)}
    seen = play(config, shared, held)
    assert set(seen.labels) == set(seen.models) == {0, 2}
    assert len(seen.labels[0].p) == 2 * len(shared.transfer)  # both rounds
    assert seen.student is None
    mean = np.mean([seen.labels[k].p[len(shared.transfer) :] for k in (0, 2)], axis=0)
    assert seen.teacher.p == pytest.approx(mean, abs=1e-3)
    last = seen.models[2].predict(shared.transfer.inputs)
    assert seen.labels[2].p[len(shared.transfer) :] == pytest.approx(last, abs=1e-3)
    again = play(config, shared, held)
    assert (again.teacher.p == seen.teacher.p).all()


def test_masked_sums_show_no_labels_of_a_client():
    private = {"preset": "private_clients", "protect": "distributed", "clients": 4, "student": "none"}
    config = Config(**private, noise="seeded")
    assert [one.view for one in attack_membership(config, shadows=6, examples=20)] == ["teacher"]


def test_the_experiment_shows_a_leak_and_that_noise_closes_it(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(mia, "RUNS", {"small": 10})
    monkeypatch.setattr(mia, "EPSILONS", (0.0, 1.0))
    monkeypatch.setattr(mia, "STUDENT", "none")
    table = mia.main(["--small", "--output", str(tmp_path / "mia.json")])
    assert table["no protection"]["labels"]["area"][0] > 0.6
    assert table["epsilon 1"]["labels"]["area"][0] < 0.55
    assert table["epsilon 1"]["labels"]["at 1 %"][1] < table["epsilon 1"]["labels"]["at most"][0] < 0.03
    assert table["no protection"]["labels"]["at most"] == [1.0, 1.0]
    assert "labels of one client" in capsys.readouterr().out
    assert json.loads((tmp_path / "mia.json").read_text())["table"] == table


def test_the_command_leaves_numbers_words_a_page_and_a_picture(tmp_path):
    given = [word for key, value in LINEAR.items() for word in ("--set", f"{key}={value}")]
    done = CliRunner().invoke(audit_app, ["mia", "--shadows", "6", "--output", str(tmp_path), *given])
    assert done.exit_code == 0, done.output
    told = json.loads((tmp_path / "audit.json").read_text())
    assert (told["result"], set(told["views"])) == ("no claim", {"labels", "teacher"})
    view = told["views"]["labels"]
    assert view["auc"][1] < view["auc"][0] < view["auc"][2]
    assert view["auc"][0] > 0.6
    assert view["roc"][-1] == [1.0, 1.0]
    assert "labels of one client" in (tmp_path / "audit.md").read_text()
    picture = ET.parse(tmp_path / "roc.svg").getroot()
    assert picture.tag == "{http://www.w3.org/2000/svg}svg"
    assert any("stroke" in (style.text or "") for style in picture.iter("{http://www.w3.org/2000/svg}style"))
    page = (tmp_path / "audit.html").read_text()
    assert "Audit: membership" in page
    assert "<svg" in page


@pytest.mark.parametrize(
    ("changed", "options", "sentence"),
    [
        ({"keys": "classes"}, {}, "public samples"),
        ({}, {"shadows": 7}, "`shadows` must be an even number of at least 6, got 7"),
        ({"clients": 200}, {"shadows": 6}, "no client has 16 examples to attack"),
    ],
)
def test_what_cannot_be_attacked_is_refused_in_one_line(changed, options, sentence):
    config = Config(**{**LINEAR, "partition": "iid", **changed})
    with pytest.raises(ConfigError, match=sentence):
        attack_membership(config, **options)


def test_a_failure_is_told_by_the_exit_code(tmp_path, monkeypatch):
    claim = Claim(0.1, 1e-5, "epsilon 0.1")
    scores = np.array([[3.0, 1.0, 2.0, 0.0]])
    bad = replace(found(claim, scores, scores > 1.5), view="student")
    monkeypatch.setattr(membership, "attack_membership", lambda *given, **named: [bad])
    assert CliRunner().invoke(audit_app, ["mia", "--output", str(tmp_path)]).exit_code == 1
    assert "FAIL" in (tmp_path / "audit.html").read_text()
