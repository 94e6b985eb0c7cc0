"""A file that only grows: a JSON record a line, each chained to the one before by SHA-256, durable when appended.

``FOLDER/ledger.jsonl``  the records, ``{"body": {...}, "hash": SHA-256(hash of the record before + body)}``
``FOLDER/head.json``     how many records there are and the hash of the last: a file that is shorter was cut
``FOLDER/lock``          held by the one writer, whose process id is in it
``FOLDER.marker``        the hash of the first record, beside the folder: one that vanished is missed

A record is there when :meth:`Chain.append` has returned. A crash before that leaves at most one line that the head does
not name: a whole one stays, a torn one is cut, for nothing was done in its name yet. Whatever else does not fit fails
closed. All of these files put back as they were on an earlier day look right from here; only somebody who remembers a
later :class:`Head` can tell, which is what ``seen`` is for.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedkd import locks
from fedkd.errors import LedgerError, PrivacyError
from fedkd.files import write_atomic

Body = dict[str, Any]
LOG, HEAD, LOCK = "ledger.jsonl", "head.json", "lock"
START = "0" * 64
"""What the first record is chained to."""
TRIES = 100
"""How often a reader looks anew when a writer is faster."""


@dataclass(frozen=True)
class Head:
    """How many records there are, and the hash of the last: worth remembering elsewhere, with a model, say."""

    count: int
    hash: str


@dataclass(frozen=True)
class Records:
    """The bodies and hashes of a chain, the ``size`` of their bytes, and how many bytes of a torn line follow."""

    bodies: tuple[Body, ...]
    hashes: tuple[str, ...]
    size: int
    torn: int = 0

    @property
    def head(self) -> Head:
        """The head that names all these records."""
        return Head(len(self.hashes), self.hashes[-1] if self.hashes else START)


def canonical(value: object) -> bytes:
    """Return ``value`` as the one JSON text of it that counts; NaN and infinity are a ValueError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def link(before: str, body: Body) -> str:
    """Return the hash of a record: SHA-256 of the ``before`` one's hash and the canonical body."""
    return hashlib.sha256(before.encode() + canonical(body)).hexdigest()


def line(before: str, body: Body) -> bytes:
    """Return a record as a line of the file."""
    return canonical({"body": body, "hash": link(before, body)}) + b"\n"


def parse(content: bytes) -> Records:
    """Return the records from the start of ``content`` to the first line that does not continue the chain."""
    bodies: list[Body] = []
    hashes: list[str] = []
    size, before = 0, START
    while (end := content.find(b"\n", size) + 1) > 0:
        body = _body(content[size:end])
        if body is None or content[size:end] != line(before, body):
            break
        before = link(before, body)
        bodies.append(body)
        hashes.append(before)
        size = end
    return Records(tuple(bodies), tuple(hashes), size, len(content) - size)


def inspect(folder: Path, *, seen: Head | None = None) -> Records:
    """Return the records in ``folder``, none if there never was a ledger; raise :class:`LedgerError` if it is broken.

    Changes nothing and takes no lock, so a ledger in use can be read.
    """
    content, head, mark = _snapshot(folder)
    records = parse(content or b"")
    fault = _fault(content, records, head, mark, seen)
    if fault is not None:
        raise LedgerError(
            f"the ledger in {folder} cannot be trusted, nothing is released: {fault}. To go on with what can be read "
            "of it, and have every report say so: accept-ledger-loss=true in the node config"
        )
    return records


def rescue(folder: Path) -> tuple[Records, list[Body], int]:
    """Return what a broken ledger still says: the chain as far as it holds, bodies after that, and unreadable lines.

    Bodies off the chain prove nothing, but to charge for them is the safe side.
    """
    content, _, _ = _snapshot(folder)
    records = parse(content or b"")
    lines = [raw for raw in (content or b"")[records.size :].split(b"\n") if raw]
    loose = [_body(raw) for raw in lines]
    return records, [body for body in loose if body is not None], loose.count(None)


class Chain:
    """The writer's end of a chain: holds the lock, knows the head, appends."""

    def __init__(self, folder: Path) -> None:
        """Make ``folder`` and take its lock; :meth:`load` or :meth:`replace` comes next."""
        self.folder = folder.resolve()
        self.head = Head(0, START)
        self._size = 0
        self._log = -1
        self._pid = os.getpid()
        self._sound = False
        with one_line(self.folder):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _lock(self.folder)

    def load(self, *, seen: Head | None = None) -> Records:
        """Return the records, after mending what a crash leaves behind; ``torn`` says how many bytes were cut."""
        with one_line(self.folder):
            records = inspect(self.folder, seen=seen)
            self._attach(records)
        return records

    def replace(self, bodies: Sequence[Body]) -> None:
        """Write a new chain of ``bodies`` in place of a broken one, which is kept aside as ``lost-N.jsonl``."""
        content, before = b"", START
        for body in bodies:
            content += line(before, body)
            before = link(before, body)
        with one_line(self.folder):
            log = self.folder / LOG
            if log.exists():
                number = 1 + sum(1 for _ in self.folder.glob("lost-*.jsonl"))
                write_atomic(self.folder / f"lost-{number}.jsonl", log.read_bytes())
            # In this order a crash leaves a broken chain, never one that looks right and lacks something.
            write_atomic(log, content)
            self._put_head(Head(len(bodies), before))
            write_atomic(marker(self.folder), link(START, bodies[0]).encode())
            self._attach(inspect(self.folder))

    def append(self, body: Body) -> None:
        """Add a record; when this returns, it is on the disk. After any failure the ledger must be opened again."""
        if os.getpid() != self._pid:
            raise PrivacyError(f"the ledger in {self.folder} belongs to process {self._pid}, which this is a fork of")
        if not self._sound:
            raise PrivacyError(f"the ledger in {self.folder} was closed or could not be written: open it again")
        raw = line(self.head.hash, body)
        self._sound = False  # until everything is on the disk: what a failed fsync has written, nobody knows
        with one_line(self.folder):
            self._check_unchanged()
            _write(self._log, raw)
            os.fsync(self._log)
            self._size += len(raw)
            self._put_head(Head(self.head.count + 1, link(self.head.hash, body)))
            if self.head.count == 1:
                write_atomic(marker(self.folder), self.head.hash.encode())
        self._sound = True

    def close(self) -> None:
        """Let go of the lock."""
        self._sound = False
        for handle in (self._log, self._lock):
            if handle >= 0:
                os.close(handle)
        self._log = self._lock = -1

    def _attach(self, records: Records) -> None:
        """Open the log behind ``records`` for appending, cut a torn line, and write what a crash kept unwritten."""
        self._log = os.open(self.folder / LOG, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if records.torn:
            os.ftruncate(self._log, records.size)
        os.fsync(self._log)
        for folder in (self.folder, self.folder.parent):
            _sync(folder)
        self._size = records.size
        self.head = records.head
        if self.head.count and _read(self.folder / HEAD) != canonical(asdict(self.head)):
            self._put_head(self.head)
        if self.head.count and _read(marker(self.folder)) is None:
            write_atomic(marker(self.folder), records.hashes[0].encode())
        self._sound = True

    def _put_head(self, head: Head) -> None:
        write_atomic(self.folder / HEAD, canonical(asdict(head)))
        self.head = head

    def _check_unchanged(self) -> None:
        ours, there = os.fstat(self._log), os.stat(self.folder / LOG)
        if (ours.st_dev, ours.st_ino, self._size) != (there.st_dev, there.st_ino, there.st_size):
            raise LedgerError(f"somebody else changed {self.folder / LOG} while it was open; nothing is released")


def marker(folder: Path) -> Path:
    """Return the file beside ``folder`` that says that there is a ledger in it."""
    folder = folder.resolve()
    return folder.with_name(f"{folder.name}.marker")


@contextlib.contextmanager
def one_line(path: Path) -> Iterator[None]:
    """Turn what the system says of a file at or below ``path`` into one line."""
    try:
        yield
    except OSError as error:
        raise PrivacyError(
            f"cannot use {error.filename or path}: {error.strerror or error}; nothing is released"
        ) from error


def _lock(folder: Path) -> int:
    if not locks.KNOWN:
        raise PrivacyError("a ledger needs the file locks of a POSIX system, or two processes could spend one budget")
    try:
        return locks.lock(folder / LOCK)
    except locks.Busy as busy:
        raise PrivacyError(
            f"the ledger in {folder} is in use by process {busy.holder}: one process writes at a time"
        ) from None


def _fault(
    content: bytes | None, records: Records, head: bytes | None, mark: bytes | None, seen: Head | None
) -> str | None:
    """Return what is wrong, None if nothing is but what a crash leaves."""
    count, there = len(records.hashes), content is not None
    named = _named(head)
    if not there and (head is not None or mark is not None or seen is not None):
        return f"{LOG} is missing, and there was one"
    if named is None and (head is not None or mark is not None or count > 1):
        return f"{HEAD} is {'missing' if head is None else 'damaged'}"
    known = named.count if named else 0
    if known > count:
        return _unchained(count) if records.torn else f"it ends after record {count} of {known}"
    if named and records.hashes[known - 1] != named.hash:
        return f"{HEAD} and record {known} do not fit"
    if count > known + 1:
        return f"{HEAD} is older than {LOG}: {known} records instead of {count}"
    if records.torn and (count != known or b"\n" in (content or b"")[records.size : -1]):
        return _unchained(count)  # a torn line is the last, and what came before it was finished
    if mark is not None and mark.decode(errors="replace") != records.hashes[0]:
        return "it is another ledger than the one that its marker names"
    if seen and seen.count and (seen.count > count or records.hashes[seen.count - 1] != seen.hash):
        return f"it is older than it was, or another one: {seen.count} records had been seen, there are {count}"
    return None


def _unchained(count: int) -> str:
    return f"record {count + 1} does not continue the chain ({LOG}, line {count + 1})"


def _named(head: bytes | None) -> Head | None:
    """Return what the head file says, None if that is nothing that we have written."""
    try:
        found = Head(**json.loads(head or b""))
        sound = isinstance(found.count, int) and found.count > 0 and canonical(asdict(found)) == head
    except (ValueError, TypeError, RecursionError):
        return None
    return found if sound else None


def _body(raw: bytes) -> Body | None:
    """Return the body of a line, None if there is none that could be ours."""
    try:
        body = json.loads(raw)["body"]
        canonical(body)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def _snapshot(folder: Path) -> tuple[bytes | None, bytes | None, bytes | None]:
    """Return log, head and marker of one moment; None for a file that is not there."""
    with one_line(folder):
        for _ in range(TRIES):
            head = _read(folder / HEAD)
            content, mark = _read(folder / LOG), _read(marker(folder))
            if _read(folder / HEAD) == head:
                return content, head, mark
    raise PrivacyError(f"the ledger in {folder} changes faster than it can be read; try again")


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _write(handle: int, raw: bytes) -> None:
    while raw:
        raw = raw[os.write(handle, raw) :]


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
