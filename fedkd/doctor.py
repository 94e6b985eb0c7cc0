"""What is installed and what is not, without importing any of it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.markup import escape

NEEDED = (
    "flwr",
    "grpcio",
    "numpy",
    "pydantic",
    "typer",
    "rich",
    "jinja2",
    "safetensors",
    "threadpoolctl",
    "dp-accounting",
    "starlette",
    "uvicorn",
    "httpx",
    "segno",
)
CHECKOUT = Path(__file__).parents[1] / "pyproject.toml"
OPTIONAL = {
    "torch": ("torch", "networks as learners and students"),
    "torchvision": ("torch", "learner torchvision(...), downloads of MNIST and others"),
    "opacus": ("torch", "DP-SGD"),
    "scikit-learn": ("light", "learners forest, logistic, boosting"),
    "onnxruntime": ("light", "ONNX models as learners"),
    "flwr-datasets": ("hub", "data sets from the Hugging Face hub"),
    "ray": ("dev", "--engine flower: Flower's own simulation"),
}


def examine() -> Iterator[tuple[bool | None, str, str]]:
    """Return ``(ok, what, detail)``; ok is False for what ``fedkd run`` needs and None for what is optional.

    ``detail`` is escaped for rich, which would take the brackets of ``fedkd[dev]`` for a style and drop them.
    """
    for ok, what, detail in _examine():
        yield ok, what, escape(detail)


def _examine() -> Iterator[tuple[bool | None, str, str]]:
    yield sys.version_info >= (3, 11), "Python", sys.version.split()[0]
    for package in NEEDED:
        version = _version(package)
        yield version is not None, package, version or f"pip install {package}"
    for package, (extra, what) in OPTIONAL.items():
        version = _version(package)
        needed = package in ("torch", "scikit-learn")  # the default scenario uses both
        found = version is not None
        yield (
            found or (False if needed else None),
            package,
            f"{version}" if found else f"{_install(extra)} for {what}",
        )
    free = shutil.disk_usage(".").free
    yield free > 1e9, "disk", f"{free / 1e9:.1f} GB free here"
    yield True, "cores", f"{os.cpu_count()}"
    from fedkd.dataset import dataset, how_to_get, on_disk

    for name, where in on_disk().items():
        yield (True if where else None), f"data {name}", where or how_to_get(name)
    yield True, "data sets known", ", ".join(dataset.names())


def _install(extra: str) -> str:
    """Return the line that installs an extra, from a checkout too: there ``fedkd`` may not be in any registry."""
    line = f"pip install 'fedkd[{extra}]'"
    return f"{line} (here: pip install '.[{extra}]')" if CHECKOUT.is_file() else line


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
