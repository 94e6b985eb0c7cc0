"""A run for devices elsewhere: certificates, SuperLink, front and ServerApp started, watched, and ended together."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import math
import shlex
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import httpx
import safetensors.numpy
import uvicorn
from rich.text import Text

import fedkd
from fedkd.collect import Observer
from fedkd.config import RUN_NAME, Config
from fedkd.errors import FedkdError, QuorumError
from fedkd.federation import Federation
from fedkd.flower.appdir import app_directory
from fedkd.frames import VERSION
from fedkd.preflight import check_data
from fedkd.rundir import SERVED, RunDirectory
from fedkd.screen import introduction
from fedkd.serving import pki as certificates
from fedkd.serving.center import Center, center
from fedkd.serving.front import Offer, front
from fedkd.serving.gate import Gate, snapshot
from fedkd.serving.home import Home, Terms, as_seen, held, invitation, listening, read_live, write_live
from fedkd.serving.invites import Member, Registry
from fedkd.serving.limits import Patience, impatient
from fedkd.serving.pki import Pki
from fedkd.serving.told import Start, Transcript, keep_names, measured, with_rounds
from fedkd.status import StatusFile
from fedkd.units import counted

log = logging.getLogger("fedkd.serving")

LOOK = 1.0
"""Seconds between two looks at members and processes."""
KEEP_ALIVE = 65
"""Seconds that a silent connection stays open: phones ask every 30 s at the slowest."""
UPSTREAM_KEEP_ALIVE = 4.0
"""The SuperLink closes its connections after 5 s; we do before, or a call could be lost."""
CONNECTIONS = 2048


class Board(Protocol):
    """Where it is shown what goes on."""

    def line(self, text: str | Text) -> None:
        """Show one line of what happened."""

    def invite(self, url: str) -> None:
        """Show how to join."""

    def nodes(self, rows: list[dict[str, object]]) -> None:
        """Show the nodes, as they are now."""


def serve(config: Config, path: Path, terms: Terms, board: Board) -> int:
    """Serve one run and return its exit code: 0 if it completed, 130 if it was stopped, else 1.

    Raises :class:`FedkdError` for whatever is wrong before it starts: the home is in use or read-only, certificates are
    missing, expired or for other names, the port is taken, too few nodes come.
    """
    home = Home(Path(terms.home).expanduser().resolve())
    terms = terms.reachable()
    with (
        held(home) as registry,
        listening(terms.host, terms.port) as listener,  # first: where the port is taken, nothing is left behind
        StatusFile(path, engine=SERVED, rounds=config.rounds, resumes=config.resume, gives_way=True) as status,
        tempfile.TemporaryDirectory(prefix="fedkd-") as scratch,
        measured(path, terms.metrics, gates := list[Gate]()) as metrics,
    ):
        status("starting", {})
        pki = certificates_of(home, terms, board)
        app_dir = app_directory(Path(scratch))
        shared = check_data(config)
        terms = replace(terms, port=listener.getsockname()[1], home=str(home.folder))
        for place in (home.terms, RunDirectory(path).terms):
            terms.write(place)
        offer = offer_of(config, path.name, shared, pki, demo=terms.demo)
        for line in introduction(config, path.name):
            board.line(Text.from_markup(line))
        if metrics is not None:
            board.line(f"metrics for Prometheus on http://127.0.0.1:{metrics}/metrics")
        board.line(f"starting Flower's SuperLink; logs in {home.flower}")
        with (
            logged(home),
            center(home.flower, pki, database=terms.database, app_dir=app_dir) as behind,
            front_of(offer, registry, behind, listener) as gate,
            Warden(home, registry, gate, behind, board) as warden,
        ):
            gates.append(gate)
            seats = terms.seats or config.clients
            board.invite(invitation(registry, terms, offer.ca, seats=seats))
            more = f"fedkd nodes invite --home {shlex.quote(str(home.folder))}"
            board.line(f"it lets in {counted(seats, 'device')} within an hour; another one: {more}")
            if await_nodes(registry, gate, config, terms.wait, board, status) >= config.clients:
                with contextlib.suppress(FedkdError):
                    warden.look()  # which says who came last
                board.line("all nodes are here: the run starts")
            status("starting", {})
            named = {**config.to_run_config(), RUN_NAME: RunDirectory(path).name_in_ledger()}
            run = behind.link.submit(app_dir, named)
            warden.starts(run, path)
            return followed(behind, home, run, path, board)


def followed(behind: Center, home: Home, run: str, path: Path, board: Board) -> int:
    """Show what a run says until it has ended, and return its exit code; raise what it says itself was wrong."""
    try:
        with Transcript(home.transcript, board.line) as transcript:
            code = behind.link.follow(run, transcript)
    except BaseException:
        with contextlib.suppress(FedkdError):  # it may have ended itself
            behind.control.stop_runs()
        raise
    if transcript.reason:
        saved = RunDirectory(path).checkpoint.exists() and "fedkd resume" not in transcript.reason
        raise FedkdError(transcript.reason + (f" Continue: fedkd resume {path.name}" if saved else ""))
    if code:
        board.line(f"all that Flower said of it: {home.transcript}")
    return code


def certificates_of(home: Home, terms: Terms, board: Board) -> Pki:
    """Return the certificates of a server, made anew if there are none at all, renewed if for other hosts only."""
    if not home.pki.exists():
        certificates.init(home.pki, [terms.advertise])
        board.line(f"made a certificate authority and a certificate for {terms.advertise} in {home.pki}")
    found = certificates.find(home.pki)
    if not certificates.is_for(found, terms.advertise) and found.ca_key.exists():
        certificates.renew(home.pki, [terms.advertise])
        board.line(
            f"renewed the certificate, which was not for {terms.advertise}; the authority stays, so nodes that joined "
            "trust this server as before"
        )
    found = certificates.find(home.pki, host=terms.advertise)
    certificates.find(home.pki, host="127.0.0.1")  # the SuperLink's address
    for warning in certificates.warnings(found):
        board.line(warning)
    return found


def offer_of(config: Config, name: str, shared: Federation, pki: Pki, *, demo: bool) -> Offer:
    """Return what everybody may know of a run, and with ``demo`` the shares of its simulated private data."""
    about = {
        "fedkd": fedkd.__version__,
        "wire": VERSION,
        "name": name,
        "classes": shared.dataset.classes,
        "class_names": list(shared.dataset.class_names) or None,
        "shape": list(shared.transfer.inputs.shape[1:]),
        "rows": len(shared.transfer),
        "fingerprint": shared.transfer.fingerprint,
        # Where it is written here is nobody's business, nor whether it was begun before.
        "config": {**config.to_run_config(), "output": "", "resume": False},
        "shards": config.clients if demo else 0,
        "authority": certificates.pin(pki.ca.read_bytes()),  # what who joins signs for
    }

    def shard(k: int) -> bytes:
        x, y = shared.private(k)
        return safetensors.numpy.save({"x": x, "y": y.astype("int64")})

    return Offer(
        about,
        pki.ca.read_bytes(),
        safetensors.numpy.save({"x": shared.transfer.inputs}),
        shared.transfer.fingerprint,
        config.clients if demo else 0,
        shard,
    )


def upstream_to(address: str, ca: Path | None) -> httpx.AsyncClient:
    """Return the connections to a SuperLink, verified by ``ca``; plain HTTP if that is None."""
    scheme = "http" if ca is None else "https"
    return httpx.AsyncClient(
        base_url=f"{scheme}://{address}",
        verify=certificates.trusting(ca) if ca is not None else False,
        timeout=httpx.Timeout(60.0, connect=5.0),
        limits=httpx.Limits(max_connections=64, max_keepalive_connections=64, keepalive_expiry=UPSTREAM_KEEP_ALIVE),
        trust_env=False,
        follow_redirects=False,
    )


@contextlib.contextmanager
def front_of(offer: Offer, registry: Registry, behind: Center, listener: socket.socket) -> Iterator[Gate]:
    """Answer on ``listener`` over TLS, in a thread of its own, until the end of the block."""
    gate = Gate(registry, upstream_to(behind.address, behind.pki.ca))
    app = front(offer, gate, behind.control.register)
    settings = uvicorn.Config(
        app,
        ssl_certfile=str(behind.pki.certificate),
        ssl_keyfile=str(behind.pki.key),
        http=impatient(Patience()),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=3,
        limit_concurrency=CONNECTIONS,
    )
    server, failure = uvicorn.Server(settings), list[BaseException]()

    def run() -> None:
        try:
            server.run(sockets=[listener])
        except BaseException as error:  # told below, by the thread that waits
            failure.append(error)

    thread = threading.Thread(target=run, name="front", daemon=True)
    thread.start()
    try:
        while not server.started:
            thread.join(timeout=0.05)
            if not thread.is_alive():
                raise FedkdError(f"the front did not start: {failure[0] if failure else 'see gate.log'}")
        yield gate
    finally:
        server.should_exit = True
        thread.join(timeout=10)


class Warden:
    """Keeps members, SuperLink and processes in step while a run is served. Use as a context manager.

    Keys that the owner added are registered, revoked ones unregistered, so that nobody waits for them; a SuperExec
    that died is started again.
    """

    def __init__(self, home: Home, registry: Registry, gate: Gate, behind: Center, board: Board) -> None:
        """Watch nothing yet."""
        self._home, self._registry, self._gate, self._behind, self._board = home, registry, gate, behind, board
        self._ended, self._thread = threading.Event(), threading.Thread(target=self._watch, name="warden", daemon=True)
        self._mutex, self._gone = threading.Lock(), set[str]()
        self._states: dict[str, object] = {}
        self._start: Start | None = None
        self._run: Path | None = None
        self._earlier = read_live(home).rows

    def starts(self, run: str, path: Path) -> None:
        """Watch from now on whether Flower gets the ServerApp of ``run`` going; in ``path`` is what that writes."""
        self._start, self._run = Start(run), path

    def __enter__(self) -> Warden:
        known = self._behind.control.nodes()
        for member in self._registry.members():
            node_id = known.get(member.key.encode())
            if member.revoked is None and member.node_id != node_id:  # with a new database all are unknown
                fresh = node_id or self._behind.control.register(member.key.encode(), member.name)
                self._registry.settle(member.key, fresh)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(timeout=10)
        self._keep(ended=True)

    def _watch(self) -> None:
        while not self._ended.wait(LOOK):
            try:
                self.look()
            except FedkdError as error:  # the SuperLink is busy, or going; look again
                log.warning("%s", error)
            except Exception:
                log.exception("the warden failed")

    def look(self) -> None:
        """Look once at everything."""
        with self._mutex:
            self._look()

    def _look(self) -> None:
        if self._behind.executor.keep():
            log.warning("SuperExec had ended and was started again")
        for member in self._registry.members():
            try:
                self._keep_in_step(member)
            except FedkdError as error:  # look again later; the others do not wait for this one
                log.warning("%s: %s", member.name, error)
        if self._start is not None and (line := self._start.look(self._behind.control)):
            self._board.line(line)
        rows = snapshot(self._registry, self._gate.traffic, now=time.time())
        for row in rows:
            mark, state = str(row["key"]), row["state"]
            if state in ("here", "silent") and self._states.get(mark) != state:
                self._board.line(f"{row['name']} is {state}")
            self._states[mark] = state
        if self._run is not None:
            rows = with_rounds(rows, self._run)
        self._board.nodes(rows)
        self._keep()

    def _keep(self, *, ended: bool = False) -> None:
        """Write down what other commands and the report may want to know."""
        rows = as_seen(self._registry, self._gate.traffic, self._earlier, now=time.time())
        if self._run is not None:
            keep_names(self._run, self._registry)
            rows = with_rounds(rows, self._run)
        write_live(self._home, rows, ended=ended)

    def _keep_in_step(self, member: Member) -> None:
        if member.revoked is not None and member.node_id and member.mark not in self._gone:
            self._behind.control.unregister(member.node_id)
            self._gone.add(member.mark)
            self._board.line(f"{member.name} was revoked")
        elif member.revoked is None and not member.node_id and not member.invite:  # joining registers its own
            node_id = self._behind.control.register(member.key.encode(), member.name)
            self._registry.settle(member.key, node_id)
            self._board.line(f"{member.name} is registered as node {node_id}")


def await_nodes(
    registry: Registry, gate: Gate, config: Config, wait: float, board: Board, observe: Observer = lambda _, __: None
) -> int:
    """Return how many nodes are here when it is ``config.clients``, or after ``wait`` seconds if they are a quorum.

    ``observe`` is told how many there are so far.
    """

    def here() -> int:
        return sum(row["state"] == "here" for row in snapshot(registry, gate.traffic, now=time.time()))

    end, need = time.monotonic() + wait, max(1, math.ceil(config.quorum * config.clients))
    board.line(f"waiting for {counted(config.clients, 'node')} (clients = {config.clients})")
    told = -1
    while (present := here()) < config.clients:
        if present != told:
            told, left = present, max(0.0, end - time.monotonic())
            observe("waiting", {"present": present, "clients": config.clients, "left": left})
        if time.monotonic() > end:
            if present >= need:
                board.line(
                    f"{present} of {config.clients} nodes are here after {wait:g} s: a quorum, so the run starts"
                )
                return present
            raise QuorumError(
                f"{present} of {counted(config.clients, 'node')} came within {wait:g} s, {need} are needed (quorum = "
                f"{config.quorum:g}); give --wait more seconds, or set clients"
            )
        time.sleep(0.2)
    return present


@contextlib.contextmanager
def logged(home: Home) -> Iterator[None]:
    """Send what front and server have to say to ``gate.log``, which never grows beyond 10 MB."""
    handler = logging.handlers.RotatingFileHandler(home.log, maxBytes=5_000_000, backupCount=1, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    found = {name: logging.getLogger(name) for name in ("fedkd.serving", "uvicorn", "asyncio")}
    before = {name: (logger.level, logger.propagate) for name, logger in found.items()}
    for name, logger in found.items():
        logger.addHandler(handler)
        logger.setLevel(logging.INFO if name == "fedkd.serving" else logging.WARNING)
        logger.propagate = False
    try:
        yield
    finally:
        for name, logger in found.items():
            logger.removeHandler(handler)
            logger.level, logger.propagate = before[name]
        handler.close()
