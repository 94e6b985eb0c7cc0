"""Joining at the front: who is let in by a code, and who does not show that the key is its own."""

import asyncio
from dataclasses import replace

import pytest
from devices import Device, ask, ask_async
from gate_scene import Scene

from fedkd.errors import FedkdError
from fedkd.serving.front import front


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path)


def test_a_code_lets_in_one_device_which_then_passes(scene):
    code, device = scene.registry.invite(), Device()
    joined = scene.post("/fedkd/join", device.join(code, "phone"))
    assert (joined.status, joined.json) == (200, {"node_id": "1001"})
    assert scene.registered == {device.pem: "phone"}
    assert scene.fleet(device=device).status == 200
    again = scene.post("/fedkd/join", device.join(code, "phone"))
    assert again.json == {"node_id": "1001"}
    assert len(scene.registered) == 1
    second = scene.post("/fedkd/join", Device().join(code))
    assert (second.status, second.json["error"]) == (
        403,
        "this join code is used up, by the device that it was for: ask the server's owner for another one "
        "(fedkd nodes invite)",
    )


def test_who_does_not_show_that_it_has_the_key_is_not_let_in(scene):
    """Somebody who has seen a public key and a code, and even a proof for something else."""
    code, device, other = scene.registry.invite(), Device(), Device()
    fits = "the proof does not fit this key, code, time and server"
    fleet = device.headers()
    requests = {
        device.join(code, time=None, proof=None): "must show that it has the private key",
        device.join(code, proof=None): "must show that it has the private key",
        device.join(code, proof="???"): "must be base64",
        device.join(code, proof=""): "must show that it has the private key",
        device.join(code, time="noon"): "is no time with a zone",
        device.join(code, late=400): "400 s behind the server's",
        device.join(code, late=-60): "60 s ahead of the server's",
        device.join(code, time=Device().headers()["flwr-timestamp"]): fits,  # another moment than was signed
        device.join("another code", code=code): fits,
        device.join(code, authority="ab" * 16): fits,  # for another server
        other.join(code, key=device.pem.decode()): fits,
        device.join(code, key=other.pem.decode()): fits,
        device.join(code, time=fleet["flwr-timestamp"], proof=fleet["flwr-signature"]): fits,  # of a Fleet call
    }
    for body, line in requests.items():
        answer = scene.post("/fedkd/join", body)
        assert (answer.status, line in answer.json["error"], "\n" in answer.json["error"]) == (403, True, False), line
    assert scene.registered == {}
    assert scene.registry.seats_left() == 1
    assert scene.post("/fedkd/join", device.join(code, late=200)).status == 200


def test_a_proof_is_for_the_server_whose_authority_it_names(scene):
    app = front(replace(scene.offer, about={"authority": "ab" * 16}), scene.gate, scene.register, page=scene.page)
    code, device = scene.registry.invite(), Device()
    assert ask(app, "/fedkd/join", method="POST", body=device.join(code)).status == 403
    assert ask(app, "/fedkd/join", method="POST", body=device.join(code, authority="ab" * 16)).status == 200


def test_a_superlink_that_fails_takes_no_seat(scene):
    code, device = scene.registry.invite(), Device()
    fine, scene.register = scene.register, None

    def broken(key, name):
        raise FedkdError("HTTP 500 from 127.0.0.1:33285")

    app = front(scene.offer, scene.gate, broken, page=scene.page)
    answer = ask(app, "/fedkd/join", method="POST", body=device.join(code))
    assert (answer.status, answer.json["error"]) == (503, "the SuperLink did not register this device; try again")
    assert scene.registry.seats_left() == 1
    app = front(scene.offer, scene.gate, fine, page=scene.page)
    assert ask(app, "/fedkd/join", method="POST", body=device.join(code)).status == 200


def test_one_seat_is_taken_once_however_many_ask_together(scene):
    code = scene.registry.invite()

    async def all_at_once():
        asked = [ask_async(scene.app, "/fedkd/join", method="POST", body=Device().join(code)) for _ in range(8)]
        return sorted(answer.status for answer in await asyncio.gather(*asked))

    assert asyncio.run(all_at_once()) == [200] + [403] * 7
    assert len(scene.registered) == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "is JSON"),
        (b"[]", "is JSON"),
        (b'{"code": "x"}', "is JSON"),
        (b'{"code": 1, "key": "x"}', "is JSON"),
        (b"[" * 5000, "is JSON"),
        (b'{"code": "x", "key": "y", "proof": 1}', "is JSON"),
        (b'{"code": "\\ud800", "key": "y"}', "is JSON"),
        (b'{"code": "x", "key": "not a key"}', "no public key"),
        (b" " * 9000, "at most 8192 bytes"),
    ],
)
def test_a_request_to_join_that_is_none_is_one_line(scene, body, message):
    answer = scene.post("/fedkd/join", body)
    assert answer.status == 400
    assert message in answer.json["error"]
    assert "\n" not in answer.json["error"]
