"""A federation in one process and without Flower: the round of ``fedkd.rounds`` and the client of ``fedkd.client``.

For papers and experiments that want to see every array. The numbers are those of ``fedkd run`` with the same settings.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedkd.client import Site, answer
from fedkd.codec import peek
from fedkd.collect import Reply
from fedkd.config import Config, resolve
from fedkd.errors import FedkdError
from fedkd.federation import federation
from fedkd.learner import set_threads
from fedkd.records import RoundReport
from fedkd.rounds import Evaluation, Loop
from fedkd.scoreboard import build_student

Present = Callable[[int, int], bool]
"""Whether a client (its key) is there in a round."""


def always(client: int, round_: int) -> bool:
    """Every client is there in every round."""
    return True


class Direct:
    """A network of function calls: every client that is there answers before ``ask`` returns."""

    def __init__(self, sites: list[Site], config: Config, present: Present = always) -> None:
        """Stand for ``sites``, which all run ``config``; those who are not ``present`` in a round are not asked."""
        self.sites, self.config, self.present = sites, config, present
        self._replies: list[Reply] = []

    def ask(
        self, round_: int, frame: bytes, personal: Mapping[str, bytes], acknowledged: Mapping[str, int]
    ) -> Mapping[str, int]:
        """Let every site answer its frame now; one that raises a known error is reported, and no other disturbed."""
        names = [str(site.key) for site in self.sites if self.present(site.key, round_)]
        return {name: self.again(round_, name, personal.get(name, frame), acknowledged.get(name, 0)) for name in names}

    def again(self, round_: int, client: str, frame: bytes, acknowledged: int) -> int:
        """Let one site answer a frame now."""
        site, start = next(site for site in self.sites if str(site.key) == client), time.perf_counter()
        try:
            reply = answer(site, frame, self.config, acknowledged)
        except FedkdError as error:
            self._replies.append(Reply(round_, client, None, str(error), None, 0, 0.0, client))
            return len(frame)
        key, seconds = str(peek(reply.frame).client), time.perf_counter() - start
        self._replies.append(Reply(round_, key, reply.frame, None, reply.accuracy, len(reply.frame), seconds, client))
        return len(frame)

    def tell(self, round_: int, personal: Mapping[str, bytes]) -> Mapping[str, int]:
        """Let some sites answer now."""
        return {name: self.again(round_, name, frame, 0) for name, frame in personal.items()}

    def open(self, round_: int) -> int:
        """Return how many answers have not been fetched."""
        return len(self._replies)

    def poll(self, timeout: float) -> list[Reply]:
        """Return all answers."""
        replies, self._replies = self._replies, []
        return replies


def play(preset: str, *, local: bool = True, **settings: Any) -> list[RoundReport]:
    """Run ``preset`` with ``settings`` in this process; return a report a round. Bytes are those of frames alone.

    ``local`` says whether clients, too, measure their models on the test set, which takes a while if they are many.
    """
    config = Config.read({**resolve(preset=preset, environ={}).config.model_dump(), **settings}, where="simulation")
    return run(config, local=local)


def run(config: Config, *, present: Present = always, local: bool = True) -> list[RoundReport]:
    """Run ``config`` in this process; return a report a round."""
    shared = federation(config.data, config.transfer, config.partition, config.clients, config.seed)
    set_threads(config.threads)
    with tempfile.TemporaryDirectory() as folder:
        sites = [
            Site(
                key=k,
                x=x,
                y=y,
                classes=shared.dataset.classes,
                transfer=shared.transfer,
                test=shared.test() if config.evaluate and local else None,
                state=Path(folder) / f"{k}.safetensors",
            )
            for k, (x, y) in ((k, shared.private(k)) for k in range(config.clients))
        ]
        loop = Loop(
            config,
            shared.transfer,
            shared.dataset.classes,
            build_student(config, shared),
            evaluation=Evaluation(shared.test(), shared.truth) if config.evaluate else None,
            public_labels=shared.truth if config.labels != "none" else None,
        )
        return loop.run(Direct(sites, config, present))
