"""A lock keeps others out, says who has it, and is gone with its holder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedkd import locks
from fedkd.locks import Busy, lock

HOLD = "import os, sys; from pathlib import Path; from fedkd.locks import lock; lock(Path(sys.argv[1])); "


def test_a_second_holder_is_told_the_first(tmp_path: Path) -> None:
    """A file names its holder; it is free again when the handle is closed."""
    first = lock(tmp_path / "lock")
    with pytest.raises(Busy) as busy:
        lock(tmp_path / "lock")
    assert busy.value.holder == str(os.getpid())
    os.close(first)
    os.close(lock(tmp_path / "lock"))


def test_a_folder_is_held_without_a_file(tmp_path: Path) -> None:
    """A lock on a folder leaves nothing in it, and cannot say who has it."""
    held = lock(tmp_path, folder=True)
    with pytest.raises(Busy, match="unknown"):
        lock(tmp_path, folder=True)
    os.close(held)
    assert not list(tmp_path.iterdir())


def test_a_killed_holder_lets_go(tmp_path: Path) -> None:
    """SIGKILL included; what it wrote of itself is replaced."""
    path = tmp_path / "lock"
    kill = HOLD + "os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", kill, str(path)], check=False).returncode == -9
    assert path.read_text() != str(os.getpid())
    handle = lock(path)
    assert path.read_text() == str(os.getpid())
    os.close(handle)


def test_to_wait_is_to_have_it_after_the_other(tmp_path: Path) -> None:
    """Who waits gets the lock when the holder ends, and not before."""
    path = tmp_path / "lock"
    hold = HOLD + "print('held', flush=True); sys.stdin.read(); open(sys.argv[2], 'x')"
    command = [sys.executable, "-c", hold, str(path), str(tmp_path / "ended")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdin is not None
        other.stdout.readline()
        with pytest.raises(Busy, match=str(other.pid)):
            lock(path)
        other.stdin.close()  # only now can it end
        os.close(lock(path, wait=True))
        assert (tmp_path / "ended").exists()


def test_what_was_removed_in_between_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock on a file that nobody can find any more would keep nobody out; a folder is for its owner to make."""
    path, real, seen = tmp_path / "lock", locks.fcntl.flock, []

    def flock(handle: int, how: int) -> None:
        real(handle, how)
        if not seen:
            path.rmdir() if path.is_dir() else path.unlink()
        seen.append(handle)

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    handle = lock(path)
    assert os.path.samestat(os.fstat(handle), os.stat(path)) and len(seen) == 2
    os.close(handle)
    path.unlink()
    path.mkdir()
    seen.clear()
    with pytest.raises(FileNotFoundError):
        lock(path, folder=True)


def test_without_locks_nobody_is_kept_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has neither flock nor positioned reads and writes."""
    monkeypatch.setattr(locks, "KNOWN", False)
    monkeypatch.delattr(os, "pwrite")
    monkeypatch.delattr(os, "pread")
    for handle in (lock(tmp_path / "lock"), lock(tmp_path / "lock")):
        os.close(handle)
