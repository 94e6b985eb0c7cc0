"""Golden bytes of Flower's Fleet API for nodes that are not Python: ``python tests/fleet_vectors.py`` writes them anew.

Made by the installed Flower's own classes. Each entry has ``hex`` and the ``fields`` that it says; numbers of 64 bits
are strings, bytes are hex. ``query`` and ``answer`` are whole messages: every object by its name,
in the order of its tree.
"""

import json
from pathlib import Path

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.message.message import remove_content_from_message
from flwr.common.serde import message_to_proto, metadata_from_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    Metadata,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest, GetRunResponse, Run
from flwr.proto.transport_pb2 import Scalar
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

PATH = Path(__file__).parent / "vectors" / "phone_fleet.json"
NODE, RUN = 18364758544493064720, 8078416031873949180
PEM = "-----BEGIN PUBLIC KEY-----\nMFkw\n-----END PUBLIC KEY-----\n"
CREATED, TTL = 1795300000.25, 1200.0


def vectors():
    """Return all entries by name, JSON values only."""
    node = Node(node_id=NODE)
    query = _message(
        {"query": ConfigRecord({"frame": bytes(range(40)), "acknowledged": 3})}, src=1, dst=NODE, tasks=(7, None)
    )
    release = ConfigRecord({"frame": b"FKD\x02 and so on", "salt": bytes(16)})
    answer = _message({"release": release}, src=NODE, dst=1, reply_to="ab" * 32, tasks=(None, 7))
    config = {"rounds": 3, "protect": "none", "epsilon": 0.0, "late": True}
    run = Run(run_id=RUN, status=None, override_config=_config(config))
    plain = {
        "activate_request": ActivateNodeRequest(public_key=PEM.encode(), heartbeat_interval=1800),
        "activate_response": ActivateNodeResponse(node_id=NODE),
        "heartbeat_request": SendNodeHeartbeatRequest(node=node, heartbeat_interval=1800),
        "heartbeat_response": SendNodeHeartbeatResponse(success=True),
        "pull_request": PullMessagesRequest(node=node),
        "pull_response": PullMessagesResponse(
            messages_list=[message_to_proto(remove_content_from_message(query))],
            message_object_trees=[get_object_tree(query)],
        ),
        "empty_pull_response": PullMessagesResponse(),
        "get_run_request": GetRunRequest(node=node, run_id=RUN),
        "get_run_response": GetRunResponse(run=run),
        "pull_object_request": PullObjectRequest(node=node, run_id=RUN, object_id="ab" * 32),
        "pull_object_response": PullObjectResponse(
            object_found=True, object_available=True, object_content=b"\x00\x01"
        ),
        "late_object_response": PullObjectResponse(object_found=True),
        "confirm_request": ConfirmMessageReceivedRequest(node=node, run_id=RUN, message_object_id="cd" * 32),
        "push_request": PushMessagesRequest(
            node=node,
            messages_list=[message_to_proto(remove_content_from_message(answer))],
            message_object_trees=[get_object_tree(answer)],
        ),
        "push_response": PushMessagesResponse(objects_to_push=["ab" * 32, "cd" * 32], session_id="s-1"),
        "push_object_request": PushObjectRequest(
            node=node, run_id=RUN, object_id="ab" * 32, object_content=b"\x00\x01", session_id="s-1"
        ),
        "push_object_response": PushObjectResponse(stored=True),
        "zeros": _proto_record(
            ConfigRecord({"zero": 0, "no": False, "nothing": 0.0, "less": -2, "empty": "", "void": b""})
        ),
    }  # fmt: skip
    fields = {
        "activate_request": {"public_key": PEM, "interval": 1800}, "activate_response": {"node": str(NODE)},
        "heartbeat_request": {"node": str(NODE), "interval": 1800}, "heartbeat_response": {"success": True},
        "pull_request": {"node": str(NODE)},
        "pull_response": {"metadata": _fields(query), "tree": _tree(get_object_tree(query))},
        "empty_pull_response": {}, "get_run_request": {"node": str(NODE), "run": str(RUN)},
        "get_run_response": {"config": config},
        "pull_object_request": {"node": str(NODE), "run": str(RUN), "object": "ab" * 32},
        "pull_object_response": {"content": "0001"}, "late_object_response": {"content": None},
        "confirm_request": {"node": str(NODE), "run": str(RUN), "object": "cd" * 32},
        "push_request": {
            "node": str(NODE), "metadata": _fields(answer), "tree": _tree(get_object_tree(answer)),
        },
        "push_response": {"wanted": ["ab" * 32, "cd" * 32], "session": "s-1"},
        "push_object_request": {
            "node": str(NODE), "run": str(RUN), "object": "ab" * 32, "content": "0001", "session": "s-1",
        },
        "push_object_response": {"stored": True},
        "zeros": {"zero": "0", "no": False, "nothing": 0.0, "less": "-2", "empty": "", "void": {"hex": ""}},
    }  # fmt: skip
    found = {name: {"hex": _bytes(message).hex(), "fields": fields[name]} for name, message in plain.items()}
    for name, message in (("query", query), ("answer", answer)):
        parts = {key: part.deflate().hex() for key, part in get_all_nested_objects(message).items()}
        found[name] = {"parts": parts, "fields": _fields(message), "tree": _tree(get_object_tree(message))}
    return found


def _bytes(message):
    return message if isinstance(message, bytes) else message.SerializeToString(deterministic=True)


def _proto_record(record):
    return record.deflate().partition(b"\0")[2]


def _config(values):
    kinds = {bool: "bool", int: "sint64", float: "double", str: "string"}
    return {key: Scalar(**{kinds[type(value)]: value}) for key, value in values.items()}


def _message(records, *, src, dst, reply_to="", tasks):
    """Return a message of fixed metadata, so that its objects have the same names every time."""
    metadata = Metadata(
        run_id=RUN, src_node_id=src, dst_node_id=dst, reply_to_message_id=reply_to, group_id="1", ttl=TTL,
        message_type="query.release", created_at=CREATED,
    )  # fmt: skip
    for name, task in zip(("src_task_id", "dst_task_id"), tasks, strict=True):
        if task is not None:
            setattr(metadata, name, task)
    message = Message(metadata=metadata_from_proto(metadata), content=RecordDict(records))
    message.metadata.__dict__["_message_id"] = message.object_id
    return message


def _fields(message):
    m = message_to_proto(message).metadata
    return {
        "runId": str(m.run_id), "messageId": m.message_id, "source": str(m.src_node_id), "target": str(m.dst_node_id),
        "replyTo": m.reply_to_message_id, "group": m.group_id, "ttl": m.ttl, "type": m.message_type,
        "createdAt": m.created_at,
        "sourceTask": str(m.src_task_id) if m.HasField("src_task_id") else None,
        "targetTask": str(m.dst_task_id) if m.HasField("dst_task_id") else None,
    }  # fmt: skip


def _tree(tree: ObjectTree):
    return {"id": tree.object_id, "children": [_tree(child) for child in tree.children]}


if __name__ == "__main__":
    PATH.write_text(json.dumps(vectors(), indent=1) + "\n")
