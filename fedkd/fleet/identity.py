"""Who a node is: an elliptic-curve key that never leaves its disk, and a clock that agrees with the server's.

Each request carries the public key, the time and the key's signature of that time. Flower takes times from 5 s ahead
to 305 s behind its own, so a device without a clock goes by the ``Date`` of the answers. Who joins signs more than the
time: :func:`statement`.
"""

from __future__ import annotations

import base64
import hashlib
import os
import stat
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedkd.errors import CheckpointError
from fedkd.files import write_atomic

KEY_HEADER, TIME_HEADER, SIGNATURE_HEADER = "flwr-public-key", "flwr-timestamp", "flwr-signature"
CURVES = ("secp256r1", "secp384r1")
TRUSTED = 1.5
"""Seconds by which clocks may differ before ours is corrected: a ``Date`` has whole seconds."""


class Identity:
    """A private key, and what Flower wants to see of it."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        """Take a key on P-256 or P-384."""
        self._key = key
        public = key.public_key()
        self.public = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        self._public_header = base64.b64encode(self.public).decode("ascii")

    @classmethod
    def at(cls, path: Path) -> Identity:
        """Return the identity whose key is in ``path``; make one, readable by its owner only, if there is none."""
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return cls._new(path)
        except OSError as error:
            raise CheckpointError(f"cannot read the key {path}: {error.strerror}") from None
        if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise CheckpointError(f"the key {path} can be read by others than its owner; run: chmod 600 {path}")
        try:
            key = serialization.load_pem_private_key(content, None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise CheckpointError(f"{path} is not a private key in PEM without a password") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in CURVES:
            raise CheckpointError(f"the key {path} must be on the curve P-256 or P-384")
        return cls(key)

    @classmethod
    def _new(cls, path: Path) -> Identity:
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_atomic(path, pem, secret=True)
        return cls(key)

    def headers(self, now: float) -> dict[str, str]:
        """Return the headers of a request that is made at ``now``, in seconds since 1970."""
        when = _iso(now)
        return {KEY_HEADER: self._public_header, TIME_HEADER: when, SIGNATURE_HEADER: self._sign(when.encode("ascii"))}

    def joining(self, code: str, authority: str, now: float) -> dict[str, str]:
        """Return what shows, beside ``code``, that whoever joins at ``now`` has the private key: key, time, proof."""
        when, public = _iso(now), self.public.decode("ascii")
        return {"key": public, "time": when, "proof": self._sign(statement(when, code, public, authority))}

    def _sign(self, message: bytes) -> str:
        return base64.b64encode(self._key.sign(message, ec.ECDSA(hashes.SHA256()))).decode("ascii")


def statement(when: str, code: str, key: str, authority: str) -> bytes:
    """Return what a device signs to join: it is of no use later, elsewhere, with another code or for another key.

    ``authority`` is the start of the SHA-256 of the server's authority, as a join address has it. The first line keeps
    it apart from what Fleet calls sign, which is a time and nothing else.
    """
    lines = ["fedkd join", when, _sha(code), _sha(key), authority]
    return "\n".join(lines).encode()


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _iso(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).isoformat()


class ServerClock:
    """The time as the server has it: ours, and by how much that is wrong."""

    def __init__(self) -> None:
        """Believe our own clock until the server says another time."""
        self.offset = 0.0

    def now(self) -> float:
        """Return the server's time in seconds since 1970."""
        return time.time() + self.offset

    def learn(self, date: str | None) -> bool:
        """Take up the ``Date`` header of an answer that just came; say whether the clock was corrected."""
        try:
            theirs = parsedate_to_datetime(date or "")
        except (ValueError, TypeError, IndexError, OverflowError):
            return False
        if theirs.tzinfo is None:
            theirs = theirs.replace(tzinfo=UTC)
        difference = theirs.timestamp() + 0.5 - self.now()
        if abs(difference) <= TRUSTED:
            return False
        self.offset += difference
        return True
