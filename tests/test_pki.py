"""Certificates: made once, kept secret, refused when they are old, foreign or for somebody else."""

import datetime
import hashlib
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from fedkd.errors import FedkdError
from fedkd.serving import pki

ROOT = Path(__file__).resolve().parent.parent
DAY = datetime.timedelta(days=1)


@pytest.fixture
def made(tmp_path):
    return pki.init(tmp_path / "pki", ["10.0.0.5", "Server.example"])


def now():
    return datetime.datetime.now(datetime.UTC)


def certificate(path):
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_a_certificate_is_for_the_names_given_and_for_this_machine(made):
    names = pki.names_of(certificate(made.certificate))
    assert {"10.0.0.5", "server.example", "localhost", "127.0.0.1", "::1"} <= set(names)
    assert pki.covers(certificate(made.certificate), "SERVER.example.")
    assert not pki.covers(certificate(made.certificate), "10.0.0.6")


def test_openssl_believes_it_for_its_names_only(made):
    """Both ends of a TLS connection in memory: what a device sees that trusts the authority and nobody else."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(made.certificate, made.key)

    def shake(name):
        a, b = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = pki.trusting(made.ca).wrap_bio(a, b, server_hostname=name)
        other = server.wrap_bio(b, a, server_side=True)
        for _ in range(4):
            for end in (client, other):
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    continue
        return client.version()

    assert shake("server.example") in ("TLSv1.2", "TLSv1.3")
    assert shake("10.0.0.5")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake("elsewhere.example")


def test_the_authority_can_sign_a_server_and_no_other_authority(made):
    constraints = certificate(made.ca).extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value == x509.BasicConstraints(ca=True, path_length=0)
    leaf = certificate(made.certificate).extensions
    assert leaf.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert certificate(made.certificate).not_valid_after_utc - now() < 398 * DAY  # browsers take no longer ones


def test_keys_are_their_owners_alone_and_said_so_if_not(made):
    private, public = pki.node_key(made.folder, "pi-1")
    for path in (made.ca_key, made.key, private):
        assert path.stat().st_mode & 0o777 == 0o600, path
    assert pki.warnings(made) == []
    made.key.chmod(0o644)
    assert pki.warnings(made) == [f"warning: others can read {made.key}: chmod 600 {made.key}"]
    assert public.read_text().startswith("ecdsa-sha2-nistp256 ")


def test_nothing_is_overwritten_unless_forced(made):
    before = made.ca.read_bytes()
    with pytest.raises(FedkdError, match=r"has ca\.crt, ca\.key, server\.crt, server\.key already"):
        pki.init(made.folder)
    private, _ = pki.node_key(made.folder, "pi")
    old = private.read_bytes()
    with pytest.raises(FedkdError, match="exists already"):
        pki.node_key(made.folder, "pi")
    assert made.ca.read_bytes() == before
    assert private.read_bytes() == old
    pki.init(made.folder, force=True)
    assert made.ca.read_bytes() != before


def test_a_renewed_certificate_keeps_the_authority_its_pin_and_its_names(made):
    pin, serial = pki.pin(made.ca.read_bytes()), certificate(made.certificate).serial_number
    pki.renew(made.folder, ["192.168.7.7"])
    renewed = certificate(made.certificate)
    assert renewed.serial_number != serial
    assert pki.covers(renewed, "192.168.7.7")
    assert pki.covers(renewed, "10.0.0.5")
    assert pki.pin(made.ca.read_bytes()) == pin
    assert pki.find(made.folder, host="192.168.7.7") == made


def test_a_pin_is_the_start_of_the_hash_of_the_der_form(made):
    der = ssl.PEM_cert_to_DER_cert(made.ca.read_text())
    assert pki.pin(made.ca.read_bytes()) == hashlib.sha256(der).hexdigest()[:32]


@pytest.mark.parametrize(
    ("when", "message"),
    [
        (400 * DAY, r"server\.crt expired on .*: fedkd pki renew"),
        (3700 * DAY, r"ca\.crt expired on .*: fedkd pki init --force"),
        (-10 * DAY, r"begins on .* clock right\?"),
    ],
)
def test_a_certificate_that_is_not_good_now_is_named_with_what_mends_it(made, when, message):
    with pytest.raises(FedkdError, match=message):
        pki.find(made.folder, now=now() + when)


def test_an_end_that_is_near_is_warned_about(made):
    assert pki.warnings(made, now=now() + 380 * DAY) == [f"warning: {made.certificate} expires in 15 days"]
    assert "has expired" in pki.describe(made.folder, now=now() + 400 * DAY)[-1]


def test_a_missing_foreign_or_damaged_file_is_one_line(made, tmp_path):
    with pytest.raises(FedkdError, match=r"is for .*, not for 10\.9\.9\.9: fedkd pki renew .* --host 10\.9\.9\.9"):
        pki.find(made.folder, host="10.9.9.9")
    other = pki.init(tmp_path / "other")
    good = made.certificate.read_bytes()
    made.certificate.write_bytes(other.certificate.read_bytes())
    with pytest.raises(FedkdError, match="was not issued by"):
        pki.find(made.folder)
    made.certificate.write_bytes(good)
    made.key.write_bytes(other.key.read_bytes())
    with pytest.raises(FedkdError, match="is not the key of"):
        pki.find(made.folder)
    made.key.write_text("nonsense")
    with pytest.raises(FedkdError, match="no private key in PEM"):
        pki.find(made.folder)
    made.ca.unlink()
    with pytest.raises(FedkdError, match=r"there is no .*ca\.crt: make certificates with fedkd pki init"):
        pki.find(made.folder)


@pytest.mark.parametrize("host", ["", "a b", "-x", "http://x", "x" * 64, "10.0.0.5/24", "é.example"])
def test_what_is_no_host_is_refused_before_anything_is_written(tmp_path, host):
    with pytest.raises(FedkdError, match="neither a host name nor an address"):
        pki.init(tmp_path / "pki", [host])
    assert not (tmp_path / "pki").exists()


@pytest.mark.parametrize("name", ["", "../pi", "a/b", ".hidden", "x" * 41])
def test_a_nodes_name_is_no_way_out_of_the_folder(made, name):
    with pytest.raises(FedkdError, match="a node's name has letters"):
        pki.node_key(made.folder, name)


def test_public_keys_are_taken_in_both_forms_and_on_good_curves_only(made):
    _, public = pki.node_key(made.folder, "pi")
    pem = pki.public_pem(public.read_bytes())
    assert pem.startswith(b"-----BEGIN PUBLIC KEY-----\n")
    assert pki.public_pem(pem) == pem
    assert pki.public_pem(pem.strip().replace(b"\n", b"\r\n")) == pem  # as a browser may write it
    form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    with pytest.raises(FedkdError, match="of another kind"):
        pki.public_pem(rsa.generate_private_key(65537, 2048).public_key().public_bytes(*form))
    with pytest.raises(FedkdError, match="P-256 or P-384, got secp256k1"):
        pki.public_pem(ec.generate_private_key(ec.SECP256K1()).public_key().public_bytes(*form))
    for nonsense in (b"", b"ecdsa-sha2 x", b"-----BEGIN PUBLIC KEY-----\n", pem[:60], made.key.read_bytes()):
        with pytest.raises(FedkdError, match="no public key"):
            pki.public_pem(nonsense)


def test_the_command_says_it_in_lines_and_exits_with_2_for_what_is_there(tmp_path):
    def fedkd(*words):
        return subprocess.run(
            [sys.executable, "-m", "fedkd", "pki", *words],
            cwd=tmp_path,
            env={"PATH": "", "PYTHONPATH": ":".join([str(ROOT), *sys.path]), "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
        )

    done = fedkd("init", "keys", "--host", "10.1.2.3")
    assert done.returncode == 0, done.stderr
    assert "10.1.2.3" in done.stdout
    again = fedkd("init", "keys")
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1
    assert "already" in again.stderr
