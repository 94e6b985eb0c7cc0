"""A front with a SuperLink of our own making behind it, for tests of what passes and who is let in."""

import httpx
import numpy as np
import safetensors.numpy
from devices import Device, ask

from fedkd.serving.front import Offer, front
from fedkd.serving.gate import Gate, Limits
from fedkd.serving.invites import Registry

FINGERPRINT = "ab" * 32


class Ticks:
    now = 100.0

    def __call__(self):
        return self.now


class Scene:
    """A front, who is registered, and what came out behind."""

    def __init__(self, folder, **limits):
        self.seen, self.answer, self.ticks = [], httpx.Response(200, content=b"pong"), Ticks()
        self.registry = Registry(folder / "members.json")
        self.registered = {}
        self.device = Device()
        member = self.registry.add(self.device.pem, "pi")
        self.registry.settle(member.key, "42")
        upstream = httpx.AsyncClient(transport=httpx.MockTransport(self._superlink), base_url="https://127.0.0.1:1")
        self.gate = Gate(self.registry, upstream, limits=Limits(**limits), ticks=self.ticks)
        self.page = folder / "page"
        self.page.mkdir()
        (self.page / "index.html").write_text("<h1>fedkd</h1>" * 99)
        (self.page / "app.js").write_text("1")
        (self.page / ".secret").write_text("1")
        (self.page / "link.html").symlink_to("/etc/passwd")
        self.offer = Offer(
            {"name": "run", "authority": ""}, b"PEM", b"x" * 5000, FINGERPRINT, shards=2,
            shard=lambda k: safetensors.numpy.save({"x": np.full((3, 2), k, np.float32)}),
        )  # fmt: skip
        self.app = front(self.offer, self.gate, self.register, page=self.page)

    def _superlink(self, request):
        self.seen.append(request)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def register(self, key, name):
        self.registered[key] = name
        return str(1000 + len(self.registered))

    def fleet(self, route="pull-messages", *, device=None, late=0.0, extra=(), **how):
        headers = {**(device or self.device).headers(late=late), **dict(extra)}
        return ask(self.app, f"/v1/fleet/{route}", method="POST", headers=headers, **how)

    def post(self, path, body=b"", **how):
        return ask(self.app, path, method="POST", body=body, **how)
