"""What a server tells its owner: what of Flower is shown, what nodes are called, which certificate it goes on with."""

import io
import time
import urllib.request

import httpx
import pytest
from devices import Device
from report_scene import _round, _summary, _write
from rich.console import Console

from fedkd.commands.status import table
from fedkd.config import Config
from fedkd.journal import read_names
from fedkd.report import write_report
from fedkd.rundir import SERVED, RunDirectory
from fedkd.serving import pki
from fedkd.serving.board import node_table
from fedkd.serving.gate import Gate, Traffic
from fedkd.serving.home import Home, Terms, as_seen, read_live, write_live
from fedkd.serving.invites import Registry
from fedkd.serving.service import certificates_of
from fedkd.serving.told import Start, Transcript, is_flowers, keep_names, measured, with_rounds
from fedkd.status import StatusFile, read_status


class Lines:
    """A board that keeps what it is shown."""

    def __init__(self):
        self.lines = []

    def line(self, text):
        self.lines.append(str(text))


@pytest.mark.parametrize(
    ("line", "flowers"),
    [
        ("INFO :      Starting logstream for run_id `6694457640981886001`", True),
        ("INFO :", True),
        ("Using SuperLink: fedkd (127.0.0.1:43757)", True),
        ("Successfully installed fedkd to /home/me/.fedkd/serve/flower/flwr/apps/fedkd.fedkd.0.1.0.e8c5c1a6.", True),
        ("WARNING :   the disk is nearly full", False),
        ("ERROR :     ServerApp raised an exception", False),
        ("Traceback (most recent call last):", False),
        ("    1    96.5%   96.5%       -       -  9.85 kB    235 B  16.6 s", False),
        ("INFORMATION of our own", False),
    ],
)
def test_what_flower_does_is_told_from_what_a_reader_wants(line, flowers):
    assert is_flowers(line) is flowers


def test_all_lines_are_kept_and_flowers_are_not_shown(tmp_path):
    shown = []
    for told in (["INFO :  x", "round"], ["ERROR : no disk"]):  # a second run goes on in the same file
        with Transcript(tmp_path / "run.log", shown.append) as transcript:
            for line in told:
                transcript(line)
    assert shown == ["round", "ERROR : no disk"]
    assert (tmp_path / "run.log").read_text() == "INFO :  x\nround\nERROR : no disk\n"


OURS = [
    "ERROR :     ServerApp raised an exception",
    "Traceback (most recent call last):",
    '  File "collect.py", line 192, in collect',
    "fedkd.errors.QuorumError: round 1: 0 of 2 clients answered within 2 s, 1 needed (quorum = 0.5).",
    "ERROR :     Exit Code: 201",
    "",
    "For more information, visit: <https://flower.ai/docs>",
    "Flower run 7: finished:failed",
]


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        (OURS[3], "round 1: 0 of 2 clients answered within 2 s, 1 needed (quorum = 0.5)."),
        ("ValueError: 7", ""),
        ("fedkd.errors.DataError: no data\nduring which:\nKeyError: 7", ""),
    ],
)
def test_an_error_of_ours_is_its_line_and_any_other_is_shown_whole(tmp_path, last, reason):
    lines, shown = [*OURS[:3], *last.split("\n"), *OURS[4:]], []
    with Transcript(tmp_path / "run.log", shown.append) as transcript:
        for line in ["round  student", *lines]:
            transcript(line)
    assert transcript.reason == reason
    assert shown == (["round  student"] if reason else ["round  student", *lines])
    assert (tmp_path / "run.log").read_text().count("\n") == 1 + len(lines)


def test_a_serverapp_that_is_started_again_is_one_line_for_each_time():
    class Control:
        moments = iter(
            [("", False), ("10:00", False), ("10:00", False), ("", False), ("10:31", False), ("10:31", True)]
        )

        def starting(self, run):
            assert run == "7"
            return next(self.moments)

    start, control = Start("7"), Control()
    told = [start.look(control) for _ in range(8)]  # when it runs, nobody is asked
    (line,) = filter(None, told)
    assert "did not start within the 30 s that Flower gives it" in line
    assert "attempt 2" in line


def test_flower_says_when_it_began_to_start_a_run():
    from flwr.proto.control_pb2 import ListRunsRequest
    from flwr.proto.run_pb2 import Run

    ListRunsRequest(run_id=7)
    assert Run().starting_at == Run().status.status == ""


def test_a_served_run_keeps_the_status_of_its_wait(tmp_path):
    for engine, kept in ((SERVED, True), ("inprocess", False)):
        directory = RunDirectory(tmp_path / engine)
        directory.note(engine, "fedkd")
        directory.status.write_text("{}")
        directory.begin(Config())
        assert directory.status.exists() is kept


def test_thirty_seconds_is_what_flower_gives():
    from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL

    from fedkd.serving.told import CLAIM

    assert CLAIM == HEARTBEAT_DEFAULT_INTERVAL


def test_a_certificate_for_another_host_is_renewed_and_the_authority_stays(tmp_path):
    home, board = Home(tmp_path / "home"), Lines()
    first = certificates_of(home, Terms("", advertise="10.0.0.5"), board)
    before = first.ca.read_bytes(), first.certificate.read_bytes()
    certificates_of(home, Terms("", advertise="10.0.0.5"), board)
    assert len(board.lines) == 1  # made, and good as it is
    then = certificates_of(home, Terms("", advertise="10.0.0.9"), board)
    assert board.lines[1:] == [
        "renewed the certificate, which was not for 10.0.0.9; the authority stays, so nodes that joined trust this "
        "server as before"
    ]
    assert then.ca.read_bytes() == before[0]
    assert then.certificate.read_bytes() != before[1]
    assert all(pki.is_for(then, host) for host in ("10.0.0.5", "10.0.0.9", "127.0.0.1"))


def test_the_report_calls_nodes_by_their_names_and_escapes_them(tmp_path):
    path = _write(tmp_path / "a", [_round(1), _round(2)], _summary())
    (path / "nodes.json").write_text('{"1": "ward<b>"}')
    text = write_report(path).read_text()
    assert "ward&lt;b&gt; (1)" in text
    assert "ward<b>" not in text


@pytest.fixture
def home(tmp_path):
    """A server's folder with the nodes 'ward[/b]' (id 10), 'new' (id 255) and 'gone', which is revoked."""
    home = Home(tmp_path / "home")
    registry = Registry(home.registry)
    for name, node_id in (("ward[/b]", "10"), ("new", "255"), ("gone", "")):
        registry.settle(registry.add(Device().pem, name).key, node_id)
    registry.revoke("gone")
    return home


def begun(path):
    """Return a run whose client 1 is node 10 and has answered, and whose other client has not said who it is."""
    with StatusFile(path, engine="serve", rounds=2) as observe:
        observe("round", {"round": 1})
        observe("asked", {"sent": {"node-a": 7, "node-ff": 7}, "left": 9.0})
        facts = {"client": "1", "asked_as": "node-a", "bytes_up": 5, "seconds": 0.5, "error": None, "round": 1}
        observe("answer", {**facts, "node": "10"})
    return path


def test_nodes_are_called_by_their_names_and_clients_keep_their_keys(home, tmp_path):
    run = begun(tmp_path / "run")
    keep_names(run, Registry(home.registry))
    assert read_names(run) == {"1": "ward[/b]", "node-ff": "new"}
    clients = read_status(run).clients
    assert {key: client.name for key, client in clients.items()} == {"1": "ward[/b]", "node-ff": "new"}
    shown = Console(file=io.StringIO(), width=120, highlight=False)
    shown.print(table(read_status(run), time.time()))
    assert [line.split("  ")[0] for line in shown.file.getvalue().splitlines()] == ["client", "ward[/b] (1)", "new"]
    keep_names(tmp_path / "nothing", Registry(home.registry))  # no run yet
    (run / "nodes.json").write_text('{"1": "a\\u001b[31m' + "x" * 99 + '", "2": 3}')
    (name,) = read_names(run).values()
    assert len(name) == 40
    assert name.isprintable()
    for damaged in ("", "[1]", "{"):
        (run / "nodes.json").write_text(damaged)
        assert read_names(run) == {}


def test_a_served_run_has_metrics_on_loopback_if_asked(home, tmp_path):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def page(port):
        with opener.open(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            return answer.read().decode()

    run, gates = begun(tmp_path / "run"), []
    with measured(run, None, gates) as port:
        assert port is None
    with measured(run, 0, gates) as port:
        assert 'fedkd_gate_total{event="calls"} 0.0' in page(port)
        gate = Gate(Registry(home.registry), httpx.AsyncClient())
        gate.traffic["a"], gate.traffic["b"] = Traffic(calls=3, refused=1), Traffic(calls=4)
        gates.append(gate)
        text = page(port)
    assert 'fedkd_gate_total{event="calls"} 7.0' in text
    assert 'fedkd_gate_total{event="refused"} 1.0' in text
    assert 'fedkd_run_info{engine="serve",run="run"} 1.0' in text


def test_the_table_of_nodes_says_what_each_did_and_leaves_out_what_nobody_did(home, tmp_path):
    registry, now = Registry(home.registry), time.time()
    mark = registry.members()[0].mark
    traffic = {mark: Traffic(now - 3, "10.0.0.7", 9, 1000, 2000, pushed=900, push_seconds=0.3)}
    write_live(home, with_rounds(as_seen(registry, traffic, {}, now=now), begun(tmp_path / "run")))
    live = read_live(home)
    rows = live.rows
    assert now <= live.written <= time.time()
    assert (live.runs(live.written + 5), live.runs(live.written + 60)) == (True, False)
    write_live(home, [], ended=True)
    assert not read_live(home).runs(time.time())
    told = printed(as_seen(registry, {}, rows, now=now), now)
    assert [line.split() for line in told] == [
        ["node", "state", "heard", "from", "client", "rounds", "last", "calls", "up", "down", "speed", "key"],
        [*("ward[/b]", "here", "3", "s", "ago", "10.0.0.7", "1", "1", "of", "1", "1", "9", "1", "kB", "2", "kB"),
         *("3", "kB/s", mark)],
        ["new", "never", "seen", "0", "of", "1", registry.members()[1].mark],
        ["gone", "revoked", "just", "now", registry.members()[2].mark],
    ]  # fmt: skip
    later = printed(as_seen(registry, {}, rows, now=now + 600), now + 600)
    assert later[1].split()[:6] == ["ward[/b]", "silent", "10", "min", "3", "s"]
    assert printed(as_seen(registry, {}, {}, now=now), now)[0].split() == ["node", "state", "key"]
    narrow = printed(as_seen(registry, {}, rows, now=now), now, width=80)
    assert narrow[0].split() == ["node", "state", "heard", "client", "rounds", "last", "speed", "key"]
    assert len(narrow) == 4  # no line is folded


def printed(rows, now, width=200):
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(node_table(rows, now=now, width=width))
    return console.file.getvalue().splitlines()
