"""What a broker user may not do, tried with that user on a real broker: each refusal is a 403 that names the resource.

Every piece that the protocol's own table has is tried, so a new queue or exchange is covered by itself.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest
from pika.exceptions import AMQPError, ChannelClosedByBroker, ProbableAuthenticationError, UnroutableError

from aetherscale_protocol import names, topology
from aetherscale_protocol.topology import Queue
from aetherscale_testing.broker import TestBroker
from aetherscale_testing.rights import add_user, locked_down_vhost, log_in

pytestmark = pytest.mark.broker

VHOST = "tries"
Attempt = Callable[[Any, str], object]


def publish(channel: Any, exchange: str) -> None:
    """Publish, and wait until the broker has said yes or no."""
    channel.confirm_delivery()
    with contextlib.suppress(UnroutableError):
        channel.basic_publish(exchange, "some-key", b"{}", mandatory=True)


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
EXCHANGES = (*(exchange.name for exchange in topology.EXCHANGES), "amq.topic", "amq.fanout", "somebody-elses")

DEFAULT = ""  # bound to every queue by its name, and by nothing else: it can be published to, and no more

EXCHANGE_TRIES = [("publish to", DEFAULT), *((what, name) for name in EXCHANGES for what in EXCHANGE_ATTEMPTS)]

AGENT_MAY = {
    "computing-competing": {"get", "consume", "purge"},
    "computing-hosts": {"get", "consume", "purge"},
    "computing-undeliverable": {"get", "consume", "purge", "bind", "unbind"},
    "computing-host.h1": set(QUEUE_ATTEMPTS),
    "computing-host.h2": {"declare", "delete"},
    "computing-known.h1": {"declare", "delete", "get", "consume", "purge"},
    "computing-known.h2": {"declare", "delete", "get", "consume", "purge"},
    "agent.h1": set(QUEUE_ATTEMPTS),
    "claim.abcdefgh": set(QUEUE_ATTEMPTS),
}
"""What the agent of h1 may do with queues, to the letter; `docs/security.md` says what each costs. Nothing else."""

AGENT_MAY_PUBLISH = {"computing-agents", "computing-undeliverable", DEFAULT}
OPERATOR_MAY_PUBLISH = {"computing"}

OPERATOR_TRIES = [(what, name) for name in QUEUES for what in QUEUE_ATTEMPTS]
AGENT_TRIES = [(what, name) for what, name in OPERATOR_TRIES if what not in AGENT_MAY.get(name, set())]


def refusal(connection: pika.BlockingConnection, attempt: Attempt, name: str) -> str:
    """What the broker says to an attempt; '' if it lets it happen."""
    try:
        attempt(connection.channel(), name)
    except ChannelClosedByBroker as error:
        return str(error.reply_text)
    return ""


@pytest.fixture(scope="module")
def without_agents(broker: TestBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestBroker]:
    """A vhost with the shared pieces, every host's queues, and nobody at work: what is tried hits nothing."""
    users = {"operator": topology.OPERATOR_PERMISSIONS, "agent-h1": topology.agent_permissions("h1")}
    with locked_down_vhost(broker, VHOST, users, tmp_path_factory.mktemp("definitions")):
        broker.ctl("set_permissions", "-p", VHOST, "guest", ".*", ".*", ".*")
        with log_in(broker, "guest", VHOST, "guest") as admin:
            for queue in QUEUES.values():
                admin.channel().queue_declare(queue.name, durable=True, arguments=queue.arguments or None)
            admin.channel().exchange_declare("somebody-elses", "topic", durable=True)
        yield broker


@pytest.fixture(scope="module")
def operator(without_agents: TestBroker) -> Iterator[pika.BlockingConnection]:
    with log_in(without_agents, "operator", VHOST) as connection:
        yield connection


@pytest.fixture(scope="module")
def agent(without_agents: TestBroker) -> Iterator[pika.BlockingConnection]:
    with log_in(without_agents, "agent-h1", VHOST) as connection:
        yield connection


@pytest.mark.parametrize(("what", "name"), OPERATOR_TRIES)
def test_an_operator_touches_no_queue(operator: pika.BlockingConnection, what: str, name: str) -> None:
    assert named_in(refusal(operator, QUEUE_ATTEMPTS[what], name), name, what)
    assert refusal(operator, EXCHANGE_ATTEMPTS["publish to"], topology.EXCHANGE) == "", "the control"


@pytest.mark.parametrize(("what", "name"), EXCHANGE_TRIES)
def test_an_operator_publishes_commands_and_does_nothing_else_to_exchanges(
    operator: pika.BlockingConnection, what: str, name: str
) -> None:
    told = refusal(operator, EXCHANGE_ATTEMPTS[what], name)
    if what == "publish to" and name in OPERATOR_MAY_PUBLISH:
        assert told == ""
    else:
        assert named_in(told, name, what)


@pytest.mark.parametrize(("what", "name"), AGENT_TRIES)
def test_an_agent_touches_what_is_its_own(agent: pika.BlockingConnection, what: str, name: str) -> None:
    assert named_in(refusal(agent, QUEUE_ATTEMPTS[what], name), name, what)
    assert refusal(agent, QUEUE_ATTEMPTS["bind"], "computing-host.h1") == "", "the control"


@pytest.mark.parametrize(("what", "name"), EXCHANGE_TRIES)
def test_an_agent_publishes_where_agents_do_and_not_where_operators_do(
    agent: pika.BlockingConnection, what: str, name: str
) -> None:
    told = refusal(agent, EXCHANGE_ATTEMPTS[what], name)
    if what == "publish to" and name in AGENT_MAY_PUBLISH:
        assert told == ""
    elif what in ("bind to", "bind to commands") and name in AGENT_MAY_PUBLISH:
        assert told == "", "binding needs no more than what it has: to write there, and to read at the other end"
    else:
        assert named_in(told, name, what)


SOURCES = {
    "bind": topology.EXCHANGE,
    "unbind": topology.EXCHANGE,
    "bind to": topology.UNDELIVERABLE,
    "bind to commands": topology.EXCHANGE,
}
"""A binding needs two rights: who may write to its end is refused to read from its beginning."""


def named_in(told: str, name: str, what: str) -> bool:
    """Whether a refusal names the resource; the default exchange has no name of its own."""
    named = {name or "amq.default", SOURCES.get(what)}
    if not told.startswith("ACCESS_REFUSED"):
        return False
    return any(f"'{one}' in vhost '{VHOST}'" in told for one in named) or (not name and "default exchange" in told)


@pytest.mark.parametrize("user", ["operator", "agent-h1"])
def test_nobody_gets_into_another_vhost(without_agents: TestBroker, user: str) -> None:
    with pytest.raises(AMQPError, match="/"):
        log_in(without_agents, user, "/")
    log_in(without_agents, user, VHOST).close()  # the control


@pytest.mark.parametrize(("user", "claimed"), [("operator", "agent-h1"), ("agent-h1", "operator")])
def test_nobody_signs_as_somebody_else(without_agents: TestBroker, user: str, claimed: str) -> None:
    exchange = topology.EXCHANGE if user == "operator" else topology.AGENTS

    def sign(name: str) -> Attempt:
        def attempt(channel: Any, key: str) -> None:
            channel.confirm_delivery()
            with contextlib.suppress(UnroutableError):
                channel.basic_publish(exchange, key, b"{}", pika.BasicProperties(user_id=name), mandatory=True)

        return attempt

    with log_in(without_agents, user, VHOST) as connection:
        with pytest.raises(ChannelClosedByBroker, match=f"user_id property set to '{claimed}'"):
            sign(claimed)(connection.channel(), "host.h1")
        sign(user)(connection.channel(), "host.h1")  # the control


def test_what_is_not_there_counts_as_no_success(agent: pika.BlockingConnection) -> None:
    told = refusal(agent, lambda c, name: c.queue_declare(name, passive=True), "missing")
    assert told.startswith("NOT_FOUND")
    assert not named_in(told, "missing", "declare")


def test_an_operator_who_leaves_is_put_out_and_not_let_in_again(without_agents: TestBroker) -> None:
    """What site.yml does about a user of ours who is not in the list any more: `delete_user`."""
    add_user(without_agents, VHOST, "dave", topology.OPERATOR_PERMISSIONS)
    dave = log_in(without_agents, "dave", VHOST)
    assert refusal(dave, EXCHANGE_ATTEMPTS["publish to"], topology.EXCHANGE) == ""
    without_agents.ctl("delete_user", "dave")
    with pytest.raises(AMQPError):
        dave.process_data_events(5)
    with pytest.raises(ProbableAuthenticationError):
        log_in(without_agents, "dave", VHOST)
