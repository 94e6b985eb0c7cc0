"""A ledger never loses what was spent: not to a crash at any step, a full disk, another process, or an altered byte."""

import csv
import json
import math
import os
import sys

import pytest
from ledger_scene import EPSILON_1, EPSILON_HALF, QUARTER, Clock, opened, release

from fedkd.commands import main as cli
from fedkd.errors import BudgetExhausted, ConfigError, PrivacyError
from fedkd.events import Gaussian, Laplace, Neighbors, NonPrivate, NoOp, SampledGaussian, Unit
from fedkd.privacy import chain
from fedkd.privacy.ledger import DAY, Budget, payload_path
from fedkd.privacy.ledger_report import export, sentences, table, totals, verify


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
