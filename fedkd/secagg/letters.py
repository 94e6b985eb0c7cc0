"""What server and clients say in a masked round, as frames: keys, sealed shares, masked vectors, what takes masks off.

Each kind of frame is a question when the server sends it and an answer when a client does. Nothing in any of them is
about private data but the masked vector, which is uniform to whoever does not know the masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedkd import frames
from fedkd.errors import CodecError
from fedkd.frames import NONE, Header, Reader, varint
from fedkd.records import Query
from fedkd.secagg.masks import KEY, SIGNATURE, autograph, identity_of, is_signed
from fedkd.softlabels import Array

MOST_CLIENTS = 1 << 20
MOST_SEALED = 1 << 10


@dataclass(frozen=True)
class Card:
    """The public keys of a client for one round: for masks, for sealed shares, and the identity that signed them."""

    client: int
    masks: bytes
    channel: bytes
    identity: bytes
    signature: bytes

    def pack(self) -> bytes:
        """Return the card as it travels."""
        return varint(self.client) + self.masks + self.channel + self.identity + self.signature

    def genuine(self, topic: bytes) -> bool:
        """Say whether the identity has signed these keys for ``topic``."""
        return is_signed(self.identity, self.signature, _text(self.client, self.masks, self.channel, topic))


def card(client: int, masks: bytes, channel: bytes, signer: bytes, topic: bytes) -> Card:
    """Return the card of a client, signed with its private ``signer`` for ``topic`` (run and round)."""
    signature = autograph(signer, _text(client, masks, channel, topic))
    return Card(client, masks, channel, identity_of(signer), signature)


def write(kind: int, query: Query, body: bytes = b"", client: int = 0) -> bytes:
    """Return a frame of ``kind`` in the round of ``query``."""
    start = bytes.fromhex(query.fingerprint)[:8]
    return frames.write(Header(kind, NONE, query.classes, 0, query.round, client, start), body)


def open_(frame: bytes, kind: int) -> tuple[Header, Reader]:
    """Return header and body of a frame of ``kind``."""
    found = frames.peek(frame)
    return found, frames.read(frame, kind, found, limit=0)


def write_cards(cards: Sequence[Card]) -> bytes:
    """Return cards as bytes."""
    return varint(len(cards)) + b"".join(one.pack() for one in cards)


def read_cards(reader: Reader) -> list[Card]:
    """Return the cards that come next, of different clients."""
    cards = []
    for _ in range(_count(reader)):
        client = reader.varint()
        parts = [reader.take(size) for size in (KEY, KEY, KEY, SIGNATURE)]
        cards.append(Card(client, *parts))
    if len({one.client for one in cards}) != len(cards):
        raise CodecError("two cards of one client")
    return cards


def write_sealed(sealed: Mapping[int, bytes]) -> bytes:
    """Return bytes by client as bytes, sorted by client."""
    parts = [varint(client) + varint(len(text)) + text for client, text in sorted(sealed.items())]
    return varint(len(parts)) + b"".join(parts)


def read_sealed(reader: Reader) -> dict[int, bytes]:
    """Return the bytes by client that come next."""
    found: dict[int, bytes] = {}
    for _ in range(_count(reader)):
        client, size = reader.varint(), reader.varint()
        if size > MOST_SEALED or client in found:
            raise CodecError(f"{size} bytes for client {client}: expected at most {MOST_SEALED}, once for each client")
        found[client] = reader.take(size)
    return found


def write_clients(clients: Sequence[int]) -> bytes:
    """Return numbers of clients as bytes."""
    return varint(len(clients)) + b"".join(varint(client) for client in sorted(clients))


def read_clients(reader: Reader) -> list[int]:
    """Return the numbers of clients that come next."""
    clients = [reader.varint() for _ in range(_count(reader))]
    if len(set(clients)) != len(clients):
        raise CodecError("a client that is named twice")
    return clients


def write_words(words: Array) -> bytes:
    """Return words uint32 as bytes, the lowest first."""
    return words.astype("<u4").tobytes()


def read_words(reader: Reader, count: int) -> Array:
    """Return ``count`` words, and nothing may come after them."""
    words = np.frombuffer(reader.take(4 * count), "<u4").astype(np.uint32)
    reader.end()
    return words


def _count(reader: Reader) -> int:
    count = reader.varint()
    if count > MOST_CLIENTS:
        raise CodecError(f"{count} clients in a frame, expected at most {MOST_CLIENTS}")
    return count


def _text(client: int, masks: bytes, channel: bytes, topic: bytes) -> bytes:
    return b"fedkd card 1" + varint(client) + masks + channel + topic
