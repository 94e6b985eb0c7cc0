"""A lock that the system gives up by itself when its holder ends, however it ends (POSIX; see :data:`KNOWN`)."""

from __future__ import annotations

import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

KNOWN = fcntl is not None
"""Whether this system has such locks. Without them :func:`lock` keeps nobody out: say no where that would do harm."""


class Busy(Exception):
    """Another process has the lock."""

    def __init__(self, holder: str) -> None:
        """Keep the process id of the ``holder``, "unknown" where it cannot be told."""
        super().__init__(holder)
        self.holder = holder


def lock(path: Path, *, folder: bool = False, wait: bool = False) -> int:
    """Return a handle that holds ``path``, a file that is made if it is not there or a ``folder`` that is.

    To close the handle lets go. Programs that this process starts do not inherit it. A file has the process id of its
    holder in it, for others to read. Raises :class:`Busy` if another process holds it and we are not to ``wait``,
    :class:`OSError` if ``path`` cannot be opened or its file system knows no locks.
    """
    while True:
        handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if _held(handle, path, folder, wait):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # somebody removed it in between, so that others would lock another one


def _held(handle: int, path: Path, folder: bool, wait: bool) -> bool:
    """Lock ``handle`` and say whether it is still what ``path`` names."""
    if not KNOWN:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        holder = "" if folder else os.pread(handle, 20, 0).decode(errors="replace")
        raise Busy(holder or "unknown") from None
    try:
        if not os.path.samestat(os.fstat(handle), os.stat(path)):
            return False
    except FileNotFoundError:
        return False
    if not folder:
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
    return True
