"""What the two Flower apps do when a message comes in. ``server/app.py`` and ``clients/app.py`` only point here."""

from __future__ import annotations

import functools
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedkd import logs
from fedkd.client import Site
from fedkd.client import answer as answer_frame
from fedkd.config import Config
from fedkd.dataset import as_inputs, fingerprint, labels_among, read
from fedkd.errors import BudgetExhausted, CodecError, ConfigError, DataError, FedkdError, SpecError
from fedkd.federation import Federation, federation
from fedkd.flower.messages import answer_content, error_content, read_query
from fedkd.flower.strategy import FederatedDistillation
from fedkd.preflight import describe
from fedkd.privacy.ledger import Budget
from fedkd.rundir import DEPLOYMENT, RunDirectory

log = logging.getLogger("fedkd")

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
logs.configure()  # apps run in processes that know our environment variables only


def answer_query(message: Message, context: Context) -> Message:
    """Answer a query of the server. An error of this client is an answer too, and never stops a round."""
    key = client_key(context)
    try:
        config = config_of(json.dumps(dict(context.run_config), sort_keys=True))
        frame, acknowledged = read_query(message)
        reply = answer_frame(site_of(config, context), frame, config, acknowledged)
        return Message(answer_content(reply), reply_to=message)
    except FedkdError as error:
        log.warning("client %s: %s", key, error)
        # What is wrong with the server's settings or frames may be told; about a device's own data, only the kind.
        tell = (
            isinstance(error, (BudgetExhausted, CodecError, ConfigError, SpecError))
            or "data" not in context.node_config
        )
        text = f"{type(error).__name__}: {error}" if tell else f"{type(error).__name__} (see the device's log)"
        return Message(error_content(key, text), reply_to=message)
    except Exception as error:  # a user's model may raise anything
        # Only the type leaves: the text of a foreign exception may quote private data. Our own engine says of its nodes
        # that they are simulated; there nothing is private, and whoever runs it wrote the model.
        own = "data" in context.node_config or not context.node_config.get("simulated", False)
        log.exception("client %s failed", key, extra={"simulated": not own})
        text = type(error).__name__ if own else describe(error)
        return Message(error_content(key, text), reply_to=message)


def serve(grid: Grid, context: Context) -> None:
    """Run a federation as the run config says; tell each round to the log, write the report if there is a folder."""
    from rich.console import Console  # not for clients, which import this file too

    from fedkd.report import write_report
    from fedkd.screen import Screen, scoreboard

    config = Config.from_run_config(context.run_config)
    path = Path(config.output) if config.output else None
    console = Console(highlight=False, width=200, force_terminal=False)
    with Screen(config, path.name if path else "run", console) as screen:
        summary = FederatedDistillation(config, observe=screen).start(grid=grid).summary
    if path is None or RunDirectory(path).began()["engine"] == DEPLOYMENT:  # else fedkd run does it
        if path is not None:
            write_report(path)
        scoreboard(summary, path, console)


client = ClientApp()
"""The ClientApp of the in-process engine."""


@client.query("release")
def _release(message: Message, context: Context) -> Message:
    return answer_query(message, context)


@functools.lru_cache(maxsize=4)
def config_of(text: str) -> Config:
    """Return the configuration of a run config in JSON; reading it once a process is enough."""
    return Config.from_run_config(json.loads(text))


def client_key(context: Context) -> int:
    """Return the stable number of a client: its partition where it has one, else its node."""
    try:
        return int(context.node_config.get("partition-id", context.node_id))
    except (TypeError, ValueError):  # Flower tells the server the text of an error here
        raise ConfigError("partition-id must be a whole number") from None


def site_of(config: Config, context: Context) -> Site:
    """Return what this client owns: its own data where the node names some, else its share of a simulation.

    Node config: ``partition-id``; or ``data`` (a data set spec such as ``"npz:/data/mine.npz"``), with ``transfer``
    where the transfer set lies elsewhere on this device; ``state-dir`` for what it must remember between rounds. Where
    noise is added on the device: ``ledger-dir`` for what it must remember for good, and ``budget-epsilon`` and
    ``budget-delta`` for what its owner allows in all runs together.
    """
    key = client_key(context)
    shared = shared_data(config, str(context.node_config.get("transfer", config.transfer)))
    own = context.node_config.get("data")
    if own is not None:
        if config.attack != "none":
            raise ConfigError(f"attack = {config.attack!r} is for simulations; this client has data of its own")
        try:
            mine = read(str(own))
        except SpecError as error:  # not the server's setting, but the device's: its text is told to nobody
            raise DataError(str(error)) from None
        x, y, test = as_inputs(mine.x), labels_among(mine, shared.dataset), None
    else:
        x, y = _private(shared, key, config.clients)
        test = shared.test() if config.evaluate else None
    state = _state_directory(config, context.node_config, context.run_id)
    return Site(
        key=key,
        x=x,
        y=y,
        classes=shared.dataset.classes,
        transfer=shared.transfer,
        test=test,
        state=state / f"{key}.safetensors",
        ledger=_ledger_directory(context.node_config, state / f"ledger-{key}", x),
        run=str(context.run_id) if _outlives(context.node_config) else "run",
        budget=budget_of(context),
        accept_loss=bool(context.node_config.get("accept-ledger-loss", False)),
    )


def _outlives(node_config: Any) -> bool:
    """Say whether a client is more than a part of one simulation, whose directory holds all that it keeps."""
    return not node_config.get("simulated", False) and bool({"data", "state-dir", "ledger-dir"} & set(node_config))


def _ledger_directory(node_config: Any, default: Path, x: np.ndarray) -> Path:
    """Return where the ledger of private inputs ``x`` lies: a device has one for all runs."""
    if "ledger-dir" in node_config:
        return Path(str(node_config["ledger-dir"]))
    if _outlives(node_config):
        return Path(os.environ.get("FEDKD_HOME", Path.home() / ".fedkd")) / "ledgers" / fingerprint(x)[:32]
    return default


def budget_of(context: Context) -> Budget | None:
    """Return what the owner of a device allows in all runs together, if the node config says so."""
    epsilon, delta = context.node_config.get("budget-epsilon"), context.node_config.get("budget-delta", 1e-5)
    try:
        return None if epsilon is None else Budget(float(epsilon), float(delta))
    except ValueError:
        raise ConfigError("budget-epsilon and budget-delta must be numbers") from None  # whose they are knows them


def shared_data(config: Config, transfer: str | None = None) -> Federation:
    """Return the simulated federation that ``config`` describes; equal on every machine and cached in a process."""
    return federation(config.data, transfer or config.transfer, config.partition, config.clients, config.seed)


@functools.lru_cache(maxsize=1024)
def _private(shared: Federation, key: int, clients: int) -> tuple[np.ndarray, np.ndarray]:
    if not 0 <= key < clients:
        raise FedkdError(f"client {key} has no share: the run is for {clients} clients (clients = {clients})")
    return shared.private(key)


def _state_directory(config: Config, node_config: Any, run_id: int) -> Path:
    if "state-dir" in node_config:
        return Path(str(node_config["state-dir"]))
    if config.output and Path(config.output).is_dir():  # a simulation on the server's own machine
        return Path(config.output) / "clients"
    return Path(os.environ.get("FEDKD_HOME", Path.home() / ".fedkd")) / "state" / str(run_id)


def same_folder(app: str) -> None:
    """Refuse to run an app with a fedkd from elsewhere.

    In Flower's simulation the workers may import ``clients`` from the folder that the SuperLink was started in, and
    then silently run another version of the code than the server.
    """
    ours, theirs = Path(__file__).resolve().parents[2], Path(app).resolve().parents[1]
    if ours != theirs:
        raise FedkdError(f"{app} runs with fedkd from {ours}, expected from {theirs}: start from a folder without them")
