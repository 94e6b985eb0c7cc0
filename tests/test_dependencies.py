"""An audit without a network: what is imported is declared, what is declared is pinned, and all may be passed on."""

import ast
import importlib.metadata as metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PERMISSIVE = re.compile(r"\b(Apache|BSD|0BSD|MIT|ISC|PSF|Python Software Foundation|Zlib|Public Domain|CC0)\b", re.I)
FORBIDDEN = re.compile(r"\b(A?GPL|LGPL|SSPL|BUSL|Commons Clause|Affero|Non-?Commercial)", re.I)
EXCEPTIONS = {
    "certifi": "MPL 2.0: a list of certificates, used as it is",
    "hypothesis": "MPL 2.0: only tests import it",
    "pathspec": "MPL 2.0: comes with Flower and mypy, used as it is",
    "prv-accountant": "MIT in its repository, nothing in its metadata; only tests import it",
    "cuda-toolkit": "names other packages and holds nothing",
}


def declared(*without: str, extras: bool = True) -> list[Requirement]:
    """Return what the project file asks for, ``without`` some extras, and without the project itself."""
    added = {name: words for name, words in PROJECT["optional-dependencies"].items() if extras and name not in without}
    words = PROJECT["dependencies"] + sum(added.values(), [])
    return [found for word in words if (found := Requirement(word)).name != "fedkd"]


def closure(wanted: list[Requirement]) -> dict[str, metadata.Distribution]:
    """Return all that is installed of ``wanted`` and of what these want."""
    found: dict[str, metadata.Distribution] = {}
    seen, todo = set(), list(wanted)
    while todo:
        one = todo.pop()
        key = (canonicalize_name(one.name), frozenset(one.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            found[key[0]] = metadata.distribution(one.name)
        except metadata.PackageNotFoundError:
            continue  # of an extra that is not installed
        for word in found[key[0]].requires or []:
            needed = Requirement(word)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in (*one.extras, "")):
                todo.append(needed)
    return found


def imports(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield file and top-level package of each import of somebody else's code."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for name in {name.partition(".")[0] for name in names}:
                if name not in sys.stdlib_module_names and name not in ("fedkd", "server", "clients", "simulations"):
                    yield path, name


@pytest.mark.parametrize("folder", ["fedkd", "server", "clients", "simulations"])
def test_what_is_imported_is_declared(folder):
    """A package that is only there because another one wants it today may be gone tomorrow."""
    names = {canonicalize_name(one.name) for one in declared("dev")}
    where = metadata.packages_distributions()
    for path, package in imports(ROOT / folder):
        owners = {canonicalize_name(name) for name in where.get(package, [package])}
        assert owners & names, f"{path.relative_to(ROOT)} imports {package} of {owners}, which pyproject.toml lacks"


def test_what_is_declared_is_pinned_in_its_range():
    """``constraints.txt`` names one version, inside the range, of everything that comes along."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    assert len(pins) == len(lines) and lines == sorted(lines, key=str.casefold)
    for one in declared():
        assert one.specifier.contains(pins[canonicalize_name(one.name)]), one
    missing = set(closure(declared())) - set(pins) - {"setuptools", "pip"}
    assert not missing, f"constraints.txt lacks {sorted(missing)}"


def test_a_node_needs_a_part_of_what_all_need():
    """The short list for small devices has the same ranges as the project."""
    lines = (ROOT / "requirements-node.txt").read_text().splitlines()
    short = {str(Requirement(line)) for line in lines if line and not line.startswith("#")}
    assert short <= {str(one) for one in declared(extras=False)}


def test_every_licence_allows_to_pass_it_on():
    """Permissive ones, but for a few named exceptions; NVIDIA's libraries come with torch's wheels for Linux only."""
    for name, found in closure(declared()).items():
        about = found.metadata
        words = [about.get("License-Expression") or "", (about.get("License") or "")[:2000]]
        words += [word for word in about.get_all("Classifier") or [] if word.startswith("License")]
        said = " / ".join(words)
        if name not in EXCEPTIONS and "NVIDIA" not in said:
            assert PERMISSIVE.search(said) and not FORBIDDEN.search(said), f"{name}: {said[:200]!r}"
