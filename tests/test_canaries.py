"""Canaries: coins that are guessed from one run. A mechanism without noise must be caught, the right one must pass."""

import json
import math

import numpy as np
import pytest
from typer.testing import CliRunner

from fedkd.audits import canaries
from fedkd.commands.audit import audit_app
from fedkd.config import Config
from fedkd.errors import ConfigError
from fedkd.federation import federation
from fedkd.privacy.audit import one_run
from fedkd.privacy.noise import SeededEntropy, SystemEntropy

HIDDEN = {"preset": "private", "clients": 2, "student": "none", "partition": "iid", "epsilon": 1.0}
SMALL = ["--canaries", "200", "--references", "4"]


class Silent(SystemEntropy):
    """An entropy whose noise is always zero: what a broken mechanism might use."""

    def normals(self, shape):
        return np.zeros(shape)


def sets(options):
    return [word for key, value in options.items() if key != "preset" for word in ("--set", f"{key}={value}")]


def audited(options, folder, *more):
    given = ["canary", "--preset", options["preset"], *sets(options), "--output", str(folder), *more]
    return CliRunner().invoke(audit_app, given)


def test_coins_of_references_come_in_pairs_without_a_common_canary():
    coins = canaries._coins(Config(), 500, 4)
    assert coins.shape == (5, 500)
    assert (coins[1] ^ coins[2]).all()
    assert (coins[3] ^ coins[4]).all()
    assert 0.4 < (coins[0] ^ coins[1]).mean() < 0.6
    assert 0.4 < coins[0].mean() < 0.6


def test_every_label_of_a_canary_is_wrong_and_none_is_in_the_fixed_data():
    config = Config(clients=3)
    shared = federation(config.data, config.transfer, config.partition, 3, config.seed)
    planted, fixed = canaries._examples(config, shared, 90)
    truth = {x.tobytes(): label for k in range(3) for x, label in zip(*shared.private(k), strict=True)}
    assert len(planted) == 90
    assert all(truth[canary.x[0].tobytes()] != canary.y[0] for canary in planted)
    known = {x.tobytes() for x, _ in fixed.values() for x in x}
    assert not known & {canary.x[0].tobytes() for canary in planted}
    for k in range(3):
        assert len(fixed[k][1]) + sum(canary.client == k for canary in planted) == len(shared.parts[k])


def test_a_client_that_is_a_canary_says_nothing_true():
    config = Config(clients=40)
    shared = federation(config.data, config.transfer, config.partition, 40, config.seed)
    planted, fixed = canaries._whole_clients(config, shared)
    assert fixed == {}
    assert all((canary.y != shared.private(canary.client)[1]).all() for canary in planted)
    wrong = canaries._without_fixed_point(config, 0, 5)
    assert sorted(wrong) == list(range(5))


def test_who_is_there_is_what_the_coins_say():
    x = np.arange(3, dtype=np.float32)[:, None]
    planted = [canaries.Canary(0, x[:1], np.array([1])), canaries.Canary(1, x[1:2], np.array([2]))]
    fixed = {0: (x[2:], np.array([0]))}
    held = canaries._held(planted, fixed, np.array([True, False]))
    assert {k: y.tolist() for k, (_, y) in held.items()} == {0: [0, 1]}
    held = canaries._held(planted, fixed, np.array([False, True]))
    assert {k: y.tolist() for k, (_, y) in held.items()} == {0: [0], 1: [2]}


def test_all_right_guesses_bound_epsilon_as_by_hand():
    coins = np.arange(100) < 50
    found = canaries._guessed(Config(delta=1e-12), "labels", coins + 0.0, coins, tests=4)
    # 40 of 40 guesses: q^40 = 0.05 / 4 where q = e^eps / (1 + e^eps)
    q = 0.0125 ** (1 / 40)
    assert (found.made, found.right) == (40, 40)
    assert found.lower == pytest.approx(math.log(q / (1 - q)), abs=1e-3)
    assert found.lower < one_run(100, 40, 40)  # the confidence pays for four tests
    blind = canaries._guessed(Config(), "labels", -(coins + 0.0), coins, tests=4)
    assert (blind.right, blind.least) == (0, 0)


def test_without_protection_nothing_is_claimed_and_much_is_seen(tmp_path):
    given = ["canary", *SMALL, "--set", "clients=2", "--set", "student=linear", "--output", str(tmp_path)]
    found = CliRunner().invoke(audit_app, given)
    assert found.exit_code == 0, found.output
    told = json.loads((tmp_path / "audit.json").read_text())
    assert told["result"] == "no claim"
    assert set(told["views"]) == {"labels", "model", "student"}
    assert told["views"]["labels"]["epsilon"] > 1
    assert told["views"]["labels"]["claimed"] is None
    assert "Audit: canary" in (tmp_path / "audit.html").read_text()


@pytest.fixture
def same_noise(monkeypatch):
    """The same noise whenever the tests run: a right mechanism may fail an audit by chance, but not today."""
    source = SeededEntropy(np.random.default_rng(0))
    for half in ("client", "rounds"):
        monkeypatch.setattr(f"fedkd.{half}.entropy_of", lambda *name: source)


def test_the_right_mechanism_passes(tmp_path, same_noise):
    found = audited(HIDDEN, tmp_path, *SMALL)
    assert found.exit_code == 0, found.output
    told = json.loads((tmp_path / "audit.json").read_text())
    assert told["result"] == "PASS"
    assert "result" in found.output and found.output.count("PASS") == len(told["views"])
    assert told["views"]["model"]["claimed"] == pytest.approx(1.0, abs=1e-3)
    assert told["promised"] == "epsilon 1 at delta 1e-05 for one example"


def test_dp_sgd_without_noise_that_claims_epsilon_1_is_caught_in_one_run(tmp_path, monkeypatch):
    monkeypatch.setattr("fedkd.client.entropy_of", lambda *name: Silent())
    found = audited(HIDDEN, tmp_path, *SMALL)
    assert found.exit_code == 1, found.output
    told = json.loads((tmp_path / "audit.json").read_text())
    assert told["result"] == "FAIL"
    assert told["views"]["labels"]["result"] == told["views"]["model"]["result"] == "FAIL"


CLIENTS = {"preset": "private_clients", "clients": 50, "student": "none", "epsilon": 0.5}


@pytest.mark.parametrize(("broken", "code"), [(True, 1), (False, 0)])
def test_a_sum_without_noise_that_hides_clients_is_caught_and_a_right_one_is_not(
    broken, code, tmp_path, monkeypatch, same_noise
):
    if broken:
        monkeypatch.setattr(
            "fedkd.privacy.client_level.discrete_gaussian", lambda shape, *given: np.zeros(shape, np.int64)
        )
    found = audited(CLIENTS, tmp_path, "--references", "4")
    assert found.exit_code == code, found.output
    told = json.loads((tmp_path / "audit.json").read_text())
    assert (told["unit"], told["canaries"]) == ("client", 50)
    assert set(told["views"]) == {"teacher"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"keys": "classes", "student": "none", "expertise": "uniform", "evidence": "none"}, "public samples"),
        ({"preset": "private_clients", "protect": "distributed", "clients": 20}, "audit protect = 'central'"),
        ({"preset": "private_clients", "clients": 5}, "one run of 5 canaries bounds nothing"),
    ],
)
def test_what_cannot_be_audited_is_refused_in_one_line(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        canaries.audit_canaries(Config(**options), references=2)


def test_references_come_in_pairs():
    with pytest.raises(ConfigError, match="`references` must be an even number of at least 2, got 3"):
        canaries.audit_canaries(Config(), references=3)
