"""The resident node: takes queries from a SuperLink, answers them with the model at hand, and outlives both.

Flower asks who is online before it collects an answer. So a node says that it will be there for a long time, and just
vanishes: an answer that it left behind is still collected. It says so again when it comes back, and enrolls anew only
where the server does not know it any more.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from threading import Event
from typing import Any, NoReturn

from fedkd.client import Answer
from fedkd.envelope import QUERY, answer_records, read_query_records, refusal_records
from fedkd.errors import CodecError, LinkError, Rejected
from fedkd.fleet.home import Home, Pending, Settings
from fedkd.fleet.link import Link, with_patience
from fedkd.fleet.objects import name_of, pack_message, read_records, read_tree
from fedkd.fleet.wire import Fields, decode, encode
from fedkd.site import Common, Refusal, refuse, respond

Observer = Callable[[str, Mapping[str, Any]], None]

HEARTBEAT = 1800.0
"""Seconds for which a node promises to be there, the most that Flower takes; it believes in twice as long."""
BEAT_AGAIN = HEARTBEAT / 3
SOONEST, LATEST = 0.5, 10.0
"""Seconds between two looks for messages: a tenth of how long none has come, within these bounds."""
LARGEST = 128 * 1024 * 1024
"""Bytes of all objects of a message."""
AVAILABLE = 60.0
"""Seconds in which an object that was announced must be there."""
ATTEMPTS = 3
MAX_RUNS = 4
FORGOTTEN = (401, 403, 412)
OVER = 403
"""What Flower says of everything about a run that has ended."""


class Stopped(Exception):
    """The node was asked to stop."""


@dataclass(frozen=True)
class Pace:
    """How long the node waits between looks, at the least and at the most, in seconds."""

    soonest: float = SOONEST
    latest: float = LATEST

    def after(self, idle: float) -> float:
        """Return how long to wait when nothing has come for ``idle`` seconds."""
        return min(max(0.1 * idle, self.soonest), self.latest)


class Node:
    """One node; :meth:`run` is its life. ``observe(event, facts)`` is told what happens as it happens."""

    def __init__(
        self,
        home: Home,
        link: Link,
        settings: Settings,
        common: Common,
        *,
        pace: Pace | None = None,
        observe: Observer = lambda event, facts: None,
        stop: Event | None = None,
    ) -> None:
        """Be the node of ``home``, whose lock the caller holds."""
        self.home, self.link, self.settings, self.common = home, link, settings, common
        self.pace, self.observe, self.stop = pace or Pace(), observe, stop or Event()
        self.node_id = settings.node_id
        self._runs: dict[int, dict[str, Any]] = {}
        self._last_run = 0
        self._beaten = float("-inf")
        self._away = False

    def run(self, *, once: bool = False) -> int:
        """Answer until stopped, or with ``once`` until a run that was answered is over; return how many."""
        answered, strays = 0, 0
        heard = time.monotonic()
        try:
            self._enter()
            while True:
                try:
                    self._beat()
                    pending = self.home.pending() or self._pull()
                    if pending is not None:
                        answered += self._serve(pending)
                        heard, strays = time.monotonic(), 0
                        continue
                    strays = 0
                    if once and answered and self._is_over(self._last_run):
                        self.observe("over", {"run": self._last_run})
                        return answered
                except Rejected as error:
                    strays += 1
                    if error.status not in FORGOTTEN or strays > ATTEMPTS:
                        raise
                    self._enter()
                except (CodecError, LinkError) as error:  # of the server's own answers; what is in messages is answered
                    self.observe("odd", {"error": str(error)})
                self._wait(self.pace.after(time.monotonic() - heard))
        except Stopped:
            return answered
        finally:
            self.link.close()

    # Being there.

    def _enter(self) -> None:
        """Say that this node is there; enroll it if the server does not know it, or not any more."""
        if self.node_id and self._is_known():
            return
        try:
            self.node_id = self._activate()
        except Rejected as error:
            if error.status not in FORGOTTEN:
                raise
            try:
                self._call("register-node", "RegisterNodeFleet", {"public_key": self._public()})
                self.node_id = self._activate()
            except Rejected:
                self._not_known(error)
        if self.node_id != self.settings.node_id:
            self.settings = replace(self.settings, node_id=self.node_id)
            self.home.keep_settings(self.settings)
        self._beaten = time.monotonic()
        self.observe("online", {"node": self.node_id})

    def _is_known(self) -> bool:
        try:
            there = self._heartbeat()
        except Rejected as error:
            if error.status not in FORGOTTEN:
                raise
            return False
        if there:
            self.observe("online", {"node": self.node_id})
        return there

    def _not_known(self, error: Rejected) -> NoReturn:
        raise Rejected(
            f"{self.link.address} does not know the key of this node (any more): it was revoked, the server has lost "
            f"its memory, or the node is online elsewhere; join again with a new code ({error})",
            error.status,
        ) from None

    def _activate(self) -> int:
        asked = {"public_key": self._public(), "heartbeat_interval": HEARTBEAT}
        return int(self._call("activate-node", "ActivateNode", asked)["node_id"])

    def _public(self) -> bytes:
        assert self.link.identity is not None
        return self.link.identity.public

    def _beat(self) -> None:
        if time.monotonic() - self._beaten > BEAT_AGAIN and not self._heartbeat():
            self._enter()

    def _heartbeat(self) -> bool:
        done = bool(
            self._call("send-node-heartbeat", "SendNodeHeartbeat", self._me(heartbeat_interval=HEARTBEAT))["success"]
        )
        self._beaten = time.monotonic()
        return done

    # Messages.

    def _pull(self) -> Pending | None:
        """Return the next message that the server has for this node, whose name is safely on the disk, or None."""
        found = self._call("pull-messages", "PullMessages", self._me())
        messages, trees = found["messages_list"], found["message_object_trees"]
        if not messages:
            return None
        if not trees or messages[0]["metadata"] is None:
            raise CodecError("the server handed out a message without its objects")
        pending = Pending(messages[0]["metadata"], tree=trees[0])
        self.home.keep(pending)  # before anything is fetched: nobody hands it out again
        return pending

    def _fetched(self, pending: Pending) -> Pending:
        """Return a message with its frame, safely on the disk; only then does the server forget it."""
        assert pending.tree is not None
        metadata = pending.metadata
        try:
            frame, acknowledged = self._open(metadata, pending.tree)
            whole = Pending(metadata, frame, acknowledged)
        except CodecError as error:
            whole = Pending(metadata, error=str(error))
        except Rejected as error:
            if error.status in FORGOTTEN:
                raise
            whole = Pending(metadata, error=str(error))  # asked again, it would say the same again
        self.home.keep(whole)
        self._confirm(metadata)
        return whole

    def _open(self, metadata: Mapping[str, Any], tree: Mapping[str, Any]) -> tuple[bytes, int]:
        """Return the frame of a message and the round that it acknowledges; fetches the objects of it."""
        if metadata["dst_node_id"] != self.node_id:
            raise CodecError(f"message for node {metadata['dst_node_id']}, not for this one")
        if metadata["message_type"] != QUERY:
            raise CodecError(f"this node answers {QUERY!r}, got {metadata['message_type'][:60]!r}")
        whole = read_tree(tree)
        objects: dict[str, bytes] = {}
        for name in whole.names():
            objects[name] = self._object(metadata["run_id"], name)
            if sum(map(len, objects.values())) > LARGEST:
                raise CodecError(f"message of more than {LARGEST} bytes")
        return read_query_records(read_records(whole.name, objects))

    def _object(self, run_id: int, name: str) -> bytes:
        end = time.monotonic() + AVAILABLE
        while True:
            found = self._call("pull-object", "PullObject", self._me(run_id=run_id, object_id=name))
            if found["object_found"] and found["object_available"]:
                content: bytes = found["object_content"]
                if name_of(content) != name:
                    raise CodecError("an object of the message is not what its name says")
                return content
            if not found["object_found"] or time.monotonic() > end:
                raise CodecError("an object of the message is not there")
            self._wait(0.2)

    def _confirm(self, metadata: Mapping[str, Any]) -> None:
        asked = self._me(run_id=metadata["run_id"], message_object_id=metadata["message_id"])
        try:
            self._call("confirm-message-received", "ConfirmMessageReceived", asked)
        except Rejected as error:  # it frees the server's memory, no more
            self.observe("odd", {"error": str(error)})

    def _serve(self, pending: Pending) -> int:
        """Answer a message, or send what was answered already; return 1 if an answer left that is no refusal."""
        run, began = int(pending.metadata["run_id"]), time.monotonic()
        self._last_run = run
        try:
            if self._expired(pending):
                return 0
            if pending.tree is not None:
                pending = self._fetched(pending)
            if pending.reply is None:
                pending = self._reply(pending)
                self.home.keep(pending)
            seconds = time.monotonic() - began
            sent = self._push(pending)
        except Rejected as error:
            if error.status != OVER:
                raise
            self.home.done()
            self.observe("over", {"run": run})
            return 0
        self.home.done()
        gc.collect()  # what a round needed is not kept until the next
        refused = (pending.reply or {}).get("refusal")
        facts = {"run": run, "round": pending.metadata["group_id"], "seconds": seconds, "bytes": sent}
        self.observe("refused" if refused else "answered", {**facts, **(refused or {})})
        return 0 if refused else 1

    def _expired(self, pending: Pending) -> bool:
        metadata = pending.metadata
        late = self.link.clock.now() - metadata["created_at"] - metadata["ttl"]
        if late <= 0:
            return False
        self.home.done()
        self.observe("expired", {"run": metadata["run_id"], "round": metadata["group_id"], "late": late})
        return True

    def _reply(self, pending: Pending) -> Pending:
        """Return what answers a query; computes, for as long as the model needs."""
        asked = pending.metadata
        config = self.settings.node_config
        said: Answer | Refusal
        self.observe("query", {"run": asked["run_id"], "round": asked["group_id"]})
        if pending.error:
            said = refuse(CodecError(pending.error), config, self.node_id)
        else:
            run_id = int(asked["run_id"])
            said = respond(
                pending.frame,
                pending.acknowledged,
                run_config=self._run_config(run_id),
                node_config=config,
                run_id=run_id,
                node_id=self.node_id,
                common=self.common,
                agreed=self.settings.about.get("config"),
            )
        records = refusal_records(said.client, said.error) if isinstance(said, Refusal) else answer_records(said)
        now = self.link.clock.now()
        metadata = {
            "run_id": asked["run_id"],
            "src_node_id": self.node_id,
            "dst_node_id": asked["src_node_id"],
            "reply_to_message_id": asked["message_id"],
            "group_id": asked["group_id"],
            "ttl": asked["created_at"] + asked["ttl"] - now,
            "message_type": asked["message_type"],
            "created_at": now,
            **{one: asked[other] for one, other in _TASKS.items() if other in asked},
        }
        return Pending(metadata, reply=records)

    def _push(self, pending: Pending) -> int:
        """Send an answer and return its bytes. The same answer may be sent again and again: it is one object."""
        assert pending.reply is not None
        parcel = pack_message(pending.metadata, pending.reply)
        message = {"metadata": {**pending.metadata, "message_id": parcel.tree.name}, "content": {}}
        asked = self._me(messages_list=[message], message_object_trees=[parcel.tree.to_fields()])
        run_id = int(pending.metadata["run_id"])
        for _ in range(ATTEMPTS):
            told = self._call("push-messages", "PushMessages", asked)
            wanted = told["objects_to_push"]
            if not all(name in parcel.objects for name in wanted):
                raise CodecError("the server wants an object that the answer does not have")
            if all(self._push_object(run_id, name, parcel.objects[name], told["session_id"]) for name in wanted):
                return sum(map(len, parcel.objects.values()))
        raise LinkError(f"{self.link.address} takes no answer: its objects are not stored")

    def _push_object(self, run_id: int, name: str, content: bytes, session: str) -> bool:
        asked = self._me(run_id=run_id, object_id=name, object_content=content, session_id=session)
        return bool(self._call("push-object", "PushObject", asked)["stored"])

    def _run_config(self, run_id: int) -> dict[str, Any]:
        """Return the settings of a run, as the server has them; they do not change while it lasts."""
        if run_id not in self._runs:
            run = self._call("get-run", "GetRun", self._me(run_id=run_id))["run"]
            entries = run["override_config"] if run is not None else []
            while len(self._runs) >= MAX_RUNS:
                self._runs.pop(next(iter(self._runs)))
            self._runs[run_id] = {e["key"]: v for e in entries for v in (e["value"] or {}).values()}
        return self._runs[run_id]

    def _is_over(self, run_id: int) -> bool:
        try:
            self._call("get-run", "GetRun", self._me(run_id=run_id))
        except Rejected as error:
            if error.status == OVER:
                return True
            raise
        return False

    # Calls.

    def _me(self, **more: Any) -> Fields:
        return {"node": {"node_id": self.node_id}, **more}

    def _call(self, route: str, kind: str, fields: Fields) -> Fields:
        """Return the answer of a route, however long the server is away."""
        body = encode(f"{kind}Request", fields)

        def tell(error: LinkError) -> None:
            if not self._away:
                self.observe("away", {"error": str(error)})
            self._away = True

        content = with_patience(lambda: self.link.fleet(route, body), self._wait, tell=tell)
        if self._away:
            self._away = False
            self.observe("back", {})
        return decode(f"{kind}Response", content)

    def _wait(self, seconds: float) -> None:
        if self.stop.wait(seconds):
            raise Stopped


_TASKS = {"src_task_id": "dst_task_id", "dst_task_id": "src_task_id"}
