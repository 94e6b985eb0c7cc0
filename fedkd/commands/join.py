"""``fedkd join``: become a node of somebody's federation. Says what will leave before anything does."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

import fedkd
from fedkd.errors import ConfigError
from fedkd.learner import with_whole_path

if TYPE_CHECKING:
    from fedkd.fleet.home import Home
    from fedkd.fleet.joining import Invitation

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def join(
    url: Annotated[str, typer.Argument(help="Join address, as in 'https://HOST:PORT/#code=CODE&ca=HEX'.")],
    data: Annotated[str | None, typer.Option(help="Your data set, such as npz:/data/mine.npz.")] = None,
    demo: Annotated[int | None, typer.Option(min=0, help="Take this share of the server's demonstration data.")] = None,
    learner: Annotated[str | None, typer.Option(help="Your own model; the run's if you name none.")] = None,
    name: Annotated[str | None, typer.Option(help="Name that the server's owner sees; this machine's.")] = None,
    home: Annotated[Path | None, typer.Option(help="Folder of this node; ~/.fedkd/nodes/HOST-PORT.")] = None,
    budget_epsilon: Annotated[float | None, typer.Option(help="Most privacy to spend, in all runs together.")] = None,
    budget_delta: Annotated[float | None, typer.Option(help="Delta of that budget; 1e-5.")] = None,
    require_protect: Annotated[str | None, typer.Option(help="Answer no run without: any, device, dp_sgd ...")] = None,
    least_clients: Annotated[int | None, typer.Option(min=1, help="Add to no masked sum of fewer clients.")] = None,
    allow_code: Annotated[bool, typer.Option("--allow-code", help="Run a module:function that the run names.")] = False,
    bandwidth: Annotated[float | None, typer.Option(min=1, help="Most kB a second, each way.")] = None,
    max_memory: Annotated[float | None, typer.Option(min=1, help="Most MB of memory to ask for (Linux).")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Allow http to this machine itself.")] = False,
    once: Annotated[bool, typer.Option("--once", help="End when a run that was answered is over.")] = False,
    systemd: Annotated[
        bool, typer.Option("--systemd", help="Print a unit that starts this node at boot, instead of starting it.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Join a federation with data of your own: only predictions on public samples leave, and not before you say yes."""
    from fedkd.fleet.home import Home
    from fedkd.fleet.joining import Invitation

    invitation = Invitation.of(url, insecure=insecure)
    if data is not None and demo is not None:
        raise ConfigError("--data and --demo both name the data; give one of them")
    given: dict[str, Any] = {
        "data": _absolute(data), "learner": with_whole_path(learner) if learner else None,
        "budget-epsilon": budget_epsilon, "budget-delta": budget_delta,
        "require-protect": require_protect, "least-clients": least_clients, "allow-code": allow_code or None,
    }  # fmt: skip
    own = {key: value for key, value in given.items() if value is not None}
    where = Home((home or invitation.home()).expanduser().resolve())
    new = own or demo is not None or name or bandwidth or max_memory
    if systemd and not new and where.settings() is not None:
        _print_unit(where)  # of a node that may well be running: nothing is changed, so nothing is locked
        return
    with where.locked():
        limits = _Limits(1000 * bandwidth if bandwidth else None, round(1e6 * max_memory) if max_memory else None)
        _set_up(where, invitation, own, demo, name, limits, ask=not yes and _is_terminal(), quiet=systemd)
    if systemd:
        _print_unit(where)
    else:
        _live(where, once=once)


@dataclass(frozen=True)
class _Limits:
    """What a node may use: bytes a second, bytes of memory."""

    bandwidth: float | None
    memory: int | None


def _set_up(
    home: Home,
    invitation: Invitation,
    own: dict[str, Any],
    demo: int | None,
    name: str | None,
    limits: _Limits,
    *,
    ask: bool,
    quiet: bool,
) -> None:
    """Have everything in the node's folder that its life needs; nothing of it leaves before its owner agrees."""
    from fedkd.fleet import joining
    from fedkd.fleet.home import Settings
    from fedkd.fleet.identity import Identity

    before = home.settings()
    kept = dict(before.node_config) if before is not None else {}
    if "data" in own or demo is not None:
        kept.pop("partition-id", None)
    config = {**kept, **own, "state-dir": str(home.path / "state")}
    if before is not None:
        limits = _Limits(limits.bandwidth or before.bandwidth, limits.memory or before.memory)
    link = joining.contact(invitation, home, bandwidth=limits.bandwidth)
    try:
        told = joining.about(link)
        if demo is not None:
            config |= {"data": joining.fetch_shard(link, home, demo), "partition-id": demo}
        if "data" not in config:
            offered = told.get("shards")
            hint = f", or --demo 0 to {offered - 1}" if isinstance(offered, int) and offered > 0 else ""
            raise ConfigError(f"say what data this node has: --data npz:/path/to/mine.npz{hint}")
        config = joining.with_terms(config, told)
        joining.fetch_transfer(link, home, told)
        rows, _ = joining.check_node(config, told, home.common(told))
        _explain(joining.words(told, config, rows, invitation.address), err if quiet else out)
        if ask and not typer.confirm("Join?"):
            raise ConfigError("not joined; nothing has left this machine")
        identity = Identity.at(home.key)
        node_id = before.node_id if before is not None else 0
        if invitation.code and (before is None or not node_id):
            authority = joining.authority_of(home, told)
            node_id = joining.register(
                link, invitation.code, identity, name or os.uname().nodename, authority=authority
            )
        called = name or (before.name if before is not None else os.uname().nodename)
        settings = Settings(str(invitation.address), called, node_id, told, config, limits.bandwidth, limits.memory)
        home.keep_settings(settings if before is None else replace(before, **vars(settings)))
    finally:
        link.close()


def _explain(pairs: list[tuple[str, str]], to: Console) -> None:
    from fedkd.fleet.resident import printable

    for heading, sentence in pairs:
        to.print(f"  {heading:<11} {printable(sentence)}", markup=False, soft_wrap=True)


def _print_unit(home: Home) -> None:
    from fedkd.fleet.unit import owner, unit
    from fedkd.site import remembers

    settings = home.settings()
    kept = remembers()
    kept.mkdir(parents=True, exist_ok=True)  # the unit may write there, but not make it
    memory = settings.memory if settings is not None else None
    python = Path(sys.executable)
    sys.stdout.write(unit(home.path, python=python, user=owner(home.path), remembers=kept.resolve(), memory=memory))


def _live(home: Home, *, once: bool) -> None:
    """Become the node: a process of its own, since this one holds what only a command line needs."""
    sys.stdout.flush()
    words = [str(home.path), *(["--once"] if once else [])]
    if os.name == "posix":
        # -P: a folder that one happens to stand in must not decide what is imported.
        command = [sys.executable, "-P", "-m", "fedkd.fleet", *words]
        with contextlib.suppress(OSError):  # under an emulator: then this process has to do
            os.execve(sys.executable, command, _environment(dict(os.environ)))
    from fedkd.fleet.resident import main

    raise typer.Exit(main(words))


def _environment(environment: dict[str, str]) -> dict[str, str]:
    """Return an environment in which the same fedkd is found, also one that is not installed."""
    root = Path(fedkd.__file__).resolve().parents[1]
    if root.name not in ("site-packages", "dist-packages"):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), environment.get("PYTHONPATH", "")]))
    return environment


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def _absolute(spec: str | None) -> str | None:
    """Return a data spec with a whole path: the node may be started again from another folder."""
    if spec is None:
        return None
    kind, colon, path = spec.partition(":")
    return f"{kind}:{Path(path).expanduser().resolve()}" if colon and kind.isidentifier() and "(" not in kind else spec
