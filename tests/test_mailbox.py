"""Answers out of a SuperLink's grid, one spoiled, late, lost or false among good ones."""

from types import SimpleNamespace

import httpx
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedResponse, ObjectTree, PullObjectResponse
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid.http_grid import HttpGrid

from fedkd.flower.mailbox import BATCH, MAX_OBJECTS, Batched, OneByOne, Spoiled, mailbox
from fedkd.flower.strategy import GridExchange


class Center:
    """What a SuperLink knows of a run's answers, and how it tells it: each once."""

    def __init__(self):
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
        self.waiting, self.objects, self.calls, self.confirmed = {}, {}, [], []
        self.fails = lambda route: False

    def post(self, asked, content, *, says=None):
        """Lay down the answer to ``asked``; the object may say that it answers another message."""
        question = Message(RecordDict(), 7, "query.release")
        question.metadata.__dict__["_message_id"] = says or asked
        reply = Message(content, reply_to=question)
        reply.metadata.__dict__["_message_id"] = reply.object_id
        envelope = message_to_proto(reply)
        envelope.ClearField("content")
        envelope.metadata.reply_to_message_id = asked
        self.objects |= {name: part.deflate() for name, part in get_all_nested_objects(reply).items()}
        self.waiting[asked] = (envelope, get_object_tree(reply))
        return reply.object_id

    def _told(self, route):
        self.calls.append(route)
        if self.fails(route):
            raise httpx.ReadTimeout("slow")

    def PullMessages(self, request):
        found = [self.waiting.pop(asked) for asked in request.message_ids if asked in self.waiting]
        self._told("PullMessages")
        return PullAppMessagesResponse(
            messages_list=[envelope for envelope, _ in found], message_object_trees=[tree for _, tree in found]
        )

    def PullObject(self, request):
        self._told("PullObject")
        content = self.objects.get(request.object_id)
        if content is None:
            return PullObjectResponse(object_found=False)
        return PullObjectResponse(object_found=True, object_available=content != b"", object_content=content)

    def ConfirmMessageReceived(self, request):
        self._told("ConfirmMessageReceived")
        self.confirmed.append(request.message_object_id)
        return ConfirmMessageReceivedResponse()


class CenterGrid:
    """As much of Flower's HttpGrid as a mailbox uses."""

    def __init__(self, center):
        self.center, self.node, self.run = center, Node(node_id=1), SimpleNamespace(run_id=1)

    _runtime_client = property(lambda self: self.center)


@pytest.fixture
def center():
    return Center()


def record(text="x"):
    return RecordDict({"release": ConfigRecord({"frame": text.encode()})})


def take(box, *ids):
    return {
        one.asked if isinstance(one, Spoiled) else one.metadata.reply_to_message_id: one for one in box.take(set(ids))
    }


def frame(message):
    return message.content.config_records["release"]["frame"]


def test_many_answers_come_in_few_calls_and_each_once(center):
    box, ids = mailbox(CenterGrid(center)), [f"m{k}" for k in range(2 * BATCH + 1)]
    for asked in ids[:20]:
        center.post(asked, record(asked))
    found = take(box, *ids)
    assert {asked: frame(message) for asked, message in found.items()} == {asked: asked.encode() for asked in ids[:20]}
    assert center.calls.count("PullMessages") == 3
    assert len(center.confirmed) == 20
    assert take(box, *ids[20:]) == {}


def test_a_spoiled_answer_costs_its_sender_only(center):
    box = mailbox(CenterGrid(center))
    for asked in "abc":
        name = center.post(asked, record(asked))
        if asked == "b":
            center.objects[name] = center.objects[name][:-3] + b"\xff\xff\xff"
    found = take(box, "a", "b", "c")
    assert isinstance(found["b"], Spoiled)
    assert "malformed reply" in found["b"].why
    assert (frame(found["a"]), frame(found["c"])) == (b"a", b"c")


def test_nobody_waits_for_the_upload_of_another(center):
    box = mailbox(CenterGrid(center))
    name = center.post("slow", record("slow"))
    whole, center.objects[name] = center.objects[name], b""
    center.post("quick", record("quick"))
    assert set(take(box, "slow", "quick")) == {"quick"}
    assert take(box, "slow") == {}
    center.objects[name] = whole
    assert frame(take(box, "slow")["slow"]) == b"slow"


def test_an_answer_that_was_announced_and_never_sent_says_so(center):
    box = mailbox(CenterGrid(center))
    name = center.post("a", record())
    center.objects[name] = b""
    assert take(box, "a") == {}
    del center.objects[name]  # as when the time for an upload is over
    assert take(box, "a")["a"].why == "the answer was announced and never sent in full"


def test_an_answer_does_not_take_the_place_of_another_nodes(center):
    """The SuperLink looks at the envelope only; the object in it is what the sender made it."""
    box = mailbox(CenterGrid(center))
    center.post("liar", record("false"), says="honest")
    center.post("honest", record("true"))
    found = take(box, "liar", "honest")
    assert "another node was asked" in found["liar"].why
    assert frame(found["honest"]) == b"true"


@pytest.mark.parametrize("route", ["PullObject", "ConfirmMessageReceived"])
def test_what_a_network_error_interrupts_is_fetched_at_the_next_look(center, route):
    box = mailbox(CenterGrid(center))
    for asked in "abc":
        center.post(asked, record(asked))
    center.fails = lambda called: called == route and center.calls.count(route) == 2
    found = take(box, "a", "b", "c")
    assert len(found) < 3
    found |= take(box, *({"a", "b", "c"} - found.keys()))
    assert {asked: frame(message) for asked, message in found.items()} == {"a": b"a", "b": b"b", "c": b"c"}


def test_a_superlink_that_is_away_is_waited_for(center):
    box = mailbox(CenterGrid(center))
    center.fails = lambda called: True
    assert take(box, "a") == {}
    center.fails = lambda called: False
    center.post("a", record("a"))
    assert frame(take(box, "a")["a"]) == b"a"


def test_an_answer_of_very_many_objects_is_not_fetched(center):
    box = mailbox(CenterGrid(center))
    center.post("a", record())
    envelope, _ = center.waiting["a"]
    tree = ObjectTree(object_id="0", children=[ObjectTree(object_id=str(k)) for k in range(1, MAX_OBJECTS + 1)])
    center.waiting["a"] = (envelope, tree)
    assert f"more than {MAX_OBJECTS} objects" in take(box, "a")["a"].why
    assert center.calls == ["PullMessages"]


def test_one_by_one_an_answer_does_not_take_the_place_of_another_nodes():
    question = Message(RecordDict(), 7, "query.release")
    question.metadata.__dict__["_message_id"] = "honest"
    grid = SimpleNamespace(pull_messages=lambda ids: [Message(record(), reply_to=question)])
    (found,) = OneByOne(grid).take(["liar"])
    assert found == Spoiled("liar", "malformed reply (it answers a message that another node was asked)")


def test_flowers_grid_has_what_the_mailbox_uses():
    """These names are no public interface of Flower's: an upgrade that changes them fails here."""
    grid = HttpGrid(token="x")
    assert isinstance(mailbox(grid), Batched)
    assert isinstance(HttpGrid._runtime_client, property)
    for name in ("PullMessages", "PullObject", "ConfirmMessageReceived"):
        assert callable(getattr(RuntimeHttpClient, name))


def test_a_message_that_flower_does_not_take_is_silence_and_no_error():
    grid = SimpleNamespace(
        get_node_ids=lambda: [1, 2], push_messages=lambda messages: ["m1", None], pull_messages=lambda ids: []
    )
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    exchange = GridExchange(grid, ttl=5.0)
    assert set(exchange.ask(1, b"frame", {}, {})) == {"node-1", "node-2"}
    assert exchange.open(1) == 1
