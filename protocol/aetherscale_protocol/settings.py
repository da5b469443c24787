"""How to reach the broker: one table `[broker]` in the agent's configuration and in each CLI context.

[broker]
url = "amqps://agent-h1@10.0.0.1:5671/aetherscale"  # amqp:// and port 5672 without TLS
password = "…"
ca_file = "/etc/aetherscale/ca.pem"                   # only with amqps://; without it the machine's CAs count
cert_file = "/etc/aetherscale/client.pem"             # certificate and key, for a broker that wants one
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from msgspec import Struct
from msgspec.structs import replace

if TYPE_CHECKING:
    import pika

PORTS = {"amqp": 5672, "amqps": 5671}

_URL_HINT = "example: amqp://alice@10.0.0.1:5672/aetherscale"
_HOST_AND_PORT = r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?"


class SettingsError(Exception):
    """A setting is wrong: `str()` says which and why, `hint` what to do."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class BrokerSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the broker is, and as whom to log in."""

    url: str = "amqp://guest@localhost:5672/"
    password: str = "guest"
    ca_file: str | None = None
    cert_file: str | None = None

    def __repr__(self) -> str:
        return f"BrokerSettings(url={self.url!r})"  # never the password: settings end up in logs

    @property
    def tls(self) -> bool:
        """Whether the URL asks for TLS."""
        return self.url.startswith("amqps:")

    @property
    def user(self) -> str:
        """The broker user."""
        return unquote(urlsplit(self.url).username or "guest")

    @property
    def host(self) -> str:
        """The broker's host."""
        return urlsplit(self.url).hostname or "localhost"

    @property
    def port(self) -> int:
        """The broker's port."""
        parts = urlsplit(self.url)
        return parts.port or PORTS[parts.scheme]

    @property
    def vhost(self) -> str:
        """The virtual host; a URL without a path means `/`."""
        path = urlsplit(self.url).path.removeprefix("/")
        return unquote(path) or "/"

    @property
    def _behind_user(self) -> str:
        return self.url.rpartition("@")[2]  # a password in the url must not reach a terminal or a log

    def check(self) -> "BrokerSettings":
        """Itself, if it makes sense.

        :raise SettingsError: when the URL is none, or files for TLS stand beside a URL without it.
        """
        try:
            parts = urlsplit(self.url)
            port, password = parts.port, parts.password
        except ValueError:  # its text may quote a piece of a password
            raise SettingsError(f"the broker's url, …{self._behind_user!r}, is malformed", _URL_HINT) from None
        if password is not None:
            raise SettingsError("the broker's password stands in its url", "move it to `password`")
        if parts.scheme not in PORTS or not parts.hostname or port == 0:
            raise SettingsError(
                f"the broker's url, …{self._behind_user!r}, is not amqp://user@host:port/vhost or amqps://…", _URL_HINT
            )
        for name in ("ca_file", "cert_file"):
            if getattr(self, name) and not self.tls:
                raise SettingsError(f"{name} is set, but the url does not ask for TLS", "use amqps://")
        return self

    def with_host(self, host: str) -> "BrokerSettings":
        """The same, at another host (`host` or `host:port`)."""
        parts = urlsplit(self.url)
        netloc = f"{quote(self.user, safe='')}@{host}"
        if ":" not in host.rpartition("]")[2] and parts.port:
            netloc += f":{parts.port}"
        return replace(self, url=f"{parts.scheme}://{netloc}{parts.path}").check()


def override_host(settings: BrokerSettings, environ: Mapping[str, str]) -> BrokerSettings:
    """`settings`, with `RABBITMQ_HOST` from the environment in place of its host, if that is set.

    :raise SettingsError: when it is not `host` or `host:port`.
    """
    host = environ.get("RABBITMQ_HOST")
    if not host:
        return settings
    if re.fullmatch(_HOST_AND_PORT, host) is None:
        raise SettingsError(f"RABBITMQ_HOST is {host!r}, not `host` or `host:port`")
    try:
        return settings.with_host(host)
    except SettingsError as error:
        raise SettingsError(f"RABBITMQ_HOST is {host!r}: {error}", error.hint) from None


def connection_parameters(
    settings: BrokerSettings, *, name: str, heartbeat_s: int, timeout_s: float
) -> "pika.ConnectionParameters":
    """What pika needs to connect. `name` is shown by the broker's own tools.

    :raise SettingsError: when a file that TLS needs can't be read.
    """
    import pika

    return pika.ConnectionParameters(
        host=settings.host,
        port=settings.port,
        virtual_host=settings.vhost,
        credentials=pika.PlainCredentials(settings.user, settings.password, erase_on_connect=False),
        heartbeat=heartbeat_s,
        socket_timeout=timeout_s,
        stack_timeout=timeout_s,
        blocked_connection_timeout=timeout_s,
        connection_attempts=1,
        client_properties={"connection_name": name},
        ssl_options=_ssl_options(settings) if settings.tls else None,
    )


def _ssl_options(settings: BrokerSettings) -> "pika.SSLOptions":
    import pika

    from aetherscale_protocol.tls import make_context  # not before it is needed: ssl takes a while to load

    return pika.SSLOptions(make_context(settings), settings.host)
