"""``fedkd predict``: what the student of a run says of new inputs."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from fedkd.errors import DataError
from fedkd.files import write_atomic
from fedkd.softlabels import Array


def predict(
    run: Annotated[Path, typer.Argument(help="Run directory or its name.")],
    inputs: Annotated[Path, typer.Argument(help="Inputs (n, ...): a .npy file, or x of an .npz file.")],
    out: Annotated[Path | None, typer.Option(help="Write soft labels (n, C) to this .npy file instead.")] = None,
) -> None:
    """Print what the student of a finished run takes each input for, and how sure it is, as CSV."""
    from fedkd.student import load

    student = load(run)
    p = student.predict(_read(inputs))
    if out is not None:
        _save(out, p)
        return
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["row", "class", "probability"])
    for row, (best, probability) in enumerate(zip(p.argmax(axis=1), p.max(axis=1), strict=True)):
        writer.writerow([row, student.class_names[best], f"{probability:.4f}"])


def _read(path: Path) -> Array:
    try:
        loaded = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or "it is no .npy or .npz file of numbers"
        raise DataError(f"cannot read {path}: {reason}") from None
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        return np.asarray(loaded)
    with loaded:
        if "x" not in loaded.files:
            raise DataError(f"{path} must hold the inputs as x, got {', '.join(loaded.files) or 'nothing'}")
        return np.asarray(loaded["x"])


def _save(path: Path, p: Array) -> None:
    import io

    content = io.BytesIO()
    np.save(content, p, allow_pickle=False)
    try:
        write_atomic(path, content.getvalue())
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from None
