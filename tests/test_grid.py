"""The in-process grid. This file is also the module that its worker processes import the ClientApp from."""

import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.message_pb2 import Message as ProtoMessage

from fedkd.errors import ConfigError
from fedkd.flower import grid as module
from fedkd.flower.grid import LocalGrid

NODES = 1000
APP = "test_grid:app"
app = ClientApp()


@app.query("whoami")
def _whoami(message, context):
    facts = {
        **{key.replace("-", "_"): value for key, value in context.node_config.items()},
        "node": context.node_id,
        "rounds": context.run_config["rounds"],
        "rate": context.run_config["learning-rate"],
        "threads": os.environ["OMP_NUM_THREADS"],
        "pid": os.getpid(),
        "session": os.getsid(0),
    }
    return Message(RecordDict({"facts": ConfigRecord(facts)}), reply_to=message)


@app.query("count")
def _count(message, context):
    """Count messages in the state; fail after the count if told to."""
    seen = context.state.array_records.get("seen")
    count = int(seen["n"].numpy()[0]) + 1 if seen else 1
    context.state["seen"] = ArrayRecord({"n": Array(np.array([count]))})
    order = message.content.config_records["order"]
    if order.get("raise"):
        raise ValueError(f"private data: {order['raise']}")
    return Message(RecordDict({"count": MetricRecord({"i": order["i"], "count": count})}), reply_to=message)


@app.query("die")
def _die(message, context):
    os._exit(3)


@app.query("hang")
def _hang(message, context):
    child = subprocess.Popen(["sleep", "1000"])
    print("hanging with a child", child.pid, file=sys.stderr, flush=True)
    threading.Event().wait()


@app.query("nonsense")
def _nonsense(message, context):
    return "not a message"


def message(node, action, ttl=60.0, **order):
    return Message(RecordDict({"order": ConfigRecord(order)}), node, f"query.{action}", ttl=ttl)


def gather(grid, ids):
    """Return {message id: reply} of all ``ids``, as a round loop would collect them."""
    replies = {}
    while len(replies) < len(ids):
        replies |= {reply.metadata.reply_to_message_id: reply for reply in grid.pull_messages(ids)}
        if len(replies) < len(ids):
            grid.wait(30)
    return replies


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return tmp_path_factory.mktemp("grid") / "clients.log"


@pytest.fixture(scope="module")
def grid(log):
    run_config = {"rounds": 3, "learning-rate": 0.003}
    config = {"data-dir": "/nowhere"}
    with LocalGrid(APP, nodes=NODES, run_config=run_config, node_config=lambda k: config, preload=(), log=log) as grid:
        yield grid


def facts(reply):
    return reply.content.config_records["facts"]


def counts(replies):
    return [reply.content.metric_records["count"]["count"] for reply in replies]


def test_a_thousand_nodes_answer_as_themselves_from_two_other_processes(grid):
    asked = [message(node, "whoami") for node in grid.get_node_ids()]
    replies = list(grid.send_and_receive(asked, timeout=60))
    assert sorted(reply.metadata.src_node_id for reply in replies) == list(range(2, NODES + 2))
    for reply in replies:
        assert facts(reply)["node"] == reply.metadata.src_node_id == facts(reply)["partition_id"] + 2
        assert grid.partition_of(reply.metadata.src_node_id) == facts(reply)["partition_id"]
    pids = {facts(reply)["pid"] for reply in replies}
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_a_node_knows_its_configuration_and_computes_in_one_thread(grid):
    (reply,) = grid.send_and_receive([message(9, "whoami")])
    known = facts(reply)
    assert (known["partition_id"], known["num_partitions"], known["data_dir"]) == (7, NODES, "/nowhere")
    assert (known["rounds"], known["rate"], known["threads"]) == (3, 0.003, "1")


def test_ctrl_c_in_the_terminal_does_not_reach_a_worker(grid):
    (reply,) = grid.send_and_receive([message(2, "whoami")])
    assert facts(reply)["session"] != os.getsid(0)


def test_messages_to_one_node_are_answered_one_at_a_time_and_in_order(grid):
    ids = grid.push_messages([message(node, "count", i=i) for i in range(20) for node in (10, 11, 12)])
    replies = gather(grid, ids)
    for offset in range(3):
        assert counts(replies[id_] for id_ in ids[offset::3]) == list(range(1, 21))
        numbers = [replies[id_].content.metric_records["count"]["i"] for id_ in ids[offset::3]]
        assert numbers == list(range(20))


def test_state_is_kept_between_messages_and_belongs_to_its_node(grid):
    for expected in (1, 2, 3):
        assert counts(grid.send_and_receive([message(20, "count", i=0)])) == [expected]
    assert counts(grid.send_and_receive([message(21, "count", i=0)])) == [1]


def test_pulling_never_waits_and_returns_a_reply_once(grid):
    (id_,) = grid.push_messages([message(30, "hang", ttl=0.3)])
    assert list(grid.pull_messages([id_, "unknown"])) == []
    gather(grid, [id_])
    assert list(grid.pull_messages([id_])) == []


def test_waiting_ends_when_nothing_is_outstanding(grid):
    grid.wait(None)
    grid.wait(None)


def test_a_content_that_changes_after_the_push_is_sent_as_it_was(grid):
    shared = RecordDict({"order": ConfigRecord({"i": 1})})
    ids = grid.push_messages([Message(shared, node, "query.count") for node in (40, 41)])
    shared.config_records["order"]["i"] = 2
    sent = [reply.content.metric_records["count"]["i"] for reply in gather(grid, ids).values()]
    assert sent == [1, 1]


def test_an_exception_tells_its_type_only_and_leaves_the_state_alone(grid, log):
    (reply,) = grid.send_and_receive([message(50, "count", i=0, **{"raise": "blood group"})])
    assert (reply.error.code, reply.error.reason) == (2, "ValueError")
    assert "private data: blood group" in log.read_text()
    assert counts(grid.send_and_receive([message(50, "count", i=0)])) == [1]


def test_an_answer_that_is_no_message_is_an_error_of_that_node(grid):
    (reply,) = grid.send_and_receive([message(51, "nonsense")])
    assert (reply.error.code, reply.error.reason) == (2, "TypeError")


def test_a_dead_worker_costs_one_reply_and_is_replaced(grid):
    ids = grid.push_messages([message(60, "die"), message(61, "die"), message(62, "die")])
    ids += grid.push_messages([message(node, "whoami") for node in range(60, 80)])
    replies = gather(grid, ids)
    assert [replies[id_].error.code for id_ in ids[:3]] == [8, 8, 8]
    assert [facts(replies[id_])["node"] for id_ in ids[3:]] == list(range(60, 80))
    assert len({facts(replies[id_])["pid"] for id_ in ids[3:]}) <= 2


def test_a_client_that_hangs_is_ended_at_its_ttl_and_holds_up_nobody_else(grid):
    stuck, queued, patient = grid.push_messages(
        [message(90, "hang", ttl=1.0), message(90, "whoami", ttl=0.2), message(90, "whoami")]
    )
    others = list(grid.send_and_receive([message(node, "whoami") for node in range(91, 140)]))
    assert len({facts(reply)["pid"] for reply in others}) == 1
    assert list(grid.pull_messages([stuck, patient])) == []
    replies = gather(grid, [stuck, queued, patient])
    assert replies[stuck].error.code == replies[queued].error.code == 3
    assert list(replies)[0] == queued
    assert facts(replies[patient])["node"] == 90


def test_a_message_that_is_too_old_when_pushed_is_not_worked_on(grid):
    late = message(99, "count", i=0, ttl=5.0)
    late.metadata.__dict__["_created_at"] -= 10.0
    (reply,) = grid.send_and_receive([late])
    assert reply.error.code == 3
    assert counts(grid.send_and_receive([message(99, "count", i=0)])) == [1]


def test_a_timeout_returns_what_has_come(grid):
    asked = [message(100, "hang", ttl=1.0), message(101, "whoami")]
    replies = list(grid.send_and_receive(asked, timeout=0.5))
    assert [reply.metadata.src_node_id for reply in replies] == [101]
    gather(grid, [asked[0].metadata.message_id])


def test_an_unknown_node_is_unavailable(grid):
    (reply,) = grid.send_and_receive([message(NODES + 2, "whoami")])
    assert reply.error.code == 5


def test_a_malformed_reply_is_an_error_of_its_sender_and_not_an_exception():
    reply = ProtoMessage()
    reply.metadata.message_type = "query"
    reply.metadata.reply_to_message_id = "x"
    reply.content.items.add(key="m").metric_record.items.add(key="empty")
    parsed = module._parse(reply.SerializeToString())
    assert parsed.error.code == 2
    assert parsed.metadata.reply_to_message_id == "x"


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_closing_ends_every_worker_even_one_that_hangs(start):
    with LocalGrid(APP, nodes=3, run_config={"rounds": 1, "learning-rate": 1.0}, preload=(), start=start) as grid:
        replies = list(grid.send_and_receive([message(node, "whoami") for node in (2, 3, 4) * 20]))
        pids = {facts(reply)["pid"] for reply in replies}
        # An exiting process may take its time; what counts is that no number is left when close() returns.
        (id_,) = grid.push_messages([message(2, "hang")])
        grid.send_and_receive([message(3, "whoami")])
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert list(grid.pull_messages([id_])) == []
    grid.wait(None)
    grid.close()
    with pytest.raises(RuntimeError, match="closed"):
        grid.push_messages([message(2, "whoami")])


def test_everything_ends_with_a_main_process_that_is_killed():
    program = (  # no main guard: the workers must not import it
        "from fedkd.flower.grid import LocalGrid; from test_grid import *\n"
        "grid = LocalGrid(APP, nodes=2, run_config={}, preload=())\n"
        "grid.push_messages([message(2, 'hang')])\n"
        "grid.wait()\n"
    )
    path = os.pathsep.join(entry for entry in sys.path if entry)
    environment = os.environ | {"PYTHONPATH": path}
    main = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, env=environment)
    with main:
        assert "hanging" in main.stderr.readline()
        main.send_signal(signal.SIGKILL)
        # The workers and the child of one hold the other end of this pipe: it ends when the last of them does.
        main.communicate(timeout=30)
    assert main.returncode == -signal.SIGKILL


def test_an_app_that_cannot_be_imported_says_why(capfd):
    with LocalGrid("test_grid:ap", nodes=2, run_config={}, preload=("no_such_module",)) as grid:
        (reply,) = grid.send_and_receive([message(2, "whoami")])
    assert reply.error.code == 1
    assert "no attribute 'ap'" in reply.error.reason
    assert "no_such_module" in capfd.readouterr().err


def test_an_app_that_kills_its_process_on_import_fails_every_message_and_not_the_server(tmp_path, monkeypatch):
    (tmp_path / "deadly_app.py").write_text("import os; os._exit(1)")
    monkeypatch.syspath_prepend(tmp_path)
    with LocalGrid("deadly_app:app", nodes=3, run_config={}, preload=()) as grid:
        for _ in range(2):
            replies = grid.send_and_receive([message(node, "whoami") for node in grid.get_node_ids()])
            assert [reply.error.code for reply in replies] == [8, 8, 8]


def test_nonsensical_sizes_are_refused():
    with pytest.raises(ConfigError, match="got nodes=0, workers=2"):
        LocalGrid(APP, nodes=0, run_config={})
