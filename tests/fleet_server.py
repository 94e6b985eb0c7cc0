"""A Fleet API in this process, for tests of nodes: messages out, answers in, and whatever a bad server might say."""

import base64
import hashlib
import threading
import time
from datetime import datetime
from email.utils import formatdate

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedkd.envelope import QUERY, query_records
from fedkd.fleet.objects import pack, pack_records, unpack
from fedkd.fleet.wire import decode, encode

RUN = 77


class FleetServer:
    """Knows keys, hands out each message once, takes answers object by object. A call is ``(route, body, headers)``."""

    def __init__(self, config, *, skew=0.0, enrolls=True):
        self.config, self.skew, self.enrolls = config, skew, enrolls
        self.keys, self.online, self.waiting, self.objects = {}, {}, [], {}
        self.answers, self.calls, self.over, self.sessions = {}, [], set(), 0
        self.spoil = lambda route, fields: None  # may return (status, body, headers) instead of an answer
        self.lock, self.changed = threading.Lock(), threading.Event()
        self.next_id = 100

    # What a test does.

    def ask(self, frame, acknowledged=0, *, records=None, ttl=60.0, kind=QUERY, node=None, group="1", **metadata):
        """Lay a message out for ``node`` (the only one there is); return its name."""
        content = pack_records(records if records is not None else query_records(frame, acknowledged))
        node = node or next(iter(self.keys.values()), 0)
        about = {
            "run_id": RUN, "src_node_id": 1, "dst_node_id": node, "group_id": group, "ttl": ttl,
            "message_type": kind, "created_at": self.now(), "src_task_id": 0, "dst_task_id": 5, **metadata,
        }  # fmt: skip
        whole = pack("Message", encode("Message", {"metadata": about}), [content.tree.name])
        name = hashlib.sha256(whole).hexdigest()
        with self.lock:
            self.objects |= {**content.objects, name: whole}
            tree = {"object_id": name, "children": [content.tree.to_fields()]}
            self.waiting.append(({**about, "message_id": name}, tree))
        return name

    def now(self):
        return time.time() + self.skew

    def wait_for_answers(self, count, timeout=20.0):
        end = time.monotonic() + timeout
        while len(self.complete()) < count:
            assert time.monotonic() < end, f"{len(self.complete())} of {count} answers within {timeout} s"
            self.changed.wait(0.05)
            self.changed.clear()
        return self.complete()

    def complete(self):
        """Return (metadata, objects) of the answers whose objects have all arrived, by the message they reply to."""
        with self.lock:
            return {
                name: (metadata, {n: self.objects[n] for n in names(tree)})
                for name, (metadata, tree) in self.answers.items()
                if all(n in self.objects for n in names(tree))
            }

    # What a node sees.

    def __call__(self, route, body, headers):
        kind = {"register-node": "RegisterNodeFleet", "confirm-message-received": "ConfirmMessageReceived"}.get(
            route, "".join(word.title() for word in route.split("-"))
        )
        fields = decode(f"{kind}Request", body)
        with self.lock:
            self.calls.append(route)
        date = {"date": formatdate(self.now(), usegmt=True)}
        spoiled = self.spoil(route, fields)
        if spoiled is not None:
            status, said, more = spoiled
            return status, said, {**date, **more}
        key = base64.b64decode(headers["flwr-public-key"])
        if not self.is_signed(key, headers) or (route not in OPEN and self.keys.get(key) != fields["node"]["node_id"]):
            return 401, b'{"detail": "Invalid SuperNode authentication"}', date
        with self.lock:
            status, answer = getattr(self, route.replace("-", "_"))(fields, key)
        if status != 200:
            return status, b'{"code": 1, "message": "The server does not like it."}', date
        return 200, encode(f"{kind}Response", answer), date

    def is_signed(self, key, headers):
        when = headers["flwr-timestamp"]
        age = self.now() - datetime.fromisoformat(when).timestamp()
        try:
            serialization.load_pem_public_key(key).verify(
                base64.b64decode(headers["flwr-signature"]), when.encode(), ec.ECDSA(hashes.SHA256())
            )
        except InvalidSignature:
            return False
        return -5 < age < 305

    def register_node(self, fields, key):
        if not self.enrolls or key in self.keys:
            return 412, {}
        self.next_id += 1
        self.keys[key] = self.next_id
        return 200, {"node_id": self.next_id}

    def activate_node(self, fields, key):
        if key not in self.keys or self.online.get(key):
            return 412, {}
        self.online[key] = True
        return 200, {"node_id": self.keys[key]}

    def send_node_heartbeat(self, fields, key):
        self.online[key] = True
        return 200, {"success": True}

    def pull_messages(self, fields, key):
        for at, (metadata, tree) in enumerate(self.waiting):
            if metadata["dst_node_id"] == self.keys[key]:
                del self.waiting[at]
                message = {"metadata": metadata, "content": {}}
                return 200, {"messages_list": [message], "message_object_trees": [tree]}
        return 200, {}

    def pull_object(self, fields, key):
        content = self.objects.get(fields["object_id"])
        found = {"object_found": True, "object_available": True, "object_content": content}
        return (403, {}) if fields["run_id"] in self.over else (200, found if content is not None else {})

    def confirm_message_received(self, fields, key):
        return 200, {}

    def get_run(self, fields, key):
        if fields["run_id"] in self.over:
            return 403, {}
        kinds = {bool: "bool", int: "sint64", float: "double", str: "string"}
        run_config = self.config if isinstance(self.config, dict) else self.config.to_run_config()
        entries = [{"key": k, "value": {kinds[type(v)]: v}} for k, v in run_config.items()]
        return 200, {"run": {"run_id": fields["run_id"], "override_config": entries}}

    def push_messages(self, fields, key):
        metadata, tree = fields["messages_list"][0]["metadata"], fields["message_object_trees"][0]
        if metadata["run_id"] in self.over:
            return 403, {}
        asked = metadata["reply_to_message_id"]
        if asked in self.answers and self.answers[asked][0]["message_id"] != metadata["message_id"]:
            return 200, {}  # another answer to the same message
        self.answers[asked] = (metadata, tree)
        self.sessions += 1
        wanted = [name for name in names(tree) if name not in self.objects]
        return 200, {"objects_to_push": wanted, "session_id": str(self.sessions)}

    def push_object(self, fields, key):
        if fields["session_id"] != str(self.sessions):
            return 200, {"stored": False}
        kind, below, _ = unpack(fields["object_content"])
        assert hashlib.sha256(fields["object_content"]).hexdigest() == fields["object_id"], kind
        self.objects[fields["object_id"]] = fields["object_content"]
        self.changed.set()
        return 200, {"stored": True}


OPEN = ("register-node", "activate-node")


def names(tree):
    return [n for child in tree["children"] for n in names(child)] + [tree["object_id"]]
