"""What broker users try that they may not, as data: all that AMQP can do to every piece of the protocol's own table.

A new queue or exchange is covered by itself. Two agents, h1 and h2; whoever tries as an agent is h1's.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import pika
from pika.exceptions import ChannelClosedByBroker, UnroutableError

from aetherscale_protocol import names, topology
from aetherscale_protocol.topology import Queue

Attempt = Callable[[Any, str], object]


def publish(channel: Any, exchange: str) -> None:
    """Publish, and wait until the broker has said yes or no."""
    channel.confirm_delivery()
    with contextlib.suppress(UnroutableError):
        channel.basic_publish(exchange, "some-key", b"{}", mandatory=True)


QUEUES = {
    **{queue.name: queue for queue in topology.SHARED_QUEUES},
    **{
        queue.name: queue
        for host in ("h1", "h2")
        for queue in (topology.host_queue(host), topology.known(host), Queue(names.lock_queue(host)))
    },
    **{queue.name: queue for queue in (topology.claim("abcdefgh", "h1"), Queue("somebody-elses"))},
}
ARGUMENTS = {name: queue.arguments or None for name, queue in QUEUES.items()}

QUEUE_ATTEMPTS: dict[str, Attempt] = {
    "declare": lambda c, name: c.queue_declare(name, durable=True, arguments=ARGUMENTS.get(name)),
    "delete": lambda c, name: c.queue_delete(name, if_unused=False),
    "bind": lambda c, name: c.queue_bind(name, topology.EXCHANGE, "vm.abcdefgh"),
    "unbind": lambda c, name: c.queue_unbind(name, topology.EXCHANGE, "vm.abcdefgh"),
    "purge": lambda c, name: c.queue_purge(name),
    "get": lambda c, name: c.basic_get(name),
    "consume": lambda c, name: c.basic_consume(name, print),
}
EXCHANGE_ATTEMPTS: dict[str, Attempt] = {
    "declare": lambda c, name: c.exchange_declare(name, "direct", durable=True),
    "delete": lambda c, name: c.exchange_delete(name),
    "bind to": lambda c, name: c.exchange_bind(name, topology.UNDELIVERABLE),
    "bind to commands": lambda c, name: c.exchange_bind(name, topology.EXCHANGE, "create-vm"),
    "publish to": publish,
}

EXCHANGES = (*(exchange.name for exchange in topology.EXCHANGES), "amq.topic", "amq.fanout", "somebody-elses")

DEFAULT = ""  # bound to every queue by its name, and by nothing else: it can be published to, and no more

EXCHANGE_TRIES = [("publish to", DEFAULT), *((what, name) for name in EXCHANGES for what in EXCHANGE_ATTEMPTS)]
"""What is tried with exchanges. Some of it is allowed."""

AGENT_MAY = {
    "computing-competing": {"get", "consume", "purge"},
    "computing-hosts": {"get", "consume", "purge"},
    "computing-undeliverable": {"get", "consume", "purge", "bind", "unbind"},
    "computing-host.h1": set(QUEUE_ATTEMPTS),
    "computing-host.h2": {"declare", "delete"},
    "computing-known.h1": {"declare", "delete", "get", "consume", "purge"},
    "computing-known.h2": {"declare", "delete", "get", "consume", "purge"},
    "agent.h1": {"declare", "delete"},
    "claim.abcdefgh": {"declare", "delete", "get", "consume", "purge"},
}
"""What the agent of h1 may do with queues, to the letter; `docs/security.md` says what each costs. Nothing else."""

AGENT_MAY_PUBLISH = {"computing-agents", "computing-undeliverable", DEFAULT}
OPERATOR_MAY_PUBLISH = {"computing"}

BINDING = ("bind to", "bind to commands")
"""It needs no more than to write at the one end, and to read at the other: an agent may where it may publish."""

OPERATOR_TRIES = [(what, name) for name in QUEUES for what in QUEUE_ATTEMPTS]
AGENT_TRIES = [(what, name) for what, name in OPERATOR_TRIES if what not in AGENT_MAY.get(name, set())]
AGENT_ALLOWED = [(what, name) for what, name in OPERATOR_TRIES if what in AGENT_MAY.get(name, set())]
OPERATOR_EXCHANGE_TRIES = [
    (what, name) for what, name in EXCHANGE_TRIES if what != "publish to" or name not in OPERATOR_MAY_PUBLISH
]
AGENT_EXCHANGE_TRIES = [
    (what, name)
    for what, name in EXCHANGE_TRIES
    if what not in ("publish to", *BINDING) or name not in AGENT_MAY_PUBLISH
]
"""What must be refused."""


def refusal(connection: pika.BlockingConnection, attempt: Attempt, name: str) -> str:
    """What the broker says to an attempt; '' if it lets it happen."""
    channel = connection.channel()
    try:
        attempt(channel, name)
    except ChannelClosedByBroker as error:
        return str(error.reply_text)
    channel.close()
    return ""


SOURCES = {
    "bind": topology.EXCHANGE,
    "unbind": topology.EXCHANGE,
    "bind to": topology.UNDELIVERABLE,
    "bind to commands": topology.EXCHANGE,
}
"""A binding needs two rights: who may write to its end is refused to read from its beginning."""


def named_in(told: str, name: str, what: str, vhost: str) -> bool:
    """Whether a refusal names the resource; the default exchange has no name of its own."""
    named = {name or "amq.default", SOURCES.get(what)}
    if not told.startswith("ACCESS_REFUSED"):
        return False
    return any(f"'{one}' in vhost '{vhost}'" in told for one in named) or (not name and "default exchange" in told)
