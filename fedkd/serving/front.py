"""What a server shows to the network: the page, what there is to know of the run, joining, the gate to the SuperLink.

Everything that is not listed here is a 404. Nothing that a request names is opened as a file: all answers are made at
the start, but for joining and for Fleet calls.
"""

from __future__ import annotations

import asyncio
import base64
import collections
import contextlib
import gzip
import hashlib
import json
import logging
import mimetypes
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from fedkd.errors import AdmissionError, FedkdError
from fedkd.fleet.identity import statement
from fedkd.serving.gate import ENDING, Gate, address_of, at_the_end, clock_trouble, refusal, signed
from fedkd.serving.limits import Places
from fedkd.serving.pki import public_pem

log = logging.getLogger("fedkd.serving.front")

PAGE = Path(__file__).parent / "page"
LONGEST_JOIN = 8192
"""Bytes of a request to join: a code, a key, a name, a time and a signature."""
SLOWEST = 900.0
"""Seconds after which any request is over: a transfer set of 20 MB at 25 kB/s."""
SLICE = 64 * 1024
"""Bytes of an answer that are handed to a connection at a time; the next ones when its reader has taken these."""
DOWNLOADS, DOWNLOADS_EACH = 512, 128
"""Answers longer than a slice that go out at a time, in all and to one address, behind which there may be a class."""
SHARDS_KEPT = 4
"""Shares of a demonstration that are kept ready when nobody is reading them."""
SECURITY = {
    "content-security-policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "worker-src 'self'",
            "style-src 'self'",
            "img-src 'self' blob: data:",
            "media-src 'self' blob:",
            "connect-src 'self'",
            "manifest-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    ),
    "permissions-policy": "camera=(self), screen-wake-lock=(self), microphone=(), geolocation=()",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
mimetypes.add_type("application/manifest+json", ".webmanifest")
mimetypes.add_type("text/javascript", ".js")


@dataclass(frozen=True)
class File:
    """One answer that is ready: its bytes, type, how long it may be kept, and the same bytes packed."""

    content: bytes
    kind: str
    cache: str = "no-cache"
    packed: bytes | None = field(default=None, repr=False)
    tag: str = field(init=False)
    """What tells a browser that it has this already: a hash, taken once and not while a request waits."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tag", f'"{hashlib.sha256(self.content).hexdigest()[:32]}"')


@dataclass(frozen=True)
class Offer:
    """What the front tells everybody who reaches it: about the run, its transfer set, and shares of a demonstration."""

    about: Mapping[str, Any]
    ca: bytes
    transfer: bytes
    fingerprint: str
    shards: int = 0
    shard: Callable[[int], bytes] = lambda k: b""


Register = Callable[[bytes, str], str]
"""Registers a public key (PEM) with a name at the SuperLink and returns the node id."""


def front(offer: Offer, gate: Gate, register: Register, *, page: Path = PAGE) -> Callable[..., Awaitable[None]]:
    """Return the ASGI app. ``register`` may block; it is called for each device that a code lets in."""
    files = page_files(page)
    files |= {
        "fedkd/about.json": File(json.dumps(offer.about).encode(), "application/json", "no-store"),
        "fedkd/ca.crt": File(offer.ca, "application/x-x509-ca-cert"),
        f"fedkd/transfer/{offer.fingerprint}": packed(
            offer.transfer, "application/octet-stream", "public, max-age=31536000, immutable"
        ),
    }
    joining, downloads = asyncio.Lock(), Places(each=DOWNLOADS_EACH, most=DOWNLOADS)
    share = shares(offer.shard)

    def sent(file: File, request: Request) -> Response:
        response = served(file, request)
        if len(response.body) > SLICE:
            peer = address_of(request)
            if not downloads.take(peer):
                return refusal(503, "too many downloads at a time; try again", 5)
            at_the_end(request, lambda _: downloads.leave(peer), file)  # the file is known for as long: see shares
        return response

    async def show(request: Request) -> Response:
        if busy := gate.busy(request):
            return busy
        name = request.url.path.removeprefix("/")
        found = files.get(name or "index.html")
        return sent(found, request) if found is not None else refusal(404, "there is nothing here")

    async def shard(request: Request) -> Response:
        if busy := gate.busy(request):
            return busy
        text = request.path_params["k"]
        if not text.isdecimal() or len(text) > 6 or int(text) >= offer.shards:
            return refusal(404, f"this server offers {offer.shards} shares of demonstration data")
        return sent(await share(int(text)), request)

    async def join(request: Request) -> Response:
        if busy := gate.busy(request) or foreign(request):
            return busy
        try:
            asked = await asked_to_join(request)
            key = asked.check(str(offer.about.get("authority", "")), gate.now())
            async with joining:  # one at a time: a seat is taken once, and refusals are counted before the next guess
                if tired := gate.tired(request):
                    return tired
                member = await run_in_threadpool(gate.registry.admit, asked.code, key, asked.name)
                if not member.node_id:
                    member = await run_in_threadpool(_settle, gate, register, member.key, member.name)
        except AdmissionError as error:
            log.info("%s", json.dumps({"call": "join", "status": 403, "why": str(error)}))
            return gate.failed(request) or refusal(403, str(error))
        except (TimeoutError, ClientDisconnect):
            return refusal(408, "the request to join did not come in whole")
        except ConnectionError as error:
            return refusal(503, str(error), 5)
        except FedkdError as error:
            return gate.failed(request) or refusal(400, str(error))
        log.info("%s", json.dumps({"call": "join", "status": 200, "node": member.name, "node_id": member.node_id}))
        return Response(json.dumps({"node_id": member.node_id}), 200, {"cache-control": "no-store"}, "application/json")

    async def fleet(request: Request) -> Response:
        return gate.busy(request) or foreign(request) or await gate.fleet(request)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with gate.upstream:
            yield

    async def plain(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        return refusal(status, {404: "there is nothing here", 405: "not by this method"}.get(status, "failed"))

    app = Starlette(
        routes=[
            Route("/v1/fleet/{route}", fleet, methods=["POST"]),
            Route("/fedkd/join", join, methods=["POST"]),
            Route("/fedkd/shard/{k}", shard, methods=["GET"]),
            *(Route(f"/{name}", show, methods=["GET"]) for name in files),
            Route("/", show, methods=["GET"]),
        ],
        exception_handlers={HTTPException: plain, Exception: plain},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return _guarded(app)


def _settle(gate: Gate, register: Register, key: str, name: str) -> Any:
    try:
        return gate.registry.settle(key, register(key.encode(), name))
    except FedkdError as error:
        gate.registry.withdraw(key)
        log.error("join: %s", error)
        raise ConnectionError("the SuperLink did not register this device; try again") from None


@dataclass(frozen=True)
class Asked:
    """A request to join: a code, a public key (PEM), a name, and a ``proof``, signed at ``time``, of the private key.

    ``time`` is ISO 8601 with a zone, ``proof`` a signature of :func:`fedkd.fleet.identity.statement` in base64.
    """

    code: str
    key: str
    name: str
    time: str
    proof: str

    def check(self, authority: str, now: float) -> bytes:
        """Return the key; raise :class:`AdmissionError` unless who asks has its private half and just signed for us."""
        key = public_pem(self.key.encode())
        if not (self.time and self.proof):
            raise AdmissionError(
                "a request to join must show that it has the private key: install the same fedkd, or reload the page"
            )
        if trouble := clock_trouble("the time of a request to join", self.time, now):
            raise AdmissionError(trouble)
        try:
            signature = base64.b64decode(self.proof, validate=True)
        except ValueError:
            raise AdmissionError("the proof of a request to join must be base64") from None
        if not signed(key, statement(self.time, self.code, self.key, authority), signature):
            raise AdmissionError("the proof does not fit this key, code, time and server")
        return key


async def asked_to_join(request: Request) -> Asked:
    """Return what a request asks; raise :class:`FedkdError` if it is no request to join."""
    content = bytearray()
    async with asyncio.timeout(20):
        async for part in request.stream():
            content += part
            if len(content) > LONGEST_JOIN:
                raise FedkdError(f"a request to join has at most {LONGEST_JOIN} bytes")
    try:
        given = json.loads(content)
        asked = Asked(given["code"], given["key"], *(given.get(what, "") for what in ("name", "time", "proof")))
        if not all(isinstance(value, str) for value in vars(asked).values()):
            raise TypeError
        "".join(vars(asked).values()).encode()  # half a letter is a ValueError too
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise FedkdError(
            'a request to join is JSON: {"code": "...", "key": "PEM", "name": "...", "time": "...", "proof": "..."}'
        ) from None
    return asked


def shares(make: Callable[[int], bytes]) -> Callable[[int], Awaitable[File]]:
    """Return what makes shares of a demonstration ready: one at a time, and none twice while somebody reads it."""
    ready: weakref.WeakValueDictionary[int, File] = weakref.WeakValueDictionary()
    kept: collections.deque[File] = collections.deque(maxlen=SHARDS_KEPT)
    making = asyncio.Lock()

    async def share(k: int) -> File:
        async with making:
            if (file := ready.get(k)) is None:
                file = await run_in_threadpool(lambda: File(make(k), "application/octet-stream", "no-store"))
                ready[k] = file
                kept.append(file)
        return file

    return share


def foreign(request: Request) -> Response | None:
    """Refuse what another site's page sends: ours comes from here, and programs name no origin."""
    origin = request.headers.get("origin")
    if origin is None or origin.partition("://")[2] == request.headers.get("host"):
        return None
    return refusal(403, "requests from pages of other sites are not taken")


def page_files(folder: Path) -> dict[str, File]:
    """Return the files of the page by name; none if it was not built. No links, no folders, no hidden files."""
    if not folder.is_dir():
        return {}
    return {
        path.name: packed(path.read_bytes(), mimetypes.guess_type(path.name)[0] or "application/octet-stream")
        for path in sorted(folder.iterdir())
        if path.is_file() and not path.is_symlink() and not path.name.startswith(".") and path.suffix != ".py"
    }


def packed(content: bytes, kind: str, cache: str = "no-cache") -> File:
    """Return a file with its bytes packed too, where that is worth it."""
    small = gzip.compress(content, 6, mtime=0)
    return File(content, kind, cache, small if len(small) < 0.95 * len(content) else None)


def served(file: File, request: Request) -> Response:
    """Answer with ``file``, packed if the asker takes that, or with 304 if it has it."""
    headers = {"cache-control": file.cache, "etag": file.tag, "vary": "accept-encoding"}
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    takes = {part.partition(";")[0].strip() for part in request.headers.get("accept-encoding", "").split(",")}
    if file.packed is not None and "gzip" in takes:
        return Response(file.packed, 200, {**headers, "content-encoding": "gzip"}, file.kind)
    return Response(file.content, 200, headers, file.kind)


def _guarded(app: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Give every answer the same security headers, every reader as much as it takes, and every request an end.

    A body handed over whole would lie in buffers for as long as its reader pleases, once for each connection; a slice
    waits until the one before has gone out.
    """

    async def guarded(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":  # lifespan; there are no websockets here
            await app(scope, receive, send)
            return

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.encode(), value.encode()) for name, value in SECURITY.items()]
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            body = message.get("body", b"")
            for start in range(0, len(body) - SLICE, SLICE):
                await send({**message, "body": body[start : start + SLICE], "more_body": True})
            rest = (len(body) - 1) // SLICE * SLICE
            await send({**message, "body": body[rest:]} if rest > 0 else message)

        with (
            contextlib.ExitStack() as ending,
            contextlib.suppress(TimeoutError),  # then the connection is closed: the answer is not whole
        ):
            scope[ENDING] = ending
            async with asyncio.timeout(SLOWEST):
                await app(scope, receive, send_with_headers)

    return guarded
