"""Forked agents: the same agents, much quicker to start; and none of them outlives its server."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGKILL, SIGSTOP, SIGTERM

import pytest

from aetherscale_testing.broker import TestBroker, private_broker
from aetherscale_testing.client import SeedClient
from aetherscale_testing.fleet import Fleet
from aetherscale_testing.forkserver import ForkServer

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def broker() -> Iterator[TestBroker]:
    with private_broker(vhosts=["one", "two"]) as node:
        yield node


def eventually(what: Callable[[], bool], seconds: float = 10) -> None:
    limit = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < limit
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_forked_agents_of_two_vhosts_know_nothing_of_each_other(broker: TestBroker, tmp_path: Path) -> None:
    with ForkServer() as server:
        fleets = [Fleet(broker, tmp_path / name, vhost=name, server=server) for name in ("one", "two")]
        for agents in fleets:
            agents.add("h1", "a", keep=True)
        for agents in fleets:
            agents.wait_ready()
        with SeedClient(broker.address, vhost="one") as client:
            made = client.ask("create-vm", 1, image="a")[0]["response"]["vm-id"]
            fleets[0].agents["h1"].stop(SIGKILL)
            fleets[0].agents["h1"].start()
            fleets[0].wait_ready()
            assert client.send(f"vm.{made}", "show-vm", vm_id=made)[0]["response"]["state"] == "running"
        with SeedClient(broker.address, vhost="two") as client:
            assert client.ask("list-vms", 1)[0]["response"] == []
        for agents in fleets:
            agents.agents["h1"].stop(SIGTERM)
            assert "the VMs go on" in agents.agents["h1"].log


def test_what_was_forked_ends_with_the_server(broker: TestBroker, tmp_path: Path) -> None:
    with ForkServer() as server:
        agents = Fleet(broker, tmp_path, vhost="one", server=server)
        pids = [agents.add(host, "a").process.pid for host in ("h1", "h2")]  # type: ignore[union-attr]
        agents.wait_ready()
        agents.agents["h2"].signal(SIGSTOP)
        assert all(is_alive(pid) for pid in pids)
    eventually(lambda: not any(is_alive(pid) for pid in pids))


def test_a_wiped_broker_is_empty_and_has_its_vhosts(broker: TestBroker) -> None:
    with SeedClient(broker.address, vhost="two") as client:
        client._channel.queue_declare("something", durable=True)
    broker.wipe()
    assert {row["name"] for row in broker.table("list_vhosts")} == {"/", "one", "two"}
    assert broker.table("list_queues", "-p", "two") == []
