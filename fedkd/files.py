"""Files that survive a crash: written whole or not at all, checked when read, never a pickle.

A file of arrays is in the safetensors format, with a JSON header of our own and a SHA-256 over everything in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedkd.errors import CheckpointError
from fedkd.softlabels import Array


def write_atomic(path: Path, content: bytes, *, durable: bool = True, secret: bool = False) -> None:
    """Replace ``path`` by ``content`` in one step; on any failure (a full disk, say) the old file stays.

    ``durable`` also waits until the bytes are on the disk, so that they outlive a power cut and not only a crash. What
    is ``secret`` only its owner may read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with open(
            temporary, "xb", opener=lambda name, flags: os.open(name, flags, 0o600 if secret else 0o666)
        ) as stream:
            stream.write(content)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        os.replace(temporary, path)
        if durable:
            _sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


@contextlib.contextmanager
def whole_or_nothing(folder: Path) -> Iterator[None]:
    """Remove ``folder`` and all that is in it if what is done inside does not come to its end, be it by Ctrl-C."""
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _sync_folder(folder: Path) -> None:
    """Wait until a renaming is on the disk too, where the system knows how (Windows opens no folders)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _digest(arrays: Mapping[str, Array], header: str) -> str:
    digest = hashlib.sha256(header.encode())
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def save_arrays(
    path: Path, arrays: Mapping[str, Array], header: Mapping[str, Any], *, durable: bool = True, secret: bool = False
) -> None:
    """Write ``arrays`` and the JSON-able ``header`` to ``path``, whole or not at all."""
    text = json.dumps(header)
    # asarray keeps scalars scalars, where ascontiguousarray would make them vectors. The format has one byte order.
    found = {name: np.asarray(array) for name, array in arrays.items()}
    contiguous = {name: np.asarray(array, array.dtype.newbyteorder("="), order="C") for name, array in found.items()}
    # One entry, checksum first: the library writes several in no fixed order, and equal runs shall leave equal files.
    content = save(contiguous, metadata={"fedkd": f"{_digest(contiguous, text)} {text}"})
    write_atomic(path, content, durable=durable, secret=secret)


def load_arrays(path: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return ``(arrays, header)``; raise :class:`CheckpointError` if the file is missing, torn or altered."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    try:
        size = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + size])["__metadata__"]
        checksum, _, text = metadata["fedkd"].partition(" ")
        header = json.loads(text)
        arrays = load(content)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged or not a fedkd file: {error}") from None
    if checksum != _digest(arrays, text):
        raise CheckpointError(f"{path} is damaged: its content does not match its checksum")
    return arrays, header
