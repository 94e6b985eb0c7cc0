"""How a run says how it is doing: what events add up to, what lies on the disk, what fedkd status makes of it."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from report_scene import _round, _summary, _write
from rich.console import Console
from rounds_scene import CLOCK, Network, loop, settings, silent, truthful
from typer.testing import CliRunner

from fedkd import collect, status
from fedkd.commands.main import app
from fedkd.commands.status import exit_code, headline, screen, watch
from fedkd.config import Config
from fedkd.engine import run_in_process
from fedkd.errors import DataError, QuorumError
from fedkd.records import RoundReport
from fedkd.status import Client, Progress, Status, StatusFile, newest_run, read_status

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["clients=2", "learner=logistic", "student=none", "pooled=false", "expertise=uniform", "evidence=none"]


@pytest.fixture
def fake_time(monkeypatch):
    monkeypatch.setattr(collect, "time", CLOCK)


def refuses(query, client):
    raise RuntimeError("no memory\n\x1b[31mleft")


def seen_by_status(net, **keys):
    """Return the statuses after each event of a run on ``net``, with the event."""
    progress, history = Progress(Status("here", "test", 0.0, 0.0, rounds=2)), []

    def observe(event, facts):
        progress.apply(event, facts, CLOCK.now)
        history.append((event, progress.snapshot()))

    try:
        loop(settings(**keys), observe=observe).run(net)
    except QuorumError as error:
        progress.end(error)
        history.append(("end", progress.snapshot()))
    return history


def test_a_round_shows_who_is_awaited_who_answered_and_who_refused(fake_time):
    history = seen_by_status(Network(truthful, refuses, silent), quorum=0.3)
    events = [event for event, _ in history]
    assert events[:3] == ["round", "asked", "answer"]
    asked = history[1][1]
    assert [client.status for client in asked.clients.values()] == ["asked"] * 3
    assert asked.deadline == pytest.approx(CLOCK.now + 10.0, abs=30.0)
    first = history[2][1].clients
    assert (first["0"].status, first["1"].status, first["2"].status) == ("answered", "asked", "asked")
    assert first["0"].answered == first["0"].asked == 1
    last = next(seen for event, seen in reversed(history) if event == "report")
    assert {name: client.status for name, client in last.clients.items()} == {
        "0": "answered",
        "1": "refused",
        "2": "silent",
    }
    assert last.clients["1"].reason == "no memory [31mleft"  # whatever it says, a terminal can show it
    assert (last.clients["0"].answered, last.clients["1"].answered, last.clients["2"].asked) == (2, 0, 2)
    states = [seen.state for _, seen in history]
    assert [s for i, s in enumerate(states) if i == 0 or states[i - 1] != s] == [
        *("asking", "aggregating", "distilling"),
        *("asking", "aggregating", "distilling"),
    ]


def test_what_is_counted_live_equals_what_the_journal_says(fake_time):
    reports = []
    net = Network(truthful, truthful, silent, delays={(1, 1): 1})  # client 1 is a round late
    progress = Progress(Status("here", "test", 0.0, 0.0))

    def observe(event, facts):
        progress.apply(event, facts, CLOCK.now)
        if event == "report":
            reports.append(facts["report"])

    loop(settings(rounds=3, quorum=0.3), observe=observe).run(net)
    again = Progress(Status("here", "test", 0.0, 0.0))
    again.recall(reports)
    live, read = progress.snapshot(), again.snapshot()

    def without_seen(seen):
        return {k: {**vars(c), "seen": None} for k, c in seen.clients.items()}

    assert without_seen(live) == without_seen(read)
    assert live.clients["0"].answered == live.clients["0"].asked == 3
    assert live.clients["1"].asked == 3
    assert live.clients["1"].answered == 2
    for way in ("up", "down"):
        assert live.moved(way) == sum(row[f"bytes_{way}"] for r in reports for row in r.clients.values())


def test_an_answer_of_the_round_before_is_seen_as_it_arrives(fake_time):
    net = Network(truthful, truthful, delays={(1, 1): 1})
    late = [facts for event, facts in _facts_of(net, quorum=0.5) if event == "late"]
    assert [(facts["client"], facts["round"]) for facts in late] == [("1", 1)]


def _facts_of(net, **keys):
    told = []
    loop(settings(**keys), observe=lambda event, facts: told.append((event, facts))).run(net)
    return told


def test_the_deadline_moves_when_a_quorum_is_there(fake_time):
    told = _facts_of(Network(truthful, silent), quorum=0.5, deadline=50.0, grace=7.0, rounds=1)
    (asked,) = [facts for event, facts in told if event == "asked"]
    (enough,) = [facts for event, facts in told if event == "enough"]
    assert (asked["left"], enough["left"]) == (50.0, 7.0)


def test_a_run_without_a_quorum_says_why_and_who_was_silent(fake_time):
    ended = seen_by_status(Network(silent, silent))[-1][1]
    assert ended.state == "failed"
    assert ended.reason.startswith("round 1: 0 of 2 clients answered within 10 s")
    assert ended.count("silent") == 2


def test_a_node_that_says_who_it_is_keeps_what_was_counted_under_its_first_name():
    progress = Progress(Status("here", "test", 0.0, 0.0))
    progress.apply("round", {"round": 1}, 1.0)
    progress.apply("asked", {"sent": {"node-a": 100, "node-b": 100}, "left": 9.0}, 1.0)
    facts = {
        "client": "4",
        "asked_as": "node-a",
        "bytes_up": 30,
        "seconds": 2.0,
        "error": None,
        "node": "10",
        "round": 1,
    }
    progress.apply("answer", facts, 3.0)
    seen = progress.snapshot()
    assert seen.clients["4"] == Client("answered", None, 30, 100, 2.0, 1, 1, 3.0, 1, "10")
    assert set(seen.clients) == {"4", "node-b"}
    rows = {"4": {"status": "answered", "bytes_up": 30, "bytes_down": 100}}
    rows["node-b"] = {"status": "silent", "bytes_up": 0, "bytes_down": 100, "error": "no answer in time"}
    progress.apply("report", {"report": RoundReport(1, {}, rows, {}, {"4": 2.0})}, 4.0)
    assert progress.snapshot().clients["4"] == seen.clients["4"]
    progress.apply("round", {"round": 2}, 5.0)
    progress.apply("asked", {"sent": {"4": 100}, "left": 9.0}, 5.0)
    seen = progress.snapshot()
    assert (seen.clients["4"].status, seen.clients["4"].asked) == ("asked", 2)
    assert seen.clients["node-b"].status == "lost"


def test_a_masked_round_counts_a_client_once_however_often_it_is_asked():
    progress = Progress(Status("here", "test", 0.0, 0.0))
    progress.apply("round", {"round": 1}, 1.0)
    for phase in ("keys", "ballots"):
        progress.apply("asked", {"sent": {"0": 10}, "left": 9.0, "phase": phase}, 1.0)
        facts = {"client": "0", "asked_as": "0", "bytes_up": 5, "seconds": 1.0, "error": None}
        progress.apply("answer", facts, 2.0)
    (client,) = progress.snapshot().clients.values()
    assert (client.asked, client.answered, client.bytes_up, client.bytes_down) == (1, 1, 10, 20)
    assert progress.snapshot().phase == "ballots"


def test_names_with_digits_of_other_scripts_do_not_end_a_round():
    # A refusal names its client in any letters; '²' is a digit that is no number.
    assert sorted({"²": 0, "10": 0, "9": 0, "x": 0}.items(), key=collect.by_number)[0][0] == "9"


def waited_for(path, condition):
    """Return the status once ``condition`` holds for it; fail after a while."""
    end = time.monotonic() + 30
    while not condition(found := read_status(path)):
        assert time.monotonic() < end, found
        threading.Event().wait(0.02)
    return found


def test_the_last_word_of_a_burst_is_written_without_another_event(tmp_path):
    with StatusFile(tmp_path, rounds=1) as observe:
        observe("round", {"round": 1})
        observe("asked", {"sent": {str(k): 7 for k in range(50)}, "left": 60.0})
        for k in range(50):
            facts = {"client": str(k), "asked_as": str(k), "bytes_up": 1, "seconds": 0.1, "error": None}
            observe("answer", facts)
        found = waited_for(tmp_path, lambda found: found.count("answered") == 50)
        assert (found.state, found.moved("up"), found.moved("down")) == ("asking", 50, 350)
    assert read_status(tmp_path).state == "done"


def test_a_burst_of_events_is_a_few_writes(tmp_path, monkeypatch):
    writes = []
    monkeypatch.setattr(status, "write_atomic", lambda *args, **keys: writes.append(time.monotonic()))
    with StatusFile(tmp_path) as observe:
        began = time.monotonic()
        for k in range(2000):
            observe("round", {"round": k})
        took = time.monotonic() - began
    assert len(writes) <= 3 + took / status.EVERY


def test_who_prepares_a_run_says_that_it_waits_until_another_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(status, "PULSE", 0.01)
    with StatusFile(tmp_path / "a", engine="serve", rounds=3, gives_way=True) as before:
        before("waiting", {"present": 1, "clients": 2, "left": 60.0})
        found = waited_for(tmp_path / "a", lambda found: found.present == 1)
        assert headline(found, time.time()).startswith("a: waiting for nodes, 1 of 2 are here, for ")
        waited_for(tmp_path / "a", lambda now: now.updated > found.updated)  # so it never goes stale
        before("starting", {})
        waited_for(tmp_path / "a", lambda found: found.state == "starting")
        with StatusFile(tmp_path / "a", engine="serve", rounds=3) as leads:
            leads("round", {"round": 1})
            waited_for(tmp_path / "a", lambda found: found.round == 1)
            taken = read_status(tmp_path / "a")
            waited_for(tmp_path / "a", lambda now: now.updated > taken.updated and now.round == 1)
        assert read_status(tmp_path / "a").state == "done"
    assert read_status(tmp_path / "a").state == "done"


def test_who_waits_in_vain_says_so(tmp_path):
    with pytest.raises(QuorumError), StatusFile(tmp_path, engine="serve", gives_way=True):
        raise QuorumError("0 of 2 nodes came")
    found = read_status(tmp_path)
    assert (found.state, found.reason) == ("failed", "0 of 2 nodes came")


def test_a_run_that_has_nothing_new_still_says_that_it_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(status, "PULSE", 0.01)
    with StatusFile(tmp_path):
        first = read_status(tmp_path).updated
        waited_for(tmp_path, lambda found: found.updated > first)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (QuorumError("0 of 3 clients answered"), "0 of 3 clients answered"),
        (KeyboardInterrupt(), "interrupted after round 0; to go on: fedkd resume {run}"),
        (ValueError("private: 42"), "ValueError"),
    ],
)
def test_how_a_run_failed_is_said_in_one_line_without_what_others_wrote(tmp_path, error, reason):
    with pytest.raises(type(error)), StatusFile(tmp_path):
        raise error
    found = read_status(tmp_path)
    assert (found.state, found.reason) == ("failed", reason.format(run=tmp_path.name))


def test_a_status_that_cannot_be_written_does_not_stop_the_run(tmp_path):
    (tmp_path / "file").write_text("")
    with StatusFile(tmp_path / "file") as observe:  # a file is no folder
        observe("round", {"round": 1})


def test_a_resumed_run_began_when_it_first_did_and_counts_on(tmp_path):
    with StatusFile(tmp_path, now=lambda: 1000.0):
        pass
    report = RoundReport(1, {}, {"0": {"status": "answered", "bytes_up": 5, "bytes_down": 6}}, {}, {"0": 1.5})
    with StatusFile(tmp_path, resumes=True, now=lambda: 2000.0) as observe:
        observe("resume", {"reports": [report], "round": 1})
        observe("round", {"round": 2})
    found = read_status(tmp_path)
    assert (found.started, found.updated, found.round) == (1000.0, 2000.0, 2)
    assert found.clients["0"] == Client("answered", None, 5, 6, 1.5, 1, 1, None, 1)


def test_the_file_says_times_in_words_and_is_read_back_equal(tmp_path):
    with StatusFile(tmp_path, engine="x", now=lambda: 0.25) as observe:
        observe("waiting", {"present": 1, "clients": 3, "left": 5.0})
        observe("asked", {"sent": {"0": 3}, "left": 1e300})  # as good as never
    text = json.loads((tmp_path / "status.json").read_text())
    assert text["started"] == "1970-01-01T00:00:00.250Z"
    assert (text["present"], text["wanted"], text["deadline"]) == (1, 3, None)
    assert read_status(tmp_path).started == 0.25


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"run": "a", "engine": "", "started": "x", "updated": 1}'])
def test_a_damaged_status_is_one_clear_line(tmp_path, content):
    (tmp_path / "status.json").write_text(content)
    with pytest.raises(DataError, match="is damaged or of another fedkd") as caught:
        read_status(tmp_path)
    assert "\n" not in str(caught.value)


def run_directory(path, **keys):
    """Write a run directory whose status.json says ``keys``."""
    path.mkdir(parents=True)
    (path / "config.toml").write_text("")
    now = time.time()
    given = Status(path.name, "inprocess", now - 60, now, **{"state": "asking", "round": 2, "rounds": 3, **keys})
    (path / "status.json").write_bytes(status._FORM.dump_json(given))
    return path


def ask(*words):
    done = CliRunner().invoke(app, ["status", *words], env={"COLUMNS": "140"})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def test_a_run_of_a_sweep_may_be_the_newest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = run_directory(tmp_path / "runs" / "sweep" / "a-seed-0", state="done")
    assert newest_run() == Path("runs/sweep/a-seed-0")
    assert ask()[1].startswith("a-seed-0: done")
    os.utime(one / "status.json", (1, 1))
    os.utime(one / "config.toml", (1, 1))
    run_directory(tmp_path / "runs" / "plain", state="done")
    assert newest_run() == Path("runs/plain")


def test_the_table_names_every_client_and_the_newest_run_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clients = {"0": Client("answered", None, 2000, 10, 0.5, 2, 2, time.time()), "1": Client("refused", "no memory")}
    old = run_directory(tmp_path / "runs" / "old", state="done")
    os.utime(old / "status.json", (1, 1))
    os.utime(old / "config.toml", (1, 1))
    run_directory(tmp_path / "runs" / "new", clients=clients, deadline=time.time() + 100)
    assert newest_run().name == "new"
    code, text = ask()
    assert code == 0
    assert text.startswith("new: asking, round 2 of 3, 1 answered, 1 refused, 2 kB up, 10 B down, deadline in 1 min")
    assert [line.split()[:2] for line in text.splitlines()[2:]] == [["0", "answered"], ["1", "refused"]]
    assert "no memory" in text
    assert "2 of 2" in text
    assert ask("old")[1].startswith("old: done")


@pytest.mark.parametrize(
    ("keys", "code", "words"),
    [
        ({"state": "done"}, 0, "a: done"),
        ({"state": "failed", "reason": "round 2: 0 of 3"}, 1, "round 2: 0 of 3"),
        ({"silent": 3600}, 1, "stale: it claims to be running and has said nothing for 1 h 0 min"),
        ({"state": "done", "silent": 3600}, 0, "a: done"),
    ],
)
def test_the_exit_code_says_whether_all_is_well(tmp_path, monkeypatch, keys, code, words):
    monkeypatch.chdir(tmp_path)
    path = run_directory(tmp_path / "runs" / "a", state=keys.get("state", "asking"), reason=keys.get("reason"))
    if "silent" in keys:
        text = json.loads((path / "status.json").read_text())
        (path / "status.json").write_text(json.dumps({**text, "updated": time.time() - keys["silent"]}))
    said = ask("a")
    assert said[0] == code
    assert words in said[1]


def test_json_says_what_follows_from_the_clock_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clients = {"0": Client("answered", None, 7, 8)}
    run_directory(tmp_path / "runs" / "a", deadline=time.time() + 100, clients=clients)
    code, text = ask("a", "--json")
    told = json.loads(text)
    assert code == 0
    assert told["stale"] is False
    assert 90 < told["deadline_left"] <= 100
    assert (told["bytes_up"], told["bytes_down"], told["clients"]["0"]["status"]) == (7, 8, "answered")


def test_following_prints_changes_and_ends_with_the_run(tmp_path):
    path, console = run_directory(tmp_path / "a"), Console(file=io.StringIO(), width=120, highlight=False)
    looks = iter([{"round": 2}, {"round": 3}, {"round": 3, "state": "done"}])

    def pause(_):
        text = json.loads((path / "status.json").read_text())
        (path / "status.json").write_text(json.dumps({**text, **next(looks), "updated": time.time()}))

    assert watch(path, follow=True, console=console, pause=pause).state == "done"
    lines = console.file.getvalue().splitlines()
    assert [line.split(", ")[:2] for line in lines] == [
        ["a: asking", "round 2 of 3"],
        ["a: asking", "round 3 of 3"],
        ["a: done", "round 3 of 3"],
    ]


def test_a_run_that_leaves_nothing_has_failed_for_those_who_follow_it(tmp_path):
    path = run_directory(tmp_path / "a")

    def pause(_):
        for file in path.iterdir():
            file.unlink()
        path.rmdir()

    ended = watch(path, follow=True, console=Console(file=io.StringIO()), pause=pause)
    assert (ended.state, ended.reason) == ("failed", "it failed before a round was saved, and left nothing")


def test_of_very_many_clients_those_that_are_not_well_are_listed(tmp_path):
    clients = {str(k): Client("silent" if k == 777 else "answered") for k in range(1000)}
    console = Console(file=io.StringIO(), width=120)
    watch(run_directory(tmp_path / "a", clients=clients), console=console)
    lines = console.file.getvalue().splitlines()
    assert lines[2].split()[:2] == ["777", "silent"]
    assert lines[3].strip() == "and 999 more"
    assert len(lines) == 4


def test_runs_that_wrote_no_status_are_known_by_their_journal(tmp_path):
    done = _write(tmp_path / "done", [_round(1), _round(2)], _summary())
    found = read_status(done)
    assert (found.state, found.round, len(found.clients)) == ("done", 2, 8)
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "config.toml").write_text("")
    assert read_status(begun).state == "starting"
    assert headline(read_status(begun), time.time()).startswith("begun: starting")
    with pytest.raises(DataError, match="no run directory"):
        read_status(tmp_path / "nothing")


def test_a_run_in_process_leaves_its_status(tmp_path):
    sets = dict(one.split("=") for one in SMALL) | {"clients": 2, "pooled": False, "rounds": 2}
    run_in_process(Config(**sets, output=str(tmp_path / "a")), workers=1)
    found = read_status(tmp_path / "a")
    assert (found.run, found.engine, found.state, found.round, found.rounds) == ("a", "inprocess", "done", 2, 2)
    for client in found.clients.values():
        assert (client.status, client.answered, client.asked) == ("answered", 2, 2)
        assert client.seconds > 0
        assert client.bytes_up > 1000


def test_a_run_that_was_killed_goes_stale(tmp_path):
    words = [word for one in [*SMALL, "rounds=500"] for word in ("--set", one)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "fedkd", "run", "--name", "a", *words]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    path = tmp_path / "runs" / "a"
    end = time.monotonic() + 120
    try:
        while not (path / "status.json").exists() or read_status(path).round < 2:
            assert process.poll() is None
            assert time.monotonic() < end
            threading.Event().wait(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    found = read_status(path)
    assert not found.ended
    assert not found.stale(found.updated + status.STALE - 1)
    assert found.stale(found.updated + status.STALE + 1)


def test_a_run_that_somebody_stopped_is_called_interrupted_and_says_how_to_go_on(tmp_path):
    path = tmp_path / "own"
    path.mkdir()
    report = RoundReport(2, {}, {"0": {"status": "answered"}}, {}, {})
    with pytest.raises(KeyboardInterrupt), StatusFile(path, engine="inprocess", rounds=5) as observe:
        observe("report", {"report": report})
        observe("round", {"round": 3})
        raise KeyboardInterrupt
    found = read_status(path)
    assert found.interrupted and found.state == "failed" and exit_code(found, found.updated) == 1
    shown = [str(line) for line in screen(found, found.updated).renderables]
    assert shown[0].startswith("own: interrupted, round 3 of 5")
    assert shown[1] == "  interrupted after round 2; to go on: fedkd resume own"
