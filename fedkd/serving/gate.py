"""The way of a Fleet call through the front to the SuperLink: known key, signed, small, not too often, twelve routes.

A SuperLink's port carries its Control and Runtime APIs too, which in Flower 1.41 ask nobody who they are. So it listens
on loopback, and nothing passes here but the twelve calls that a node makes. The path that is asked for is only looked
up, never handed on.

Which status says what is decided by stock SuperNodes: they end on 401, take 403 for the end of a run, retry 502 to 504,
and lose their connection for good on any other error.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import datetime
import functools
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import httpx
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from fedkd.errors import FedkdError
from fedkd.serving.invites import Member, Registry
from fedkd.serving.limits import Buckets, Holders, Places, whose

log = logging.getLogger("fedkd.serving.gate")

ROUTES = frozenset(
    {
        *("register-node", "activate-node", "deactivate-node", "unregister-node", "send-node-heartbeat"),
        *("pull-messages", "push-messages", "get-run", "get-fab", "push-object", "pull-object"),
        "confirm-message-received",
    }
)
"""The last part of the paths that pass; all of Flower's Fleet API."""
PUSH = "push-object"
"""The call that carries a part of an answer."""
PROTOBUF = "application/protobuf"
KEY, TIMESTAMP, SIGNATURE = "flwr-public-key", "flwr-timestamp", "flwr-signature"
HANDED_ON = (KEY, TIMESTAMP, SIGNATURE, "flwr-package-name", "flwr-package-version", "flwr-component-name")
HANDED_BACK = ("content-type", "flwr-version-incompatibility-message")
INSTANCE = "fedkd-instance"
"""A header by which a program may say which of several with one key it is: a short text that it chose at its start."""
AHEAD, BEHIND = 5.0, 305.0
"""Seconds that a node's clock may be ahead of ours and behind it; the SuperLink's own limits."""
LONGEST_HEADER = 2048
MOST_CALLS = 2048
"""Calls under way with all keys; as many as connections."""
ENDING = "fedkd.ending"
"""Where a request's scope keeps what happens when it is over."""


@dataclass(frozen=True)
class Limits:
    """What the front bears from its peers."""

    body: int = 8 * 1024 * 1024
    """Bytes of one request: a chunk of an array is 5 MiB."""
    held: int = 256 * 1024 * 1024
    """Bytes of all calls at a time, in and out: from when they come in until their answer has gone out."""
    calls: int = 12
    """Calls under way with one key: a SuperNode has two objects on the way in, two out, and its questions."""
    upload: float = 180.0
    """Seconds that one request may take to come in: 8 MiB at 50 kB/s."""
    key_rate: float = 20.0
    key_burst: float = 400.0
    """Calls a second of one key, and at once: an answer of 100 MB is 20 objects."""
    address_rate: float = 200.0
    address_burst: float = 2000.0
    """Requests a second from one address, behind which there may be a whole class of phones."""
    failures_rate: float = 0.2
    failures_burst: float = 20.0
    """Refusals a second that one address may cause before it is not listened to at all."""
    hold: float = 10.0
    """Seconds of silence after which a key may come from elsewhere."""


@dataclass
class Traffic:
    """What one node has done here: when it was heard last (Unix time, 0: never), from where, and how much.

    ``pushed`` bytes of answers took ``push_seconds`` to arrive: how fast its connection is.
    """

    heard: float = 0.0
    address: str = ""
    calls: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    refused: int = 0
    pushed: int = 0
    push_seconds: float = 0.0
    routes: dict[str, int] = field(default_factory=dict)


class Gate:
    """Forward the Fleet calls of members to a SuperLink."""

    def __init__(
        self,
        registry: Registry,
        upstream: httpx.AsyncClient,
        *,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        """Ask ``registry`` who is let in; ``upstream`` has the SuperLink's address as base."""
        self.registry, self.upstream, self.limits = registry, upstream, limits or Limits()
        self.traffic: dict[str, Traffic] = {}
        self._clock, self._held = clock, 0
        bears = self.limits
        self._keys = Buckets(rate=bears.key_rate, burst=bears.key_burst, clock=ticks)
        self._addresses = Buckets(rate=bears.address_rate, burst=bears.address_burst, clock=ticks)
        self._failures = Buckets(rate=bears.failures_rate, burst=bears.failures_burst, clock=ticks)
        self._holders = Holders(hold=bears.hold, clock=ticks)
        self._calls = Places(each=bears.calls, most=MOST_CALLS)

    def busy(self, request: Request) -> Response | None:
        """Return a refusal if this address asks too much of anything; every request comes by here."""
        wait = self._addresses.take(address_of(request))
        return refusal(503, "too many requests from this address", wait) if wait else None

    def failed(self, request: Request) -> Response | None:
        """Count a refusal against an address; return another refusal if there are too many."""
        return _too_many(self._failures.take(address_of(request)))

    def tired(self, request: Request) -> Response | None:
        """Return a refusal if this address has had too many; what it guesses next is not even looked at."""
        return _too_many(self._failures.wait(address_of(request)))

    def now(self) -> float:
        """Return the time, in seconds since 1970, that all signatures are held against."""
        return self._clock()

    async def fleet(self, request: Request) -> Response:
        """Answer one Fleet call."""
        route = request.path_params["route"]
        if route not in ROUTES:
            return refusal(404, "no such call")
        started = time.monotonic()
        checked = self._check(request)
        if isinstance(checked, Response):
            self._note(request, route, checked, None, started)
            return self.failed(request) or checked if checked.status_code == 401 else checked
        if not self._calls.take(checked.mark):
            full = refusal(503, "too many calls with this key are under way", 1)
            self._note(request, route, full, checked, started)
            return full
        at_the_end(request, self._calls.leave, checked.mark)
        body = await self._body(request)
        if isinstance(body, Response):
            self._note(request, route, body, checked, started)
            return body
        response = await self._forward(route, body, request)
        self._note(request, route, response, checked, started, len(body))
        return response

    def _check(self, request: Request) -> Member | Response:
        """Return who is asking, or why not; nothing of the body has been read by then."""
        headers = request.headers
        for name in (KEY, TIMESTAMP, SIGNATURE):
            if len(headers.getlist(name)) != 1 or len(headers[name]) > LONGEST_HEADER:
                return refusal(401, f"the header {name} is missing, or there twice")
        try:
            key = base64.b64decode(headers[KEY], validate=True)
            signature = base64.b64decode(headers[SIGNATURE], validate=True)
        except (binascii.Error, ValueError):
            return refusal(401, f"{KEY} and {SIGNATURE} must be base64")
        try:
            member = self.registry.member(key)
        except FedkdError as error:
            log.error("%s", error)
            return refusal(503, "the list of members cannot be read")
        if member is None:
            return refusal(401, "this key is not registered here: join with a code first")
        if member.revoked is not None:
            return refusal(401, "this key was revoked by the server's owner")
        if trouble := clock_trouble(TIMESTAMP, headers[TIMESTAMP], self.now()):
            return refusal(401, trouble)
        if not signed(key, headers[TIMESTAMP].encode(), signature):
            return refusal(401, "the signature does not fit the key and the timestamp")
        if wait := self._keys.take(member.mark):
            return refusal(503, "too many calls with this key", wait)
        return self._held_by(request, member) or member

    def _held_by(self, request: Request, member: Member) -> Response | None:
        """Refuse a second device with one key while the first goes on talking.

        A program that names itself can be told for good. One that does not, a stock SuperNode, is known by its address
        only, and may have changed its network: it is told to try again. If there are two of these the SuperLink
        refuses to activate the second.
        """
        instance = request.headers.get(INSTANCE, "")[:64]
        wait = self._holders.take(member.mark, instance or address_of(request))
        if not wait:
            return None
        said = f"another device uses this key ({member.name}) right now: each needs a key of its own, join anew"
        return refusal(409 if instance else 503, said, wait)

    async def _body(self, request: Request) -> bytes | Response:
        too_long = refusal(413, f"a request may have {self.limits.body} bytes")
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != PROTOBUF:
            return refusal(415, f"the content type of a Fleet call is {PROTOBUF}")
        declared = request.headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared) > self.limits.body:
            return too_long
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.limits.upload):
                async for part in request.stream():
                    size += len(part)
                    self._held += len(part)
                    if size > self.limits.body:
                        return too_long
                    if self._held > self.limits.held:
                        return refusal(503, "the server is reading as much as it can hold", 5)
                    parts.append(part)
        except TimeoutError:
            return refusal(408, f"the request took longer than {self.limits.upload:g} s to come in")
        except ClientDisconnect:
            return refusal(400, "the request broke off")
        finally:
            at_the_end(request, self._release, size)
        return b"".join(parts)

    def _release(self, size: int) -> None:
        self._held -= size

    async def _forward(self, route: str, body: bytes, request: Request) -> Response:
        headers = {name: request.headers[name] for name in HANDED_ON if name in request.headers}
        try:
            answer = await self.upstream.post(
                f"/v1/fleet/{route}", content=body, headers={**headers, "content-type": PROTOBUF, "accept": PROTOBUF}
            )
        except httpx.TransportError as error:
            log.warning("SuperLink: %s", type(error).__name__)
            return refusal(502, "the SuperLink does not answer", 2)
        if answer.status_code == 500:  # sqlite was locked, as under load: a stock SuperNode ends on 500, not on 503
            log.warning("SuperLink: 500 to %s", route)
            return refusal(503, "the SuperLink could not answer; try again", 2)
        self._held += len(answer.content)
        at_the_end(request, self._release, len(answer.content))
        back = {name: answer.headers[name] for name in HANDED_BACK if name in answer.headers}
        return Response(answer.content, answer.status_code, back)

    def _note(
        self, request: Request, route: str, response: Response, member: Member | None, started: float, size: int = 0
    ) -> None:
        """Count a call. The log has no body, no query and no key, and calls that went well only in detail."""
        refused = response.status_code >= 400
        if member is not None:
            traffic = self.traffic.setdefault(member.mark, Traffic())
            traffic.heard, traffic.address = self._clock(), address_of(request)
            traffic.calls += 1
            traffic.bytes_in += size
            traffic.bytes_out += len(response.body)
            traffic.refused += refused
            if route == PUSH and not refused:
                traffic.pushed += size
                traffic.push_seconds += time.monotonic() - started
            traffic.routes[route] = traffic.routes.get(route, 0) + 1
        log.log(
            logging.INFO if refused else logging.DEBUG,
            "%s",
            json.dumps(
                {
                    "call": route,
                    "status": response.status_code,
                    "node": member.name if member is not None else None,
                    "from": address_of(request),
                    "bytes": [size, len(response.body)],
                    "ms": round(1000 * (time.monotonic() - started)),
                    **({"why": why(response)} if refused else {}),
                }
            ),
        )


def _too_many(wait: float) -> Response | None:
    return refusal(429, "too many refused requests from this address; wait", wait) if wait else None


def at_the_end(request: Request, what: Callable[..., None], *given: object) -> None:
    """Have ``what`` called when ``request`` is over: its answer has gone out, or never will."""
    ending: contextlib.ExitStack = request.scope[ENDING]
    ending.callback(what, *given)


def refusal(status: int, error: str, wait: float = 0.0) -> Response:
    """Return an answer that says why not, in one line, and when to try again if ``wait`` seconds will help."""
    retry = {"retry-after": str(int(wait) + 1)} if wait else {}
    return Response(json.dumps({"error": error}), status, retry, "application/json")


def why(response: Response) -> str:
    """Return the line of a refusal, or an empty string: what the SuperLink says stays between it and the node."""
    try:
        return str(json.loads(bytes(response.body))["error"])
    except (ValueError, KeyError, TypeError):
        return ""


def address_of(request: Request) -> str:
    """Return what stands for the sender of ``request``."""
    return whose(request.client.host) if request.client else ""


def lateness(timestamp: str, now: float) -> float | None:
    """Return by how many seconds ``timestamp`` (ISO 8601 with a zone) lies before ``now``; None if it is none."""
    try:
        signed_at = datetime.datetime.fromisoformat(timestamp)
        return now - signed_at.timestamp() if signed_at.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


def clock_trouble(name: str, timestamp: str, now: float) -> str:
    """Return in one line why ``timestamp``, which is called ``name``, is not of this moment; an empty one if it is."""
    late = lateness(timestamp, now)
    if late is None:
        return f"{name} is no time with a zone, such as 2030-01-01T12:00:00+00:00"
    if -AHEAD < late < BEHIND:
        return ""
    where = f"{late:.0f} s behind" if late > 0 else f"{-late:.0f} s ahead of"
    return f"the clock of this device is {where} the server's: set it, or use the Date header"


def signed(key: bytes, message: bytes, signature: bytes) -> bool:
    """Return whether ``signature`` (DER, ECDSA with SHA-256) of ``message`` is by the private half of ``key`` (PEM)."""
    try:
        _loaded(key).verify(signature, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


@functools.lru_cache(maxsize=4096)
def _loaded(key: bytes) -> ec.EllipticCurvePublicKey:
    found = serialization.load_pem_public_key(key)
    assert isinstance(found, ec.EllipticCurvePublicKey)  # the registry takes no others
    return found


def snapshot(registry: Registry, traffic: Mapping[str, Traffic], *, now: float) -> list[dict[str, object]]:
    """Return one row for each member: name, state, node id, when heard, from where, calls, bytes, bytes a second."""
    rows: list[dict[str, object]] = []
    for member in registry.members():
        seen = traffic.get(member.mark, Traffic())
        rows.append(
            {
                "name": member.name,
                "state": "revoked" if member.revoked is not None else state_of(seen.heard, now),
                "node_id": member.node_id,
                "key": member.mark,
                "joined": member.joined,
                "revoked": member.revoked,
                "heard": seen.heard,
                "address": seen.address,
                "calls": seen.calls,
                "bytes_in": seen.bytes_in,
                "bytes_out": seen.bytes_out,
                "refused": seen.refused,
                "speed": seen.pushed / seen.push_seconds if seen.push_seconds else None,
            }
        )
    return rows


HERE = 45.0
"""Seconds after which a node that is silent no longer counts as here: phones ask every 30 s at the slowest."""


def state_of(heard: float, now: float) -> str:
    """Return ``here``, ``silent`` or ``never seen``."""
    return "never seen" if not heard else "here" if now - heard < HERE else "silent"
