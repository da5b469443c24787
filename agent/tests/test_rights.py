"""Agents and operators as site.yml makes them: users of their own with the protocol's rights, on a real broker."""

import json
from collections.abc import Iterator
from pathlib import Path

import pika
import pytest
from pika.exceptions import ChannelClosedByBroker

from aetherscale_protocol import topology
from aetherscale_protocol.topology import Permissions
from aetherscale_testing.broker import TestBroker
from aetherscale_testing.client import SeedClient
from aetherscale_testing.fleet import Fleet

pytestmark = pytest.mark.broker

VHOST = "rights"
PASSWORD = "a password"


@pytest.fixture
def locked_down(broker: TestBroker, tmp_path: Path) -> Iterator[Fleet]:
    """Two agents on a vhost of its own, one of which has an image; the shared pieces were declared for them."""
    broker.ctl("add_vhost", VHOST)
    add_user(broker, "operator", topology.OPERATOR_PERMISSIONS)
    definitions = tmp_path / "definitions.json"
    definitions.write_text(json.dumps(topology.definitions(VHOST)))
    broker.ctl("import_definitions", str(definitions))
    fleet = Fleet(broker, tmp_path, SeedClient(broker.address, "operator", PASSWORD, VHOST))
    for host, images in (("h1", ("a",)), ("h2", ())):
        add_user(broker, f"agent-{host}", topology.agent_permissions(host))
        url = f"amqp://agent-{host}@{broker.address}/{VHOST}"
        fleet.add(host, *images, broker={"url": url, "password": PASSWORD})
    fleet.wait_ready()
    yield fleet
    fleet.stop()
    broker.ctl("delete_vhost", VHOST)
    for user in ("operator", "agent-h1", "agent-h2"):
        broker.ctl("delete_user", user)


def add_user(broker: TestBroker, name: str, rights: Permissions) -> None:
    broker.ctl("add_user", name, PASSWORD)
    broker.ctl("set_permissions", "-p", VHOST, name, rights.configure, rights.write, rights.read)


def test_the_whole_life_of_a_vm_with_least_rights(locked_down: Fleet, broker: TestBroker) -> None:
    with SeedClient(broker.address, "operator", PASSWORD, VHOST) as client:
        (made,) = [a for _ in range(4) for a in client.ask("create-vm", 1, image="a")][-1:]
        assert made["host"] == "h1", made
        vm_id = made["response"]["vm-id"]
        assert len(client.ask("list-vms", 2)) == 2
        (refused,) = client.ask("create-vm", 1, image="b")
        assert sorted(refused["execution-info"]["reasons"]) == ["h1", "h2"]
        (stopped,) = client.send(f"vm.{vm_id}", "stop-vm", vm_id=vm_id)
        assert stopped["response"]["status"] == "stopped"
        (deleted,) = client.send(f"vm.{vm_id}", "delete-vm", vm_id=vm_id)
        assert deleted["response"]["status"] == "deleted"
        locked_down.agents["h1"].stop()
        (down,) = [a for a in client.ask("stop-vm", 2, vm_id=vm_id) if a["execution-info"].get("code") == "host-down"]
        assert "host h1" in down["execution-info"]["reason"]


@pytest.mark.usefixtures("locked_down")
@pytest.mark.parametrize("what", ["computing-host.h2", "computing-host.h1x", "agent.h2"])
def test_an_agent_cannot_touch_another_hosts_queue(broker: TestBroker, what: str) -> None:
    host, _, port = broker.address.partition(":")
    credentials = pika.PlainCredentials("agent-h1", PASSWORD)
    connection = pika.BlockingConnection(pika.ConnectionParameters(host, int(port), VHOST, credentials))
    attempts = (
        lambda c: c.queue_declare(what, durable=True),
        lambda c: c.basic_consume(what, print),
        lambda c: c.queue_bind(what, "computing", "vm.abcdefgh"),
        lambda c: c.queue_delete(what),
    )
    for attempt in attempts:
        with pytest.raises(ChannelClosedByBroker, match="403"):
            attempt(connection.channel())
    connection.channel().queue_bind("computing-host.h1", "computing", "vm.abcdefgh")  # the control: its own
    connection.close()
