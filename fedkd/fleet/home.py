"""The folder of a node: its key, what it was told on joining, the public data, and the message it is busy with."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.dataset import fingerprint
from fedkd.envelope import Records, Value
from fedkd.errors import CheckpointError, ConfigError, DataError
from fedkd.files import load_arrays, save_arrays, write_atomic
from fedkd.locks import Busy, lock
from fedkd.records import TransferSet
from fedkd.site import Common


@dataclass(frozen=True)
class Settings:
    """What a node was told when it joined, and what its owner said: enough to go on without asking again.

    ``about`` is the server's own description (classes, class_names, fingerprint); ``bandwidth`` is in bytes a second,
    ``memory`` the most bytes that the node may ask its system for.
    """

    url: str
    name: str
    node_id: int
    about: Mapping[str, Any]
    node_config: Mapping[str, Any]
    bandwidth: float | None = None
    memory: int | None = None


@dataclass(frozen=True)
class Pending:
    """A message that was taken from the server and is not answered yet, or whose answer has not all arrived.

    A server hands out a message once, so it must outlive its node. ``metadata`` are Flower's: of the query while
    there is no ``reply``, then of the reply. A ``tree`` names objects that have yet to be fetched. An answer that is
    sent again is the same to the byte, salt included.
    """

    metadata: Mapping[str, Any]
    frame: bytes = b""
    acknowledged: int = 0
    error: str = ""
    reply: Records | None = None
    tree: Mapping[str, Any] | None = None


class Home:
    """Files below one folder; one process may use it at a time."""

    def __init__(self, path: Path) -> None:
        """Use ``path``, which need not exist."""
        self.path = path
        self.key, self.authority = path / "key.pem", path / "ca.crt"
        self._settings, self._pending = path / "node.json", path / "pending.safetensors"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep out all other processes; raise :class:`ConfigError` if one is there or the folder cannot be written."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            os.chmod(self.path, 0o700)
            handle = lock(self.path / "lock")
        except Busy as busy:
            raise ConfigError(
                f"another process ({busy.holder}) is the node in {self.path}; give one of them --home"
            ) from None
        except OSError as error:
            raise ConfigError(f"cannot write to the node's folder {self.path}: {error.strerror}") from None
        try:
            yield
        finally:
            os.close(handle)  # and the lock goes with it

    def settings(self) -> Settings | None:
        """Return what is known of the node, None if it never joined."""
        try:
            content = self._settings.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CheckpointError(f"cannot read {self._settings}: {error.strerror}") from None
        try:
            found = json.loads(content)
            return Settings(**{**found, "node_id": int(found["node_id"])})
        except (ValueError, TypeError, KeyError):
            raise CheckpointError(f"{self._settings} is damaged; remove it and join again") from None

    def keep_settings(self, settings: Settings) -> None:
        """Write what is known of the node."""
        text = json.dumps({**vars(settings), "node_id": str(settings.node_id)}, indent=1)
        self._write(self._settings, text.encode())

    def keep_authority(self, pem: str) -> None:
        """Write the certificate of the authority that the server's certificates are checked by."""
        self._write(self.authority, pem.encode())

    def known_authority(self) -> str | None:
        """Return the authority's certificate in PEM, None if the system's are to be believed."""
        return self.authority.read_text(encoding="ascii") if self.authority.exists() else None

    def transfer_path(self, name: str) -> Path:
        """Return where the transfer set with this fingerprint lies."""
        return self.path / f"transfer-{name[:32]}.safetensors"

    def has_transfer(self, name: str) -> bool:
        """Say whether the transfer set with this fingerprint has been fetched."""
        return self.transfer_path(name).exists()

    def keep_transfer(self, x: np.ndarray, name: str) -> None:
        """Keep the transfer set ``x`` (M, ...) float32; raise :class:`DataError` unless it is the one named so."""
        if x.dtype != np.float32 or x.ndim < 2 or fingerprint(x) != name:
            raise DataError(
                f"the transfer set has the fingerprint {fingerprint(x)[:16]}, the server's description {name[:16]}: "
                "it was changed on its way, or the server changed it; nothing was answered"
            )
        try:
            save_arrays(self.transfer_path(name), {"x": x}, {"fingerprint": name})
        except OSError as error:
            raise ConfigError(f"cannot write to the node's folder {self.path}: {error.strerror}") from None

    def common(self, about: Mapping[str, Any]) -> Common:
        """Return what all nodes know, for what the server said ``about`` itself."""
        name = about["fingerprint"]
        arrays, _ = load_arrays(self.transfer_path(name))
        x = arrays.get("x")
        if x is None or fingerprint(x) != name:
            raise DataError(f"{self.transfer_path(name)} is not the transfer set that it was; remove it and join again")
        return Common(TransferSet(x, name), int(about["classes"]), tuple(about.get("class_names") or ()))

    def pending(self) -> Pending | None:
        """Return the message that the node is busy with, None if there is none or it cannot be read any more."""
        if not self._pending.exists():
            return None
        try:
            arrays, header = load_arrays(self._pending)
            reply = header["reply"]
            frame = arrays["frame"].tobytes()
            if reply is not None:
                reply = {name: _unpacked(values, frame) for name, values in reply.items()}
            return Pending(
                header["metadata"], frame, header["acknowledged"], header["error"], reply, header.get("tree")
            )
        except (CheckpointError, KeyError, TypeError, ValueError, AttributeError):
            self.done()
            return None

    def keep(self, pending: Pending) -> None:
        """Write the message that the node is busy with, so that it survives the node and its power."""
        frame, reply = pending.frame, None
        if pending.reply is not None:
            reply = {name: _packed(values) for name, values in pending.reply.items()}
            frames = [values["frame"] for values in pending.reply.values() if "frame" in values]
            frame = frames[0] if frames and isinstance(frames[0], bytes) else b""
        header = {
            "metadata": dict(pending.metadata),
            "acknowledged": pending.acknowledged,
            "error": pending.error,
            "reply": reply,
            "tree": pending.tree,
        }
        array = {"frame": np.frombuffer(frame, np.uint8)}
        try:
            save_arrays(self._pending, array, header, secret=True)
        except OSError as error:
            raise ConfigError(f"cannot write to the node's folder {self.path}: {error.strerror}") from None

    def done(self) -> None:
        """Forget the message that the node was busy with."""
        self._pending.unlink(missing_ok=True)

    def _write(self, path: Path, content: bytes) -> None:
        try:
            write_atomic(path, content, secret=True)
        except OSError as error:
            raise ConfigError(f"cannot write to the node's folder {self.path}: {error.strerror}") from None


def _packed(values: Mapping[str, Value]) -> list[list[Any]]:
    """Return a record as JSON can have it, in its order, on which its bytes depend; the frame lies elsewhere."""
    return [
        [key, "frame" if key == "frame" else "bytes", value.hex() if key != "frame" else ""]
        if isinstance(value, bytes)
        else [key, "plain", value]
        for key, value in values.items()
    ]


def _unpacked(values: Iterable[list[Any]], frame: bytes) -> dict[str, Value]:
    def read(kind: str, value: Any) -> Value:
        found: Value = frame if kind == "frame" else bytes.fromhex(value) if kind == "bytes" else value
        return found

    return {key: read(kind, value) for key, kind, value in values}
