"""A client's half of a round: feedback, fit, predict, expertise, release. Bytes in, bytes out; no network here."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.attack import Attack, attack, dishonest
from fedkd.codec import Known, decode_query, encode_release, peek, remember, remember_feedback
from fedkd.config import Config, mixed
from fedkd.dataset import fingerprint
from fedkd.errors import CheckpointError, PrivacyError
from fedkd.events import Event, Gaussian, NonPrivate, NoOp, RandomizedResponse
from fedkd.evidence import beside, evidence
from fedkd.expertise import STATIC, weigh
from fedkd.files import load_arrays, save_arrays
from fedkd.learner import Learner, Training, check_private, make_learner, private_trainer, see_public, set_threads
from fedkd.metrics import accuracy
from fedkd.privacy.chain import Head
from fedkd.privacy.client_level import blurred, even_sized
from fedkd.privacy.distributed import contribution
from fedkd.privacy.ledger import Budget
from fedkd.privacy.noise import entropy_of
from fedkd.privacy.purse import FREE, Charge, begin_round, begin_share, guarded, open_purse
from fedkd.privacy.responses import dealt, randomized
from fedkd.protect import ON_DEVICE, check_classes, protection_of, rules_of, scale_of_round, spending
from fedkd.random import derive, generator
from fedkd.records import Query, Release, Teacher, TransferSet
from fedkd.registry import parse
from fedkd.release import form, prepare
from fedkd.secagg.client import Vector, respond
from fedkd.softlabels import Array, check_soft_labels, one_hot

HONEST = Attack(0.0)


@dataclass(frozen=True, eq=False)
class Site:
    """What a client owns: private data (N, ...) and (N,), a copy of the transfer set, and a file for its state.

    ``test`` is a test set that a simulation evaluates local models on; a device has none. With ``protect = dp_sgd``
    or ``local``, ``ledger`` is the folder that remembers what was spent on this data, in which ``run`` names this run,
    and ``budget`` what its owner allows in all runs together; ``accept_loss`` goes on with the rest of a broken one.
    ``learner`` is the model that its owner has chosen, if not the run's. The ledger is of ``owner``, whatever data
    are added later; of exactly these data where there is none.
    """

    key: int
    x: Array
    y: Array
    classes: int
    transfer: TransferSet
    test: tuple[Array, Array] | None = None
    state: Path | None = None
    ledger: Path | None = None
    run: str = "run"
    budget: Budget | None = None
    accept_loss: bool = False
    learner: str | None = None
    owner: str = ""

    def spec(self, config: Config) -> str:
        """Return the learner of this site: its own, or what the run deals it."""
        return self.learner or spec_of(config, self.key)


@dataclass(frozen=True)
class Answer:
    """The frame that leaves, and the test accuracy of the local model: None unless the run allows reporting it."""

    frame: bytes
    accuracy: float | None


def training_of(config: Config, *, distill_epochs: int) -> Training:
    """Return the training settings of ``config`` for a model that distills for ``distill_epochs``."""
    return Training(
        epochs=config.local_epochs,
        distill_epochs=distill_epochs,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        distill=config.distill,
        augment=config.augment,
        schedule=config.schedule,
    )


def spec_of(config: Config, key: int) -> str:
    """Return the learner of client ``key``: the mix is dealt in turn."""
    mix = mixed(config.learner)
    return mix[key % len(mix)]


def build_learner(site: Site, config: Config) -> Learner:
    """Return the untrained learner of a site; its initial weights depend on the seed and the client only."""
    learner = make_learner(
        site.spec(config),
        shape=site.transfer.inputs.shape[1:],
        classes=site.classes,
        training=training_of(config, distill_epochs=config.feedback_epochs),
        seed=derive(config.seed, "client", site.key, "init"),
    )
    set_threads(config.threads)
    see_public(learner, site.transfer)
    return learner


def role(config: Config, key: int) -> Attack:
    """Return what client ``key`` of a simulation does: the attack of ``config`` if it is one of the dishonest."""
    if config.attack == "none":
        return HONEST
    chosen: Attack = attack.build(config.attack)()
    return chosen if key in dishonest(chosen, config.clients, generator(config.seed, "attack")) else HONEST


def answer(site: Site, frame: bytes, config: Config, acknowledged: int = 0) -> Answer:
    """Answer one query. The same query again gets the same bytes again, so that a retry releases nothing new.

    ``acknowledged`` is the round of this client's last release that the server has: a delta starts from it.
    """
    digest = hashlib.sha256(frame + f"acknowledged {acknowledged}".encode()).hexdigest()
    if protection_of(config).place == "shares":
        return Answer(_masked(site, frame, config), None)
    return _remembering(site, frame, config, acknowledged, digest, encode_release)


def _remembering(
    site: Site, frame: bytes, config: Config, acknowledged: int, digest: str, write: Callable[..., bytes]
) -> Answer:
    """Answer a query, or what was answered to the one of this ``digest``; ``write`` makes bytes of a release."""
    rows = _rows(site, config)
    run = json.dumps(config.identity() | ({"own learner": site.learner} if site.learner else {}))
    arrays, header = _recall(site, peek(frame).round, digest, run, paid=protection_of(config).place in ON_DEVICE)
    if header.get("query") == digest:
        if not _keeps(config):
            raise PrivacyError("this was answered before, and what it was is not kept")
        return Answer(arrays["answer"].tobytes(), header["accuracy"])
    told = _remembered("told.", arrays)
    query = decode_query(frame, site.transfer.fingerprint, rows, classes=site.classes, known=told)
    check_classes(config, site.classes)
    if site.learner is not None and protection_of(config).place == "training":  # which no server has tried before
        check_private(build_learner(site, config), site.learner, site.transfer.inputs.shape[1:])
    with _charged(site, config, query.round, digest, header) as charge:
        reply = _answer(site, query, config, acknowledged, arrays, digest, run, charge, write)
        charge.commit(reply.frame if _keeps(config) else b"")
        return reply


def _answer(
    site: Site,
    query: Query,
    config: Config,
    acknowledged: int,
    arrays: dict[str, Array],
    digest: str,
    run: str,
    charge: Charge,
    write: Callable[..., bytes],
) -> Answer:
    """Answer a query that was not answered before, and remember what was said."""
    rows, told = _rows(site, config), _remembered("told.", arrays)
    learner = build_learner(site, config)
    learner.load(_under("model.", arrays))

    def stream(purpose: str) -> np.random.Generator:
        return generator(config.seed, "client", site.key, "round", query.round, purpose)

    def lasting(purpose: str) -> np.random.Generator:
        return generator(config.seed, "client", site.key, purpose)

    act = role(config, site.key)
    event: Event = NonPrivate()
    y = site.y if act.labels is None else act.labels(site.y, site.classes, lasting("attack labels"))
    back = query.feedback if query.feedback is not None and len(query.feedback.indices) else None
    if config.keys == "classes":
        p, w = _of_classes(site, y, learner, back, stream)
        remembered: dict[str, Array] = {}
    else:
        if back is not None:
            x = _inputs(site, back.indices)
            learner.distill(x, back.p, w=np.ones(len(x), np.float32), rng=stream("feedback"))
        event = _fit(site, config, learner, y, query.round) if charge.trains else NoOp()
        p = _predict(site, learner, _inputs(site, query.indices))
        w, remembered = _expertise(site, config, query, p, arrays, draws=charge.sketches)
        p, said = _evidence(site, config, query, y, p, arrays)
        remembered |= said
    if act.ballot is not None:
        p, w = act.ballot(p, w, stream("attack"))
    ballot = _hidden(site, config, query, Release(p, w, event), draws=charge.trains)
    release = prepare(config.release, ballot, stream("release"))
    known = _known(arrays, acknowledged)
    reply = write(release, query, site.key, known=known)
    if "delta" in release.coding:  # until the server says which of the two it has, both are kept
        remembered |= _prefixed("sent.", remember(known, release, query, rows).to_arrays())
        remembered |= _prefixed("known.", known.to_arrays() if known is not None else {})
    broadcast = form(config.broadcast)
    if "delta" in broadcast.coding and (told := remember_feedback(told, query, broadcast.encoding, rows)) is not None:
        remembered |= _prefixed("told.", told.to_arrays())
    reports = config.evaluate and config.protect == "none"  # a number that no mechanism covers must not leave
    local = accuracy(learner.predict(site.test[0]), site.test[1]) if reports and site.test else None
    if site.state is not None:
        model = _prefixed("model.", learner.state())
        kept = {**model, **remembered, "answer": np.frombuffer(reply if _keeps(config) else b"", np.uint8)}
        header = {"run": run, "round": query.round, "query": digest, "accuracy": local}
        if charge.head is not None:
            header["ledger"] = [charge.head.count, charge.head.hash]
        save_arrays(site.state, kept, header, durable=False)
    return Answer(reply, local)


def _masked(site: Site, frame: bytes, config: Config) -> bytes:
    """Answer a question of a masked round. A query on its own is none: ballots leave under masks, or not at all."""
    if site.state is None:
        raise PrivacyError("a masked round needs a folder for its keys (state-dir)")

    def vector(question: bytes) -> Vector:
        # Never the same noise in two sums: their difference would be of few clients, and so of little noise. Hence a
        # query that is asked again, by a server that lost a round, is a new one here.
        once = hashlib.sha256(frame).hexdigest()
        query = decode_query(question, site.transfer.fingerprint, len(site.transfer), classes=site.classes)
        numbers = _remembering(site, question, config, 0, once, functools.partial(_part, site, config)).frame
        return Vector(np.frombuffer(numbers, "<i8").astype(np.int64), query)

    return respond(site.key, site.state.parent / "secagg", frame, rules_of(config), vector)


def _keeps(config: Config) -> bool:
    """Say whether an answer may lie on the disk as it was made: not one that leaves under masks only."""
    return protection_of(config).place != "shares"


def _part(site: Site, config: Config, release: Release, query: Query, key: int, *, known: Known | None) -> bytes:
    """Return what a client adds to the sum, noise included, as bytes."""
    scale = scale_of_round(config, len(query.indices), site.classes)
    entropy = entropy_of(config.noise, config.seed, "client", key, "round", query.round, "share")
    return contribution(release.p, release.w, scale, entropy).astype("<i8").tobytes()


@contextmanager
def _charged(site: Site, config: Config, round_: int, digest: str, header: dict[str, Any]) -> Iterator[Charge]:
    """Charge the site's ledger before private data is read, and hold it until the answer is on the disk.

    ``header`` is that of the client's state, which knows how long the ledger was.
    """
    if site.budget is not None:
        guarded(config)
    place = protection_of(config).place
    if site.ledger is None or place not in ON_DEVICE:
        yield FREE
        return
    own = (
        site.owner or hashlib.sha256(fingerprint(site.x).encode() + np.asarray(site.y, np.int64).tobytes()).hexdigest()
    )
    seen = Head(*header["ledger"]) if header.get("ledger") else None
    with open_purse(site.ledger, config, own, site.budget, seen, accept_loss=site.accept_loss) as ledger:
        if place == "shares":
            yield begin_share(ledger, config, site.run, digest)
        else:
            yield begin_round(ledger, config, site.run, round_, digest)


def _inputs(site: Site, indices: Array) -> Array:
    """Return rows of the transfer set; all of them are no copy, which a small device may have no room for."""
    inputs = site.transfer.inputs
    return inputs if np.array_equal(indices, np.arange(len(inputs))) else inputs[indices]


def _rows(site: Site, config: Config) -> int:
    return site.classes if config.keys == "classes" else len(site.transfer)


def _fit(site: Site, config: Config, learner: Learner, y: Array, round_: int) -> Event:
    """Learn the private data and return the event that this was; without a mechanism its epsilon is infinite."""
    if protection_of(config).place != "training":  # what is trained here leaves with noise on its answers, or without
        learner.fit(site.x, y, rng=generator(config.seed, "client", site.key, "round", round_, "fit"))
        return NonPrivate()
    budget = spending(config)
    event: Event = private_trainer(learner, site.spec(config)).fit_private(
        site.x,
        y,
        rate=budget.protection.rate,
        clip=budget.protection.clip,
        noise_multiplier=budget.noise_multiplier,
        steps=budget.steps,
        expected_batch=budget.protection.rate * budget.protection.examples,
        step=budget.protection.step,
        entropy=entropy_of(config.noise, config.seed, "client", site.key, "round", round_),
    )
    return event


def _hidden(site: Site, config: Config, query: Query, ballot: Release, *, draws: bool) -> Release:
    """Return the ballot as it may leave: with the noise of ``local`` or ``local_gaussian``, or of a constant size.

    Which rows are answered is public. Unless the client ``draws``, it has been asked this before and says nothing.
    """
    chosen, rows = protection_of(config), len(query.indices)
    if chosen.place == "mean" and parse(config.expertise)[0] != "uniform":
        return Release(*even_sized(ballot.p, ballot.w), ballot.event)
    if chosen.place not in ("answers", "labels"):
        return ballot
    noise = spending(config).noise_multiplier
    silent = np.zeros(rows, np.float32)
    flat = np.full((rows, site.classes), 1 / site.classes, np.float32)
    if not draws or not rows:
        return Release(flat, silent, NoOp())
    entropy = entropy_of(config.noise, config.seed, "client", site.key, "round", query.round)
    if chosen.place == "labels":
        return Release(blurred(ballot.p, noise, entropy), silent + 1, Gaussian(noise))
    epsilon = 1 / noise
    turn = generator(config.seed, "round", query.round, "deal")
    mine = dealt(rows, chosen.labels, site.key, turn)
    flat[mine] = one_hot(randomized(ballot.p[mine].argmax(axis=1), site.classes, epsilon, entropy), site.classes)
    silent[mine] = 1
    return Release(flat, silent, RandomizedResponse(site.classes, epsilon, len(mine)))


def class_means(p: Array, y: Array, classes: int) -> tuple[Array, Array]:
    """Return the mean soft labels (C, C) of the samples of each class, and which classes there are (C,), 1 or 0.

    ``p`` (N, C) are what a client says of its private data with labels ``y`` (N,): the ballots of FD (Jeong et al.,
    arXiv:1811.11479). A class that the client does not hold gets a flat row of weight 0.
    """
    counts = np.bincount(y, minlength=classes)
    sums = np.zeros((classes, classes))
    np.add.at(sums, y, p)
    flat = np.full((classes, classes), 1 / classes)
    means = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], flat)
    return means.astype(np.float32), (counts > 0).astype(np.float32)


def regularized(y: Array, teacher: Teacher, classes: int) -> Array:
    """Return targets (N, C) whose cross-entropy is half CE(p, y) + CE(p, t_y), t_y the teacher of a sample's class.

    Cross-entropy is linear in its target, so the two terms of FD are one. Classes without a teacher keep their label.
    """
    truth = np.eye(classes, dtype=np.float32)
    targets = truth.copy()
    targets[teacher.indices] = (truth[teacher.indices] + teacher.p) / 2
    return np.asarray(targets[y])


def _of_classes(
    site: Site, y: Array, learner: Learner, back: Teacher | None, stream: Callable[[str], np.random.Generator]
) -> tuple[Array, Array]:
    """Train with the others' means as regularizer, then return the client's own; no transfer set is involved."""
    if back is None:
        learner.fit(site.x, y, rng=stream("fit"))
    else:
        weight = np.ones(len(site.x), np.float32)
        learner.distill(site.x, regularized(y, back, site.classes), w=weight, rng=stream("fit"))
    return class_means(_predict(site, learner, site.x), y, site.classes)


def _predict(site: Site, learner: Learner, x: Array) -> Array:
    return check_soft_labels(learner.predict(x), len(x), site.classes, whose=f"soft labels of client {site.key}")


def _known(arrays: dict[str, Array], round_: int) -> Known | None:
    """Return what client and server both know since ``round_``; None if the client does not remember that round."""
    kept = [_remembered(prefix, arrays) for prefix in ("sent.", "known.")]
    return next((known for known in kept if known is not None and known.round == round_), None)


def _remembered(prefix: str, arrays: dict[str, Array]) -> Known | None:
    kept = _under(prefix, arrays)
    return Known.from_arrays(kept) if kept else None


def _prefixed(prefix: str, arrays: dict[str, Array]) -> dict[str, Array]:
    return {prefix + name: array for name, array in arrays.items()}


def _under(prefix: str, arrays: dict[str, Array]) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _recall(site: Site, round_: int, digest: str, run: str, *, paid: bool) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return what the client remembers of this run, or nothing: a query from the past means that it began anew.

    Not so where what was learned was ``paid`` for out of a budget: it cannot be learned again.
    """
    if site.state is None or not site.state.exists():
        return {}, {}
    try:
        arrays, header = load_arrays(site.state)
    except CheckpointError:
        return {}, {}  # a client that lost its memory trains again; it is not worth a round
    past = header["query"] != digest and header["round"] >= round_
    if header.get("run") != run or (past and not paid):
        return {}, {}
    return arrays, header


def _expertise(
    site: Site, config: Config, query: Query, p: Array, arrays: dict[str, Array], *, draws: bool
) -> tuple[Array, dict[str, Array]]:
    """Return the weights of the queried rows, and what is worth remembering for later rounds.

    Unless the client ``draws``, noise that was paid for is lost and not drawn again: then all rows count alike.
    """
    rng = generator(config.seed, "client", site.key, "expertise")
    entropy = None if config.protect == "none" else entropy_of(config.noise, config.seed, "client", site.key, "sketch")
    if parse(config.expertise)[0] not in STATIC:
        return weigh(config.expertise, p, query.indices, site.transfer, site.x, rng, entropy).w, {}
    if "expertise" not in arrays and not draws:
        return np.ones(len(query.indices), np.float32), {}
    if "expertise" not in arrays:
        everything = np.arange(len(site.transfer))
        arrays["expertise"] = weigh(config.expertise, p, everything, site.transfer, site.x, rng, entropy).w
    return arrays["expertise"][query.indices], {"expertise": arrays["expertise"]}


def _evidence(
    site: Site, config: Config, query: Query, y: Array, p: Array, arrays: dict[str, Array]
) -> tuple[Array, dict[str, Array]]:
    """Return ballots beside which labels ``y`` (N,) have spoken, and what is worth remembering for later rounds."""
    if parse(config.evidence)[0] == "none":
        return p, {}
    if "evidence" not in arrays:
        arrays["evidence"] = evidence.build(config.evidence)(site.transfer, site.x, y, site.classes)
    return beside(p, arrays["evidence"][query.indices]), {"evidence": arrays["evidence"]}
