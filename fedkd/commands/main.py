"""The command line. Every error of fedkd is one clear line and exit code 2; nothing here imports torch by itself."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

import fedkd
from fedkd import config as configuration
from fedkd import engine, execution, logs, parts
from fedkd.commands.audit import audit_app
from fedkd.commands.device import bench_device
from fedkd.commands.group import Commands, Group
from fedkd.commands.join import join
from fedkd.commands.predict import predict
from fedkd.commands.publish import publish
from fedkd.commands.serve import nodes_app, pki_app, serve
from fedkd.commands.status import status
from fedkd.errors import FedkdError
from fedkd.execution import err, interruptible, out, short

app = typer.Typer(
    help="Federated distillation: clients share predictions on public data; never data, weights or gradients.",
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(cls=Commands, help="Show or check a configuration.", no_args_is_help=True)
app.add_typer(config_app, name="config")
ledger_app = typer.Typer(cls=Commands, help="Read what was spent of a privacy budget.", no_args_is_help=True)
app.add_typer(ledger_app, name="ledger")
app.add_typer(audit_app, name="audit")
app.command()(join)
app.add_typer(pki_app, name="pki")
app.add_typer(nodes_app, name="nodes")
app.command(name="serve")(serve)
app.command(name="bench-device")(bench_device)
app.command()(status)
app.command()(predict)
app.command()(publish)

CORES = os.cpu_count() or 1
LEFT_OUT = ("flwr", "grpc", "jinja2", "dp_accounting", "starlette", "uvicorn", "httpx", "segno")
"""What fedkd needs, but not to join a run."""

Preset = Annotated[str | None, typer.Option(help=f"One of: {', '.join(sorted(parts.PRESETS))}.")]
File = Annotated[Path | None, typer.Option("--config", help="TOML file of settings.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="One setting, as in --set rounds=5. May be repeated.")]
LedgerFolder = Annotated[Path, typer.Argument(help="Folder of a ledger, with ledger.jsonl in it.")]
Workers = Annotated[int, typer.Option(min=1, help="Worker processes of the in-process engine.")]


def main() -> None:
    """Run the command line; turn every error of ours into one line and exit code 2."""
    engine.quiet_flower()
    warnings.showwarning = _show_warning
    try:
        app(standalone_mode=True)
    except FedkdError as error:
        err.print("[bold red]error[/bold red] ", end="")
        err.print(str(error), markup=False, soft_wrap=True)
        sys.exit(2)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in LEFT_OUT:
            raise
        err.print("[bold red]error[/bold red] ", end="")
        err.print(
            f"this command needs {error.name}, which an installation for nodes leaves out (docs/raspberry-pi.md): "
            "install fedkd as README.md says",
            markup=False, soft_wrap=True,
        )  # fmt: skip
        sys.exit(2)
    except KeyboardInterrupt:
        err.print("interrupted")
        sys.exit(130)


def _print_version(asked: bool) -> None:
    if asked:
        out.print(fedkd.__version__)
        raise typer.Exit


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    err.print("[yellow]warning[/yellow] ", end="")
    err.print(" ".join(str(message).split()), markup=False, soft_wrap=True)


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    log_format: Annotated[
        str | None, typer.Option(envvar=logs.VARIABLE, help="Log what happens to standard error: json or text.")
    ] = None,
) -> None:
    """Federated distillation: clients share predictions on public data; never data, weights or gradients."""
    logs.configure(log_format)


@app.command()
def run(
    preset: Preset = None,
    config: File = None,
    set_: Sets = None,
    engine_: Annotated[str, typer.Option("--engine", help="inprocess or flower.")] = "inprocess",
    name: Annotated[str | None, typer.Option(help="Name of the run directory under runs/.")] = None,
    workers: Workers = CORES,
) -> None:
    """Simulate a federation and write runs/NAME/ with its metrics, student and report."""
    if engine_ not in engine.ENGINES:
        from fedkd.errors import did_you_mean

        raise FedkdError(
            f"unknown engine {engine_!r}.{did_you_mean(engine_, engine.ENGINES)} Known: {', '.join(engine.ENGINES)}."
        )
    resolved = configuration.resolve(preset=preset, file=config, sets=set_ or [])
    path = execution.place(resolved, name)
    execution.execute(resolved, path, _engine(engine_, workers), resuming=resolved.config.resume)


@app.command()
def resume(
    run: Annotated[Path, typer.Argument(help="Run directory or its name.")],
    workers: Workers = CORES,
) -> None:
    """Continue a run that was interrupted; the result equals that of an uninterrupted one."""
    from fedkd.rundir import DEPLOYMENT, REPLAY, SERVED, find

    directory = find(run)
    began = directory.began()
    if began["engine"] == REPLAY:
        raise FedkdError(f"{directory.path} is a replay, which has no clients to ask; repeat it: {began['command']}")
    if began["engine"] == DEPLOYMENT:
        raise FedkdError(
            f"{directory.path} is the run of a deployment, whose clients are not here; continue it with: "
            f"{began['command'] or 'flwr run . SUPERLINK --stream'} -c 'resume=true'"
        )
    resolved = configuration.resolve(file=directory.config, environ={})
    done = execution.finished(directory)
    if done >= resolved.config.rounds:
        out.print(
            f"{short(directory.path)} is already finished: {done} of {resolved.config.rounds} rounds", soft_wrap=True
        )
        out.print(f"for more, raise rounds in {short(directory.config)} and resume it again", soft_wrap=True)
        return
    if began["engine"] == SERVED:
        from fedkd.commands.serve import resume_served

        resume_served(resolved, directory)
        return
    execution.execute(resolved, directory.path.resolve(), _engine("inprocess", workers), resuming=True)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="Run directory or its name.")]) -> None:
    """Write report.html of a run anew."""
    from fedkd.report import write_report
    from fedkd.rundir import find

    out.print(f"report {write_report(find(run).path)}", soft_wrap=True)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run directories or their names.")],
    html: Annotated[Path, typer.Option("--output", "--html", help="Where to write the page.")] = Path(
        "runs/compare.html"
    ),
) -> None:
    """Compare runs: a table, and a page with accuracy over rounds and over bytes."""
    from fedkd.files import write_atomic
    from fedkd.report.compare import compare_runs
    from fedkd.rundir import find

    comparison = compare_runs([find(run).path for run in runs])
    out.print(comparison.table())
    write_atomic(html, comparison.html().encode())
    out.print(f"page {html}", soft_wrap=True)


@app.command()
def doctor() -> None:
    """Check what is installed, what each part of fedkd needs, and which data sets are here."""
    from fedkd.doctor import examine

    problems = 0
    for ok, what, detail in examine():
        mark = {True: "[green]ok[/green]     ", False: "[red]missing[/red]", None: "[yellow]absent[/yellow] "}[ok]
        out.print(f"{mark} {what:<24} {detail}", soft_wrap=True)
        problems += ok is False
    if problems:
        raise FedkdError(f"{problems} of the things that fedkd run needs are missing")


@app.command(name="parts")
def parts_(key: Annotated[str | None, typer.Argument(help="A configuration key, such as aggregate.")] = None) -> None:
    """List the parts that a configuration can name, with their options."""
    from fedkd.errors import did_you_mean
    from fedkd.reference import describe

    if key is not None and key not in parts.REGISTRIES:
        known = ", ".join(parts.REGISTRIES)
        raise FedkdError(f"no parts for {key!r}.{did_you_mean(key, parts.REGISTRIES)} Known: {known}.")
    for name, registry in parts.REGISTRIES.items():
        if key in (None, name):
            out.print(f"[bold]{name}[/bold]")
            for line in describe(registry):
                out.print(f"  {line}", markup=False, soft_wrap=True)


@app.command()
def version() -> None:
    """Print the version."""
    out.print(fedkd.__version__)


@app.command(name="replay")
def replay_(
    run: Annotated[Path, typer.Argument(help="Run directory or its name.")],
    set_: Sets = None,
    without: Annotated[list[int] | None, typer.Option(help="A client to leave out. May be repeated.")] = None,
    leave_one_out: Annotated[bool, typer.Option(help="Measure what each client is worth.")] = False,
    students: Annotated[bool, typer.Option(help="Measure it with students distilled anew, too: slower.")] = False,
    name: Annotated[str | None, typer.Option(help="Name of the new run directory, beside the run's.")] = None,
) -> None:
    """Run the server's half of a run again from its recorded ballots: other rules, or without some clients."""
    from fedkd import replay
    from fedkd.report import write_report
    from fedkd.rundir import find
    from fedkd.screen import Screen, scoreboard

    recording = replay.open_recording(find(run))
    settings = replay.changed(recording, set_ or [])
    with (
        interruptible(lambda: "interrupted; nothing kept"),
        Screen(settings.config, f"replay of {recording.name}", out, without=without or ()) as screen,
    ):
        done = replay.replay(
            recording,
            settings,
            without=without or [],
            name=name,
            leave_one_out=leave_one_out,
            students=students,
            observe=screen,
            command=engine.command_line(),
        )
    write_report(done.path)
    scoreboard(done.summary, short(done.path), out)
    if done.values:
        out.print(replay.value_table(done.values))
    for line in done.notes:
        out.print(line, markup=False, soft_wrap=True)


@app.command(name="plan")
def plan_(preset: Preset = None, config: File = None, set_: Sets = None) -> None:
    """Predict bytes and privacy of a run; nothing is trained. Exit with 1 if the ledger has no room for it."""
    from fedkd.plan import plan

    planned = plan(configuration.resolve(preset=preset, file=config, sets=set_ or []).config)
    out.print(planned.table())
    for line in planned.sentences():
        out.print(line, markup=False, soft_wrap=True)
    if planned.ledger is not None and not planned.ledger.fits:
        raise typer.Exit(1)


@app.command(name="sweep")
def sweep_(
    file: Annotated[Path, typer.Argument(help="TOML file: [base], [grid], [[cases]] and seeds.")],
    workers: Annotated[int, typer.Option(min=1, help="Runs at the same time, each in a process of its own.")] = CORES,
    name: Annotated[
        str | None, typer.Option(help="Name of the folder under runs/; that of the file, if not given.")
    ] = None,
) -> None:
    """Run every combination of settings with every seed; the same command goes on where it was stopped."""
    from fedkd import sweep

    asked = sweep.read_sweep(file, name=name)
    sweep.check(asked)

    def interrupted() -> str:
        done = sum(sweep.finished_run(job.path) is not None for job in asked.jobs)
        return f"interrupted: {done} of {len(asked.jobs)} runs are finished; the same command goes on"

    with interruptible(interrupted), sweep.Board(asked, out) as board:
        endings = sweep.run_jobs(asked.jobs, workers=workers, watcher=board, command=engine.command_line())
    findings = sweep.write_findings(asked)
    out.print(findings.table())
    out.print(f"page {asked.folder / 'sweep.html'}; also sweep.csv, sweep.json, sweep.tex", soft_wrap=True)
    if any(ending.error for ending in endings):
        raise typer.Exit(1)


@config_app.command()
def show(preset: Preset = None, config: File = None, set_: Sets = None) -> None:
    """Print the resolved configuration as TOML, each key with where its value came from."""
    sys.stdout.write(configuration.resolve(preset=preset, file=config, sets=set_ or []).to_toml())


@config_app.command()
def check(preset: Preset = None, config: File = None, set_: Sets = None) -> None:
    """Say whether a configuration is valid; exit with 2 and the reasons if not."""
    resolved = configuration.resolve(preset=preset, file=config, sets=set_ or [])
    from fedkd.preflight import check_attack

    check_attack(resolved.config)
    preset_ = f"preset {resolved.config.preset}"
    given = sum(origin not in ("default", preset_) for origin in resolved.origins.values())
    and_settings = f" and {given} setting{'s' if given > 1 else ''}" if given else ""
    out.print(f"valid: {preset_}{and_settings}; the data were not looked at (fedkd plan does)", soft_wrap=True)


@ledger_app.command(name="show")
def ledger_show(
    folder: LedgerFolder,
    last: Annotated[int, typer.Option(min=1, help="How many of the latest releases to list.")] = 40,
) -> None:
    """Print the releases of a ledger and what they cost."""
    from fedkd.privacy.accountant import spent
    from fedkd.privacy.ledger_report import table, totals, verify

    report = verify(folder)
    out.print(table(report, last=last))
    for line in totals(report, spent):
        out.print(line, markup=False, soft_wrap=True)


@ledger_app.command(name="verify")
def ledger_verify(folder: LedgerFolder) -> None:
    """Check every record of a ledger; exit with 2 and the reason if it is broken."""
    from fedkd.privacy.ledger_report import sentences, verify

    for line in sentences(verify(folder)):
        out.print(line, markup=False, soft_wrap=True)


@ledger_app.command(name="export")
def ledger_export(
    folder: LedgerFolder,
    format_: Annotated[str, typer.Option("--format", help="json or csv.")] = "json",
) -> None:
    """Write a ledger to standard output, for other programs."""
    from fedkd.privacy.ledger_report import export

    sys.stdout.write(export(folder, format_))


def _engine(name: str, workers: int) -> execution.Run:
    """Return what runs a configuration in the engine ``name`` and returns its summary."""

    def run(settings: configuration.Config, path: Path) -> Any:
        if name == "flower":
            code = engine.run_with_flower(settings, echo=lambda line: out.print(line, markup=False, soft_wrap=True))
            return execution.outcome(code, path)
        from fedkd.screen import Screen

        with Screen(settings, path.name, out) as screen:
            return engine.run_in_process(
                settings, workers=workers, observe=screen, command=engine.command_line()
            ).summary

    return run
