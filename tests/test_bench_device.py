"""What a device says of itself: numbers that are measured, and the one line where one cannot be had."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from front_stand_in import Front, serving

from fedkd import bench_device as bench
from fedkd.config import Config
from fedkd.errors import ConfigError
from fedkd.plan import plan_rounds
from fedkd.trial_round import Task

ROOT = Path(__file__).resolve().parent.parent
CONFIG = Config(learner="linear", rounds=2, clients=2)
TASK = Task(CONFIG.to_run_config(), (1, 8, 8), 10, 60, 40)


def test_a_trial_sends_the_bytes_that_the_plan_predicts():
    found = bench.try_learner(TASK, "linear", timeout=60)
    assert found.error == ""
    planned = plan_rounds(CONFIG, 60, 10)[1]
    assert (found.cost.up, found.cost.down) == (planned.up_frame, planned.down_frame)
    assert 0 < found.cost.later < found.cost.first  # what is public is made ready in the first round
    assert 30e6 < found.cost.memory < 400e6
    assert found.cost.fit > 1
    assert found.cost.predict > 1


def test_a_run_of_one_round_has_no_later_one():
    config = Config(preset="private")
    found = bench.try_learner(replace(TASK, run_config=config.to_run_config()), "linear(dimensions=5)", timeout=60)
    assert found.error == ""
    assert found.cost.later is None


@pytest.mark.parametrize(
    ("learner", "seconds", "said"),
    [
        ("linear", 0.0, "no time left"),
        ("linear", 0.05, "not done within"),
        ("onnx:/nowhere/model.onnx", 60.0, "cannot read /nowhere/model.onnx: No such file"),
        ("no_such_module_of_mine:make", 60.0, "no module named 'no_such_module_of_mine'"),
    ],
)
def test_a_trial_that_cannot_be_says_why_in_one_line(learner, seconds, said):
    found = bench.try_learner(TASK, learner, timeout=seconds)
    assert found.cost is None
    assert said in found.error
    assert "\n" not in found.error


def test_light_learners_come_first_and_those_that_are_not_installed_not_at_all(monkeypatch):
    assert bench.candidates(None)[:2] == ["linear", "logistic"]
    mix = Config(learner="cnn, forest(trees=5), linear(dimensions=9)").to_run_config()
    task = replace(TASK, run_config=mix)
    assert bench.candidates(task) == ["linear", "linear(dimensions=9)", "forest(trees=5)", "cnn"]
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else real(name))
    assert bench.candidates(task) == ["linear", "linear(dimensions=9)", "forest(trees=5)"]


def test_speed_is_operations_over_seconds(monkeypatch):
    ticks = iter(range(1000))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    assert bench.multiply(size=100, seconds=5) == pytest.approx(2e6 / 1e9)


def test_a_container_has_no_more_memory_than_it_may_have(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(bench, "MEMORY_FILES", (str(limit),))
    limit.write_text("max\n")
    free = bench.examine_device().free
    limit.write_text("50000000\n")
    assert bench.examine_device().free == bench.examine_device().memory == 50_000_000 < free


def test_a_learner_that_does_not_fit_is_marked(monkeypatch):
    device = bench.Device("toy", 1, 20_000_000, 10_000_000, 1.0)
    monkeypatch.setattr(bench, "examine_device", lambda: device)
    trials = {}
    for free in (10_000_000, 10**12):
        monkeypatch.setattr(bench, "examine_device", lambda free=free: replace(device, free=free))
        trials[free] = bench.bench(TASK, ["constant"], seconds=60).trials[0].fits
    assert trials == {10_000_000: False, 10**12: True}


def test_time_that_is_over_leaves_the_rest_out(monkeypatch):
    asked = []
    monkeypatch.setattr(
        bench, "try_learner", lambda task, learner, *, timeout: asked.append(timeout) or bench.Trial(learner, None)
    )
    bench.bench(TASK, ["linear", "logistic"], seconds=7)
    assert 7 >= asked[0] > asked[1]


def test_a_disk_that_cannot_be_written_to_is_named():
    with pytest.raises(ConfigError, match="cannot write to /proc"):
        bench.time_disk(Path("/proc"))
    assert bench.time_disk(ROOT / "not" / "there").folder == str(ROOT)


def test_a_server_is_asked_for_its_run_and_learns_nothing():
    front = Front(CONFIG, "127.0.0.1:1")
    with serving(front) as port:
        server, task = bench.visit(f"http://127.0.0.1:{port}/#code=123456", examples=9, insecure=True)
    assert server.latency > 0
    assert server.down > 0
    assert (task.shape, task.classes, task.rows, task.examples) == ((1, 8, 8), 10, 400, 9)
    assert Config.from_run_config(task.run_config) == CONFIG
    assert front.codes == ["123456"]
    assert not front.joined
    assert {path.rpartition("/")[0] for path in front.requests} == {"/fedkd", "/fedkd/transfer"}


def run(*words, cwd):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(cwd)}
    command = [sys.executable, "-m", "fedkd", "bench-device", *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_the_command_prints_a_table_or_the_same_as_json(tmp_path):
    words = ["--set", "transfer=split(size=50)", "--examples", "30"]
    words += ["--learner", "constant", "--learner", "onnx:no.onnx"]
    table = run(*words, cwd=tmp_path)
    assert table.returncode == 0, table.stderr
    assert "50 public inputs of 1x8x8, 10 classes, 30 examples" in table.stdout
    assert "onnx:no.onnx: learner 'onnx': cannot read no.onnx" in table.stdout
    told = json.loads(run(*words, "--json", cwd=tmp_path).stdout)
    assert [trial["learner"] for trial in told["trials"]] == ["constant", "onnx:no.onnx"]
    assert told["device"]["gflops"] > 0
    assert told["disk"]["worst"] >= told["disk"]["median"] > 0
    assert told["trials"][0]["cost"]["up"] == plan_rounds(Config(), 50, 10)[1].up_frame


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--learner", "lineal"], "Did you mean 'linear'"),
        (["--url", "https://127.0.0.1:1/", "--preset", "private"], "--url takes the server's run"),
        (["--url", "http://192.0.2.1:80/"], "is not encrypted"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words, said, tmp_path):
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
