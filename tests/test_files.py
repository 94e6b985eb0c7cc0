"""Files are whole or not there, are checked when read, and are never a pickle."""

import builtins
import errno
import io
import json
import os
import pickle

import numpy as np
import pytest

from fedkd.errors import CheckpointError
from fedkd.files import load_arrays, save_arrays, write_atomic

ARRAYS = {
    "weights": np.arange(6, dtype=np.float32).reshape(2, 3),
    "scalar": np.array(3, np.int64),
    "nothing": np.zeros((0, 4), np.float32),
    "mask": np.array([True, False]),
    "bytes": np.frombuffer(b"frame", np.uint8),
    "half": np.array([0.5, np.nan], np.float16),
}
HEADER = {"round": 3, "nested": {"a": [1, None, 0.1], "ü": "é"}, "query": "ab" * 32, "accuracy": 0.1}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "state.safetensors"


def test_arrays_and_header_come_back_as_they_were(path):
    save_arrays(path, ARRAYS, HEADER)
    arrays, header = load_arrays(path)
    assert header == HEADER
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype, name
        assert arrays[name].shape == array.shape, name
        assert arrays[name].tobytes() == array.tobytes(), name


def test_no_arrays_and_an_empty_header_are_a_file_too(path):
    save_arrays(path, {}, {})
    assert load_arrays(path) == ({}, {})


def test_the_memory_layout_and_byte_order_of_an_array_do_not_matter(path):
    square = np.arange(6, dtype=np.int32).reshape(2, 3)
    save_arrays(path, {"transposed": square.T, "every_other": square[:, ::2], "big": square.astype(">i4")}, {})
    arrays, _ = load_arrays(path)
    assert (arrays["transposed"] == square.T).all()
    assert (arrays["every_other"] == square[:, ::2]).all()
    assert (arrays["big"] == square).all()


def test_saving_equal_content_gives_equal_bytes(path):
    save_arrays(path, ARRAYS, HEADER)
    first = path.read_bytes()
    save_arrays(path, dict(reversed(ARRAYS.items())), dict(reversed(HEADER.items())))
    assert sorted(load_arrays(path)[0]) == sorted(ARRAYS)
    assert len(path.read_bytes()) == len(first)


def test_a_new_file_replaces_the_old_one_and_leaves_nothing_beside_it(path):
    write_atomic(path, b"old")
    write_atomic(path, b"new")
    write_atomic(path, b"newer", durable=False)
    assert path.read_bytes() == b"newer"
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.skipif(os.name != "posix", reason="modes are those of POSIX")
def test_a_file_is_as_readable_as_any_other_that_the_user_makes(path):
    before = os.umask(0o027)
    try:
        write_atomic(path, b"x")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


class FullStream(io.FileIO):
    """Takes three bytes and then there is no room."""

    def __init__(self, path, mode, **options):
        super().__init__(path, mode.rstrip("b"))

    def write(self, content):
        super().write(content[:3])
        full()


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_piece_of_the_new_one(path, monkeypatch, where):
    save_arrays(path, ARRAYS, HEADER)
    old = path.read_bytes()
    with monkeypatch.context() as patch:
        if where == "write":
            patch.setattr("fedkd.files.open", FullStream, raising=False)
        else:
            patch.setattr(os, where, full)
        with pytest.raises(OSError, match="No space left"):
            save_arrays(path, {"other": np.zeros(1000)}, {"round": 4})
    assert path.read_bytes() == old
    assert load_arrays(path)[1] == HEADER
    assert os.listdir(path.parent) == [path.name]


def test_an_interruption_leaves_the_old_file_too(path, monkeypatch):
    write_atomic(path, b"old")

    def interrupt(handle):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == [path.name]


def test_durable_waits_for_the_disk_and_otherwise_nothing_does(path, monkeypatch):
    waited = []
    monkeypatch.setattr(os, "fsync", waited.append)
    write_atomic(path, b"x", durable=False)
    assert not waited
    write_atomic(path, b"x")
    assert waited


def test_a_folder_that_cannot_be_synced_is_no_error(path, monkeypatch):
    path.parent.mkdir()
    opened = os.open

    def no_folders(name, flags, *args, **kwargs):
        if os.fspath(name) == os.fspath(path.parent):
            raise PermissionError(errno.EACCES, "Permission denied")  # what Windows says
        return opened(name, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", no_folders)
    write_atomic(path, b"x")
    assert path.read_bytes() == b"x"


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_a_change_of_any_byte_is_noticed(path, flip):
    save_arrays(path, {"a": np.arange(4, dtype=np.float32), "b": np.array([1, 2], np.uint8)}, {"round": 1})
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= flip
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged"):
            load_arrays(path)


def test_a_file_that_ends_early_or_late_is_noticed(path):
    save_arrays(path, {"a": np.arange(4, dtype=np.float32)}, {"round": 1})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="damaged"):
            load_arrays(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="damaged"):
        load_arrays(path)


class Bomb:
    def __reduce__(self):
        return (exec, ("import builtins; builtins.exploded = True",))


def test_a_pickle_is_not_read_in_any_wrapping(path):
    path.parent.mkdir()
    npz = io.BytesIO()
    np.savez(npz, bomb=np.array([Bomb()], dtype=object))
    for content in (pickle.dumps(Bomb()), npz.getvalue(), pickle.dumps({"weights": np.zeros(3)}, protocol=0)):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="not a fedkd file"):
            load_arrays(path)
    assert not hasattr(builtins, "exploded")


def framed(header):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        b"\xff" * 100,
        framed(b"\xff\xfe"),
        framed([]),
        framed(1),
        framed({}),
        framed({"__metadata__": []}),
        framed({"__metadata__": {}}),
        framed({"__metadata__": {"fedkd": 1}}),
        framed({"__metadata__": {"fedkd": "{"}}),
        framed({"__metadata__": {"fedkd": "{}"}}),
        framed({"__metadata__": {"fedkd": "{}", "sha256": None}}),
        framed(b"[" * 100_000),
        framed({"__metadata__": {"fedkd": "[" * 100_000}}),
        framed({"__metadata__": None}),
        framed({"__metadata__": {"fedkd": "{}"}, "a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
        framed({"__metadata__": {"fedkd": "{}"}, "a": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}})
        + b"\0",
        framed({"__metadata__": {"fedkd": "{}"}, "a": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}})
        + b"\0\0",
    ],
)
def test_whatever_else_is_in_the_file_is_an_error_of_one_kind(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        load_arrays(path)


def test_a_missing_file_and_a_folder_are_named(path):
    with pytest.raises(CheckpointError, match=f"cannot read {path}: No such file"):
        load_arrays(path)
    path.mkdir(parents=True)
    with pytest.raises(CheckpointError, match=f"cannot read {path}: Is a directory"):
        load_arrays(path)
