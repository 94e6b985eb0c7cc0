"""Flower's own engines, driven by fedkd.flower.launch. A tiny app stands in for ours: only the launcher is tested."""

import os
import signal
import subprocess
import sys
import tomllib

import flower_processes
import pytest

from fedkd.errors import ExtraError, FedkdError
from fedkd.flower import launch
from fedkd.flower.launch import run_with_flower

PYPROJECT = """
[project]
name = "tinyapp"
version = "0.1.0"
description = "A Flower App for tests"
license = { file = "LICENSE" }
requires-python = ">=3.11"
dependencies = ["flwr>=1.41,<1.42"]
[tool.flwr.app]
publisher = "tests"
fab-format-version = 1
flwr-version-target = "1.41.0"
fab-include = ["server/**/*.py", "clients/**/*.py", "LICENSE"]
[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "clients.app:app"
[tool.flwr.app.config]
nodes = 1
rate = 0.5
word = ""
late = false
nested.key = 1
"""
CLIENT = """
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.query("hello")
def hello(message, context):
    about = {"file": __file__, "word": context.run_config["word"], **context.node_config}
    return Message(RecordDict({"about": ConfigRecord(about)}), reply_to=message)
"""
SERVER = """
import time
from flwr.app import Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    print("RUN CONFIG", sorted(context.run_config.items()))
    while len(nodes := list(grid.get_node_ids())) < context.run_config["nodes"]:
        time.sleep(0.2)
    if context.run_config["word"] == "hang":
        print("HANGING")
        time.sleep(1000)
    for reply in grid.send_and_receive([Message(RecordDict(), node, "query.hello") for node in nodes]):
        print("REPLY", sorted(reply.content["about"].items()))
    if context.run_config["word"] == "fail":
        raise ValueError("told to fail")
"""


@pytest.fixture
def app_dir(tmp_path):
    folder = tmp_path / "tinyapp"
    files = {
        "pyproject.toml": PYPROJECT,
        "LICENSE": "for tests",
        "server/__init__.py": "",  # without it, a package named server anywhere else on the path would win
        "server/app.py": SERVER,
        "clients/__init__.py": "",
        "clients/app.py": CLIENT,
    }
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "neutral"
    path.mkdir()
    return path


def test_a_run_config_survives_the_way_through_toml():
    values = {
        "aggregate": "era(temperature=0.1)",
        "data": 'npz("C:\\data\\a b.npz")',
        "note": "tab\t, quote ', unicode é, delete \x7f, two\nlines",
        "learning-rate": 1e-05,
        "deadline": 600.0,
        "rounds": 3,
        "late": True,
        "resume": False,
        "output": "",
    }
    read = tomllib.loads(launch.to_toml(values))
    assert read == values
    assert [type(value) for value in read.values()] == [type(value) for value in values.values()]


def test_an_unknown_key_is_named_with_the_nearest_match_before_anything_starts(app_dir):
    launch.check_keys(app_dir, {"rate": 1.0, "nested.key": 2})
    with pytest.raises(FedkdError, match=r"no run config key 'rte'\. Did you mean 'rate'\?"):
        run_with_flower(app_dir, {"rte": 1.0}, nodes=2, echo=print)


def test_a_folder_without_an_app_is_refused(tmp_path):
    with pytest.raises(FedkdError, match="no Flower App in"):
        run_with_flower(tmp_path, {}, nodes=2, echo=print)


def test_another_checkout_is_no_second_source_of_the_app(tmp_path, app_dir, monkeypatch):
    other = tmp_path / "other"
    (other / "clients").mkdir(parents=True)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(app_dir), "/elsewhere", str(other), ""]))
    environment = launch.neutral_environment(tmp_path, without=app_dir)
    assert environment["PYTHONPATH"] == "/elsewhere"
    assert environment["FLWR_HOME"].startswith(str(tmp_path))
    assert environment["FLWR_TELEMETRY_ENABLED"] == environment["RAY_USAGE_STATS_ENABLED"] == "0"


def test_a_missing_ray_is_an_install_line_and_not_a_traceback(app_dir, monkeypatch):
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExtraError, match="pip install"):
        run_with_flower(app_dir, {}, nodes=2, echo=print)


def test_a_superlink_that_cannot_start_says_why(folder):
    environment = launch.neutral_environment(folder)
    with (
        pytest.raises(FedkdError, match=r"(?s)flower-superlink ended with exit code \d.*--no-such-option"),
        launch.superlink(folder, environment, arguments=["--no-such-option"]),
    ):
        pass


def test_processes_are_found_by_the_home_they_were_given_whoever_their_parent_is(folder):
    environment = launch.neutral_environment(folder)
    orphan = (
        "import subprocess as s; n = s.DEVNULL\n"
        "print(s.Popen(['sleep', '1000'], stdout=n, stderr=n, start_new_session=True).pid)"
    )
    with subprocess.Popen(["sleep", "1000"]) as bystander:
        done = subprocess.run(
            [sys.executable, "-c", orphan], env=environment, capture_output=True, text=True, check=True
        )
        mark = f"FLWR_HOME={environment['FLWR_HOME']}".encode()
        assert launch._marked(mark) == [int(done.stdout)]
        launch.end_all(environment)
        assert launch._marked(mark) == []
        assert bystander.poll() is None
        bystander.kill()


@pytest.mark.slow
def test_a_simulation_runs_the_bundled_code_with_the_given_settings_and_leaves_nothing_behind(app_dir, capfd):
    lines = []
    code = run_with_flower(
        app_dir, {"nodes": 2, "rate": 1e-05, "word": 'a "b"', "late": True}, nodes=2, echo=lines.append
    )
    log = "\n".join(lines)
    assert code == 0, log
    assert "('late', True), ('nested.key', 1), ('nodes', 2), ('rate', 1e-05), ('word', 'a \"b\"')" in log
    replies = sorted(line[line.index("REPLY") :] for line in lines if "REPLY" in line)
    assert len(replies) == 2
    for k, reply in enumerate(replies):  # they differ in the partition only
        assert "/flwr/apps/tests.tinyapp" in reply
        assert str(app_dir) not in reply
        assert f"('partition-id', {k})" in reply
    assert capfd.readouterr().out == ""
    home = next(line for line in lines if "Successfully installed" in line).split(" to ")[1].split("/flwr/")[0]
    assert launch._marked(f"FLWR_HOME={home}/flwr".encode()) == []
    assert not os.path.exists(home)


@pytest.mark.slow
def test_a_server_app_that_fails_is_a_failed_run(app_dir):
    lines = []
    assert run_with_flower(app_dir, {"word": "fail"}, nodes=1, echo=lines.append) == 1
    assert any("told to fail" in line for line in lines)
    assert "finished:failed" in lines[-1]


@pytest.mark.slow
def test_ctrl_c_stops_the_run_and_everything_under_it(app_dir):
    program = (
        "import sys; from pathlib import Path; from fedkd.flower.launch import run_with_flower\n"
        "run_with_flower(Path(sys.argv[1]), {'word': 'hang'}, nodes=1, echo=lambda line: print(line, flush=True))"
    )
    path = os.pathsep.join(entry for entry in sys.path if entry)
    with subprocess.Popen(
        [sys.executable, "-c", program, str(app_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        start_new_session=True,
    ) as main:
        seen = []
        for line in main.stdout:
            seen.append(line)
            if "HANGING" in line:
                main.send_signal(signal.SIGINT)
    assert main.returncode == -signal.SIGINT
    home = next(line for line in seen if "Successfully installed" in line).split(" to ")[1].split("/flwr/")[0]
    assert launch._marked(f"FLWR_HOME={home}/flwr".encode()) == []
    assert not os.path.exists(home)


@pytest.mark.slow
def test_a_deployment_reaches_each_supernode_by_its_partition(app_dir, folder):
    lines = []
    with flower_processes.deployment(folder, nodes=2, app_dir=app_dir) as center:
        run = center.link.submit(app_dir, {"nodes": 2, "word": "hi"})
        assert center.link.follow(run, lines.append) == 0, "\n".join(lines)
    replies = [line for line in lines if "REPLY" in line]
    assert len(replies) == 2
    assert all("('num-partitions', 2)" in reply and "('word', 'hi')" in reply for reply in replies)
    assert {k for k in (0, 1) for reply in replies if f"('partition-id', {k})" in reply} == {0, 1}
    assert launch._marked(f"FLWR_HOME={folder}/flwr".encode()) == []
