"""The three ways to run the same federation, behind one call. Heavy imports happen in the branch that needs them."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedkd.collect import Observer
from fedkd.config import Config, mixed, resolve
from fedkd.errors import FedkdError, QuorumError
from fedkd.learner import check_module
from fedkd.preflight import check_data, check_models
from fedkd.protect import protection_of
from fedkd.rundir import RunDirectory

ENGINES = ("inprocess", "flower")


def simulate(preset: str = "expert", *, workers: int = os.cpu_count() or 1, **settings: Any) -> Any:
    """Run ``preset`` with ``settings`` (the keys of ``fedkd run --set``) in this machine; return its Result.

    That is the student (with ``predict``), a report a round, and the summary. Nothing is written unless ``output``
    names a folder.

    >>> result = simulate("ds_fl", rounds=5, clients=4)  # doctest: +SKIP
    >>> result.summary["scoreboard"]["student"]  # accuracy on the test set  # doctest: +SKIP
    """
    given = {**resolve(preset=preset, environ={}).config.model_dump(), **settings}
    quiet_flower()
    config = Config.read(given, where="simulate")
    if not config.output:
        return run_in_process(config, workers=workers)
    check_data(config)  # before there is a folder
    directory = RunDirectory(Path(config.output))
    with directory.alone():
        if directory.config.exists() and not config.resume:
            raise FedkdError(f"output: there is a run in {config.output!r} already; choose another, or set resume=True")
        return run_in_process(config, workers=workers)


def run_in_process(
    config: Config, *, workers: int = 2, observe: Observer = lambda event, facts: None, command: str = ""
) -> Any:
    """Run a simulation in this machine: clients in ``workers`` processes of one thread each; return its Result."""
    shared = check_data(config)
    for spec in (*mixed(config.learner), config.student):
        check_module(spec)
    observe("start", {"workers": workers})  # what is to be run is known: frameworks take seconds to import

    from fedkd.flower.grid import LocalGrid
    from fedkd.flower.strategy import FederatedDistillation

    with tempfile.TemporaryDirectory(prefix="fedkd-") as scratch:
        state = Path(config.output) / "clients" if config.output else Path(scratch)

        def node_config(k: int) -> Mapping[str, Any]:
            return {
                "partition-id": k,
                "num-partitions": config.clients,
                "state-dir": str(state),
                "simulated": True,
            }

        if config.output:
            RunDirectory(Path(config.output)).note("inprocess", command)
        log = Path(config.output) / "clients.log" if config.output else None
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            if not config.resume:
                log.unlink(missing_ok=True)
        with LocalGrid(
            nodes=config.clients,
            run_config=config.to_run_config(),
            node_config=node_config,
            workers=min(workers, config.clients),
            preload=frameworks(config),
            log=log,
        ) as grid:
            check_models(config, shared)  # meanwhile the workers import what they need
            try:
                return FederatedDistillation(config, observe=observe, command=command).start(grid=grid)
            except QuorumError as error:
                if log is None or "Traceback" not in log.read_text(encoding="utf-8", errors="replace"):
                    raise
                raise QuorumError(f"{error} Traceback: {os.path.relpath(log)}") from None


def frameworks(config: Config) -> list[str]:
    """Return our modules that the learners of a run will import, so that workers can share one import of them."""
    behind = {
        "fedkd.learner.torch_learner": {"cnn", "lenet", "mlp", "torchvision"},
        "fedkd.learner.models": {"cnn", "lenet", "mlp", "torchvision"},
        "fedkd.learner.sklearn_learner": {"forest", "logistic", "boosting"},
    }
    names = {re.split(r"[(:]", spec)[0].strip() for spec in mixed(config.learner)}
    if protection_of(config).place == "training":
        behind["fedkd.learner.private_torch"] = behind["fedkd.learner.models"]
    return [module for module, members in behind.items() if members & names]


def run_with_flower(config: Config, *, echo: Any) -> int:
    """Run the same apps in Flower's own simulation; return the exit code of the run."""
    from fedkd.flower.appdir import app_directory
    from fedkd.flower.launch import run_with_flower as launch

    check_models(config, check_data(config))
    if config.output:
        RunDirectory(Path(config.output)).note("flower", command_line())
    with tempfile.TemporaryDirectory(prefix="fedkd-") as scratch:
        return launch(app_directory(Path(scratch)), config.to_run_config(), nodes=config.clients, echo=echo)


def quiet_flower() -> None:
    """Switch off Flower's telemetry and update check: nothing leaves this machine unless asked."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")


def command_line() -> str:
    """Return the command that started this program, as one would type it."""
    import shlex

    return shlex.join(["fedkd", *sys.argv[1:]])
