"""Our protobuf and our objects against Flower's own classes, which this test alone has on both sides."""

import hashlib
import inspect
import json
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto import fleet_pb2, heartbeat_pb2, message_pb2, recorddict_pb2, run_pb2
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd import envelope
from fedkd.client import Answer
from fedkd.errors import CodecError
from fedkd.fleet import identity, node, wire
from fedkd.fleet.objects import (
    Tree,
    decode_config,
    encode_config,
    name_of,
    pack,
    pack_message,
    pack_records,
    read_records,
    read_tree,
    unpack,
)
from fedkd.fleet.wire import SCHEMAS, decode, encode
from fedkd.flower import messages

VECTORS = Path(__file__).parent / "vectors" / "fleet.json"
KINDS = {1: "double", 4: "uint64", 8: "bool", 9: "string", 11: "message", 12: "bytes", 18: "sint64"}
HIGH = (1 << 64) - 1


def flowers(kind):
    """Return Flower's class of a schema."""
    *outer, last = kind.split(".")
    for module in (fleet_pb2, message_pb2, heartbeat_pb2, run_pb2, recorddict_pb2):
        for name, found in vars(module).items():
            if name == (outer or [last])[0] and hasattr(found, "DESCRIPTOR"):
                return getattr(found, last) if outer else found
    return {"Node": type(fleet_pb2.PullMessagesRequest().node), "Error": type(message_pb2.Message().error),
            "Scalar": type(run_pb2.Run().override_config["x"])}[kind]  # fmt: skip


@pytest.mark.parametrize("kind", SCHEMAS)
def test_every_field_is_flowers(kind):
    """An upgrade that renumbers, renames or retypes a field that we use fails here."""
    theirs = flowers(kind).DESCRIPTOR
    for number, field in SCHEMAS[kind].items():
        found = theirs.fields_by_number[number]
        assert (found.name, found.is_repeated) == (field.name, field.repeated)
        is_message = field.kind in SCHEMAS
        assert KINDS[found.type] == ("message" if is_message else field.kind)
        if is_message:
            assert found.message_type.full_name.removeprefix("flwr.proto.") == field.kind
        else:
            assert found.has_presence == field.present


def test_flowers_descriptors_are_those_that_this_was_written_for():
    """Also fields that we do not use: a new required one would not show above. See docs/nodes.md on upgrades."""
    files = (fleet_pb2, message_pb2, heartbeat_pb2, run_pb2, recorddict_pb2)
    digest = hashlib.sha256(b"".join(module.DESCRIPTOR.serialized_pb for module in files)).hexdigest()
    assert digest == json.loads(VECTORS.read_text())["descriptors"]


def test_routes_headers_and_numbers_are_flowers():
    from flwr.common import constant
    from flwr.supercore import constant as supercore

    routes = {path for method, path in PROTOBUF_REQUEST_TYPES if method == "POST" and path.startswith("/v1/fleet/")}
    assert routes == {f"/v1/fleet/{route}" for route in ROUTES}
    used = {word for word in ROUTES if f'"{word}"' in inspect.getsource(node)}
    assert used == set(ROUTES) - {"deactivate-node", "unregister-node", "get-fab"}
    for route in used:
        request = PROTOBUF_REQUEST_TYPES["POST", f"/v1/fleet/{route}"].DESCRIPTOR.name
        assert request in SCHEMAS
    assert (identity.KEY_HEADER, identity.SIGNATURE_HEADER, identity.TIME_HEADER) == (
        supercore.FLEET_HTTP_PUBLIC_KEY_HEADER, supercore.FLEET_HTTP_SIGNATURE_HEADER, constant.TIMESTAMP_HEADER,
    )  # fmt: skip
    assert constant.HEARTBEAT_MIN_INTERVAL <= node.HEARTBEAT <= constant.HEARTBEAT_MAX_INTERVAL
    assert messages.QUERY == envelope.QUERY


ROUTES = (
    "register-node", "activate-node", "deactivate-node", "unregister-node", "send-node-heartbeat", "pull-messages",
    "push-messages", "get-run", "get-fab", "push-object", "pull-object", "confirm-message-received",
)  # fmt: skip

METADATA = {
    "run_id": HIGH, "src_node_id": 1, "dst_node_id": HIGH - 1, "group_id": "3", "ttl": 60.5,
    "message_type": "query.release", "created_at": 1.8e9 + 0.125, "src_task_id": 0, "dst_task_id": 9,
}  # fmt: skip
SAMPLES = {
    "ActivateNodeRequest": {"public_key": b"-----BEGIN", "heartbeat_interval": 1800.0},
    "SendNodeHeartbeatRequest": {"node": {"node_id": HIGH}, "heartbeat_interval": 1800.0},
    "PullMessagesRequest": {"node": {"node_id": 5}},
    "PushObjectRequest": {
        "node": {"node_id": 5}, "run_id": 6, "object_id": "ab", "object_content": b"\0x", "session_id": "s",
    },
    "GetRunRequest": {"node": {"node_id": 0}, "run_id": 7},
    "Message": {"metadata": METADATA, "content": {}},
    "PushMessagesRequest": {
        "node": {"node_id": 5},
        "messages_list": [{"metadata": METADATA, "content": {}}],
        "message_object_trees": [{"object_id": "a", "children": [{"object_id": "b", "children": [{}]}]}],
        "clientapp_runtime_list": [0.0, 1.5],
    },
    "Error": {"code": -3, "reason": "no"},
    "PushMessagesResponse": {"objects_to_push": ["", "ab"], "session_id": "s"},
    "GetRunResponse": {
        "run": {
            "run_id": 3,
            "fab_hash": "f",
            "override_config": [
                {"key": "a", "value": {"sint64": -1}}, {"key": "b", "value": {"double": 0.0}},
                {"key": "c", "value": {"bool": False}}, {"key": "d", "value": {"string": "é"}},
            ],
        }
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", SAMPLES)
def test_our_bytes_are_flowers_bytes(kind):
    ours = encode(kind, SAMPLES[kind])
    read = flowers(kind).FromString(ours)
    assert read.SerializeToString(deterministic=True) == ours
    assert encode(kind, decode(kind, read.SerializeToString(deterministic=True))) == ours


def test_golden_bytes_are_still_the_same():
    """Made by Flower's classes; any other implementation of a node can check itself against them."""
    golden = json.loads(VECTORS.read_text())
    for kind, made in golden["messages"].items():
        assert encode(kind, SAMPLES[kind]).hex() == made, kind
    for name, entry in golden["objects"].items():
        records = {r: {k: bytes.fromhex(v["hex"]) if isinstance(v, dict) else v for k, v in values.items()}
                   for r, values in entry["records"].items()}  # fmt: skip
        parcel = pack_records(records)
        assert {k: v.hex() for k, v in parcel.objects.items()} == entry["objects"], name


def test_a_zero_in_a_oneof_is_written_and_read():
    for kind, zero in (("sint64", 0), ("bool", False), ("double", 0.0), ("string", ""), ("bytes", b"")):
        ours = encode("ConfigRecordValue", {kind: zero})
        assert recorddict_pb2.ConfigRecordValue.FromString(ours).WhichOneof("value") == kind
        assert decode("ConfigRecordValue", ours) == {kind: zero}
    assert decode("Metadata", b"").keys().isdisjoint({"src_task_id", "dst_task_id"})


# Objects.

PLAIN = {
    "query": {"frame": b"\0\1", "acknowledged": 3},
    "text": {"a": "é", "b": True, "c": -5, "d": 0.5, "e": b""},
}


def whole(content):
    return {name: part.deflate() for name, part in get_all_nested_objects(content).items()}


def test_flower_reads_our_records():
    parcel = pack_records(PLAIN)
    read = inflate_object_from_contents(parcel.tree.name, dict(parcel.objects))
    assert {name: dict(record) for name, record in read.config_records.items()} == PLAIN


def test_we_read_flowers_message_and_name_its_objects_alike():
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    message = Message(
        RecordDict({name: ConfigRecord(dict(values)) for name, values in PLAIN.items()}), 7, envelope.QUERY
    )
    objects = whole(message)
    assert read_records(message.object_id, objects) == PLAIN
    assert all(name_of(content) == name for name, content in objects.items())


def test_flower_reads_our_reply():
    records = envelope.answer_records(Answer(b"frame", 0.5))
    parcel = pack_message({**METADATA, "reply_to_message_id": "ab" * 32}, records)
    read = inflate_object_from_contents(parcel.tree.name, dict(parcel.objects))
    assert messages.read_answer(read.content) == (b"frame", 0.5, None, None)
    assert read.metadata.src_task_id == 0
    pushed = encode("Message", {"metadata": {**METADATA, "message_id": parcel.tree.name}, "content": {}})
    taken = message_from_proto(message_pb2.Message.FromString(pushed))
    assert taken.has_content()
    assert taken.metadata.message_id == parcel.tree.name
    assert message_to_proto(taken).metadata.ttl == METADATA["ttl"]


@pytest.mark.parametrize("size", [envelope.LARGE, envelope.LARGE + 1, 2 * 5 * 1024 * 1024 + 7])
def test_large_frames_go_both_ways(size):
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    frame = bytes(size - 3) + b"end"  # two equal chunks of zeros are one object
    parcel = pack_message(METADATA, envelope.answer_records(Answer(frame, None)))
    read = inflate_object_from_contents(parcel.tree.name, dict(parcel.objects))
    assert messages.read_answer(read.content)[0] == frame
    query = Message(messages.query_content(frame, 2), 7, messages.QUERY)
    assert envelope.read_query_records(read_records(query.object_id, whole(query))) == (frame, 2)
    assert (len(parcel.objects) > 3) is (size > envelope.LARGE)


def test_names_of_a_tree_come_children_first_and_once():
    tree = Tree("r", (Tree("a", (Tree("c"),)), Tree("b", (Tree("c"),))))
    assert tree.names() == ["c", "a", "b", "r"]


# Bytes from elsewhere.


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(SCHEMAS)), st.binary(max_size=60))
def test_no_bytes_raise_anything_but_our_error(kind, content):
    try:
        found = decode(kind, content)
    except CodecError:
        return
    flowers(kind).FromString(content)  # what we read, Flower reads
    assert set(found) <= {field.name for field in SCHEMAS[kind].values()}


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(max_size=5), st.one_of(
    st.integers(-(1 << 63), (1 << 63) - 1), st.floats(allow_nan=False), st.booleans(), st.text(max_size=5),
    st.binary(max_size=9)), max_size=5))  # fmt: skip
def test_config_records_go_both_ways(values):
    body = encode_config(values)
    assert decode_config(body) == values
    assert ConfigRecord(values).deflate() == pack("ConfigRecord", body, [])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"\x0a", "ends within a number"), (b"\x0a\x05ab", "field of 5 bytes, 2 left"), (b"\x0b", "wire type 3"),
        (b"\x00\x00", "field number 0"), (b"\x08" + b"\xff" * 10, "more than 64 bits"),
        (b"\x08\x01", "wire type 0, expected 2"),
        (b"\x0a\x02\xff\xfe", "not UTF-8"),
    ],
)  # fmt: skip
def test_what_is_malformed_is_said(content, sentence):
    with pytest.raises(CodecError, match=sentence):
        decode("ObjectTree", content)


def test_depth_and_count_are_bounded():
    deep = b""
    for _ in range(wire.MAX_DEPTH + 1):
        deep = b"\x12" + wire._varint(len(deep)) + deep
    with pytest.raises(CodecError, match="nested deeper"):
        decode("ObjectTree", deep)
    with pytest.raises(CodecError, match="more than 10000 entries"):
        decode("ObjectTree", b"\x12\x00" * 10_001)
    many = {"object_id": "00" * 32, "children": [{"object_id": f"{i:064x}"} for i in range(1, 1001)]}
    with pytest.raises(CodecError, match="1001 objects"):
        read_tree(decode("ObjectTree", encode("ObjectTree", many)))
    with pytest.raises(CodecError, match="not a SHA-256"):
        read_tree(decode("ObjectTree", encode("ObjectTree", {"object_id": "../../etc/passwd"})))


@pytest.mark.parametrize(
    "content", [b"", b"Message  0", b"Message  1\0", b"Message 0\0", b"\xff  0\0", b"Message a b 0\0"]
)
def test_an_object_with_a_wrong_head_is_refused(content):
    with pytest.raises(CodecError):
        unpack(content)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda o, names: o.pop(names[0]), lambda o, names: o.update({names[1]: pack("RecordDict", b"[]", [])}),
        lambda o, names: o.update({names[1]: pack("RecordDict", b"{", [])}),
        lambda o, names: o.update({names[1]: pack("RecordDict", b'{"query": 7}', [])}),
        lambda o, names: o.update({names[2]: pack("Message", b"", [])}),
        lambda o, names: o.update({names[2]: pack("Array", b"", [names[1]])}),
    ],
)  # fmt: skip
def test_a_message_whose_objects_do_not_fit_is_refused(spoil):
    parcel = pack_message(METADATA, envelope.query_records(b"frame"))
    objects = dict(parcel.objects)
    spoil(objects, parcel.tree.names())
    with pytest.raises(CodecError):
        envelope.read_query_records(read_records(parcel.tree.name, objects))


def test_what_does_not_fit_a_schema_is_not_written():
    with pytest.raises(CodecError, match="no field 'nodes'"):
        encode("PullMessagesRequest", {"nodes": {}})
    for number in (-1, 1 << 64):
        with pytest.raises(CodecError, match="64 bits"):
            encode("Node", {"node_id": number})


def make_vectors():
    """Write the golden bytes anew, by Flower's classes: ``python -c 'import test_wire; test_wire.make_vectors()'``."""
    files = (fleet_pb2, message_pb2, heartbeat_pb2, run_pb2, recorddict_pb2)
    digest = hashlib.sha256(b"".join(module.DESCRIPTOR.serialized_pb for module in files)).hexdigest()
    made = {kind: flowers(kind).FromString(encode(kind, SAMPLES[kind])).SerializeToString(deterministic=True).hex()
            for kind in SAMPLES}  # fmt: skip
    cases = {"query": {"query": {"frame": b"\0\1\2", "acknowledged": 3}}, "first": {"query": {"frame": b"FKD"}},
             "answer": {"release": {"frame": b"FKD", "salt": bytes(range(16)), "accuracy": 0.5}},
             "refusal": {"refusal": {"client": "7", "error": "ConfigError: why"}}}  # fmt: skip
    objects = {
        name: {
            "records": {
                r: {k: {"hex": v.hex()} if isinstance(v, bytes) else v for k, v in values.items()}
                for r, values in records.items()
            },
            "objects": {
                k: v.hex() for k, v in whole(RecordDict({r: ConfigRecord(v) for r, v in records.items()})).items()
            },
        }
        for name, records in cases.items()
    }
    text = json.dumps({"descriptors": digest, "messages": made, "objects": objects}, indent=1)
    VECTORS.write_text(text + "\n", encoding="utf-8")
