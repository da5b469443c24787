"""Errors of the broker that are hard to provoke, in words."""

import pytest
from pika import exceptions as amqp

from aetherscale_cli.broker_errors import explain
from aetherscale_cli.contexts import Target
from aetherscale_cli.errors import Exit, NoAgent
from aetherscale_protocol.settings import BrokerSettings

TARGET = Target(BrokerSettings(url="amqp://alice@broker.lan/cloud", password="sesame"), "context lab (/lab.toml)")


@pytest.mark.parametrize(
    ("error", "said", "code"),
    [
        (amqp.ChannelClosedByBroker(406, "PRECONDITION_FAILED - message size 9 is larger than configured max size 5"),
         "too big", Exit.FAILED),
        (amqp.ChannelClosedByBroker(404, "NOT_FOUND - no exchange 'computing' in vhost '/'"),
         "no agent", Exit.UNREACHABLE),
        (amqp.ChannelClosedByBroker(403, "ACCESS_REFUSED - something new"), "something new", Exit.FAILED),
        (amqp.ChannelClosedByBroker(541, "INTERNAL_ERROR"), "closed the channel: 541", Exit.FAILED),
        (amqp.ConnectionClosedByBroker(320, "CONNECTION_FORCED - shutdown"), "320 CONNECTION_FORCED", Exit.UNREACHABLE),
        (amqp.StreamLostError("gone"), "was lost", Exit.UNREACHABLE),
        (amqp.AMQPHeartbeatTimeout("gone"), "was lost", Exit.UNREACHABLE),
        (OSError(113, "No route to host"), "no route to host", Exit.UNREACHABLE),
        (RuntimeError(), "RuntimeError", Exit.UNREACHABLE),
    ],
)  # fmt: skip
def test_each_is_named(error: Exception, said: str, code: Exit) -> None:
    explained = explain(error, TARGET)
    assert said in str(explained)
    assert explained.exit_code is code
    assert isinstance(explained, NoAgent) or "broker.lan:5672" in str(explained)
    assert "sesame" not in f"{explained} {explained.hint}"


def test_guest_from_elsewhere_gets_the_likely_reason() -> None:
    guest = Target(BrokerSettings(url="amqp://guest@broker.lan/"), "RABBITMQ_HOST")
    explained = explain(amqp.ProbableAuthenticationError("(403) ACCESS_REFUSED"), guest)
    assert "loopback_users" in (explained.hint or "")
