"""list-vms as a user types it: a process that starts, asks all hosts over TLS, prints and ends."""

import contextlib
import json
import os
import pty
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aetherscale_bench import installed
from aetherscale_bench.figures import Result, Sample, Target, ratio
from aetherscale_bench.fleet import CLI, Fleet
from aetherscale_bench.installed import FLOOR
from aetherscale_bench.timing import milliseconds, side_by_side

VMS = 30
ALL, DEAD, FROZEN = "list-vms, 3 hosts, 30 VMs", "list-vms, one of 3 hosts dead", "list-vms, one of 3 hosts frozen"
ROW = "the first VM of its table on a terminal, one of 3 hosts frozen"
ROW_LIMIT_MS = 700
ROWS = "the last VM of both healthy hosts on the terminal, one of 3 hosts frozen"
DEAD_LIMIT_MS = 10
WORD = "completion of a VM's name, the process that the shell runs"
WORD_LIMIT_MS = 60
PARTIAL = 4
TIMEOUT_S = 2
FROZEN_RUNS = 3
"""With the first, which does not count, under 10 s: after 10 to 15 s the broker takes a frozen agent for a dead one."""
GONE = "h3"
NOTICED_S = 60
"""An agent's heartbeats are missed for 10 to 15 s before the broker gives it up."""


def measure(fleet: Fleet, runs: int) -> Result:
    """ms of whole processes; each state of the fleet beside the same floor. Guests have booted before: they idle."""
    facts = {"hosts": len(fleet.computes), "VMs": VMS}
    made = [fleet.create("--wait", "cloud-init") for _ in range(VMS)]
    try:
        there = vms(fleet.cli("list-vms"))
        left = {host: some for host, some in there.items() if host != GONE}
        samples = beside_the_floor(ALL, lambda: listed(fleet, there), runs)
        samples += beside_the_floor(WORD, lambda: completed(fleet, made), runs)
        with frozen(fleet, GONE):
            samples += beside_the_floor(FROZEN, lambda: waited_for(fleet, left), min(runs, FROZEN_RUNS))
        with frozen(fleet, GONE):
            healthy = {one.removeprefix("vm-") for some in left.values() for one in some}
            shown = [rows(fleet, healthy) for _ in range(min(runs, FROZEN_RUNS) + 1)]
        first, last = zip(*shown[1:], strict=True)
        samples += [Sample(ROW, "ms", first), Sample(ROWS, "ms", last)]
        with dead(fleet, GONE):
            samples += beside_the_floor(DEAD, lambda: listed(fleet, left, PARTIAL), runs)
    finally:
        fleet.cli("delete-vm", *made)
    return Result("list-vms", tuple(samples), tuple(targets(samples)), facts)


def targets(samples: list[Sample]) -> Iterator[Target]:
    """What each must show beside the floor that was measured beside it."""
    of = {sample.name: sample for sample in samples}
    for name in (ALL, DEAD):
        yield Target(f"{name}: at most 1.3 × {FLOOR}", ratio(of[name], of[f"{FLOOR} (beside {name})"]), 1.3)
    beyond = {name: of[name].median - of[f"{FLOOR} (beside {name})"].median for name in (ALL, DEAD)}
    cost = f"{DEAD}: beyond its own floor at most {DEAD_LIMIT_MS} ms more than all alive beyond theirs"
    yield Target(cost, beyond[DEAD] - beyond[ALL], DEAD_LIMIT_MS)
    yield Target(f"{WORD}: at most {WORD_LIMIT_MS} ms", of[WORD].median, WORD_LIMIT_MS)
    yield Target(f"{ROW}: at most {ROW_LIMIT_MS} ms", of[ROW].median, ROW_LIMIT_MS)
    before = f"{ROWS}: before the time-out, {TIMEOUT_S * 1000} ms, in every run"
    yield Target(before, max(of[ROWS].values), TIMEOUT_S * 1000)
    waited = of[FROZEN].median - TIMEOUT_S * 1000
    yield Target(f"{FROZEN}: the stated time-out and at most 200 ms", waited, 200)


def beside_the_floor(name: str, action: Callable[[], None], runs: int) -> list[Sample]:
    """A process of the CLI, and a Python that imports what any client of RabbitMQ over TLS must."""
    return side_by_side({name: action, f"{FLOOR} (beside {name})": installed.floor}, runs)


def vms(printed: str) -> dict[str, set[str]]:
    """The VMs of each host that answered."""
    return {answer["host"]: set(answer["response"]) for answer in json.loads(printed) if "response" in answer}


def listed(fleet: Fleet, there: dict[str, set[str]], code: int = 0, *options: str) -> None:
    """A listing that ends with this code, and has these VMs of these hosts.

    :raise RuntimeError: when it has others: then it is not what was meant to be measured.
    """
    found = vms(fleet.cli("list-vms", *options, codes=(code,)))
    if found != there:
        raise RuntimeError(f"{CLI} list-vms printed {found}, not {there}")


def waited_for(fleet: Fleet, there: dict[str, set[str]]) -> None:
    """A listing that waits for a host that does not answer, and gives it up.

    :raise RuntimeError: when it did not wait: the broker had noticed, and the host is a dead one.
    """
    took = milliseconds(lambda: listed(fleet, there, PARTIAL, "--timeout", str(TIMEOUT_S)))
    if took < TIMEOUT_S * 1000:
        raise RuntimeError(f"{CLI} list-vms waited {took:.0f} ms for a frozen host")


def rows(fleet: Fleet, there: set[str]) -> tuple[float, float]:
    """ms until a terminal shows the first of these VMs, and until it shows all of them, of a listing that waits for a
    host that does not answer.

    :raise RuntimeError: when it never shows all of them, or did not wait.
    """
    argv = [CLI, "list-vms", "--timeout", str(TIMEOUT_S)]
    screen, terminal = pty.openpty()
    begin, shown, times = time.perf_counter(), b"", dict[str, float]()
    with subprocess.Popen(argv, env=fleet.env, stdin=subprocess.DEVNULL, stdout=terminal, stderr=subprocess.DEVNULL):
        os.close(terminal)
        with contextlib.suppress(OSError):  # the listing has left its terminal
            while read := os.read(screen, 4096):
                shown += read
                now = (time.perf_counter() - begin) * 1000
                times |= {one: now for one in there - times.keys() if one.encode() in shown}
    os.close(screen)
    took = (time.perf_counter() - begin) * 1000
    if times.keys() != there or took < TIMEOUT_S * 1000:
        raise RuntimeError(f"{' '.join(argv)} showed {len(times)} of {len(there)} VMs, and took {took:.0f} ms")
    return round(min(times.values()), 3), round(max(times.values()), 3)


def completed(fleet: Fleet, made: list[str]) -> None:
    """What `stop-vm` and the tabulator key ask for.

    :raise RuntimeError: when a VM is not among the words.
    """
    words = fleet.cli("__complete", "vms").split()
    if not set(made) <= set(words):
        raise RuntimeError(f"{CLI} __complete vms printed {len(words)} words, not all of {len(made)} VMs")


@contextmanager
def frozen(fleet: Fleet, host: str) -> Iterator[None]:
    """A host whose agent is stopped (SIGSTOP): the broker does not notice within the benchmark."""
    unit = "aetherscale-agent.service"
    fleet.run(host, "systemctl", "kill", "--signal=STOP", unit)
    try:
        yield
    finally:
        fleet.run(host, "systemctl", "kill", "--signal=CONT", unit)
        fleet.wait_connected()


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
        fleet.wait_connected()
