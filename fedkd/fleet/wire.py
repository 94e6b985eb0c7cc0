"""Protocol buffers as far as Flower's Fleet API needs them: messages are dicts, schemas are tables.

Written after the public encoding rules. ``tests/test_wire.py`` compares every schema with the descriptors of the
installed Flower and every byte with its classes, so that an upgrade which changes one of them fails loudly. What
comes from elsewhere is bounded in depth and count; whatever is malformed is a :class:`CodecError`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fedkd.errors import CodecError

Fields = dict[str, Any]
"""A message by its fields' names. What is absent reads as zero, empty or None; members of a oneof are left out."""

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
WIRE_TYPES = {"uint64": VARINT, "sint64": VARINT, "bool": VARINT, "double": FIXED64, "string": BYTES, "bytes": BYTES}
ZEROS = {"uint64": 0, "sint64": 0, "bool": False, "double": 0.0, "string": "", "bytes": b""}
MAX_DEPTH = 24
MAX_REPEATED = 10_000


@dataclass(frozen=True)
class Field:
    """One field of a message: a scalar ``kind`` or the name of a schema.

    A ``present`` one is told from a zero, as members of a oneof are: what is given is written, also zero.
    """

    name: str
    kind: str
    repeated: bool = False
    present: bool = False


Schema = Mapping[int, Field]


def _node(*more: tuple[str, str]) -> Schema:
    return {n: Field(name, kind) for n, (name, kind) in enumerate([("node", "Node"), *more], start=1)}


_RECORD = {1: "double", 2: "sint64", 3: "uint64", 4: "bool", 5: "string", 6: "bytes"}
_SCALAR = {1: "double", 6: "uint64", 8: "sint64", 13: "bool", 14: "string", 15: "bytes"}

SCHEMAS: dict[str, Schema] = {
    "Node": {1: Field("node_id", "uint64")},
    "RegisterNodeFleetRequest": {1: Field("public_key", "bytes")},
    "RegisterNodeFleetResponse": {1: Field("node_id", "uint64")},
    "ActivateNodeRequest": {1: Field("public_key", "bytes"), 2: Field("heartbeat_interval", "double")},
    "ActivateNodeResponse": {1: Field("node_id", "uint64")},
    "SendNodeHeartbeatRequest": _node(("heartbeat_interval", "double")),
    "SendNodeHeartbeatResponse": {1: Field("success", "bool")},
    "PullMessagesRequest": _node(),
    "PullMessagesResponse": {
        2: Field("messages_list", "Message", repeated=True),
        3: Field("message_object_trees", "ObjectTree", repeated=True),
    },
    "PushMessagesRequest": {
        1: Field("node", "Node"),
        2: Field("messages_list", "Message", repeated=True),
        3: Field("message_object_trees", "ObjectTree", repeated=True),
        4: Field("clientapp_runtime_list", "double", repeated=True),
    },
    "PushMessagesResponse": {3: Field("objects_to_push", "string", repeated=True), 4: Field("session_id", "string")},
    "PullObjectRequest": _node(("run_id", "uint64"), ("object_id", "string")),
    "PullObjectResponse": {
        1: Field("object_found", "bool"),
        2: Field("object_available", "bool"),
        3: Field("object_content", "bytes"),
    },
    "PushObjectRequest": _node(
        ("run_id", "uint64"), ("object_id", "string"), ("object_content", "bytes"), ("session_id", "string")
    ),
    "PushObjectResponse": {1: Field("stored", "bool")},
    "ConfirmMessageReceivedRequest": _node(("run_id", "uint64"), ("message_object_id", "string")),
    "ConfirmMessageReceivedResponse": {},
    "GetRunRequest": _node(("run_id", "uint64")),
    "GetRunResponse": {1: Field("run", "Run")},
    "Run": {
        1: Field("run_id", "uint64"),
        4: Field("override_config", "Run.OverrideConfigEntry", repeated=True),
        5: Field("fab_hash", "string"),
    },
    "Run.OverrideConfigEntry": {1: Field("key", "string"), 2: Field("value", "Scalar")},
    "Scalar": {n: Field(kind, kind, present=True) for n, kind in _SCALAR.items()},
    "ObjectTree": {1: Field("object_id", "string"), 2: Field("children", "ObjectTree", repeated=True)},
    "Message": {1: Field("metadata", "Metadata"), 2: Field("content", "RecordDict"), 3: Field("error", "Error")},
    "RecordDict": {},
    "Error": {1: Field("code", "sint64"), 2: Field("reason", "string")},
    "Metadata": {
        1: Field("run_id", "uint64"),
        2: Field("message_id", "string"),
        3: Field("src_node_id", "uint64"),
        4: Field("dst_node_id", "uint64"),
        5: Field("reply_to_message_id", "string"),
        6: Field("group_id", "string"),
        7: Field("ttl", "double"),
        8: Field("message_type", "string"),
        9: Field("created_at", "double"),
        10: Field("src_task_id", "uint64", present=True),
        11: Field("dst_task_id", "uint64", present=True),
    },
    "ConfigRecord": {1: Field("items", "ConfigRecord.Item", repeated=True)},
    "ConfigRecord.Item": {1: Field("key", "string"), 2: Field("value", "ConfigRecordValue")},
    "ConfigRecordValue": {n: Field(kind, kind, present=True) for n, kind in _RECORD.items()},
}
"""What we read and write, by Flower's names. Fields that are not here are skipped."""


def encode(kind: str, values: Mapping[str, Any]) -> bytes:
    """Return the message of ``kind`` with these fields, those of the lowest number first; zeros are left out."""
    schema, out = SCHEMAS[kind], bytearray()
    unknown = values.keys() - {field.name for field in schema.values()}
    if unknown:
        raise CodecError(f"{kind} has no field {sorted(unknown)[0]!r}")
    for number in sorted(schema):
        field = schema[number]
        value = values.get(field.name)
        if value is None:
            continue
        if field.repeated and WIRE_TYPES.get(field.kind) in (VARINT, FIXED64):
            if value:
                packed = b"".join(_scalar(field.kind, one) for one in value)
                out += _varint(number << 3 | BYTES) + _varint(len(packed)) + packed
            continue
        for one in value if field.repeated else [value]:
            if field.repeated or field.present or field.kind in SCHEMAS or one != ZEROS[field.kind]:
                out += _field(number, field, one)
    return bytes(out)


def decode(kind: str, content: bytes | memoryview) -> Fields:
    """Return the fields of a message of ``kind``; raise :class:`CodecError` if it is malformed."""
    return _decode(kind, memoryview(content), MAX_DEPTH)


def _decode(kind: str, content: memoryview, depth: int) -> Fields:
    if depth == 0:
        raise CodecError(f"protobuf message nested deeper than {MAX_DEPTH}")
    schema = SCHEMAS[kind]
    found: Fields = {
        field.name: [] if field.repeated else None if field.kind in SCHEMAS else ZEROS[field.kind]
        for field in schema.values()
        if not field.present
    }
    for number, wire, value in _parts(content):
        field = schema.get(number)
        if field is None:
            continue
        if field.repeated:
            if wire == BYTES and WIRE_TYPES.get(field.kind) == FIXED64:
                if len(value) % 8:
                    raise CodecError(f"{kind}.{field.name}: packed numbers of {len(value)} bytes")
                found[field.name] += [one for (one,) in struct.iter_unpack("<d", value)]
            else:
                found[field.name].append(_value(kind, field, wire, value, depth))
            if len(found[field.name]) > MAX_REPEATED:
                raise CodecError(f"{kind}.{field.name}: more than {MAX_REPEATED} entries")
        else:
            found[field.name] = _value(kind, field, wire, value, depth)
    return found


def _value(kind: str, field: Field, wire: int, value: Any, depth: int) -> Any:
    if wire != WIRE_TYPES.get(field.kind, BYTES):
        raise CodecError(f"{kind}.{field.name} has wire type {wire}, expected {WIRE_TYPES.get(field.kind, BYTES)}")
    if field.kind in SCHEMAS:
        return _decode(field.kind, value, depth - 1)
    match field.kind:
        case "string":
            try:
                return bytes(value).decode()
            except UnicodeDecodeError:
                raise CodecError(f"{kind}.{field.name} is not UTF-8") from None
        case "bytes":
            return bytes(value)
        case "double":
            return struct.unpack("<d", value)[0]
        case "bool":
            return value != 0
        case "sint64":
            return value >> 1 ^ -(value & 1)
    return value


def _parts(content: memoryview) -> Iterator[tuple[int, int, Any]]:
    """Yield number, wire type and raw value of each field."""
    at, end = 0, len(content)
    while at < end:
        tag, at = _read_varint(content, at)
        number, wire = tag >> 3, tag & 7
        if not 1 <= number < 1 << 29:
            raise CodecError(f"protobuf field number {number}")
        if wire == VARINT:
            value, at = _read_varint(content, at)
            yield number, wire, value
            continue
        if wire == BYTES:
            size, at = _read_varint(content, at)
        elif wire in (FIXED64, FIXED32):
            size = 8 if wire == FIXED64 else 4
        else:
            raise CodecError(f"protobuf wire type {wire}")
        if size > end - at:
            raise CodecError(f"protobuf field of {size} bytes, {end - at} left")
        yield number, wire, content[at : at + size]
        at += size


def _read_varint(content: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            raise CodecError("protobuf message ends within a number")
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if value >= 1 << 64:
                break
            return value, at
    raise CodecError("protobuf number of more than 64 bits")


def _field(number: int, field: Field, value: Any) -> bytes:
    if field.kind in SCHEMAS:
        body = encode(field.kind, value)
    elif WIRE_TYPES[field.kind] == BYTES:
        body = value.encode() if field.kind == "string" else bytes(value)
    else:
        return _varint(number << 3 | WIRE_TYPES[field.kind]) + _scalar(field.kind, value)
    return _varint(number << 3 | BYTES) + _varint(len(body)) + body


def _scalar(kind: str, value: Any) -> bytes:
    if kind == "double":
        return struct.pack("<d", value)
    number = int(value)
    if kind == "sint64":
        if not -(1 << 63) <= number < 1 << 63:
            raise CodecError(f"{number} does not fit into 64 bits")
        number = number << 1 ^ number >> 63
    if not 0 <= number < 1 << 64:
        raise CodecError(f"{number} does not fit into 64 bits")
    return _varint(number)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)
