"""``fedkd audit mechanism`` and ``audit labels``: what a configuration promises is tried, and what is found is told."""

import dataclasses
import io
import json
import math

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from fedkd.audits import releases as audits
from fedkd.commands.audit import audit_app
from fedkd.config import Config, Resolved
from fedkd.errors import ConfigError
from fedkd.events import Gaussian, NonPrivate, SampledGaussian
from fedkd.federation import federation
from fedkd.privacy import neighbors
from fedkd.privacy.noise import SeededEntropy
from fedkd.protect import Spending, protection_of
from fedkd.recording import save_round
from fedkd.records import Query, Release, RoundReport
from fedkd.rundir import RunDirectory
from fedkd.softlabels import one_hot

ROOT2 = math.sqrt(2)


def entropy(seed=0):
    return SeededEntropy(np.random.default_rng(seed))


CENTRAL = [
    "--set",
    "protect=central",
    "--set",
    "epsilon=3",
    "--set",
    "expertise=uniform",
    "--set",
    "evidence=none",
    "--set",
    "record=false",
    "--set",
    "late=false",
]


def test_nothing_is_promised_without_protection(tmp_path):
    found = CliRunner().invoke(audit_app, ["mechanism", "--output", str(tmp_path)])
    assert isinstance(found.exception, ConfigError)
    assert "promises nothing" in str(found.exception)


def test_the_configured_mechanism_passes_and_leaves_a_report(tmp_path):
    found = CliRunner().invoke(audit_app, ["mechanism", *CENTRAL, "--trials", "100", "--output", str(tmp_path)])
    assert found.exit_code == 0, found.output
    told = json.loads((tmp_path / "audit.json").read_text())
    assert (told["result"], told["unit"], told["neighbors"]) == ("PASS", "client", "zero_out")
    (finding,) = told["findings"]
    assert finding["found"] < finding["claimed"]
    assert finding["configured"] > finding["audited"] == 0.4
    assert "noisy sum of ballots" in (tmp_path / "audit.md").read_text()


def test_a_mechanism_with_too_little_noise_fails_the_command(tmp_path, monkeypatch):
    sketch = neighbors.sketch
    monkeypatch.setattr(neighbors, "mean", lambda z, **_: sketch(z / ROOT2))
    found = CliRunner().invoke(audit_app, ["mechanism", *CENTRAL, "--trials", "800", "--output", str(tmp_path)])
    assert found.exit_code == 1
    assert "FAIL" in found.output
    assert json.loads((tmp_path / "audit.json").read_text())["result"] == "FAIL"


def test_an_audit_that_cannot_see_says_so():
    finding = audits.Finding("any", "epsilon", 1.0, 0.4, 13.0, 2.0, caught=False, trials=100)
    assert finding.passed
    assert finding.verdict == "PASS, but blind"


def test_every_mechanism_of_a_private_client_is_audited(monkeypatch):
    config = Config(
        protect="dp_sgd(rate=0.5)", epsilon=3.0, learner="linear", expertise="private_sketch", evidence="none", rounds=1
    )
    planned = Spending(protection_of(config), (Gaussian(3.7),), (SampledGaussian(0.5, 2.0, 10),), 2.0, 10)
    monkeypatch.setattr(audits, "spending", lambda config: planned)  # the accountant's work, in no time
    findings = audits.audit_config(config, trials=150, entropy=entropy(3))
    assert [finding.what for finding in findings] == ["epsilon", "epsilon", "rate"]
    assert all(finding.passed for finding in findings)
    assert [finding.claimed for finding in findings] == pytest.approx([13.2067, 13.2067, 0.5], abs=1e-3)


CLIENTS = {"epsilon": 3.0, "expertise": "uniform", "evidence": "none", "record": False, "late": False}


@pytest.mark.parametrize(
    ("given", "mechanisms", "trials"),
    [
        ({"protect": "local"}, ["randomized answer"], 2500),
        ({"protect": "local_gaussian"}, ["noisy soft labels"], 250),
        ({"protect": "gnmax(threshold=0.5, smooth=False)"}, ["noisy sum of votes", "test of the largest count"], 250),
        ({"protect": "central", "expertise": "density"}, ["noisy sum of weighted ballots"], 250),
    ],
)
def test_every_mechanism_for_clients_passes_and_its_planted_error_is_found(given, mechanisms, trials):
    findings = audits.audit_config(Config(**{**CLIENTS, **given}), trials=trials, entropy=entropy(5))
    assert [finding.mechanism for finding in findings] == mechanisms
    assert [finding.verdict for finding in findings] == ["PASS"] * len(mechanisms)


@pytest.mark.parametrize(("expertise", "asked"), [("uniform", 0.0), ("density", 0.1)])
def test_a_masked_sum_is_audited_with_its_weights_where_it_has_some(expertise, asked, monkeypatch):
    seen, real = [], neighbors.shares
    monkeypatch.setattr(neighbors, "shares", lambda z, **how: seen.append(how) or real(z, **how, rows=2))
    config = Config(**{**CLIENTS, "protect": "distributed", "clients": 3, "expertise": expertise})
    (found,) = audits.audit_config(config, trials=100, entropy=entropy(5))
    assert (found.mechanism, found.passed, seen[0]["balance"]) == ("masked sum of 3 clients", True, asked)


@pytest.fixture
def recorded(tmp_path):
    """A run of three clients on the digits whose ballots name the classes that they hold."""
    config = Config(clients=3, partition="classes(per_client=2)", rounds=1)
    shared = federation(config.data, config.transfer, config.partition, 3, config.seed)
    directory = RunDirectory(tmp_path / "run")
    directory.note("inprocess", "")
    (tmp_path / "run" / "config.toml").write_text(Resolved(config, {}).to_toml())
    rows = np.arange(60)
    held = [np.unique(shared.dataset.y[part]) for part in shared.parts]
    releases = {
        k: Release(one_hot(classes[rows % len(classes)], 10), np.ones(60, np.float32), NonPrivate())
        for k, classes in enumerate(held)
    }
    save_round(directory.ballots, Query(1, rows, 10, shared.transfer.fingerprint), releases)
    answered = {str(k): {"status": "answered"} for k in range(3)}
    directory.append(RoundReport(1, {}, answered, {}, {}))
    return directory


def test_classes_are_read_from_the_ballots_of_a_run(recorded, tmp_path):
    found = CliRunner().invoke(audit_app, ["labels", str(recorded.path)])
    assert found.exit_code == 0, found.output
    told = json.loads((recorded.path / "audit.json").read_text())
    assert set(told["clients"]) == {"0", "1", "2"}
    assert told["kl"] < 0.5 * told["kl_uniform"]
    assert told["correlation"] > 0.9
    assert "mean of 3" in (recorded.path / "audit.md").read_text()


def test_a_deployment_has_no_truth_to_compare_with(recorded):
    recorded.origin.unlink()
    found = CliRunner().invoke(audit_app, ["labels", str(recorded.path)])
    assert isinstance(found.exception, ConfigError)
    assert "deployment" in str(found.exception)


def test_the_table_of_mechanisms_says_first_that_its_epsilons_are_not_the_runs_and_breaks_no_word():
    config = Config(protect="dp_sgd", epsilon=3.0, learner="linear", expertise="uniform", evidence="none")
    name = "DP-SGD of linear(dimensions=20, temperature=4.0), 4 steps"
    found = audits.Finding(name, "epsilon", 6.22, 0.4, 13.207, 6.7, False, 100)
    report = audits.mechanism_report(config, [found])
    assert report.lead.startswith("The run is promised epsilon 3.")
    assert report.markdown().index(report.lead) < report.markdown().index("| mechanism |")
    assert report.lead in report.html()
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(report.table())
    text = console.export_text()
    for word in ("dimensions=20,", "temperature=4.0),", "PASS, but", "blind", "not found"):
        assert word in text
    as_configured = audits.mechanism_report(config, [dataclasses.replace(found, audited=6.22)])
    assert as_configured.lead == ""
