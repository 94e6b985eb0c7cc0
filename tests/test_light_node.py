"""A node on a small machine: what it needs installed, its systemd unit, and the memory that it may have."""

import configparser
import getpass
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from front_stand_in import Front, serving

from fedkd.config import Config
from fedkd.errors import ConfigError
from fedkd.fleet.home import Home
from fedkd.fleet.limit import WORK, cap_memory
from fedkd.fleet.unit import unit

ROOT = Path(__file__).resolve().parent.parent
CONFIG = Config(clients=2, rounds=1, learner="linear", student="none", expertise="uniform", evidence="none")


def read(text):
    found = configparser.ConfigParser(strict=True, interpolation=None)
    found.optionxform = str
    found.read_string(text)
    return found


def made(home, **options):
    given = {"python": Path(sys.executable), "user": getpass.getuser(), "remembers": home / "ledgers", **options}
    return unit(home, **given)


def test_a_unit_starts_the_node_and_lets_it_write_to_its_own_folders_only(tmp_path):
    service = read(made(tmp_path, python=Path("/opt/fedkd/bin/python"), user="pi"))["Service"]
    assert service["ExecStart"] == f'"/opt/fedkd/bin/python" -P -m fedkd.fleet "{tmp_path}"'
    assert service["User"] == "pi"
    assert service["Environment"] == f'"FEDKD_HOME={tmp_path}/ledgers"'
    assert (service["ProtectSystem"], service["ProtectHome"]) == ("strict", "read-only")
    assert service["ReadWritePaths"] == f'"-{tmp_path}" "-{tmp_path}/ledgers"'
    assert service["Restart"] == "on-failure"
    assert service["RestartPreventExitStatus"] == "2"  # bad input is bad the next time, too


def test_a_limit_of_the_node_is_reached_before_that_of_its_unit(tmp_path):
    assert read(made(tmp_path, memory=200 * 2**20))["Service"]["MemoryMax"] == "250M"
    assert read(made(tmp_path))["Service"]["MemoryMax"] == "75%"


def test_letters_that_mean_something_to_systemd_mean_themselves(tmp_path):
    home = tmp_path / "5% of $HOME"
    text = made(home)
    assert f'"{tmp_path}/5%% of $$HOME"' in read(text)["Service"]["ExecStart"]
    assert f'"-{tmp_path}/5%% of $HOME"' in read(text)["Service"]["ReadWritePaths"]


@pytest.mark.parametrize("path", ["relative", '/a"b', "/a'b", "/a\\b", "/a\nUser=root"])
def test_a_path_that_could_say_something_else_is_refused(path):
    with pytest.raises(ConfigError, match="cannot name"):
        made(Path(path))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze, to check a unit with")
def test_systemd_understands_every_line_of_the_unit(tmp_path):
    home = tmp_path / "5% of $HOME"
    home.mkdir()
    for change, said in ((("", ""), ""), (("ProtectSystem=strict", "ProtectSystem=strikt"), "strikt")):
        (tmp_path / "fedkd-node.service").write_text(made(home, memory=10**8).replace(*change))
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", tmp_path / "fedkd-node.service"],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        ours = [line for line in done.stderr.splitlines() if "fedkd-node.service" in line]
        assert (said in ours[0]) if said else not ours, done.stderr


def join(folder, port, *more, code="", share=("--demo", "0")):
    url = f"http://127.0.0.1:{port}/" + (f"#code={code}" if code else "")
    words = [sys.executable, "-m", "fedkd", "join", url, "--insecure", "--yes", *share]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*words, "--home", str(folder / "node"), *more],
        env=environment, cwd=folder, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_join_prints_the_unit_and_nothing_else_and_remembers_the_limits(tmp_path):
    with serving(Front(CONFIG, "127.0.0.1:1")) as port:
        done = join(tmp_path, port, "--systemd", "--max-memory", "300", "--bandwidth", "50")
    assert done.returncode == 0, done.stderr
    service = read(done.stdout)["Service"]
    assert service["MemoryMax"] == "358M"
    assert service["User"] == getpass.getuser()
    assert (tmp_path / ".fedkd").is_dir()  # the unit may write there, but not make it
    assert "They stay here" in done.stderr
    settings = Home(tmp_path / "node").settings()
    assert (settings.memory, settings.bandwidth) == (300_000_000, 50_000)
    writes = f'"-{tmp_path / "node"}" "-{tmp_path / ".fedkd"}"'  # all that a node writes: its folder and its ledgers
    assert service["ReadWritePaths"] == writes
    assert Path(settings.node_config["state-dir"]).is_relative_to(tmp_path / "node")
    with Home(tmp_path / "node").locked():  # the node is running, and its server is not
        again = join(tmp_path, port, "--systemd", share=())
    assert (again.returncode, again.stdout) == (0, done.stdout)


BANDS = ROOT / "tests" / "vectors" / "bands.onnx"


@pytest.mark.parametrize(("learner", "kept"), [
    ("onnx:bands.onnx", "onnx(path='FOLDER/bands.onnx')"),
    ("onnx(path='bands.onnx', output='hidden')", "onnx(path='FOLDER/bands.onnx', output='hidden')"),
    ("linear(dimensions=9)", "linear(dimensions=9)"),
])  # fmt: skip
def test_a_model_file_is_found_again_from_any_folder(learner, kept, tmp_path):
    shutil.copy(BANDS, tmp_path)
    with serving(Front(CONFIG, "127.0.0.1:1")) as port:
        done = join(tmp_path, port, "--systemd", "--learner", learner)
    assert done.returncode == 0, done.stderr
    assert Home(tmp_path / "node").settings().node_config["learner"] == kept.replace("FOLDER", str(tmp_path))


@pytest.mark.parametrize(("learner", "said"), [
    ("onnx:nowhere.onnx", "cannot read FOLDER/nowhere.onnx: No such file"),
    (f"onnx(path={str(BANDS)!r}, head='none')", "has 3 scores an input, the transfer set 10 classes"),
    ("no_such_module_of_mine:make", "no module named 'no_such_module_of_mine'"),
])  # fmt: skip
def test_a_model_that_cannot_be_made_is_found_out_before_a_code_is_used(learner, said, tmp_path):
    front = Front(CONFIG, "127.0.0.1:1")
    with serving(front) as port:
        done = join(tmp_path, port, "--learner", learner, code="123456")
    assert done.returncode == 2
    assert said.replace("FOLDER", str(tmp_path)) in done.stderr
    assert front.codes == ["123456"]


BARE = """
import sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {left_out}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Nothing())
"""
LEFT_OUT = {"flwr", "grpc", "google", "jinja2", "dp_accounting", "scipy", "sklearn", "torch", "onnxruntime", "httpx"}


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """An installation by requirements-node.txt: all else is hidden, from child processes too."""
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "sitecustomize.py").write_text(BARE.format(left_out=LEFT_OUT))
    monkeypatch.setattr(sys.modules[__name__], "ROOT", f"{tmp_path / 'bare'}{os.pathsep}{ROOT}")


def fedkd(folder, *words):
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "fedkd", *words],
        env=environment, cwd=folder, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_a_node_needs_no_more_than_its_requirements(bare, tmp_path):
    with serving(Front(CONFIG, "127.0.0.1:1")) as port:
        done = join(tmp_path, port, "--systemd")
    assert done.returncode == 0, done.stderr
    measured = fedkd(tmp_path, "bench-device", "--set", "transfer=split(size=50)", "--learner", "linear", "--json")
    assert json.loads(measured.stdout)["trials"][0]["cost"]["up"] > 1000, measured.stderr


@pytest.mark.parametrize(("words", "said"), [
    (["run"], "this command needs jinja2, which an installation for nodes leaves out"),
    (["plan"], "this command needs flwr, which an installation for nodes leaves out"),
])  # fmt: skip
def test_what_a_node_has_no_packages_for_is_said_in_one_line(bare, words, said, tmp_path):
    done = fedkd(tmp_path, *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_protection_that_cannot_be_accounted_for_is_found_out_on_joining(bare, tmp_path):
    private = Config(clients=2, rounds=1, learner="linear", student="none", expertise="uniform", evidence="none",
                     protect="dp_sgd(rate=0.5, examples=50)", epsilon=3.0, feedback="none")  # fmt: skip
    with serving(Front(private, "127.0.0.1:1")) as port:
        done = join(tmp_path, port)
    assert done.returncode == 2
    assert "is computed with dp_accounting, which is not installed" in done.stderr


def test_too_little_memory_to_start_is_said_at_once(tmp_path):
    with serving(Front(CONFIG, "127.0.0.1:1")) as port:
        done = join(tmp_path, port, "--max-memory", "40")
    assert done.returncode == 2
    assert "error --max-memory must be at least" in done.stderr
    with pytest.raises(ConfigError, match="must be at least"):
        cap_memory(WORK)


def test_a_round_that_needs_more_memory_is_refused_and_the_next_one_answered(tmp_path):
    """In a process of its own, since a limit cannot be taken back."""
    code = """
import numpy as np
from fedkd.codec import encode_query
from fedkd.config import Config
from fedkd.dataset import fingerprint
from fedkd.fleet.limit import WORK, cap_memory, held
from fedkd.records import Query, TransferSet
from fedkd.site import Common, respond

config = Config(learner="linear", student="none", expertise="uniform", evidence="none", evaluate=False)
mine = {"data": "npz:mine.npz", "state-dir": "state", "partition-id": 0}
x = np.random.default_rng(0).random((8000, 1, 28, 28), np.float32)
np.savez("mine.npz", x=x[:20], y=np.arange(20) % 10)
cap_memory(held() + WORK + 2**20)
for rows in (8000, 50):
    common = Common(TransferSet(x[:rows], fingerprint(x[:rows])), 10)
    frame = encode_query(Query(1, np.arange(rows), 10, common.transfer.fingerprint), rows)
    said = respond(frame, 0, run_config=config.to_run_config(), node_config=mine, run_id=rows, node_id=1, common=common)
    print(type(said).__name__, getattr(said, "error", ""))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == [
        "Refusal MemoryError: this device has not enough memory for it", "Answer ",
    ], done.stderr  # fmt: skip
    assert "raise --max-memory" in done.stderr
