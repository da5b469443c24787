"""The seed's client: a plain pika script with direct reply-to, as the article has it, and a few test helpers.

`ask` is the article's client: it declares nothing, publishes to `computing` with the command's name as the key,
and collects what comes back. Nothing here imports the product.
"""

import contextlib
import json
import logging
import ssl
import time
import uuid
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

import pika
from pika.exceptions import AMQPError, ChannelClosedByBroker

QUEUES = ("computing-competing", "computing-hosts", "computing-undeliverable")


logging.getLogger("pika").setLevel(logging.CRITICAL)


def parameters_of(broker: Mapping[str, Any], user: str = "", password: str = "", **more: Any) -> Any:
    """pika's parameters for what a CLI context says in its table `broker`, for that user or another one."""
    url = urlsplit(broker["url"])
    credentials = pika.PlainCredentials(user or url.username or "guest", password or broker["password"])
    port = url.port or (5671 if url.scheme == "amqps" else 5672)
    if url.scheme == "amqps":
        context = ssl.create_default_context(cafile=broker.get("ca_file"))
        if broker.get("cert_file"):
            context.load_cert_chain(broker["cert_file"])
        more["ssl_options"] = pika.SSLOptions(context, url.hostname)
    return pika.ConnectionParameters(url.hostname, port, unquote(url.path[1:]) or "/", credentials, **more)


class SeedClient:
    """A connection of the article's client."""

    def __init__(
        self,
        address: str = "localhost",
        user: str = "guest",
        password: str = "guest",
        vhost: str = "/",
        parameters: Any = None,
    ) -> None:
        """To an address as RABBITMQ_HOST has it, without TLS; or with `parameters` of pika's."""
        host, _, port = address.partition(":")
        plain = pika.ConnectionParameters(
            host, int(port or 5672), vhost, pika.PlainCredentials(user, password), heartbeat=600
        )
        self._connection = pika.BlockingConnection(parameters or plain)
        self._channel = self._connection.channel()
        self._answers: list[tuple[str | None, bytes]] = []
        self._returned: list[str] = []
        self._channel.basic_consume("amq.rabbitmq.reply-to", self._on_answer, auto_ack=True)
        self._channel.add_on_return_callback(lambda _c, m, _p, _b: self._returned.append(m.routing_key))

    def __enter__(self) -> "SeedClient":
        return self

    def __exit__(self, *_error: object) -> None:
        with contextlib.suppress(AMQPError):
            self._connection.close()

    def _on_answer(self, _channel: Any, _method: Any, properties: Any, body: bytes) -> None:
        self._answers.append((properties.correlation_id, body))

    @property
    def closed_because(self) -> str:
        """Why the broker closed the channel, if it did."""
        self._connection.process_data_events(0)
        reason = getattr(self._channel, "_closing_reason", None)
        return str(reason or "")

    def publish(
        self, key: str, body: bytes, *, mandatory: bool = False, exchange: str = "computing", **properties: Any
    ) -> str:
        """Publish a body; the correlation id. `properties` replace the article's."""
        correlation_id = str(uuid.uuid4())
        merged = {"reply_to": "amq.rabbitmq.reply-to", "correlation_id": correlation_id, **properties}
        merged = {name: value for name, value in merged.items() if value is not None}
        self._channel.basic_publish(exchange, key, body, pika.BasicProperties(**merged), mandatory)
        return correlation_id

    def collect(self, correlation_id: str, count: int, seconds: float = 10.0) -> list[dict[str, Any]]:
        """The answers to one message: so many, or as many as come within so many seconds."""
        limit = time.monotonic() + seconds
        while True:
            mine = [json.loads(body) for cid, body in self._answers if cid == correlation_id]
            left = limit - time.monotonic()
            if len(mine) >= count or left <= 0:
                return mine
            self._connection.process_data_events(min(left, 0.5))

    def ask(self, command: str, count: int, seconds: float = 10.0, **options: Any) -> list[dict[str, Any]]:
        """What the article's client gets for a command: so many answers, or what comes within so many seconds."""
        body = json.dumps({"command": command, "options": {k.replace("_", "-"): v for k, v in options.items()}})
        return self.collect(self.publish(command, body.encode()), count, seconds)

    def send(self, key: str, command: str, count: int = 1, seconds: float = 10.0, **more: Any) -> list[dict[str, Any]]:
        """As `ask`, with another key; `properties` in `more` go with the message, the rest are options."""
        properties = more.pop("properties", {})
        body = json.dumps({"command": command, "options": {k.replace("_", "-"): v for k, v in more.items()}})
        return self.collect(self.publish(key, body.encode(), **properties), count, seconds)

    def is_returned(self, key: str) -> bool:
        """Whether a mandatory message with this key comes back: nobody is bound to it."""
        self._returned.clear()
        self.publish(key, b"{}", mandatory=True, reply_to=None)
        limit = time.monotonic() + 0.5
        while not self._returned and time.monotonic() < limit:
            self._connection.process_data_events(0.05)
        return bool(self._returned)

    def agents_alive(self) -> int:
        """How many agents consume `computing-hosts`."""
        with contextlib.suppress(ChannelClosedByBroker):
            return int(self.consumers("computing-hosts"))
        return 0

    def consumers(self, queue: str) -> int:
        """How many consumers a queue has.

        :raise ChannelClosedByBroker: when there is no such queue.
        """
        channel = self._connection.channel()
        count = int(channel.queue_declare(queue, passive=True).method.consumer_count)
        channel.close()
        return count

    def unbind(self, queue: str, key: str) -> None:
        """Take a binding away, as an administrator might."""
        channel = self._connection.channel()
        channel.queue_unbind(queue, "computing", key)
        channel.close()

    def purge(self, hosts: Iterable[str]) -> None:
        """Delete the queues that agents left, for the next test."""
        for queue in (*QUEUES, *(f"computing-{kind}.{host}" for host in hosts for kind in ("host", "known"))):
            self._connection.channel().queue_delete(queue)
