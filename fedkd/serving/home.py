"""The folder in which a server keeps who it is: certificates, members, Flower's database. One server at a time."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fedkd import locks
from fedkd.errors import FedkdError
from fedkd.files import write_atomic
from fedkd.serving.gate import Traffic, snapshot, state_of
from fedkd.serving.invites import LIFETIME, Registry
from fedkd.serving.pki import pin

EARLIER = ("heard", "address", "calls", "bytes_in", "bytes_out", "refused", "speed", "client", "rounds", "last")
"""What is kept of a node that was here when the server last ran."""
STOPPED = 15.0
"""Seconds without a word after which a server is taken for one that does not run; it writes every second."""
EVERYWHERE = ("0.0.0.0", "::", "")


@dataclass(frozen=True)
class Home:
    """The places in a server's folder."""

    folder: Path

    @property
    def pki(self) -> Path:
        """The folder of certificates and keys."""
        return self.folder / "pki"

    @property
    def registry(self) -> Path:
        """The file of join codes and members."""
        return self.folder / "members.json"

    @property
    def flower(self) -> Path:
        """The folder of Flower's processes: their logs and database."""
        return self.folder / "flower"

    @property
    def transcript(self) -> Path:
        """All that Flower and its ServerApp said of the runs of this server."""
        return self.flower / "run.log"

    @property
    def log(self) -> Path:
        """What the front refused and whom it let in, one JSON object a line."""
        return self.folder / "gate.log"

    @property
    def terms(self) -> Path:
        """How this server was last reached."""
        return self.folder / "serve.json"

    @property
    def live(self) -> Path:
        """What the front has seen of its nodes, written while it runs."""
        return self.folder / "live.json"


@dataclass(frozen=True)
class Terms:
    """How a run is served: all of ``fedkd serve`` but the run's own settings."""

    home: str
    host: str = "0.0.0.0"
    port: int = 8443
    advertise: str = ""
    demo: bool = False
    seats: int = 0
    wait: float = 3600.0
    database: str = "disk"
    metrics: int | None = None

    def write(self, path: Path) -> None:
        """Keep the terms in ``path``, so that others can continue or invite."""
        write_atomic(path, json.dumps(asdict(self), indent=1).encode())

    @classmethod
    def read(cls, path: Path) -> Terms:
        """Return the terms in ``path``."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise FedkdError(f"there is no {path}: start a server first, with fedkd serve") from None
        except (OSError, ValueError, TypeError) as error:
            raise FedkdError(f"cannot read {path}: {error}") from None

    @property
    def origin(self) -> str:
        """``https://HOST:PORT`` as devices reach it."""
        name = self.advertise or self.host
        return f"https://[{name}]:{self.port}" if ":" in name else f"https://{name}:{self.port}"

    def reachable(self) -> Terms:
        """Return the terms with the name or address that devices are told, if none is given."""
        return replace(self, advertise=self.advertise or (own_address() if self.host in EVERYWHERE else self.host))


@contextlib.contextmanager
def held(home: Home) -> Iterator[Registry]:
    """Hold ``home`` for one server; yield its registry. Raises :class:`FedkdError` if another server has it."""
    if not locks.KNOWN:
        raise FedkdError("a server needs the file locks of a POSIX system, or two could share one home")
    try:
        home.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = locks.lock(home.folder / "lock")
    except locks.Busy as busy:
        raise FedkdError(
            f"another server has {home.folder} (process {busy.holder}): end it, or give --home another folder"
        ) from None
    except OSError as error:
        raise FedkdError(f"cannot write {error.filename or home.folder}: {error.strerror}") from None
    try:
        yield Registry(home.registry)
    finally:
        os.close(handle)


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens; raise :class:`FedkdError` if the port is taken or the address is not ours."""
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, address = found[0]
        both = family == socket.AF_INET6 and host in EVERYWHERE and socket.has_dualstack_ipv6()
        return socket.create_server(address[:2], family=family, backlog=512, dualstack_ipv6=both)
    except socket.gaierror:
        raise FedkdError(f"--host {host!r} is no address of this machine; try 0.0.0.0 or 127.0.0.1") from None
    except OverflowError:
        raise FedkdError(f"--port must be in 0 to 65535, got {port}") from None
    except OSError as error:
        reason = {98: "is in use", 13: "needs a privileged user"}.get(error.errno or 0, "")
        if reason:
            raise FedkdError(f"port {port} {reason}: choose another with --port") from None
        raise FedkdError(f"cannot listen on {host}:{port}: {error.strerror}") from None


def own_address() -> str:
    """Return the address by which others on the network reach this machine, as well as it can be known offline."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # a documentation address: asks the routing table, sends nothing
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def join_url(terms: Terms, code: str, ca: bytes) -> str:
    """Return what a device needs to join; the part after ``#`` stays on the device."""
    return f"{terms.origin}/#code={code}&ca={pin(ca)}"


def invitation(registry: Registry, terms: Terms, ca: bytes, *, seats: int = 1, lifetime: float = LIFETIME) -> str:
    """Make a join code for ``seats`` devices and return its URL."""
    return join_url(terms, registry.invite(seats=seats, lifetime=lifetime), ca)


@dataclass(frozen=True)
class Live:
    """What a server last wrote of its nodes: when (0: never), rows by the mark of the key, whether that was its end."""

    written: float = 0.0
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    ended: bool = True

    def runs(self, now: float) -> bool:
        """Return whether the server runs, as far as one can tell."""
        return not self.ended and now - self.written < STOPPED


def write_live(home: Home, rows: list[dict[str, object]], *, ended: bool = False) -> None:
    """Write what the front has seen of its nodes; what is lost in a crash is no harm."""
    content = {"written": time.time(), "ended": ended, "nodes": rows}
    with contextlib.suppress(OSError):
        write_atomic(home.live, json.dumps(content).encode(), durable=False)


def read_live(home: Home) -> Live:
    """Return what :func:`write_live` wrote, nothing if there is nothing."""
    try:
        found = json.loads(home.live.read_text(encoding="utf-8"))
        rows = {str(row["key"]): dict(row) for row in found["nodes"]}
        return Live(float(found["written"]), rows, bool(found.get("ended")))
    except (OSError, ValueError, KeyError, TypeError):
        return Live()


def as_seen(
    registry: Registry, traffic: Mapping[str, Traffic], earlier: Mapping[str, Mapping[str, Any]], *, now: float
) -> list[dict[str, object]]:
    """Return the rows of :func:`snapshot`, with what ``earlier`` ones say of nodes that were not heard since."""
    rows = snapshot(registry, traffic, now=now)
    for row in rows:
        past = earlier.get(str(row["key"]), {})
        if not row["heard"] and past:
            row |= {key: past[key] for key in EARLIER if key in past}
            if row["state"] != "revoked":
                row["state"] = state_of(float(past.get("heard", 0.0)), now)
    return rows
