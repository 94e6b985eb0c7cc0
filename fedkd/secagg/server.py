"""The server's half of a masked round, without a network: questions out, answers in, and at the end the sum.

It learns who took part and the sum of their vectors. Whoever is lost before its vector has arrived is left out: the
others say what takes its masks off. Nothing here is secret but what robust rounds bring together at the end.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedkd.errors import CodecError, RoundError
from fedkd.frames import KEYS, MASKED, SHARES, UNMASK, Reader, varint
from fedkd.records import Query
from fedkd.secagg import letters, shamir
from fedkd.secagg.client import Rules
from fedkd.secagg.letters import Card
from fedkd.secagg.masks import KEY, add, agree, neighborhood, sign, signed, stream, usable
from fedkd.softlabels import Array


@dataclass(frozen=True, eq=False)
class Roster:
    """Who takes part in a round: cards by client, and with which others each shares masks."""

    cards: Mapping[int, Card]
    near: Mapping[int, Sequence[int]]

    def of(self, client: int) -> bytes:
        """Return what a client is told of the others: how many there are, and the cards of its neighbors."""
        return varint(len(self.cards)) + letters.write_cards([self.cards[peer] for peer in self.near[client]])


def ask_keys(query: Query) -> bytes:
    """Return the question for keys."""
    return letters.write(KEYS, query)


def read_card(frame: bytes) -> Card:
    """Return the card in a client's answer."""
    header, reader = letters.open_(frame, KEYS)
    (card,) = letters.read_cards(Reader(b"\1" + reader.rest()))
    if card.client != header.client:
        raise CodecError(f"client {header.client} sent a card of client {card.client}")
    return card


def sound(cards: Sequence[Card], round_: int, rules: Rules) -> list[Card]:
    """Return the cards that all others will take, so that none of them costs anybody but its sender the round."""
    found = Counter(key for one in cards for key in (one.masks, one.channel))
    return [
        one
        for one in cards
        if one.genuine(rules.about(round_)) and all(found[k] == 1 and usable(k) for k in (one.masks, one.channel))
    ]


def roster(cards: Sequence[Card], rules: Rules) -> Roster:
    """Return the roster of those who sent a card."""
    if len(cards) < max(2, rules.least):
        raise RoundError(f"{len(cards)} clients sent keys that can be used, {max(2, rules.least)} needed")
    order = hashlib.sha256(b"".join(one.pack() for one in sorted(cards, key=lambda one: one.client))).digest()
    return Roster({one.client: one for one in cards}, neighborhood(sorted(one.client for one in cards), order))


def ask_shares(query: Query, members: Roster) -> dict[int, bytes]:
    """Return the question for sealed shares, for each client."""
    return {client: letters.write(SHARES, query, members.of(client)) for client in members.cards}


def read_shares(frame: bytes) -> dict[int, bytes]:
    """Return a client's sealed shares, by whom they are for."""
    return _by_client(frame, SHARES)


def ask_masked(
    query: Query, question: bytes, members: Roster, shares: Mapping[int, Mapping[int, bytes]] | None
) -> dict[int, bytes]:
    """Return the question for masked vectors: the ``question`` frame itself, with the roster, or sealed ``shares``.

    ``shares`` are those of robust rounds, by sender and receiver; who has not sent one to each neighbor is left out.
    """
    if shares is None:
        return {client: letters.write(MASKED, query, members.of(client) + question) for client in members.cards}
    shares = {client: mine for client, mine in shares.items() if set(mine) == set(members.near[client])}
    asked = {}
    for client in shares:
        mine = {peer: shares[peer][client] for peer in members.near[client] if client in shares.get(peer, {})}
        asked[client] = letters.write(MASKED, query, letters.write_sealed(mine) + question)
    return asked


def read_masked(frame: bytes, count: int) -> Array:
    """Return a masked vector of ``count`` words."""
    return letters.read_words(letters.open_(frame, MASKED)[1], count)


def ask_unmask(query: Query, members: Roster, asked: Sequence[int], there: Sequence[int]) -> dict[int, bytes]:
    """Return the question for what takes masks off, for each of those ``there``, of those who were ``asked``."""
    present = set(there)
    questions = {}
    for client in there:
        circle = [client, *(peer for peer in members.near[client] if peer in set(asked))]
        body = letters.write_clients([c for c in circle if c in present])
        body += letters.write_clients([c for c in circle if c not in present]) + varint(len(there))
        questions[client] = letters.write(UNMASK, query, body)
    return questions


def read_unmask(frame: bytes) -> dict[int, bytes]:
    """Return a client's seeds or shares, by whom they are about."""
    return _by_client(frame, UNMASK)


def _by_client(frame: bytes, kind: int) -> dict[int, bytes]:
    reader = letters.open_(frame, kind)[1]
    found = letters.read_sealed(reader)
    reader.end()
    return found


def total(
    words: Mapping[int, Array],
    asked: Sequence[int],
    members: Roster,
    said: Mapping[int, Mapping[int, bytes]],
    rules: Rules,
    round_: int,
) -> Array:
    """Return the sum (n,) int64 of the vectors under the masked ``words`` by client, of those who were ``asked``.

    ``said`` is what they answered when asked what takes masks off: seeds, or in robust rounds shares.
    """
    some = next(iter(words.values()))
    found = np.zeros(len(some), np.uint32)
    for mine in words.values():
        found = found + mine
    gone = [client for client in asked if client not in words]
    if rules.robust:
        return signed(_robust(found, words, gone, asked, members, said, rules, round_))
    for lost in gone:
        for client in members.near[lost]:
            if client in words:
                seed = said.get(client, {}).get(lost, b"")
                if len(seed) != KEY:
                    raise RoundError(f"client {client} did not say what it shares with client {lost}, who is gone")
                found = add(found, stream(seed, len(found)), -sign(client, lost))
    return signed(found)


def _robust(
    found: Array,
    words: Mapping[int, Array],
    gone: Sequence[int],
    asked: Sequence[int],
    members: Roster,
    said: Mapping[int, Mapping[int, bytes]],
    rules: Rules,
    round_: int,
) -> Array:
    """Return the sum without masks, whose seeds are put together from shares."""
    about = b"mask" + rules.about(round_)
    for client in words:
        found = add(found, stream(_together(client, members, said, rules), len(found)), -1)
    for lost in gone:
        private = _together(lost, members, said, rules)
        for client in members.near[lost]:
            if client in words and client in asked:
                mask = stream(agree(private, members.cards[client].masks, about), len(found))
                found = add(found, mask, -sign(client, lost))
    return found


def _together(client: int, members: Roster, said: Mapping[int, Mapping[int, bytes]], rules: Rules) -> bytes:
    """Return the secret about ``client`` out of the shares of its neighbors and its own."""
    circle = [client, *members.near[client]]
    shares = {peer: said[peer][client] for peer in circle if client in said.get(peer, {})}
    threshold = rules.threshold(len(circle))
    if len(shares) < threshold:
        raise RoundError(f"{len(shares)} shares of a secret of client {client}, {threshold} needed")
    return shamir.combine(dict(sorted(shares.items())[:threshold]))
