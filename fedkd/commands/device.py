"""``fedkd bench-device``: whether this device is up to a run, before it joins one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedkd.errors import ConfigError
from fedkd.units import number, seconds, size

if TYPE_CHECKING:
    from fedkd.bench_device import Findings, Trial
    from fedkd.trial_round import Cost

out = Console(highlight=False, emoji=False)


def bench_device(
    url: Annotated[str | None, typer.Option(help="Join address of a server whose run to take; uses no code.")] = None,
    preset: Annotated[str | None, typer.Option(help="Take a run of this preset.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="Take a run of this TOML file.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="One setting of the run. May be repeated.")] = None,
    learner: Annotated[list[str] | None, typer.Option(help="A learner to try. May be repeated.")] = None,
    examples: Annotated[int, typer.Option(min=1, help="Private examples that this device would hold.")] = 500,
    limit: Annotated[float, typer.Option("--seconds", min=1, help="Time for all trials of learners.")] = 25.0,
    insecure: Annotated[bool, typer.Option("--insecure", help="Allow http to this machine itself.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Measure this device: arithmetic, memory, disk, the way to a server, and what a round would cost with a learner.

    Without a run: 1000 public images of 28x28 in ten classes.
    """
    from dataclasses import replace

    from fedkd import bench_device as bench
    from fedkd.config import resolve
    from fedkd.learner import check

    given = bool(preset or config or set_)
    if url is not None and given:
        raise ConfigError("--url takes the server's run; give it without --preset, --config and --set")
    for spec in learner or []:
        check(spec)
    server, task = None, replace(bench.USUAL, examples=examples)
    if url is not None:
        server, task = bench.visit(url, examples=examples, insecure=insecure)
    elif given:
        task = bench.task_of(resolve(preset=preset, file=config, sets=set_ or []).config, examples=examples)
    wanted = list(learner or bench.candidates(task if url is not None or given else None))
    with Console(stderr=True).status("measuring") as status:
        found = bench.bench(
            task, wanted, seconds=limit, server=server, tell=lambda what: status.update(f"measuring: {what}")
        )
    if json_:
        sys.stdout.write(found.to_json() + "\n")
    else:
        _print(found)


def _print(found: Findings) -> None:
    device, disk, task = found.device, found.disk, found.task
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_row("device", f"{device.kind}, {device.cores} cores")
    table.add_row("memory", f"{size(device.memory)}, {size(device.free)} free")
    table.add_row("arithmetic", f"{number(device.gflops)} GFLOP/s in single precision, one core")
    table.add_row("disk", f"{disk.median:.1f} ms for an entry of the ledger, {disk.worst:.1f} at worst ({disk.folder})")
    if found.server is not None:
        there = found.server
        table.add_row("server", f"{there.address}: {seconds(there.latency)} a request, {size(there.down)}/s down")
    shape = "x".join(map(str, task.shape))
    table.add_row("a round", f"{task.rows} public inputs of {shape}, {task.classes} classes, {task.examples} examples")
    out.print(table, soft_wrap=True)
    rounds = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    rounds.add_column("learner", overflow="fold", min_width=10)
    for head in ("fit/s", "predict/s", "first", "later", "memory", "fits", "down", "up"):
        rounds.add_column(head, justify="right", no_wrap=True)
    for trial in found.trials:
        if trial.cost is not None:
            rounds.add_row(*_row(trial, trial.cost))
    out.print(rounds)
    for trial in found.trials:
        if trial.cost is None:
            out.print(f"{trial.learner}: {trial.error}", markup=False, soft_wrap=True)


def _row(trial: Trial, cost: Cost) -> tuple[str, ...]:
    return (
        trial.learner,
        f"{cost.fit:.0f}",
        f"{cost.predict:.0f}",
        seconds(cost.first),
        seconds(cost.later),
        size(cost.memory),
        {True: "yes", False: "NO", None: "–"}[trial.fits],
        size(cost.down),
        size(cost.up),
    )
