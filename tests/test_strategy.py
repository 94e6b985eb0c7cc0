"""Flower's messages and our loop, on a grid that lives in this process: what a Flower app that adopts us would see."""

import uuid
import zlib

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

import fedkd
from fedkd.client import Answer
from fedkd.config import Config
from fedkd.errors import QuorumError
from fedkd.flower import messages
from fedkd.flower.apps import client
from fedkd.flower.strategy import FederatedDistillation, GridExchange
from fedkd.frames import peek, varint

CONFIG = Config(
    clients=3, rounds=2, learner="logistic", student="mlp", expertise="uniform", distill_epochs=3, local_epochs=1,
    pooled=False, deadline=5.0, grace=5.0,
)  # fmt: skip


class HereGrid(Grid):
    """Calls the ClientApp on the spot; ``tamper(message, reply)`` may spoil an answer."""

    def __init__(self, config, state, tamper=lambda message, reply: [reply]):
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
        self._run, self.tamper, self.replies = Run.create_empty(run_id=1), tamper, {}
        self.contexts = {
            100 + k: Context(
                1, 100 + k, {"partition-id": k, "state-dir": str(state)}, RecordDict(), config.to_run_config()
            )
            for k in range(config.clients)
        }

    run = property(lambda self: self._run)

    def set_run(self, run):
        self._run = run

    def get_node_ids(self):
        return list(self.contexts)

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def push_messages(self, messages):
        ids = []
        for message in messages:
            key = uuid.uuid4().hex
            ids.append(key)
            message.metadata.__dict__["_message_id"] = key
            reply = client(message, self.contexts[message.metadata.dst_node_id])
            self.replies[key] = list(self.tamper(message, reply))
        return ids

    def pull_messages(self, message_ids):
        found = []
        for key in list(message_ids):
            made = self.replies.pop(key, [])
            if made and made[0] is RuntimeError:
                raise AttributeError("malformed reply")
            found += made
        return found

    def send_and_receive(self, messages, *, timeout=None):
        return self.pull_messages(self.push_messages(messages))


def only_first(spoil):
    """Return a tamper that spoils the answers of node 100 and leaves the others alone."""
    return lambda message, reply: spoil(message, reply) if message.metadata.dst_node_id == 100 else [reply]


def test_a_flower_app_can_adopt_the_strategy_and_gets_a_student(tmp_path):
    result = FederatedDistillation(CONFIG).start(grid=HereGrid(CONFIG, tmp_path))
    assert result.summary["scoreboard"]["student"] > 0.5
    assert [report.round for report in result.reports] == [1, 2]
    assert result.summary["privacy"]["guarantee"] == "NONE"
    assert set(result.reports[0].clients) == {"0", "1", "2"}


def test_bytes_are_those_that_flower_serializes(tmp_path):
    result = FederatedDistillation(CONFIG).start(grid=HereGrid(CONFIG, tmp_path))
    row = result.reports[0].clients["0"]
    frame = 36 + 2 + 400 * 10 * 2
    assert frame < row["bytes_up"] < frame + 1500
    assert result.reports[1].clients["0"]["bytes_down"] > result.reports[0].clients["0"]["bytes_down"] + 400 * 10 * 2


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda m, r: [Message(Error(2, "boom"), reply_to=m)], "Flower error 2: boom"),
        (lambda m, r: [RuntimeError], "malformed reply (AttributeError)"),
        (lambda m, r: [Message(RecordDict(), reply_to=m)], "without a release frame"),
        (lambda m, r: [Message(RecordDict({"metrics": MetricRecord({"a": 1})}), reply_to=m)], "without a release"),
        (lambda m, r: [], "no answer in time"),
    ],
)
def test_whatever_a_client_sends_costs_only_itself(spoil, sentence, tmp_path):
    config = CONFIG.model_copy(update={"rounds": 1, "deadline": 0.5, "grace": 0.5})
    result = FederatedDistillation(config).start(grid=HereGrid(config, tmp_path, only_first(spoil)))
    rows = result.reports[0].clients
    failed = [row for row in rows.values() if row["status"] != "answered"]
    assert len(failed) == 1
    assert sentence in failed[0]["error"]
    assert result.reports[0].metrics["answered"] == 2


def test_a_client_that_answers_twice_counts_once(tmp_path):
    config = CONFIG.model_copy(update={"rounds": 1})
    grids = [HereGrid(config, tmp_path / name, tamper) for name, tamper in (
        ("a", lambda m, r: [r]), ("b", only_first(lambda m, r: [r, r])))]  # fmt: skip
    first, second = (FederatedDistillation(config).start(grid=grid).reports[0] for grid in grids)
    assert first.metrics == second.metrics


def test_a_client_cannot_answer_for_another_that_is_there(tmp_path):
    def steal(message, reply):
        frame = bytearray(messages.read_answer(reply.content)[0])
        frame[18 + sum(len(varint(number)) for number in (10, 400, peek(bytes(frame)).round))] = 1  # the client's key
        frame[14:18] = zlib.crc32(bytes(frame[:14] + frame[18:])).to_bytes(4, "little")
        return [Message(messages.answer_content(Answer(bytes(frame), None)), reply_to=message)]

    spoil = lambda m, r: steal(m, r) if m.metadata.dst_node_id == 102 else [r]  # noqa: E731
    rows = FederatedDistillation(CONFIG).start(grid=HereGrid(CONFIG, tmp_path, spoil)).reports[1].clients
    assert rows["1"]["status"] == "answered"
    failed = [row for row in rows.values() if row["status"] == "failed"]
    assert len(failed) == 1
    assert "in the name of client 1" in failed[0]["error"]


@pytest.mark.parametrize("claimed", [float("nan"), float("inf"), 7.0, -1.0])
def test_an_impossible_accuracy_is_not_believed(claimed, tmp_path):
    def boast(message, reply):
        frame = messages.read_answer(reply.content)[0]
        return [Message(messages.answer_content(Answer(frame, claimed)), reply_to=message)]

    rows = FederatedDistillation(CONFIG).start(grid=HereGrid(CONFIG, tmp_path, only_first(boast))).reports[0].clients
    assert rows["0"]["local"] is None
    assert rows["1"]["local"] is not None


def test_a_client_that_raises_says_what_kind_of_error_and_no_more(tmp_path, monkeypatch):
    def leak(*arguments):
        raise ValueError("patient 17 has label 3")

    monkeypatch.setattr("fedkd.site.answer", leak)
    with pytest.raises(QuorumError) as caught:
        FederatedDistillation(CONFIG).start(grid=HereGrid(CONFIG, tmp_path))
    assert "ValueError" in str(caught.value)
    assert "patient" not in str(caught.value)


def test_too_few_nodes_is_a_clear_error(tmp_path):
    grid = HereGrid(CONFIG, tmp_path)
    grid.contexts = {}
    config = CONFIG.model_copy(update={"deadline": 0.05, "grace": 0.05})
    with pytest.raises(QuorumError, match="0 of 3 clients joined within 0.05 s"):
        FederatedDistillation(config).start(grid=grid)


def test_no_message_carries_data_labels_weights_or_gradients():
    answer = Answer(b"frame", 0.5)
    names = {
        "query": messages.query_content(b"frame", 3),
        "answer": messages.answer_content(answer),
        "error": messages.error_content(1, "why"),
    }
    fields = {
        name: sorted((record, *sorted(value)) for record, value in content.items()) for name, content in names.items()
    }
    assert fields == {
        "query": [("query", "acknowledged", "frame")],
        "answer": [("release", "accuracy", "frame", "salt")],
        "error": [("refusal", "client", "error")],
    }


def test_an_answer_costs_its_frame_and_little_else():
    frame = bytes(80)
    assert messages.size_of(messages.answer_content(Answer(frame, None))) < 80 + 500


def test_a_query_carries_what_is_acknowledged_and_nothing_when_nothing_is():
    assert messages.read_query(Message(messages.query_content(b"frame"), 1, messages.QUERY)) == (b"frame", 0)
    assert messages.read_query(Message(messages.query_content(b"frame", 7), 1, messages.QUERY)) == (b"frame", 7)
    for odd in ("x", -1, 0.5):
        content = RecordDict({"query": ConfigRecord({"frame": b"frame", "acknowledged": odd})})
        assert messages.read_query(Message(content, 1, messages.QUERY)) == (b"frame", 0)


def test_the_student_predicts_distributions(tmp_path):
    student = FederatedDistillation(CONFIG).start(grid=HereGrid(CONFIG, tmp_path)).student
    p = student.predict(np.zeros((4, 1, 8, 8), np.float32))
    assert p.shape == (4, 10)
    assert p.sum(axis=1) == pytest.approx(np.ones(4), abs=1e-5)


def test_the_public_names_are_there_without_loading_flower():
    assert fedkd.FederatedDistillation is FederatedDistillation
    assert fedkd.Config is Config
    with pytest.raises(AttributeError):
        _ = fedkd.nothing


def test_a_node_may_hold_its_own_data_under_its_own_path(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "mine.npz", x=rng.random((30, 1, 8, 8), dtype=np.float32), y=rng.integers(0, 10, 30))
    grid = HereGrid(CONFIG, tmp_path)
    grid.contexts[100].node_config["data"] = f"npz:{tmp_path / 'mine.npz'}"
    rows = FederatedDistillation(CONFIG).start(grid=grid).reports[0].clients
    assert rows["0"]["status"] == "answered"
    assert rows["0"]["local"] is None  # a device has no test set
    assert rows["1"]["local"] is not None


def test_own_data_of_another_kind_is_refused_and_the_others_go_on(tmp_path):
    np.savez(tmp_path / "mine.npz", x=np.zeros((30, 5), np.float32), y=np.arange(30) % 10)
    grid = HereGrid(CONFIG, tmp_path)
    grid.contexts[100].node_config["data"] = f"npz:{tmp_path / 'mine.npz'}"
    rows = FederatedDistillation(CONFIG).start(grid=grid).reports[0].clients
    assert rows["node-64"]["error"] == "DataError (see the device's log)"  # its text may name the device's paths
    assert rows["1"]["status"] == "answered"


def test_a_device_with_data_of_its_own_takes_part_in_no_attack(tmp_path):
    np.savez(tmp_path / "mine.npz", x=np.zeros((30, 1, 8, 8), np.float32), y=np.arange(30) % 10)
    config = CONFIG.model_copy(update={"attack": "label_flip(share=1.0)"})
    grid = HereGrid(config, tmp_path)
    grid.contexts[100].node_config["data"] = f"npz:{tmp_path / 'mine.npz'}"
    rows = FederatedDistillation(config).start(grid=grid).reports[0].clients
    assert "is for simulations; this client has data of its own" in rows["node-64"]["error"]
    assert rows["1"]["status"] == "answered"


LEAN = {"rounds": 4, "select": "cache_miss(size=50, duration=50)", "transfer": "split(size=50)"}


def test_deltas_go_down_to_nodes_and_one_that_forgot_is_asked_again(tmp_path):
    def forget(message, reply):
        if message.metadata.group_id == "2":
            (tmp_path / "lean" / "0.safetensors").unlink()
        return [reply]

    full, lean = (CONFIG.model_copy(update={**LEAN, "broadcast": f"float32{way}"}) for way in ("", " | delta"))
    one = FederatedDistillation(full).start(grid=HereGrid(full, tmp_path / "full")).reports
    grid = HereGrid(lean, tmp_path / "lean", only_first(forget))
    two = FederatedDistillation(lean).start(grid=grid).reports
    assert all(row["status"] == "answered" for report in two for row in report.clients.values())
    down = [{name: row["bytes_down"] for name, row in report.clients.items()} for report in two]
    assert down[1] == {name: row["bytes_down"] for name, row in one[1].clients.items()}
    assert down[2]["1"] == down[2]["2"] < down[1]["1"] - 50 * 40 + 50
    assert down[2]["0"] == down[2]["1"] + down[1]["0"]
    assert down[3]["0"] == down[3]["1"] == down[2]["1"]
    assert two[1].metrics["student"] == one[1].metrics["student"]


def test_a_refusal_in_the_name_of_another_is_its_senders_own(tmp_path):
    def blame(message, reply):
        return [Message(messages.error_content(1, "send it in full"), reply_to=message)]

    lean = CONFIG.model_copy(update={**LEAN, "quorum": 0.5, "broadcast": "float32 | delta"})
    spoil = lambda m, r: blame(m, r) if m.metadata.dst_node_id == 102 and m.metadata.group_id != "1" else [r]  # noqa: E731
    reports = FederatedDistillation(lean).start(grid=HereGrid(lean, tmp_path, spoil)).reports
    for report in reports[1:]:
        assert report.clients["1"]["status"] == "answered"
        assert "in the name of client 1" in report.clients["2"]["error"]
    assert reports[3].clients["1"]["bytes_down"] == reports[3].clients["0"]["bytes_down"]


def test_a_refusal_binds_its_node_to_nobody():
    """Else a member could take away the ballot of a client that is away, or its name, with a line of text."""
    grid = OneAnswer()
    exchange = GridExchange(grid, ttl=9.0)
    grid.reply = messages.error_content("7", "no")
    exchange.ask(1, b"", {}, {})
    (refused,) = exchange.poll(1.0)
    assert (refused.client, refused.error) == ("node-64", "no")
    assert exchange._holders == {}
    exchange._names[100], exchange._holders["3"] = "3", 100
    exchange.ask(2, b"", {}, {})
    (refused,) = exchange.poll(1.0)
    assert refused.client == "3"


class OneAnswer(HereGrid):
    """A grid of one node, which gives ``reply`` to everything."""

    def __init__(self):
        super().__init__(CONFIG.model_copy(update={"clients": 1}), "", lambda asked, reply: [reply])

    def push_messages(self, asked):
        asked = list(asked)
        for message in asked:
            message.metadata.__dict__["_message_id"] = key = uuid.uuid4().hex
            self.replies[key] = [Message(self.reply, reply_to=message)]
        return [message.metadata.message_id for message in asked]


def test_nodes_that_are_told_the_same_share_one_message(tmp_path):
    lean = CONFIG.model_copy(update={**LEAN, "broadcast": "float32 | delta", "release": "argmax | delta"})
    grid, pushed = HereGrid(lean, tmp_path), []
    push = grid.push_messages
    grid.push_messages = lambda messages: push(pushed.extend(messages) or messages)
    FederatedDistillation(lean).start(grid=grid)
    assert [len({id(m.content) for m in pushed if m.metadata.group_id == str(r)}) for r in (1, 2, 3, 4)] == [1] * 4
