"""The broker goes away, comes back, comes back empty; the agents go on and say so."""

import time
from collections.abc import Callable

import pytest

from aetherscale_testing.broker import TestBroker
from aetherscale_testing.client import SeedClient
from aetherscale_testing.fleet import Fleet

pytestmark = pytest.mark.broker


def eventually(what: Callable[[], bool], seconds: float = 15) -> None:
    limit = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_a_broker_restart_loses_no_vm(agents: Fleet, broker: TestBroker) -> None:
    h1 = agents.add("h1", "a")
    agents.add("h2", "a")
    agents.wait_ready()
    with SeedClient(broker.address) as client:
        made = {client.ask("create-vm", 1, image="a")[0]["response"]["vm-id"] for _ in range(4)}
    broker.stop(hard=True)
    eventually(lambda: "trying on" in h1.log)
    broker.start()
    agents.wait_ready()
    with SeedClient(broker.address) as client:
        listed = [vm for answer in client.ask("list-vms", 2) for vm in answer["response"]]
        assert sorted(listed) == sorted(f"vm-{vm_id}" for vm_id in made)
        for vm_id in made:
            (answer,) = client.send(f"vm.{vm_id}", "show-vm", vm_id=vm_id)
            assert answer["response"]["state"] == "running"


def test_an_empty_broker_is_given_the_directory_again(agents: Fleet, broker: TestBroker) -> None:
    agents.add("h1", "a")
    agents.wait_ready()
    with SeedClient(broker.address) as client:
        vm_id = client.ask("create-vm", 1, image="a")[0]["response"]["vm-id"]
    broker.ctl("stop_app")
    broker.ctl("reset")
    broker.ctl("start_app")
    agents.wait_ready()
    with SeedClient(broker.address) as client:
        (answer,) = client.send(f"vm.{vm_id}", "show-vm", vm_id=vm_id)
        assert answer["response"]["state"] == "running"


def test_a_deleted_queue_is_noticed(agents: Fleet, broker: TestBroker) -> None:
    agent = agents.add("h1", "a")
    agents.wait_ready()
    broker.ctl("delete_queue", "computing-host.h1")
    eventually(lambda: agent.log.count("connected as h1") == 2)
    agents.wait_ready()
    with SeedClient(broker.address) as client:
        assert len(client.ask("list-vms", 1)) == 1
