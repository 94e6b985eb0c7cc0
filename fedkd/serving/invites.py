"""Who may take part: one-time join codes, and the keys that were let in by them or by the server's owner.

Codes are kept as SHA-256 only. The file may be changed by ``fedkd nodes`` while a server reads it; every reader looks
whether it has changed, so a revocation holds from the next request on.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fedkd.errors import AdmissionError, FedkdError, did_you_mean
from fedkd.files import write_atomic
from fedkd.locks import lock
from fedkd.serving.pki import public_pem
from fedkd.units import seconds

LIFETIME = 3600.0
"""Seconds that a join code is good for."""
LONGEST = 40
"""Letters of a node's name."""
LIKE_AN_ID = re.compile(r"\d+|[0-9a-f]{12}", re.IGNORECASE)
"""What a name may not be: a node id or a mark, by which the owner might mean another node."""
MOST_MEMBERS = 100_000
OVER = 100
"""Codes that are kept when they are no good any more, so that who comes with one is told what is wrong with it."""
FORMAT = 1


@dataclass(frozen=True)
class Invite:
    """A join code that is known by its hash: good until ``expires`` (Unix time) for ``seats`` devices in all."""

    digest: str
    expires: float
    seats: int
    used: int = 0

    def good(self, now: float) -> bool:
        """Return whether it lets in another device at the time ``now``."""
        return self.expires > now and self.used < self.seats


@dataclass(frozen=True)
class Member:
    """A device that was let in. ``node_id`` is empty until the SuperLink knows its key."""

    key: str
    name: str
    joined: float
    invite: str = ""
    node_id: str = ""
    revoked: float | None = None

    @property
    def mark(self) -> str:
        """Twelve hexadecimal digits that name the key."""
        return hashlib.sha256(self.key.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Roll:
    """All that the file says."""

    invites: tuple[Invite, ...] = ()
    members: tuple[Member, ...] = ()


Stamp = tuple[int, int, int]
"""What differs between two versions of a file."""


class Registry:
    """The file of invitations and members, shared by a server and the commands beside it."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Read ``path``, which need not exist; raise :class:`FedkdError` if it is damaged."""
        self.path, self._clock, self._mutex = path, clock, threading.RLock()
        self._stamp: Stamp | None = None
        self._roll, self._by_key = Roll(), dict[bytes, Member]()
        self._seen: tuple[Stamp | None, dict[bytes, Member]] = (None, {})  # replaced as a whole, under no mutex
        self._refresh()

    def invite(self, *, seats: int = 1, lifetime: float = LIFETIME) -> str:
        """Return a new join code for ``seats`` devices; it is told once and kept as a hash."""
        code = secrets.token_urlsafe(12)
        with self._changing() as change:
            now = self._clock()
            good = [invite for invite in self._roll.invites if invite.good(now)]
            over = [invite for invite in self._roll.invites if not invite.good(now)][-OVER:]
            change(replace(self._roll, invites=(*over, *good, Invite(_digest(code), now + lifetime, seats))))
        return code

    def admit(self, code: str, pem: bytes, name: str) -> Member:
        """Return the member that ``code`` lets in with the public key ``pem``; a seat is taken.

        The same key again is the same member and takes no seat, so that a device may repeat what it is not sure of.
        Raises :class:`AdmissionError`, which says whether the code is unknown, used up or too old: with its 96 random
        bits, that tells nobody anything who was not given it.
        """
        pem = public_pem(pem)
        digest = _digest(code)
        with self._changing() as change:
            known = self._by_key.get(pem)
            found = None
            for invite in self._roll.invites:  # all of them, always: time tells nothing
                if hmac.compare_digest(invite.digest, digest):
                    found = invite
            good = found is not None and found.good(self._clock())
            if known is not None and (good or hmac.compare_digest(known.invite, digest)):
                if known.revoked is not None:
                    raise AdmissionError(
                        "this device's key was revoked by the server's owner: with their consent and a new join code, "
                        "join with another key (another --home)"
                    )
                return known
            if not good or found is None:
                raise AdmissionError(_no_good(found, self._clock()))
            taken = tuple(replace(i, used=i.used + 1) if i is found else i for i in self._roll.invites)
            member = Member(pem.decode(), self._free_name(name), self._clock(), digest)
            change(Roll(taken, (*self._roll.members, member)))
            return member

    def add(self, pem: bytes, name: str) -> Member:
        """Let in a key without a code, as the server's owner may; a revoked key stays revoked."""
        pem = public_pem(pem)
        with self._changing() as change:
            known = self._by_key.get(pem)
            if known is not None:
                state = "was revoked" if known.revoked is not None else "is registered already"
                raise FedkdError(f"this key {state}, as {known.name!r}")
            member = Member(pem.decode(), self._free_name(name), self._clock())
            change(replace(self._roll, members=(*self._roll.members, member)))
            return member

    def settle(self, key: str, node_id: str) -> Member:
        """Note the ``node_id`` that the SuperLink gave to the member with ``key``."""
        return self._replace(key, lambda member: replace(member, node_id=node_id))

    def withdraw(self, key: str) -> None:
        """Undo an admission that came to nothing: the seat is free again."""
        with self._changing() as change:
            gone = self._by_key.get(key.encode())
            if gone is None or gone.node_id or gone.revoked is not None:
                return
            invites = tuple(
                replace(i, used=max(0, i.used - 1)) if i.digest == gone.invite else i for i in self._roll.invites
            )
            change(Roll(invites, tuple(member for member in self._roll.members if member is not gone)))

    def revoke(self, who: str) -> Member:
        """Revoke the one member with this name, node id or mark.

        Raises :class:`FedkdError` with the nearest match if there is none, and with the marks if there are several, as
        in files from when names could be chosen freely.
        """
        self._refresh()
        found = [member for member in self._roll.members if who in (member.name, member.node_id, member.mark)]
        if not found or not who:
            known = [member.name for member in self._roll.members]
            raise FedkdError(f"no node {who!r}.{did_you_mean(who, known)} See: fedkd nodes list")
        found = [member for member in found if member.revoked is None] or found[:1]
        if len(found) > 1:
            which = ", ".join(f"{member.name!r} (key {member.mark}, id {member.node_id or '-'})" for member in found)
            raise FedkdError(f"{who!r} may be {which}: revoke by what only one of them has")
        return self._replace(found[0].key, lambda member: replace(member, revoked=member.revoked or self._clock()))

    def member(self, key: bytes) -> Member | None:
        """Return who has the public key ``key`` (PEM, byte for byte), revoked or not.

        Every call to the front asks this, so it waits for nobody who is writing: it looks at what was read last, and
        reads the file itself if that has changed.
        """
        stamp, by_key = self._seen
        now = _stamp(self.path)
        if now != stamp:
            by_key = _keys(_read(self.path)) if now is not None else {}
            self._seen = now, by_key
        return by_key.get(key)

    def members(self) -> tuple[Member, ...]:
        """Return all members, revoked ones too, in the order in which they came."""
        self._refresh()
        return self._roll.members

    def seats_left(self) -> int:
        """Return how many more devices the codes that are still good let in."""
        self._refresh()
        now = self._clock()
        return sum(max(0, invite.seats - invite.used) for invite in self._roll.invites if invite.expires > now)

    def _replace(self, key: str, how: Callable[[Member], Member]) -> Member:
        with self._changing() as change:
            old = self._by_key.get(key.encode())
            if old is None:
                raise FedkdError("this key is not registered here")
            new = how(old)
            change(replace(self._roll, members=tuple(new if m is old else m for m in self._roll.members)))
            return new

    def _free_name(self, name: str) -> str:
        plain = "".join(letter for letter in name if letter.isprintable()).strip()[:LONGEST] or "node"
        if LIKE_AN_ID.fullmatch(plain):
            plain = f"node-{plain}"[:LONGEST]
        taken, number = {member.name for member in self._roll.members}, 2
        if len(taken) >= MOST_MEMBERS:
            raise AdmissionError(f"this server has {MOST_MEMBERS} nodes, more than it takes")
        free = plain
        while free in taken:
            free, number = f"{plain[: LONGEST - 7]}-{number}", number + 1
        return free

    @contextlib.contextmanager
    def _changing(self) -> Iterator[Callable[[Roll], None]]:
        """Hold the file for oneself; what is changed is written before it is believed."""

        def change(roll: Roll) -> None:
            content = {"format": FORMAT, **asdict(roll)}
            write_atomic(self.path, json.dumps(content, indent=1).encode(), secret=True)
            self._take(roll, _stamp(self.path))

        try:
            with self._mutex, _locked(self.path):
                self._refresh()
                yield change
        except OSError as error:
            raise FedkdError(f"cannot write {error.filename or self.path}: {error.strerror}") from None

    def _refresh(self) -> None:
        with self._mutex:
            stamp = _stamp(self.path)
            if stamp != self._stamp:
                self._take(_read(self.path) if stamp is not None else Roll(), stamp)

    def _take(self, roll: Roll, stamp: Stamp | None) -> None:
        self._roll, self._by_key, self._stamp = roll, _keys(roll), stamp
        self._seen = stamp, self._by_key


def _no_good(invite: Invite | None, now: float) -> str:
    """Return why a code lets nobody in, and what to do."""
    if invite is None:
        return (
            "this join code is not known here: was all of the address copied? Else ask the server's owner for a new one"
        )
    if invite.used >= invite.seats:
        how = "by the device that it was for" if invite.seats == 1 else f"by the {invite.seats} devices that it was for"
        return f"this join code is used up, {how}: ask the server's owner for another one (fedkd nodes invite)"
    return f"this join code expired {seconds(now - invite.expires)} ago: ask the server's owner for a new one"


def _digest(code: str) -> str:
    return hashlib.sha256(code.encode()).hexdigest()


def _keys(roll: Roll) -> dict[bytes, Member]:
    return {member.key.encode(): member for member in roll.members}


def _stamp(path: Path) -> Stamp | None:
    """Return the stamp of a file, None if it is not there: each version is another inode, since files are replaced."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _read(path: Path) -> Roll:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise FedkdError(f"{path} has format {content['format']}, this fedkd reads {FORMAT}")
        invites = tuple(Invite(**invite) for invite in content["invites"])
        return Roll(invites, tuple(Member(**member) for member in content["members"]))
    except OSError as error:
        raise FedkdError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise FedkdError(f"{path} is damaged: {error}") from None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = lock(path.with_suffix(".lock"), wait=True)
    try:
        yield
    finally:
        os.close(handle)
