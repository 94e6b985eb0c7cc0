"""A node that learns nothing: it speaks all Fleet calls of a real one and answers queries with ballots at random.

Many fit into one process. Its steps can be taken one by one, and left out, to see what others do about that.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec

from fedkd.client import Answer
from fedkd.codec import decode_query, encode_release
from fedkd.envelope import Records, answer_records, read_query_records
from fedkd.errors import CodecError, LinkError, Rejected, Unreachable
from fedkd.fleet.identity import Identity
from fedkd.fleet.link import Address, Link, with_patience
from fedkd.fleet.objects import Parcel, pack_message, read_records, read_tree
from fedkd.fleet.wire import Fields, decode, encode
from fedkd.frames import peek
from fedkd.records import Release, TransferSet
from fedkd.release import prepare
from fedkd.softlabels import Array

HEARTBEAT = 1800.0
TCP_INFO = 11
SENT, RECEIVED = 120, 128
"""Where Linux's ``tcp_info`` has the bytes that were acknowledged and received."""


class Device(Link):
    """A link from an address of its own, as far as loopback has them, that knows the bytes on its wire."""

    def __init__(
        self, where: Address, context: ssl.SSLContext | None, identity: Identity, source: str, **options: Any
    ) -> None:
        """Call from the address ``source``."""
        super().__init__(where, context, identity, **options)
        self.source, self.calls = source, 0
        self.seconds: list[tuple[str, float]] = []
        self._before = (0, 0)

    def fleet(self, route: str, body: bytes) -> bytes:
        """Call, and note how long it took."""
        began = time.perf_counter()
        content = super().fleet(route, body)
        self.seconds.append((route, time.perf_counter() - began))
        self.calls += 1
        return content

    def _open(self) -> http.client.HTTPConnection:
        kind: Any = http.client.HTTPSConnection if self.address.secure else http.client.HTTPConnection
        more = {"context": self.context} if self.address.secure else {}
        made: http.client.HTTPConnection = kind(
            self.address.host, self.address.port, timeout=self.timeout, source_address=(self.source, 0), **more
        )
        made.connect()
        made.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = made
        return made

    def close(self) -> None:
        """Close, and keep the count."""
        self._before = self.wire()
        super().close()

    def wire(self) -> tuple[int, int]:
        """Return the bytes that TCP has carried up and down so far, TLS included."""
        up, down = self._before
        if self._connection is not None and self._connection.sock is not None:
            told = self._connection.sock.getsockopt(socket.IPPROTO_TCP, TCP_INFO, 192)
            up, down = up + struct.unpack_from("=Q", told, SENT)[0], down + struct.unpack_from("=Q", told, RECEIVED)[0]
        return up, down


@dataclass(frozen=True, eq=False)
class Task:
    """A message that was taken: its metadata and its frame."""

    metadata: Fields
    frame: bytes

    @property
    def round(self) -> int:
        """The round that asks."""
        return peek(self.frame).round


class LightNode:
    """One node: ``enter``, ``pull``, ``answer``, ``push``, whenever its owner says so."""

    def __init__(
        self,
        where: Address,
        context: ssl.SSLContext | None,
        transfer: TransferSet,
        *,
        key: ec.EllipticCurvePrivateKey | None = None,
        chain: str = "float16",
        source: str = "127.0.0.1",
        client: int | None = None,
        patient: bool = True,
        longest: float = 20.0,
        **options: Any,
    ) -> None:
        """Be a node with ``key``, or a fresh one, whose ballots are released by ``chain``."""
        self.identity = Identity(key or ec.generate_private_key(ec.SECP256R1()))
        self.link = Device(where, context, self.identity, source, **options)
        self.transfer, self.chain, self.client, self.node_id = transfer, chain, client, 0
        self.patient, self.longest, self.refused, self.ended = patient, longest, 0, threading.Event()

    def enter(self) -> None:
        """Say that this node is there, for long."""
        asked = {"public_key": self.identity.public, "heartbeat_interval": HEARTBEAT}
        if not self.node_id:
            self.node_id = int(self.call("activate-node", "ActivateNode", asked)["node_id"])
        else:
            self.call("send-node-heartbeat", "SendNodeHeartbeat", self.me(heartbeat_interval=HEARTBEAT))

    def pull(self) -> Task | None:
        """Return the next message with all its objects, confirmed, or None."""
        found = self.call("pull-messages", "PullMessages", self.me())
        if not found["messages_list"]:
            return None
        metadata = found["messages_list"][0]["metadata"]
        tree, run_id = read_tree(found["message_object_trees"][0]), metadata["run_id"]
        objects = {name: self.fetch(run_id, name) for name in tree.names()}
        frame, _ = read_query_records(read_records(tree.name, objects))
        asked = self.me(run_id=run_id, message_object_id=metadata["message_id"])
        self.call("confirm-message-received", "ConfirmMessageReceived", asked)
        return Task(metadata, frame)

    def fetch(self, run_id: int, name: str) -> bytes:
        """Return an object; the server may announce a message before all of it is there."""
        end = time.monotonic() + 60.0
        while time.monotonic() < end:
            told = self.call("pull-object", "PullObject", self.me(run_id=run_id, object_id=name))
            if told["object_available"]:
                content: bytes = told["object_content"]
                return content
            time.sleep(0.1)
        raise CodecError(f"object {name[:12]} never came")

    def records(self, task: Task) -> Records:
        """Return an answer at random, the same for the same question."""
        header = peek(task.frame)
        client = self.client if self.client is not None else self.node_id
        query = decode_query(task.frame, self.transfer.fingerprint, len(self.transfer))
        rng = np.random.default_rng([client, header.round])
        p = self.believe(rng, query.indices, query.classes)
        release = prepare(self.chain, Release(p, np.ones(len(p), np.float32)), rng)
        return answer_records(Answer(encode_release(release, query, client), None))

    def believe(self, rng: np.random.Generator, rows: Array, classes: int) -> Array:
        """Return soft labels (n, C) on ``rows``."""
        return rng.dirichlet(np.full(classes, 0.3), len(rows)).astype(np.float32)

    def pack(self, task: Task, records: Records, **changed: Any) -> tuple[Fields, Parcel]:
        """Return the metadata and the objects of a message that answers ``task``."""
        asked, now = task.metadata, self.link.clock.now()
        metadata = {
            "run_id": asked["run_id"],
            "src_node_id": self.node_id,
            "dst_node_id": asked["src_node_id"],
            "reply_to_message_id": asked["message_id"],
            "group_id": asked["group_id"],
            "ttl": asked["created_at"] + asked["ttl"] - now,
            "message_type": asked["message_type"],
            "created_at": now,
            **{one: asked[other] for one, other in TASKS.items() if other in asked},
            **changed,
        }
        return metadata, pack_message(metadata, records)

    def announce(self, metadata: Fields, parcel: Parcel) -> Fields:
        """Say what will come; return what is wanted of it."""
        message = {"metadata": {**metadata, "message_id": parcel.tree.name}, "content": {}}
        asked = self.me(messages_list=[message], message_object_trees=[parcel.tree.to_fields()])
        return self.call("push-messages", "PushMessages", asked)

    def send(self, metadata: Fields, parcel: Parcel, told: Fields) -> int:
        """Send what is wanted; return how many objects were taken."""
        return sum(
            self.call(
                "push-object",
                "PushObject",
                self.me(
                    run_id=metadata["run_id"],
                    object_id=name,
                    object_content=parcel.objects[name],
                    session_id=told["session_id"],
                ),
            )["stored"]
            for name in told["objects_to_push"]
        )

    def push(self, task: Task, records: Records) -> None:
        """Answer ``task``."""
        metadata, parcel = self.pack(task, records)
        self.send(metadata, parcel, self.announce(metadata, parcel))

    def step(self, before: Callable[[Task], None] = lambda task: None) -> Task | None:
        """Look once, and answer what is there."""
        task = self.pull()
        if task is not None:
            before(task)
            self.push(task, self.records(task))
        return task

    def me(self, **more: Any) -> Fields:
        """Return a request of this node's."""
        return {"node": {"node_id": self.node_id}, **more}

    def call(self, route: str, kind: str, fields: Fields) -> Fields:
        """Return what the SuperLink says to a call."""
        body = encode(f"{kind}Request", fields)
        if not self.patient:
            return decode(f"{kind}Response", self.link.fleet(route, body))
        return decode(
            f"{kind}Response", with_patience(lambda: self.link.fleet(route, body), self.wait, tell=self._tell)
        )

    def wait(self, seconds: float) -> None:
        """Wait before a call is tried again; raise if the node was ended."""
        if self.ended.wait(min(seconds, self.longest)):
            raise Unreachable("ended")

    def _tell(self, error: LinkError) -> None:
        self.refused += isinstance(error, Rejected)


TASKS = {"src_task_id": "dst_task_id", "dst_task_id": "src_task_id"}
