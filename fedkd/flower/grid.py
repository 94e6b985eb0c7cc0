"""A Flower grid inside this machine: a ClientApp runs in worker processes. No Ray, no SuperLink, no network.

The ServerApp sees what it would see on a SuperLink: nodes that fail, die or miss their deadline cost their own reply
only. Unlike there, :meth:`LocalGrid.wait` wakes it the moment a reply arrives, and a message costs a fraction of a
millisecond.
"""

from __future__ import annotations

import heapq
import os
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import context_to_proto, message_from_proto, recorddict_to_proto
from flwr.common.serde_utils import metadata_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedkd.errors import ConfigError
from fedkd.flower.nursery import Nursery, Worker, kill, stop

RUN_ID = 1
FIRST_NODE = SUPERLINK_NODE_ID + 1
STILLBIRTHS = 3
"""Workers in a row that die before they are ready, after which no more are started."""


@dataclass(eq=False)
class _Job:
    """A message on its way: serialized, since its sender may change it; equal contents share their bytes."""

    id: str
    node: int
    metadata: bytes
    content: bytes
    done: bool = False
    worker: Worker | None = None


@dataclass(eq=False)
class _Node:
    """A simulated node: its context without state, its state, and what waits for it."""

    context: bytes
    state: bytes = b""
    waiting: deque[_Job] = field(default_factory=deque)
    busy: bool = False


class LocalGrid(Grid):
    """Run the ClientApp ``"module:attribute"`` for ``nodes`` simulated nodes in ``workers`` processes.

    Node k has node id k + 2 (1 is the SuperLink) and the node config ``partition-id`` k and ``num-partitions``,
    updated by ``node_config(k)``. Its ``context.state`` is kept here between messages, unless the app raised.
    An idle worker takes the next message; the messages of one node are answered one at a time, in order.

    Failures are replies with Flower's error codes: 1 the app cannot be imported, 2 it raised (the reason is the type
    of the exception; the traceback goes to ``log``, or to stderr), 3 the message outlived its ``ttl`` (a worker that
    still computes on it is ended), 5 there is no such node, 8 its worker died.

    Workers compute in one thread unless the app says otherwise, and import ``preload`` before anything else; with
    ``start="fork"`` (the default but on macOS) that happens once for all. Send one RecordDict object to many nodes
    and it is serialized once.

    >>> with LocalGrid(nodes=8, run_config=config.to_run_config()) as grid:  # doctest: +SKIP
    ...     FederatedDistillation(config).start(grid=grid)
    """

    def __init__(
        self,
        client_app: str = "fedkd.flower.apps:client",
        *,
        nodes: int,
        run_config: Mapping[str, str | int | float | bool],
        node_config: Callable[[int], Mapping[str, Any]] | None = None,
        workers: int = 2,
        preload: Sequence[str] = ("torch",),
        log: Path | None = None,
        start: Literal["fork", "spawn"] = "spawn" if sys.platform == "darwin" else "fork",
    ) -> None:
        """Start the workers and return at once: they import while the caller prepares."""
        if nodes < 1 or workers < 1:
            raise ConfigError(f"LocalGrid needs at least 1 node and 1 worker, got nodes={nodes}, workers={workers}")
        if os.name != "posix":
            raise ConfigError("LocalGrid needs Linux or macOS; on Windows use Flower's simulation (--engine flower)")
        _identify()
        self._run = Run.create_empty(run_id=RUN_ID)
        self._nodes: dict[int, _Node] = {}
        for k in range(nodes):
            config = {"partition-id": k, "num-partitions": nodes, **(node_config(k) if node_config else {})}
            context = Context(RUN_ID, FIRST_NODE + k, config, RecordDict(), {})
            self._nodes[FIRST_NODE + k] = _Node(context_to_proto(context).SerializeToString())

        # Shared between the threads and guarded by _news.
        self._news = threading.Condition()
        self._fresh = False  # a reply has arrived that no wait() has reported
        self._replies: dict[str, bytes | Message] = {}
        self._open: set[str] = set()
        self._ready: deque[_Node] = deque()  # idle nodes for which a message waits
        self._deadlines: list[tuple[float, int, _Job]] = []
        self._pushed = 0
        self._closing = False
        self._failure: BaseException | None = None
        self._wake_out, self._wake_in = Pipe(duplex=False)
        self._awake = False  # whether the thread has been woken already

        # The thread's own.
        self._broken = False
        self._stillbirths = 0
        self._idle: list[Worker] = []
        self._nursery = Nursery(
            {
                "app": client_app,
                "preload": list(preload),
                "run_config": dict(run_config),
                "fork": start == "fork",
            },
            log,
        )
        self._workers: dict[Connection, Worker] = {}
        try:
            for _ in range(min(workers, nodes)):
                self._add_worker()
        except BaseException:
            self._nursery.close()
            raise
        self._thread = threading.Thread(target=self._pump, name="fedkd-local-grid", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all workers and whatever they have started. Replies that have arrived can still be pulled."""
        with self._news:
            if not self._closing:
                self._closing = True
                self._news.notify_all()
                self._wake()
        self._thread.join()
        self._wake_in.close()

    # What Flower asks of a Grid.

    def set_run(self, run: Run) -> None:
        """Take over the description of a run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The description of the run, empty but for its id."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message; Flower prefers ``Message(...)`` by now."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes; they are always there."""
        return list(self._nodes)

    def partition_of(self, node_id: int) -> int:
        """Return k, the number of the client that runs as node ``node_id``."""
        return node_id - FIRST_NODE

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue ``messages`` and return an id for each; workers take them up at once."""
        jobs: list[tuple[float, _Job]] = []
        bodies: dict[int, tuple[RecordDict, bytes]] = {}  # the RecordDict is held so that no other gets its id()
        for message in messages:
            metadata, content = message.metadata, message.content
            if id(content) not in bodies:
                body = ProtoMessage(content=recorddict_to_proto(content)).SerializeToString()
                bodies[id(content)] = content, body
            metadata.__dict__["_message_id"] = key = uuid.uuid4().hex  # a SuperLink would set it
            head = ProtoMessage(metadata=metadata_to_proto(metadata)).SerializeToString()
            left = metadata.created_at + metadata.ttl - time.time()
            jobs.append((time.monotonic() + left, _Job(key, metadata.dst_node_id, head, bodies[id(content)][1])))
        with self._news:
            self._check_open()
            for deadline, job in jobs:
                self._open.add(job.id)
                node = self._nodes.get(job.node)
                if node is None:
                    self._fail(job, ErrorCode.NODE_UNAVAILABLE, f"no node {job.node}")
                    continue
                self._pushed += 1
                heapq.heappush(self._deadlines, (deadline, self._pushed, job))
                node.waiting.append(job)
                if not node.busy and len(node.waiting) == 1:
                    self._ready.append(node)  # else it is there already, or will be when it is done
            self._wake()
        return [job.id for _, job in jobs]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return, without waiting, the replies to ``message_ids`` that have arrived; each is returned once."""
        with self._news:
            self._check_failure()
            arrived = [self._replies.pop(id_) for id_ in message_ids if id_ in self._replies]
        return [reply if isinstance(reply, Message) else _parse(reply) for reply in arrived]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push ``messages`` and return the replies that arrive within ``timeout`` seconds (None: all of them)."""
        end = None if timeout is None else time.monotonic() + timeout
        open_ids = set(self.push_messages(messages))
        replies: list[Message] = []
        while True:
            found = list(self.pull_messages(open_ids))
            replies += found
            open_ids -= {reply.metadata.reply_to_message_id for reply in found}
            left = None if end is None else end - time.monotonic()
            if not open_ids or self._closing or (left is not None and left <= 0):
                return replies
            self.wait(left)

    def wait(self, timeout: float | None = None) -> None:
        """Sleep until a reply arrives that no earlier ``wait`` has reported, or ``timeout`` seconds have passed.

        Returns at once when no reply is outstanding.
        """
        with self._news:
            self._news.wait_for(lambda: self._fresh or not self._open or self._closing or self._failure, timeout)
            self._check_failure()
            self._fresh = False

    # Called by either thread, holding _news.

    def _wake(self) -> None:
        if not self._awake:
            self._awake = True
            self._wake_in.send_bytes(b"")

    def _check_open(self) -> None:
        self._check_failure()
        if self._closing:
            raise RuntimeError("this LocalGrid is closed")

    def _check_failure(self) -> None:
        if self._failure is not None:
            raise RuntimeError("the thread of this LocalGrid failed") from self._failure

    def _finish(self, job: _Job, reply: bytes | Message) -> None:
        job.done = True
        self._open.discard(job.id)
        self._replies[job.id] = reply
        self._fresh = True
        self._news.notify_all()

    def _fail(self, job: _Job, code: int, reason: str) -> None:
        asked = ProtoMessage.FromString(job.metadata)
        asked.content.SetInParent()  # Flower's Message insists on having a content
        self._finish(job, Message(Error(code, reason), reply_to=message_from_proto(asked)))

    # Called by our own thread only.

    def _pump(self) -> None:
        """Hand out messages, collect replies, watch deadlines and workers, until the grid is closed."""
        try:
            while True:
                with self._news:
                    self._awake = False
                    if self._closing:
                        break
                    self._expire()
                self._dispatch()
                with self._news:
                    timeout = max(0.0, self._deadlines[0][0] - time.monotonic()) if self._deadlines else None
                for connection in wait([self._wake_out, *self._workers], timeout):
                    if connection is self._wake_out:
                        self._wake_out.recv_bytes()
                    elif connection in self._workers:
                        self._receive(self._workers[connection])
        except BaseException as error:
            with self._news:
                self._failure = error
                self._news.notify_all()
        finally:
            for worker in self._workers.values():
                stop(worker)
            self._nursery.close()
            self._wake_out.close()

    def _expire(self) -> None:
        now = time.monotonic()
        while self._deadlines and (self._deadlines[0][2].done or self._deadlines[0][0] <= now):
            job = heapq.heappop(self._deadlines)[2]
            if job.done:
                continue
            self._fail(job, ErrorCode.MESSAGE_UNAVAILABLE, "the message outlived its ttl")
            if job.worker is not None:
                kill(job.worker)  # its end of the connection closes, and _lose() does the rest

    def _dispatch(self) -> None:
        while True:
            with self._news:
                node = self._next()
                if node is None or not (self._idle or self._broken):
                    return
                self._ready.popleft()
                job = node.waiting.popleft()
                if self._broken:
                    self._fail(job, ErrorCode.CLIENT_APP_CRASHED, "no worker process can be started")
                    if node.waiting:
                        self._ready.append(node)
                    continue
                worker = self._idle.pop()
                node.busy, worker.job, job.worker = True, job, worker
            try:
                for frame in (job.metadata, job.content, node.context, node.state):
                    worker.connection.send_bytes(frame)
            except OSError:
                self._lose(worker)

    def _next(self) -> _Node | None:
        """Return the first of the ready nodes; its first message has not expired. Forget those that have."""
        while self._ready:
            node = self._ready[0]
            while node.waiting and node.waiting[0].done:
                node.waiting.popleft()
            if node.waiting:
                return node
            self._ready.popleft()
        return None

    def _receive(self, worker: Worker) -> None:
        try:
            if not worker.pid:
                worker.pid = int(worker.connection.recv_bytes())
                self._stillbirths = 0
                self._nursery.born = True
            else:
                reply, state = worker.connection.recv_bytes(), worker.connection.recv_bytes()
                self._release(worker, reply, state)
            self._idle.append(worker)
        except (EOFError, OSError):
            self._lose(worker)

    def _release(self, worker: Worker, reply: bytes, state: bytes | None) -> None:
        """Take the worker off its job; keep reply and state unless the job has expired meanwhile."""
        with self._news:
            job, worker.job = worker.job, None
            if job is None:
                return
            node = self._nodes[job.node]
            node.busy, job.worker = False, None
            if node.waiting:
                self._ready.append(node)
            if not job.done and state is not None:
                node.state = state
                self._finish(job, reply)
            elif not job.done:
                self._fail(job, ErrorCode.CLIENT_APP_CRASHED, "the worker process died")

    def _lose(self, worker: Worker) -> None:
        """Bury a worker that died or was ended, and start another."""
        del self._workers[worker.connection]
        if worker in self._idle:
            self._idle.remove(worker)
        stop(worker)
        self._release(worker, b"", None)
        self._stillbirths += not worker.pid
        if self._stillbirths < STILLBIRTHS:
            self._add_worker()
        self._broken = not self._workers

    def _add_worker(self) -> None:
        worker = self._nursery.start()
        self._workers[worker.connection] = worker


def _parse(reply: bytes) -> Message:
    message = ProtoMessage.FromString(reply)
    try:
        return message_from_proto(message)
    except Exception as error:  # a malformed reply, such as an unset metric, costs its own node only
        message.ClearField("content")
        message.error.code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        message.error.reason = type(error).__name__
        return message_from_proto(message)


def _identify() -> None:
    """Give this process the identity that ``Message(...)`` asks for, unless it is a Flower task already."""
    try:
        _ = TaskIdentity.run_id
    except RuntimeError:
        TaskIdentity.task_id = TaskIdentity.run_id = RUN_ID
        TaskIdentity.node_id = SUPERLINK_NODE_ID
