"""The folder of the Flower App: found in a checkout, put together where only the wheel is installed."""

import shutil
import tomllib
from pathlib import Path

import pytest

from fedkd.errors import FedkdError
from fedkd.flower import appdir

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def installed(tmp_path):
    """The package as a wheel installs it: what the build puts beside it lies in it."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert table["packages"] == ["fedkd"]
    package = tmp_path / "site-packages" / "fedkd"
    shutil.copytree(ROOT / "fedkd", package, ignore=shutil.ignore_patterns("__pycache__"))
    for source, target in table["force-include"].items():
        path = package.parent / target
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / source, path)
    return package


def test_a_wheel_makes_the_same_app_as_a_checkout(installed, tmp_path, monkeypatch):
    monkeypatch.setattr(appdir, "PACKAGE", installed)
    monkeypatch.setattr(appdir, "BUNDLE", installed / "bundle")
    monkeypatch.chdir(tmp_path)
    made = appdir.app_directory(tmp_path / "scratch")
    assert made == tmp_path / "scratch" / "fedkd"
    assert appdir.app_table(made) == appdir.app_table(ROOT)
    for pattern in appdir.app_table(made)["fab-include"]:
        ours = {p.relative_to(ROOT) for p in ROOT.glob(pattern) if "__pycache__" not in p.parts}
        theirs = {p.relative_to(made) for p in made.glob(pattern)}
        assert theirs == ours != set(), pattern
        assert all((made / path).read_bytes() == (ROOT / path).read_bytes() for path in ours)
    assert not (made / "fedkd" / "bundle").exists()


def test_a_checkout_is_the_app_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert appdir.app_directory(tmp_path) == ROOT
    assert list(tmp_path.iterdir()) == []


def test_an_app_of_ones_own_in_the_working_directory_comes_first(tmp_path, monkeypatch):
    own = tmp_path / "own"
    (own / "server").mkdir(parents=True)
    (own / "server" / "app.py").write_text("")
    (own / "pyproject.toml").write_text("")
    monkeypatch.chdir(own)
    assert appdir.app_directory(tmp_path) == own


def test_a_package_without_the_rest_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(appdir, "PACKAGE", tmp_path / "somewhere" / "fedkd")
    monkeypatch.setattr(appdir, "BUNDLE", tmp_path / "somewhere" / "fedkd" / "bundle")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FedkdError, match="was fedkd installed from its wheel"):
        appdir.app_directory(tmp_path)
