"""Who a node is: an elliptic-curve key that never leaves its disk, and a clock that agrees with the server's.

Each request carries the public key, the time and the key's signature of that time. Flower takes times from 5 s ahead
to 305 s behind its own, so a device without a clock goes by the ``Date`` of the answers.
"""

from __future__ import annotations

import base64
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
        when = datetime.fromtimestamp(now, UTC).isoformat()
        signature = self._key.sign(when.encode("ascii"), ec.ECDSA(hashes.SHA256()))
        return {
            KEY_HEADER: self._public_header,
            TIME_HEADER: when,
            SIGNATURE_HEADER: base64.b64encode(signature).decode("ascii"),
        }


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
