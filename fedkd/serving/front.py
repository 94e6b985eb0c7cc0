"""What a server shows to the network: the page, what there is to know of the run, joining, the gate to the SuperLink.

Everything that is not listed here is a 404. Nothing that a request names is opened as a file: all answers are made at
the start, but for joining and for Fleet calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import json
import logging
import mimetypes
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
from fedkd.serving.gate import Gate, refusal

log = logging.getLogger("fedkd.serving.front")

PAGE = Path(__file__).parent / "page"
LONGEST_JOIN = 8192
"""Bytes of a request to join: a code, a key and a name."""
SLOWEST = 900.0
"""Seconds after which any request is over: a transfer set of 20 MB at 25 kB/s."""
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

    @property
    def tag(self) -> str:
        """What tells a browser that it has this already."""
        return f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'


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
    joining = asyncio.Lock()

    async def show(request: Request) -> Response:
        if busy := gate.busy(request):
            return busy
        name = request.url.path.removeprefix("/")
        found = files.get(name or "index.html")
        return served(found, request) if found is not None else refusal(404, "there is nothing here")

    async def shard(request: Request) -> Response:
        if busy := gate.busy(request):
            return busy
        text = request.path_params["k"]
        if not text.isdecimal() or len(text) > 6 or int(text) >= offer.shards:
            return refusal(404, f"this server offers {offer.shards} shares of demonstration data")
        content = await run_in_threadpool(offer.shard, int(text))
        return served(File(content, "application/octet-stream", "no-store"), request)

    async def join(request: Request) -> Response:
        if busy := gate.busy(request) or foreign(request):
            return busy
        try:
            code, key, name = await asked_to_join(request)
            async with joining:  # one at a time: a seat is taken once
                member = await run_in_threadpool(gate.registry.admit, code, key, name)
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


async def asked_to_join(request: Request) -> tuple[str, bytes, str]:
    """Return ``(code, key, name)`` of a request; raise :class:`FedkdError` if it is not one."""
    content = bytearray()
    async with asyncio.timeout(20):
        async for part in request.stream():
            content += part
            if len(content) > LONGEST_JOIN:
                raise FedkdError(f"a request to join has at most {LONGEST_JOIN} bytes")
    try:
        given = json.loads(content)
        code, key, name = given["code"], given["key"], given.get("name", "")
        if not (isinstance(code, str) and isinstance(key, str) and isinstance(name, str)):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise FedkdError('a request to join is JSON: {"code": "...", "key": "PEM", "name": "..."}') from None
    return code, key.encode(), name


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
    """Give every answer the same security headers, and every request an end."""

    async def guarded(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":  # lifespan; there are no websockets here
            await app(scope, receive, send)
            return

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.encode(), value.encode()) for name, value in SECURITY.items()]
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            await send(message)

        with contextlib.suppress(TimeoutError):  # then the connection is closed: the answer is not whole
            async with asyncio.timeout(SLOWEST):
                await app(scope, receive, send_with_headers)

    return guarded
