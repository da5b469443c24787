"""The broker's pieces: what they are, to the letter, and exactly which of them each user may touch."""

import re

import pytest

from aetherscale_protocol import names, topology
from aetherscale_protocol.commands import COMMANDS, Reach
from aetherscale_protocol.topology import Permissions

# Who may touch what. RabbitMQ matches a name with `re:run`, i.e. anywhere in it unless anchored.

SHARED = ["computing", "computing-competing", "computing-hosts", "computing-undeliverable"]
SHARED_TO_WRITE = ["computing-agents", "computing-undeliverable", "amq.default"]
OTHERS = [
    "",
    "amq.default",
    "amq.direct",
    "amq.fanout",
    "amq.topic",
    "amq.rabbitmq.reply-to",
    "amq.rabbitmq.trace",
    "amq.gen-1",
    "other",
    "xcomputing",
    "computing-agents",
    "computing-agents2",
    "computing2",
    "computing-",
    "computing-hosts2",
    "computing-host",
    "computing-host.",
    "computing-undeliverable2",
    "amqXdefault",
    "computing-host.h1",
    "computing-host.h2",
    "computing-host.h1x",
    "computing-host.xh1",
    "computing-host.h1.h2",
    "computing-hostxh1",
    "xcomputing-host.h1",
    "agent.h1",
    "agent.h2",
    "agent.h1x",
    "agentxh1",
    "agent.",
    "computing-known.h1",
    "computing-known.h2",
    "computing-known.",
    "computing-knownxh1",
    "xcomputing-known.h1",
    "computing-known.H1",
    "claim.abcdefgh",
    "claim.abcdefg",
    "claim.abcdefghi",
    "claim.ABCDEFGH",
    "claim.abcdefg1",
    "claimxabcdefgh",
    "claim.",
    "xclaim.abcdefgh",
    "claim.abcdefgh.h1",
]
CORPUS = [*SHARED, *OTHERS]

CLAIM = "claim.abcdefgh"


# What it takes to forget a host that is gone: docs/decisions/004-forget-host.md
KNOWN = ["computing-known.h1", "computing-known.h2"]
HOSTS_QUEUES = [f"computing-host.{host}" for host in ("h1", "h2", "h1x", "xh1", "h1.h2")]


def allowed(permissions: Permissions, kind: str) -> list[str]:
    return [name for name in CORPUS if re.search(getattr(permissions, kind), name)]


def sort(resources: list[str]) -> list[str]:
    return sorted(resources, key=CORPUS.index)


@pytest.mark.parametrize(
    ("kind", "expected"), [("configure", [""]), ("write", ["computing", "computing-hosts"]), ("read", [""])]
)
def test_what_an_operator_may_touch(kind: str, expected: list[str]) -> None:
    """`^$` matches the empty name only: RabbitMQ's own word for «nothing»."""
    assert allowed(topology.OPERATOR_PERMISSIONS, kind) == expected


@pytest.mark.parametrize("host", ["h1", "h2"])
@pytest.mark.parametrize(
    ("kind", "shared", "own"),
    [
        ("configure", [*HOSTS_QUEUES, *KNOWN, CLAIM], ["agent.{host}"]),
        ("write", SHARED_TO_WRITE, ["computing-host.{host}"]),
        ("read", [*SHARED, *KNOWN, CLAIM], ["computing-host.{host}"]),
    ],
)
def test_what_an_agent_may_touch(host: str, kind: str, shared: list[str], own: list[str]) -> None:
    """Of queues it writes to its own alone: it binds no other, and so has no copies of commands put by elsewhere."""
    mine = [name.format(host=host) for name in own]
    assert allowed(topology.agent_permissions(host), kind) == sort([*{*shared, *mine}])


@pytest.mark.parametrize(
    ("kind", "queue"), [("write", "computing-host"), ("read", "computing-host"), ("configure", "agent")]
)
def test_dots_of_a_hosts_name_are_dots_only(kind: str, queue: str) -> None:
    pattern = getattr(topology.agent_permissions("h1.example.org"), kind)
    assert re.search(pattern, f"{queue}.h1.example.org")
    for other in ("h1xexample.org", "h1", "h1.example-org", "h1.example.orgs"):
        assert not re.search(pattern, f"{queue}.{other}")


@pytest.mark.parametrize("host", ["h1", "h-1", "h1.example.org", "a" * 63])
def test_an_agent_may_do_all_that_it_does(host: str) -> None:
    """Bind: write on the queue, read on the exchange. Dead letters: read on the queue, write on the exchange."""
    may = topology.agent_permissions(host)
    own_queue = topology.host_queue(host)
    for queue in (own_queue, topology.claim("abcdefgh", host)):
        assert re.search(may.configure, queue.name)
        assert re.search(may.read, queue.name)
        assert re.search(may.write, queue.arguments["x-dead-letter-exchange"] or "amq.default")
    assert re.search(may.configure, names.lock_queue(host))
    for binding in topology.host_bindings(host):
        assert re.search(may.write, binding.queue)
        assert re.search(may.read, binding.exchange)
    for queue in topology.SHARED_QUEUES:
        assert re.search(may.read, queue.name)
        assert not re.search(may.configure, queue.name)
    assert re.search(may.write, topology.AGENTS)
    assert not re.search(may.write, topology.EXCHANGE), "what is published there counts as an operator's"


def test_host_names_can_not_break_out_of_a_pattern() -> None:
    for letter in map(chr, range(33, 127)):
        host = f"a{letter}b"
        if names.is_host_name(host):
            pattern = topology.agent_permissions(host).write
            assert {n for n in CORPUS if re.search(pattern, n)} == {*SHARED_TO_WRITE}
            assert re.search(pattern, f"computing-host.{host}")
            assert re.search(topology.agent_permissions(host).configure, f"agent.{host}")


# Queues, to the letter: a queue that exists with other arguments can't be declared

SHARED_ARGUMENTS = {
    "computing-competing": {
        "x-queue-type": "classic",
        "x-message-ttl": 5000,
        "x-dead-letter-exchange": "computing-undeliverable",
    },
    "computing-hosts": {"x-queue-type": "classic", "x-max-length": 1},
    "computing-undeliverable": {"x-queue-type": "classic", "x-message-ttl": 60_000, "x-max-length-bytes": 67_108_864},
}


def test_arguments_of_the_shared_queues() -> None:
    assert {queue.name: queue.arguments for queue in topology.SHARED_QUEUES} == SHARED_ARGUMENTS


def test_arguments_of_a_hosts_queue() -> None:
    queue = topology.host_queue("h1")
    assert queue.name == "computing-host.h1"
    assert queue.arguments == {
        "x-queue-type": "classic",
        "x-message-ttl": 2000,
        "x-dead-letter-exchange": "computing-undeliverable",
        "x-max-length-bytes": 67_108_864,
        "x-overflow": "reject-publish",
    }
    assert "x-expires" not in queue.arguments, "its bindings are the directory: it must outlive its agent"


def test_arguments_of_the_queue_of_what_is_known() -> None:
    queue = topology.known("h1")
    assert queue.name == "computing-known.h1"
    assert queue.arguments == {"x-queue-type": "classic", "x-max-length": 1, "x-overflow": "drop-head"}


def test_claims_of_one_id_differ_in_their_owner_only() -> None:
    one, other = topology.claim("abcdefgh", "h1"), topology.claim("abcdefgh", "h2")
    assert one.name == other.name == "claim.abcdefgh"
    assert {key for key in one.arguments if one.arguments[key] != other.arguments[key]} == {"x-dead-letter-routing-key"}
    assert one.arguments["x-dead-letter-routing-key"] == "h1"
    assert one.arguments == {
        "x-queue-type": "classic",
        "x-expires": 720_000,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "h1",
    }


def test_a_claim_outlives_every_copy_of_its_create() -> None:
    longest_s = topology.MAX_PATIENCE_S + (topology.COMPETING_TTL_MS + topology.UNDELIVERABLE_TTL_MS) / 1000
    assert longest_s * 1000 < topology.CLAIM_EXPIRES_MS


def test_a_queues_arguments_are_its_own() -> None:
    topology.host_queue("h1").arguments["x-message-ttl"] = 1
    topology.claim("abcdefgh", "h1").arguments.clear()
    assert topology.host_queue("h1").arguments["x-message-ttl"] == 2000
    assert topology.claim("abcdefgh", "h1").arguments


# Bindings


def test_a_hosts_queue_gets_every_broadcast_and_what_is_sent_to_it() -> None:
    bindings = topology.host_bindings("h1")
    assert {(b.exchange, b.queue) for b in bindings} == {("computing", "computing-host.h1")}
    broadcast = {c.name for c in COMMANDS.values() if c.reach not in (Reach.ONE, Reach.HOST)}
    assert sorted(b.key for b in bindings) == sorted([*broadcast, "host.h1"])
    assert not {"create-vm", "delete-image", "drain-host", "undrain-host"} & broadcast


def test_what_goes_to_one_agent_goes_through_the_shared_queue() -> None:
    ones = [c.name for c in COMMANDS.values() if c.reach is Reach.ONE]
    assert ones == [topology.CREATE_KEY, topology.FORGET_KEY]
    assert [(b.queue, b.key) for b in topology.SHARED_BINDINGS if b.exchange == topology.EXCHANGE] == [
        ("computing-competing", "create-vm"),
        ("computing-competing", "forget-host"),
    ]


def test_no_key_of_a_command_can_be_taken_for_another_kind_of_key() -> None:
    for name in COMMANDS:
        assert not name.startswith(("vm.", "host."))


# Definitions, as RabbitMQ imports them


def test_definitions_hold_the_shared_topology() -> None:
    definitions = topology.definitions("aetherscale")
    assert set(definitions) == {"exchanges", "queues", "bindings"}
    assert definitions["exchanges"] == [
        {"vhost": "aetherscale", "durable": True, "auto_delete": False, "arguments": {}, "name": name, "type": kind}
        for name, kind in (
            ("computing", "direct"),
            ("computing-agents", "fanout"),
            ("computing-undeliverable", "fanout"),
        )
    ]
    assert definitions["queues"] == [
        {"vhost": "aetherscale", "durable": True, "auto_delete": False, "name": name, "arguments": arguments}
        for name, arguments in SHARED_ARGUMENTS.items()
    ]
    assert definitions["bindings"] == [
        {
            "vhost": "aetherscale",
            "source": source,
            "destination": destination,
            "destination_type": kind,
            "routing_key": key,
            "arguments": {},
        }
        for source, destination, key, kind in (
            ("computing", "computing-competing", "create-vm", "queue"),
            ("computing", "computing-competing", "forget-host", "queue"),
            ("computing-undeliverable", "computing-undeliverable", "", "queue"),
            ("computing-agents", "computing", "", "exchange"),
        )
    ]


def test_every_binding_and_dead_letter_leads_somewhere() -> None:
    definitions = topology.definitions("/")
    exchanges = {e["name"] for e in definitions["exchanges"]}
    queues = {q["name"] for q in definitions["queues"]}
    for binding in definitions["bindings"]:
        assert binding["source"] in exchanges
        assert binding["destination"] in (queues if binding["destination_type"] == "queue" else exchanges)
    for queue in definitions["queues"]:
        assert queue["arguments"].get("x-dead-letter-exchange", "computing") in exchanges
