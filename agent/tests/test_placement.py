"""Where creates go, and that each makes exactly one VM: real agents, a real broker, a hypervisor in memory."""

import json
import random
import string
import time
from collections import Counter
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import Any

import pytest

from aetherscale_testing.broker import TestBroker
from aetherscale_testing.client import SeedClient
from aetherscale_testing.fleet import Fleet

pytestmark = pytest.mark.broker

VM = "".join(random.choices(string.ascii_lowercase, k=8))


@pytest.fixture(autouse=True)
def _fresh_id() -> None:
    """Every test has an id of its own: claims outlive tests."""
    global VM
    VM = "".join(random.choices(string.ascii_lowercase, k=8))


def info(answer: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = answer["execution-info"]
    return result


def vms(client: SeedClient, hosts: int) -> dict[str, list[str]]:
    return {a["host"]: a["response"] for a in client.ask("list-vms", hosts)}


def deadline(seconds: float) -> dict[str, Any]:
    return {"headers": {"deadline": int((time.time() + seconds) * 1000)}}


def create_properties(request_id: str, seconds: float = 30) -> dict[str, Any]:
    return {"message_id": request_id, **deadline(seconds)}


def test_the_emptiest_host_is_given_the_next_vm(agents: Fleet, client: SeedClient) -> None:
    agents.add("big", "a", memory=6 * 1024)
    agents.add("small", "a", memory=3 * 1024)
    agents.wait_ready()
    for _ in range(6):
        (answer,) = client.ask("create-vm", 1, image="a", memory=1024)
        assert info(answer)["status"] == "success", info(answer)
    assert {host: len(held) for host, held in vms(client, 2).items()} == {"big": 4, "small": 2} or {
        host: len(held) for host, held in vms(client, 2).items()
    } == {"big": 5, "small": 1}


def test_a_full_fleet_refuses_with_every_hosts_reason(agents: Fleet, client: SeedClient) -> None:
    agents.add("h1", "a", memory=1024)
    agents.add("h2", "a", memory=2048)
    agents.wait_ready()
    for _ in range(3):
        assert info(client.ask("create-vm", 1, image="a", memory=1024)[0])["status"] == "success"
    refused = info(client.ask("create-vm", 1, image="a", memory=1024)[0])
    assert refused["code"] == "no-host"
    assert refused["reasons"] == {
        "h1": "memory: 1024 MiB wanted, 0 MiB free",
        "h2": "memory: 1024 MiB wanted, 0 MiB free",
    }


def test_many_creates_at_once_never_overfill(agents: Fleet, client: SeedClient) -> None:
    for host in ("h1", "h2", "h3"):
        agents.add(host, "a", memory=5 * 1024)
    agents.wait_ready()
    body = json.dumps({"command": "create-vm", "options": {"image": "a", "memory": 1024}}).encode()
    sent = [client.publish("create-vm", body, message_id=f"r{n}") for n in range(20)]
    outcomes = Counter(info(client.collect(cid, 1)[0])["status"] for cid in sent)
    assert outcomes == {"success": 15, "error": 5}
    assert sorted(len(held) for held in vms(client, 3).values()) == [5, 5, 5]


def test_a_slow_create_delays_nothing_else(agents: Fleet, client: SeedClient) -> None:
    agents.add("h1", "a", build=3)
    agents.wait_ready()
    body = json.dumps({"command": "create-vm", "options": {"image": "a"}}).encode()
    slow = client.publish("create-vm", body, message_id="slow")
    begin = time.monotonic()
    (answer,) = client.ask("list-vms", 1)
    while not answer["response"]:
        (answer,) = client.ask("list-vms", 1)
    assert answer["details"][0]["state"] == "creating"
    assert time.monotonic() - begin < 2
    assert info(client.collect(slow, 1)[0])["status"] == "success"


def test_the_same_request_makes_the_same_vm(agents: Fleet, client: SeedClient) -> None:
    agents.add("h1", "a")
    agents.add("h2", "a")
    agents.wait_ready()
    for _ in range(4):
        properties = create_properties("r1")
        (answer,) = client.send("create-vm", "create-vm", image="a", vm_id=VM, properties=properties)
        assert answer["response"] == {"status": "starting", "vm-id": VM}
    assert sum(map(len, vms(client, 2).values())) == 1
    (taken,) = client.send("create-vm", "create-vm", image="a", vm_id=VM, properties=create_properties("r2"))
    assert info(taken)["code"] == "vm-id-taken"


def test_two_clients_that_create_the_same_id(agents: Fleet, client: SeedClient) -> None:
    for host in ("h1", "h2", "h3"):
        agents.add(host, "a")
    agents.wait_ready()
    body = json.dumps({"command": "create-vm", "options": {"image": "a", "vm-id": VM}}).encode()
    sent = [client.publish("create-vm", body, **create_properties(f"r{n}")) for n in range(6)]
    codes = Counter(info(client.collect(cid, 1)[0]).get("code", "success") for cid in sent)
    assert codes == {"success": 1, "vm-id-taken": 5}
    assert sum(map(len, vms(client, 3).values())) == 1


def test_a_late_copy_meets_the_refusal(agents: Fleet, client: SeedClient) -> None:
    agents.add("h1", "b")
    agents.wait_ready()
    properties = create_properties("r1")
    (answer,) = client.send("create-vm", "create-vm", image="a", vm_id=VM, properties=properties)
    assert info(answer)["code"] == "image-unknown"
    agents.add("h2", "a")
    agents.wait_ready()
    (again,) = client.send("create-vm", "create-vm", image="a", vm_id=VM, properties=properties)
    assert info(again)["code"] == "image-unknown"
    assert vms(client, 2) == {"h1": [], "h2": []}


def test_a_deleted_vm_does_not_come_back(agents: Fleet, client: SeedClient) -> None:
    agents.add("h1", "a")
    agents.add("h2", "a")
    agents.wait_ready()
    properties = create_properties("r1")
    client.send("create-vm", "create-vm", image="a", vm_id=VM, properties=properties)
    (deleted,) = client.send(f"vm.{VM}", "delete-vm", vm_id=VM, properties={"message_id": "d1"})
    assert deleted["response"] == {"status": "deleted", "vm-id": VM}
    (late,) = client.send("create-vm", "create-vm", image="a", vm_id=VM, properties=properties)
    assert info(late)["status"] == "error"
    assert vms(client, 2) == {"h1": [], "h2": []}
    (again,) = client.send(f"vm.{VM}", "delete-vm", vm_id=VM, properties={"message_id": "d1"})
    assert again["response"] == {"status": "deleted", "vm-id": VM}


def test_after_the_deadline_nothing_is_left_of_a_deleted_vm(
    agents: Fleet, client: SeedClient, broker: TestBroker
) -> None:
    h1 = agents.add("h1", "a")
    agents.wait_ready()
    client.send("create-vm", "create-vm", image="a", vm_id=VM, properties=create_properties("r1", 1.5))
    client.send(f"vm.{VM}", "delete-vm", vm_id=VM)
    limit = time.monotonic() + 15
    while not client.is_returned(f"vm.{VM}"):
        assert time.monotonic() < limit
        time.sleep(0.1)
    bindings = [b["routing_key"] for b in broker.table("list_bindings", "routing_key")]
    assert f"vm.{VM}" not in bindings
    assert list((h1.folder / "journal").iterdir()) == []


def test_a_host_that_is_down_is_named(agents: Fleet, client: SeedClient) -> None:
    h1 = agents.add("h1", "a")
    agents.add("h2")
    agents.wait_ready()
    client.send("create-vm", "create-vm", image="a", vm_id=VM, properties=create_properties("r1"))
    h1.stop(SIGKILL)
    (answer,) = client.send(f"vm.{VM}", "stop-vm", vm_id=VM, properties=deadline(10))
    assert info(answer)["code"] == "host-down"
    assert f"host h1, which holds VM {VM}, is not running" in info(answer)["reason"]
    assert answer["host"] == "h2"
    (again,) = client.send("create-vm", "create-vm", image="a", vm_id=VM, properties=create_properties("r1"))
    assert info(again)["code"] in ("outcome-unknown", "image-unknown")


def test_a_frozen_host_does_what_it_was_told_only_in_time(agents: Fleet, client: SeedClient) -> None:
    h1 = agents.add("h1", "a")
    agents.wait_ready()
    client.send("create-vm", "create-vm", image="a", vm_id=VM, properties=create_properties("r1"))
    h1.signal(SIGSTOP)
    late = client.publish(
        f"vm.{VM}",
        json.dumps({"command": "delete-vm", "options": {"vm-id": VM}}).encode(),
        **deadline(1),
    )
    time.sleep(1.5)
    h1.signal(SIGCONT)
    (answer,) = client.collect(late, 1)
    assert info(answer)["code"] == "deadline-passed"
    agents.wait_ready()
    assert vms(client, 1) == {"h1": [f"vm-{VM}"]}


def test_a_second_agent_of_the_same_name_is_refused(agents: Fleet, client: SeedClient) -> None:
    first = agents.add("h1", "a")
    agents.wait_ready()
    second = agents.add("h1-copy", "a", name="h1")
    limit = time.monotonic() + 10
    while "another agent is connected as h1" not in second.log:
        assert time.monotonic() < limit, second.log
        time.sleep(0.05)
    assert client.agents_alive() == 1
    assert "lost" not in first.log
    assert len(client.ask("list-vms", 2, seconds=0.5)) == 1


def test_commands_for_one_vm_run_in_order(agents: Fleet, client: SeedClient) -> None:
    agents.add("h1", "a", shutdown=0.3)
    agents.wait_ready()
    client.send("create-vm", "create-vm", image="a", vm_id=VM, properties=create_properties("r1"))
    sent = [
        client.publish(f"vm.{VM}", json.dumps({"command": command, "options": {"vm-id": VM, **more}}).encode())
        for command, more in [("stop-vm", {"kill": True}), ("start-vm", {}), ("stop-vm", {"kill": True})] * 5
    ]
    statuses = [client.collect(cid, 1)[0]["response"]["status"] for cid in sent]
    assert statuses == ["stopped", "starting", "stopped"] * 5


def test_a_guest_that_ignores_the_button(agents: Fleet, client: SeedClient) -> None:
    agents.add("h1", "a", deaf=True)
    agents.wait_ready()
    client.send("create-vm", "create-vm", image="a", vm_id=VM, properties=create_properties("r1"))
    begin = time.monotonic()
    (answer,) = client.ask("stop-vm", 1, vm_id=VM)  # the seed's client does not say how long it waits
    assert answer["response"]["status"] == "stopping"
    assert 3.5 < time.monotonic() - begin < 6
    (refused,) = client.ask("start-vm", 1, vm_id=VM)
    assert info(refused)["code"] == "wrong-state"
    (killed,) = client.ask("stop-vm", 1, vm_id=VM, kill=True)
    assert killed["response"]["status"] == "stopped"


def test_show_and_list_hosts(agents: Fleet, client: SeedClient) -> None:
    agents.add("h1", "a", "b", memory=4096, cpus=8, disk=100, fleet=["h1", "h2"])
    agents.wait_ready()
    client.send("create-vm", "create-vm", image="a", vm_id=VM, memory=1024, properties=create_properties("r1"))
    (shown,) = client.send(f"vm.{VM}", "show-vm", vm_id=VM)
    assert shown["response"]["state"] == "running"
    assert (shown["response"]["host"], shown["response"]["memory"]) == ("h1", 1024)
    (hosts,) = client.ask("list-hosts", 1)
    report = hosts["response"]
    assert report["images"] == ["a", "b"]
    assert (report["memory"], report["memory-free"]) == (4096, 3072)
    assert (report["disk"], report["disk-free"], report["running"]) == (100, 90, 1)
    assert report["fleet"] == ["h1", "h2"]
    assert hosts["fleet"]["size"] == 2


def test_a_refusal_names_the_hosts_that_had_no_say(agents: Fleet, client: SeedClient) -> None:
    agents.add("h1", "a", fleet=["h1", "h2"])
    agents.wait_ready()
    refused = info(client.ask("create-vm", 1, image="b")[0])
    assert refused["code"] == "no-host"
    assert refused["reasons"]["h1"] == 'Image "b" does not exist'
    assert "not connected" in refused["reasons"]["h2"]


def test_a_request_id_stands_for_one_vm_only(agents: Fleet, client: SeedClient) -> None:
    agents.add("h1", "a", "b")
    agents.wait_ready()
    client.send("create-vm", "create-vm", image="a", vm_id=VM, properties=create_properties("r1"))
    (other,) = client.send("create-vm", "create-vm", image="b", vm_id=VM, properties=create_properties("r1"))
    assert info(other)["code"] == "vm-id-taken"
    assert "other options" in info(other)["reason"]
