"""The command line as a user meets it: exit codes, one-line errors, plain output."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.main import get_command

from fedkd.commands.group import PANELS
from fedkd.commands.main import app

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--set", "clients=3", "--set", "learner=mlp, logistic", "--set", "student=mlp", "--set", "rounds=2",
         "--set", "distill_epochs=5", "--set", "local_epochs=2"]  # fmt: skip


def fedkd(*words, cwd, check=False, env=None):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", **(env or {})}
    return subprocess.run(
        [sys.executable, "-m", "fedkd", *words], cwd=cwd, capture_output=True, text=True, env=environment, check=check
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One small run that several tests look at."""
    folder = tmp_path_factory.mktemp("cli")
    done = fedkd("run", *SMALL, "--name", "small", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_a_run_leaves_everything_it_promises(finished):
    folder, _ = finished
    run = folder / "runs" / "small"
    for name in ("config.toml", "metrics.jsonl", "metrics.csv", "checkpoint.safetensors", "student.safetensors",
                 "summary.json", "report.html"):  # fmt: skip
        assert (run / name).stat().st_size > 0, name
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [1, 2]
    assert len((run / "metrics.csv").read_text().splitlines()) == 3
    assert rows[-1]["metrics"]["student"] > 0.3


def test_a_run_prints_plain_lines_and_an_honest_scoreboard(finished):
    _, text = finished
    assert "\x1b" not in text
    assert "privacy" in text
    assert "NONE" in text
    assert "student" in text
    assert "pooled-data reference" in text
    assert "FedAvg is impossible here (2 different architectures)" in text
    assert "report runs/small/report.html" in text


def test_a_student_can_be_loaded_without_fedkd(finished):
    from safetensors.numpy import load_file

    folder, _ = finished
    assert all(array.dtype.kind in "fi" for array in load_file(folder / "runs/small/student.safetensors").values())


def test_report_and_compare_work_on_a_finished_run(finished):
    folder, _ = finished
    assert fedkd("report", "small", cwd=folder).returncode == 0
    done = fedkd("compare", "small", "runs/small", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "small" in done.stdout
    assert (folder / "runs" / "compare.html").exists()
    assert fedkd("compare", "small", "--output", "elsewhere.html", cwd=folder).stdout.endswith("page elsewhere.html\n")
    assert (folder / "elsewhere.html").exists()


def test_resuming_a_finished_run_changes_nothing(finished):
    folder, _ = finished
    before = (folder / "runs/small/metrics.jsonl").read_text()
    done = fedkd("resume", "small", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "runs/small is already finished: 2 of 2 rounds\n"
        "for more, raise rounds in runs/small/config.toml and resume it again\n"
    )
    assert (folder / "runs/small/metrics.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["run", "--set", "ronds=3"], "unknown key 'ronds' (--set). Did you mean 'rounds'?"),
        (["run", "--set", "aggregate=medain"], "Did you mean 'median'?"),
        (["run", "--preset", "dsfl"], "unknown preset 'dsfl'. Did you mean 'ds_fl'?"),
        (["run", "--engine", "flowr"], "unknown engine 'flowr'. Did you mean 'flower'?"),
        (["run", "--preset", "DS-FL"], "unknown preset 'DS-FL'. Did you mean 'ds_fl'?"),
        (["run", "--name", "a", "--set", "output=b"], "--name a and output = 'b' both name the run"),
        (["config", "check", "--set", "attack=lma", "--set", "clients=2"], "0 of 2 clients lie"),
        (["run", "--name", "../x"], "--name must be a plain folder name"),
        (["run", "--config", "none.toml"], "cannot read configuration 'none.toml'"),
        (["run", "--set", "data=npz:none.npz"], "none.npz"),
        (["resume", "nothing"], "no run 'nothing'"),
        (["report", "nothing"], "no run 'nothing'"),
        (["compare", "nothing"], "no run 'nothing'"),
        (["config", "check", "--set", "quorum=2.0"], "quorum must be at most 1, got 2.0"),
        (["config", "check", "--set", "aggregate=trimmed_mean(trim=0.9)"], "'trim' must be in [0, 0.5), got 0.9"),
        (["run", "--name", "x", "--set", "transfer=split(size=5000)"], "size must be in [1, 1396]"),
        (["run", "--name", "x", "--set", "learner=site_mdel:make"], "no module named 'site_mdel' here"),
        (["run", "--name", "x", "--engine", "flower", "--set", "student=site_mdel:make"], "no module named"),
        (["parts", "aggregat"], "Did you mean 'aggregate'?"),
    ],
)
def test_a_mistake_is_one_clear_line_and_exit_code_2(words, sentence, tmp_path):
    done = fedkd(*words, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error ")
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
    assert not list(tmp_path.glob("runs/*")), "a start that failed must leave its name free"


def test_a_model_that_fails_in_the_first_round_says_where_and_leaves_its_name_free(tmp_path):
    (tmp_path / "site_model.py").write_text(
        "class Model:\n    def fit(self, x, y):\n        raise RuntimeError('no rank')\n    def predict(self, x): ...\n"
    )
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "notes.txt").write_text("mine")
    words = ["run", "--name", "mine", *SMALL, "--set", "student=none", "--set", "learner=site_model:Model"]
    done = fedkd(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "error round 1: 0 of 3 clients answered, 2 needed (quorum = 0.5). All 3 clients: RuntimeError: no rank "
        "(site_model.py:3). Traceback: runs/mine/clients.log\n"
    )
    assert "RuntimeError" not in done.stdout
    assert sorted(p.name for p in (tmp_path / "runs" / "mine").iterdir()) == ["clients.log", "notes.txt"]
    assert 'site_model.py", line 3, in fit' in (tmp_path / "runs/mine/clients.log").read_text()
    assert "exists already" not in fedkd(*words, cwd=tmp_path).stderr


def test_ctrl_c_while_the_program_is_still_being_imported_is_one_word(tmp_path):
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt")
    done = fedkd("--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_a_name_that_is_taken_is_not_overwritten(finished):
    folder, _ = finished
    done = fedkd("run", "--name", "small", cwd=folder)
    assert done.returncode == 2
    assert "run 'small' exists already and is finished: choose another name\n" in done.stderr


def test_config_show_prints_toml_with_origins(tmp_path):
    done = fedkd("config", "show", "--preset", "tally", "--set", "rounds=9", cwd=tmp_path, check=True)
    lines = [re.sub(" +", " ", line) for line in done.stdout.splitlines()]
    assert "rounds = 9 # --set" in lines
    assert 'aggregate = "vote" # preset tally' in lines


def test_config_check_accepts_what_is_right(tmp_path):
    said = fedkd("config", "check", "--preset", "tally", "--set", "rounds=9", cwd=tmp_path, check=True).stdout
    assert said == "valid: preset tally and 1 setting; the data were not looked at (fedkd plan does)\n"
    assert "valid: preset expert; the" in fedkd("config", "check", cwd=tmp_path, check=True).stdout
    assert fedkd("--version", cwd=tmp_path).stdout == fedkd("version", cwd=tmp_path).stdout


def test_a_warning_is_one_line_without_the_place_in_our_code(tmp_path):
    np.savez(tmp_path / "gap.npz", x=np.zeros((60, 4), np.float32), y=np.array([0, 1, 3] * 20))
    words = ["plan", "--set", "data=npz:gap.npz", "--set", "transfer=split(size=9)", "--set", "learner=mlp"]
    done = fedkd(*words, "--set", "student=none", cwd=tmp_path)
    assert done.stderr == "warning gap.npz: class 2 has no row; number the classes 0, 1, 2, ... or name them as text\n"


def test_parts_lists_every_registry(tmp_path):
    text = fedkd("parts", cwd=tmp_path, check=True).stdout
    assert "trimmed_mean(trim=0.2)" in text
    assert "dirichlet(" in text


def test_doctor_says_what_is_here(tmp_path):
    done = fedkd("doctor", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "torch" in done.stdout
    assert "flwr" in done.stdout


def journal(run):
    """What must be equal in two runs: everything but time."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in ("round", "metrics", "clients")} for row in rows]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_run_that_was_stopped_resumes_to_the_same_bits(finished, number, code, tmp_path):
    folder, _ = finished
    words = ["run", *SMALL, "--set", "rounds=4", "--name", "run"]
    assert fedkd(*words, cwd=tmp_path).returncode == 0
    (tmp_path / "runs" / "run").rename(tmp_path / "runs" / "whole")
    (tmp_path / "temporary").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "temporary")}
    process = subprocess.Popen(
        [sys.executable, "-m", "fedkd", *words], cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, bufsize=1,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:  # the line of round 2 says that two rounds are saved
        if line.strip().startswith("2 "):
            break
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == code
    if number != signal.SIGKILL:
        assert "continue with: fedkd resume runs/run" in errors
        assert not list((tmp_path / "temporary").iterdir())
    done = fedkd("resume", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert journal(tmp_path / "runs" / "run") == journal(tmp_path / "runs" / "whole")
    student = "student.safetensors"
    assert (tmp_path / "runs/run" / student).read_bytes() == (tmp_path / "runs/whole" / student).read_bytes()


def test_help_begins_with_run_and_every_command_has_a_heading(tmp_path):
    text = fedkd("--help", cwd=tmp_path, check=True).stdout
    titles = [text.index(f" {title} ") for title in PANELS]
    assert titles == sorted(titles) and text.index("Run and look") < text.index(" run ") < text.index(" plan ")
    named = [name for names in PANELS.values() for name in names]
    assert sorted(named) == sorted(set(named)), "twice under a heading"
    assert set(named) <= set(get_command(app).commands)


@pytest.mark.parametrize("words", [["runn"], ["config", "shw"]])
def test_the_nearest_command_is_named_once(words, tmp_path):
    done = fedkd(*words, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("Did you mean")) == (2, 1)
