"""Agents and operators as site.yml makes them: users of their own with the protocol's rights, on a real broker."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGKILL
from typing import Any

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


def test_a_console_with_least_rights(locked_down: Fleet, broker: TestBroker, tmp_path: Path) -> None:  # noqa: ARG001
    with SeedClient(broker.address, "operator", PASSWORD, VHOST) as client:
        vm_id = client.ask("create-vm", 1, image="a")[0]["response"]["vm-id"]
    contexts = tmp_path / "aetherscale" / "contexts"
    contexts.mkdir(parents=True)
    context = contexts / "lab.toml"
    context.write_text(f'[broker]\nurl = "amqp://operator@{broker.address}/{VHOST}"\npassword = "{PASSWORD}"\n')
    context.chmod(0o600)
    environ = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    program = "from aetherscale_cli.main import run; run()"
    typed = subprocess.run(
        [sys.executable, "-c", program, "console-vm", vm_id],
        env=environ,
        input=b"hello",
        capture_output=True,
        timeout=20,
    )
    assert (typed.returncode, typed.stdout) == (0, b"hello"), typed.stderr


Attempt = Callable[[Any, str], object]

DECLARE: Attempt = lambda c, queue: c.queue_declare(queue, durable=True)  # noqa: E731
CONSUME: Attempt = lambda c, queue: c.basic_consume(queue, print)  # noqa: E731
GET: Attempt = lambda c, queue: c.basic_get(queue)  # noqa: E731
PURGE: Attempt = lambda c, queue: c.queue_purge(queue)  # noqa: E731
BIND: Attempt = lambda c, queue: c.queue_bind(queue, "computing", "vm.abcdefgh")  # noqa: E731
DELETE: Attempt = lambda c, queue: c.queue_delete(queue)  # noqa: E731

REFUSED = {
    "computing-host.h2": (CONSUME, GET, PURGE, BIND),
    "computing-host.h1x": (CONSUME, GET, PURGE, BIND),
    "computing-known.h2": (BIND,),
    "agent.h2": (DECLARE, CONSUME, GET, PURGE, BIND, DELETE),
    "computing-competing": (DECLARE, DELETE, BIND),
}
"""What the agent of h1 may not do. It may delete what h2 has (docs/decisions/004-forget-host.md), and no more."""


@pytest.fixture
def as_h1(locked_down: Fleet, broker: TestBroker) -> Iterator[pika.BlockingConnection]:  # noqa: ARG001
    host, _, port = broker.address.partition(":")
    credentials = pika.PlainCredentials("agent-h1", PASSWORD)
    connection = pika.BlockingConnection(pika.ConnectionParameters(host, int(port), VHOST, credentials))
    yield connection
    connection.close()


@pytest.mark.parametrize("queue", REFUSED)
def test_an_agent_cannot_touch_another_hosts_queue(as_h1: pika.BlockingConnection, queue: str) -> None:
    for attempt in REFUSED[queue]:
        with pytest.raises(ChannelClosedByBroker, match="403"):
            attempt(as_h1.channel(), queue)
    as_h1.channel().queue_bind("computing-host.h1", "computing", "vm.abcdefgh")  # the control: its own


def test_a_queue_that_another_agent_deletes_is_made_again_with_all_that_it_held(
    locked_down: Fleet, as_h1: pika.BlockingConnection, broker: TestBroker
) -> None:
    """What a rogue agent gains by what it takes to forget a host: its victim connects once more."""
    with SeedClient(broker.address, "operator", PASSWORD, VHOST) as client:
        victim = client.ask("create-vm", 1, image="a")[0]["host"]
        (vm,) = next(a for a in client.ask("list-vms", 2) if a["host"] == victim)["response"]
        as_h1.channel().queue_delete(f"computing-host.{victim}")
        agent = locked_down.agents[victim]
        limit = time.monotonic() + 15
        while agent.log.count(f"connected as {victim}") < 2:
            assert time.monotonic() < limit
            time.sleep(0.02)
        (answer,) = client.send(f"vm.{vm.removeprefix('vm-')}", "show-vm", vm_id=vm.removeprefix("vm-"))
        assert answer["host"] == victim


def test_a_host_that_is_gone_is_forgotten_with_least_rights(locked_down: Fleet, broker: TestBroker) -> None:
    with SeedClient(broker.address, "operator", PASSWORD, VHOST) as client:
        made = client.ask("create-vm", 1, image="a")[0]
        vm_id = made["response"]["vm-id"]
        assert made["host"] == "h1"
        limit = time.monotonic() + 10
        while "this host has 1 VMs" not in locked_down.agents["h1"].log:
            assert time.monotonic() < limit
            time.sleep(0.02)
        locked_down.agents["h1"].stop(SIGKILL)
        (forgotten,) = client.ask("forget-host", 1, host="h1")
        assert forgotten["host"] == "h2"
        assert forgotten["response"]["claims"] == [vm_id]
        assert client.is_returned(f"vm.{vm_id}")
