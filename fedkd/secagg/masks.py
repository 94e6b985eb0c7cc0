"""Masks that cancel in a sum (Bonawitz et al., CCS 2017): what two clients agree on, one adds and the other subtracts.

All is arithmetic modulo 2^32 on words. Keys are X25519, a pair's seed is HKDF-SHA256 of what they agree on, its mask
the AES-256-CTR stream of the seed. A seed is good for one pair and one round, for which both have new keys.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedkd.errors import CodecError, PrivacyError
from fedkd.softlabels import Array

WORD = 1 << 32
KEY, SIGNATURE, NONCE = 32, 64, 12
COMPLETE = 100
"""Up to this many clients each shares a mask with every other."""


def new_key() -> bytes:
    """Return a private key (32 bytes) for :func:`agree`, from the operating system's entropy."""
    return X25519PrivateKey.generate().private_bytes_raw()


def public(private: bytes) -> bytes:
    """Return the public key (32 bytes) of a private one."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agree(private: bytes, theirs: bytes, purpose: bytes) -> bytes:
    """Return the seed (32 bytes) that two clients share for ``purpose``; both get the same from the other's key."""
    try:
        secret = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(theirs))
    except ValueError:
        raise CodecError("a public key on which nobody can agree") from None
    pair = b"".join(sorted([public(private), theirs]))
    return HKDF(SHA256(), KEY, salt=b"fedkd secagg 1", info=purpose + pair).derive(secret)


def usable(key: bytes) -> bool:
    """Say whether others can agree with whoever has the private half of a public ``key``: not with all of them."""
    try:
        agree(new_key(), key, b"trial")
    except CodecError:
        return False
    return True


def stream(seed: bytes, count: int) -> Array:
    """Return the mask of a seed: words (count,) uint32. A seed has one mask, of which a shorter one is the start."""
    cipher = Cipher(AES(seed), CTR(bytes(16))).encryptor()
    return np.frombuffer(cipher.update(bytes(4 * count)), "<u4")


def masked(vector: Array, own: int, seeds: Mapping[int, bytes]) -> Array:
    """Return whole numbers (n,) as words uint32 with the masks of client ``own`` and its peers on top.

    The mask that two clients share is added by the one with the smaller number and subtracted by the other.
    """
    words = vector.astype(np.int64).astype(np.uint32)  # modulo 2^32, negative numbers from the top
    for peer, seed in seeds.items():
        words = add(words, stream(seed, len(words)), sign(own, peer))
    return words


def add(words: Array, mask: Array, sign_: int) -> Array:
    """Return ``words`` plus or minus ``mask``, modulo 2^32."""
    return words + mask if sign_ > 0 else words - mask


def sign(own: int, peer: int) -> int:
    """Return +1 if ``own`` adds the mask that it shares with ``peer``, -1 if it subtracts it."""
    return 1 if own < peer else -1


def signed(words: Array) -> Array:
    """Return words uint32 as the whole numbers int64 in -2^31 .. 2^31 - 1 that they stand for."""
    return words.astype(np.uint32).view(np.int32).astype(np.int64)


def check_room(most: float, what: str) -> None:
    """Raise :class:`PrivacyError` if a sum of up to ``most`` in size would not fit into words."""
    if most >= WORD / 2:
        raise PrivacyError(f"{what}: the sum may reach 2^{math.log2(most):.1f}, words hold less than 2^31")


def neighborhood(clients: Sequence[int], order: bytes, *, complete: int = COMPLETE) -> dict[int, tuple[int, ...]]:
    """Return with which others each client shares a mask: all, or beyond ``complete`` some (Bell et al., CCS 2020).

    Many clients stand in a circle, and each knows the 3 log2 K nearest: the same even number for all, and nobody is a
    neighbor one way only. ``order`` decides where they stand; it must not be known before their keys are.
    """
    if len(clients) <= complete:
        return {own: tuple(other for other in sorted(clients) if other != own) for own in clients}
    half = math.ceil(1.5 * math.log2(len(clients)))
    circle = sorted(clients, key=lambda key: hashlib.sha256(order + key.to_bytes(8, "big")).digest())
    count = len(circle)
    return {
        own: tuple(sorted(circle[(at + step) % count] for step in range(-half, half + 1) if step))
        for at, own in enumerate(circle)
    }


def seal(seed: bytes, text: bytes, about: bytes) -> bytes:
    """Return ``text`` so that only who has the seed can read it, or change it unnoticed (AES-GCM)."""
    nonce = os.urandom(NONCE)
    return nonce + AESGCM(seed).encrypt(nonce, text, about)


def unseal(seed: bytes, sealed: bytes, about: bytes) -> bytes:
    """Return what was sealed ``about`` the same thing; raise :class:`CodecError` if it was changed."""
    try:
        return AESGCM(seed).decrypt(sealed[:NONCE], sealed[NONCE:], about)
    except (InvalidTag, ValueError):
        raise CodecError("a sealed share that does not open: it was changed, or is not for this client") from None


def new_identity() -> bytes:
    """Return a private signing key (32 bytes), which a client keeps for good."""
    return Ed25519PrivateKey.generate().private_bytes_raw()


def identity_of(private: bytes) -> bytes:
    """Return the public key (32 bytes) of a signing key."""
    return Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def autograph(private: bytes, text: bytes) -> bytes:
    """Return the signature (64 bytes) of ``text``."""
    return Ed25519PrivateKey.from_private_bytes(private).sign(text)


def is_signed(identity: bytes, signature: bytes, text: bytes) -> bool:
    """Say whether ``signature`` of ``text`` is by ``identity``."""
    try:
        Ed25519PublicKey.from_public_bytes(identity).verify(signature, text)
    except (InvalidSignature, ValueError):
        return False
    return True
