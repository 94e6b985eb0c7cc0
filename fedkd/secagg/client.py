"""A client's half of a masked round: it answers four kinds of questions, each once, and remembers in between.

The server is believed to follow the protocol and to be curious (semi-honest). What a client can check it does: that
enough others take part, that their keys are signed by who signed them before, that nobody appears twice, and that the
masks of a client that is said to be gone are not taken off as well as those of one that is not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedkd import frames
from fedkd.errors import CheckpointError, CodecError, PrivacyError
from fedkd.files import load_arrays, save_arrays, write_atomic
from fedkd.frames import KEYS, MASKED, SHARES, UNMASK
from fedkd.records import Query
from fedkd.secagg import letters, shamir
from fedkd.secagg.letters import Card
from fedkd.secagg.masks import (
    COMPLETE,
    KEY,
    agree,
    identity_of,
    masked,
    neighborhood,
    new_identity,
    new_key,
    public,
    seal,
    stream,
    unseal,
)
from fedkd.softlabels import Array

SEAL = b"fedkd share"


@dataclass(frozen=True)
class Rules:
    """What a client holds to: at least ``least`` clients in a sum; ``robust`` to dropouts by shared secrets.

    ``topic`` stands for all settings of a run: keys are signed for it, so those of other settings are not taken.
    """

    least: int
    robust: bool
    topic: bytes

    def threshold(self, circle: int) -> int:
        """Return how many of ``circle`` clients must be there to take masks off: more than two thirds.

        Where everyone is a neighbor of everyone, the server so cannot have both a client's own mask and the masks that
        it shares, not even by telling one half of the clients something else than the other.
        """
        return 2 * circle // 3 + 1

    def about(self, round_: int) -> bytes:
        """Return what a round's keys are for."""
        return self.topic + round_.to_bytes(8, "big")


@dataclass(frozen=True, eq=False)
class Vector:
    """What a client adds to the sum: whole numbers (n,), noise included, and the query that they answer."""

    numbers: Array
    query: Query


def respond(key: int, folder: Path, frame: bytes, rules: Rules, vector: Callable[[bytes], Vector]) -> bytes:
    """Return the answer of client ``key`` to a question of a masked round, the same again if it is the same question.

    ``folder`` keeps what must be remembered; ``vector`` makes what is added out of the frame of a query, and is called
    once a round.
    """
    header = frames.peek(frame)
    memory = _Memory.load(folder / f"{key}.round", header.round, rules)
    digest = hashlib.sha256(frame).hexdigest()
    if memory.asked.get(str(header.kind)) == digest and not (header.kind == KEYS and memory.used):
        return memory.answers[str(header.kind)].tobytes()
    query = Query(header.round, np.arange(0), header.classes, header.fingerprint.hex())
    if header.kind == KEYS:
        memory = _Memory.fresh(memory.path, header.round, rules)
        body = _keys(key, folder, memory, rules)
    elif memory.state.get("round") != header.round:
        raise PrivacyError(f"no keys for round {header.round}: this client has not taken part in it from its start")
    elif str(header.kind) in memory.asked or (header.kind == MASKED and memory.spent):
        raise PrivacyError(f"round {header.round} was answered already, and this is another question")
    elif header.kind == SHARES and rules.robust:
        body = _shares(key, folder, memory, rules, letters.open_(frame, SHARES)[1])
    elif header.kind == MASKED:
        body = _masked(key, folder, memory, rules, letters.open_(frame, MASKED)[1], vector)
    elif header.kind == UNMASK and str(MASKED) in memory.asked:
        body = _unmask(key, memory, rules, letters.open_(frame, UNMASK)[1])
    else:
        raise CodecError(f"a frame of kind {header.kind} is not expected here")
    answer = letters.write(header.kind, query, body, key)
    if header.kind == UNMASK:
        memory.forget()
    memory.keep(header.kind, digest, answer, durable=header.kind == MASKED)
    return answer


@dataclass(frozen=True, eq=False)
class _Memory:
    """What a client knows of the round that it is in: ``state`` (JSON), questions and answers by kind."""

    path: Path
    state: dict[str, Any]
    asked: dict[str, str]
    answers: dict[str, Array]

    @classmethod
    def fresh(cls, path: Path, round_: int, rules: Rules) -> _Memory:
        """Start a round."""
        return cls(path, {"round": round_, "topic": rules.topic.hex()}, {}, {})

    @classmethod
    def load(cls, path: Path, round_: int, rules: Rules) -> _Memory:
        """Return what is remembered of this round of this run, or nothing."""
        if not path.exists():
            return cls(path, {}, {}, {})
        try:
            answers, header = load_arrays(path)
        except CheckpointError:
            return cls(path, {}, {}, {})  # keys that are lost cost a round
        if header["state"].get("topic") != rules.topic.hex() or header["state"].get("round") != round_:
            return cls(path, {}, {}, {})
        return cls(path, header["state"], header["asked"], answers)

    @property
    def used(self) -> bool:
        """Whether anything was built on these keys: secrets shared, or a vector masked. Another try takes new ones."""
        return str(SHARES) in self.asked or self.spent

    @property
    def spent(self) -> bool:
        """Whether a vector was made for these keys, which are good for one only."""
        return bool(self.state.get("spent"))

    def keep(self, kind: int, digest: str, answer: bytes, *, durable: bool) -> None:
        """Remember a question and what was answered, before the answer leaves."""
        self.asked[str(kind)] = digest
        self.answers[str(kind)] = np.frombuffer(answer, np.uint8)
        self.save(durable=durable)

    def spend(self) -> None:
        """Remember that these keys are for the vector that is made now, even if power fails before it has left."""
        self.state["spent"] = True
        self.save(durable=True)

    def save(self, *, durable: bool) -> None:
        """Write all to the disk."""
        save_arrays(self.path, self.answers, {"state": self.state, "asked": self.asked}, durable=durable, secret=True)

    def forget(self) -> None:
        """Drop the secrets of a round that is over."""
        for name in ("masks", "channel", "own", "kept", "sealed"):
            self.state.pop(name, None)

    def secret(self, name: str) -> bytes:
        """Return a key that was made in this round."""
        return bytes.fromhex(self.state[name])


def _keys(key: int, folder: Path, memory: _Memory, rules: Rules) -> bytes:
    """Make the keys of a round and return the card with their public halves."""
    mine, channel = new_key(), new_key()
    memory.state.update(masks=mine.hex(), channel=channel.hex())
    signer = _identity(folder / f"{key}.identity")
    about = rules.about(memory.state["round"])
    return letters.card(key, public(mine), public(channel), signer, about).pack()


def _shares(key: int, folder: Path, memory: _Memory, rules: Rules, reader: frames.Reader) -> bytes:
    """Make this client's own mask, and return shares of its secrets, each sealed for one neighbor."""
    peers = _roster(key, folder, memory, rules, reader)
    reader.end()
    own = new_key()
    circle = [key, *(peer.client for peer in peers)]
    threshold = rules.threshold(len(circle))
    mine = shamir.split(own, threshold, circle)
    masks = shamir.split(memory.secret("masks"), threshold, circle)
    kept = mine[key] + masks[key]
    memory.state.update(own=own.hex(), cards=letters.write_cards(peers).hex(), kept=kept.hex())
    sealed = {
        peer.client: seal(
            _channel(memory, rules, peer), mine[peer.client] + masks[peer.client], _about(key, peer.client)
        )
        for peer in peers
    }
    return letters.write_sealed(sealed)


def _masked(
    key: int,
    folder: Path,
    memory: _Memory,
    rules: Rules,
    reader: frames.Reader,
    vector: Callable[[bytes], Vector],
) -> bytes:
    """Return this client's vector under its masks."""
    if rules.robust:
        if "own" not in memory.state:
            raise PrivacyError("no secrets were shared in this round")
        sealed = letters.read_sealed(reader)
        known = {peer.client: peer for peer in _cards(memory)}
        if not set(sealed) <= set(known):
            raise CodecError("shares of a client that is no neighbor")
        peers = [known[client] for client in sealed]
        circle = len(known) + 1
        if len(peers) + 1 < rules.threshold(circle):
            raise PrivacyError(f"{len(peers) + 1} of {circle} clients shared secrets, {rules.threshold(circle)} needed")
        memory.state.update(sealed=letters.write_sealed(sealed).hex())
    else:
        peers = _roster(key, folder, memory, rules, reader)
        memory.state.update(cards=letters.write_cards(peers).hex())
    seeds = {peer.client: _seed(memory, rules, peer) for peer in peers}  # before a vector is made and paid for
    memory.spend()
    mine = vector(reader.rest())
    words = masked(mine.numbers, key, seeds)
    if rules.robust:
        words = words + stream(memory.secret("own"), len(words))
    memory.state.update(peers=sorted(seeds))
    return letters.write_words(words)


def _unmask(key: int, memory: _Memory, rules: Rules, reader: frames.Reader) -> bytes:
    """Return what takes off the masks of those who are gone, and in robust rounds the own masks of the others."""
    there, gone = letters.read_clients(reader), letters.read_clients(reader)
    count = reader.varint()
    reader.end()
    peers = memory.state["peers"]
    if key not in there or sorted([*there, *gone]) != sorted([key, *peers]):
        raise PrivacyError("the server says of this client's neighbors what cannot be")
    if count < rules.least:
        raise PrivacyError(f"{count} clients are left in the sum, {rules.least} needed")
    everyone = memory.state["count"] <= COMPLETE
    if (everyone and len(there) != count) or (not everyone and 2 * len(there) <= len(peers) + 1):
        raise PrivacyError(f"{len(there)} neighbors are left in a sum of {count} clients: too few, or too many")
    if not rules.robust:
        known = {peer.client: peer for peer in _cards(memory)}
        return letters.write_sealed({client: _seed(memory, rules, known[client]) for client in gone})
    if len(there) < rules.threshold(len(_cards(memory)) + 1):
        raise PrivacyError(f"{len(there)} neighbors are left, {rules.threshold(len(_cards(memory)) + 1)} needed")
    known = {peer.client: peer for peer in _cards(memory)}
    sealed = letters.read_sealed(frames.Reader(bytes.fromhex(memory.state["sealed"])))
    shares = {key: bytes.fromhex(memory.state["kept"])}
    for client in peers:
        with contextlib.suppress(CodecError):  # others may have got better from it
            shares[client] = unseal(_channel(memory, rules, known[client]), sealed[client], _about(client, key))
    # Of each neighbor one half or the other, never both: its own mask, or the masks that it shares.
    half = {client: share[: shamir.SHARE] for client, share in shares.items() if client in there}
    return letters.write_sealed(half | {c: share[shamir.SHARE :] for c, share in shares.items() if c in gone})


def _roster(key: int, folder: Path, memory: _Memory, rules: Rules, reader: frames.Reader) -> list[Card]:
    """Return the cards of this client's neighbors, if all is as it should be."""
    count, cards = reader.varint(), letters.read_cards(reader)
    if count < rules.least:
        raise PrivacyError(f"{count} clients take part, {rules.least} needed")
    most = count - 1 if count <= COMPLETE else len(neighborhood(range(count), b"")[0])
    if len(cards) != most:
        raise PrivacyError(f"{len(cards)} neighbors among {count} clients, expected {most}")
    about = rules.about(memory.state["round"])
    own = {public(memory.secret("masks")), public(memory.secret("channel"))}
    keys = [each for one in cards for each in (one.masks, one.channel)]
    if any(one.client == key for one in cards) or len({*keys, *own}) != len(keys) + len(own):
        raise PrivacyError("a key or a client appears twice among the neighbors")
    if not all(one.genuine(about) for one in cards):
        raise PrivacyError("a key that its owner has not signed for this round")
    _pin(folder / f"{key}.pins", cards)
    memory.state.update(count=count)
    return cards


def _pin(path: Path, cards: Sequence[Card]) -> None:
    """Remember who signs for whom, from the first time on, and refuse another signer for the same client."""
    try:
        known: dict[str, str] = dict(json.loads(path.read_text())) if path.exists() else {}
    except ValueError:
        raise PrivacyError(f"{path.name} is damaged: who signed for whom is not known any more") from None
    for one in cards:
        if known.setdefault(str(one.client), one.identity.hex()) != one.identity.hex():
            raise PrivacyError(
                f"client {one.client} has another identity than before (delete {path.name} if it is new)"
            )
    write_atomic(path, json.dumps(known).encode(), durable=False)


def _identity(path: Path) -> bytes:
    """Return the signing key of this client, made when it is first needed."""
    if not path.exists():
        write_atomic(path, new_identity(), secret=True)
    private = path.read_bytes()
    if len(private) != KEY:
        raise PrivacyError(f"{path.name} holds no identity: {len(private)} bytes, expected {KEY}")
    identity_of(private)
    return private


def _cards(memory: _Memory) -> list[Card]:
    return letters.read_cards(frames.Reader(bytes.fromhex(memory.state["cards"])))


def _seed(memory: _Memory, rules: Rules, peer: Card) -> bytes:
    return agree(memory.secret("masks"), peer.masks, b"mask" + rules.about(memory.state["round"]))


def _channel(memory: _Memory, rules: Rules, peer: Card) -> bytes:
    return agree(memory.secret("channel"), peer.channel, SEAL + rules.about(memory.state["round"]))


def _about(sender: int, receiver: int) -> bytes:
    return SEAL + sender.to_bytes(8, "big") + receiver.to_bytes(8, "big")
