"""``fedkd serve``, ``fedkd pki``, ``fedkd nodes``: a run for devices elsewhere, its certificates, its members."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from fedkd.commands.group import Commands
from fedkd.config import Config, Resolved, resolve
from fedkd.errors import FedkdError, did_you_mean
from fedkd.execution import execute, out, outcome, place
from fedkd.rundir import SERVED, RunDirectory
from fedkd.units import counted, seconds

HOME = Path("~/.fedkd/serve")

pki_app = typer.Typer(
    cls=Commands, help="Make and look at a server's certificates, and keys for stock nodes.", no_args_is_help=True
)
nodes_app = typer.Typer(
    cls=Commands, help="See, invite and revoke the nodes of a server, also while it serves.", no_args_is_help=True
)

Preset = Annotated[str | None, typer.Option(help="A preset to start from.")]
File = Annotated[Path | None, typer.Option("--config", help="TOML file of settings.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="One setting, as in --set rounds=5. May be repeated.")]
HomeFolder = Annotated[Path, typer.Option("--home", help="Folder in which the server keeps who it is.")]
Folder = Annotated[Path | None, typer.Argument(help="Folder of the certificates; that of the default home.")]
Hosts = Annotated[list[str] | None, typer.Option("--host", help="Name or address that devices use. May be repeated.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]


def serve(
    preset: Preset = None,
    config: File = None,
    set_: Sets = None,
    name: Annotated[str | None, typer.Option(help="Name of the run directory under runs/.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "0.0.0.0",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the front; 0 takes a free one.")] = 8443,
    advertise: Annotated[str, typer.Option(help="Name or address by which devices reach this machine.")] = "",
    demo: Annotated[
        bool, typer.Option("--demo", help="Offer shares of simulated data to devices without any.")
    ] = False,
    seats: Annotated[int, typer.Option(min=0, help="Devices that the join code lets in; 0: as many as clients.")] = 0,
    home: HomeFolder = HOME,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for the nodes before the run starts.")] = 3600.0,
    database: Annotated[str, typer.Option(help="Where Flower keeps its state: disk or memory.")] = "disk",
    metrics: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of 127.0.0.1 with metrics for Prometheus; 0: a free one.")
    ] = None,
) -> None:
    """Run a federation of devices: a front for them, Flower's SuperLink behind it, and a join code to begin with."""
    from fedkd.serving.center import DATABASES
    from fedkd.serving.home import Terms

    if database not in DATABASES:
        known = ", ".join(DATABASES)
        raise FedkdError(f"unknown database {database!r}.{did_you_mean(database, DATABASES)} Known: {known}.")
    resolved = resolve(preset=preset, file=config, sets=set_ or [])
    terms = Terms(str(home), host, port, advertise, demo, seats, wait, database, metrics)
    path = place(resolved, name)
    execute(resolved, path, _served(terms), resuming=resolved.config.resume)


def resume_served(resolved: Resolved, directory: RunDirectory) -> None:
    """Continue a run that ``fedkd serve`` began, at the same place; devices find it there again."""
    from fedkd.serving.home import Terms

    terms = Terms.read(directory.terms)
    execute(resolved, directory.path.resolve(), _served(terms), resuming=True)


def _served(terms: Any) -> Any:
    def run(settings: Config, path: Path) -> Any:
        from fedkd.engine import command_line
        from fedkd.serving.board import TerminalBoard
        from fedkd.serving.service import serve

        RunDirectory(path).note(SERVED, command_line())
        with TerminalBoard(out) as board:
            code = serve(settings, path, terms, board)
        return outcome(code, path)

    return run


@pki_app.command(name="init")
def pki_init(folder: Folder = None, host: Hosts = None, force: Force = False) -> None:
    """Make a certificate authority and a server's certificate; refuses where there is one, unless --force."""
    from fedkd.serving import pki

    made = pki.init(_pki_folder(folder), host or [], force=force)
    _print(pki.describe(made.folder))


@pki_app.command(name="renew")
def pki_renew(folder: Folder = None, host: Hosts = None) -> None:
    """Issue the server's certificate anew, for more names or a longer time; devices need not join again."""
    from fedkd.serving import pki

    made = pki.renew(_pki_folder(folder), host or [])
    _print(pki.describe(made.folder))


@pki_app.command(name="node")
def pki_node(
    name: Annotated[str, typer.Argument(help="A name for the node.")],
    folder: Folder = None,
    force: Force = False,
) -> None:
    """Make a key pair for a stock SuperNode; fedkd nodes add lets it in."""
    from fedkd.serving import pki

    private, public = pki.node_key(_pki_folder(folder), name, force=force)
    _print([f"private key {private}: bring it to the node, nowhere else", f"public key  {public}"])
    _print([f"let it in:  fedkd nodes add {public}"])


@pki_app.command(name="show")
def pki_show(folder: Folder = None) -> None:
    """Say for whom the certificates are, until when, and what is wrong with them."""
    from fedkd.serving import pki

    _print(pki.describe(_pki_folder(folder)))


@nodes_app.command(name="list")
def nodes_list(home: HomeFolder = HOME) -> None:
    """List the nodes that were let in, with what the server has last seen of them."""
    from fedkd.serving.board import node_table
    from fedkd.serving.home import as_seen, read_live

    kept, registry = _registry(home)
    now, live = time.time(), read_live(kept)
    rows = as_seen(registry, {}, live.rows, now=now)
    if rows:
        out.print(node_table(rows, now=now, width=out.width))
    revoked = sum(row["state"] == "revoked" for row in rows)
    seats = registry.seats_left()
    counts = f"{counted(len(rows), 'node')}{f', {revoked} of them revoked' if revoked else ''}"
    _print([f"{counts}; {counted(seats, 'seat')} left on codes that are still good"])
    if not live.runs(now):
        when = f"; this is what it saw until {seconds(now - live.written)} ago" if live.written else ""
        _print([f"no server runs in {kept.folder} now{when}"])


@nodes_app.command(name="invite")
def nodes_invite(
    seats: Annotated[int, typer.Option(min=1, max=10_000, help="Devices that the code lets in.")] = 1,
    hours: Annotated[float, typer.Option(min=0.01, max=24 * 366, help="How long it is good.")] = 1.0,
    home: HomeFolder = HOME,
) -> None:
    """Make another join code and print its URL and QR code."""
    from fedkd.serving.board import qr
    from fedkd.serving.home import Terms, invitation
    from fedkd.serving.pki import find

    kept, registry = _registry(home)
    url = invitation(
        registry, Terms.read(kept.terms), find(kept.pki).ca.read_bytes(), seats=seats, lifetime=hours * 3600
    )
    if out.is_terminal:
        sys.stdout.write(qr(url))
    _print([f"join with: fedkd join '{url}'"])


@nodes_app.command(name="add")
def nodes_add(
    key: Annotated[Path, typer.Argument(help="Public key of the node, OpenSSH or PEM.")],
    name: Annotated[str | None, typer.Option(help="Its name; that of the file, if not given.")] = None,
    home: HomeFolder = HOME,
) -> None:
    """Let in a node by its public key, without a code: stock SuperNodes have none."""
    _, registry = _registry(home)
    try:
        content = key.expanduser().read_bytes()
    except OSError as error:
        raise FedkdError(f"cannot read {key}: {error.strerror}") from None
    member = registry.add(content, name or key.stem)
    _print([f"{member.name} is let in, key {member.mark}; a server that runs registers it within seconds"])


@nodes_app.command(name="revoke")
def nodes_revoke(
    node: Annotated[str, typer.Argument(help="Name, node id or key of the node, as fedkd nodes list shows them.")],
    home: HomeFolder = HOME,
) -> None:
    """Let a node in no more; it holds from its next call on. Its device has to join anew, with another key."""
    _, registry = _registry(home)
    member = registry.revoke(node)
    _print([f"{member.name} is revoked, key {member.mark}"])


def _registry(home: Path) -> tuple[Any, Any]:
    from fedkd.serving.home import Home
    from fedkd.serving.invites import Registry

    place = Home(home.expanduser().resolve())
    if not place.folder.is_dir():
        raise FedkdError(f"there is no {place.folder}: start a server first, with fedkd serve")
    return place, Registry(place.registry)


def _pki_folder(folder: Path | None) -> Path:
    return (folder or HOME / "pki").expanduser().resolve()


def _print(lines: list[str]) -> None:
    for line in lines:
        out.print(line, markup=False, soft_wrap=True)
