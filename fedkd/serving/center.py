"""What runs behind the front: a SuperLink that asks who is calling, and the one process that may run its ServerApps.

In Flower's default mode whoever reaches a SuperLink can take the next ServerApp's token, and with it act as the server.
Here the SuperLink listens on loopback, over TLS, and gives tokens only to who knows a secret that lies in a file of the
owner's. Its Control API remains open to the programs of this machine: docs/security.md.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedkd.errors import FedkdError
from fedkd.files import write_atomic
from fedkd.flower import launch
from fedkd.flower.control import Control
from fedkd.serving.pki import Pki

DATABASES = ("disk", "memory")


@dataclass(frozen=True, eq=False)
class Center:
    """A SuperLink at ``address``, the ``flwr`` command line and a client of its Control API that talk to it."""

    address: str
    pki: Pki
    folder: Path
    environment: dict[str, str]
    link: launch.Flwr
    control: Control
    executor: Executor


@contextlib.contextmanager
def center(folder: Path, pki: Pki, *, database: str, app_dir: Path) -> Iterator[Center]:
    """Run a SuperLink and its SuperExec in ``folder`` until the end of the block; nothing of them is left then.

    ``folder`` is the caller's alone: what an earlier server that was killed left running with it is ended first. With
    ``database = "disk"`` nodes stay registered from one time to the next; with ``"memory"`` large messages are faster.
    """
    environment = launch.neutral_environment(folder, without=app_dir)
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = environment["NO_PROXY"]  # our own calls go to loopback too
    launch.end_all(environment)
    secret = folder / "superexec.secret"
    try:
        shutil.rmtree(Path(environment["FLWR_HOME"]), ignore_errors=True)  # apps of earlier runs
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(secret, secrets.token_bytes(32), secret=True)
    except OSError as error:
        raise FedkdError(f"cannot write {error.filename or folder}: {error.strerror}") from None
    guard = launch.Guard(pki.ca, pki.certificate, pki.key, secret)
    arguments = ["--database", str(folder / "superlink.db")] if database == "disk" else []
    with launch.superlink(folder, environment, arguments=arguments, guard=guard) as address:
        link = launch.Flwr(folder, environment, address, ca=pki.ca)
        control = Control(address, pki.ca)
        with Executor(folder, environment, address, guard) as executor:
            control.stop_runs()
            yield Center(address, pki, folder, environment, link, control, executor)


class Executor:
    """The SuperExec, which starts a process for each ServerApp. Use as a context manager."""

    def __init__(self, folder: Path, environment: dict[str, str], address: str, guard: launch.Guard) -> None:
        """Start nothing yet."""
        self._folder, self._environment = folder, environment
        self._command = [
            *(launch.command("flower-superexec"), "--runtime-api-address", address),
            *("--root-certificates", str(guard.ca), "--superexec-auth-secret-file", str(guard.secret)),
            *("--parent-pid", str(os.getpid())),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def keep(self) -> bool:
        """Start the process unless it runs; return whether it did not. It may end with an error of its SuperLink's."""
        if self._process is not None and self._process.poll() is None:
            return False
        with (self._folder / "superexec.log").open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        return True

    def __enter__(self) -> Executor:
        self.keep()
        return self

    def __exit__(self, *_: Any) -> None:
        """End the process; its ServerApps are ended with the SuperLink's other children."""
        if self._process is not None:
            launch.end(self._process)
