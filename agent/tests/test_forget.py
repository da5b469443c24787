"""Hosts that are gone for good: what is known of their VMs is told, and all that the broker has of them goes."""

import contextlib
import json
import time
from collections.abc import Callable
from signal import SIGKILL, SIGSTOP
from typing import Any

import pika
import pytest
from pika.exceptions import ChannelClosedByBroker

from aetherscale_protocol import topology
from aetherscale_testing.broker import TestBroker
from aetherscale_testing.client import SeedClient
from aetherscale_testing.fleet import Fleet

pytestmark = pytest.mark.broker

Answer = dict[str, Any]


@pytest.fixture
def three(agents: Fleet) -> Fleet:
    """h3 alone has the image `a`: it is given the VMs, and keeps them when its agent ends. Frozen hosts stay alive.

    h1 has most room: what any agent may take comes to it, and not to one that is frozen.
    """
    agents.add("h1", "b", fleet=["h1", "h2", "h3"], heartbeat=30, memory=32768)
    agents.add("h2", fleet=["h1", "h2", "h3"], heartbeat=30)
    agents.add("h3", "a", fleet=["h1", "h2", "h3"], keep=True, heartbeat=30)
    agents.wait_ready()
    return agents


def eventually(what: Callable[[], Any], seconds: float = 15) -> Any:
    limit = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < limit
        time.sleep(0.05)
    return found


def create(client: SeedClient, host: str = "h3") -> str:
    answer = client.ask("create-vm", 1, image="a")[0]
    assert answer["host"] == host
    return str(answer["response"]["vm-id"])


def there(client: SeedClient, *queues: str) -> list[str]:
    """Those of these queues that there are."""
    found = []
    for queue in queues:
        with contextlib.suppress(ChannelClosedByBroker):
            client.consumers(queue)
            found.append(queue)
    return found


def things_of(host: str, vm_ids: list[str]) -> list[str]:
    return [f"computing-host.{host}", f"computing-known.{host}", *(f"claim.{vm_id}" for vm_id in vm_ids)]


def forget(client: SeedClient, host: str, **options: Any) -> Answer:
    (answer,) = client.ask("forget-host", 1, host=host, **options)
    return answer


def kept(broker: TestBroker, host: str = "h3") -> dict[str, str]:
    """What is kept of a host: its VMs' states by id; left where it is."""
    ip, _, port = broker.address.partition(":")
    with pika.BlockingConnection(pika.ConnectionParameters(ip, int(port))) as connection:
        channel = connection.channel()
        method, _, body = channel.basic_get(f"computing-known.{host}")
        if method is None:
            return {}
        channel.basic_reject(method.delivery_tag, requeue=True)
        return {vm["vm-id"]: vm["state"] for vm in json.loads(body)["vms"]}


def code(answer: Answer) -> str:
    return str(answer["execution-info"].get("code", answer["execution-info"]["status"]))


def test_a_host_that_is_gone_is_forgotten(three: Fleet, broker: TestBroker, client: SeedClient) -> None:
    made = sorted(create(client) for _ in range(2))
    eventually(lambda: sorted(kept(broker)) == made)
    three.agents["h3"].stop(SIGKILL)

    look = forget(client, "h3", dry_run=True)["response"]
    assert (look["status"], [vm["vm-id"] for vm in look["vms"]], look["claims"]) == ("would-forget", made, made)
    assert look["vms"][0]["state"] == "running"
    assert abs(look["told"] - time.time()) < 30
    assert look["in-fleet"]
    assert there(client, *things_of("h3", made)) == things_of("h3", made)

    assert not client.is_returned(f"vm.{made[0]}")
    done = forget(client, "h3")["response"]
    assert done == {**look, "status": "forgotten"}
    assert not there(client, *things_of("h3", made))
    assert client.is_returned(f"vm.{made[0]}"), "show-vm of it is answered at once: there is no such VM"

    again = forget(client, "h3")
    assert code(again) == "host-unknown"
    assert again["execution-info"]["reason"] == "the broker knows nothing of host h3; nothing was changed"


@pytest.mark.usefixtures("three")
def test_what_is_kept_follows_the_vms(broker: TestBroker, client: SeedClient) -> None:
    vm_id = create(client)
    eventually(lambda: kept(broker) == {vm_id: "running"})
    assert client.send(f"vm.{vm_id}", "stop-vm", vm_id=vm_id)[0]["response"]["status"] == "stopped"
    eventually(lambda: kept(broker) == {vm_id: "stopped"})
    client.send(f"vm.{vm_id}", "delete-vm", vm_id=vm_id)
    eventually(lambda: not kept(broker))


@pytest.mark.parametrize(("host", "frozen"), [("h3", False), ("h2", True)])
def test_a_host_that_lives_is_not_forgotten(three: Fleet, client: SeedClient, host: str, frozen: bool) -> None:
    if frozen:
        three.agents[host].signal(SIGSTOP)
    for options in ({}, {"dry_run": True}):
        answer = forget(client, host, **options)
        assert code(answer) == "wrong-state"
        assert answer["execution-info"]["reason"] == f"host {host} is running; nothing was forgotten"
    assert there(client, f"computing-host.{host}")
    assert not client.is_returned(f"host.{host}")


def test_the_last_agent_does_not_forget_itself(agents: Fleet, client: SeedClient) -> None:
    agents.add("h1", "a")
    agents.wait_ready()
    assert code(forget(client, "h1")) == "wrong-state"
    assert code(forget(client, "h9")) == "host-unknown"
    assert code(forget(client, "H 9")) == "bad-request"
    assert len(client.ask("list-vms", 1)) == 1


def test_a_claim_of_another_host_stays(three: Fleet, broker: TestBroker, client: SeedClient) -> None:
    """As after a claim ran out, and the id was claimed anew elsewhere."""
    vm_id = create(client)
    eventually(lambda: [*kept(broker)] == [vm_id])
    three.agents["h3"].stop(SIGKILL)
    ip, _, port = broker.address.partition(":")
    with pika.BlockingConnection(pika.ConnectionParameters(ip, int(port))) as connection:
        channel = connection.channel()
        channel.queue_delete(f"claim.{vm_id}")
        claim = topology.claim(vm_id, "h1")
        channel.queue_declare(claim.name, durable=True, arguments=claim.arguments)
    done = forget(client, "h3")["response"]
    assert ([vm["vm-id"] for vm in done["vms"]], done.get("claims", [])) == ([vm_id], [])
    assert there(client, f"claim.{vm_id}")


def test_a_host_that_comes_back_is_simply_there_again(three: Fleet, broker: TestBroker, client: SeedClient) -> None:
    vm_id = create(client)
    eventually(lambda: [*kept(broker)] == [vm_id])
    three.agents["h3"].stop(SIGKILL)
    assert code(forget(client, "h3")) == "success"
    three.agents["h3"].start()
    three.wait_ready(3)
    (answer,) = client.send(f"vm.{vm_id}", "show-vm", vm_id=vm_id)
    assert (answer["host"], answer["response"]["state"]) == ("h3", "running")
    eventually(lambda: [*kept(broker)] == [vm_id])


def test_a_vm_whose_id_was_made_anew_elsewhere_is_not_bound_twice(
    three: Fleet, broker: TestBroker, client: SeedClient
) -> None:
    vm_id = create(client)
    eventually(lambda: [*kept(broker)] == [vm_id])
    three.agents["h3"].stop(SIGKILL)
    assert code(forget(client, "h3")) == "success"
    (made,) = client.ask("create-vm", 1, image="b", vm_id=vm_id)
    assert made["execution-info"]["status"] == "success"
    three.agents["h3"].start()
    three.wait_ready(3)
    answers = client.send(f"vm.{vm_id}", "show-vm", 2, 1, vm_id=vm_id)
    assert [answer["host"] for answer in answers] == [made["host"]]
    assert f"VM {vm_id}: {made['host']} holds it too" in three.agents["h3"].log


def test_what_waits_in_the_queue_is_answered_before_it_goes(three: Fleet, client: SeedClient) -> None:
    vm_id = create(client)
    three.agents["h3"].stop(SIGKILL)
    waiting = client.publish(f"vm.{vm_id}", json.dumps({"command": "stop-vm", "options": {"vm-id": vm_id}}).encode())
    assert code(forget(client, "h3")) == "success"
    (answer,) = client.collect(waiting, 1)
    assert code(answer) == "host-down"
    assert answer["execution-info"]["down"] == "h3"


def test_an_interrupted_forgetting_is_finished_by_the_next(
    three: Fleet, broker: TestBroker, client: SeedClient
) -> None:
    vm_id = create(client)
    eventually(lambda: [*kept(broker)] == [vm_id])
    three.agents["h3"].stop(SIGKILL)
    broker.ctl("delete_queue", "computing-host.h3")  # as far as an agent had come that was killed then
    done = forget(client, "h3")["response"]
    assert (done["status"], done["claims"]) == ("forgotten", [vm_id])
    assert not there(client, *things_of("h3", [vm_id]))


def test_a_word_that_somebody_else_put_there_is_not_believed(
    three: Fleet, broker: TestBroker, client: SeedClient
) -> None:
    """Whoever can publish to the default exchange can write there; only who h3 is can sign as h3."""
    create(client)
    three.agents["h3"].stop(SIGKILL)
    ip, _, port = broker.address.partition(":")
    with pika.BlockingConnection(pika.ConnectionParameters(ip, int(port))) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        lie = json.dumps({"host": "h3", "time": 1, "vms": []}).encode()
        channel.basic_publish("", "computing-known.h3", lie, pika.BasicProperties())
    done = forget(client, "h3")["response"]
    assert (done.get("vms", []), done.get("told", 0)) == ([], 0)
    assert "what is kept of host h3 was written by None: ignored" in "".join(
        agent.log for agent in three.agents.values()
    )
