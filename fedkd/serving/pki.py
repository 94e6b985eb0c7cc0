"""A private certificate authority for one server: its certificate, and keys for nodes that cannot make their own.

The authority signs the server's certificate and nothing else. Joining devices get the fingerprint of the authority's
certificate in the join URL (:func:`pin`), so nobody has to install anything; a phone's browser is the exception.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import re
import socket
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedkd.errors import FedkdError
from fedkd.files import write_atomic

CA_DAYS = 3650
SERVER_DAYS = 397
"""Days that a server's certificate is good for; browsers take no longer ones."""
SOON = 30
"""Days before its end at which a certificate is warned about."""
SLACK = datetime.timedelta(days=1)
"""How far back a certificate begins: clocks of small devices are slow."""
PIN = 32
"""Hexadecimal digits of a fingerprint that a join URL carries: 128 bits."""
HOST = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")


@dataclass(frozen=True)
class Pki:
    """Where the certificates and keys of a server lie. Keys are readable by their owner only."""

    folder: Path

    @property
    def ca(self) -> Path:
        """The authority's certificate (PEM), which everybody may have."""
        return self.folder / "ca.crt"

    @property
    def ca_key(self) -> Path:
        """The authority's private key; needed again only to renew the server's certificate."""
        return self.folder / "ca.key"

    @property
    def certificate(self) -> Path:
        """The server's certificate (PEM)."""
        return self.folder / "server.crt"

    @property
    def key(self) -> Path:
        """The server's private key."""
        return self.folder / "server.key"


def init(folder: Path, hosts: Iterable[str] = (), *, force: bool = False, now: datetime.datetime | None = None) -> Pki:
    """Make an authority and a server's certificate for ``hosts`` (names or addresses) and this machine's own names.

    Raises :class:`FedkdError` if there is one already, unless ``force``: then all devices have to join anew.
    """
    pki, names = Pki(folder), with_own_names(hosts)
    there = [path.name for path in (pki.ca, pki.ca_key, pki.certificate, pki.key) if path.exists()]
    if there and not force:
        raise FedkdError(
            f"{folder} has {', '.join(there)} already: renew the server's certificate with fedkd pki renew, or "
            "give --force to begin anew, after which every device has to join again"
        )
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"fedkd authority of {_computer()}"[:64])])
    start = (now or _now()) - SLACK
    authority = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(pki.ca_key, _private_pem(key), secret=True)
    _write(pki.ca, authority.public_bytes(serialization.Encoding.PEM))
    return _issue(pki, authority, key, names, now=now)


def renew(folder: Path, hosts: Iterable[str] = (), *, now: datetime.datetime | None = None) -> Pki:
    """Issue a new server's certificate by the same authority, so that join URLs and devices go on as they are.

    It names what the old one named, and ``hosts``.
    """
    pki = Pki(folder)
    authority = _read_certificate(pki.ca)
    try:
        key = serialization.load_pem_private_key(_read(pki.ca_key), None)
    except ValueError as error:
        raise FedkdError(f"{pki.ca_key} is no private key in PEM: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != authority.public_key():
        raise FedkdError(f"{pki.ca_key} is not the key of {pki.ca}")
    if authority.not_valid_after_utc < (now or _now()):
        raise FedkdError(f"{pki.ca} expired on {authority.not_valid_after_utc:%Y-%m-%d}: fedkd pki init --force")
    old = names_of(_read_certificate(pki.certificate)) if pki.certificate.exists() else []
    return _issue(pki, authority, key, with_own_names([*hosts, *old]), now=now)


def _issue(
    pki: Pki,
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    names: list[str],
    *,
    now: datetime.datetime | None,
) -> Pki:
    key = ec.generate_private_key(ec.SECP256R1())
    start = (now or _now()) - SLACK
    certificate = (
        x509.CertificateBuilder(
            authority.subject,
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])]),
            key.public_key(),
            x509.random_serial_number(),
        )
        .not_valid_before(start)
        .not_valid_after(min(start + datetime.timedelta(days=SERVER_DAYS), authority.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    _write(pki.key, _private_pem(key), secret=True)
    _write(pki.certificate, certificate.public_bytes(serialization.Encoding.PEM))
    return pki


def find(folder: Path, *, host: str | None = None, now: datetime.datetime | None = None) -> Pki:
    """Return the certificates in ``folder`` if a server can use them, for ``host`` too where one is given.

    Raises :class:`FedkdError` that says which file is missing, expired, of another authority or for other names.
    """
    pki, now = Pki(folder), now or _now()
    authority, certificate = _read_certificate(pki.ca), _read_certificate(pki.certificate)
    for path, found in ((pki.ca, authority), (pki.certificate, certificate)):
        if found.not_valid_after_utc < now:
            mend = "fedkd pki init --force" if path == pki.ca else "fedkd pki renew"
            raise FedkdError(f"{path} expired on {found.not_valid_after_utc:%Y-%m-%d}: {mend} {folder}")
        if found.not_valid_before_utc > now:
            raise FedkdError(f"{path} begins on {found.not_valid_before_utc:%Y-%m-%d}: is this machine's clock right?")
    try:
        certificate.verify_directly_issued_by(authority)
    except Exception:  # its kinds are many and say less than this
        raise FedkdError(f"{pki.certificate} was not issued by {pki.ca}: fedkd pki renew {folder}") from None
    try:
        key = serialization.load_pem_private_key(_read(pki.key), None)
    except ValueError as error:
        raise FedkdError(f"{pki.key} is no private key in PEM: {error}") from None
    if key.public_key() != certificate.public_key():
        raise FedkdError(f"{pki.key} is not the key of {pki.certificate}: fedkd pki renew {folder}")
    if host is not None and not is_for(pki, host):
        named = ", ".join(names_of(certificate))
        raise FedkdError(f"{pki.certificate} is for {named}, not for {host}: fedkd pki renew {folder} --host {host}")
    return pki


def is_for(pki: Pki, host: str) -> bool:
    """Return whether the server's certificate is for ``host``."""
    return covers(_read_certificate(pki.certificate), host)


def describe(folder: Path, *, now: datetime.datetime | None = None) -> list[str]:
    """Return what lies in ``folder``, line by line: names, ends, the pin, and whatever is wrong or will be soon."""
    pki, now = Pki(folder), now or _now()
    authority, certificate = _read_certificate(pki.ca), _read_certificate(pki.certificate)
    lines = [
        f"authority   {pki.ca}, until {authority.not_valid_after_utc:%Y-%m-%d}, pin {pin(_read(pki.ca))}",
        f"server      {pki.certificate}, until {certificate.not_valid_after_utc:%Y-%m-%d}",
        f"for         {', '.join(names_of(certificate))}",
    ]
    lines += [f"node key    {path}" for path in sorted((folder / "nodes").glob("*.key"))]
    return lines + warnings(pki, now=now)


def warnings(pki: Pki, *, now: datetime.datetime | None = None) -> list[str]:
    """Return one line for each certificate that ends soon and each key that others may read."""
    now, lines = now or _now(), []
    for path in (pki.ca, pki.certificate):
        left = (_read_certificate(path).not_valid_after_utc - now).days
        if left < SOON:
            lines.append(f"warning: {path} " + ("has expired" if left < 0 else f"expires in {left} days"))
    for path in (pki.ca_key, pki.key, *sorted((pki.folder / "nodes").glob("*.key"))):
        if path.exists() and path.stat().st_mode & 0o077:
            lines.append(f"warning: others can read {path}: chmod 600 {path}")
    return lines


def node_key(folder: Path, name: str, *, force: bool = False) -> tuple[Path, Path]:
    """Make a key pair for a stock SuperNode, in the OpenSSH form that Flower reads; return ``(private, public)``."""
    if not NAME.fullmatch(name):
        raise FedkdError(f"a node's name has letters, digits, '.', '_', '-', and at most 40 of them; got {name!r}")
    private, public = folder / "nodes" / f"{name}.key", folder / "nodes" / f"{name}.pub"
    if (private.exists() or public.exists()) and not force:
        raise FedkdError(f"{private} exists already: choose another name, or give --force to replace it")
    key = ec.generate_private_key(ec.SECP256R1())
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    _write(private, secret, secret=True)
    line = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    _write(public, line + f" {name}\n".encode())
    return private, public


def public_pem(content: bytes) -> bytes:
    """Return a public key, given in PEM or OpenSSH form, as PEM: the form in which Flower knows nodes.

    Raises :class:`FedkdError` unless it is an elliptic-curve key on P-256, P-384 or P-521.
    """
    try:
        ssh = content.lstrip().startswith(b"ecdsa-")
        key = (serialization.load_ssh_public_key if ssh else serialization.load_pem_public_key)(content)
    except Exception:  # ValueError, UnsupportedAlgorithm, and what an odd encoding makes of them
        raise FedkdError("no public key: PEM ('-----BEGIN PUBLIC KEY-----') or an ecdsa- line expected") from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise FedkdError("a node's key must be an elliptic-curve key (P-256 or P-384), this is of another kind")
    if not isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1 | ec.SECP521R1):
        raise FedkdError(f"a node's key must be on P-256 or P-384, got {key.curve.name}")
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def pin(ca: bytes) -> str:
    """Return the start of the SHA-256 of the authority's certificate (PEM given, DER hashed), as join URLs have it."""
    der = x509.load_pem_x509_certificate(ca).public_bytes(serialization.Encoding.DER)
    return hashlib.sha256(der).hexdigest()[:PIN]


def trusting(ca: Path) -> ssl.SSLContext:
    """Return a client's TLS settings that trust ``ca`` and nobody else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile=str(ca))
    return context


def covers(certificate: x509.Certificate, host: str) -> bool:
    """Return whether ``certificate`` is for ``host``."""
    return _plain(host) in {_plain(name) for name in names_of(certificate)}


def names_of(certificate: x509.Certificate) -> list[str]:
    """Return the names and addresses that a certificate is for."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress))]


def with_own_names(hosts: Iterable[str]) -> list[str]:
    """Return ``hosts`` checked and without repeats, and the names by which this machine calls itself."""
    names: dict[str, None] = {}
    for host in [*hosts, _computer(), "localhost", "127.0.0.1", "::1"]:
        _general(host)
        names[_plain(host)] = None
    return list(names)


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not HOST.fullmatch(host) or len(host) > 253:
            raise FedkdError(
                f"{host!r} is neither a host name nor an address; write it like pi.local or 10.0.0.5"
            ) from None
        return x509.DNSName(host)


def _plain(host: str) -> str:
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host.lower().rstrip(".")


def _computer() -> str:
    name = socket.gethostname()
    return name if HOST.fullmatch(name) and len(name) <= 253 else "localhost"


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(_read(path))
    except ValueError as error:
        raise FedkdError(f"{path} is no certificate in PEM: {error}") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise FedkdError(f"there is no {path}: make certificates with fedkd pki init {path.parent}") from None
    except OSError as error:
        raise FedkdError(f"cannot read {path}: {error.strerror}") from None


def _write(path: Path, content: bytes, *, secret: bool = False) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(path, content, secret=secret)
    except OSError as error:
        raise FedkdError(f"cannot write {path}: {error.strerror}") from None


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
