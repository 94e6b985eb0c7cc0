"""What a run leaves, and who ran it."""

import subprocess
import sys
from pathlib import Path

import pytest

from fedkd.config import Config
from fedkd.errors import FedkdError
from fedkd.files import write_atomic
from fedkd.flower.strategy import _flwr_run
from fedkd.rundir import DEPLOYMENT, REPLAY, RunDirectory, find


def test_what_began_a_run_is_noted_once_and_stays(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.note("inprocess", "fedkd run --set rounds=12")
    directory.note("inprocess", "fedkd resume run")
    assert directory.began() == {"engine": "inprocess", "command": "fedkd run --set rounds=12"}


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"engine": 3'])
def test_a_run_that_nobody_noted_is_taken_for_a_deployment_because_its_clients_may_not_be_here(tmp_path, text):
    directory = RunDirectory(tmp_path)
    if text is not None:
        directory.origin.write_text(text)
    assert directory.began()["engine"] == DEPLOYMENT


def test_the_command_of_a_deployment_names_what_differs_from_the_preset():
    command = _flwr_run(Config(preset="ds_fl", clients=3, quorum=0.9, resume=True, output="/srv/run"))
    assert command == """flwr run . SUPERLINK --stream -c 'preset="ds_fl" clients=3 quorum=0.9 output="/srv/run"'"""
    again = Config.from_run_config({"preset": "ds_fl", "clients": 3, "quorum": 0.9, "output": "/srv/run"})
    assert again == Config(preset="ds_fl", clients=3, quorum=0.9, output="/srv/run")


def test_a_deployment_is_not_resumed_with_invented_clients(tmp_path):
    folder = tmp_path / "runs" / "field"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text("clients = 2\n")
    RunDirectory(folder).note(DEPLOYMENT, "flwr run . SUPERLINK --stream -c 'clients=2'")
    done = subprocess.run(
        [sys.executable, "-m", "fedkd", "resume", "field"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "run of a deployment" in done.stderr
    assert "flwr run . SUPERLINK --stream -c 'clients=2' -c 'resume=true'" in done.stderr.replace("\n", " ")


def test_a_replay_is_not_resumed_because_nobody_is_there_to_ask(tmp_path):
    folder = tmp_path / "runs" / "again"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text("clients = 2\n")
    RunDirectory(folder).note(REPLAY, "fedkd replay first --without 3")
    done = subprocess.run(
        [sys.executable, "-m", "fedkd", "resume", "again"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "fedkd replay first --without 3" in done.stderr


def test_a_run_that_begins_anew_leaves_nothing_of_the_one_before(tmp_path):
    directory = RunDirectory(tmp_path)
    for folder in (directory.ballots, directory.clients):
        folder.mkdir()
        (folder / "old").write_text("x")
    directory.metrics.write_text("x")
    directory.begin(Config())
    assert not directory.ballots.exists() and not directory.metrics.exists()
    assert list(directory.clients.iterdir()) == []


def test_a_run_that_is_not_there_is_told_with_the_runs_and_sweeps_that_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FedkdError, match="No runs here yet; try: fedkd run"):
        find(Path("own"))
    write_atomic(Path("runs/grid/mean-seed-0/config.toml"), b"")
    with pytest.raises(FedkdError, match=r"no run 'own'\. Sweeps here, with runs in them: grid\.$"):
        find(Path("own"))
    for i in range(13):
        write_atomic(Path(f"runs/run-{i:02d}/config.toml"), b"")
    with pytest.raises(FedkdError, match=r"Runs here: run-00, .*, run-07 and 5 more\. Sweeps here, with"):
        find(Path("own"))


def test_a_run_of_a_sweep_is_found_by_its_own_name_if_that_names_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("one/a-seed-0", "one/b-seed-0", "two/b-seed-0"):
        write_atomic(Path(f"runs/{place}/config.toml"), b"")
    assert find(Path("a-seed-0")).path == Path("runs/one/a-seed-0")
    assert find(Path("two/b-seed-0")).path == Path("runs/two/b-seed-0")
    with pytest.raises(FedkdError, match="several sweeps have a run 'b-seed-0': runs/one/b-seed-0, runs/two/b-seed-0;"):
        find(Path("b-seed-0"))
