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


def lock(path: Path, *, wait: bool = False) -> int:
    """Return a handle that holds ``path``, a folder or a file that is made if it is not there; to close it lets go.

    Programs that this process starts do not inherit it. A file has the process id of its holder in it, for others to
    read. Raises :class:`Busy` if another process holds it and we are not to ``wait``, :class:`OSError` if ``path``
    cannot be opened or its file system knows no locks.
    """
    folder = path.is_dir()
    handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        if not folder:
            os.ftruncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
    except BlockingIOError:
        holder = "" if folder else os.pread(handle, 20, 0).decode(errors="replace")
        os.close(handle)
        raise Busy(holder or "unknown") from None
    except BaseException:
        os.close(handle)
        raise
    return handle
