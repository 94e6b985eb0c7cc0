"""The folder of the Flower App: where it lies, what it declares, and how a wheel makes one.

A checkout is such a folder. A wheel carries the few files beside the package in ``fedkd/bundle``, and the folder is put
together of them and of a copy of the package.
"""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedkd.errors import FedkdError, did_you_mean

PACKAGE = Path(__file__).resolve().parents[1]
BUNDLE = PACKAGE / "bundle"
CODE = ("*.py", "*.json")
"""What a Flower App bundle carries of the package."""


def app_directory(scratch: Path) -> Path:
    """Return the working directory or the checkout if it is a Flower App; else make one below ``scratch``."""
    for candidate in (Path.cwd(), PACKAGE.parent):
        if (candidate / "pyproject.toml").exists() and (candidate / "server" / "app.py").exists():
            return candidate
    if not (BUNDLE / "pyproject.toml").exists():
        raise FedkdError(f"no Flower App here, and none in {BUNDLE}: was fedkd installed from its wheel?")
    return assemble(BUNDLE, PACKAGE, scratch / "fedkd")


def assemble(bundle: Path, package: Path, target: Path) -> Path:
    """Make the folder of an app at ``target``: ``bundle`` is what lies beside the ``package``."""
    shutil.copytree(bundle, target)
    for pattern in CODE:
        for path in package.rglob(pattern):
            inside = path.relative_to(package)
            if inside.parts[0] != BUNDLE.name and "__pycache__" not in inside.parts:
                copy = target / package.name / inside
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
    return target


def check_keys(app_dir: Path, run_config: Mapping[str, Any]) -> None:
    """Raise if the app does not declare a key: Flower would refuse it too, but not say which."""
    known = set(_flat(app_table(app_dir).get("config", {})))
    for key in run_config:
        if key not in known:
            raise FedkdError(f"the app in {app_dir} has no run config key {key!r}.{did_you_mean(key, known)}")


def component_packages(app_dir: Path) -> set[str]:
    """Return the top-level packages of ServerApp and ClientApp, such as ``{"server", "clients"}``."""
    return {str(reference).partition(":")[0].split(".")[0] for reference in app_table(app_dir)["components"].values()}


def app_table(app_dir: Path) -> Any:
    """Return ``[tool.flwr.app]`` of the app in ``app_dir``."""
    try:
        table = tomllib.loads((app_dir / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["flwr"]["app"]
        _ = table["components"].values()
        return table
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError):
        raise FedkdError(f"no Flower App in {app_dir}: pyproject.toml with [tool.flwr.app] expected") from None


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in table.items():
        yield from _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else (prefix + key,)
