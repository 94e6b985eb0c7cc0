"""A ledger never loses what was spent: not to a crash at any step, a full disk, another process, or an altered byte."""

import csv
import errno
import json
import math
import os
import shutil
import signal
import sys
import warnings
from pathlib import Path

import pytest

from fedkd import cli
from fedkd.errors import BudgetExhausted, ConfigError, LedgerError, PrivacyError
from fedkd.events import Gaussian, Laplace, Neighbors, NonPrivate, NoOp, SampledGaussian, Unit
from fedkd.privacy import chain
from fedkd.privacy.ledger import DAY, Budget, Ledger, payload_path
from fedkd.privacy.ledger_report import export, sentences, table, totals, verify

REAL = {name: getattr(os, name) for name in ("open", "write", "fsync", "ftruncate", "replace")}
EPSILON_1, EPSILON_HALF = 4.3771782, 1.9930915
"""Epsilon of mu = 1 and mu = 1/2 at delta 1e-5 (PRIVACY known answers, rounded up)."""
QUARTER = Gaussian(2.0)
"""A quarter of mu^2 = 1: four of them are one Gaussian of noise multiplier 1."""


def delta_of(epsilon, mu):
    """The exact curve of a Gaussian (Balle and Wang, arXiv:1805.06530)."""

    def phi(x):
        return math.erfc(-x / math.sqrt(2)) / 2

    return phi(mu / 2 - epsilon / mu) - math.exp(epsilon) * phi(-mu / 2 - epsilon / mu)


def gaussian_filter(epsilon, delta):
    def fits(spent, event):
        events = [e for e in [*spent, event] if not isinstance(e, NoOp)]
        if not all(isinstance(e, Gaussian) for e in events):
            return False
        mu = math.sqrt(sum(e.count / e.noise_multiplier**2 for e in events))
        return mu == 0 or delta_of(epsilon, mu) <= delta

    return fits


class Clock:
    def __init__(self, now=1e9):
        self.now = now

    def __call__(self):
        return self.now


def opened(folder, **changes):
    given = {
        "fingerprint": "f00d",
        "unit": Unit.EXAMPLE,
        "neighbors": Neighbors.ADD_REMOVE,
        "budget": Budget(EPSILON_1, 1e-5),
        "fits": gaussian_filter,
        "clock": Clock(),
    }
    return Ledger.open(folder, **{**given, **changes})


def release(ledger, number, *, event=QUARTER, run="run-1"):
    ledger.reserve(f"r{number}", event, run=run, query_digest=f"q{number}")
    ledger.commit(f"r{number}", b"noisy %d" % number)


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


# What is spent


def test_a_budget_that_is_exactly_reached_is_allowed_and_the_next_release_is_refused(folder):
    with opened(folder) as ledger:
        for number in range(4):
            assert not ledger.would_exceed(QUARTER, "run-1")
            release(ledger, number)
        assert ledger.spent() == (QUARTER,) * 4
        before = ledger.head
        assert ledger.would_exceed(QUARTER, "run-1")
        with pytest.raises(BudgetExhausted) as refused:
            ledger.reserve("r4", QUARTER, run="run-1", query_digest="q4")
        assert ledger.head == before
        assert ledger.replay("r4", "q4") is None
    assert refused.value.window == "total"
    assert str(refused.value) == "the privacy budget of this client does not allow this release"


def test_what_was_spent_is_remembered_over_restarts_and_runs(folder):
    for number in range(4):
        with opened(folder) as ledger:
            release(ledger, number, run=f"run-{number}")
    with opened(folder) as ledger:
        assert ledger.spent("run-2") == (QUARTER,)
        assert ledger.spent() == (QUARTER,) * 4
        assert ledger.would_exceed(QUARTER, "run-9")


def test_each_run_has_a_limit_of_its_own_within_the_total(folder):
    with opened(folder, budget=Budget(EPSILON_1, 1e-5, per_run=EPSILON_HALF)) as ledger:
        release(ledger, 0, run="a")
        with pytest.raises(BudgetExhausted) as refused:
            release(ledger, 1, run="a")
        assert refused.value.window == "run"
        for number, run in enumerate("bcd"):
            release(ledger, number + 1, run=run)
        with pytest.raises(BudgetExhausted) as refused:
            release(ledger, 4, run="e")
        assert refused.value.window == "total"


def test_a_period_renews_and_a_clock_that_is_set_back_does_not_renew_it_again(folder):
    clock = Clock()
    budget = Budget(EPSILON_1, 1e-5, per_period=EPSILON_HALF, period_days=30)
    with opened(folder, budget=budget, clock=clock) as ledger:
        release(ledger, 0)
        clock.now += 30 * DAY
        assert ledger.would_exceed(QUARTER, "run-1")  # any 30 days: the first instant is one of them
        clock.now += 1
        release(ledger, 1)
        for back in (1e9 - 60 * DAY, 0.0, 1e9 + 29 * DAY):
            clock.now = back
            with pytest.raises(BudgetExhausted) as refused:
                release(ledger, 2)
            assert refused.value.window == "period"
    clock.now = 0.0
    with opened(folder, budget=budget, clock=clock) as ledger:  # nor does a restart
        assert ledger.would_exceed(QUARTER, "run-1")
        assert ledger.spent(since=1e9 + 1) == (QUARTER,)


@pytest.mark.parametrize("now", [math.nan, math.inf, -1.0, 1e15])
def test_a_clock_that_makes_no_sense_is_refused(folder, now):
    clock = Clock()
    with opened(folder, clock=clock) as ledger:
        clock.now = now
        with pytest.raises(PrivacyError, match="a clock must say seconds since 1970"):
            release(ledger, 0)
        assert ledger.spent() == ()


@pytest.mark.parametrize("event", [NonPrivate(), Gaussian(math.nan), Gaussian(-2.0), "Gaussian"])
def test_what_is_not_private_never_fits_whatever_the_accountant_says(folder, event):
    with opened(folder, fits=lambda epsilon, delta: lambda spent, one: True) as ledger:
        with pytest.raises(BudgetExhausted):
            ledger.reserve("r0", event, run="a", query_digest="q0")
        assert ledger.would_exceed(event, "a")


def test_events_of_all_kinds_come_back_from_the_file_as_they_were(folder):
    events = [SampledGaussian(0.01, 1.1, 1000), Laplace(0.1 + 0.2), NoOp(), Gaussian(1 / 3, 7)]
    anything = {"fits": lambda epsilon, delta: lambda spent, one: True}
    with opened(folder, **anything) as ledger:
        for number, event in enumerate(events):
            release(ledger, number, event=event)
    with opened(folder, **anything) as ledger:
        assert list(ledger.spent()) == events


def test_an_accountant_that_fails_spends_nothing_and_releases_nothing(folder):
    def broken(epsilon, delta):
        def fits(spent, event):
            raise ArithmeticError("no such order")

        return fits

    with opened(folder, fits=broken) as ledger:
        with pytest.raises(ArithmeticError):
            release(ledger, 0)
        assert ledger.head.count == 1


# The same query again


def test_a_retry_gets_identical_bytes_for_free_also_after_a_restart(folder):
    with opened(folder) as ledger:
        release(ledger, 0)
        assert ledger.replay("r0", "q0") == b"noisy 0"
    with opened(folder) as ledger:
        head = ledger.head
        assert ledger.replay("r0", "q0") == b"noisy 0"
        assert ledger.replay("r1", "q1") is None
        assert (ledger.head, ledger.spent()) == (head, (QUARTER,))
        with pytest.raises(PrivacyError, match="release r0 was made already: replay it"):
            ledger.reserve("r0", QUARTER, run="run-1", query_digest="q0")


def test_the_same_id_with_another_query_is_refused(three):
    with opened(three) as ledger:
        with pytest.raises(PrivacyError, match="release r0 answered another query"):
            ledger.replay("r0", "q1")
        with pytest.raises(PrivacyError, match="release r0 answered another query"):
            ledger.reserve("r0", QUARTER, run="run-1", query_digest="q1")
        assert len(ledger.spent()) == 3


def test_what_was_reserved_before_a_crash_is_spent_and_never_released_with_fresh_noise(folder):
    with opened(folder) as ledger:
        ledger.reserve("r0", QUARTER, run="run-1", query_digest="q0")
        with pytest.raises(PrivacyError, match="r0 is still under way"):
            ledger.replay("r0", "q0")
    with opened(folder) as ledger:
        assert ledger.spent() == (QUARTER,)
        for again in (
            lambda: ledger.replay("r0", "q0"),
            lambda: ledger.reserve("r0", QUARTER, run="run-1", query_digest="q0"),
        ):
            with pytest.raises(PrivacyError, match="r0 was lost in a crash, and stays spent"):
                again()
        with pytest.raises(PrivacyError, match="r0 is not under way"):
            ledger.commit("r0", b"fresh noise")


def test_a_release_is_committed_once(three):
    with opened(three) as ledger, pytest.raises(PrivacyError, match="r0 is not under way"):
        ledger.commit("r0", b"other noise")


def test_altered_or_missing_bytes_are_never_sent_and_a_check_names_them(three):
    payload_path(three, "r0").write_bytes(b"noisy 1")
    payload_path(three, "r2").unlink()
    with opened(three) as ledger:
        for number in (0, 2):
            with pytest.raises(PrivacyError, match=f"the bytes of release r{number} are missing or altered"):
                ledger.replay(f"r{number}", f"q{number}")
        assert ledger.replay("r1", "q1") == b"noisy 1"
    assert verify(three).unsendable == ("r0", "r2")
    assert sentences(verify(three))[-1] == "releases whose bytes are missing or altered, so that no retry gets them: 2"


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


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"fingerprint": "beef"}, "is of fingerprint f00d, got beef"),
        ({"unit": Unit.CLIENT}, "is of unit example, got client"),
        ({"neighbors": Neighbors.REPLACE_ONE}, "is of neighbors add_remove, got replace_one"),
    ],
)
def test_a_ledger_of_something_else_is_refused(three, change, told):
    with pytest.raises(PrivacyError, match=told):
        opened(three, **change)


def test_another_budget_is_a_record_and_never_forgets(three):
    more = Budget(2 * EPSILON_1, 1e-5)
    with pytest.raises(PrivacyError, match="what was spent stays spent"):
        opened(three, budget=more)
    with opened(three, budget=more, amend=True) as ledger:
        assert len(ledger.spent()) == 3
        release(ledger, 3)
        release(ledger, 4)
    assert verify(three).account.budgets == [Budget(EPSILON_1, 1e-5), more]
    with opened(three, amend=True) as ledger:  # back to the old one, which is full
        assert ledger.would_exceed(QUARTER, "run-1")


@pytest.mark.parametrize(
    "numbers",
    [(0.0, 1e-5), (-1.0, 1e-5), (math.inf, 1e-5), (math.nan, 1e-5), (1.0, -0.1), (1.0, 1.0), (1.0, 1e-5, 0.0),
     (1.0, 1e-5, 1.0, -1.0), (1.0, 1e-5, None, 1.0, 0.0)],
)  # fmt: skip
def test_a_budget_of_nonsense_is_refused(numbers):
    with pytest.raises(ConfigError, match="of a budget must be"):
        Budget(*numbers)


@pytest.mark.parametrize("name", ["", "=1+1", "[red]", "a b", "x" * 201, "a\n", 7])
def test_ids_that_could_harm_a_table_or_a_file_are_refused(folder, name):
    with opened(folder) as ledger:
        for names in ((name, "a", "q"), ("r", name, "q"), ("r", "a", name)):
            with pytest.raises(ConfigError, match="letters, digits"):
                ledger.reserve(names[0], QUARTER, run=names[1], query_digest=names[2])
        assert ledger.head.count == 1


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


# What it says


def mu_of(events, delta):
    return math.sqrt(sum(e.count / e.noise_multiplier**2 for e in events))


def test_a_ledger_in_use_can_be_read(folder):
    with opened(folder) as ledger:
        release(ledger, 0)
        ledger.reserve("r1", QUARTER, run="run-2", query_digest="q1")
        report = verify(folder, seen=ledger.head)
    assert (report.head.count, report.uncommitted, len(report.reservations)) == (4, 1, 2)
    assert sentences(report)[1:] == ["releases paid for and not made, after a crash or still under way: 1"]


def test_totals_are_by_window_and_come_from_the_accountant_that_is_given(folder):
    clock = Clock()
    with opened(folder, budget=Budget(9.0, 1e-5, per_run=8.0, per_period=7.0), clock=clock) as ledger:
        release(ledger, 0, run="a")
        clock.now += 40 * DAY
        release(ledger, 1, run="b", event=Gaussian(1.0))
    assert totals(verify(folder), mu_of) == [
        "in all: epsilon 1.118 of 9 (at delta 1e-05, unit example, neighbors add_remove)",  # sqrt(1/4 + 1)
        "run a: epsilon 0.5 of 8",
        "run b: epsilon 1 of 8",
        "last 30 days on record: epsilon 1 of 7",
    ]
    assert "infinite" in totals(verify(folder), lambda events, delta: math.inf)[0]
    assert table(verify(folder), last=1).row_count == 1


def test_exports_hold_the_events_so_that_another_accountant_can_read_them(three):
    told = json.loads(export(three, "json"))
    assert (told["unit"], told["neighbors"], told["losses"]) == ("example", "add_remove", 0)
    assert told["head"]["count"] == 7
    first = told["releases"][0]
    assert first["event"] == {"kind": "Gaussian", "code": 2, "noise_multiplier": 2.0, "count": 1}
    assert (first["release_id"], first["run"], first["time"]) == ("r0", "run-1", "2001-09-09T01:46:40+00:00")
    rows = list(csv.DictReader(export(three, "csv").splitlines()))
    assert [row["release_id"] for row in rows] == ["r0", "r1", "r2"]
    assert json.loads(rows[2]["event"]) == first["event"]
    with pytest.raises(ConfigError, match="json or csv, got 'xml'"):
        export(three, "xml")


def fedkd(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["fedkd", *map(str, words)])
    monkeypatch.setattr(cli.engine, "quiet_flower", lambda: None)
    monkeypatch.setattr(cli.out, "_width", 160)  # wherever the tests run
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def test_the_command_line_shows_verifies_and_exports(three, monkeypatch, capsys):
    assert fedkd(monkeypatch, "ledger", "verify", three) == 0
    assert capsys.readouterr().out.startswith("the chain holds: 7 records, 3 releases, head ")
    assert fedkd(monkeypatch, "ledger", "export", three, "--format", "csv") == 0
    assert capsys.readouterr().out == export(three, "csv")
    assert fedkd(monkeypatch, "ledger", "show", three) == 0
    shown = capsys.readouterr().out
    assert "unit example · neighbors add_remove" in shown and "Gaussian(noise_multiplier=2.0, count=1)" in shown


def test_a_broken_ledger_is_one_line_and_exit_code_2(three, tmp_path, monkeypatch, capsys):
    content = (three / chain.LOG).read_bytes()
    (three / chain.LOG).write_bytes(content.replace(b'"code":2', b'"code":1', 1))
    for words, told in (
        (("verify", three), "record 2 does not continue the chain"),
        (("show", three), "record 2 does not continue the chain"),
        (("export", three), "record 2 does not continue the chain"),
        (("verify", tmp_path / "nothing"), "there is no ledger in"),
    ):
        assert fedkd(monkeypatch, "ledger", *words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error ") and told in line
