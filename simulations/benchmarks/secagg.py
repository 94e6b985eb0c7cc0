"""What secure aggregation costs a client and the server: seconds and bytes for a sum of 10,000 x 10 labels.

One client in earnest, with all its files, among 10, 100 and 1000; nobody is lost. The server takes off the masks after
a twentieth of the clients was lost; it gets words and shares of the right length, whose content costs nothing. From 101
clients on each shares masks with 3 log2 K others. Plain ballots as float16 would be 200,000 bytes.
Run: python -m simulations.benchmarks.secagg (two minutes)
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.codec import encode_query
from fedkd.frames import MASKED, SHARES, UNMASK, varint
from fedkd.privacy.distributed import contribution, scale_of
from fedkd.privacy.noise import SystemEntropy
from fedkd.records import Query
from fedkd.secagg import letters, masks, server, shamir
from fedkd.secagg.client import Rules, Vector, respond
from fedkd.secagg.letters import Card
from simulations.benchmarks.bench import save, spread

ROWS, CLASSES, REPEATS = 10_000, 10, 5
QUERY = Query(1, np.arange(ROWS), CLASSES, "ab" * 32)
QUESTION = encode_query(QUERY, ROWS)
TOPIC = b"benchmark"
Milliseconds = dict[str, float]


def timed(taken: Milliseconds, name: str, work: Callable[[], Any]) -> Any:
    """Return what ``work`` returns, and add its milliseconds to ``taken``."""
    start = time.perf_counter()
    result = work()
    taken[name] = taken.get(name, 0.0) + 1e3 * (time.perf_counter() - start)
    return result


def client(clients: int, *, robust: bool) -> tuple[Milliseconds, dict[str, int]]:
    """Return milliseconds and bytes of client 0 in one round; the others only have keys."""
    rules = Rules(max(3, clients // 2), robust, TOPIC)
    private = {k: (masks.new_key(), masks.new_key(), masks.new_identity()) for k in range(1, clients)}
    about = rules.about(QUERY.round)
    cards = {k: letters.card(k, masks.public(a), masks.public(b), c, about) for k, (a, b, c) in private.items()}
    numbers = np.random.default_rng(0).integers(-1000, 1000, ROWS * CLASSES)
    taken: Milliseconds = {}
    asked, answered = 0, 0
    with tempfile.TemporaryDirectory(dir=".") as folder:

        def say(name: str, frame: bytes) -> bytes:
            nonlocal asked, answered
            reply: bytes = timed(
                taken, name, lambda: respond(0, Path(folder), frame, rules, lambda question: Vector(numbers, QUERY))
            )
            asked, answered = asked + len(frame), answered + len(reply)
            return reply

        mine = server.read_card(say("keys", server.ask_keys(QUERY)))
        members = server.roster([mine, *cards.values()], rules)
        near = members.near[0]
        if robust:
            say("shares", letters.write(SHARES, QUERY, members.of(0)))
            sealed = {k: _sealed(private[k][1], mine, rules, k) for k in near}
            say("masked", letters.write(MASKED, QUERY, letters.write_sealed(sealed) + QUESTION))
            there = letters.write_clients([0, *near]) + letters.write_clients([])
            say("unmask", letters.write(UNMASK, QUERY, there + varint(clients)))
        else:
            say("masked", letters.write(MASKED, QUERY, members.of(0) + QUESTION))
    return taken, {"down": asked, "up": answered}


def _sealed(channel: bytes, receiver: Card, rules: Rules, sender: int) -> bytes:
    seed = masks.agree(channel, receiver.channel, b"fedkd share" + rules.about(QUERY.round))
    about = b"fedkd share" + sender.to_bytes(8, "big") + (0).to_bytes(8, "big")
    return masks.seal(seed, bytes(2 * shamir.SHARE), about)


def aggregate(clients: int, *, robust: bool) -> Milliseconds:
    """Return the milliseconds of the server for the sum, after one in twenty was lost, beside one plain sum."""
    rules = Rules(clients // 2, robust, TOPIC)
    keys = [masks.new_key() for _ in range(clients)]
    cards = {k: Card(k, masks.public(keys[k]), bytes(32), bytes(32), bytes(64)) for k in range(clients)}
    members = server.Roster(cards, masks.neighborhood(range(clients), b""))
    lost = set(range(0, clients, 20))
    some = np.random.default_rng(0).integers(0, 2**32, ROWS * CLASSES, np.uint32)
    words = {k: some for k in range(clients) if k not in lost}
    said: dict[int, dict[int, bytes]] = {k: {} for k in words}
    for k in range(clients):
        circle = [k, *members.near[k]]
        if robust:
            shares = shamir.split(keys[k], rules.threshold(len(circle)), circle)
        for peer in circle:
            if peer in said and (robust or k in lost):
                said[peer][k] = shares[peer] if robust else bytes(32)
    taken: Milliseconds = {}
    timed(taken, "plain sum", lambda: sum(words.values()))
    timed(taken, "masked sum", lambda: server.total(words, range(clients), members, said, rules, QUERY.round))
    return taken


def main() -> None:
    """Measure and save."""
    rows = {}
    for clients in (10, 100, 1000):
        for robust in (False, True):
            runs = [client(clients, robust=robust) for _ in range(REPEATS)]
            sums = [aggregate(clients, robust=robust) for _ in range(2)]
            rows[f"{clients} clients, {'robust' if robust else 'strict'}"] = {
                "neighbors": len(masks.neighborhood(range(clients), b"")[0]),
                "client_ms": {name: spread([run[0][name] for run in runs], 1) for name in runs[0][0]},
                "client_bytes": runs[0][1],
                "server_ms": {name: spread([run[name] for run in sums], 0) for name in sums[0]},
            }
    scale = scale_of(ROWS, CLASSES, noise_multiplier=1.4, clip=1.0, least=50, clients=100)
    p, taken = np.full((ROWS, CLASSES), 1 / CLASSES), Milliseconds()
    for _ in range(REPEATS):
        timed(taken, "noise", lambda: contribution(p, np.ones(ROWS), scale, SystemEntropy()))
    save(
        "secagg",
        {
            "work": {"words": ROWS * CLASSES, "repeats": REPEATS, "load average": round(os.getloadavg()[0], 1)},
            "rounds": rows,
            "clip_and_discrete_noise_ms": round(taken["noise"] / REPEATS, 1),
        },
    )


if __name__ == "__main__":
    main()
