"""How the broker is reached: URLs, the host from the environment, and a password that shows up nowhere."""

import ssl
from pathlib import Path
from typing import Any

import msgspec
import pika
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aetherscale_protocol.settings import BrokerSettings, SettingsError, connection_parameters, override_host

MANY = settings(max_examples=100, deadline=None, database=None)

SECRET = "hunter2-hunter2"

GOOD_URLS = [
    # url, tls, user, host, port, vhost
    ("amqp://guest@localhost:5672/", False, "guest", "localhost", 5672, "/"),
    ("amqp://localhost", False, "guest", "localhost", 5672, "/"),
    ("amqp://localhost/", False, "guest", "localhost", 5672, "/"),
    ("amqps://localhost", True, "guest", "localhost", 5671, "/"),
    ("amqp://alice@10.0.0.1/aetherscale", False, "alice", "10.0.0.1", 5672, "aetherscale"),
    ("amqps://agent-h1@broker.example.org:443/aether", True, "agent-h1", "broker.example.org", 443, "aether"),
    ("amqp://a%40b@h/%2F", False, "a@b", "h", 5672, "/"),
    ("amqp://a@h/x%2Fy", False, "a", "h", 5672, "x/y"),
    ("amqp://a@[::1]:5673/v", False, "a", "::1", 5673, "v"),
    ("amqp://a@[fe80::1]/v", False, "a", "fe80::1", 5672, "v"),
    ("amqp://a@H1.Example.ORG/v", False, "a", "h1.example.org", 5672, "v"),
]

BAD_URLS = [
    "",
    "localhost",
    "localhost:5672",
    "http://localhost/",
    "amqp:localhost",
    "amqp://",
    "amqp:///vhost",
    "amqp://guest@/v",
    "amqp://h:0/",
    "amqp://h:65536/",
    "amqp://h:-1/",
    "amqp://h:port/",
    "amqp://[::1/",
    "AMQPX://h/",
    "//h/v",
]


@pytest.mark.parametrize(("url", "tls", "user", "host", "port", "vhost"), GOOD_URLS)
def test_a_good_url_is_taken_apart(url: str, tls: bool, user: str, host: str, port: int, vhost: str) -> None:
    broker = BrokerSettings(url=url).check()
    assert (broker.tls, broker.user, broker.host, broker.port, broker.vhost) == (tls, user, host, port, vhost)


@pytest.mark.parametrize("url", BAD_URLS)
def test_a_bad_url_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        BrokerSettings(url=url).check()
    assert "amqp://" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "url",
    [
        f"amqp://guest:{SECRET}@localhost/",
        f"amqp://guest:{SECRET}@localhost:port/",
        f"amqp://guest:{SECRET}@[::1/",
        f"amqp://guest:{SECRET}@",
        f"http://guest:{SECRET}@localhost/",
        f"amqp://:{SECRET}@localhost/",
    ],
)
def test_a_password_in_the_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        BrokerSettings(url=url).check()
    assert SECRET not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize("name", ["ca_file", "cert_file"])
def test_a_file_for_tls_without_tls_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=name):
        BrokerSettings(url="amqp://h/", **{name: "/x.pem"}).check()
    BrokerSettings(url="amqps://h/", **{name: "/x.pem"}).check()


@pytest.mark.parametrize("show", [repr, str, "{}".format, "{0!r}".format, lambda s: f"{[s]}"])
def test_the_password_is_never_shown(show: Any) -> None:
    assert SECRET not in show(BrokerSettings(password=SECRET))


@pytest.mark.parametrize("bad", [{"password": 7}, {"url": 7}, {"ca_file": []}, {"pasword": SECRET}])
def test_a_wrong_key_is_named_without_any_value(bad: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert({"password": SECRET, **bad}, BrokerSettings)
    assert next(iter(bad)) in str(caught.value)
    assert SECRET not in str(caught.value)


@MANY
@given(st.text() | st.builds("{}://{}".format, st.sampled_from(["amqp", "amqps"]), st.text()))
def test_any_text_as_a_url_is_accepted_or_refused(url: str) -> None:
    broker = BrokerSettings(url=url)
    try:
        broker.check()
    except SettingsError:
        return
    assert broker.host
    assert 0 < broker.port < 65536
    assert broker.user
    assert broker.vhost


# Another host

HOSTS = [
    # base, RABBITMQ_HOST, url
    ("amqp://guest@localhost:5672/", "10.0.0.9", "amqp://guest@10.0.0.9:5672/"),
    ("amqp://guest@localhost:5672/", "10.0.0.9:5673", "amqp://guest@10.0.0.9:5673/"),
    ("amqp://guest@localhost/", "broker", "amqp://guest@broker/"),
    ("amqp://localhost", "broker", "amqp://guest@broker"),
    ("amqps://a%40b@h:443/x%2Fy", "broker", "amqps://a%40b@broker:443/x%2Fy"),
    ("amqps://a@h/v", "broker:5671", "amqps://a@broker:5671/v"),
    ("amqp://a@h:5673/v", "[::1]:5674", "amqp://a@[::1]:5674/v"),
    ("amqp://a@h:5673/v", "[::1]", "amqp://a@[::1]:5673/v"),
    ("amqp://a@h/v", "[::1]", "amqp://a@[::1]/v"),
]


@pytest.mark.parametrize(("base", "host", "url"), HOSTS)
def test_another_host_changes_nothing_else(base: str, host: str, url: str) -> None:
    broker = BrokerSettings(url=base, password=SECRET)
    expected = BrokerSettings(url=url, password=SECRET)
    assert broker.with_host(host) == expected
    assert override_host(broker, {"RABBITMQ_HOST": host}) == expected


def test_another_host_keeps_the_files_for_tls() -> None:
    broker = BrokerSettings(url="amqps://a@h/v", password=SECRET, ca_file="/ca.pem", cert_file="/client.pem").with_host(
        "i"
    )
    assert (broker.host, broker.password) == ("i", SECRET)
    assert (broker.ca_file, broker.cert_file) == ("/ca.pem", "/client.pem")


@pytest.mark.parametrize("environ", [{}, {"RABBITMQ_HOST": ""}, {"OTHER": "x"}])
def test_without_the_variable_nothing_changes(environ: dict[str, str]) -> None:
    broker = BrokerSettings(url="amqp://a@h:1/v")
    assert override_host(broker, environ) is broker


@pytest.mark.parametrize(
    "host",
    [
        *(" ", "a b", "a/b", "a@b", "user:pw@h", "amqp://h", "h:", "h:port", "h:0", "h:65536", "h:123456", "h\n"),
        *("::1", "[::1", "[g::]", "h?x", "h#x", "h:1:2", "\0"),
    ],
)
def test_a_variable_that_is_no_host_is_refused_by_its_name(host: str) -> None:
    with pytest.raises(SettingsError, match="RABBITMQ_HOST"):
        override_host(BrokerSettings(), {"RABBITMQ_HOST": host})


@MANY
@given(st.text())
def test_any_variable_is_accepted_or_refused(host: str) -> None:
    try:
        broker = override_host(BrokerSettings(url="amqp://alice@h:1/v", password=SECRET), {"RABBITMQ_HOST": host})
    except SettingsError:
        return
    assert (broker.user, broker.vhost, broker.password) == ("alice", "v", SECRET)


# What pika is told


def test_pika_is_told_all_of_it() -> None:
    broker = BrokerSettings(url="amqp://a%40b@10.0.0.1:5673/x%2Fy", password=SECRET)
    parameters = connection_parameters(broker, name="me", heartbeat_s=7, timeout_s=3.5)
    assert (parameters.host, parameters.port, parameters.virtual_host) == ("10.0.0.1", 5673, "x/y")
    assert parameters.credentials == pika.PlainCredentials("a@b", SECRET)
    assert parameters.ssl_options is None
    assert parameters.heartbeat == 7
    assert parameters.connection_attempts == 1
    assert parameters.client_properties == {"connection_name": "me"}
    times = (parameters.socket_timeout, parameters.stack_timeout, parameters.blocked_connection_timeout)
    assert times == (3.5, 3.5, 3.5)


def test_tls_is_checked_against_the_hosts_name() -> None:
    parameters = connection_parameters(
        BrokerSettings(url="amqps://a@broker.example.org/v"), name="me", heartbeat_s=7, timeout_s=3.5
    )
    options = parameters.ssl_options
    assert options.server_hostname == "broker.example.org"
    assert options.context.check_hostname
    assert options.context.verify_mode is ssl.CERT_REQUIRED
    assert options.context.minimum_version >= ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("content", [None, b"", b"no certificate", b"\xff" * 100])
def test_a_ca_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    broker = BrokerSettings(url="amqps://h/", ca_file=str(path))
    with pytest.raises(SettingsError, match=r"ca\.pem"):
        connection_parameters(broker, name="me", heartbeat_s=7, timeout_s=3.5)
