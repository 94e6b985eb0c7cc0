"""The server's own ledger: what its runs have told of the same clients adds up, whichever run it was."""

import json

import pytest

from fedkd.config import Config
from fedkd.errors import ConfigError, PrivacyError
from fedkd.events import Gaussian
from fedkd.privacy.accountant import spent
from fedkd.privacy.ledger_report import verify
from fedkd.privacy.purse import begin_run

CENTRAL = {
    "preset": "private_clients",
    "protect": "central(clip=0.25)",
    "clients": 6,
    "epsilon": 2.0,
    "delta": 1e-4,
    "learner": "constant",
    "student": "constant",
    "pooled": False,
}


def config(folder, **given):
    return Config(**{**CENTRAL, "ledger": str(folder / "ledger"), **given})


def test_runs_add_up_as_gaussians_do_and_the_one_too_many_is_refused(tmp_path):
    given = config(tmp_path, ledger_epsilon=5.0)
    (noise,) = {e.noise_multiplier for e in [*_events(tmp_path, given, "a")]}
    assert begin_run(given, "b") == pytest.approx(spent([Gaussian(noise, 2)], 1e-4), rel=1e-6)
    assert 2.0 < begin_run(given, "b") < 4.0  # better than adding epsilons, and the run that goes on is charged once
    fit = 2
    with pytest.raises(PrivacyError, match=r"no room .*: epsilon \d.* this one wants 2, .* may spend 5 \(ledger"):
        while True:
            begin_run(given, f"more-{fit}")
            fit += 1
    assert spent([Gaussian(noise, fit)], 1e-4) <= 5.0 < spent([Gaussian(noise, fit + 1)], 1e-4) + 1.0
    assert len(verify(tmp_path / "ledger").reservations) == fit


def _events(folder, given, run):
    assert begin_run(given, run) == pytest.approx(2.0, abs=1e-3)
    return [entry.event for entry in verify(folder / "ledger").reservations]


def test_without_a_larger_budget_there_is_room_for_one_run(tmp_path):
    begin_run(config(tmp_path), "a")
    begin_run(config(tmp_path), "a")
    with pytest.raises(PrivacyError, match="no room for this run"):
        begin_run(config(tmp_path), "b")


def test_the_same_run_with_other_settings_is_not_the_same_run(tmp_path):
    begin_run(config(tmp_path, ledger_epsilon=9.0), "a")
    with pytest.raises(PrivacyError, match="begun with other settings"):
        begin_run(config(tmp_path, ledger_epsilon=9.0, seed=1), "a")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"protect": "none", "epsilon": 0.0, "preset": "expert"},
            "protect = 'none' has nothing to keep",
        ),
        ({"protect": "local", "release": "argmax"}, "is kept by the clients themselves"),
        ({"noise": "seeded"}, "seeded noise is not private"),
        ({"ledger_epsilon": 1.0}, "ledger_epsilon: 1 has no room for a run of epsilon 2"),
        ({"ledger_epsilon": 1.0, "ledger": ""}, "ledger_epsilon: needs ledger"),
    ],
)
def test_what_no_server_can_keep_is_one_line(given, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        Config.read({**CENTRAL, "ledger": "somewhere", **given}, where="test")


def test_a_run_says_what_all_runs_together_have_spent_and_is_not_charged_when_it_resumes(tmp_path):
    from fedkd.engine import run_in_process
    from fedkd.report import write_report

    first, second = (config(tmp_path, ledger_epsilon=3.5, output=str(tmp_path / name)) for name in ("one", "two"))
    run_in_process(first, workers=1)
    run_in_process(first.model_copy(update={"resume": True}), workers=1)
    told = run_in_process(second, workers=1).summary["privacy"]
    assert len(verify(tmp_path / "ledger").reservations) == 2
    assert told["epsilon"] == pytest.approx(2.0, abs=1e-3)
    assert 2.5 < told["epsilon_of_all_runs"] < 3.5
    sentence = f"All runs that the ledger 'ledger' knows: epsilon {told['epsilon_of_all_runs']:g} of 3.5."
    assert sentence in (tmp_path / "two" / "privacy_report.md").read_text(encoding="utf-8")
    assert sentence.replace("'", "&#39;") in write_report(tmp_path / "two").read_text(encoding="utf-8")
    third = config(tmp_path, ledger_epsilon=3.5, output=str(tmp_path / "three"))
    asked = []
    with pytest.raises(PrivacyError, match="no room for this run"):
        run_in_process(third, workers=1, observe=lambda event, facts: asked.append(event))
    assert "asked" not in asked
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["privacy"] == told


def test_a_plan_says_what_is_left_and_that_a_run_would_be_refused(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from fedkd.commands.main import app

    monkeypatch.setenv("COLUMNS", "300")
    sets = {**CENTRAL, "ledger": str(tmp_path / "ledger"), "ledger_epsilon": 3.5}
    asked = ["plan", *(word for key, value in sets.items() for word in ("--set", f"{key}={str(value).lower()}"))]
    first = CliRunner().invoke(app, asked)
    assert first.exit_code == 0
    assert "ledger: epsilon 0 of 3.5 is spent, 3.5 left; this run wants 2: it fits" in first.output
    assert not (tmp_path / "ledger").exists()
    begin_run(config(tmp_path, ledger_epsilon=3.5), "a")
    second = CliRunner().invoke(app, asked)
    assert second.exit_code == 0 and "epsilon 2 of 3.5 is spent, 1.5 left; this run wants 2 (3 with" in second.output
    begin_run(config(tmp_path, ledger_epsilon=3.5), "b")
    third = CliRunner().invoke(app, asked)
    assert third.exit_code == 1 and "it would be refused" in third.output
    other = CliRunner().invoke(app, [*asked, "--set", "ledger_epsilon=9"])
    assert isinstance(other.exception, PrivacyError) and "is for epsilon 3.5" in str(other.exception)
