"""Late and repeated copies of creates, contested VMs, full queues: what a hostile reviewer found, kept found."""

import json
import random
import string
import time
from collections.abc import Callable
from signal import SIGKILL, SIGSTOP, SIGTERM
from typing import Any

import pika
import pytest

from aetherscale_testing.broker import TestBroker
from aetherscale_testing.client import SeedClient
from aetherscale_testing.fleet import Fleet

pytestmark = pytest.mark.broker


@pytest.fixture
def vm() -> str:
    return "".join(random.choices(string.ascii_lowercase, k=8))


def properties(request_id: str, seconds: float = 30) -> dict[str, Any]:
    return {"message_id": request_id, "headers": {"deadline": int((time.time() + seconds) * 1000)}}


def body(command: str, **options: Any) -> bytes:
    return json.dumps({"command": command, "options": {k.replace("_", "-"): v for k, v in options.items()}}).encode()


def eventually(what: Callable[[], bool], seconds: float = 15) -> None:
    limit = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_a_late_create_behind_a_delete_does_not_bring_the_vm_back(agents: Fleet, client: SeedClient, vm: str) -> None:
    h1 = agents.add("h1", "a")
    agents.wait_ready()
    create = properties("r1")
    client.send("create-vm", "create-vm", image="a", vm_id=vm, properties=create)
    h1.stop(SIGKILL)
    h1.start()
    agents.wait_ready()
    deleted = client.publish(f"vm.{vm}", body("delete-vm", vm_id=vm))
    late = client.publish(f"vm.{vm}", body("create-vm", image="a", vm_id=vm), **create)
    assert client.collect(deleted, 1)[0]["execution-info"]["status"] == "success"
    assert client.collect(late, 1)[0]["execution-info"]["status"] == "error"
    assert client.ask("list-vms", 1)[0]["response"] == []


def test_a_full_queue_of_another_host_stops_no_create(agents: Fleet, client: SeedClient, broker: TestBroker) -> None:
    agents.add("h1", "other")
    agents.add("h2", "a")
    frozen = agents.add("h3")
    agents.wait_ready()
    broker.ctl("set_policy", "full", "^computing-host.h3$", '{"max-length-bytes": 1}', "--apply-to", "queues")
    try:
        frozen.signal(SIGSTOP)
        for n in range(3):
            (answer,) = client.ask("create-vm", 1, image="a", memory=64 + n)
            assert answer["execution-info"]["status"] == "success"
    finally:
        broker.ctl("clear_policy", "full")


def test_an_id_that_cannot_be_claimed_holds_up_no_other(agents: Fleet, client: SeedClient, vm: str) -> None:
    agents.add("h1", "a")
    agents.wait_ready()
    connection = pika.BlockingConnection(pika.ConnectionParameters(*address(agents)))
    connection.channel().queue_declare(f"claim.{vm}", exclusive=True)  # 405 for everybody else
    (answer,) = client.send("create-vm", "create-vm", image="a", vm_id=vm, properties=properties("r1"))
    assert "can't be claimed" in answer["execution-info"]["reason"]
    assert client.ask("create-vm", 1, image="a")[0]["execution-info"]["status"] == "success"
    connection.close()


def address(agents: Fleet) -> tuple[str, int]:
    host, _, port = agents.broker.address.partition(":")
    return host, int(port)


def test_a_contested_vm_stays_out_of_the_directory(
    agents: Fleet, client: SeedClient, broker: TestBroker, vm: str
) -> None:
    """The host's queue is lost, and meanwhile somebody else holds its VM: no later restart may bind it blindly."""
    h1 = agents.add("h1", "a")
    agents.wait_ready()
    client.send("create-vm", "create-vm", image="a", vm_id=vm, properties=properties("r1"))
    h1.stop(SIGKILL)
    connection = pika.BlockingConnection(pika.ConnectionParameters(*address(agents)))
    channel = connection.channel()
    channel.queue_delete("computing-host.h1")
    channel.queue_declare("elsewhere")
    channel.queue_bind("elsewhere", "computing", f"vm.{vm}")
    for restart in range(2):
        h1.start()
        agents.wait_ready()
        bound = [b["destination_name"] for b in broker.table("list_bindings") if b["routing_key"] == f"vm.{vm}"]
        assert bound == ["elsewhere"], f"after restart {restart}"
        h1.stop(SIGKILL)
    channel.queue_delete("elsewhere")
    connection.close()
    h1.start()
    agents.wait_ready()
    assert client.send(f"vm.{vm}", "show-vm", vm_id=vm)[0]["response"]["host"] == "h1"


def test_a_crowd_in_one_vms_line_delays_nobody_else(agents: Fleet, client: SeedClient, vm: str) -> None:
    agents.add("h1", "a", build=3)
    agents.wait_ready()
    made = client.publish("create-vm", body("create-vm", image="a", vm_id=vm), **properties("r1"))
    eventually(lambda: not client.is_returned(f"vm.{vm}"))
    crowd = [client.publish(f"vm.{vm}", body("start-vm", vm_id=vm)) for _ in range(250)]
    (listed,) = client.ask("list-vms", 1, seconds=2)
    assert listed["response"] == [f"vm-{vm}"]
    answers = [client.collect(cid, 1)[0]["execution-info"] for cid in crowd]
    assert {info.get("code") for info in answers} == {None, "wrong-state"}
    assert client.collect(made, 1)[0]["execution-info"]["status"] == "success"


def test_an_agent_that_is_told_to_stop_answers_what_is_under_way(agents: Fleet, client: SeedClient, vm: str) -> None:
    h1 = agents.add("h1", "a", build=1)
    agents.wait_ready()
    made = client.publish("create-vm", body("create-vm", image="a", vm_id=vm), **properties("r1"))
    eventually(lambda: not client.is_returned(f"vm.{vm}"))
    time.sleep(0.2)
    h1.stop(SIGTERM)
    assert client.collect(made, 1)[0]["execution-info"]["status"] == "success"


def test_an_agent_that_is_refused_says_so_once(agents: Fleet) -> None:
    agents.add("h1", "a")
    agents.add("h1-copy", "a", name="h1")
    eventually(lambda: any("another agent is connected" in a.log for a in agents.agents.values()))
    time.sleep(2)
    copy = next(a for a in agents.agents.values() if "another agent is connected" in a.log)
    said = [line for line in copy.log.splitlines() if "WARNING" in line and "another agent is connected" in line]
    assert len(said) == 1
