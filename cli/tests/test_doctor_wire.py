"""The way to the broker, tried on a TLS server whose certificate is whatever a test wants."""

import contextlib
import datetime
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from aetherscale_cli import doctor_wire
from aetherscale_cli.contexts import Target
from aetherscale_cli.doctor_facts import WireFacts
from aetherscale_protocol.settings import BrokerSettings

DAY = datetime.timedelta(days=1)


@dataclass
class Authority:
    """A CA of a test, and the folder that holds its certificate."""

    folder: Path
    key: Any
    name: x509.Name

    @property
    def file(self) -> Path:
        return self.folder / "ca.pem"

    def sign(self, begins: int = -1, ends: int = 100, address: str = "127.0.0.1", own: bool = False) -> Path:
        """A certificate with its key, from `begins` to `ends` days from now; `own`: the CA's."""
        now = datetime.datetime.now(datetime.UTC)
        key = self.key if own else ec.generate_private_key(ec.SECP256R1())
        alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(self.name if own else x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "broker1")]))
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + begins * DAY)
            .not_valid_after(now + ends * DAY + datetime.timedelta(minutes=1))
            .add_extension(x509.BasicConstraints(ca=own, path_length=None), critical=True)
            .add_extension(alternative, critical=False)
            .sign(self.key, hashes.SHA256())
        )
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path = self.file if own else self.folder / "server.pem"
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + (b"" if own else secret))
        return path


def make_authority(folder: Path, ends: int = 3650) -> Authority:
    name = x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "us"), x509.NameAttribute(NameOID.COMMON_NAME, "Test CA")]
    )
    authority = Authority(folder, ec.generate_private_key(ec.SECP256R1()), name)
    folder.mkdir(exist_ok=True)
    authority.sign(ends=ends, own=True)
    return authority


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return make_authority(tmp_path)


@contextlib.contextmanager
def listening(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server on the loopback that treats every connection so; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection, contextlib.suppress(OSError):
                        serve(connection)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def tls_server(certificate: Path) -> contextlib.AbstractContextManager[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def serve(connection: socket.socket) -> None:
        connection.settimeout(5)
        with context.wrap_socket(connection, server_side=True) as wrapped:
            assert wrapped.recv(100) == b"", "nothing is said before the login"

    return listening(serve)


def look(port: int, ca_file: Path | None = None, host: str = "127.0.0.1", scheme: str = "amqps") -> WireFacts:
    settings = BrokerSettings(url=f"{scheme}://alice@{host}:{port}/x", ca_file=str(ca_file) if ca_file else None)
    return doctor_wire.look(Target(settings, "context lab"))


def days(until: float) -> int:
    return int((until - time.time()) // 86_400)


def test_a_certificate_is_read(authority: Authority) -> None:
    with tls_server(authority.sign()) as port:
        found = look(port, authority.file)
    assert (found.error, found.tls_error, found.broken) == (None, None, False)
    assert (found.addresses, found.reached, found.protocol) == (["127.0.0.1"], "127.0.0.1", "TLSv1.3")
    assert found.certificate is not None
    assert (found.certificate.names, found.certificate.issuer) == (("127.0.0.1",), "Test CA")
    assert (days(found.certificate.ends), days(found.ca_ends or 0)) == (100, 3650)


@pytest.mark.parametrize(
    ("begins", "ends", "address", "said"),
    [(-9, -3, "127.0.0.1", "expired"), (3, 9, "127.0.0.1", "not yet valid"), (-1, 9, "127.0.0.2", "127.0.0.1")],
)
def test_one_that_is_refused_is_read_all_the_same(
    authority: Authority, begins: int, ends: int, address: str, said: str
) -> None:
    with tls_server(authority.sign(begins, ends, address)) as port:
        found = look(port, authority.file)
    assert found.broken
    assert found.tls_error is not None
    assert said.replace("not yet valid", "not") in str(found.tls_error)
    assert found.tls_error.hint
    assert found.certificate is not None
    assert (found.certificate.names, days(found.certificate.ends)) == ((address,), ends)


@pytest.mark.parametrize("ends", [-3, 0, 20, 30_000], ids=["past", "today", "soon", "after 2049, written otherwise"])
def test_our_own_certificate_is_read(authority: Authority, ends: int) -> None:
    pem = authority.sign(begins=-9, ends=ends).read_text()
    chain = pem + authority.file.read_text()
    for text in (pem, chain, f"# für den Kunden\n{pem}"):
        assert days(doctor_wire.find_end(text) or 0) == ends


def test_what_is_no_certificate_has_no_end(authority: Authority) -> None:
    pem = authority.sign().read_text()
    begin = pem.index("-----BEGIN CERT")
    for text in (
        "",
        "x",
        pem[: begin + 60],
        pem.replace("MII", "AAA", 1),
        "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----",
    ):
        assert doctor_wire.find_end(text) is None


def test_the_certificate_that_is_shown_is_named(authority: Authority) -> None:
    with tls_server(authority.sign()) as port:
        settings = BrokerSettings(
            url=f"amqps://alice@127.0.0.1:{port}/x", ca_file=str(authority.file), cert_file=str(authority.sign(ends=9))
        )
        found = doctor_wire.look(Target(settings, "context lab"))
    assert found.tls_error is None
    assert days(found.own_ends or 0) == 9


def test_another_ca_and_a_file_that_is_none(authority: Authority, tmp_path: Path) -> None:
    other = make_authority(tmp_path / "other")
    with tls_server(other.sign()) as port:
        found = look(port, authority.file)
        assert found.tls_error is not None
        assert "certificate" in str(found.tls_error)
        assert found.certificate is None, "what nobody vouches for is not repeated"
        found = look(port, tmp_path / "none.pem")
    assert found.tls_error is not None
    assert f"can't read the CA file {tmp_path}/none.pem" in str(found.tls_error)
    assert found.certificate is None


def test_what_speaks_no_tls(authority: Authority) -> None:
    with listening(lambda connection: connection.sendall(b"AMQP\0\0\x09\x01")) as port:
        found = look(port, authority.file)
        assert (found.error, found.broken) == (None, True)
        assert "does not speak TLS" in str(found.tls_error)
        plain = look(port, scheme="amqp")
    assert (plain.broken, plain.certificate, plain.protocol) == (False, None, "")


def test_what_says_nothing_is_not_waited_for_long(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_wire, "CONNECT_TIMEOUT_S", 0.2)
    done = threading.Event()
    with listening(lambda _: done.wait(10) and None) as port:
        began = time.monotonic()
        found = look(port, authority.file)
        took = time.monotonic() - began
        done.set()
    assert found.tls_error is not None
    assert took < 3


def test_nobody_listens_and_nobody_knows_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    found = look(1)
    assert found.broken
    assert "connection refused" in str(found.error)

    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert "can't find the broker's host 'nowhere.example'" in str(look(1, host="nowhere.example").error)


def test_a_resolver_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_wire, "CONNECT_TIMEOUT_S", 0.05)
    done = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: done.wait(10) and [])
    found = look(1, host="slow.example")
    done.set()
    assert "no answer within 0.05 s" in str(found.error)


def test_the_next_address_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(lambda _: None) as port:
        told = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", at)) for at in (1, port)
        ]  # fmt: skip
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: told)
        found = look(port, host="two.example", scheme="amqp")
    assert (found.error, found.reached) == (None, "127.0.0.1")
