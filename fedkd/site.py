"""What a client does when a query comes in, whoever carried it: a Flower ClientApp or our own resident node.

Two mappings say what to do. The *run config* comes from the server and is not trusted: where a node has data of its
own, it names no file of the node's and no code to run there. The *node config* is its owner's word:

======================== ===========================================================================================
``partition-id``         number of the client; without it that of its node
``data``                 its own data set, such as ``npz:/data/mine.npz``; without it, its share of a simulation
``transfer``             the transfer set on this device, where it differs from the run's by path
``learner``              its own model, instead of what the run deals it; may be ``module:function``
``allow-code``           take a ``module:function`` from the run config too
``require-protect``      answer no run without: ``any`` protection, one on the ``device``, or a name such as ``dp_sgd``
``least-clients``        add to no masked sum of fewer clients
``state-dir``            what it must remember between rounds
``ledger-dir``           what it must remember for good, where it adds noise itself
``budget-epsilon``,      what its owner allows in all runs together
``budget-delta``
``accept-ledger-loss``   go on with the rest of a broken ledger
======================== ===========================================================================================
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.client import Answer, Site, answer, spec_of
from fedkd.config import RUN_NAME, Config
from fedkd.dataset import Dataset, as_inputs, fingerprint, labels_among, read
from fedkd.errors import BudgetExhausted, CodecError, ConfigError, DataError, FedkdError, SpecError, did_you_mean
from fedkd.federation import Federation, federation
from fedkd.learner import is_factory, names_a_file, names_an_address
from fedkd.logs import log
from fedkd.privacy.ledger import Budget
from fedkd.protect import ON_DEVICE, least_of, protection, protection_of
from fedkd.records import TransferSet
from fedkd.registry import parse
from fedkd.tell import describe

NodeConfig = Mapping[str, Any]
RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""What names of runs look like: they become names of folders and of releases."""

AS_AGREED = ("protect", "noise", "keys", "release", "expertise", "evidence", "learner")
"""Keys of a run that decide what leaves a device, and in which form: as its owner saw them, or no answer."""
AT_MOST = ("epsilon", "delta", "rounds")
"""Keys of which a run may have less than its owner saw, but not more."""


@dataclass(frozen=True)
class Refusal:
    """Why ``client`` does not answer, in words that may leave the device."""

    client: str
    error: str


@dataclass(frozen=True, eq=False)
class Common:
    """What all nodes of a federation are told, for one that makes none of it from the run config.

    The public ``transfer`` set (M, ...), how many ``classes`` there are, and their names where they have any.
    """

    transfer: TransferSet
    classes: int
    class_names: tuple[str, ...] = ()


def respond(
    frame: bytes,
    acknowledged: int,
    *,
    run_config: Mapping[str, Any],
    node_config: NodeConfig,
    run_id: int,
    node_id: int,
    common: Common | None = None,
    agreed: Mapping[str, Any] | None = None,
) -> Answer | Refusal:
    """Answer the query in ``frame``. An error of this client is an answer too, and never stops a round.

    Without ``common`` the transfer set is that which the run config names. ``agreed`` is the run config that the owner
    of this node said yes to, where there was one.
    """
    try:
        key = client_key(node_config, node_id)
        config = config_of(json.dumps(dict(run_config), sort_keys=True))
        check_terms(config, node_config, key)
        if agreed is not None:
            check_agreed(config, config_of(json.dumps(dict(agreed), sort_keys=True)), node_config)
        run = name_of_run(run_config, run_id)
        site = site_of(config, node_config, run=run, node_id=node_id, common=common)
        return answer(site, frame, config, acknowledged)
    except Exception as error:  # a user's model may raise anything
        return refuse(error, node_config, node_id)


def refuse(error: Exception, node_config: NodeConfig, node_id: int) -> Refusal:
    """Return what may be told of ``error``; all of it goes to the log of the device."""
    given = str(node_config.get("partition-id", node_id))
    who = given if given.isdigit() else str(node_id)  # any other text is its owner's
    if isinstance(error, MemoryError):
        log.error("client %s: out of memory; raise --max-memory or take a smaller learner (fedkd bench-device)", who)
        return Refusal(who, "MemoryError: this device has not enough memory for it")
    if not isinstance(error, FedkdError):
        own = "data" in node_config or not node_config.get("simulated", False)
        log.error("client %s failed", who, exc_info=error, extra={"simulated": not own})
        # Only the type leaves: the text of a foreign exception may quote private data. Our own engine says of its nodes
        # that they are simulated; there nothing is private, and whoever runs it wrote the model.
        return Refusal(who, type(error).__name__ if own else describe(error))
    log.warning("client %s: %s", who, error)
    # What is wrong with the server's settings or frames may be told; about a device's own things, only the kind.
    # A model that is built may say what it found there, whoever named it.
    told = isinstance(error, (BudgetExhausted, CodecError, ConfigError))
    text = f"{type(error).__name__}: {error}"
    if not told and "data" in node_config:
        text = f"{type(error).__name__} (see the device's log)"
    return Refusal(who, text)


def check_terms(config: Config, node_config: NodeConfig, key: int) -> None:
    """Raise :class:`ConfigError` if the run asks for what the owner of this node does not allow."""
    required = node_config.get("require-protect")
    if required is not None:
        check_requirement(str(required))
        chosen, name = protection_of(config), config.protect.partition("(")[0].strip()
        kept = {"any": chosen.unit is not None, "device": chosen.place in ON_DEVICE}.get(
            str(required), name == required
        )
        if not kept:
            raise ConfigError(
                f"this node answers only with protect = {required}, the run has protect = {config.protect!r}"
            )
        if config.noise != "system":
            raise ConfigError(f"this node answers only with noise = 'system', the run has noise = {config.noise!r}")
    check_least(config, node_config)
    spec = spec_of(config, key)
    own = "data" in node_config and "learner" not in node_config
    if own and is_factory(spec) and not node_config.get("allow-code", False):
        raise ConfigError(
            f"learner {spec!r} is code that the run names, and this node has data of its own: its owner must set "
            "learner or allow-code"
        )
    if own and not is_factory(spec):
        try:
            parse(spec)
        except SpecError as error:
            raise ConfigError(str(error)) from None
    if own and (names_a_file(spec) or names_an_address(spec)):
        kind = "a file of this node" if names_a_file(spec) else "an address for this node to ask"
        raise ConfigError(
            f"learner {spec!r} is {kind}, which no run may name, since it has data of its own: its owner "
            "must set learner"
        )


def check_agreed(config: Config, agreed: Config, node_config: NodeConfig) -> None:
    """Raise :class:`ConfigError` if a run asks for another thing, or for more, than was ``agreed`` on joining."""
    same = [key for key in AS_AGREED if key != "learner" or "learner" not in node_config]
    for key in (*same, *AT_MOST):
        asked, said = getattr(config, key), getattr(agreed, key)
        if asked > said if key in AT_MOST else asked != said:
            most = " at most" if key in AT_MOST else ""
            raise ConfigError(
                f"the run has {key} = {asked!r}, this node's owner agreed to {said!r}{most}: join again to agree anew"
            )


def check_least(config: Config, node_config: NodeConfig) -> None:
    """Raise :class:`ConfigError` if a masked sum of the run may be of fewer clients than the owner of this node asks.

    It is the run's own least that counts: by that the others abide too, also once some are lost after this node has
    added its part. A round of fewer is then refused by the protocol itself.
    """
    given = node_config.get("least-clients")
    if given is None:
        return
    try:
        floor = int(given)
    except (TypeError, ValueError):
        raise ConfigError("least-clients must be a whole number") from None  # whose it is knows it
    if protection_of(config).place == "shares" and (least := least_of(config)) < floor:
        raise ConfigError(
            f"a masked sum of this run may be of {least} clients (clients = {config.clients}, protect = "
            f"{config.protect!r}), this node's owner asks for {floor}"
        )


def check_requirement(required: str) -> None:
    """Raise :class:`ConfigError` unless ``required`` is a protection, ``any`` or ``device``."""
    known = ["any", "device", *(name for name in protection.names() if name != "none")]
    if required not in known:
        raise ConfigError(
            f"require-protect must be one of {', '.join(known)}, got {required!r}.{did_you_mean(required, known)}"
        )


@functools.lru_cache(maxsize=4)
def config_of(text: str) -> Config:
    """Return the configuration of a run config in JSON; reading it once a process is enough."""
    return Config.from_run_config(json.loads(text))


def client_key(node_config: NodeConfig, node_id: int) -> int:
    """Return the stable number of a client: its partition where it has one, else its node."""
    try:
        return int(node_config.get("partition-id", node_id))
    except (TypeError, ValueError):  # the server may be told the text of this error
        raise ConfigError("partition-id must be a whole number") from None


def site_of(config: Config, node_config: NodeConfig, *, run: str, node_id: int, common: Common | None = None) -> Site:
    """Return what this client owns: its own data where the node names some, else its share of a simulation."""
    key = client_key(node_config, node_id)
    own = node_config.get("data")
    test = None
    if own is not None:
        if config.attack != "none":
            raise ConfigError(f"attack = {config.attack!r} is for simulations; this client has data of its own")
        if common is None:
            common = _common(shared_data(config, str(node_config.get("transfer", config.transfer))))
        try:
            mine = read(str(own))
        except SpecError as error:  # not the server's setting, but the device's: its text is told to nobody
            raise DataError(str(error)) from None
        x, y = as_inputs(mine.x), labels_among(mine, outline(common))
    elif common is not None:
        raise ConfigError("this node has no data of its own")
    else:
        shared = shared_data(config, str(node_config.get("transfer", config.transfer)))
        x, y = _private(shared, key, config.clients)
        test, common = shared.test() if config.evaluate else None, _common(shared)
    state = _state_directory(config, node_config, run)
    return Site(
        key=key,
        x=x,
        y=y,
        classes=common.classes,
        transfer=common.transfer,
        test=test,
        state=state / f"{key}.safetensors",
        ledger=_ledger_directory(node_config, state / f"ledger-{key}", x),
        owner="" if own is None else _owner(str(own)),
        run=run if _outlives(node_config) else "run",
        budget=budget_of(node_config),
        accept_loss=bool(node_config.get("accept-ledger-loss", False)),
        learner=str(node_config["learner"]) if "learner" in node_config else None,
    )


def _common(shared: Federation) -> Common:
    return Common(shared.transfer, shared.dataset.classes, shared.dataset.class_names)


def outline(common: Common) -> Dataset:
    """Return a data set without rows that has the classes and the shape of the federation's."""
    none, labels = common.transfer.inputs[:0], np.zeros(0, np.int64)
    return Dataset("federation", none, labels, none, labels, common.classes, "", common.class_names)


def _outlives(node_config: NodeConfig) -> bool:
    """Say whether a client is more than a part of one simulation, whose directory holds all that it keeps."""
    return not node_config.get("simulated", False) and bool({"data", "state-dir", "ledger-dir"} & set(node_config))


def name_of_run(run_config: Mapping[str, Any], run_id: int) -> str:
    """Return what ledgers call a run: the name that it keeps when a server goes on with it, or else Flower's number.

    A server that gives two runs one name gains nothing: with other settings the second is refused, and no round that
    was begun is trained again.
    """
    name = str(run_config.get(RUN_NAME) or "")
    if name and not RUN.fullmatch(name):
        raise ConfigError(
            f"{RUN_NAME} must be 1 to 100 letters, digits, dots, dashes or underscores, got {name[:40]!r}"
        )
    return name or str(run_id)


def _owner(data: str) -> str:
    """Return whose ledger that of a device is: of the place where its data lie, whatever is added to them later."""
    return hashlib.sha256(f"data of {data}".encode()).hexdigest()


def _ledger_directory(node_config: NodeConfig, default: Path, x: np.ndarray) -> Path:
    """Return where the ledger of private inputs ``x`` lies: a device has one for all runs."""
    if "ledger-dir" in node_config:
        return Path(str(node_config["ledger-dir"]))
    if "data" in node_config:
        return remembers() / "ledgers" / _owner(str(node_config["data"]))[:32]
    if _outlives(node_config):
        return remembers() / "ledgers" / fingerprint(x)[:32]
    return default


def budget_of(node_config: NodeConfig) -> Budget | None:
    """Return what the owner of a device allows in all runs together, if the node config says so."""
    epsilon, delta = node_config.get("budget-epsilon"), node_config.get("budget-delta", 1e-5)
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


def _state_directory(config: Config, node_config: NodeConfig, run: str) -> Path:
    if "state-dir" in node_config:
        return Path(str(node_config["state-dir"]))
    if "data" not in node_config and config.output and Path(config.output).is_dir():  # on the server's own machine
        return Path(config.output) / "clients"
    return remembers() / "state" / run


def remembers() -> Path:
    """Return the folder of this device for what belongs to no run in particular: ``FEDKD_HOME``, or ``~/.fedkd``."""
    return Path(os.environ.get("FEDKD_HOME", Path.home() / ".fedkd"))
