"""The front, with a SuperLink of our own making behind it: what passes, what does not, and what it says then."""

import asyncio
import gzip
import hashlib
import json
import logging
from dataclasses import replace

import httpx
import pytest
import safetensors.numpy
from devices import Device, ask, ask_async
from gate_scene import FINGERPRINT, Scene

from fedkd.serving import front as front_module
from fedkd.serving.front import SECURITY, Offer, front, page_files
from fedkd.serving.gate import ROUTES, snapshot, state_of
from fedkd.serving.invites import Registry


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path)


@pytest.mark.parametrize("route", sorted(ROUTES))
def test_each_fleet_call_of_a_member_passes_unchanged(scene, route):
    scene.answer = httpx.Response(
        200, content=b"\x0a\x02hi", headers={"content-type": "application/protobuf", "server": "x", "set-cookie": "a=b"}
    )
    answer = scene.fleet(route, body=b"\x0a\x01", extra={"flwr-component-name": "SuperNode"})
    (request,) = scene.seen
    assert (answer.status, answer.body) == (200, b"\x0a\x02hi")
    assert (request.method, str(request.url)) == ("POST", f"https://127.0.0.1:1/v1/fleet/{route}")
    assert request.content == b"\x0a\x01"
    assert request.headers["flwr-component-name"] == "SuperNode"
    assert request.headers["flwr-public-key"] == scene.device.headers()["flwr-public-key"]
    assert answer.headers["content-type"] == "application/protobuf"
    assert not {"server", "set-cookie"} & set(answer.headers)


def test_only_the_listed_headers_reach_the_superlink(scene):
    extra = {"authorization": "Bearer x", "cookie": "a=b", "flwr-task-token": "t", "flwr-superexec-ts": "1",
             "x-forwarded-for": "127.0.0.1", "connection": "x"}  # fmt: skip
    scene.fleet(extra=extra)
    assert not set(extra) - {"connection"} & set(scene.seen[0].headers)
    assert scene.seen[0].headers.get("connection") != "x"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/list-runs", "/v1/control/start-run", "/v1/runtime/acquire-task", "/v1/runtime/pull-messages",
        "/v1/fleet/acquire-task", "/v1/fleet/", "/v1/fleet", "/v1/fleet/pull-messages/", "/v1/fleet//pull-messages",
        "//v1/fleet/pull-messages", "/v1//fleet/pull-messages", "/v1/fleet/../control/list-runs",
        "/v1/fleet/%2e%2e/control/list-runs", "/v1/fleet/%2e%2e%2fcontrol%2flist-runs", "/v1/fleet/..;/control/x",
        "/v1/fleet/pull-messages%2f..%2f..%2fcontrol%2flist-runs", "/v1/fleet/pull-messages%00",
        "/v1/fleet/Pull-Messages", "/V1/fleet/pull-messages", "/v1/fleet/pull-messages;/../../control/list-runs",
        "/v1/fleet/pull-messages%3f", "/./v1/fleet/pull-messages",
        "/v1/fleet/%252e%252e/control", "/v1/fleet\\..\\control", "/health", "/docs", "/openapi.json", "/metrics",
    ],
)  # fmt: skip
def test_no_path_but_the_twelve_gets_through(scene, path):
    answer = scene.post(path, headers=scene.device.headers())
    assert answer.status == 404
    assert scene.seen == []
    assert "error" in answer.json


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE"])
def test_a_fleet_call_is_a_post(scene, method):
    answer = ask(scene.app, "/v1/fleet/pull-messages", method=method, headers=scene.device.headers())
    assert answer.status == 405
    assert scene.seen == []


def test_a_query_string_is_not_handed_on(scene):
    scene.fleet("pull-messages?x=../../control")
    assert str(scene.seen[0].url).endswith("/v1/fleet/pull-messages")


def never_read():
    raise AssertionError("the body was read")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, other: [(k, v) for k, v in h.items() if k != "flwr-signature"], "flwr-signature is missing"),
        (lambda h, other: [*h.items(), ("flwr-public-key", h["flwr-public-key"])], "flwr-public-key is missing, or th"),
        (lambda h, other: {**h, "flwr-signature": "?"}.items(), "must be base64"),
        (lambda h, other: {**h, "flwr-public-key": "A" * 4000}.items(), "flwr-public-key is missing"),
        (lambda h, other: {**h, "flwr-public-key": other["flwr-public-key"]}.items(), "not registered here"),
        (lambda h, other: {**h, "flwr-signature": other["flwr-signature"]}.items(), "does not fit"),
        (lambda h, other: {**h, "flwr-timestamp": other["flwr-timestamp"]}.items(), "does not fit"),
        (lambda h, other: {**h, "flwr-timestamp": "yesterday"}.items(), "no time with a zone"),
        (lambda h, other: {**h, "flwr-timestamp": "2026-01-01T00:00:00"}.items(), "no time with a zone"),
    ],
)
def test_who_does_not_prove_to_be_a_member_is_refused_before_the_body_is_read(scene, change, message):
    headers = list(change(scene.device.headers(), Device().headers(late=1)))
    answer = scene.post("/v1/fleet/push-object", headers=headers, receive=never_read)
    assert answer.status == 401
    assert message in answer.json["error"]
    assert scene.seen == []


def test_a_revoked_key_is_refused_from_the_next_call_on(scene, tmp_path):
    assert scene.fleet().status == 200
    Registry(tmp_path / "members.json").revoke("pi")  # as fedkd nodes revoke does, in another process
    answer = scene.fleet()
    assert (answer.status, answer.json["error"]) == (401, "this key was revoked by the server's owner")
    assert len(scene.seen) == 1


@pytest.mark.parametrize(
    ("late", "status", "message"),
    [
        (3600, 401, "clock of this device is 3600 s behind"),
        (-3600, 401, "clock of this device is 3600 s ahead of"),
        (300, 200, ""),
        (-4, 200, ""),
        (310, 401, "behind"),
        (-6, 401, "ahead"),
    ],
)
def test_a_clock_that_is_off_is_said_so(scene, late, status, message):
    answer = scene.fleet(late=late)
    assert answer.status == status
    if message:
        assert message in answer.json["error"]


def test_a_body_is_measured_whether_it_says_its_length_or_not(tmp_path):
    scene = Scene(tmp_path, body=1000)
    assert scene.fleet(body=b"x" * 1000, extra={"content-length": "1000"}).status == 200
    told = scene.fleet(extra={"content-length": "1001"}, receive=never_read)
    assert (told.status, told.json["error"]) == (413, "a request may have 1000 bytes")
    assert scene.fleet(parts=[b"x" * 400] * 3).status == 413
    assert scene.fleet(extra={"content-length": "-1"}).status == 413
    assert scene.fleet(extra={"content-type": "text/plain"}, receive=never_read).status == 415
    assert len(scene.seen) == 1
    assert scene.gate._held == 0


def test_all_bodies_together_are_held_within_bounds(tmp_path):
    scene = Scene(tmp_path, held=1500)

    async def both():
        ready = asyncio.Event()

        async def slow():
            await ready.wait()
            return {"type": "http.request", "body": b"", "more_body": False}

        pieces = iter([{"type": "http.request", "body": b"x" * 1000, "more_body": True}])

        async def first():
            return next(pieces, None) or await slow()

        how = {"method": "POST", "headers": scene.device.headers()}
        one = asyncio.create_task(ask_async(scene.app, "/v1/fleet/push-object", receive=first, **how))
        await asyncio.sleep(0)
        while not scene.gate._held:
            await asyncio.sleep(0.01)
        two = await ask_async(scene.app, "/v1/fleet/push-object", body=b"x" * 1000, **how)
        ready.set()
        return (await one).status, two.status

    assert asyncio.run(both()) == (200, 503)
    assert scene.gate._held == 0


def test_what_waits_for_the_superlink_is_held_and_one_key_has_few_calls_under_way(tmp_path):
    scene = Scene(tmp_path, held=1500, calls=1)
    other = Device()
    scene.registry.add(other.pem, "other")

    async def together():
        arrived, ready = asyncio.Event(), asyncio.Event()

        async def slow(request):
            arrived.set()
            await ready.wait()
            return httpx.Response(200, content=b"pong")

        scene.gate.upstream = httpx.AsyncClient(transport=httpx.MockTransport(slow), base_url="https://127.0.0.1:1")

        def push(device):
            how = {"method": "POST", "headers": device.headers(), "body": b"x" * 1000}
            return ask_async(scene.app, "/v1/fleet/push-object", **how)

        one = asyncio.create_task(push(scene.device))
        await arrived.wait()
        second, others = await push(scene.device), await push(other)
        ready.set()
        return (await one).status, second, others

    status, second, others = asyncio.run(together())
    assert (status, second.status, others.status) == (200, 503, 503)
    assert "calls with this key are under way" in second.json["error"]
    assert "as much as it can hold" in others.json["error"]
    assert scene.gate._held == len(scene.gate._calls) == 0


def test_a_body_that_does_not_come_is_not_waited_for(tmp_path):
    scene = Scene(tmp_path, upload=0.05)

    async def never():
        await asyncio.Event().wait()

    answer = scene.fleet(receive=never)
    assert answer.status == 408
    assert scene.gate._held == 0


def test_one_key_that_asks_too_often_is_slowed_down_and_no_other(tmp_path):
    scene = Scene(tmp_path, key_rate=1, key_burst=3)
    other = Device()
    scene.registry.add(other.pem, "other")
    assert [scene.fleet().status for _ in range(4)] == [200, 200, 200, 503]
    refused = scene.fleet()
    assert refused.headers["retry-after"] == "2"
    assert scene.fleet(device=other).status == 200
    scene.ticks.now += 1.01
    assert [scene.fleet().status for _ in range(2)] == [200, 503]


def test_one_address_that_asks_too_often_is_slowed_down_and_no_other(tmp_path):
    scene = Scene(tmp_path, address_rate=1, address_burst=2)
    paths = ["/", "/fedkd/about.json", "/fedkd/ca.crt"]
    assert [ask(scene.app, path).status for path in paths] == [200, 200, 503]
    assert scene.fleet().status == 503
    assert scene.fleet(client="192.0.2.8").status == 200


def test_who_guesses_is_not_listened_to_for_long(tmp_path):
    scene = Scene(tmp_path, failures_rate=0.1, failures_burst=3)
    guesses = [scene.post("/fedkd/join", Device().join(f"guess{i}")).status for i in range(5)]
    assert guesses == [403, 403, 403, 429, 429]
    assert scene.fleet(device=Device()).status == 429
    assert scene.fleet().status == 200  # a member behind the same address goes on


def test_who_guessed_too_often_waits_with_the_right_code_too(tmp_path):
    scene = Scene(tmp_path, failures_rate=0.1, failures_burst=3)
    code, device = scene.registry.invite(), Device()
    assert [scene.post("/fedkd/join", Device().join(f"guess{i}")).status for i in range(3)] == [403] * 3
    early = scene.post("/fedkd/join", device.join(code))
    assert (early.status, early.headers["retry-after"]) == (429, "11")
    assert scene.registry.seats_left() == 1
    assert scene.post("/fedkd/join", device.join(code), client="192.0.2.8").status == 200
    scene.ticks.now += 10
    assert scene.post("/fedkd/join", device.join(code)).status == 200


def test_a_second_device_with_the_same_key_is_told_so_while_the_first_goes_on(scene):
    def call(instance):
        return scene.fleet(extra={"fedkd-instance": instance})

    assert call("a").status == 200
    scene.ticks.now += 3
    second = call("b")
    assert second.status == 409
    assert "another device uses this key (pi) right now" in second.json["error"]
    scene.ticks.now += 9
    assert call("a").status == 200
    scene.ticks.now += 9
    assert call("b").status == 409
    scene.ticks.now += 2  # the first has gone
    assert call("b").status == 200
    assert call("a").status == 409


def test_a_program_without_a_name_may_change_its_network_after_a_moment(scene):
    assert scene.fleet(client="192.0.2.1").status == 200
    moved = scene.fleet(client="192.0.2.2")
    assert moved.status == 503  # which stock SuperNodes try again, unlike 409
    assert int(moved.headers["retry-after"]) <= 11
    scene.ticks.now += 10
    assert scene.fleet(client="192.0.2.2").status == 200


def test_a_superlink_that_is_gone_is_a_502_that_nodes_retry(scene):
    scene.answer = httpx.ConnectError("refused by 127.0.0.1:33285")
    answer = scene.fleet()
    assert (answer.status, answer.json) == (502, {"error": "the SuperLink does not answer"})


def test_a_superlink_that_fails_for_a_moment_is_a_503_that_nodes_retry(scene):
    """Under load its database is locked at times; stock SuperNodes end on a 500."""
    scene.answer = httpx.Response(500, content=b"Internal server error.")
    answer = scene.fleet()
    assert (answer.status, answer.json) == (503, {"error": "the SuperLink could not answer; try again"})
    assert int(answer.headers["retry-after"]) <= 3


def test_what_the_superlink_refuses_is_handed_back_as_it_is(scene):
    scene.answer = httpx.Response(412, content=b'{"code": 7}', headers={"content-type": "application/json"})
    answer = scene.fleet("activate-node")
    assert (answer.status, answer.body) == (412, b'{"code": 7}')


def test_pages_of_other_sites_can_ask_for_nothing(scene):
    for origin, status in [("https://evil.test", 403), ("null", 403), ("https://server.test", 200)]:
        assert scene.fleet(extra={"origin": origin}).status == status
    answer = scene.fleet(extra={"origin": "https://server.test"})
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_what_is_public_is_told_as_it_is(scene):
    assert ask(scene.app, "/fedkd/about.json").json == {"name": "run", "authority": ""}
    assert ask(scene.app, "/fedkd/ca.crt").body == b"PEM"
    plain = ask(scene.app, f"/fedkd/transfer/{FINGERPRINT}")
    assert (plain.body, "content-encoding" in plain.headers) == (b"x" * 5000, False)
    packed = ask(scene.app, f"/fedkd/transfer/{FINGERPRINT}", headers={"accept-encoding": "br, gzip;q=0.5"})
    assert packed.headers["content-encoding"] == "gzip"
    assert "immutable" in packed.headers["cache-control"]
    assert gzip.decompress(packed.body) == b"x" * 5000
    known = ask(scene.app, f"/fedkd/transfer/{FINGERPRINT}", headers={"if-none-match": plain.headers["etag"]})
    assert (known.status, known.body) == (304, b"")
    assert ask(scene.app, "/fedkd/transfer/" + "cd" * 32).status == 404
    assert ask(scene.app, "/fedkd/join").status == 405


def test_shares_are_offered_for_a_demonstration_only(scene):
    share = safetensors.numpy.load(ask(scene.app, "/fedkd/shard/1").body)
    assert share["x"].tolist() == [[1, 1]] * 3
    for k in ("2", "-1", "x", "1.0", "9" * 50, "%2e%2e", "٣"):
        assert ask(scene.app, f"/fedkd/shard/{k}").status == 404
    app = front(Offer({}, b"", b"", FINGERPRINT), scene.gate, scene.register, page=scene.page)
    assert ask(app, "/fedkd/shard/0").status == 404


def test_a_share_is_made_once_while_it_is_remembered_and_hashed_once(scene, monkeypatch):
    made = []

    def shard(k):
        made.append(k)
        return b"x" * 100

    app = front(replace(scene.offer, shard=shard, shards=9), scene.gate, scene.register, page=scene.page)
    monkeypatch.setattr(front_module.hashlib, "sha256", lambda content: made.append("hash") or hashlib.md5(content))
    assert [ask(app, path).status for path in ("/", "/fedkd/shard/3", "/", "/fedkd/shard/3")] == [200] * 4
    assert made == [3, "hash"]


def test_long_answers_go_out_in_slices_and_so_many_at_a_time(scene, monkeypatch):
    monkeypatch.setattr(front_module, "SLICE", 1000)
    monkeypatch.setattr(front_module, "DOWNLOADS_EACH", 1)
    app = front(scene.offer, scene.gate, scene.register, page=scene.page)
    path = f"/fedkd/transfer/{FINGERPRINT}"

    async def together():
        sent, ready = [], asyncio.Event()

        async def slow(scope, receive, send):
            async def write(message):
                sent.append(message)
                await ready.wait()
                await send(message)

            await app(scope, receive, write)

        one = asyncio.create_task(ask_async(slow, path))
        while not sent:
            await asyncio.sleep(0)
        full, short = await ask_async(app, path), await ask_async(app, "/fedkd/ca.crt")
        elsewhere = await ask_async(app, path, client="192.0.2.8")
        ready.set()
        return await one, sent[1:], full, short.status, elsewhere.status, (await ask_async(app, path)).status

    whole, sent, full, *statuses = asyncio.run(together())
    assert whole.body == b"x" * 5000
    assert [(len(part["body"]), part.get("more_body", False)) for part in sent] == [(1000, True)] * 4 + [(1000, False)]
    assert (full.status, full.headers["retry-after"]) == (503, "6")
    assert statuses == [200, 200, 200]


def test_the_page_is_what_lay_there_at_the_start_and_nothing_else(scene, tmp_path):
    assert sorted(page_files(scene.page)) == ["app.js", "index.html"]
    index = ask(scene.app, "/")
    assert index.body == ask(scene.app, "/index.html").body == b"<h1>fedkd</h1>" * 99
    assert index.headers["content-type"].startswith("text/html")
    assert ask(scene.app, "/app.js").headers["content-type"].startswith("text/javascript")
    (scene.page / "later.html").write_text("x")
    for path in ("/later.html", "/.secret", "/link.html", "/../members.json", "/%2e%2e/members.json", "/page/app.js"):
        assert ask(scene.app, path).status == 404
    app = front(scene.offer, scene.gate, scene.register, page=tmp_path / "none")
    assert ask(app, "/").status == 404


def test_every_answer_has_the_security_headers(scene):
    answers = [ask(scene.app, path) for path in ("/", "/nothing", "/fedkd/about.json", "/fedkd/join")]
    answers += [scene.fleet(), scene.fleet(device=Device()), scene.fleet(late=9999)]
    for answer in answers:
        assert {name: answer.headers[name] for name in SECURITY} == SECURITY
        assert "strict-transport-security" not in answer.headers
    policy = SECURITY["content-security-policy"]
    assert "'unsafe" not in policy
    assert "default-src 'none'" in policy


def test_the_log_tells_what_was_refused_and_nothing_that_was_sent(scene, caplog):
    caplog.set_level(logging.DEBUG, logger="fedkd.serving")
    code = scene.registry.invite()
    device = Device()
    scene.post(f"/fedkd/join?code={code}", device.join(code, "phone"))
    scene.post("/fedkd/join", Device().join("wrong-code"))
    scene.fleet("push-messages?token=hunter2", body=b"SOFTLABELS")
    scene.fleet(device=Device(), body=b"SOFTLABELS")
    text = caplog.text
    assert "phone" in text
    assert "not registered here" in text
    for secret in (code, "wrong-code", "hunter2", "SOFTLABELS", device.pem.decode()[30:60]):
        assert secret not in text
    for record in caplog.records:
        json.loads(record.getMessage())


def test_traffic_is_counted_for_each_node(scene):
    scene.fleet(body=b"12345")
    scene.fleet("push-messages", body=b"1")
    (row,) = snapshot(
        scene.registry, scene.gate.traffic, now=scene.gate.traffic[scene.registry.members()[0].mark].heard
    )
    assert (row["name"], row["state"], row["node_id"], row["calls"]) == ("pi", "here", "42", 2)
    assert (row["bytes_in"], row["bytes_out"], row["address"]) == (6, 8, "192.0.2.7")
    assert [state_of(heard, 1000.0) for heard in (0.0, 999.0, 900.0)] == ["never seen", "here", "silent"]
