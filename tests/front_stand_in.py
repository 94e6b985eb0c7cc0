"""A small stand-in for the front of a server, for tests of nodes: ``/fedkd/*`` by itself, ``/v1/fleet/*`` passed on."""

import contextlib
import http.client
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from safetensors.numpy import save

from fedkd import __version__
from fedkd.federation import federation
from fedkd.frames import VERSION

AUTHORITY = "ab" * 16


class Front:
    """What the handler below knows: a configuration, the Fleet behind it (``host:port`` or a callable), and a log."""

    def __init__(self, config, fleet, *, codes=("123456",)):
        self.config, self.fleet, self.codes, self.joined = config, fleet, list(codes), []
        self.shared = federation(config.data, config.transfer, config.partition, config.clients, config.seed)
        self.requests, self.lock = [], threading.Lock()
        self.about = {
            "fedkd": __version__,
            "wire": VERSION,
            "name": "trial",
            "classes": self.shared.dataset.classes,
            "class_names": list(self.shared.dataset.class_names) or None,
            "shape": list(self.shared.transfer.inputs.shape[1:]),
            "rows": len(self.shared.transfer),
            "fingerprint": self.shared.transfer.fingerprint,
            "config": config.to_run_config(),
            "shards": config.clients,
            "authority": AUTHORITY,
        }
        self.transfer = save({"x": self.shared.transfer.inputs})

    def get(self, path):
        if path == "/fedkd/about.json":
            return 200, json.dumps(self.about).encode()
        if path == f"/fedkd/transfer/{self.about['fingerprint']}":
            return 200, self.transfer
        if path.startswith("/fedkd/shard/"):
            x, y = self.shared.private(int(path.rpartition("/")[2]))
            return 200, save({"x": x, "y": y})
        return 404, b'{"error": "there is nothing here"}'

    def post(self, path, body, headers):
        if path == "/fedkd/join":
            asked = json.loads(body)
            with self.lock:
                if asked["code"] not in self.codes:
                    return 403, b'{"error": "this code was used already, has expired or never was one"}', {}
                self.codes.remove(asked["code"])
                self.joined.append(asked)
            return 200, json.dumps({"node_id": str(self.join(asked))}).encode(), {}
        if not path.startswith("/v1/fleet/"):
            return 404, b"", {}
        if callable(self.fleet):
            return self.fleet(path.rpartition("/")[2], body, headers)
        return passed_on(self.fleet, path, body, headers)

    def join(self, asked):
        return 0


def passed_on(address, path, body, headers):
    """Return what a SuperLink at ``address`` answers."""
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read(), {"date": answer.headers["date"]}
    except OSError:
        return 502, b'{"error": "the SuperLink does not answer"}', {}
    finally:
        connection.close()


@contextlib.contextmanager
def serving(front, context=None):
    """Run ``front`` on a free loopback port, with TLS if there is a ``context``; yield the port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            front.requests.append(self.path)
            self.say(*front.get(self.path))

        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            front.requests.append(self.path)
            headers = {k: v for k, v in self.headers.items() if k.lower().startswith(("flwr-", "content-type"))}
            self.say(*front.post(self.path, body, headers))

        def say(self, status, body, more=()):
            self.send_response_only(status)
            for name, value in {
                "Date": self.date_time_string(),
                **{k.title(): v for k, v in dict(more).items()},
            }.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # a test that breaks a connection wants no traceback
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
