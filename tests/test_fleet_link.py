"""Keys, clocks and connections of a node: whom it believes, what it signs, and what it says when something is wrong."""

import datetime
import gzip
import hashlib
import ipaddress
import os
import ssl
import threading
import time
from email.utils import formatdate

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from fleet_server import FleetServer
from front_stand_in import Front, serving

from fedkd.config import Config
from fedkd.errors import CheckpointError, LinkError, Rejected, Unreachable, Untrusted
from fedkd.fleet.home import Home
from fedkd.fleet.identity import Identity, ServerClock
from fedkd.fleet.joining import Invitation, about, contact
from fedkd.fleet.link import AGAIN, Address, Link, blind, check_pin, trusting, with_patience
from fedkd.fleet.wire import encode
from fedkd.flower import launch

CONFIG = Config(clients=2, rounds=1, learner="linear", student="none")
PEM = serialization.Encoding.PEM


def authority(name="fedkd"):
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=9))
        .not_valid_after(now + datetime.timedelta(days=9))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True).sign(key, hashes.SHA256())
    )  # fmt: skip
    return key, made


def server_context(folder, ca, *, days=5):
    """Return the TLS context of a server on loopback whose certificate ``ca`` has signed, for ``days`` from now."""
    signer, root = ca
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(root.subject).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=9))
        .not_valid_after(now + datetime.timedelta(days=days)).add_extension(names, critical=True)
        .sign(signer, hashes.SHA256())
    )  # fmt: skip
    plain = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "server.pem").write_bytes(plain + made.public_bytes(PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return context


def pem(ca):
    return ca[1].public_bytes(PEM).decode()


def pin(ca):
    return hashlib.sha256(ca[1].public_bytes(serialization.Encoding.DER)).hexdigest()[:32]


class Plain(Front):
    """A front that also hands out its authority, and whatever a test wants."""

    def __init__(self, ca=None):
        super().__init__(CONFIG, FleetServer(CONFIG))
        self.ca, self.said = ca, {}

    def get(self, path):
        if path == "/fedkd/ca.crt" and self.ca:
            return 200, pem(self.ca).encode()
        return self.said.get(path) or super().get(path)


# Whom a node believes.


def test_a_pinned_authority_is_fetched_checked_and_kept(tmp_path):
    ca = authority()
    with serving(Plain(ca), server_context(tmp_path, ca)) as port:
        home = Home(tmp_path / "home")
        first = contact(Invitation.of(f"https://127.0.0.1:{port}/#code=1&ca={pin(ca)}"), home)
        assert about(first)["name"] == "trial"
        first.close()
        again = contact(Invitation.of(f"https://127.0.0.1:{port}"), home)  # without a pin: the one that it knows
        assert about(again)["name"] == "trial"
        again.close()


def test_another_authority_than_the_pinned_one_is_refused_before_anything_is_said(tmp_path):
    ca, other = authority(), authority("somebody")
    front = Plain(other)
    with serving(front, server_context(tmp_path, other)) as port:
        invitation = Invitation.of(f"https://127.0.0.1:{port}/#code=1&ca={pin(ca)}")
        with pytest.raises(Untrusted, match="somebody may be in between"):
            contact(invitation, Home(tmp_path / "home"))
    assert front.requests == ["/fedkd/ca.crt"]
    assert not (tmp_path / "home").exists()


def test_a_server_that_shows_the_right_authority_and_has_another_ones_certificate_is_refused(tmp_path):
    ca, other = authority(), authority("somebody")
    front = Plain(ca)
    with serving(front, server_context(tmp_path, other)) as port:
        link = contact(Invitation.of(f"https://127.0.0.1:{port}/#code=1&ca={pin(ca)}"), Home(tmp_path / "home"))
        with pytest.raises(Untrusted, match="its certificate is not trusted"):
            about(link)
    assert front.requests == ["/fedkd/ca.crt"]


def test_an_expired_certificate_is_said_with_a_hint_at_the_clock(tmp_path):
    ca = authority()
    with serving(Plain(ca), server_context(tmp_path, ca, days=-1)) as port:
        link = Link(Address("127.0.0.1", port, True), trusting(pem(ca)))
        with pytest.raises(Untrusted, match="expired; is this machine's clock right"):
            link.get("/fedkd/about.json")


def test_a_certificate_for_another_host_is_refused(tmp_path):
    ca = authority()
    with serving(Plain(ca), server_context(tmp_path, ca)) as port:
        link = Link(Address("localhost", port, True), trusting(pem(ca)))
        with pytest.raises(Untrusted, match="not trusted"):
            link.get("/fedkd/about.json")


def test_without_an_authority_of_its_own_a_node_believes_the_systems(tmp_path):
    ca = authority()
    with serving(Plain(ca), server_context(tmp_path, ca)) as port:
        with pytest.raises(Untrusted):
            about(contact(Invitation.of(f"https://127.0.0.1:{port}"), Home(tmp_path / "home")))
        link = Link(Address("127.0.0.1", port, True), blind())
        assert link.get("/fedkd/ca.crt").decode() == pem(ca)
        link.close()


@pytest.mark.parametrize("given", ["", "00" * 15, "0" * 32])
def test_a_pin_is_all_of_its_digits(given):
    with pytest.raises(Untrusted):
        check_pin(pem(authority()), given)


def test_what_is_no_certificate_has_no_pin():
    with pytest.raises(Untrusted, match="not a certificate"):
        check_pin("<html>", "0" * 32)
    with pytest.raises(Untrusted, match="not a certificate"):
        trusting("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")


def padded():
    """Return an authority whose base64 ends in padding, where a lenient reader stops."""
    return next(ca for ca in iter(authority, None) if "=" in pem(ca))


def test_what_stands_beside_the_pinned_certificate_is_refused_and_not_kept(tmp_path):
    ca, other = padded(), authority("somebody")
    both = pem(ca) + pem(other)
    for text in (both, pem(other) + pem(ca), "subject=anybody\n" + pem(ca), pem(ca) + "\n#"):
        with pytest.raises(Untrusted, match="one and nothing else"):
            check_pin(text, pin(ca))
    front = Plain(ca)
    front.said["/fedkd/ca.crt"] = 200, both.encode()
    front.ca = None
    with (
        serving(front, server_context(tmp_path, other)) as port,
        pytest.raises(Untrusted, match="one and nothing else"),
    ):
        contact(Invitation.of(f"https://127.0.0.1:{port}/#code=1&ca={pin(ca)}"), Home(tmp_path / "home"))
    assert not (tmp_path / "home").exists()


def test_an_authority_is_kept_as_it_was_read_and_a_kept_one_is_one(tmp_path):
    ca, other = authority(), authority("somebody")
    front = Plain(ca)
    front.said["/fedkd/ca.crt"] = 200, pem(ca).replace("\n", "\r\n").encode()
    front.ca = None
    home = Home(tmp_path / "home")
    with serving(front, server_context(tmp_path, ca)) as port:
        contact(Invitation.of(f"https://127.0.0.1:{port}/#code=1&ca={pin(ca)}"), home).close()
    assert home.known_authority() == pem(ca)
    home.keep_authority(pem(ca) + pem(other))
    with pytest.raises(Untrusted, match="one and nothing else"):
        trusting(home.known_authority())


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://example.org", "is not encrypted"), ("http://127.0.0.1:1", "is not encrypted"),
        ("ftp://host", "expected https"), ("host:8443", "expected https"), ("https://host:port", "expected https"),
        ("https://host/path", "expected https"), ("https://", "expected https"),
    ],
)  # fmt: skip
def test_an_address_that_is_none_is_one_line(url, words):
    with pytest.raises(LinkError, match=words):
        Address.of(url)


def test_plain_http_is_for_this_machine_only():
    assert Address.of("http://127.0.0.1:80", insecure=True).port == 80
    assert Address.of("http://[::1]:81", insecure=True).host == "::1"
    assert str(Address.of("https://[::1]:81/")) == "https://[::1]:81"
    with pytest.raises(LinkError, match="not encrypted"):
        Address.of("http://192.168.1.5:80", insecure=True)


# Keys.


def test_a_key_is_made_once_and_only_its_owner_may_read_it(tmp_path):
    one, two = (Identity.at(tmp_path / "key.pem") for _ in range(2))
    assert one.public == two.public
    assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600
    os.chmod(tmp_path / "key.pem", 0o644)
    with pytest.raises(CheckpointError, match="chmod 600"):
        Identity.at(tmp_path / "key.pem")


@pytest.mark.parametrize("key", [None, rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP521R1())])
def test_another_kind_of_key_is_refused(key, tmp_path):
    path = tmp_path / "key.pem"
    plain = (PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(key.private_bytes(*plain) if key else b"nonsense")
    path.chmod(0o600)
    with pytest.raises(CheckpointError, match=r"not a private key|must be on the curve"):
        Identity.at(path)


def test_a_key_on_p384_does_as_well(tmp_path):
    path = tmp_path / "key.pem"
    key = ec.generate_private_key(ec.SECP384R1())
    path.write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    path.chmod(0o600)
    server = FleetServer(CONFIG)
    identity = Identity.at(path)
    body = encode("RegisterNodeFleetRequest", {"public_key": identity.public})
    assert server("register-node", body, identity.headers(time.time()))[0] == 200
    assert server("register-node", body, identity.headers(time.time() - 400))[0] == 401


# Clocks.


def test_small_differences_of_clocks_are_left_alone_and_large_ones_set_right():
    clock = ServerClock()
    assert not clock.learn(formatdate(time.time(), usegmt=True))
    assert clock.offset == 0
    assert clock.learn(formatdate(time.time() + 7200, usegmt=True))
    assert abs(clock.offset - 7200) < 2
    assert not clock.learn(formatdate(time.time() + 7200, usegmt=True))
    for odd in (None, "", "yesterday", "Thu, 99 Xyz 2026 99:99:99 GMT"):
        assert not clock.learn(odd)


# Connections.


def test_a_connection_that_lay_idle_and_was_closed_is_opened_again():
    front = Plain()
    with serving(front) as port:
        link = Link(Address("127.0.0.1", port, False))
        link.get("/fedkd/about.json")
        link._connection.sock.shutdown(2)  # as a server does to what lies idle
        assert link.get("/fedkd/about.json")
        link.close()


def test_nobody_there_is_worth_another_try():
    link = Link(Address("127.0.0.1", launch.free_port(), False))
    with pytest.raises(Unreachable, match="Connection refused"):
        link.get("/")


def test_a_refusal_says_what_the_server_said_on_one_line():
    front = Plain()
    front.said = {
        "/a": (403, b'{"error": "this code\\nhas expired"}'), "/b": (412, b'{"code": 5, "message": "Failed."}'),
        "/c": (500, b"<html>"), "/d": (404, b"[]"),
    }  # fmt: skip
    with serving(front) as port:
        link = Link(Address("127.0.0.1", port, False))
        for path, words in (
            ("/a", r"\(403\): this code has expired"),
            ("/b", "Failed"),
            ("/c", "no reason"),
            ("/d", "no reason"),
        ):
            with pytest.raises(Rejected, match=words):
                link.get(path)
        link.close()


def test_answers_are_bounded_packed_or_not():
    front = Plain()
    front.said = {"/big": (200, bytes(5000))}
    with serving(front) as port:
        link = Link(Address("127.0.0.1", port, False))
        with pytest.raises(LinkError, match="longer than 4999 bytes"):
            link.get("/big", limit=4999)
        assert len(link.get("/big", limit=5000)) == 5000
        link.close()


def test_a_bomb_is_not_unpacked(monkeypatch):
    from fedkd.fleet import link as module

    packed = gzip.compress(bytes(10_000_000))
    with pytest.raises(LinkError, match="longer than 1000"):
        module._unpacked(packed, "gzip", 1000, "/x")
    with pytest.raises(LinkError, match="damaged"):
        module._unpacked(packed[:-20], "gzip", 1 << 24, "/x")
    with pytest.raises(LinkError, match="encoding 'br'"):
        module._unpacked(b"", "br", 10, "/x")
    assert module._unpacked(gzip.compress(b"abc"), "gzip", 10, "/x") == b"abc"


def test_a_bandwidth_is_kept_to_both_ways():
    front = Plain()
    front.said = {"/big": (200, bytes(60_000))}
    with serving(front) as port:
        link = Link(Address("127.0.0.1", port, False), bandwidth=200_000)
        began = time.monotonic()
        link.get("/big")
        assert time.monotonic() - began >= 0.28
        link.close()


def test_patience_waits_longer_each_time_and_by_chance_a_little_less():
    waits, errors = [], [Unreachable("x"), Rejected("x", 503), Rejected("x", 429), Untrusted("x"), Unreachable("x")]

    def request():
        if errors:
            raise errors.pop()
        return b"done"

    assert with_patience(request, waits.append, first=1.0, most=4.0) == b"done"
    for wait, most in zip(waits, (1, 2, 4, 4, 4), strict=True):
        assert most / 2 <= wait <= most


@pytest.mark.parametrize("status", [400, 401, 403, 404, 412])
def test_patience_ends_where_waiting_helps_nothing(status):
    def request():
        raise Rejected("no", status)

    assert status not in AGAIN
    with pytest.raises(Rejected):
        with_patience(request, lambda seconds: pytest.fail("it waited"))


def test_two_links_do_not_share_a_connection():
    with serving(Plain()) as port:
        links = [Link(Address("127.0.0.1", port, False)) for _ in range(2)]
        threads = [threading.Thread(target=link.get, args=("/fedkd/about.json",)) for link in links]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert links[0]._connection is not links[1]._connection
        for link in links:
            link.close()
