"""One operator sends ten thousand messages at once: the agent lives, stays small, and everybody else is answered."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import pytest

from aetherscale_protocol import topology
from aetherscale_testing.broker import TestBroker
from aetherscale_testing.client import SeedClient
from aetherscale_testing.fleet import AgentProcess, Fleet

pytestmark = pytest.mark.broker

KINDS = {
    "list": 3000, "garbage": 2500, "one-vm": 1500, "create": 200, "stream": 1000, "no-stream": 500, "forged": 800,
    "unanswerable": 500,
}  # fmt: skip
EVERY_S = 0.05
IDLE_ASKED = 20
MOST_DELAY_S = 0.5
"""How much longer the median list-vms may take than when nobody floods; without turns each waits for all before it."""
MOST_TWENTIETH_S = 1.0
"""How much longer 19 of 20 may take: the last one is the machine's."""
MOST_GROWTH = 64 << 20
"""Bytes that the agent may grow by."""


def resident(agent: AgentProcess) -> int:
    """Bytes of memory that an agent has."""
    assert agent.process is not None
    fields = Path(f"/proc/{agent.process.pid}/statm").read_text().split()
    return int(fields[1]) * 4096


def start_flood(broker: TestBroker, vm_id: str) -> subprocess.Popen[str]:
    mallory = {"url": f"amqp://mallory@{broker.address}/", "password": "mallory"}
    wish = {"broker": mallory, "vm": vm_id, "hosts": 1, "kinds": KINDS}
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


def test_a_flood_delays_nobody_else(agents: Fleet, broker: TestBroker, client: SeedClient, bob: SeedClient) -> None:
    agent = agents.add("h1", "ubuntu_base")
    agents.wait_ready()
    (created,) = client.ask("create-vm", 1, image="ubuntu_base")
    before, left = resident(agent), iter(range(IDLE_ASKED))
    idle = ask_until(bob, lambda: next(left, None) is None)
    with start_flood(broker, created["response"]["vm-id"]) as flood:
        took = ask_until(bob, lambda: flood.poll() is not None)
        assert flood.stdout is not None
        assert flood.stdout.readline() == "sent\n"
        told = json.loads(flood.stdout.readline())
    growth, usual = resident(agent) - before, median(idle)
    delay, most = median(took) - usual, quantiles(took, n=20)[-1] - usual
    print(f"{len(took)} list-vms: {delay:.3f} s longer, 19 of 20 {most:.3f}, worst {max(took):.3f} s")
    print(f"the agent grew {growth >> 20} MiB; {told}")
    assert delay < MOST_DELAY_S
    assert most < MOST_TWENTIETH_S
    assert told["answers"] == told["wanted"]
    assert growth < MOST_GROWTH
    (listed,) = client.ask("list-vms", 1)
    assert listed["response"] == [f"vm-{created['response']['vm-id']}"]
