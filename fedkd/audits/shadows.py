"""A whole federation in one process, run many times: what ``membership`` and ``canaries`` attack.

Both halves are the real ones, from query bytes to release bytes; only the network is missing. What is kept of a run is
what somebody in it could see.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedkd.client import Site, answer, build_learner, spec_of, training_of
from fedkd.collect import Reply
from fedkd.config import Config
from fedkd.errors import ConfigError
from fedkd.federation import Federation
from fedkd.files import load_arrays
from fedkd.learner import Learner, make_learner, see_public, set_threads
from fedkd.random import derive, generator
from fedkd.recording import load_round, path_of
from fedkd.records import Teacher
from fedkd.rounds import Loop
from fedkd.scoreboard import build_student
from fedkd.softlabels import Array

Held = Mapping[int, tuple[Array, Array]]
"""Private inputs (N, ...) and labels (N,) of each client that takes part."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What a run shows: soft labels by client, all rounds after one another, the last teacher, student and models.

    ``labels`` are those that a server sees: none where only masked sums reach it. ``models`` are what clients keep to
    themselves, of learners that can be read back.
    """

    labels: dict[int, Teacher]
    teacher: Teacher
    student: Learner | None
    models: dict[int, Learner]


class Nearby:
    """An exchange (:class:`fedkd.rounds.Exchange`) with clients in this process: each answers as soon as it is asked.

    An error of a client is raised: an audit that went on without it would be one of another run.
    """

    def __init__(self, sites: list[Site], config: Config) -> None:
        """Ask ``sites``, whose clients run ``config``."""
        self.sites, self.config = {str(site.key): site for site in sites}, config
        self._replies: list[Reply] = []

    def ask(
        self, round_: int, frame: bytes, personal: Mapping[str, bytes], acknowledged: Mapping[str, int]
    ) -> Mapping[str, int]:
        """Let every client answer; return the bytes sent, by client."""
        own = {name: personal.get(name, frame) for name in self.sites}
        return {name: self.again(round_, name, own[name], acknowledged.get(name, 0)) for name in own}

    def tell(self, round_: int, personal: Mapping[str, bytes]) -> Mapping[str, int]:
        """Let those clients answer that have a frame of their own; return the bytes sent."""
        return {name: self.again(round_, name, frame, 0) for name, frame in personal.items() if name in self.sites}

    def again(self, round_: int, client: str, frame: bytes, acknowledged: int) -> int:
        """Let one client answer ``frame``; return the bytes sent."""
        reply = answer(self.sites[client], frame, self.config, acknowledged).frame
        self._replies.append(Reply(round_, client, reply, None, None, len(reply), 0.0, client))
        return len(frame)

    def open(self, round_: int) -> int:
        """Return how many answers of ``round_`` were not handed over yet."""
        return sum(reply.round == round_ for reply in self._replies)

    def poll(self, timeout: float) -> list[Reply]:
        """Return all answers."""
        replies, self._replies = self._replies, []
        return replies


def check_scene(config: Config) -> None:
    """Raise :class:`ConfigError` for a configuration whose ballots say nothing of public samples."""
    if config.keys != "samples":
        raise ConfigError(f"this audit reads ballots about public samples, got keys = {config.keys!r}")


def play(config: Config, shared: Federation, held: Held) -> Seen:
    """Run ``config`` where clients hold what ``held`` says; a client that is not in it takes no part.

    All runs have the seed of the configuration, which everybody in a federation knows; only noise that protects is new.
    """
    quiet = config.model_copy(update={"evaluate": False, "output": "", "resume": False})
    classes = shared.dataset.classes
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        sites = [
            Site(key, x, y, classes, shared.transfer, state=folder / f"{key}.safetensors")
            for key, (x, y) in sorted(held.items())
        ]
        student = build_student(quiet, shared)
        truth = shared.truth if config.labels != "none" else None
        loop = Loop(quiet, shared.transfer, classes, student, public_labels=truth, ballots=folder / "ballots")
        reports = loop.run(Nearby(sites, quiet))
        return Seen(
            _labels(folder / "ballots", len(reports), list(held)),
            loop.state.memory.lesson(np.arange(len(shared.transfer))),
            student,
            {site.key: model for site in sites if (model := _model(site, quiet)) is not None},
        )


def surrogate(config: Config, shared: Federation, spec: str, seen: Teacher) -> Learner:
    """Return what an attacker makes of soft labels that were seen: a fresh model, distilled from them."""
    model = make_learner(
        spec,
        shape=shared.transfer.inputs.shape[1:],
        classes=shared.dataset.classes,
        training=training_of(config, distill_epochs=config.distill_epochs),
        seed=derive(config.seed, "audit", "surrogate"),
    )
    set_threads(config.threads)
    see_public(model, shared.transfer)
    known = seen.answered
    x = shared.transfer.inputs[seen.indices[known]]
    rng = generator(config.seed, "audit", "surrogate", "distill")
    model.distill(x, seen.p[known], w=np.ones(len(x), np.float32), rng=rng)
    return model


def surrogate_of_client(config: Config, shared: Federation, seen: Seen, client: int) -> Learner:
    """Return a surrogate of a client's model, of the same kind, made of its released labels alone."""
    return surrogate(config, shared, spec_of(config, client), seen.labels[client])


def _labels(folder: Path, rounds: int, clients: list[int]) -> dict[int, Teacher]:
    """Return all that each client released, rows that count for nothing left out."""
    told: dict[int, list[tuple[Array, Array]]] = {key: [] for key in clients}
    for round_ in range(1, rounds + 1):
        recorded = load_round(path_of(folder, round_))
        for key, release in recorded.releases.items():
            counts = release.w > 0
            told[key].append((release.p[counts], recorded.query.indices[counts]))
    return {
        key: Teacher(np.concatenate([p for p, _ in parts]), np.concatenate([rows for _, rows in parts]))
        for key, parts in told.items()
        if parts
    }


def _model(site: Site, config: Config) -> Learner | None:
    """Return the model that a client has kept, or nothing where its learner keeps none."""
    arrays, _ = load_arrays(site.state)  # type: ignore[arg-type]
    kept = {name.removeprefix("model."): array for name, array in arrays.items() if name.startswith("model.")}
    if not kept:
        return None
    model = build_learner(site, config)
    model.load(kept)
    return model
