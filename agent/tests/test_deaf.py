"""Agents whose connection looks healthy, and that are given nothing any more: they notice, and connect anew."""

import time
from collections.abc import Callable, Iterator

import pytest

from aetherscale_agent.deaf import LIMIT_BEATS, QUIET_BEATS
from aetherscale_testing.broker import TestBroker
from aetherscale_testing.client import SeedClient
from aetherscale_testing.fleet import Fleet
from aetherscale_testing.proxy import Wires

pytestmark = pytest.mark.broker

HEARTBEAT_S = 1
PROMISED_S = (QUIET_BEATS + LIMIT_BEATS) * HEARTBEAT_S
SLACK_S = 3.0  #: to connect again on a busy machine


@pytest.fixture
def wires() -> Iterator[Wires]:
    with Wires() as running:
        yield running


def seconds_until(what: Callable[[], bool], limit_s: float) -> float:
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < limit_s
        time.sleep(0.02)
    return time.monotonic() - began


def test_a_deaf_agent_connects_anew_by_itself(agents: Fleet, broker: TestBroker, wires: Wires) -> None:
    wire = wires.open(("127.0.0.1", broker.port))
    url = {"url": f"amqp://guest@127.0.0.1:{wire.port}/", "password": "guest"}
    h1 = agents.add("h1", "a", broker=url, heartbeat=HEARTBEAT_S)
    agents.wait_ready()
    with SeedClient(broker.address) as client:
        vm_id = client.ask("create-vm", 1, image="a")[0]["response"]["vm-id"]
        wire.deafen()
        assert client.send(f"vm.{vm_id}", "show-vm", seconds=0.5, vm_id=vm_id) == [], "it was deafened"
        took = seconds_until(lambda: h1.log.count("connected as h1") == 2, PROMISED_S + SLACK_S)
        (answer,) = client.send(f"vm.{vm_id}", "show-vm", vm_id=vm_id)
    assert answer["response"]["state"] == "running"
    assert took > LIMIT_BEATS * HEARTBEAT_S, "it was noticed by something else"
    assert "deaf: nothing was delivered for" in h1.log


def test_an_agent_whose_bindings_were_taken_away_makes_them_anew(agents: Fleet, broker: TestBroker) -> None:
    h1 = agents.add("h1", "a", heartbeat=HEARTBEAT_S)
    agents.wait_ready()
    with SeedClient(broker.address) as client:
        vm_id = client.ask("create-vm", 1, image="a")[0]["response"]["vm-id"]
        for row in broker.table("list_bindings", "source_name", "destination_name", "routing_key"):
            if (row["source_name"], row["destination_name"]) == ("computing", "computing-host.h1"):
                client.unbind("computing-host.h1", row["routing_key"])
        assert client.is_returned(f"vm.{vm_id}")
        assert client.is_returned("host.h1")
        seconds_until(lambda: h1.log.count("connected as h1") == 2, QUIET_BEATS * HEARTBEAT_S + SLACK_S)
        (answer,) = client.send(f"vm.{vm_id}", "show-vm", vm_id=vm_id)
    assert answer["response"]["state"] == "running"
    assert "deaf: this host's queue is not bound to host.h1 any more" in h1.log


def test_a_healthy_agent_that_nobody_asks_anything_stays_and_says_nothing(agents: Fleet) -> None:
    h1 = agents.add("h1", "a", heartbeat=HEARTBEAT_S)
    agents.wait_ready()
    seconds_until(lambda: "this host has 0 VMs" in h1.log, SLACK_S)
    before = h1.log
    time.sleep(3 * QUIET_BEATS * HEARTBEAT_S)  # what is asked is that nothing happens: there is no event to wait for
    assert h1.log == before


def test_a_ping_to_itself_is_answered_to_nobody(agents: Fleet, broker: TestBroker) -> None:
    h1 = agents.add("h1", "a")
    agents.wait_ready()
    with SeedClient(broker.address) as client:
        seconds_until(lambda: "this host has 0 VMs" in h1.log, SLACK_S)
        before = h1.log.count("\n")
        client.publish("host.h1", b"", type="self-ping", reply_to=None, user_id="guest")
        (answer,) = client.send("host.h1", "ping")
        assert h1.log.count("\n") == before + 1, "the other ping's entry"
        assert answer["response"].keys() == {"host", "agent-version", "clock"}
        assert abs(answer["response"]["clock"] - time.time()) < 5
        assert len(client.ask("ping", 1)) == 1


def test_a_ping_to_a_host_that_is_down_is_answered_by_another(agents: Fleet, broker: TestBroker) -> None:
    agents.add("h1", "a")
    agents.add("h2", "a")
    agents.wait_ready()
    agents.agents["h2"].stop()
    with SeedClient(broker.address) as client:
        (answer,) = client.send("host.h2", "ping")
        info = answer["execution-info"]
        assert (info["code"], info["down"], answer["host"]) == ("host-down", "h2", "h1")
