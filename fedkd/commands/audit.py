"""``fedkd audit``: attacks on what is promised and what leaves. Each leaves ``audit.json``, ``.md`` and ``.html``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fedkd.commands.group import Commands

if TYPE_CHECKING:
    from fedkd.audits.releases import Report

audit_app = typer.Typer(cls=Commands, help="Attack what is promised, or what a run has released.", no_args_is_help=True)
out = Console(highlight=False)

Preset = Annotated[str | None, typer.Option(help="A preset to start from.")]
File = Annotated[Path | None, typer.Option("--config", help="TOML file of settings.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="One setting. May be repeated.")]
Output = Annotated[Path, typer.Option(help="Folder for audit.json, audit.md and audit.html.")]


@audit_app.command()
def mechanism(
    preset: Preset = None,
    config: File = None,
    set_: Sets = None,
    trials: Annotated[int, typer.Option(min=100, help="Runs of a mechanism on each of two neighbors.")] = 1000,
    output: Output = Path("runs/audit"),
) -> None:
    """Run the configured mechanisms on neighbors; exit with 1 if more can be told than was promised."""
    from fedkd.audits.releases import audit_config, mechanism_report
    from fedkd.config import resolve
    from fedkd.privacy.noise import SystemEntropy

    resolved = resolve(preset=preset, file=config, sets=set_ or []).config
    _finish(mechanism_report(resolved, audit_config(resolved, trials=trials, entropy=SystemEntropy())), output)


@audit_app.command()
def labels(
    run: Annotated[Path, typer.Argument(help="Run directory or its name.")],
    output: Annotated[Path | None, typer.Option(help="Folder for audit.json and so on; that of the run.")] = None,
) -> None:
    """Guess from a run's recorded ballots which classes each client holds (needs record = true)."""
    from fedkd.audits.releases import audit_labels, label_report
    from fedkd.replay import open_recording
    from fedkd.rundir import find

    directory = find(run)
    recording = open_recording(directory)
    _finish(label_report(recording.config, *audit_labels(recording)), output or directory.path)


@audit_app.command()
def mia(
    preset: Preset = None,
    config: File = None,
    set_: Sets = None,
    shadows: Annotated[int, typer.Option(min=6, help="Runs of the federation, an even number.")] = 32,
    examples: Annotated[int, typer.Option(min=8, help="Most examples that a client trains on.")] = 500,
    output: Output = Path("runs/audit"),
) -> None:
    """Tell members from others by labels, teacher and student; exit with 1 if more are found than was promised.

    Without a preset or a file: four clients with linear models on the digits, one round.
    """
    from fedkd.audits.membership import SCENE, attack_membership, membership_report
    from fedkd.config import resolve

    scene = [] if preset or config else list(SCENE)
    resolved = resolve(preset=preset, file=config, sets=[*scene, *(set_ or [])]).config
    found = attack_membership(resolved, shadows=shadows, examples=examples, progress=out.is_terminal)
    _finish(membership_report(resolved, found, shadows=shadows), output)


@audit_app.command()
def canary(
    preset: Preset = None,
    config: File = None,
    set_: Sets = None,
    canaries: Annotated[int, typer.Option(min=20, help="Mislabeled examples, each in the data by a fair coin.")] = 400,
    references: Annotated[int, typer.Option(min=2, help="Runs with other coins, to see what is usual.")] = 16,
    output: Output = Path("runs/audit"),
) -> None:
    """Guess the coins of one run from what it shows; exit with 1 if the guesses are better than was promised.

    Without a preset or a file: four clients with linear models on the digits, one round.
    """
    from fedkd.audits.canaries import audit_canaries, canary_report
    from fedkd.audits.membership import SCENE
    from fedkd.config import resolve

    scene = [] if preset or config else list(SCENE)
    resolved = resolve(preset=preset, file=config, sets=[*scene, *(set_ or [])]).config
    found = audit_canaries(resolved, canaries=canaries, references=references, progress=out.is_terminal)
    _finish(canary_report(resolved, found, references=references), output)


def _finish(report: Report, folder: Path) -> None:
    if report.lead:
        out.print(report.lead, markup=False, soft_wrap=True)
    out.print(report.table())
    for note in report.notes:
        out.print(note, markup=False, soft_wrap=True)
    report.save(folder)
    pictures = "".join(f", {panel.id}.svg" for panel in report.panels)
    out.print(f"written {folder / 'audit.json'}, audit.md, audit.html{pictures}", markup=False, soft_wrap=True)
    if report.facts.get("result") == "FAIL":
        raise typer.Exit(1)
