"""What one peer may ask: buckets, one holder a key, and connections that do not linger."""

import contextlib
import random
import socket
import threading
import time

import httpx
import pytest
import uvicorn

from fedkd.serving import limits as limits_module
from fedkd.serving.front import SLICE, Offer, front
from fedkd.serving.gate import Gate
from fedkd.serving.invites import Registry
from fedkd.serving.limits import Buckets, Holders, Patience, Places, impatient, whose


class Ticks:
    now = 100.0

    def __call__(self):
        return self.now


def test_a_bucket_fills_at_its_rate_and_never_above_its_burst():
    ticks = Ticks()
    bucket = Buckets(rate=2, burst=4, clock=ticks)
    assert [bucket.take("a") for _ in range(5)] == [0, 0, 0, 0, 0.5]
    ticks.now += 0.5
    assert (bucket.take("a"), bucket.take("a")) == (0, 0.5)
    ticks.now += 1000
    assert sum(bucket.take("a") == 0 for _ in range(9)) == 4


def test_memory_of_peers_is_bounded(monkeypatch):
    monkeypatch.setattr(limits_module, "MOST", 10)
    bucket, holders = Buckets(rate=1, burst=1), Holders(hold=5)
    for i in range(100):
        bucket.take(str(i))
        holders.take(str(i), "x")
    assert len(bucket._levels) == len(holders._holders) == 10


def test_one_household_is_one_peer():
    assert whose("2001:db8::1") == whose("2001:db8::ffff")
    assert whose("2001:db8::1") != whose("2001:db8:0:1::1")
    assert whose("::ffff:192.0.2.1") == whose("192.0.2.1") != whose("192.0.2.2")
    assert whose("fe80::1%eth0") == "fe80::/64"


async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


SERVERS = {}


def connections(address):
    return list(SERVERS[address].server_state.connections)


@contextlib.contextmanager
def running(patience, app=app, **settings):
    """Run uvicorn on loopback as the front does; yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            app, http=impatient(patience), lifespan="off", log_config=None, access_log=False, ws="none", **settings
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            end = time.monotonic() + 10
            while not server.started and time.monotonic() < end:
                time.sleep(0.01)
            SERVERS[listener.getsockname()] = server
            yield listener.getsockname()
        finally:
            server.should_exit = True
            thread.join()


def closed_after(connection, *, send=b"", every=0.0):
    """Return the seconds until the other side closes, while ``send`` goes out byte by byte."""
    start, left = time.monotonic(), send
    connection.settimeout(every or 10)
    while time.monotonic() - start < 10:
        try:
            if left:
                connection.sendall(left[:1])
                left = left[1:]
            if not connection.recv(1000):
                break
        except TimeoutError:
            continue
        except OSError:
            break
    return time.monotonic() - start


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 900])
def test_a_connection_that_says_nothing_or_says_it_slowly_is_closed(said):
    with running(Patience(request=0.4)) as address, socket.create_connection(address) as connection:
        assert 0.3 < closed_after(connection, send=said, every=0.02) < 5


def test_a_connection_that_asks_is_answered_again_and_again_and_closed_when_it_falls_silent():
    with (
        running(Patience(request=0.4), timeout_keep_alive=1) as address,
        socket.create_connection(address) as connection,
    ):
        start = time.monotonic()
        while time.monotonic() - start < 1:  # longer in all than one request may take
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b""
            while not answer.endswith(b"ok"):
                more = connection.recv(1000)
                assert more, "closed while it was asking"
                answer += more
        connection.sendall(b"GET / HT")  # uvicorn alone would now wait for ever
        assert closed_after(connection) < 5


def test_one_peer_has_so_many_connections_and_gets_others_when_it_closes_some():
    with running(Patience(request=5, connections=2)) as address:
        first, second = (socket.create_connection(address) for _ in range(2))
        with first, second, socket.create_connection(address) as third:
            assert closed_after(third) < 3
            first.close()
            end = time.monotonic() + 5
            while time.monotonic() < end:
                with socket.create_connection(address) as another, contextlib.suppress(OSError):
                    another.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                    if another.recv(100):
                        return
            raise AssertionError("the place of a closed connection was never free")


FINGERPRINT = "ab" * 32
LENGTH = 16_000_000


@pytest.fixture
def transfer(tmp_path):
    """Return the front's app with a transfer set that no buffer of the system holds."""
    gate = Gate(Registry(tmp_path / "members.json"), httpx.AsyncClient())
    return front(Offer({}, b"", random.Random(0).randbytes(LENGTH), FINGERPRINT), gate, lambda key, name: "1")


def asking(address):
    """Return a connection with little room that has asked for the transfer set."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
    connection.settimeout(20)
    connection.connect(address)
    connection.sendall(f"GET /fedkd/transfer/{FINGERPRINT} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return connection


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_who_asks_and_does_not_read_costs_little_memory_and_is_cut_off(transfer):
    with running(Patience(progress=0.5), app=transfer) as address, asking(address):
        until(lambda: any(c.flow.write_paused for c in connections(address)))
        assert all(c.transport.get_write_buffer_size() <= 2 * SLICE for c in connections(address))
        until(lambda: not connections(address))


def test_who_reads_slowly_gets_everything_however_long_it_takes(transfer):
    with running(Patience(request=0.1), app=transfer, timeout_keep_alive=1) as address, asking(address) as connection:
        start, got = time.monotonic(), 0
        while got < LENGTH:
            more = connection.recv(65_536)
            assert more, f"cut off after {got} bytes"
            got += len(more)
            time.sleep(max(0.0, 1.8 * got / LENGTH - (time.monotonic() - start)))


def test_places_are_so_many_for_each_and_so_many_in_all():
    places = Places(each=2, most=3)
    assert [places.take(name) for name in "aaabb"] == [True, True, False, True, False]
    places.leave("a")
    assert (places.take("b"), places.take("c"), len(places)) == (True, False, 3)
    for name in "abb":
        places.leave(name)
    assert len(places) == len(places._taken) == 0
