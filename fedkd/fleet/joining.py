"""Becoming a node: what a join address says, what the server says of itself, and what leaves the device if one agrees.

``https://HOST:PORT/#code=CODE&ca=HEX``: the code lets one device in, once; HEX is the start of the SHA-256 of the
certificate of the authority that all later connections are checked by. Browsers send no fragment, so no log has it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from fedkd.config import Config, mixed
from fedkd.dataset import as_inputs, labels_among, read
from fedkd.errors import ConfigError, DataError, FedkdError, LinkError, Rejected, SpecError
from fedkd.fleet.home import Home
from fedkd.fleet.identity import Identity
from fedkd.fleet.link import PIN, Address, Link, blind, check_pin, pin_of, read_json, trusting
from fedkd.frames import VERSION
from fedkd.learner import Training, check, check_private, make_learner
from fedkd.protect import ON_DEVICE, least_of, protection_of, spending
from fedkd.registry import parse
from fedkd.site import Common, check_terms, outline
from fedkd.tell import describe

MAX_ABOUT = 1024 * 1024
MAX_TRANSFER = 512 * 1024 * 1024
NAME = 64
NOT_LET_IN = 403
FINGERPRINT = re.compile(r"[0-9a-f]{64}")  # it becomes part of a path


@dataclass(frozen=True)
class Invitation:
    """A join address: where, the one-time ``code`` and the authority's ``pin``, each empty if the address has none."""

    address: Address
    code: str
    pin: str

    @classmethod
    def of(cls, url: str, *, insecure: bool = False) -> Invitation:
        """Read a join address; raise :class:`LinkError` if it is none."""
        plain, _, fragment = url.partition("#")
        told = {key: values[0] for key, values in parse_qs(fragment).items()}
        address = Address.of(plain, insecure=insecure)
        return cls(address, told.get("code", ""), told.get("ca", ""))

    def home(self) -> Path:
        """Return the folder of a node that nobody has named: one for each server."""
        return Path.home() / ".fedkd" / "nodes" / f"{self.address.host.replace(':', '_')}-{self.address.port}"


def contact(invitation: Invitation, home: Home, *, bandwidth: float | None = None) -> Link:
    """Return a link to the server whose authority is the pinned one, or the one that this node trusted before."""
    address = invitation.address
    if not address.secure:
        return Link(address, bandwidth=bandwidth)
    known = home.known_authority()
    if known is None and invitation.pin:
        stranger = Link(address, blind())
        try:
            known = stranger.get("/fedkd/ca.crt", limit=MAX_ABOUT).decode("ascii", "replace")
        finally:
            stranger.close()
        known = check_pin(known, invitation.pin)
        home.keep_authority(known)
    elif known is not None and invitation.pin:
        known = check_pin(known, invitation.pin)
    return Link(address, trusting(known), bandwidth=bandwidth)


def about(link: Link) -> dict[str, Any]:
    """Return what the server says of itself and its run, checked for what a node needs."""
    path = "/fedkd/about.json"
    found = read_json(link.get(path, limit=MAX_ABOUT), path)
    if not isinstance(found, dict):
        raise LinkError(f"{path}: the server answers with something that is not a description of a run")
    wire = found.get("wire")
    if wire != VERSION:
        raise LinkError(
            f"{link.address} speaks version {str(wire)[:20]} of the wire format, this fedkd {VERSION}: install the same"
        )
    kinds: dict[str, Any] = {
        "name": str, "classes": int, "shape": list, "rows": int, "fingerprint": str, "config": dict,
    }  # fmt: skip
    for key, kind in kinds.items():
        if not isinstance(found.get(key), kind):
            raise LinkError(f"{path}: {key!r} must be of type {kind.__name__}, got {str(found.get(key))[:40]!r}")
    names = found.get("class_names")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise LinkError(f"{path}: 'class_names' must be a list of texts or null")
    if not (found["classes"] >= 1 and found["rows"] >= 1 and FINGERPRINT.fullmatch(found["fingerprint"])):
        raise LinkError(f"{path}: the run has no classes, no public rows or no fingerprint of them")
    return found


def authority_of(home: Home, told: Mapping[str, Any]) -> str:
    """Return the pin of the authority by which this node knows its server; the server's word where it has none."""
    known = home.known_authority()
    return pin_of(known) if known is not None else str(told.get("authority", ""))[:PIN]


def register(link: Link, code: str, identity: Identity, name: str, *, authority: str = "") -> int:
    """Hand the public key in with the one-time code, and show that its other half is here; return the node's id."""
    shown = identity.joining(code, authority, link.clock.now())
    try:
        told = link.post_json("/fedkd/join", {"code": code, "name": name[:NAME], **shown})
    except Rejected as error:
        if error.status != NOT_LET_IN:
            raise
        raise Rejected(f"not joined: {error.said}", error.status) from None
    node = told.get("node_id") if isinstance(told, dict) else None
    if not (isinstance(node, str) and node.isdigit() and len(node) <= 20):
        raise LinkError("/fedkd/join: the server answers without a node id")
    return int(node)


def fetch_transfer(link: Link, home: Home, told: Mapping[str, Any]) -> None:
    """Have the transfer set on the disk, fetched once and checked by its fingerprint."""
    name = told["fingerprint"]
    if not home.has_transfer(name):
        path = f"/fedkd/transfer/{name}"
        home.keep_transfer(_arrays(link.get(path, limit=MAX_TRANSFER), path, "x")[0], name)


def fetch_shard(link: Link, home: Home, number: int) -> str:
    """Fetch share ``number`` of a demonstration's private data; return the data set spec of it."""
    path = f"/fedkd/shard/{number}"
    x, y = _arrays(link.get(path, limit=MAX_TRANSFER), path, "x", "y")
    home.path.mkdir(parents=True, exist_ok=True)
    kept = home.path / f"shard-{number}.npz"
    with contextlib.suppress(FileNotFoundError):
        kept.unlink()
    np.savez(kept, x=x, y=y)
    return f"npz:{kept}"


def _arrays(content: bytes, path: str, *names: str) -> list[np.ndarray]:
    try:
        found = load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise DataError(f"{path}: not a safetensors file: {str(error)[:100]}") from None
    missing = [name for name in names if name not in found]
    if missing:
        raise DataError(f"{path}: has no array {missing[0]!r}")
    return [found[name] for name in names]


def config_of(told: Mapping[str, Any]) -> Config:
    """Return the configuration of the run that the server describes."""
    return Config.from_run_config(told["config"])


def with_terms(node_config: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """Return the node config with what was announced as its terms, where its owner has set none of its own.

    Later runs of the same server are held to them: the protection by its name, where this node adds the noise itself
    the budget, and where only sums are seen of how many clients they are at the least. Besides, no run gets more than
    what was announced: :func:`fedkd.site.check_agreed`.
    """
    config, terms = config_of(told), dict(node_config)
    chosen = protection_of(config)
    if chosen.unit is not None:
        terms.setdefault("require-protect", parse(config.protect)[0])
    if chosen.place in ON_DEVICE:
        terms.setdefault("budget-epsilon", config.epsilon)
        terms.setdefault("budget-delta", config.delta)
    if chosen.place == "shares":
        terms.setdefault("least-clients", least_of(config))
    return terms


def check_node(node_config: Mapping[str, Any], told: Mapping[str, Any], common: Common) -> tuple[int, tuple[int, ...]]:
    """Return how many examples a node has and their shape; raise before it joins if the run cannot suit it."""
    config = config_of(told)
    if "learner" in node_config:
        check(str(node_config["learner"]))
    check_terms(config, node_config, int(node_config.get("partition-id", 0)))
    mine = read(str(node_config["data"]))
    labels_among(mine, outline(common))
    if "learner" in node_config:
        _try_learner(str(node_config["learner"]), config, common)
    if protection_of(config).place in ON_DEVICE:
        try:
            spending(config)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"what protect = {config.protect!r} costs is computed with {error.name}, which is not installed. Run: "
                "pip install 'dp-accounting>=0.6,<0.7'"
            ) from None
    return len(mine.x), as_inputs(mine.x[:1]).shape[1:]


def _try_learner(spec: str, config: Config, common: Common) -> None:
    """Raise unless this node's own learner can be made for the run's inputs, and hide examples where it has to."""
    shape = common.transfer.inputs.shape[1:]
    try:
        made = make_learner(spec, shape=shape, classes=common.classes, training=Training(), seed=0)
        if protection_of(config).place == "training":
            check_private(made, spec, shape)
    except FedkdError:
        raise
    except Exception as error:  # its owner's factory may raise anything
        raise SpecError(f"learner {spec!r}: {describe(error)}") from None


def words(
    told: Mapping[str, Any], node_config: Mapping[str, Any], rows: int, address: Address
) -> list[tuple[str, str]]:
    """Return what joining means, as pairs of a heading and a sentence: what stays, what leaves, how it is protected."""
    config = config_of(told)
    asked, classes = told["rows"], told["classes"]
    often = "in one round" if config.rounds == 1 else f"in each of {config.rounds} rounds"
    what = f"for up to {asked} public samples, {often}: how likely you find each of {classes} classes"
    if config.expertise != "uniform":
        what += ", and how well you know the sample"
    if config.keys == "classes":
        what = f"{often}: mean predictions for each class that you hold"
    learner = node_config.get("learner") or ", ".join(dict.fromkeys(mixed(config.learner)))
    return [
        ("run", f"{told['name']} at {address}"),
        ("your data", f"{node_config['data']}: {rows} examples. They stay here, and so do labels and models"),
        ("model", str(learner) + ("" if "learner" in node_config else " (as the run deals it)")),
        ("leaves", what),
        ("", "besides: that you take part, when and how much you send, and a key made for this server"),
        ("protection", _protection(config)),
        *_owner(node_config),
    ]


def _protection(config: Config) -> str:
    chosen = protection_of(config)
    if chosen.unit is None:
        return "NONE: predictions can reveal who is in the data"
    if config.noise != "system":
        return f"NONE: {config.protect} with noise that anybody can compute again (noise = {config.noise})"
    where = "added here" if chosen.place in ON_DEVICE else "added by the server, which you have to trust"
    return (
        f"{config.protect}: epsilon {config.epsilon:g} at delta {config.delta:g} for each {chosen.unit}, "
        f"in all rounds; noise is {where}"
    )


def _owner(node_config: Mapping[str, Any]) -> list[tuple[str, str]]:
    told = []
    if "budget-epsilon" in node_config:
        delta = node_config.get("budget-delta", 1e-5)
        told.append(("budget", f"epsilon {node_config['budget-epsilon']:g} at delta {delta:g} in all runs together"))
    if "require-protect" in node_config:
        told.append(("insists on", f"protect = {node_config['require-protect']}"))
    if "least-clients" in node_config:
        told.append(("sums of", f"{node_config['least-clients']} clients or more, where masked ballots are added"))
    return told
