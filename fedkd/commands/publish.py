"""``fedkd publish``: a run's figures to TensorBoard or MLflow."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedkd.errors import FedkdError

out = Console(highlight=False)


def publish(
    run: Annotated[Path, typer.Argument(help="Run directory or its name.")],
    tensorboard: Annotated[Path | None, typer.Option(help="Folder of event files, for tensorboard --logdir.")] = None,
    mlflow: Annotated[str | None, typer.Option(help="Tracking server, as http://HOST:PORT or sqlite:///FILE.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
) -> None:
    """Bring every round's figures, the settings and the report to TensorBoard or MLflow; nothing goes there twice."""
    from fedkd import publish as publishing
    from fedkd.rundir import find

    if tensorboard is None and mlflow is None:
        raise FedkdError("where to? Give --tensorboard DIR or --mlflow URI")
    path = find(run).path
    with contextlib.ExitStack() as stack:
        sinks = publishing.open_sinks(path.resolve().name, tensorboard=tensorboard, mlflow=mlflow)
        for sink in sinks:
            stack.enter_context(sink)
        rounds = publishing.publish(path, sinks, follow=follow)
    server = publishing.without_password(mlflow) if mlflow is not None else None
    where = " and ".join(str(one) for one in (tensorboard, server) if one is not None)
    out.print(f"published {rounds} rounds of {path.name} to {where}", markup=False, soft_wrap=True)
