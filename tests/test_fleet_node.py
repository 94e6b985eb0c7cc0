"""The life of a resident node, against a Fleet API in this process: what it answers, survives and refuses."""

import dataclasses
import os
import threading

import numpy as np
import pytest
from fleet_server import RUN, FleetServer
from front_stand_in import Front, serving

from fedkd.codec import decode_release, encode_query
from fedkd.config import Config
from fedkd.envelope import query_records, read_answer_records
from fedkd.errors import ConfigError, Rejected
from fedkd.fleet import home as homes
from fedkd.fleet import node as nodes
from fedkd.fleet import resident
from fedkd.fleet.home import Home, Pending, Settings
from fedkd.fleet.identity import Identity
from fedkd.fleet.link import Address, Link
from fedkd.fleet.node import Node, Pace
from fedkd.fleet.objects import name_of, read_records
from fedkd.fleet.resident import sentence
from fedkd.records import Query

CONFIG = Config(
    clients=2, rounds=2, learner="linear", student="none", expertise="uniform", evidence="none", local_epochs=1,
    evaluate=False,
)  # fmt: skip
FAST = Pace(0.01, 0.02)


class Trial:
    """A server, its front, and a node's folder; :meth:`living` runs the node in a thread."""

    def __init__(self, tmp_path, config=CONFIG, **server):
        self.fleet = FleetServer(config, **server)
        self.front, self.home = Front(config, self.fleet), Home(tmp_path / "home")
        self.shared, self.told, self.tmp_path = self.front.shared, [], tmp_path
        x, y = self.shared.private(1)
        np.savez(tmp_path / "mine.npz", x=x, y=y)
        self.node_config = {"data": f"npz:{tmp_path / 'mine.npz'}", "partition-id": 1,
                            "state-dir": str(tmp_path / "home" / "state")}  # fmt: skip

    def question(self, round_=1):
        return Query(round_, np.arange(len(self.shared.transfer)), 10, self.shared.transfer.fingerprint)

    def ask(self, round_=1, **more):
        frame = encode_query(self.question(round_), len(self.shared.transfer))
        return self.fleet.ask(frame, group=str(round_), **more)

    def node(self, port, stop=None, node_id=0, **more):
        kept = self.home.settings()
        address = Address("127.0.0.1", port, False)
        settings = kept or Settings(str(address), "pi", node_id, self.front.about, {**self.node_config, **more})
        if not self.home.has_transfer(self.front.about["fingerprint"]):
            self.home.keep_transfer(self.shared.transfer.inputs, self.front.about["fingerprint"])
        link = Link(address, None, Identity.at(self.home.key))
        common = self.home.common(settings.about)
        observe = lambda event, facts: self.told.append((event, dict(facts)))  # noqa: E731
        return Node(self.home, link, settings, common, pace=FAST, observe=observe, stop=stop)

    def living(self, port, **more):
        return Living(self, port, more)

    def answer_to(self, name):
        """Return what was answered to a message, as the server's half reads it."""
        metadata, objects = self.fleet.wait_for_answers(1)[name]
        assert all(name_of(content) == key for key, content in objects.items())
        return metadata, read_answer_records(read_records(metadata["message_id"], objects))


class Living:
    """A node that lives in a thread while this context lasts; an error of its own comes out of the end of it."""

    def __init__(self, trial, port, more):
        self.stop, self.error, self.answered = threading.Event(), None, 0
        self.node = trial.node(port, self.stop, **more)
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        try:
            self.answered = self.node.run()
        except BaseException as error:
            self.error = error

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, kind, *_):
        self.stop.set()
        self.thread.join(20)
        assert not self.thread.is_alive()
        if kind is None and self.error is not None:
            raise self.error


@pytest.fixture
def trial(tmp_path):
    return Trial(tmp_path)


@pytest.fixture
def port(trial):
    with serving(trial.front) as port:
        yield port


def until(condition, seconds=20.0):
    waiting = threading.Event()
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        waiting.wait(0.02)
    raise AssertionError("it did not come to pass")


def enrolled(trial, port):
    """Have the node known to the server."""
    node = trial.node(port)
    node._enter()
    node.link.close()
    trial.told.clear()


def test_a_query_is_answered_with_the_frame_of_the_client_and_a_fresh_salt(trial, port):
    with trial.living(port):
        until(lambda: trial.fleet.keys)
        name = trial.ask()
        metadata, (frame, accuracy, client, error) = trial.answer_to(name)
    key, release = decode_release(frame, trial.question())
    assert (key, len(release.p), accuracy, client, error) == (1, 400, None, None, None)
    asked = {"src_node_id": 101, "dst_node_id": 1, "reply_to_message_id": name, "group_id": "1",
             "message_type": "query.release", "src_task_id": 5, "dst_task_id": 0, "run_id": RUN}  # fmt: skip
    assert asked.items() <= metadata.items()
    assert 50 < metadata["ttl"] <= 60
    assert [event for event, _ in trial.told] == ["online", "query", "answered"]


def test_a_round_takes_nine_requests(trial, port):
    with trial.living(port):
        until(lambda: trial.fleet.keys)
        first = trial.ask(1)
        trial.answer_to(first)
        until(lambda: trial.told[-1][0] == "answered")
        before = list(trial.fleet.calls)
        trial.ask(2)
        trial.fleet.wait_for_answers(2)
        until(lambda: sum(event == "answered" for event, _ in trial.told) == 2)
        calls = [call for call in trial.fleet.calls[len(before) :] if call != "pull-messages"]
    assert sorted(calls) == sorted(
        ["pull-object"] * 3 + ["confirm-message-received", "push-messages"] + ["push-object"] * 3
    )


def test_a_message_that_was_taken_is_answered_by_the_next_process(trial, port, monkeypatch):
    """A server hands a message out once, so a node that dies while it computes must remember it."""
    enrolled(trial, port)
    name = trial.ask()
    monkeypatch.setattr(nodes, "respond", dies)
    with pytest.raises(Death), trial.living(port):
        until(lambda: trial.home.pending() is not None and "get-run" in trial.fleet.calls)
    assert not trial.fleet.answers
    monkeypatch.undo()
    with trial.living(port):
        _, (frame, *_) = trial.answer_to(name)
    assert decode_release(frame, trial.question())[0] == 1
    assert trial.fleet.calls.count("register-node") == 1


def test_a_message_that_was_taken_and_not_fetched_is_answered_by_the_next_process(trial, port, monkeypatch):
    """Objects of some MB take their time: a node that is stopped meanwhile is not handed the message again."""
    enrolled(trial, port)
    name = trial.ask()
    with monkeypatch.context() as patch:
        patch.setattr(Node, "_object", dies)
        with pytest.raises(Death):
            trial.node(port).run()
        assert "confirm-message-received" not in trial.fleet.calls
    with trial.living(port):
        _, (frame, *_) = trial.answer_to(name)
    assert decode_release(frame, trial.question())[0] == 1


def test_nothing_is_confirmed_before_it_would_survive_a_power_cut(trial, port, monkeypatch):
    enrolled(trial, port)
    trial.ask()
    order = []
    genuine = homes.save_arrays

    def save(path, arrays, header, *, durable=True, secret=False):
        order.append(("kept", durable, bool(header["tree"])))
        genuine(path, arrays, header, durable=durable, secret=secret)

    monkeypatch.setattr(homes, "save_arrays", save)
    trial.fleet.spoil = lambda route, fields: order.append(route)
    with trial.living(port):
        trial.fleet.wait_for_answers(1)
    assert order.index("pull-messages") < order.index(("kept", True, True)) < order.index("pull-object")
    assert order.index("pull-object") < order.index(("kept", True, False)) < order.index("confirm-message-received")


def test_a_message_whose_objects_the_server_denies_is_refused_once(trial, port):
    enrolled(trial, port)
    trial.fleet.spoil = lambda route, fields: (404, b"", {}) if route == "pull-object" else None
    with trial.living(port):
        _, (_, _, _, error) = trial.answer_to(trial.ask())
    assert "the server says no (404)" in error


class Death(BaseException):
    """What a power cut looks like from inside."""


def dies(*given, **named):
    raise Death


@pytest.mark.parametrize("route", ["push-messages", "push-object"])
def test_an_answer_that_was_half_sent_is_sent_again_to_the_byte(route, trial, port):
    enrolled(trial, port)
    name = trial.ask()
    seen = []

    def cut(called, fields):
        seen.append((called, fields))
        if called == route:
            raise ConnectionError  # the handler dies, and the connection with it

    trial.fleet.spoil = cut
    living = trial.living(port)
    with living:
        until(lambda: any(called == route for called, _ in seen))
        living.node.stop.set()
    made = trial.home.pending()
    assert made.reply is not None
    trial.fleet.spoil = lambda *_: None
    with trial.living(port):
        metadata, _ = trial.answer_to(name)
    assert metadata["created_at"] == made.metadata["created_at"]
    sent = trial.fleet.objects[metadata["message_id"]]
    records = read_records(metadata["message_id"], {**trial.fleet.objects, metadata["message_id"]: sent})
    assert records["release"] == made.reply["release"]
    until(lambda: trial.home.pending() is None)


def test_the_same_query_again_gets_the_same_frame_under_another_salt(trial, port):
    with trial.living(port):
        until(lambda: trial.fleet.keys)
        names = [trial.ask(), trial.ask(ttl=61.0)]
        found = trial.fleet.wait_for_answers(2)
    releases = [read_records(found[n][0]["message_id"], found[n][1])["release"] for n in names]
    assert releases[0]["frame"] == releases[1]["frame"]
    assert releases[0]["salt"] != releases[1]["salt"]


def test_a_node_comes_back_with_its_name_and_says_so_by_a_heartbeat(trial, port):
    with trial.living(port):
        until(lambda: any(event == "online" for event, _ in trial.told))
    before = len(trial.fleet.calls)
    with trial.living(port):
        name = trial.ask()
        trial.answer_to(name)
    calls = trial.fleet.calls[before:]
    assert calls[0] == "send-node-heartbeat"
    assert {"activate-node", "register-node", "deactivate-node"}.isdisjoint(calls)
    assert trial.home.settings().node_id == 101


def test_a_server_that_forgot_its_nodes_gets_to_know_them_again(trial, port):
    with trial.living(port):
        until(lambda: trial.told)
        trial.fleet.keys.clear()
        trial.fleet.online.clear()
        until(lambda: trial.fleet.keys)
        trial.answer_to(trial.ask())
    assert trial.home.settings().node_id == 102


def test_a_key_that_was_revoked_ends_the_node_with_one_line(tmp_path):
    trial = Trial(tmp_path, enrolls=False)
    with serving(trial.front) as port, pytest.raises(Rejected, match="does not know the key of this node"):
        trial.node(port, node_id=5).run()
    assert len(trial.fleet.calls) < 10


@pytest.mark.parametrize("skew", [-3600.0, 3600.0])
def test_a_clock_that_is_wrong_by_an_hour_is_set_by_the_servers(skew, tmp_path):
    trial = Trial(tmp_path, skew=skew)
    with serving(trial.front) as port, trial.living(port) as living:
        until(lambda: trial.fleet.keys)
        metadata, (frame, *_) = trial.answer_to(trial.ask())
        assert frame is not None
    assert abs(living.node.link.clock.offset - skew) < 3
    assert abs(metadata["created_at"] - trial.fleet.now()) < 30


def test_a_server_that_is_away_for_a_while_costs_nothing(trial, monkeypatch):
    monkeypatch.setattr(
        nodes, "with_patience", lambda request, wait, **more: patience(request, wait, first=0.02, **more)
    )
    patience = __import__("fedkd.fleet.link", fromlist=["x"]).with_patience
    with serving(trial.front) as port, trial.living(port):
        until(lambda: trial.fleet.keys)
        trial.fleet.spoil = lambda route, fields: (503, b"", {})
        until(lambda: any(event == "away" for event, _ in trial.told))
        trial.fleet.spoil = lambda route, fields: None
        trial.answer_to(trial.ask())
    events = [event for event, _ in trial.told]
    assert events.count("away") == events.count("back") == 1


# What a server may get wrong.


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"kind": "train.weights"}, "this node answers 'query.release', got 'train.weights'"),
        ({"records": {"query": {"rows": 5}}}, "message without a query frame"),
        ({"records": query_records(b"nonsense")}, "CodecError"),
        ({"dst_node_id": 101, "run_id": RUN, "records": {"release": {"frame": b"x"}}}, "without a query frame"),
    ],
)  # fmt: skip
def test_what_is_not_in_the_protocol_is_refused_and_said(asked, sentence, trial, port):
    with trial.living(port):
        until(lambda: trial.fleet.keys)
        name = trial.fleet.ask(b"", **asked)
        _, (frame, _, client, error) = trial.answer_to(name)
        assert (frame, client) == (None, "1")
        assert sentence in error
        trial.ask(1)
        trial.fleet.wait_for_answers(2)
    assert [event for event, _ in trial.told if event in ("refused", "answered")] == ["refused", "answered"]


def test_an_object_that_was_changed_on_its_way_is_refused(trial, port):
    with trial.living(port):
        until(lambda: trial.fleet.keys)
        genuine = trial.fleet.pull_object

        def altered(fields, key):
            status, found = genuine(fields, key)
            return status, {**found, "object_content": found["object_content"] + b"!"}

        trial.fleet.pull_object = altered
        _, (_, _, _, error) = trial.answer_to(trial.ask())
    assert "not what its name says" in error


def test_an_object_that_never_comes_is_refused(trial, port):
    with trial.living(port):
        until(lambda: trial.fleet.keys)
        trial.fleet.pull_object = lambda fields, key: (200, {})
        _, (_, _, _, error) = trial.answer_to(trial.ask())
    assert "is not there" in error


@pytest.mark.parametrize("body", [b"\xff" * 30, b"<html>busy</html>", b"\x12\x00"])
def test_nonsense_instead_of_messages_is_survived(body, trial, port):
    with trial.living(port):
        until(lambda: trial.fleet.keys)
        trial.fleet.spoil = lambda route, fields: (200, body, {}) if route == "pull-messages" else None
        until(lambda: any(event == "odd" for event, _ in trial.told))
        trial.fleet.spoil = lambda route, fields: None
        trial.answer_to(trial.ask())


def test_a_server_that_wants_an_object_that_is_none_of_the_answers_gets_nothing_more(trial, port):
    enrolled(trial, port)
    pushed = []
    trial.fleet.push_messages = lambda fields, key: (200, {"objects_to_push": ["ab" * 32], "session_id": "1"})
    trial.fleet.push_object = lambda fields, key: pushed.append(fields) or (200, {"stored": True})
    trial.ask()
    with trial.living(port):
        until(lambda: any("does not have" in str(facts) for event, facts in trial.told if event == "odd"))
    assert not pushed


def test_a_run_that_is_over_is_let_go(trial, port):
    enrolled(trial, port)
    trial.ask()
    trial.fleet.over.add(RUN)
    with trial.living(port):
        until(lambda: any(event == "over" for event, _ in trial.told))
    assert trial.home.pending() is None
    assert not trial.fleet.answers


def test_a_message_that_is_too_old_is_not_answered(trial, port):
    enrolled(trial, port)
    trial.ask(created_at=trial.fleet.now() - 100)
    with trial.living(port):
        until(lambda: any(event == "expired" for event, _ in trial.told))
    assert not trial.fleet.answers


def test_once_ends_when_the_run_is_over(trial, port):
    enrolled(trial, port)
    name = trial.ask()
    node = trial.node(port)
    thread = threading.Thread(target=lambda: trial.told.append(("count", {"n": node.run(once=True)})), daemon=True)
    thread.start()
    trial.answer_to(name)
    trial.fleet.over.add(RUN)
    thread.join(20)
    assert trial.told[-1] == ("count", {"n": 1})


def test_the_terms_of_a_run_come_from_the_server_and_those_of_the_node_from_its_owner(trial, port):
    with trial.living(port, **{"require-protect": "any"}):
        until(lambda: trial.fleet.keys)
        _, (_, _, _, error) = trial.answer_to(trial.ask())
    assert error == "ConfigError: this node answers only with protect = any, the run has protect = 'none'"


def test_a_run_that_asks_for_more_than_was_announced_is_refused(trial, port):
    trial.fleet.config = CONFIG.model_copy(update={"rounds": 500})
    with trial.living(port):
        until(lambda: trial.fleet.keys)
        _, (_, _, _, error) = trial.answer_to(trial.ask())
    assert error.endswith("rounds = 500, this node's owner agreed to 2 at most: join again to agree anew")


def test_a_run_config_of_nonsense_is_refused(trial, port):
    trial.fleet.config = {"rounds": 0, "resolved": True}
    with trial.living(port):
        until(lambda: trial.fleet.keys)
        _, (_, _, _, error) = trial.answer_to(trial.ask())
    assert error.startswith("ConfigError: rounds must be at least 1, got 0")


# The folder.


def test_two_processes_cannot_be_one_node(trial):
    with (
        trial.home.locked(),
        pytest.raises(ConfigError, match=f"another process .{os.getpid()}. is the node"),
        trial.home.locked(),
    ):
        pass


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match="cannot write to the node's folder"),
        Home(tmp_path / "file" / "home").locked(),
    ):
        pass


def test_a_full_disk_ends_the_node_before_it_answers_what_it_could_not_remember(trial, port, monkeypatch):
    enrolled(trial, port)
    trial.ask()

    def full(*given, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedkd.fleet.home.save_arrays", full)
    with pytest.raises(ConfigError, match="No space left"):
        trial.node(port).run()
    assert "push-messages" not in trial.fleet.calls


@pytest.mark.parametrize("content", [b"", b"x" * 100])
def test_a_damaged_memory_of_a_message_is_forgotten(content, trial):
    trial.home.path.mkdir()
    trial.home.keep(Pending({"run_id": 1}, b"frame"))
    (trial.home.path / "pending.safetensors").write_bytes(content)
    assert trial.home.pending() is None
    assert trial.home.pending() is None


def test_what_a_node_is_busy_with_is_kept_as_it_is(trial):
    trial.home.path.mkdir()
    for pending in (
        Pending({"run_id": 2**64 - 1, "created_at": 1.1}, b"frame", 3),
        Pending({"run_id": 1}, error="CodecError: why"),
        Pending({"run_id": 1}, reply={"release": {"frame": b"\0f", "salt": b"\1" * 16, "accuracy": 0.5}}),
        Pending({"run_id": 1}, reply={"refusal": {"client": "7", "error": "why"}}),
    ):
        trial.home.keep(pending)
        found = trial.home.pending()
        assert dataclasses.replace(found, frame=b"") == dataclasses.replace(pending, frame=b"")
        assert pending.reply is not None or found.frame == pending.frame
        assert str(found.reply) == str(pending.reply)  # also the order, on which the bytes depend


def test_waiting_grows_with_idleness_within_bounds():
    pace = Pace(0.5, 10.0)
    assert [pace.after(idle) for idle in (0, 5, 20, 60, 1000)] == [0.5, 0.5, 2.0, 6.0, 10.0]


def test_a_line_of_what_happens_cannot_move_the_terminal():
    answered = {"round": "2", "bytes": 10_100, "seconds": 1.25}
    assert sentence("answered", answered) == "round 2  answered, 10.1 kB, 1.2 s"
    told = sentence("answered", {**answered, "memory": (67_000_000, 75_000_000)})
    assert told == "round 2  answered, 10.1 kB, 1.2 s, memory 67 MB, at most 75 MB"
    said = sentence("refused", {"round": "\x1b[2J", "error": "no"})
    assert said == "round ?  refused: no"


def test_a_node_knows_how_much_memory_it_holds(tmp_path):
    now, most = resident.memory()
    assert 10_000_000 < now <= most
    assert resident.memory(tmp_path / "not-linux") is None
    (tmp_path / "odd").write_text("VmRSS:\t12 kB\n")
    assert resident.memory(tmp_path / "odd") is None
