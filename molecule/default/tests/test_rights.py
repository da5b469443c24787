"""What broker users may not do, tried on the lab's own broker with the rights that site.yml gave them, as
agent/tests/test_tries.py does on a broker without agents: only what must be refused, and so hits nothing.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pika
import pytest

from aetherscale_protocol import names, topology
from aetherscale_testing.client import parameters_of
from aetherscale_testing.rollout import Rollout
from aetherscale_testing.tries import (
    AGENT_EXCHANGE_TRIES,
    AGENT_TRIES,
    EXCHANGE_ATTEMPTS,
    OPERATOR_EXCHANGE_TRIES,
    OPERATOR_TRIES,
    QUEUE_ATTEMPTS,
    Attempt,
    named_in,
    refusal,
)

testinfra_hosts = ["broker1"]  # once, not per host

SECRETS = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"], "secrets")
VHOST = "aetherscale"


@pytest.fixture(scope="module")
def log_in() -> Iterator[Callable[[str], pika.BlockingConnection]]:
    """Connect to the lab's broker as this user."""
    broker, opened = Rollout().broker(), []

    def connect(user: str) -> pika.BlockingConnection:
        password = (SECRETS / user).read_text().strip()
        opened.append(pika.BlockingConnection(parameters_of(broker, user, password, heartbeat=0)))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.close()


def assert_refused(
    connection: pika.BlockingConnection,
    attempts: dict[str, Attempt],
    tries: list[tuple[str, str]],
    control: tuple[Attempt, str],
) -> None:
    """Each is refused with a 403 that names the resource, and the control is not. The first that is not ends it."""
    for what, name in tries:
        told = refusal(connection, attempts[what], name)
        assert named_in(told, name, what, VHOST), f"{what} {name!r}: {told!r}"
        assert refusal(connection, *control) == "", "the control"


def test_an_operator_does_nothing_at_the_broker_but_publish_commands(
    log_in: Callable[[str], pika.BlockingConnection],
) -> None:
    operator, control = log_in("operator"), (EXCHANGE_ATTEMPTS["publish to"], topology.EXCHANGE)
    assert len(OPERATOR_TRIES) > 50
    assert_refused(operator, QUEUE_ATTEMPTS, OPERATOR_TRIES, control)
    assert_refused(operator, EXCHANGE_ATTEMPTS, OPERATOR_EXCHANGE_TRIES, control)


def test_an_agent_touches_what_is_its_own_and_publishes_where_agents_do(
    log_in: Callable[[str], pika.BlockingConnection],
) -> None:
    """The control needs what a binding does, and changes nothing: nobody has bound that key."""
    agent, control = log_in(names.agent_user("h1")), (QUEUE_ATTEMPTS["unbind"], names.host_queue("h1"))
    assert len(AGENT_TRIES) > 30
    assert_refused(agent, QUEUE_ATTEMPTS, AGENT_TRIES, control)
    assert_refused(agent, EXCHANGE_ATTEMPTS, AGENT_EXCHANGE_TRIES, control)
