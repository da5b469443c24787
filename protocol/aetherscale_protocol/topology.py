"""The broker's pieces, and who may touch which: one table for agents, Ansible, tests and documents.

Arguments of a queue can't be changed once it is declared, so they are constants here, not settings.
"""

import re
from typing import Any

from msgspec import Struct

from aetherscale_protocol import names
from aetherscale_protocol.commands import BROADCAST_KEYS

EXCHANGE = "computing"
AGENTS = "computing-agents"
"""Where agents publish: bound to `computing`, to which they can't write. So what was published to `computing` itself
comes from an operator, signed or not, and the broker saw to that."""
COMPETING = "computing-competing"
HOSTS = "computing-hosts"
UNDELIVERABLE = "computing-undeliverable"

CREATE_KEY = "create-vm"
FORGET_KEY = "forget-host"

HOST_TTL_MS = 2_000
"""How long a command waits for a host's agent before it counts as undeliverable."""
COMPETING_TTL_MS = 5_000
"""How long a create waits for any agent before it counts as undeliverable."""
UNDELIVERABLE_TTL_MS = 60_000

MAX_PATIENCE_S = 600
"""The furthest that a deadline may lie ahead, in seconds."""
CLAIM_EXPIRES_MS = (MAX_PATIENCE_S + 120) * 1000
"""A claim outlives every copy of the create that it guards. One constant, so that the only argument in
which two claims of one id can differ is their owner."""

ReplyTo = "amq.rabbitmq.reply-to"


class Queue(Struct, frozen=True):
    """A durable queue and its arguments."""

    name: str
    arguments: dict[str, Any] = {}


class Exchange(Struct, frozen=True):
    """A durable exchange."""

    name: str
    type: str


class Binding(Struct, frozen=True):
    """An exchange, bound to a queue with a key."""

    exchange: str
    queue: str
    key: str


class ExchangeBinding(Struct, frozen=True):
    """An exchange, all of whose messages go to another exchange, too."""

    source: str
    destination: str


EXCHANGES = (Exchange(EXCHANGE, "direct"), Exchange(AGENTS, "fanout"), Exchange(UNDELIVERABLE, "fanout"))

SHARED_QUEUES = (
    Queue(
        COMPETING,
        {
            "x-queue-type": "classic",  # not quorum: docs/decisions/002-classic-queues.md
            "x-message-ttl": COMPETING_TTL_MS,
            "x-dead-letter-exchange": UNDELIVERABLE,
        },
    ),
    Queue(HOSTS, {"x-queue-type": "classic", "x-max-length": 1}),
    Queue(
        UNDELIVERABLE,
        {"x-queue-type": "classic", "x-message-ttl": UNDELIVERABLE_TTL_MS, "x-max-length-bytes": 64 << 20},
    ),
)

SHARED_BINDINGS = (
    Binding(EXCHANGE, COMPETING, CREATE_KEY),
    Binding(EXCHANGE, COMPETING, FORGET_KEY),
    Binding(UNDELIVERABLE, UNDELIVERABLE, ""),
)

EXCHANGE_BINDINGS = (ExchangeBinding(AGENTS, EXCHANGE),)


def host_queue(host: str) -> Queue:
    """The queue of one host: never expiring, because its bindings are the directory."""
    arguments = {
        "x-queue-type": "classic",
        "x-message-ttl": HOST_TTL_MS,
        "x-dead-letter-exchange": UNDELIVERABLE,
        "x-max-length-bytes": 64 << 20,
        "x-overflow": "reject-publish",
    }
    return Queue(names.host_queue(host), arguments)


def known(host: str) -> Queue:
    """The queue that holds one host's last word about its VMs: one message, each new one in place of the last."""
    return Queue(names.known_queue(host), {"x-queue-type": "classic", "x-max-length": 1, "x-overflow": "drop-head"})


def host_bindings(host: str) -> tuple[Binding, ...]:
    """What a host's queue is bound to, beside the VMs that it holds."""
    keys = (*BROADCAST_KEYS, names.host_key(host))
    return tuple(Binding(EXCHANGE, names.host_queue(host), key) for key in keys)


def claim(vm_id: str, host: str) -> Queue:
    """The queue whose declaration claims `vm_id` for `host`: a second host is refused with the owner's name."""
    arguments = {
        "x-queue-type": "classic",
        "x-expires": CLAIM_EXPIRES_MS,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": host,
    }
    return Queue(names.claim_queue(vm_id), arguments)


class Permissions(Struct, frozen=True):
    """What a broker user may touch in the vhost: three regular expressions over the names of resources."""

    configure: str
    write: str
    read: str


OPERATOR_PERMISSIONS = Permissions(configure="^$", write=f"^{EXCHANGE}(-hosts)?$", read="^$")
"""Publish commands. Write on `computing-hosts` is what later brokers ask of who counts its consumers."""


def agent_permissions(host: str) -> Permissions:
    """What the agent of `host` may touch: its own queues, claims, and the shared queues to consume.

    And what it takes to forget a host that is gone (docs/decisions/004-forget-host.md): to delete any host's
    queues, and to read any host's last word about its VMs.

    Two rights allow more than they are for. Who declares a queue with a dead-letter exchange must be able to write to
    that, and who binds a queue to read the exchange: together they bind the one exchange to the other, and the host's
    queue to any key of `computing`, with dead letters that lead back to the agents. Agents refuse what comes so, and
    the roll-out looks for such bindings and queues. An agent can bind its host's queue and the undeliverable's only.
    """
    claims = rf"claim\.{names.VM_ID_PATTERN}"
    own = rf"computing-host\.{re.escape(host)}"
    shared = f"{EXCHANGE}|{COMPETING}|{HOSTS}|{UNDELIVERABLE}"
    known = rf"computing-known\.{names.HOST_PATTERN}"
    hosts = rf"computing-host\.{names.HOST_PATTERN}"
    return Permissions(
        configure=rf"^({hosts}|{known}|agent\.{re.escape(host)}|{claims})$",
        write=rf"^({AGENTS}|{UNDELIVERABLE}|amq\.default|{own})$",
        read=f"^({shared}|{own}|{claims}|{known})$",
    )


def definitions(vhost: str) -> dict[str, list[dict[str, Any]]]:
    """The shared topology as RabbitMQ definitions (exchanges, queues, bindings) of one vhost."""
    return {
        "exchanges": [
            {"vhost": vhost, "name": e.name, "type": e.type, "durable": True, "auto_delete": False, "arguments": {}}
            for e in EXCHANGES
        ],
        "queues": [
            {"vhost": vhost, "name": q.name, "durable": True, "auto_delete": False, "arguments": q.arguments}
            for q in SHARED_QUEUES
        ],
        "bindings": [
            {
                "vhost": vhost,
                "source": b.exchange,
                "destination": b.queue,
                "destination_type": "queue",
                "routing_key": b.key,
                "arguments": {},
            }
            for b in SHARED_BINDINGS
        ]
        + [
            {
                "vhost": vhost,
                "source": b.source,
                "destination": b.destination,
                "destination_type": "exchange",
                "routing_key": "",
                "arguments": {},
            }
            for b in EXCHANGE_BINDINGS
        ],
    }
