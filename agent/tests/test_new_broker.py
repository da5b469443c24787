"""A broker that knows no VM: agents wait for their fleet before anything is begun that a host may have begun before."""

import json
import random
import string
import time
from collections.abc import Callable
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest

from aetherscale_testing.broker import TestBroker
from aetherscale_testing.client import SeedClient
from aetherscale_testing.fakes import read_fake_vms
from aetherscale_testing.fleet import Fleet

pytestmark = pytest.mark.broker

FLEET: dict[str, Any] = {"fleet": ["h1", "h2"], "muster": 120}


@pytest.fixture
def vm() -> str:
    return "".join(random.choices(string.ascii_lowercase, k=8))


def eventually(what: Callable[[], bool], seconds: float = 30) -> None:
    limit = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < limit
        time.sleep(0.05)


def properties(request_id: str, seconds: float = 100) -> dict[str, Any]:
    return {"message_id": request_id, "headers": {"deadline": int((time.time() + seconds) * 1000)}}


def create(vm_id: str) -> bytes:
    return json.dumps({"command": "create-vm", "options": {"image": "a", "vm-id": vm_id}}).encode()


def takes_creates(client: SeedClient) -> bool:
    return client.consumers("computing-competing") > 0


def test_an_agent_waits_for_its_fleet_also_when_it_is_killed_meanwhile(agents: Fleet, client: SeedClient) -> None:
    h1 = agents.add("h1", "a", **FLEET)
    agents.wait_ready()
    for _ in range(2):
        assert not takes_creates(client)
        h1.stop(SIGKILL)
        h1.start()  # its queue is there now: only its own memory says that the broker is new
        agents.wait_ready()
    agents.add("h2", "a", **FLEET)
    eventually(lambda: client.consumers("computing-competing") == 2)
    h1.stop(SIGKILL)
    eventually(lambda: client.consumers("computing-competing") == 1)
    agents.agents["h2"].stop(SIGKILL)
    h1.start()  # from now on it needs nobody
    eventually(lambda: takes_creates(client))


def test_a_fleet_that_is_there_takes_creates_at_once(agents: Fleet, client: SeedClient) -> None:
    agents.add("h1", "a", **FLEET)
    agents.add("h2", "a", **FLEET)
    agents.wait_ready()
    assert client.ask("create-vm", 1, image="a")[0]["execution-info"]["status"] == "success"


def test_a_host_that_stays_away_is_not_waited_for_for_ever(agents: Fleet, client: SeedClient) -> None:
    h1 = agents.add("h1", "a", **{**FLEET, "muster": 0.5})
    eventually(lambda: client.agents_alive() == 1 and takes_creates(client))
    assert "1 of 2 hosts are there; taking creates" in h1.log


@pytest.mark.parametrize("way", ["create-vm", "host.h1"])
def test_a_create_whose_host_comes_late_to_a_new_broker_is_neither_refused_nor_made_again(
    agents: Fleet, client: SeedClient, broker: TestBroker, vm: str, way: str
) -> None:
    """By the shared queue it expires there while everybody waits: no reason to say no."""
    agents.add("h2", "a", **{**FLEET, "muster": 0.5})
    eventually(lambda: client.agents_alive() == 1 and takes_creates(client))
    made = client.publish("create-vm", create(vm), **properties("r1"))
    assert client.collect(made, 1)[0]["host"] == "h2"
    agents.agents["h2"].stop(SIGKILL)
    client.purge(["h2"])
    broker.ctl("delete_queue", f"claim.{vm}")
    agents.add("h1", "a", **FLEET)
    agents.wait_ready(1)
    again = client.publish(way, create(vm), **properties("r1"))
    queue = "computing-undeliverable" if way == "create-vm" else "computing-host.h1"
    eventually(lambda: in_hand(broker, queue) == 1)
    agents.agents["h2"].start()
    answer = client.collect(again, 1, 30)[0]
    if way == "create-vm":  # it was dead, and another host owned it by the time that it could be told
        assert answer["execution-info"]["status"] == "success" or answer["execution-info"]["code"] == "outcome-unknown"
    else:
        assert (answer["execution-info"]["status"], answer["host"]) == ("success", "h2")
    listed = {answer["host"]: answer["response"] for answer in client.ask("list-vms", 2)}
    assert listed == {"h1": [], "h2": [f"vm-{vm}"]}
    assert client.send(f"vm.{vm}", "show-vm", vm_id=vm)[0]["response"]["host"] == "h2"


def in_hand(broker: TestBroker, queue: str) -> int:
    rows = broker.table("list_queues", "name", "messages_unacknowledged")
    return sum(row["messages_unacknowledged"] for row in rows if row["name"] == queue)


# A no that is asked again


def test_a_no_lasts_as_long_as_the_latest_deadline_that_it_was_asked_with(
    agents: Fleet, client: SeedClient, vm: str, tmp_path: Path
) -> None:
    quick: dict[str, Any] = {"faults": str(tmp_path)}  # tombstones are buried 1 s after their time
    h1 = agents.add("h1", "other", **quick)
    agents.wait_ready()
    first = time.time() + 2
    told = [
        client.collect(client.publish("create-vm", create(vm), **properties("r1", seconds)), 1)[0]["execution-info"]
        for seconds in (first - time.time(), 60)
    ]
    assert told[0]["code"] == told[1]["code"] == "image-unknown"
    h1.stop()
    eventually(lambda: time.time() > first + 1.2)
    agents.add("h1", "a", "other", **quick)
    agents.wait_ready()
    late = client.collect(client.publish("create-vm", create(vm), **properties("r1", 60)), 1)[0]["execution-info"]
    assert (late["status"], late["code"]) == ("error", "image-unknown")
    assert client.ask("list-vms", 1)[0]["response"] == []


# Runs once


def test_a_command_that_two_clients_ask_for_runs_once(agents: Fleet, client: SeedClient, broker: TestBroker) -> None:
    h1 = agents.add("h1", "a", keep=True)
    agents.wait_ready()
    vm_id = client.ask("create-vm", 1, image="a")[0]["response"]["vm-id"]
    kill = {"vm_id": vm_id, "kill": True, "properties": properties("r1")}
    with SeedClient(broker.address) as second:
        assert client.send(f"vm.{vm_id}", "stop-vm", **kill)[0]["response"]["status"] == "stopped"
        start = {"vm_id": vm_id, "properties": properties("r2")}
        assert second.send(f"vm.{vm_id}", "start-vm", **start)[0]["response"]["status"] == "starting"
        for _ in range(2):
            assert second.send(f"vm.{vm_id}", "stop-vm", **kill)[0]["response"]["status"] == "stopped"
            assert client.send(f"vm.{vm_id}", "start-vm", **start)[0]["response"]["status"] == "starting"
            assert client.send(f"vm.{vm_id}", "show-vm", vm_id=vm_id)[0]["response"]["state"] == "running"
            h1.stop(SIGKILL)
            h1.start()
            agents.wait_ready()
    assert read_fake_vms(h1.folder / "vms")[vm_id].boots == 2
