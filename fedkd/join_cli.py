"""``fedkd join``: become a node of somebody's federation. Says what will leave before anything does."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from fedkd.errors import ConfigError

if TYPE_CHECKING:
    from fedkd.fleet.home import Home
    from fedkd.fleet.joining import Invitation

out = Console(highlight=False)


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
    allow_code: Annotated[bool, typer.Option("--allow-code", help="Run a module:function that the run names.")] = False,
    bandwidth: Annotated[float | None, typer.Option(min=1, help="Most kB a second, each way.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Allow http to this machine itself.")] = False,
    once: Annotated[bool, typer.Option("--once", help="End when a run that was answered is over.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Join a federation with data of your own: only predictions on public samples leave, and not before you say yes."""
    from fedkd.fleet.home import Home
    from fedkd.fleet.joining import Invitation

    invitation = Invitation.of(url, insecure=insecure)
    if data is not None and demo is not None:
        raise ConfigError("--data and --demo both name the data; give one of them")
    given: dict[str, Any] = {
        "data": _absolute(data), "learner": learner, "budget-epsilon": budget_epsilon, "budget-delta": budget_delta,
        "require-protect": require_protect, "allow-code": allow_code or None,
    }  # fmt: skip
    own = {key: value for key, value in given.items() if value is not None}
    where = Home((home or invitation.home()).expanduser().resolve())
    with where.locked():
        _set_up(where, invitation, own, demo, name, bandwidth, ask=not yes and _is_terminal())
    _live(where, once=once)


def _set_up(
    home: Home,
    invitation: Invitation,
    own: dict[str, Any],
    demo: int | None,
    name: str | None,
    bandwidth: float | None,
    *,
    ask: bool,
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
    rate = 1000 * bandwidth if bandwidth is not None else before.bandwidth if before is not None else None
    link = joining.contact(invitation, home, bandwidth=rate)
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
        _explain(joining.words(told, config, rows, invitation.address))
        if ask and not typer.confirm("Join?"):
            raise ConfigError("not joined; nothing has left this machine")
        identity = Identity.at(home.key)
        node_id = before.node_id if before is not None else 0
        if invitation.code and (before is None or not node_id):
            node_id = joining.register(link, invitation.code, identity, name or os.uname().nodename)
        called = name or (before.name if before is not None else os.uname().nodename)
        settings = Settings(str(invitation.address), called, node_id, told, config, rate)
        home.keep_settings(settings if before is None else replace(before, **vars(settings)))
    finally:
        link.close()


def _explain(pairs: list[tuple[str, str]]) -> None:
    from fedkd.fleet.resident import printable

    for heading, sentence in pairs:
        out.print(f"  {heading:<11} {printable(sentence)}", markup=False, soft_wrap=True)


def _live(home: Home, *, once: bool) -> None:
    """Become the node: a process of its own, since this one holds what only a command line needs."""
    sys.stdout.flush()
    words = [sys.executable, "-m", "fedkd.fleet", str(home.path), *(["--once"] if once else [])]
    if os.name == "posix":
        os.execv(sys.executable, words)
    from fedkd.fleet.resident import main

    raise typer.Exit(main(words[3:]))


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def _absolute(spec: str | None) -> str | None:
    """Return a data spec with a whole path: the node may be started again from another folder."""
    if spec is None:
        return None
    kind, colon, path = spec.partition(":")
    return f"{kind}:{Path(path).expanduser().resolve()}" if colon and kind.isidentifier() and "(" not in kind else spec
