"""What the two Flower apps do when a message comes in. ``server/app.py`` and ``clients/app.py`` only point here."""

from __future__ import annotations

import os
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedkd import logs
from fedkd.client import Answer
from fedkd.config import Config
from fedkd.errors import FedkdError
from fedkd.flower.messages import answer_content, error_content, read_query
from fedkd.flower.strategy import FederatedDistillation
from fedkd.rundir import DEPLOYMENT, SERVED, RunDirectory
from fedkd.site import Refusal, refuse, respond

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
logs.configure()  # apps run in processes that know our environment variables only


def answer_query(message: Message, context: Context) -> Message:
    """Answer a query of the server. An error of this client is an answer too, and never stops a round."""
    try:
        frame, acknowledged = read_query(message)
    except Exception as error:
        said: Answer | Refusal = refuse(error, context.node_config, context.node_id)
    else:
        said = respond(
            frame,
            acknowledged,
            run_config=context.run_config,
            node_config=context.node_config,
            run_id=context.run_id,
            node_id=context.node_id,
        )
    content = error_content(said.client, said.error) if isinstance(said, Refusal) else answer_content(said)
    return Message(content, reply_to=message)


def serve(grid: Grid, context: Context) -> None:
    """Run a federation as the run config says; tell each round to the log, write the report if there is a folder."""
    from rich.console import Console  # not for clients, which import this file too

    from fedkd.report import write_report
    from fedkd.screen import Screen, scoreboard

    config = Config.from_run_config(context.run_config)
    path = Path(config.output) if config.output else None
    console = Console(highlight=False, width=200, force_terminal=False)
    served = path is not None and RunDirectory(path).began()["engine"] == SERVED  # which has said what run this is
    with Screen(config, path.name if path else "run", console, introduced=served) as screen:
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


def same_folder(app: str) -> None:
    """Refuse to run an app with a fedkd from elsewhere.

    In Flower's simulation the workers may import ``clients`` from the folder that the SuperLink was started in, and
    then silently run another version of the code than the server.
    """
    ours, theirs = Path(__file__).resolve().parents[2], Path(app).resolve().parents[1]
    if ours != theirs:
        raise FedkdError(f"{app} runs with fedkd from {ours}, expected from {theirs}: start from a folder without them")
