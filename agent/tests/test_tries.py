"""What a broker user may not do, tried with that user on a real broker: each refusal is a 403 that names the resource.

What is tried is in `aetherscale_testing.tries`; the lab's own broker is tried in molecule/default/tests/test_rights.py.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import pika
import pytest
from pika.exceptions import AMQPError, ChannelClosedByBroker, ProbableAuthenticationError, UnroutableError

from aetherscale_protocol import topology
from aetherscale_testing.broker import TestBroker
from aetherscale_testing.rights import add_user, locked_down_vhost, log_in
from aetherscale_testing.tries import (
    AGENT_ALLOWED,
    AGENT_EXCHANGE_TRIES,
    AGENT_TRIES,
    EXCHANGE_ATTEMPTS,
    EXCHANGE_TRIES,
    OPERATOR_EXCHANGE_TRIES,
    OPERATOR_TRIES,
    QUEUE_ATTEMPTS,
    QUEUES,
    Attempt,
    named_in,
    refusal,
)

pytestmark = pytest.mark.broker

VHOST = "tries"


def declare(admin: pika.BlockingConnection, name: str) -> None:
    QUEUE_ATTEMPTS["declare"](admin.channel(), name)


@pytest.fixture(scope="module")
def without_agents(broker: TestBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestBroker]:
    """A vhost with the shared pieces, every host's queues, and nobody at work: what is tried hits nothing."""
    users = {"operator": topology.OPERATOR_PERMISSIONS, "agent-h1": topology.agent_permissions("h1")}
    with locked_down_vhost(broker, VHOST, users, tmp_path_factory.mktemp("definitions")):
        broker.ctl("set_permissions", "-p", VHOST, "guest", ".*", ".*", ".*")
        with log_in(broker, "guest", VHOST, "guest") as admin:
            for name in QUEUES:
                declare(admin, name)
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
    assert named_in(refusal(operator, QUEUE_ATTEMPTS[what], name), name, what, VHOST)
    assert refusal(operator, EXCHANGE_ATTEMPTS["publish to"], topology.EXCHANGE) == "", "the control"


@pytest.mark.parametrize(("what", "name"), EXCHANGE_TRIES)
def test_an_operator_publishes_commands_and_does_nothing_else_to_exchanges(
    operator: pika.BlockingConnection, what: str, name: str
) -> None:
    told = refusal(operator, EXCHANGE_ATTEMPTS[what], name)
    if (what, name) not in OPERATOR_EXCHANGE_TRIES:
        assert told == ""
    else:
        assert named_in(told, name, what, VHOST)


@pytest.mark.parametrize(("what", "name"), AGENT_TRIES)
def test_an_agent_touches_what_is_its_own(agent: pika.BlockingConnection, what: str, name: str) -> None:
    assert named_in(refusal(agent, QUEUE_ATTEMPTS[what], name), name, what, VHOST)
    assert refusal(agent, QUEUE_ATTEMPTS["bind"], "computing-host.h1") == "", "the control"


@pytest.mark.parametrize(("what", "name"), AGENT_ALLOWED)
def test_an_agent_may_do_what_is_said_of_it_and_no_less(
    without_agents: TestBroker, agent: pika.BlockingConnection, what: str, name: str
) -> None:
    """To other hosts' queues, too: forgetting a host needs it."""
    try:
        assert refusal(agent, QUEUE_ATTEMPTS[what], name) == ""
    finally:
        if what == "delete":
            with log_in(without_agents, "guest", VHOST, "guest") as admin:
                declare(admin, name)


@pytest.mark.parametrize(("what", "name"), EXCHANGE_TRIES)
def test_an_agent_publishes_where_agents_do_and_not_where_operators_do(
    agent: pika.BlockingConnection, what: str, name: str
) -> None:
    told = refusal(agent, EXCHANGE_ATTEMPTS[what], name)
    if (what, name) not in AGENT_EXCHANGE_TRIES:
        assert told == ""
    else:
        assert named_in(told, name, what, VHOST)


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
    assert not named_in(told, "missing", "declare", VHOST)


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
