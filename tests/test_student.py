"""The student of a run in use: from Python, from the command line, and what cannot be loaded."""

import csv
import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

import fedkd
from fedkd.commands.main import app
from fedkd.errors import CheckpointError, ConfigError, DataError, FedkdError
from fedkd.federation import federation
from fedkd.rundir import RunDirectory

QUICK = {"rounds": 1, "clients": 3, "learner": "logistic", "student": "mlp", "local_epochs": 1, "distill_epochs": 5,
         "pooled": False, "evidence": "none", "expertise": "uniform"}  # fmt: skip


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "mine"
    return path, fedkd.simulate(**QUICK, output=str(path), workers=1)


@pytest.fixture(scope="module")
def test_set():
    return federation("digits", "split(size=400)", "dirichlet(alpha=0.3)", 3, 0).test()


def test_a_simulation_is_one_call_and_hands_over_all_that_it_found(ran, test_set):
    _, result = ran
    x, y = test_set
    accuracy = float((result.student.predict(x).argmax(axis=1) == y).mean())
    assert result.summary["scoreboard"]["student"] == pytest.approx(accuracy)
    assert result.reports[0].metrics["student"] == pytest.approx(accuracy)
    assert accuracy > 0.5


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(fedkd.simulate("ds_fl", **QUICK, workers=1).reports) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_setting_is_refused_before_anything_runs():
    with pytest.raises(ConfigError, match="round.*Did you mean 'rounds'"):
        fedkd.simulate(round=3)


def test_a_run_is_not_written_over_another_nor_beside_one_that_still_runs(ran, tmp_path):
    path, _ = ran
    before = {entry.name: entry.stat().st_mtime_ns for entry in path.iterdir()}
    with pytest.raises(FedkdError, match="there is a run in .* already; choose another, or set resume=True"):
        fedkd.simulate(**QUICK, output=str(path), workers=1)
    assert {entry.name: entry.stat().st_mtime_ns for entry in path.iterdir()} == before
    with pytest.raises(DataError, match="nope"):
        fedkd.simulate(**QUICK, data="npz:nope.npz", output=str(tmp_path / "c"), workers=1)
    assert not (tmp_path / "c").exists()
    with RunDirectory(tmp_path / "b").alone(), pytest.raises(FedkdError, match="another process is running 'b'"):
        fedkd.simulate(**QUICK, output=str(tmp_path / "b"), workers=1)


def test_a_loaded_student_says_what_the_one_that_was_trained_says(ran, test_set):
    path, result = ran
    student = fedkd.load(path)
    assert (student.predict(test_set[0]) == result.student.predict(test_set[0])).all()
    assert student.shape == (1, 8, 8)
    assert student.class_names == tuple("0123456789")
    assert student.predict(np.zeros((0, 1, 8, 8))).shape == (0, 10)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (np.zeros((2, 8, 8)), r"shape \(n, 1, 8, 8\), got float64 \(2, 8, 8\)"),
        (np.array([["a"]]), "must be numbers"),
        (np.float32(1), "must be numbers"),
        (np.full((1, 1, 8, 8), np.nan), "must be finite"),
    ],
)
def test_inputs_that_are_none_are_refused(ran, inputs, words):
    with pytest.raises(DataError, match=words):
        fedkd.load(ran[0]).predict(inputs)


def test_the_command_line_prints_classes_or_writes_soft_labels(ran, test_set, tmp_path):
    path, result = ran
    x = test_set[0][:5]
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", x=x)
    expected = result.student.predict(x)
    for name in ("x.npy", "x.npz"):
        done = CliRunner().invoke(app, ["predict", str(path), str(tmp_path / name)], catch_exceptions=False)
        rows = list(csv.DictReader(io.StringIO(done.stdout)))
        assert [int(row["class"]) for row in rows] == expected.argmax(axis=1).tolist()
        assert [float(row["probability"]) for row in rows] == pytest.approx(expected.max(axis=1).tolist(), abs=1e-4)
    target = tmp_path / "p.npy"
    done = CliRunner().invoke(app, ["predict", str(path), str(tmp_path / "x.npy"), "--out", str(target)])
    assert done.stdout == ""
    assert (np.load(target) == expected).all()


@pytest.mark.parametrize(
    ("content", "words"), [(b"nothing", "no .npy or .npz"), (None, "No such file"), ("y", "must hold the inputs as x")]
)
def test_a_file_that_holds_no_inputs_is_one_clear_line(ran, tmp_path, content, words):
    file = tmp_path / "in.npz"
    if content == "y":
        np.savez(file, y=np.zeros(3))
    elif content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=words):
        CliRunner().invoke(app, ["predict", str(ran[0]), str(file)], catch_exceptions=False)


def test_a_run_without_a_student_says_why(tmp_path):
    fedkd.simulate(**{**QUICK, "student": "none"}, output=str(tmp_path / "none"), workers=1)
    with pytest.raises(FedkdError, match="has no student"):
        fedkd.load(tmp_path / "none")
    fedkd.simulate(**{**QUICK, "student": "logistic"}, output=str(tmp_path / "refits"), workers=1)
    with pytest.raises(FedkdError, match="kept no student: 'logistic' has no state.*fedkd replay refits"):
        fedkd.load(tmp_path / "refits")
    (tmp_path / "none" / "summary.json").unlink()
    with pytest.raises(FedkdError, match="has not finished"):
        fedkd.load(tmp_path / "none")


def test_a_student_of_another_kind_than_the_settings_say_is_not_loaded(ran, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(ran[0], other)
    config = (other / "config.toml").read_text()
    (other / "config.toml").write_text(config.replace('student = "mlp"', 'student = "cnn"'))
    summary = json.loads((other / "summary.json").read_text())
    summary["config"]["student"] = "cnn"
    (other / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(CheckpointError, match=r"student.safetensors holds mlp.* says cnn"):
        fedkd.load(other)


def test_using_fedkd_from_python_loads_nothing_before_it_is_needed():
    code = "import sys, fedkd; print(sorted({'torch', 'flwr', 'numpy'} & set(sys.modules)), fedkd.__all__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("[] ")
