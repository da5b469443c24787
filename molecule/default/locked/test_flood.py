"""Ten thousand messages at once to real agents: they live, another operator is answered, and the audit has all."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from statistics import median, quantiles
from typing import Any

import pytest

from aetherscale_agent.audit import MESSAGE_ID
from aetherscale_testing.client import SeedClient, parameters_of
from aetherscale_testing.flood import make
from aetherscale_testing.rollout import Rollout

testinfra_hosts = ["broker1"]  # once, not per host

HOSTS = ("h1", "h2")
KINDS = {
    "list": 5000, "garbage": 3000, "create": 200, "stream": 1000, "no-stream": 300, "forged": 300, "unanswerable": 200,
}  # fmt: skip
IDLE_ASKED = 15
MOST_DELAY_S = 1.0
"""How much longer 19 of 20 of another operator's list-vms may take than before the flood. The very last is the
machine's: broker, hosts and both operators share its cores.
"""
Vm = tuple[str, str, str]


@pytest.fixture
def asker(rollout: Rollout) -> Iterator[SeedClient]:
    with SeedClient(parameters=parameters_of(rollout.broker())) as client:
        yield client


def ask(client: SeedClient) -> float:
    """How long a list-vms took, in seconds. Both hosts answered."""
    began = time.monotonic()
    answers = client.send("list-vms", "list-vms", 2, 30, properties={"user_id": "operator"})
    assert [answer["execution-info"]["status"] for answer in answers] == ["success"] * 2
    return time.monotonic() - began


def agents(rollout: Rollout) -> list[str]:
    """The agents' processes."""
    return [rollout.run(host, "systemctl", "show", "-P", "MainPID", "aetherscale-agent") for host in HOSTS]


def noted(rollout: Rollout, host: str, since: float) -> int:
    """How many commands of mallory's with the key of list-vms a host's journal has from then on."""
    matches = f"MESSAGE_ID={MESSAGE_ID} AETHERSCALE_OPERATOR=mallory AETHERSCALE_COMMAND=list-vms"
    shown = f"journalctl --no-pager --since=@{since:.0f} -o json --output-fields=PRIORITY {matches}"
    return int(rollout.run(host, "sh", "-c", f"{shown} | wc -l"))


def test_a_flood_delays_nobody_else_and_is_told_in_full(
    rollout: Rollout, kept: Vm, broker_of: Callable[[str], dict[str, Any]], asker: SeedClient
) -> None:
    began, before = time.time(), agents(rollout)
    usual = median(ask(asker) for _ in range(IDLE_ASKED))
    wish = {"broker": broker_of("mallory"), "vm": kept[0], "hosts": 2, "kinds": KINDS}
    flood = subprocess.Popen(
        [sys.executable, "-m", "aetherscale_testing.flood", json.dumps(wish)],
        env={"PYTHONPATH": ":".join(sys.path)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with flood:
        assert flood.stdout is not None
        assert flood.stdout.readline() == "sent\n"
        took = []
        while flood.poll() is None:
            took.append(ask(asker))
            time.sleep(0.05)
        told = json.loads(flood.stdout.readline())
    delay, most = median(took) - usual, quantiles(took, n=20)[-1] - usual
    print(f"{len(took)} list-vms: {delay:.3f} s longer, 19 of 20 {most:.3f} s, worst {max(took):.3f} s; {told}")
    assert told["answers"] == told["wanted"], told
    assert most < MOST_DELAY_S, f"{usual} before, then {took}"
    assert agents(rollout) == before
    signed = [key for number, (key, *_) in enumerate(make(kept[0], KINDS)) if number % 2]
    # What waits for 2 s in a host's queue is answered by another host, and told by that one.
    wanted = len(HOSTS) * signed.count("list-vms")
    rollout.eventually(lambda: sum(noted(rollout, host, began) for host in HOSTS) == wanted, 30)
