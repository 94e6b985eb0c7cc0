"""What a client is asked and answers in a masked round, as long as in earnest and without a secret in it: for plans."""

from __future__ import annotations

from fedkd.frames import KEYS, MASKED, SHARES, UNMASK, varint
from fedkd.records import Query
from fedkd.secagg import letters, shamir
from fedkd.secagg.letters import Card
from fedkd.secagg.masks import KEY, SIGNATURE, neighborhood
from fedkd.secagg.server import Roster, ask_keys

SEALED = 12 + 2 * shamir.SHARE + 16
"""Bytes of two shares in AES-GCM, with nonce and tag."""


def conversation(
    query: Query, question: bytes, clients: int, *, numbers: int, robust: bool
) -> tuple[list[bytes], list[bytes]]:
    """Return the frames to and from the last of ``clients`` in a round of ``question`` in which nobody is lost.

    A vector has ``numbers`` numbers.
    """
    own = clients - 1
    near = neighborhood(range(clients), b"")
    cards = {k: Card(k, bytes(KEY), bytes(KEY), bytes(KEY), bytes(SIGNATURE)) for k in (own, *near[own])}
    told = varint(clients) + Roster(cards, near).of(own)[len(varint(len(cards))) :]
    words = bytes(4 * numbers)
    down, up = [ask_keys(query)], [letters.write(KEYS, query, cards[own].pack(), own)]
    if not robust:
        return [*down, letters.write(MASKED, query, told + question)], [*up, letters.write(MASKED, query, words, own)]
    sealed = letters.write_sealed(dict.fromkeys(near[own], bytes(SEALED)))
    there = letters.write_clients(sorted(cards)) + letters.write_clients([]) + varint(clients)
    halves = letters.write_sealed(dict.fromkeys(cards, bytes(shamir.SHARE)))
    down += [
        letters.write(SHARES, query, told),
        letters.write(MASKED, query, sealed + question),
        letters.write(UNMASK, query, there),
    ]
    up += [
        letters.write(SHARES, query, sealed, own),
        letters.write(MASKED, query, words, own),
        letters.write(UNMASK, query, halves, own),
    ]
    return down, up
