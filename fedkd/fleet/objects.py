"""Flower's objects: a message is a tree of pieces, each named by the SHA-256 of its bytes and sent by itself.

A piece is ``Type child,child length NUL body``. Message > RecordDict > ConfigRecord, and for a large frame
ArrayRecord > Array > ArrayChunk. Bodies are protobuf for messages and configs, JSON for what only refers to others.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedkd.envelope import BESIDE, LARGE, MAX_FRAME, STYPE, Records, Value
from fedkd.errors import CodecError
from fedkd.fleet.wire import Fields, decode, encode

CHUNK = 5 * 1024 * 1024
"""Bytes of an array in one object, as Flower cuts them."""
MAX_OBJECTS = 1000
NAME = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Tree:
    """What a message consists of: the name of an object and those below it."""

    name: str
    below: tuple[Tree, ...] = ()

    def names(self) -> list[str]:
        """Return all names, children before what refers to them, each once."""
        found: dict[str, None] = {}
        for child in self.below:
            found |= dict.fromkeys(child.names())
        return list(found | {self.name: None})

    def to_fields(self) -> Fields:
        """Return the tree as Flower's message ``ObjectTree``."""
        return {"object_id": self.name, "children": [child.to_fields() for child in self.below]}


def read_tree(fields: Mapping[str, Any]) -> Tree:
    """Return the tree of an ``ObjectTree``; raise :class:`CodecError` if a name is none or there are too many."""
    tree = _tree(fields)
    if len(tree.names()) > MAX_OBJECTS:
        raise CodecError(f"message of {len(tree.names())} objects, expected at most {MAX_OBJECTS}")
    return tree


def _tree(fields: Mapping[str, Any]) -> Tree:
    name = fields["object_id"]
    if not NAME.fullmatch(name):
        raise CodecError(f"object name {name[:70]!r} is not a SHA-256")
    return Tree(name, tuple(_tree(child) for child in fields["children"]))


@dataclass(frozen=True)
class Parcel:
    """Objects by name, and the tree that they make."""

    tree: Tree
    objects: dict[str, bytes]


def name_of(content: bytes) -> str:
    """Return the name of an object."""
    return hashlib.sha256(content).hexdigest()


def pack_message(metadata: Mapping[str, Any], records: Records) -> Parcel:
    """Return the objects of a message; the ``metadata`` (Flower's ``Metadata``) hold no id of its own yet."""
    content = pack_records(records)
    body = encode("Message", {"metadata": {**metadata, "message_id": ""}})
    return _over("Message", body, [content])


def pack_records(records: Records) -> Parcel:
    """Return the objects of a record dict; a large frame goes beside its record, in chunks."""
    made: dict[str, Parcel] = {}
    for name, values in records.items():
        frame = values.get("frame")
        if isinstance(frame, bytes) and len(frame) > LARGE:
            values = {key: value for key, value in values.items() if key != "frame"}
            made[BESIDE] = _large(frame)
        made[name] = _over("ConfigRecord", encode_config(values), [])
    return _over(
        "RecordDict", json.dumps({name: part.tree.name for name, part in made.items()}).encode(), made.values()
    )


def read_records(root: str, objects: Mapping[str, bytes]) -> dict[str, dict[str, object]]:
    """Return the records of the message that ``root`` names, a frame that lies beside them in its place."""
    _, below, _ = unpack(objects[root], "Message")
    if len(below) != 1:
        raise CodecError(f"message with {len(below)} contents, expected one")
    _, _, body = unpack(_there(objects, below[0]), "RecordDict")
    found: dict[str, dict[str, object]] = {}
    beside = b""
    for name, reference in _json(body, dict).items():
        content = _there(objects, reference)
        kind, _, inner = unpack(content)
        if kind == "ConfigRecord":
            found[name] = decode_config(inner)
        elif kind == "ArrayRecord" and name == BESIDE:
            beside = _read_large(inner, objects)
    for name in ("query", "release"):
        if beside and name in found:
            found[name].setdefault("frame", beside)
    return found


def encode_config(values: Mapping[str, Value]) -> bytes:
    """Return the body of a ConfigRecord."""
    return encode("ConfigRecord", {"items": [{"key": k, "value": {_kind(v): v}} for k, v in values.items()]})


def decode_config(body: bytes) -> dict[str, object]:
    """Return the values of a ConfigRecord; lists, which we never send, are left out."""
    items = decode("ConfigRecord", body)["items"]
    return {item["key"]: value for item in items for value in (item["value"] or {}).values()}


def pack(kind: str, body: bytes, below: list[str]) -> bytes:
    """Return an object of these parts."""
    return f"{kind} {','.join(below)} {len(body)}".encode() + b"\0" + body


def unpack(content: bytes, expected: str = "") -> tuple[str, list[str], bytes]:
    """Return type, children and body of an object; raise :class:`CodecError` unless it is of the ``expected`` type."""
    head, mark, body = content.partition(b"\0")
    try:
        kind, below, size = head.decode("ascii").split(" ")
    except ValueError:  # UnicodeDecodeError is one
        raise CodecError("object without a head of three words") from None
    if not mark or size != str(len(body)):
        raise CodecError(f"object of {len(body)} bytes says that it has {size[:20]}")
    if expected and kind != expected:
        raise CodecError(f"object is a {kind[:40]}, expected a {expected}")
    return kind, below.split(",") if below else [], body


def _over(kind: str, body: bytes, parts: Any) -> Parcel:
    """Return the object that refers to ``parts``, and all of theirs."""
    parts = list(parts)
    below = list(dict.fromkeys(part.tree.name for part in parts))
    content = pack(kind, body, below)
    trees = {part.tree.name: part.tree for part in parts}
    objects = {name: one for part in parts for name, one in part.objects.items()}
    name = name_of(content)
    return Parcel(Tree(name, tuple(trees.values())), {**objects, name: content})


def _large(frame: bytes) -> Parcel:
    chunks = [_over("ArrayChunk", frame[at : at + CHUNK], []) for at in range(0, len(frame), CHUNK)]
    names = list(dict.fromkeys(chunk.tree.name for chunk in chunks))  # equal chunks are one object
    order = [names.index(chunk.tree.name) for chunk in chunks]
    about = {"dtype": "uint8", "shape": [len(frame)], "stype": STYPE, "arraychunk_ids": order}
    array = _over("Array", json.dumps(about).encode(), chunks)
    return _over("ArrayRecord", json.dumps({BESIDE: array.tree.name}).encode(), [array])


def _read_large(body: bytes, objects: Mapping[str, bytes]) -> bytes:
    _, chunks, about = unpack(_there(objects, _json(body, dict).get(BESIDE)), "Array")
    said = _json(about, dict)
    if said.get("stype") != STYPE:
        raise CodecError(f"what lies beside is not a fedkd frame of at most {MAX_FRAME} bytes")
    order = said.get("arraychunk_ids")
    if not isinstance(order, list) or not all(isinstance(i, int) and 0 <= i < len(chunks) for i in order):
        raise CodecError("array of chunks that are not there")
    parts = {i: unpack(_there(objects, chunks[i]), "ArrayChunk")[2] for i in order}
    if sum(len(parts[i]) for i in order) > MAX_FRAME:  # one chunk may be named many times
        raise CodecError(f"what lies beside is not a fedkd frame of at most {MAX_FRAME} bytes")
    return b"".join(parts[i] for i in order)


def _there(objects: Mapping[str, bytes], name: object) -> bytes:
    content = objects.get(name) if isinstance(name, str) else None
    if content is None:
        raise CodecError(f"object {str(name)[:70]!r} is not among those of the message")
    return content


def _json(body: bytes, kind: type) -> Any:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise CodecError("object with a body that is not JSON") from None
    if not isinstance(found, kind):
        raise CodecError(f"object with a body of {type(found).__name__}, expected {kind.__name__}")
    return found


def _kind(value: Value) -> str:
    kinds = {bool: "bool", int: "sint64", float: "double", str: "string", bytes: "bytes"}
    return kinds[type(value)]
