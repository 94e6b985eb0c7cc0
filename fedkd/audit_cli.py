"""``fedkd audit``: the command line of :mod:`fedkd.audits`. Each audit leaves ``audit.json`` and ``audit.md``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from fedkd.audits import Report

audit_app = typer.Typer(help="Attack what is promised, or what a run has released.", no_args_is_help=True)
out = Console(highlight=False)


@audit_app.command()
def mechanism(
    preset: Annotated[str | None, typer.Option(help="A preset to start from.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="TOML file of settings.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="One setting. May be repeated.")] = None,
    trials: Annotated[int, typer.Option(min=100, help="Runs of a mechanism on each of two neighbors.")] = 1000,
    output: Annotated[Path, typer.Option(help="Folder for audit.json and audit.md.")] = Path("runs/audit"),
) -> None:
    """Run the configured mechanisms on neighbors; exit with 1 if more can be told than was promised."""
    from fedkd.audits import audit_config, mechanism_report
    from fedkd.config import resolve
    from fedkd.privacy.noise import SystemEntropy

    resolved = resolve(preset=preset, file=config, sets=set_ or []).config
    report = mechanism_report(resolved, audit_config(resolved, trials=trials, entropy=SystemEntropy()))
    _finish(report, output)
    if report.facts["result"] == "FAIL":
        raise typer.Exit(1)


@audit_app.command()
def labels(
    run: Annotated[Path, typer.Argument(help="Run directory or its name.")],
    output: Annotated[Path | None, typer.Option(help="Folder for audit.json and audit.md; that of the run.")] = None,
) -> None:
    """Guess from a run's recorded ballots which classes each client holds (needs record = true)."""
    from fedkd.audits import audit_labels, label_report
    from fedkd.replay import open_recording
    from fedkd.rundir import find

    directory = find(run)
    recording = open_recording(directory)
    _finish(label_report(recording.config, *audit_labels(recording)), output or directory.path)


def _finish(report: Report, folder: Path) -> None:
    out.print(report.table())
    for note in report.notes:
        out.print(note, markup=False, soft_wrap=True)
    report.save(folder)
    out.print(f"written {folder / 'audit.json'} and audit.md", markup=False, soft_wrap=True)
