"""What one peer may ask of the front: token buckets, one holder for each key, and connections that do not linger."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

MOST = 20_000
"""Names that are remembered at a time; the one that was silent longest is forgotten."""
UNSENT = 64 * 1024
"""Bytes of an answer that wait for a slow reader in one connection, beside the slice that follows them."""


class Buckets:
    """Token buckets by name: ``rate`` a second for ever, and ``burst`` at once."""

    def __init__(self, *, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with all buckets full."""
        self.rate, self.burst, self._clock = rate, burst, clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()  # name -> tokens, when that was

    def take(self, name: str, tokens: float = 1.0) -> float:
        """Take ``tokens`` from the bucket of ``name``; return 0, or the seconds after which it has them."""
        return self._poured(name, tokens, tokens)

    def wait(self, name: str) -> float:
        """Return the seconds after which a token may be taken, 0 for now, and take none."""
        return self._poured(name, 1.0, 0.0)

    def _poured(self, name: str, needed: float, taken: float) -> float:
        now = self._clock()
        level, when = self._levels.pop(name, (self.burst, now))
        level = min(self.burst, level + (now - when) * self.rate)
        wait = max(0.0, (needed - level) / self.rate)
        self._levels[name] = (level if wait else level - taken, now)
        if len(self._levels) > MOST:
            self._levels.popitem(last=False)
        return wait


class Holders:
    """Who uses a key right now. Another peer gets it once the holder has been silent for ``hold`` seconds.

    A device that changes its network comes from elsewhere and is silent where it was; two devices with one key both go
    on talking. So the newcomer is kept waiting for a moment, and for as long as the other one talks.
    """

    def __init__(self, *, hold: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with no key held."""
        self.hold, self._clock = hold, clock
        self._holders: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def take(self, key: str, peer: str) -> float:
        """Let ``peer`` use ``key``; return 0, or the seconds of the holder's silence that are still missing."""
        now = self._clock()
        holder, heard = self._holders.get(key, (peer, now))
        if holder != peer and now - heard < self.hold:
            return self.hold - (now - heard)
        self._holders[key] = (peer, now)
        self._holders.move_to_end(key)
        if len(self._holders) > MOST:
            self._holders.popitem(last=False)
        return 0.0


class Places:
    """How many may do something at a time: so many in all, and so many by one name."""

    def __init__(self, *, each: int, most: int) -> None:
        """Start with all places free."""
        self.each, self.most = each, most
        self._taken: Counter[str] = Counter()

    def take(self, name: str) -> bool:
        """Take a place for ``name`` and return True, or False if there is none."""
        if self._taken[name] >= self.each or self._taken.total() >= self.most:
            self._leave(name, 0)
            return False
        self._taken[name] += 1
        return True

    def leave(self, name: str) -> None:
        """Give a place back."""
        self._leave(name, 1)

    def _leave(self, name: str, places: int) -> None:
        self._taken[name] -= places
        if self._taken[name] <= 0:
            del self._taken[name]

    def __len__(self) -> int:
        """Return how many places are taken."""
        return self._taken.total()


def whose(address: str) -> str:
    """Return what stands for one peer: an IPv4 address, or the /64 in which one household has its IPv6 addresses.

    >>> whose("10.0.0.5"), whose("::ffff:10.0.0.5"), whose("2001:db8:1:2:3::4")
    ('10.0.0.5', '10.0.0.5', '2001:db8:1:2::/64')
    """
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, 64), strict=False))


@dataclass(frozen=True)
class Patience:
    """How long a connection may take to say what it wants and to take what waits for it, and how many a peer has."""

    request: float = 20.0
    progress: float = 60.0
    """Seconds in which a reader takes what waits for it, about 128 kB; who is slower holds memory for nothing."""
    connections: int = 256


def impatient(patience: Patience) -> type[H11Protocol]:
    """Return uvicorn's protocol with an end to connections that say nothing, or say it or read it byte by byte.

    uvicorn itself limits the silence between two requests only, and that from when the last byte of an answer was
    written to a buffer on: here a connection is silent once the buffer has gone out.
    """
    open_now: Counter[str] = Counter()

    class Impatient(H11Protocol):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._peer = ""
            self._alarm: asyncio.TimerHandle = self.loop.call_later(patience.request, self._look)
            self._stalled: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            transport.set_write_buffer_limits(high=UNSENT)  # over TLS it would be 512 kB
            self._peer = whose(self.client[0]) if self.client else ""
            open_now[self._peer] += 1
            if open_now[self._peer] > patience.connections:
                transport.abort()

        def connection_lost(self, exc: Exception | None) -> None:
            self._alarm.cancel()
            self._moving()
            open_now[self._peer] -= 1
            if not open_now[self._peer]:
                del open_now[self._peer]
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            before = self.cycle
            super().data_received(data)
            if self.cycle is not before:  # a whole head has come: what follows has the app's own time limit
                self._alarm.cancel()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._alarm.cancel()
            if self._stalled is None:
                self._idle()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._moving()
            self._stalled = self.loop.call_later(patience.progress, self._look)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._moving()
            if self.cycle is not None and self.cycle.response_complete:
                self._idle()

        def _moving(self) -> None:
            if self._stalled is not None:
                self._stalled.cancel()
                self._stalled = None

        def _idle(self) -> None:
            self._alarm.cancel()
            if not self.transport.is_closing():
                self._alarm = self.loop.call_later(self.timeout_keep_alive + patience.request, self._look)

        def _look(self) -> None:
            if self.transport is not None:
                self.transport.abort()

    return Impatient
