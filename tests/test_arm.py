"""A Raspberry Pi's node under emulation: it installs, joins, answers, and says what any other machine would say."""

import contextlib
import re
import subprocess
import sys
import tomllib

import arm_machine
import numpy as np
import pytest
from arm_machine import ROOT
from flower_processes import superlink
from front_stand_in import Front, serving

from fedkd.config import Config
from fedkd.engine import run_in_process
from fedkd.flower.launch import end
from fedkd.learner import Training, make_learner
from fedkd.recording import load_round, path_of

CONFIG = Config(
    clients=2, rounds=2, learner="linear", student="linear", release="float32", broadcast="float32", pooled=False,
    quorum=1.0, deadline=240.0,
)  # fmt: skip
MODEL = ROOT / "tests" / "vectors" / "bands.onnx"


@pytest.fixture(scope="module")
def arm():
    try:
        return arm_machine.machine()
    except arm_machine.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def installed(arm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fedkd")
    arm_machine.install_fedkd(folder)
    return folder


def test_what_a_node_needs_is_a_part_of_what_fedkd_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "requirements-node.txt").read_text().splitlines()
    assert {line for line in lines if not line.startswith("#")} <= set(project["dependencies"])


@contextlib.contextmanager
def started(process):
    try:
        yield process
    finally:
        end(process)


@pytest.mark.arm
@pytest.mark.slow
def test_an_emulated_pi_joins_a_superlink_and_says_what_this_machine_says(arm, installed, tmp_path):
    link, pi, here = (tmp_path / name for name in ("link", "pi", "here"))
    for folder in (link, pi, here):
        folder.mkdir()
    whole = CONFIG.model_copy(update={"output": str(tmp_path / "run")})
    with superlink(link, app_dir=ROOT) as center, serving(Front(CONFIG, center.address)) as port:
        words = ["-m", "fedkd", "join", f"http://127.0.0.1:{port}/", "--insecure", "--once", "--yes"]
        with (
            (pi / "log").open("wb") as log,
            started(
                arm.python(
                    *words, "--demo", "0", folder=pi, packages=(installed, arm.node), stdout=log, stderr=log
                )
            ) as emulated,
            started(
                subprocess.Popen(
                    [sys.executable, *words, "--demo", "1"],
                    cwd=ROOT, env={"HOME": str(here), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                )
            ) as native,
        ):  # fmt: skip
            lines = []
            ended = center.link.follow(center.link.submit(ROOT, whole.to_run_config()), lines.append)
            assert ended == 0, "\n".join(lines) + (pi / "log").read_text()
            assert [emulated.wait(60), native.wait(60)] == [0, 0]
    told = (pi / "log").read_text()
    assert len(re.findall(r"round \d  answered", told)) == 2, told
    run_in_process(CONFIG.model_copy(update={"output": str(tmp_path / "same")}), workers=1)
    for round_ in (1, 2):
        ours, theirs = (load_round(path_of(tmp_path / name / "ballots", round_)) for name in ("same", "run"))
        assert set(ours.releases) == set(theirs.releases) == {0, 1}
        for key, release in ours.releases.items():
            assert np.abs(release.p - theirs.releases[key].p).max() < 1e-4
            assert np.abs(np.log(release.w) - np.log(theirs.releases[key].w)).max() < 1e-3


@pytest.mark.arm
def test_an_onnx_model_says_the_same_on_an_emulated_pi(arm, installed, tmp_path):
    code = (
        "import platform, numpy as np\nfrom fedkd.learner import Training, make_learner\n"
        f"m = make_learner('onnx:{MODEL}', shape=(1, 8, 8), classes=3, training=Training(), seed=0)\n"
        "x = np.linspace(0, 1, 640, dtype=np.float32).reshape(10, 1, 8, 8) ** 2\n"
        "m.fit(x, np.arange(10) % 3, rng=np.random.default_rng(0))\n"
        "np.save('said.npy', m.predict(x)); print(platform.machine())\n"
    )
    process = arm.python(
        "-c", code, folder=tmp_path, packages=(installed, arm.node, arm.onnx),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with started(process):
        out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert out.strip() == "aarch64"
    model = make_learner(f"onnx:{MODEL}", shape=(1, 8, 8), classes=3, training=Training(), seed=0)
    x = np.linspace(0, 1, 640, dtype=np.float32).reshape(10, 1, 8, 8) ** 2
    model.fit(x, np.arange(10) % 3, rng=np.random.default_rng(0))
    assert np.abs(np.load(tmp_path / "said.npy") - model.predict(x)).max() < 1e-5
