"""A ledger that was killed, torn, altered, cut, put back or shared loses nothing and says so."""

import errno
import os
import shutil
import signal
import warnings
from pathlib import Path

import pytest
from ledger_scene import QUARTER, Clock, opened, release

from fedkd.errors import LedgerError, PrivacyError
from fedkd.privacy import chain
from fedkd.privacy.ledger import DAY
from fedkd.privacy.ledger_report import sentences, verify

REAL = {name: getattr(os, name) for name in ("open", "write", "fsync", "ftruncate", "replace")}


@pytest.fixture(autouse=True)
def _no_waiting_for_disks(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "site" / "ledger"


@pytest.fixture
def three(folder):
    """A closed ledger of three releases."""
    with opened(folder) as ledger:
        for number in range(3):
            release(ledger, number)
    return folder


def files(folder):
    return [folder / chain.LOG, folder / chain.HEAD, chain.marker(folder)]


def in_a_child(work):
    """Fork, run ``work`` there, and return how the child ended; it never comes back into pytest."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads, which the child does not use
        child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


# Crashes


class Killer:
    """Kill this process at one step of those that touch the disk; a write is cut in half."""

    def __init__(self, step):
        self.left = step

    def install(self):
        for name in REAL:
            setattr(os, name, self.wrap(name))

    def wrap(self, name):
        def call(*given, **named):
            self.left -= 1
            if self.left < 0:
                if name == "write":
                    REAL["write"](given[0], given[1][: len(given[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return None if name == "fsync" else REAL[name](*given, **named)

        return call


def lives(folder, step, told):
    """Open a ledger, make two releases, and tell of each as a server would see it; killed at ``step``."""

    def work():
        Killer(step).install()
        ledger = opened(folder)
        for number in range(2):
            ledger.reserve(f"r{number}", QUARTER, run="run-1", query_digest=f"q{number}")
            REAL["write"](told, b"R")
            ledger.commit(f"r{number}", b"noise of life %d" % step)
            REAL["write"](told, b"C")

    return work


def test_a_kill_at_any_step_around_a_release_never_loses_what_was_spent(tmp_path):
    step, status = 0, -1
    while status != 0:
        folder = tmp_path / str(step) / "ledger"
        reading, told = os.pipe()
        status = in_a_child(lives(folder, step, told))
        assert status in (0, signal.SIGKILL)
        os.close(told)
        said = os.read(reading, 100)
        os.close(reading)
        with opened(folder) as ledger:  # a restart goes on, without help
            spent = len(ledger.spent())
            assert said.count(b"R") <= spent <= said.count(b"R") + 1, step
            for number in range(said.count(b"C")):  # what may have been sent is sent again as it was
                assert ledger.replay(f"r{number}", f"q{number}") == b"noise of life %d" % step
            for number in range(said.count(b"C"), 2):
                try:
                    again = ledger.replay(f"r{number}", f"q{number}")
                except PrivacyError:
                    assert number < spent
                else:  # never begun, or finished without a word
                    assert again in (None, b"noise of life %d" % step)
                    assert (again is None) == (number >= spent)
            release(ledger, 7)
            assert len(ledger.spent()) == spent + 1
        assert verify(folder).torn == 0
        step += 1
    assert step > 40
    assert said == b"RCRC"


def test_a_torn_record_is_cut_and_the_repair_is_on_the_record(three):
    log = three / chain.LOG
    whole = log.read_bytes()
    for tail in (b'{"body":{"event":{"code":2,', b"\0" * 300, b"\0" * 30 + b"\n"):
        log.write_bytes(log.read_bytes() + tail)
        assert verify(three).torn == len(tail)
        with opened(three) as ledger:
            assert len(ledger.spent()) == 3
    assert log.read_bytes().startswith(whole)
    assert verify(three).account.repairs == 3


def test_a_record_that_the_head_does_not_know_yet_counts(folder):
    with opened(folder) as ledger:
        ledger.reserve("r0", QUARTER, run="run-1", query_digest="q0")
        old = (folder / chain.HEAD).read_bytes()
        ledger.reserve("r1", QUARTER, run="run-1", query_digest="q1")
    (folder / chain.HEAD).write_bytes(old)
    assert len(verify(folder).reservations) == 2
    with opened(folder) as ledger:
        assert len(ledger.spent()) == 2
        ledger.reserve("r2", QUARTER, run="run-1", query_digest="q2")
    (folder / chain.HEAD).write_bytes(old)
    with pytest.raises(LedgerError, match=r"head.json is older than ledger.jsonl: 2 records instead of 4"):
        opened(folder)


def test_a_reservation_is_on_the_disk_before_it_returns_and_before_the_head_names_it(folder, monkeypatch):
    seen = []

    def name_of(handle):
        return Path(os.readlink(f"/proc/self/fd/{handle}")).name.lstrip(".")

    monkeypatch.setattr(os, "fsync", lambda handle: seen.append(("fsync", name_of(handle).partition(".json.")[0])))
    monkeypatch.setattr(os, "write", lambda handle, raw: seen.append(("write", name_of(handle)))
                        or REAL["write"](handle, raw))  # fmt: skip
    monkeypatch.setattr(os, "replace", lambda a, b: seen.append(("replace", Path(b).name)) or REAL["replace"](a, b))
    with opened(folder) as ledger:
        assert ("fsync", "ledger") in seen and ("fsync", "site") in seen  # the folder, and the one that it is in
        seen.clear()
        ledger.reserve("r0", QUARTER, run="run-1", query_digest="q0")
        assert seen[:2] == [("write", "ledger.jsonl"), ("fsync", "ledger.jsonl")]
        assert seen[2:] == [("fsync", "head"), ("replace", "head.json"), ("fsync", "ledger")]


# Tampering


def test_every_altered_byte_is_detected(folder):
    with opened(folder) as ledger:
        release(ledger, 0)
    for path in files(folder):
        content = path.read_bytes()
        for position in range(len(content)):
            others = {content[position] ^ 1, *((ord("\n"), ord("0")) if position % 8 == 0 else ())}
            for new in others - {content[position]}:
                path.write_bytes(content[:position] + bytes([new]) + content[position + 1 :])
                with pytest.raises(LedgerError):
                    chain.inspect(folder)
        path.write_bytes(content)
    assert verify(folder).head.count == 3


def test_every_truncation_is_detected(three):
    content = (three / chain.LOG).read_bytes()
    ends = [0, *(i + 1 for i, byte in enumerate(content) if byte == ord("\n"))]
    for length in {*range(0, len(content), 11), *ends[:-1], *(end - 1 for end in ends[1:]), len(content) - 2}:
        (three / chain.LOG).write_bytes(content[:length])
        with pytest.raises(LedgerError):
            chain.inspect(three)
    (three / chain.LOG).write_bytes(b"".join(content.splitlines(keepends=True)[:-2]))
    with pytest.raises(LedgerError, match="it ends after record 5 of 7") as refused:
        opened(three)
    assert str(three) in str(refused.value) and "accept-ledger-loss=true" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_records_in_another_order_or_twice_are_detected(three):
    lines = (three / chain.LOG).read_bytes().splitlines(keepends=True)
    for altered in ([*lines[:2], lines[3], lines[2], *lines[4:]], [*lines[:3], lines[2], *lines[3:]]):
        (three / chain.LOG).write_bytes(b"".join(altered))
        with pytest.raises(LedgerError, match=r"record [34] does not continue the chain \(ledger.jsonl, line [34]\)"):
            opened(three)


def test_a_ledger_that_vanished_beside_its_marker_is_no_fresh_start(three):
    for gone in (three / chain.LOG, three / chain.HEAD):
        kept = gone.read_bytes()
        gone.unlink()
        with pytest.raises(LedgerError, match=f"{gone.name} is missing"):
            opened(three)
        gone.write_bytes(kept)
    shutil.rmtree(three)
    with pytest.raises(LedgerError, match=r"ledger.jsonl is missing, and there was one"):
        opened(three)
    with pytest.raises(LedgerError, match=r"ledger.jsonl is missing, and there was one"):
        verify(three)


def test_another_ledger_in_the_place_of_this_one_is_detected(three, tmp_path):
    other = tmp_path / "other" / "ledger"
    with opened(other, clock=Clock(2e9)) as ledger:
        release(ledger, 0)
    shutil.rmtree(three)
    shutil.copytree(other, three)
    with pytest.raises(LedgerError, match="another ledger than the one that its marker names"):
        opened(three)


def test_a_ledger_that_was_put_back_is_detected_by_who_remembers_its_head(folder):
    with opened(folder) as ledger:
        release(ledger, 0)
    kept = {path: path.read_bytes() for path in files(folder)}
    with opened(folder) as ledger:
        release(ledger, 1)
        head = ledger.head
    with opened(folder, seen=head) as ledger:
        assert ledger.head == head
    for path, content in kept.items():
        path.write_bytes(content)
    with opened(folder) as ledger:  # nothing here can tell
        assert len(ledger.spent()) == 1
    with pytest.raises(LedgerError, match="5 records had been seen, there are 3"):
        opened(folder, seen=head)
    shutil.rmtree(folder.parent)
    with pytest.raises(LedgerError, match=r"ledger.jsonl is missing"):
        opened(folder, seen=head)


def test_a_loss_that_is_accepted_forgets_only_what_cannot_be_read(three):
    clock = Clock(1e9 + 20 * DAY)
    log = three / chain.LOG
    lines = log.read_bytes().splitlines(keepends=True)
    broken = b"".join([*lines[:3], b"{" + lines[3][2:], *lines[4:]])  # the reservation of r1
    log.write_bytes(broken)
    with pytest.raises(LedgerError):
        opened(three)
    with opened(three, clock=clock, accept_loss=True) as ledger:
        assert ledger.spent() == (QUARTER, QUARTER)
        assert ledger.spent(since=1e9 + 20 * DAY) == (QUARTER,)  # r2 proves nothing of its time: charged as of now
        assert (ledger.replay("r0", "q0"), ledger.replay("r2", "q2")) == (b"noisy 0", b"noisy 2")
        assert ledger.replay("r1", "q1") is None
    account = verify(three).account
    assert (account.losses, account.unreadable) == (1, 2)  # the reservation of r1, and its commit that hangs in the air
    assert "no guarantee covers it" in sentences(verify(three))[-1]
    assert (three / "lost-1.jsonl").read_bytes() == broken
    with opened(three) as ledger:
        assert len(ledger.spent()) == 2


def test_a_loss_of_everything_can_be_accepted_and_stays_on_the_record(three):
    shutil.rmtree(three)
    with opened(three, accept_loss=True) as ledger:
        assert ledger.spent() == ()
        release(ledger, 0)
    assert verify(three).account.losses == 1
    with opened(three, accept_loss=True) as ledger:  # where nothing is lost, it changes nothing
        assert ledger.head.count == 4


# One writer, one key, one policy


def test_a_second_writer_is_told_who_the_first_is(folder):
    with opened(folder):
        for work in (lambda: opened(folder), lambda: opened(folder.parent / "." / "ledger")):
            with pytest.raises(PrivacyError, match=f"is in use by process {os.getpid()}: one process writes") as told:
                work()
            assert "\n" not in str(told.value)
    opened(folder).close()


def test_a_process_that_died_holds_no_lock_and_one_that_lives_does(folder):
    def work():
        with pytest.raises(PrivacyError, match=f"is in use by process {os.getppid()}"):
            opened(folder)

    with opened(folder):
        assert in_a_child(work) == 0
    assert in_a_child(lambda: opened(folder)) == 0
    opened(folder).close()


def test_a_fork_of_the_writer_cannot_write(folder):
    ledger = opened(folder)

    def work():
        with pytest.raises(PrivacyError, match="which this is a fork of"):
            release(ledger, 0)

    assert in_a_child(work) == 0
    release(ledger, 1)
    ledger.close()
    with pytest.raises(PrivacyError, match="open it again"):
        release(ledger, 2)


def test_a_file_that_somebody_else_changes_meanwhile_stops_the_writer(folder):
    with opened(folder) as ledger:
        release(ledger, 0)
        with open(folder / chain.LOG, "ab") as stream:
            stream.write(b"x")
        with pytest.raises(LedgerError, match=r"somebody else changed .*ledger.jsonl"):
            release(ledger, 1)
        with pytest.raises(PrivacyError, match="open it again"):
            release(ledger, 2)


# Disks


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_full_disk_is_one_line_and_nothing_is_released(folder, monkeypatch, call):
    with opened(folder) as ledger:
        release(ledger, 0)
        with monkeypatch.context() as full:
            full.setattr(os, call, no_space)
            with pytest.raises(PrivacyError, match="No space left on device; nothing is released") as told:
                ledger.reserve("r1", QUARTER, run="run-1", query_digest="q1")
            assert "\n" not in str(told.value)
        assert ledger.spent() == (QUARTER,)
        assert ledger.replay("r0", "q0") == b"noisy 0"
        with pytest.raises(PrivacyError, match="open it again"):
            release(ledger, 2)
    with opened(folder) as ledger:
        assert len(ledger.spent()) in (1, 2)  # at most charged, never forgotten
        release(ledger, 3)


def test_a_disk_that_fills_between_reservation_and_commit_keeps_the_charge(folder, monkeypatch):
    with opened(folder) as ledger:
        ledger.reserve("r0", QUARTER, run="run-1", query_digest="q0")
        with monkeypatch.context() as full:
            full.setattr(os, "replace", no_space)
            with pytest.raises(PrivacyError, match="No space left on device"):
                ledger.commit("r0", b"noisy")
        with pytest.raises(PrivacyError, match="still under way"):
            ledger.replay("r0", "q0")
    with opened(folder) as ledger:
        assert ledger.spent() == (QUARTER,)


def test_a_half_written_record_is_mended_when_there_is_room_again(folder, monkeypatch):
    def half(handle, raw):
        REAL["write"](handle, raw[: len(raw) // 2])
        no_space()

    with opened(folder) as ledger:
        release(ledger, 0)
        monkeypatch.setattr(os, "write", half)
        with pytest.raises(PrivacyError, match="No space left"):
            release(ledger, 1)
        monkeypatch.undo()
    with opened(folder) as ledger:
        assert ledger.spent() == (QUARTER,)
    assert verify(folder).account.repairs == 1


def test_short_writes_are_completed(folder, monkeypatch):
    monkeypatch.setattr(os, "write", lambda handle, raw: REAL["write"](handle, raw[:7]))
    with opened(folder) as ledger:
        release(ledger, 0)
    assert verify(folder).account.spent() == (QUARTER,)


def test_a_read_only_disk_is_one_line_and_can_still_be_read(three, monkeypatch):
    def read_only(path, flags, *rest, **named):
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return REAL["open"](path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(PrivacyError, match=r"cannot use .*lock: Read-only file system; nothing is released"):
        opened(three)
    assert len(verify(three).reservations) == 3


def test_a_folder_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(PrivacyError, match="File exists"):
        opened(tmp_path / "x")
    with pytest.raises(PrivacyError, match="Not a directory"):
        verify(tmp_path / "x")
