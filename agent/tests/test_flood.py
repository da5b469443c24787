"""One operator sends ten thousand messages at once: the agent lives, stays small, and everybody else is answered."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aetherscale_protocol import topology
from aetherscale_testing.broker import TestBroker
from aetherscale_testing.client import SeedClient
from aetherscale_testing.fleet import AgentProcess, Fleet

pytestmark = pytest.mark.broker

KINDS = {"list": 4000, "garbage": 3000, "one-vm": 1500, "create": 200, "forged": 800, "unanswerable": 500}
ANSWERABLE = 8700
EVERY_S = 0.05
MOST_GROWTH = 64 << 20
"""Bytes that the agent may grow by."""


def resident(agent: AgentProcess) -> int:
    """Bytes of memory that an agent has."""
    assert agent.process is not None
    fields = Path(f"/proc/{agent.process.pid}/statm").read_text().split()
    return int(fields[1]) * 4096


def start_flood(broker: TestBroker, vm_id: str) -> subprocess.Popen[str]:
    wish = {"address": broker.address, "user": "mallory", "vm": vm_id, "kinds": KINDS}
    argv = [sys.executable, "-m", "aetherscale_testing.flood", json.dumps(wish)]
    environ = {"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin"}
    return subprocess.Popen(argv, env=environ, stdout=subprocess.PIPE, text=True)


def ask_until(client: SeedClient, over: Any) -> list[float]:
    """How long each of bob's list-vms took, in seconds: every 50 ms until the flood is over. All were complete."""
    took = []
    while not over():
        began = time.monotonic()
        answers = client.send("list-vms", "list-vms", properties={"user_id": "bob"})
        took.append(time.monotonic() - began)
        assert [answer["execution-info"]["status"] for answer in answers] == ["success"]
        time.sleep(max(0.0, EVERY_S - took[-1]))
    return took


@pytest.fixture
def bob(broker: TestBroker) -> Iterator[SeedClient]:
    rights = topology.OPERATOR_PERMISSIONS
    for user in ("mallory", "bob"):
        broker.ctl("add_user", user, user)
        broker.ctl("set_permissions", user, rights.configure, rights.write, rights.read)
    with SeedClient(broker.address, "bob", "bob") as client:
        yield client
    for user in ("mallory", "bob"):
        broker.ctl("delete_user", user)


def find_limit() -> float:
    """A second; more on a machine on which each program gets but a part of a core before this begins."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def test_a_flood_delays_nobody_else(agents: Fleet, broker: TestBroker, client: SeedClient, bob: SeedClient) -> None:
    limit, agent = find_limit(), agents.add("h1", "ubuntu_base")
    agents.wait_ready()
    (created,) = client.ask("create-vm", 1, image="ubuntu_base")
    before = resident(agent)
    with start_flood(broker, created["response"]["vm-id"]) as flood:
        took = ask_until(bob, lambda: flood.poll() is not None)
        assert flood.stdout is not None
        assert flood.stdout.readline() == "sent\n"
        told = json.loads(flood.stdout.readline())
    growth = resident(agent) - before
    print(f"list-vms: {len(took)} asked, worst {max(took):.3f} s of {limit:.1f}; grew {growth >> 20} MiB; {told}")
    assert max(took) < limit
    assert told["answers"] == ANSWERABLE
    assert growth < MOST_GROWTH
    (listed,) = client.ask("list-vms", 1)
    assert listed["response"] == [f"vm-{created['response']['vm-id']}"]
