"""The real front on a loopback port for phones in tests, with a Fleet in this process behind its gate, or nothing."""

import contextlib
import threading
import time

import httpx
import numpy as np
import uvicorn
from safetensors.numpy import save

from fedkd.federation import federation
from fedkd.flower.launch import free_port
from fedkd.serving.front import Offer, front
from fedkd.serving.gate import Gate
from fedkd.serving.invites import Registry

NODE = 18364758544493064720
PROTOBUF = {"content-type": "application/protobuf"}


def offer_of(config, name="digits"):
    """Return what a server offers that runs ``config`` on simulated data."""
    shared = federation(config.data, config.transfer, config.partition, config.clients, config.seed)
    x = np.ascontiguousarray(shared.transfer.inputs, "<f4")
    about = {
        "fedkd": "0.1.0", "wire": 2, "name": name, "classes": shared.dataset.classes, "class_names": None,
        "shape": list(x.shape[1:]), "rows": len(x), "fingerprint": shared.transfer.fingerprint,
        "config": config.to_run_config(), "shards": config.clients, "authority": "cd" * 16,
    }  # fmt: skip

    def shard(k):
        mine, labels = shared.private(k)
        return save({"x": np.ascontiguousarray(mine, np.float32), "y": labels})

    return Offer(about, b"", save({"x": x}), shared.transfer.fingerprint, config.clients, shard)


def nobody(route, body, headers):
    """A Fleet where every node is alive and nothing is ever asked."""
    return 200, b"\x08\x01" if route.endswith("heartbeat") else b"", {}


class Front:
    """A front that can be shut and opened again at the same port; ``fleet`` answers ``(route, body, headers)``."""

    def __init__(self, folder, offer, fleet=nobody):
        self.registry, self.asked, self.offer, self.fleet = Registry(folder / "registry.json"), [], offer, fleet
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"  # loopback is as good as https to a browser
        self._server = None

    def open(self):
        upstream = httpx.AsyncClient(transport=httpx.MockTransport(self._pass_on), base_url="http://superlink")
        app = front(self.offer, Gate(self.registry, upstream), self._register)
        settings = uvicorn.Config(
            app, host="127.0.0.1", port=self.port, log_level="error", lifespan="off", ws="none"
        )  # fmt: skip
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        end = time.monotonic() + 20
        while not self._server.started:
            assert time.monotonic() < end
            time.sleep(0.02)

    def shut(self):
        if self._server is not None:
            self._server.should_exit = self._server.force_exit = True
            self._thread.join(20)
            self._server = None

    def invitation(self):
        return f"{self.url}/#code={self.registry.invite()}&ca=00"

    def _register(self, key, name):
        if hasattr(self.fleet, "keys"):
            self.fleet.keys[key] = NODE
        return str(NODE)

    def _pass_on(self, request):
        route = request.url.path.rpartition("/")[2]
        self.asked.append(route)
        status, body, more = self.fleet(route, request.content, request.headers)
        return httpx.Response(status, content=body, headers={**more, **PROTOBUF})


@contextlib.contextmanager
def served(folder, offer, fleet=nobody):
    """Open a front, and shut it."""
    server = Front(folder, offer, fleet)
    server.open()
    try:
        yield server
    finally:
        server.shut()
