"""How worker processes of the in-process grid come and go."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from multiprocessing.reduction import send_handle
from pathlib import Path
from typing import Any

PATIENCE = 5.0
"""Seconds that the template may take to end its children."""
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@dataclass(eq=False)
class Worker:
    """Our end of a worker process; ``pid`` is 0 until it is ready, ``job`` is what it works on."""

    connection: Connection
    process: subprocess.Popen[bytes] | None = None  # None: the template's child, not ours
    pid: int = 0
    job: Any = None


class Nursery:
    """Starts workers: as forks of a template process that has imported everything, or each by itself."""

    def __init__(self, setup: dict[str, Any], log: Path | None) -> None:
        """Workers do as ``setup`` says; what they print goes to ``log``."""
        self._setup, self._log = setup, log
        self.born = False  # whether a worker has been ready
        self._template: tuple[subprocess.Popen[bytes], Connection] | None = None

    def start(self) -> Worker:
        """Start a worker; it says its process id when it is ready."""
        ours, theirs = Pipe()
        with theirs:
            if not self._setup["fork"]:
                process = self._launch(theirs)
                ours.send_bytes(json.dumps(self._setup).encode())
                return Worker(ours, process)
            # A template that is gone shows as a broken connection; a fresh one is worth one attempt.
            try:
                self._hand_over(theirs)
            except OSError:
                self.close()
                with contextlib.suppress(OSError):
                    self._hand_over(theirs)
            return Worker(ours)

    def close(self) -> None:
        """End the template and all that it has forked."""
        if self._template is None:
            return
        process, control = self._template
        self._template = None
        control.close()
        try:
            # It ends by itself, after its children; one that imports still has no children and need not be waited for.
            process.wait(timeout=PATIENCE if self.born else 0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _hand_over(self, connection: Connection) -> None:
        if self._template is None:
            control, theirs = Pipe()
            with theirs:
                self._template = self._launch(theirs), control
            control.send_bytes(json.dumps(self._setup).encode())
        process, control = self._template
        control.send_bytes(b"fork")
        send_handle(control, connection.fileno(), process.pid)

    def _launch(self, connection: Connection) -> subprocess.Popen[bytes]:
        descriptor = connection.fileno()
        path = [entry for entry in sys.path if isinstance(entry, str)]
        code = f"import sys; sys.path[:] = {path!r}; from fedkd.flower.worker import main; main({descriptor})"
        with contextlib.ExitStack() as stack:
            output: Any = 2 if self._log is None else stack.enter_context(self._log.open("ab"))
            return subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=output,  # what clients print is not the output of the program that runs them
                stderr=output,
                env=os.environ | dict.fromkeys(THREADS, "1") | {"PYTHONUNBUFFERED": "1"},
                pass_fds=(descriptor,),
                start_new_session=True,  # Ctrl-C in the terminal is for the main process only
            )


def kill(worker: Worker) -> None:
    """End the process group of a worker. Its connection is open still, so the number is its own."""
    if worker.pid:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(worker.pid, signal.SIGKILL)
    elif worker.process is not None:
        worker.process.kill()


def stop(worker: Worker) -> None:
    """End a worker and take leave of its connection."""
    kill(worker)
    worker.connection.close()
    if worker.process is not None:
        worker.process.wait()
