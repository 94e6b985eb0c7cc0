"""The wheel, unpacked where no checkout is: what somebody has who installs fedkd and nothing else."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with all that the wheel holds, built by the backend itself, which needs no network."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def outside(site, tmp_path, *words):
    """Run Python in an empty folder, with the wheel before everything else."""
    environment = {**OUTSIDE, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(tmp_path)}
    return subprocess.run([sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)


def test_a_run_from_the_wheel_leaves_a_report(site, tmp_path):
    where = outside(site, tmp_path, "-c", "import fedkd; print(fedkd.__file__)")
    assert where.stdout.strip() == str(site / "fedkd" / "__init__.py")
    settings = ("rounds=1", "clients=2", "learner=linear", "student=linear", "pooled=false")
    done = outside(site, tmp_path, "-m", "fedkd", "run", "--name", "a", *(f"--set={word}" for word in settings))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "a" / "report.html").stat().st_size > 10_000


def test_the_wheel_brings_the_app_the_page_and_its_types(site, tmp_path):
    """``fedkd serve`` needs the Flower App and the built page for phones, a type checker the marker."""
    code = "from pathlib import Path; from fedkd.flower.appdir import *; print(app_table(app_directory(Path('.'))))"
    made = outside(site, tmp_path, "-c", code)
    assert made.returncode == 0 and "serverapp" in made.stdout, made.stderr
    names = {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()}
    assert {"fedkd/py.typed", "fedkd/digits.json"} <= names
    assert {f"fedkd/serving/page/{name}" for name in ("index.html", "app.js", "worker.js", "sw.js")} <= names
    assert not [name for name in names if name.startswith(("tests/", "simulations/")) or "__pycache__" in name]
