"""Devices for tests: a key, signed headers as Flower's nodes send them, requests to an ASGI app without a network."""

import asyncio
import base64
import datetime
import json
from dataclasses import dataclass
from urllib.parse import unquote

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedkd.fleet.identity import statement

PROTOBUF = "application/protobuf"


class Device:
    """A key pair and what can be said with it."""

    def __init__(self, curve=None):
        self.private = ec.generate_private_key(curve or ec.SECP256R1())
        self.pem = self.private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def headers(self, *, late=0.0, now=None, **extra):
        moment = (now or datetime.datetime.now(datetime.UTC)) - datetime.timedelta(seconds=late)
        stamp = moment.isoformat()
        signature = self.private.sign(stamp.encode(), ec.ECDSA(hashes.SHA256()))
        return {
            "content-type": PROTOBUF,
            "flwr-public-key": base64.b64encode(self.pem).decode(),
            "flwr-timestamp": stamp,
            "flwr-signature": base64.b64encode(signature).decode(),
            **extra,
        }

    def join(self, code, /, name="pi", *, authority="", late=0.0, now=None, **changed):
        """Return a request to join; what is ``changed`` is not what was signed for, and None leaves it out."""
        moment = (now or datetime.datetime.now(datetime.UTC)) - datetime.timedelta(seconds=late)
        key, stamp = self.pem.decode(), moment.isoformat()
        proof = self.private.sign(statement(stamp, code, key, authority), ec.ECDSA(hashes.SHA256()))
        proof = base64.b64encode(proof).decode()
        asked = {"code": code, "key": key, "name": name, "time": stamp, "proof": proof, **changed}
        return json.dumps({what: value for what, value in asked.items() if value is not None}).encode()


@dataclass
class Answer:
    """What an app answered."""

    status: int
    headers: dict
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


async def ask_async(app, path, *, method="GET", headers=(), body=b"", client="192.0.2.7", parts=None, receive=None):
    """Send one request; ``headers`` may be pairs, so that one can come twice, and ``parts`` a body in pieces."""
    pairs = list(headers.items()) if isinstance(headers, dict) else list(headers)
    raw, _, query = path.partition("?")
    pieces = list(parts if parts is not None else [body])
    sent = []

    async def read():
        if receive is not None:
            return await receive()
        piece = pieces.pop(0) if pieces else b""
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    async def write(message):
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "https",
        "path": unquote(raw), "raw_path": raw.encode(), "query_string": query.encode(), "root_path": "",
        "headers": [(k.lower().encode(), v.encode()) for k, v in [("host", "server.test"), *pairs]],
        "client": (client, 4711), "server": ("server.test", 443), "state": {},
    }  # fmt: skip
    await app(scope, read, write)
    start = sent[0]
    return Answer(
        start["status"],
        {k.decode(): v.decode() for k, v in start["headers"]},
        b"".join(message.get("body", b"") for message in sent[1:]),
    )


def ask(app, path, **how):
    """Send one request and return the answer."""
    return asyncio.run(ask_async(app, path, **how))
