"""A run has its folder to itself."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedkd import locks, rundir
from fedkd.config import resolve
from fedkd.errors import FedkdError
from fedkd.execution import execute, interruptible
from fedkd.files import whole_or_nothing
from fedkd.rundir import RunDirectory

ROOT = Path(__file__).resolve().parent.parent


def test_two_runs_of_one_name_are_not_both_run(tmp_path):
    path = tmp_path / "runs" / "tw"
    ran = []
    with (
        RunDirectory(path).alone(),
        pytest.raises(FedkdError, match="another process is running 'tw': choose another name"),
    ):
        execute(resolve(environ={}), path, lambda settings, where: ran.append(where))
    assert (ran, list(path.iterdir())) == ([], [])


def test_another_process_is_kept_out_and_let_in_when_it_is_over(tmp_path):
    code = (
        "import sys; from pathlib import Path; from fedkd.rundir import RunDirectory\n"
        "with RunDirectory(Path(sys.argv[1])).alone(): print('in', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(FedkdError, match="another process"), RunDirectory(tmp_path / "run").alone():
            pass
        other.kill()  # whatever way it ends
        other.wait()
        with RunDirectory(tmp_path / "run").alone():
            pass


def test_a_folder_that_a_failing_run_took_along_is_made_anew(tmp_path, monkeypatch):
    path, removed = tmp_path / "tw", []

    def lock(where, **how):
        if not removed:
            removed.append(where.rmdir())
        return locks.lock(where, **how)

    monkeypatch.setattr(rundir, "lock", lock)
    with RunDirectory(path).alone():
        assert path.is_dir() and removed
        with pytest.raises(FedkdError, match="another process"), RunDirectory(path).alone():
            pass


def test_a_folder_that_cannot_be_opened_is_told_and_one_without_locks_is_used(tmp_path, monkeypatch):
    for number, refused in ((errno.EACCES, True), (errno.ENOLCK, False)):

        def lock(where, number=number, **how):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(rundir, "lock", lock)
        hope = pytest.raises(FedkdError, match="cannot write to") if refused else contextlib.nullcontext()
        with hope, RunDirectory(tmp_path / "tw").alone():
            pass


def test_a_name_that_was_taken_in_the_meantime_is_left_as_it_is(tmp_path):
    path = tmp_path / "tw"
    path.mkdir()
    (path / "config.toml").write_text("rounds = 3")
    with pytest.raises(FedkdError, match="run 'tw' exists already"):
        execute(resolve(environ={}), path, lambda settings, where: pytest.fail("it ran"))
    assert (path / "config.toml").read_text() == "rounds = 3"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_what_is_done_in_order_and_says_what_is_left(number, code, tmp_path, capsys):
    usual = signal.getsignal(signal.SIGTERM)
    with (
        pytest.raises(SystemExit) as ended,
        interruptible(lambda: "nothing kept"),
        whole_or_nothing(tmp_path / "new"),
    ):
        (tmp_path / "new").mkdir()
        signal.raise_signal(number)
    assert ended.value.code == code and capsys.readouterr().err == "nothing kept\n"
    assert not (tmp_path / "new").exists() and signal.getsignal(signal.SIGTERM) is usual
