"""Requests to one server: TLS by a pinned authority, connections that are kept, errors that say what to do."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import http.client
import io
import ipaddress
import json
import random
import re
import socket
import ssl
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from fedkd.errors import LinkError, Rejected, Unreachable, Untrusted
from fedkd.fleet.identity import Identity, ServerClock

MEDIA = "application/protobuf"
TIMEOUT = 30.0
MAX_BODY = 64 * 1024 * 1024
MAX_ERROR = 64 * 1024
SLICE = 16 * 1024
PIN = 32
"""Hex digits of the authority's SHA-256 in a join URL: 128 bits."""
CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----\r?\n([A-Za-z0-9+/\s]+={0,2})\r?\n-----END CERTIFICATE-----")
"""A certificate in PEM. Nothing is matched twice here: it takes time in proportion to its text, whatever that is."""
AGAIN = {408, 425, 429, 500, 502, 503, 504}
"""Statuses of a server that may say something else a little later."""
BROKEN = (http.client.HTTPException, OSError, EOFError)


@dataclass(frozen=True)
class Address:
    """Where a server is: ``host``, ``port``, and whether it speaks TLS."""

    host: str
    port: int
    secure: bool

    @classmethod
    def of(cls, url: str, *, insecure: bool = False) -> Address:
        """Read ``https://host:port``; plain HTTP is for ``insecure`` loopback only."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise LinkError(f"cannot read the address {url!r}; expected https://HOST:PORT") from None
        if parts.scheme not in ("https", "http") or not parts.hostname or parts.path not in ("", "/") or parts.query:
            raise LinkError(f"cannot read the address {url!r}; expected https://HOST:PORT")
        if parts.scheme == "http" and not (insecure and _is_loopback(parts.hostname)):
            raise LinkError(f"{url!r} is not encrypted; http is for this machine itself, with --insecure")
        return cls(parts.hostname, port or (443 if parts.scheme == "https" else 80), parts.scheme == "https")

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.secure else 'http'}://{host}:{self.port}"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def trusting(authority: str | None) -> ssl.SSLContext:
    """Return a context that believes certificates of the ``authority`` (PEM) alone; without one, the system's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if authority is None:
        context.load_default_certs()
    else:
        try:
            context.load_verify_locations(cadata=only_certificate(authority))
        except ssl.SSLError:
            raise Untrusted("the server's authority is not a certificate in PEM") from None
    return context


def blind() -> ssl.SSLContext:
    """Return a context that believes anybody: to fetch an authority that is then held against its pin."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def only_certificate(text: str) -> str:
    """Return the one certificate that ``text`` (PEM) is, written anew; raise :class:`Untrusted` if there is more.

    OpenSSL believes every certificate of a text. Only what was read here may reach it, or a pin would hold for one
    certificate and let in another that stands beside it.
    """
    found = CERTIFICATE.fullmatch(text.strip())
    try:
        der = base64.b64decode("".join(found[1].split()), validate=True) if found else b""
    except ValueError:
        der = b""
    if not der:
        raise Untrusted("the server's authority is not a certificate in PEM, one and nothing else")
    return ssl.DER_cert_to_PEM_cert(der)


def check_pin(authority: str, pin: str) -> str:
    """Return the ``authority`` (PEM), written anew; raise :class:`Untrusted` unless its SHA-256 starts with ``pin``."""
    only = only_certificate(authority)
    found = pin_of(only)
    if len(pin) != PIN or found != pin.lower():
        raise Untrusted(
            f"the server's authority has the fingerprint {found}, the join address says {pin or 'none'}: "
            "somebody may be in between, or the address is of another server"
        )
    return only


def pin_of(authority: str) -> str:
    """Return the start of the SHA-256 of a certificate (PEM), as join addresses have it."""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(authority)).hexdigest()[:PIN]


class Link:
    """A connection to one server; requests follow each other. Not for several threads at once."""

    def __init__(
        self,
        address: Address,
        context: ssl.SSLContext | None = None,
        identity: Identity | None = None,
        *,
        bandwidth: float | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        """Talk to ``address``, signed by ``identity`` if there is one, at ``bandwidth`` bytes a second at most."""
        self.address, self.context, self.identity, self.timeout = address, context, identity, timeout
        self.clock = ServerClock()
        self.sent = self.received = 0
        """Bytes of all bodies so far."""
        self._pace = _Pace(bandwidth)
        self._connection: http.client.HTTPConnection | None = None

    def fleet(self, route: str, body: bytes) -> bytes:
        """Return the answer of a Fleet route to a protobuf body; a wrong clock is set right and tried once more."""
        path = f"/v1/fleet/{route}"
        for last in (False, True):
            headers = {"content-type": MEDIA, "accept": MEDIA}
            if self.identity is not None:
                headers |= self.identity.headers(self.clock.now())
            status, found, content = self._request("POST", path, body, headers, MAX_BODY)
            corrected = self.clock.learn(found.get("date"))
            if status == 200:
                return content
            if status == 401 and corrected and not last:
                continue
            raise _refused(route, status, content)
        raise AssertionError("unreachable")

    def get(self, path: str, *, limit: int = MAX_BODY) -> bytes:
        """Return what lies at ``path``, unpacked, at most ``limit`` bytes."""
        status, headers, content = self._request("GET", path, None, {"accept-encoding": "gzip"}, limit)
        self.clock.learn(headers.get("date"))
        if status != 200:
            raise _refused(path, status, content)
        return _unpacked(content, headers.get("content-encoding", ""), limit, path)

    def post_json(self, path: str, value: Mapping[str, Any]) -> Any:
        """Return the JSON that answers a JSON body."""
        body = json.dumps(value).encode()
        status, headers, content = self._request("POST", path, body, {"content-type": "application/json"}, MAX_ERROR)
        self.clock.learn(headers.get("date"))
        if status != 200:
            raise _refused(path, status, content)
        return read_json(content, path)

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _request(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], limit: int
    ) -> tuple[int, Mapping[str, str], bytes]:
        for attempt in (1, 2):
            fresh = self._connection is None
            try:
                return self._exchange(method, path, body, headers, limit)
            except ssl.SSLCertVerificationError as error:
                self.close()
                raise Untrusted(f"{self.address}: {_certificate(error)}") from None
            except BROKEN as error:
                self.close()
                # A server closes connections that lie idle; that shows at the next request, which deserves a fresh one.
                if fresh or attempt == 2 or isinstance(error, TimeoutError):
                    raise Unreachable(f"{self.address} does not answer: {_reason(error)}") from None
            except BaseException:
                self.close()  # an answer that was not read to its end would be taken for the next one
                raise
        raise AssertionError("unreachable")

    def _exchange(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], limit: int
    ) -> tuple[int, Mapping[str, str], bytes]:
        connection = self._connection or self._open()
        length = {} if body is None else {"content-length": str(len(body))}
        connection.request(method, path, self._slices(body), {**headers, **length})
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        limit = limit if answer.status == 200 else MAX_ERROR
        content = bytearray()
        while part := answer.read(SLICE):
            content += part
            self._pace.take(len(part))
            if len(content) > limit:
                raise LinkError(f"{path}: the answer is longer than {limit} bytes")
        self.sent += len(body or b"")
        self.received += len(content)
        if answer.will_close:
            self.close()
        return answer.status, found, bytes(content)

    def _open(self) -> http.client.HTTPConnection:
        where = self.address
        if where.secure:
            context = self.context or trusting(None)
            made: http.client.HTTPConnection = http.client.HTTPSConnection(
                where.host, where.port, timeout=self.timeout, context=context
            )
        else:
            made = http.client.HTTPConnection(where.host, where.port, timeout=self.timeout)
        made.connect()
        made.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = made
        return made

    def _slices(self, body: bytes | None) -> Iterator[bytes] | bytes | None:
        if body is None or self._pace.rate is None:
            return body
        return self._paced(body)

    def _paced(self, body: bytes) -> Iterator[bytes]:
        for at in range(0, len(body), SLICE):
            yield body[at : at + SLICE]
            self._pace.take(len(body[at : at + SLICE]))


class _Pace:
    """Waits so that no more than ``rate`` bytes a second go by on average."""

    def __init__(self, rate: float | None) -> None:
        self.rate, self._free_at = rate, 0.0

    def take(self, size: int) -> None:
        if self.rate is None:
            return
        now = time.monotonic()
        self._free_at = max(self._free_at, now) + size / self.rate
        time.sleep(self._free_at - now)


def with_patience(
    request: Callable[[], bytes],
    wait: Callable[[float], None],
    *,
    first: float = 0.5,
    most: float = 20.0,
    tell: Callable[[LinkError], None] = lambda error: None,
) -> bytes:
    """Return what ``request`` gives, however long its server is away; ``wait(seconds)`` may raise to give up.

    Waits twice as long each time, up to ``most``, and by chance up to half of it less: a server that comes back is not
    overrun by all nodes in the same second.
    """
    delay = first
    while True:
        try:
            return request()
        except (Unreachable, Untrusted) as error:
            tell(error)
        except Rejected as error:
            if error.status not in AGAIN:
                raise
            tell(error)
        wait(delay * random.uniform(0.5, 1.0))
        delay = min(2 * delay, most)


def read_json(content: bytes, what: str) -> Any:
    """Return the JSON in ``content``, or say that ``what`` has none."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise LinkError(f"{what}: the server answers with something that is not JSON") from None


def _unpacked(content: bytes, encoding: str, limit: int, path: str) -> bytes:
    if encoding in ("", "identity"):
        return content
    if encoding != "gzip":
        raise LinkError(f"{path}: the server answers in the encoding {encoding[:20]!r}, expected gzip")
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
            found = stream.read(limit + 1)
    except (OSError, EOFError, zlib.error):
        raise LinkError(f"{path}: the answer is damaged") from None
    if len(found) > limit:
        raise LinkError(f"{path}: the answer is longer than {limit} bytes")
    return found


def _refused(what: str, status: int, content: bytes) -> Rejected:
    """Return the error that a status and a body mean; Flower's and our own have JSON with a sentence."""
    said: object = None
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(content)
        if isinstance(found, dict):
            said = next((found[key] for key in ("error", "message", "detail") if isinstance(found.get(key), str)), None)
    text = " ".join(str(said).split())[:300] if said else "no reason given"
    return Rejected(f"{what}: the server says no ({status}): {text}", status, text)


def _certificate(error: ssl.SSLCertVerificationError) -> str:
    said = error.verify_message or "its certificate is not trusted"
    clock = "; is this machine's clock right?" if "expired" in said or "not yet valid" in said else ""
    local = "; does the address end in ca=...? Put all of it in single quotes" if "local issuer" in said else ""
    return f"its certificate is not trusted: {said}{clock}{local}"


def _reason(error: BaseException) -> str:
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(said).split())[:200]
