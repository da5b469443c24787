"""list-vms as a user types it: a process that starts, asks all hosts over TLS, prints and ends."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

from aetherscale_bench import installed
from aetherscale_bench.figures import Result, Sample, Target, ratio
from aetherscale_bench.fleet import CLI, Fleet
from aetherscale_bench.timing import milliseconds, run, side_by_side

VMS = 30
FLOOR = "python3 importing pika and ssl"
ALL, DEAD, FROZEN = "list-vms, 3 hosts, 30 VMs", "list-vms, one of 3 hosts dead", "list-vms, one of 3 hosts frozen"
PARTIAL = 4
TIMEOUT_S = 2
NOTICED_S = 60
"""An agent's heartbeats are missed for 10 to 15 s before the broker gives it up."""


def measure(fleet: Fleet, runs: int) -> Result:
    """ms of whole processes; each state of the fleet beside the same floor."""
    facts = {"hosts": len(fleet.computes), "VMs": VMS}
    made = [fleet.create() for _ in range(VMS)]
    try:
        samples = beside_the_floor(fleet, ALL, runs)
        with frozen(fleet, "h3"):
            samples += beside_the_floor(fleet, FROZEN, max(runs // 4, 3), "--timeout", str(TIMEOUT_S))
        with dead(fleet, "h3"):
            samples += beside_the_floor(fleet, DEAD, runs)
    finally:
        fleet.cli("delete-vm", *made)
    return Result("list-vms", tuple(samples), tuple(targets(samples)), facts)


def targets(samples: list[Sample]) -> Iterator[Target]:
    """What each must show beside the floor that was measured beside it."""
    of = {sample.name: sample for sample in samples}
    for name in (ALL, DEAD):
        yield Target(f"{name}: at most 1.3 × {FLOOR}", ratio(of[name], of[f"{FLOOR} (beside {name})"]), 1.3)
    waited = of[FROZEN].median - TIMEOUT_S * 1000
    yield Target(f"{FROZEN}: the stated time-out and at most 200 ms", waited, 200)


def beside_the_floor(fleet: Fleet, name: str, runs: int, *options: str) -> list[Sample]:
    """A listing, and a Python process that imports what any client of RabbitMQ over TLS must."""
    return side_by_side(
        {
            name: lambda: check(fleet.cli("list-vms", *options, codes=(0, PARTIAL)), name),
            f"{FLOOR} (beside {name})": lambda: run([installed.PYTHON, "-c", "import pika, ssl"]),
        },
        runs,
    )


def check(printed: str, name: str) -> None:
    """A listing that lacks a VM of a host that answers is not what was meant to be measured."""
    rows = sum(len(answer.get("response", [])) for answer in json.loads(printed))
    if name == ALL and rows != VMS:
        raise RuntimeError(f"{CLI} list-vms printed {rows} of {VMS} VMs")


@contextmanager
def frozen(fleet: Fleet, host: str) -> Iterator[None]:
    """A host whose agent is stopped (SIGSTOP): the broker does not notice within the benchmark."""
    unit = "aetherscale-agent.service"
    fleet.run(host, "systemctl", "kill", "--signal=STOP", unit)
    try:
        yield
    finally:
        fleet.run(host, "systemctl", "kill", "--signal=CONT", unit)


@contextmanager
def dead(fleet: Fleet, host: str) -> Iterator[None]:
    """A host without power, after the broker has noticed: a listing no longer waits for it, but names it.

    :raise RuntimeError: when the broker has not noticed after a minute.
    """
    fleet.lab.power_loss(host)
    try:
        until = time.monotonic() + NOTICED_S
        while milliseconds(lambda: fleet.cli("list-vms", codes=(PARTIAL,))) > TIMEOUT_S * 1000:
            if time.monotonic() > until:
                raise RuntimeError(f"listings still wait for {host}")
        yield
    finally:
        fleet.lab.power_on(host)
