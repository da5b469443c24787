"""Ten thousand messages at once to real agents: they live, another operator is answered, and the audit has all."""

import collections
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import pytest

from aetherscale_agent.audit import MESSAGE_ID
from aetherscale_testing.client import SeedClient, parameters_of
from aetherscale_testing.flood import OF_LARGE, Course, count_entries, endure, endure_best, is_late
from aetherscale_testing.rollout import Rollout

testinfra_hosts = ["broker1"]  # once, not per host

HOSTS = ("h1", "h2")
KINDS = {
    "list": 5000, "garbage": 2900, "snapshot": 100, "create": 200, "stream": 1000, "no-stream": 300, "forged": 300,
    "unanswerable": 200,
}  # fmt: skip
IDLE_ASKED = 15
EVERY_S = 0.05
Vm = tuple[str, str, str]


@pytest.fixture
def asker(rollout: Rollout) -> Iterator[SeedClient]:
    with SeedClient(parameters=parameters_of(rollout.broker())) as client:
        yield client


def ask(client: SeedClient) -> float:
    """How long a list-vms took, in seconds. Both hosts answered, or it had waited for 2 s in the queue of one."""
    began = time.monotonic()
    answers = client.send("list-vms", "list-vms", 2, 30, properties={"user_id": "operator"})
    took = time.monotonic() - began
    assert len(answers) == 2
    assert all(answer["execution-info"]["status"] == "success" or is_late(answer, took) for answer in answers)
    return took


def agents(rollout: Rollout) -> list[str]:
    """The agents' processes."""
    return [rollout.run(host, "systemctl", "show", "-P", "MainPID", "aetherscale-agent") for host in HOSTS]


def noted(rollout: Rollout, since: float) -> dict[str, int]:
    """How many entries in mallory's name the journals of the hosts have from then on, by command."""
    matches = f"MESSAGE_ID={MESSAGE_ID} AETHERSCALE_OPERATOR=mallory"
    shown = f"journalctl --no-pager --since=@{since:.3f} -o cat --output-fields=AETHERSCALE_COMMAND {matches}"
    found: collections.Counter[str] = collections.Counter()
    for host in HOSTS:
        for line in rollout.run(host, "sh", "-c", f"{shown} | sort | uniq -c").splitlines():
            count, command = line.split()
            found[command] += int(count)
    return dict(found)


@pytest.mark.parametrize("kinds", [KINDS, OF_LARGE], ids=["of all kinds", "large"])
def test_a_flood_delays_nobody_else_and_is_told_in_full(
    rollout: Rollout, kept: Vm, broker_of: Callable[[str], dict[str, Any]], asker: SeedClient, kinds: dict[str, int]
) -> None:
    """What of its time is the machine's only adds to a flood's worst, so the best of three counts (`endure_best`)."""
    began, before = time.time(), agents(rollout)
    usual = median(ask(asker) for _ in range(IDLE_ASKED))
    wish = {"broker": broker_of("mallory"), "vm": kept[0], "hosts": len(HOSTS), "kinds": kinds}
    wanted: collections.Counter[str] = collections.Counter()

    def flood() -> Course:
        course = endure(wish, usual, lambda: ask(asker), EVERY_S)
        # What waits for 2 s in a host's queue is answered by another host, and told by that one.
        wanted.update(count_entries(kept[0], kinds, len(HOSTS)))
        assert course.told["answers"] == course.told["wanted"], course
        assert agents(rollout) == before
        rollout.eventually(lambda: noted(rollout, began) == wanted, 30)
        return course

    best = endure_best(flood)
    assert best.delays_nobody, best
