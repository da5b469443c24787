"""TLS against a real RabbitMQ: what an agent accepts, what it refuses and in which words, and renewal."""

import asyncio
import signal
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aetherscale_agent.broker import BrokerLost, Connection
from aetherscale_protocol.settings import BrokerSettings
from aetherscale_testing.broker import TestBroker, private_broker
from aetherscale_testing.certificates import Authority, handshake
from aetherscale_testing.client import SeedClient, parameters_of
from aetherscale_testing.fleet import Fleet

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"))


@pytest.fixture(scope="module")
def good(broker: TestBroker, authority: Authority) -> Iterator[dict[str, Any]]:
    """How to reach the broker, whose certificate is for 127.0.0.1 and nothing else."""
    shown = broker.certificate.read_bytes()
    show(broker, authority.broker("127.0.0.1"))
    yield {"url": tls_url(broker), "password": "guest", "ca_file": str(authority.ca)}
    show(broker, shown)


def show(broker: TestBroker, certificate: bytes) -> None:
    """Renew its certificate, as site.yml does: the file changes at once, and the broker is told."""
    draft = broker.certificate.with_suffix(".draft")
    draft.write_bytes(certificate)
    draft.rename(broker.certificate)
    broker.forget_certificates()


def tls_url(broker: TestBroker, host: str = "127.0.0.1") -> str:
    return f"amqps://guest@{host}:{broker.tls_port}/"


def reach(**settings: Any) -> str:
    """Connect as an agent does: what it says of a failure, empty if it worked."""

    async def scenario() -> str:
        try:
            connection = await Connection.open(BrokerSettings(**settings), name="test", heartbeat_s=5)
            await connection.channel()
            connection.drop("done")
        except BrokerLost as error:
            return str(error)
        return ""

    return asyncio.run(scenario())


def test_a_certificate_that_is_good_is_accepted(good: dict[str, Any]) -> None:
    assert reach(**good) == ""


def test_a_certificate_for_another_name(broker: TestBroker, good: dict[str, Any]) -> None:
    said = reach(**good | {"url": tls_url(broker, "localhost")})
    assert "shows a certificate that is not made for localhost" in said
    assert "aetherscale_tls_names" in said


def test_a_ca_that_vouches_for_others(good: dict[str, Any], stranger: Authority) -> None:
    said = reach(**good | {"ca_file": str(stranger.ca)})
    assert f"shows a certificate that no CA in ca_file, {stranger.ca}, vouches for" in said


def test_no_ca_file_means_the_machines_own(good: dict[str, Any]) -> None:
    assert "no CA of this machine (there is no ca_file) vouches for" in reach(**good | {"ca_file": None})


@pytest.mark.parametrize("content", [None, "", "no certificate"])
def test_a_ca_file_that_cannot_be_read(good: dict[str, Any], tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    said = reach(**good | {"ca_file": str(file)})
    assert f"can't read the CA file {file}: " + ("it holds no" if content is not None else "No such file") in said
    assert "secrets/tls/ca.pem" in said


def test_tls_asked_of_a_plain_port(broker: TestBroker, good: dict[str, Any]) -> None:
    said = reach(**good | {"url": f"amqps://guest@{broker.address}/"})
    assert f"does not speak TLS on port {broker.port}" in said
    assert "amqp://" in said


def test_a_plain_url_for_a_port_with_tls(broker: TestBroker) -> None:
    said = reach(url=f"amqp://guest@127.0.0.1:{broker.tls_port}/", password="guest")
    assert "does not answer as RabbitMQ does" in said
    assert "amqps://" in said


def test_a_certificate_that_has_expired(broker: TestBroker, good: dict[str, Any], authority: Authority) -> None:
    show(broker, authority.broker("127.0.0.1", days=-0.01))
    assert "shows a certificate that has expired (running site.yml again" in reach(**good)
    show(broker, authority.broker("127.0.0.1"))
    assert reach(**good) == ""


def test_a_new_ca_comes_without_anybody_being_shut_out(
    broker: TestBroker, good: dict[str, Any], authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    both = tmp_path / "ca.pem"
    both.write_bytes(stranger.ca.read_bytes() + authority.ca.read_bytes())
    assert reach(**good | {"ca_file": str(both)}) == ""
    show(broker, stranger.broker("127.0.0.1"))
    assert reach(**good | {"ca_file": str(both)}) == ""
    assert "vouches for" in reach(**good)  # the control: one who knows the old CA alone is shut out
    show(broker, authority.broker("127.0.0.1"))


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_old_versions_are_refused(broker: TestBroker, version: ssl.TLSVersion) -> None:
    assert handshake("127.0.0.1", broker.tls_port, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        handshake("127.0.0.1", broker.tls_port, version)


def test_renewal_costs_no_connection_and_no_command(
    broker: TestBroker, agents: Fleet, good: dict[str, Any], authority: Authority
) -> None:
    both = [agents.add(host, "a", broker=good, heartbeat=30) for host in ("h1", "h2")]
    agents.wait_ready()
    with SeedClient(parameters=parameters_of(good)) as client:
        both[1].signal(signal.SIGSTOP)
        client.publish("host.h2", b'{"command": "list-vms", "options": {}}', correlation_id="queued")
        before = served(broker)
        show(broker, authority.broker("127.0.0.1"))
        assert served(broker) != before
        assert client.send("host.h1", "list-vms")[0]["host"] == "h1"
        assert client.collect("queued", 1, 0) == []
        both[1].signal(signal.SIGCONT)
        (late,) = client.collect("queued", 1)
    assert late["host"] == "h2"
    assert [agent.log.count("connected as") for agent in both] == [1, 1]


def served(broker: TestBroker) -> str:
    """The certificate that it shows."""
    return ssl.get_server_certificate(("127.0.0.1", broker.tls_port))


@pytest.fixture(scope="module")
def strict(authority: Authority) -> Iterator[TestBroker]:
    """A broker that lets nobody in without a certificate from our CA."""
    with private_broker(certificate=authority.broker("127.0.0.1"), client_ca=authority.ca) as node:
        yield node


class TestClientCertificates:
    def settings(self, strict: TestBroker, authority: Authority, cert_file: Path | None) -> dict[str, Any]:
        file = str(cert_file) if cert_file else None
        return {"url": tls_url(strict), "password": "guest", "ca_file": str(authority.ca), "cert_file": file}

    def test_ours_lets_us_in(self, strict: TestBroker, authority: Authority) -> None:
        assert reach(**self.settings(strict, authority, authority.client("guest"))) == ""

    def test_the_password_counts_as_before(self, strict: TestBroker, authority: Authority) -> None:
        settings = self.settings(strict, authority, authority.client("guest"))
        assert "authentication" in reach(**settings | {"password": "guess"}).lower()

    def test_none_is_refused(self, strict: TestBroker, authority: Authority) -> None:
        said = reach(**self.settings(strict, authority, None))
        assert "wants a certificate of ours" in said
        assert "cert_file" in said

    def test_one_of_strangers_is_refused(self, strict: TestBroker, authority: Authority, stranger: Authority) -> None:
        file = stranger.client("guest")
        assert f"refuses our certificate, {file}" in reach(**self.settings(strict, authority, file))

    def test_one_that_has_expired_is_refused(self, strict: TestBroker, authority: Authority) -> None:
        file = authority.client("late", days=-0.01)
        assert f"refuses our certificate, {file}" in reach(**self.settings(strict, authority, file))

    def test_one_that_cannot_be_read_is_named(self, strict: TestBroker, authority: Authority) -> None:
        said = reach(**self.settings(strict, authority, Path("/nope.pem")))
        assert "can't read the certificate /nope.pem: No such file" in said
