"""The limits of VMs hold: for a QEMU that was taken over, and for guests that take all they may."""

import os
import re
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aetherscale_testing import glutton
from aetherscale_testing.client import SeedClient, parameters_of
from aetherscale_testing.memory import read_largest
from aetherscale_testing.rollout import Rollout

testinfra_hosts = ["broker1"]  # once; the hosts are parameters

HOSTS = ("h1", "h2")
MIB = 1 << 20
TURNS, ROUNDS, ASKED = 3, 5, 20
SECONDS = 1.0
CORES = 1.2  # of a VM with one
QUOTA = """
cd "/sys/fs/cgroup/cpu$1" 2>/dev/null && cat cpu.cfs_quota_us cpu.cfs_period_us || cat "/sys/fs/cgroup$1/cpu.max"
"""
"""What the kernel was told, on cgroup v1 and v2: microseconds of processor time per so many."""
BURNERS = ("burner1", "burner2", "burner3")
BURN = """#!/bin/sh
mkdir /fill
mount -t tmpfs -o size=100% fill /fill
spare=$(awk '/^MemAvailable/ { print int($2 / 1024) - 24 }' /proc/meminfo)
dd if=/dev/zero of=/fill/all bs=1M count=$spare 2>/dev/null
yes >/dev/null 2>&1 </dev/null &
echo "BURNING, with $(du -m /fill/all | cut -f 1) MiB"
"""
"""A guest that takes what memory it has, but for what it needs to stay alive."""
SIZE, LEAST_HELD = 160, 120
"""MiB: of a burner, and how much of it its host must have given it. It leaves 24 for itself, and what the kernel keeps
back of what is free.
"""


@pytest.fixture(scope="module")
def fleet() -> Iterator[Rollout]:
    rollout = Rollout()
    yield rollout
    rollout.cli("delete-vm", "--if-exists", *BURNERS, *(f"limited-{host}" for host in HOSTS))


class Limited:
    """A VM with one core and 128 MiB, and what somebody in its cgroup gets."""

    def __init__(self, fleet: Rollout, host: str) -> None:
        self.fleet, self.host = fleet, host
        self.vm_id = fleet.create("--host", host, "--name", f"limited-{host}")
        self.pid = self.show("MainPID")

    def show(self, what: str) -> str:
        return self.fleet.run(self.host, "systemctl", "show", "-P", what, f"aetherscale-vm@{self.vm_id}.service")

    def take(self, what: str, how_much: float) -> str:
        """What it got, or how it ended."""
        script = '/usr/bin/python3 -I - "$@" || echo "exit $?"'
        argv = ["sh", "-c", script, "sh", self.pid, what, str(how_much)]
        source = Path(glutton.__file__).read_text()
        return self.fleet.lab.run(self.host, argv, stdin=source).stdout.strip()


@pytest.fixture(scope="module", params=HOSTS)
def limited(request: pytest.FixtureRequest, fleet: Rollout) -> Limited:
    return Limited(fleet, str(request.param))


def test_memory_ends_at_the_limit(limited: Limited) -> None:
    most = int(limited.show("MemoryMax")) // MIB
    assert limited.take("memory", 16) == "16"  # the control
    assert limited.take("memory", most + 64) == f"exit {128 + 9}"
    assert limited.show("MainPID") == limited.pid  # QEMU outlives it


def test_tasks_end_at_the_limit(limited: Limited) -> None:
    most = int(limited.show("TasksMax"))
    assert limited.take("tasks", 16) == "16"
    assert 16 < int(limited.take("tasks", 2 * most)) < most


def test_processors_end_at_the_limit(limited: Limited) -> None:
    quota, period = limited.fleet.run(limited.host, "sh", "-c", QUOTA, "sh", limited.show("ControlGroup")).split()
    assert int(quota) / int(period) == pytest.approx(CORES)
    assert 0 < float(limited.take("cpu", SECONDS)) < 1.25 * CORES * SECONDS


def list_vms(fleet: Rollout) -> float:
    """How long `list-vms` takes, from the program's start to its end, in seconds."""
    begun = time.monotonic()
    fleet.cli("list-vms")
    return time.monotonic() - begun


def ask(client: SeedClient) -> float:
    """How long it takes from a list-vms, published, to the last host's answer, in seconds."""
    begun = time.monotonic()
    answers = client.send("list-vms", "list-vms", len(HOSTS), 30, properties={"user_id": "operator"})
    took = time.monotonic() - begun
    assert [answer["execution-info"]["status"] for answer in answers] == ["success"] * len(HOSTS)
    return took


def measure(fleet: Rollout, client: SeedClient) -> tuple[list[float], list[float]]:
    """A few times each: the whole program, which is mostly Python's start, and the answers alone."""
    return [list_vms(fleet) for _ in range(ROUNDS)], [ask(client) for _ in range(ASKED)]


def held(fleet: Rollout, pid: str) -> float:
    """How much of its memory a guest of h1 has, in MiB."""
    return read_largest(fleet.run("h1", "cat", f"/proc/{pid}/smaps"), SIZE)


def burned(fleet: Rollout, pids: list[str]) -> list[float]:
    """Seconds of processor time that each of these QEMUs of h1 has had."""
    lines = fleet.run("h1", "cat", *(f"/proc/{pid}/stat" for pid in pids)).splitlines()
    fields = [line.rpartition(")")[2].split() for line in lines]
    return [(int(one[11]) + int(one[12])) / os.sysconf("SC_CLK_TCK") for one in fields]


def pin(fleet: Rollout, pid: str, processors: str) -> None:
    fleet.run("h1", "taskset", "--all-tasks", "--cpu-list", "--pid", processors, pid)


def filled(fleet: Rollout, vm_id: str) -> int:
    """How much memory a guest says that it has filled, in MiB, before it began to burn; 0: it has not yet said."""
    said = re.search(r"BURNING, with (\d+) MiB", fleet.console(vm_id))
    return int(said[1]) if said else 0


@pytest.fixture(scope="module")
def burners(fleet: Rollout, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Guests that have filled their memory and never rest; their QEMUs' process ids.

    They share one processor with their host's agent, for the lab has few: what is left of them is for the broker, the
    other host and the CLI, which are other machines' outside of the lab.
    """
    script = tmp_path_factory.mktemp("burners") / "burn"
    script.write_text(BURN)
    sized = ("--cpus", "1", "--memory", f"{SIZE}M", "--user-data", str(script))
    with ThreadPoolExecutor() as pool:
        vm_ids = list(pool.map(lambda name: fleet.create("--host", "h1", "--name", name, *sized), BURNERS))
    fleet.eventually(lambda: all(filled(fleet, vm_id) for vm_id in vm_ids), 240)
    pids = [fleet.unit(vm_id, "MainPID") for vm_id in vm_ids]
    agent = fleet.run("h1", "systemctl", "show", "-P", "MainPID", "aetherscale-agent")
    for pid in (*pids, agent):
        pin(fleet, pid, "0")
    yield pids
    pin(fleet, agent, f"0-{(os.cpu_count() or 1) - 1}")


def test_list_vms_is_as_quick_as_ever_while_guests_take_all_they_may(fleet: Rollout, burners: list[str]) -> None:
    """In turns, with the guests paused and not, for other work on the machine changes from minute to minute."""
    before, burning = burned(fleet, burners), 0.0
    idle: tuple[list[float], list[float]] = ([], [])
    busy: tuple[list[float], list[float]] = ([], [])
    with SeedClient(parameters=parameters_of(fleet.broker(), heartbeat=0)) as client:
        for _ in range(TURNS):
            fleet.cli("pause-vm", *BURNERS)
            for all_of_them, some in zip(idle, measure(fleet, client), strict=True):
                all_of_them += some
            fleet.cli("resume-vm", *BURNERS)
            begun = time.monotonic()
            for all_of_them, some in zip(busy, measure(fleet, client), strict=True):
                all_of_them += some
            burning += time.monotonic() - begun
    shares = [(after - was) / burning for after, was in zip(burned(fleet, burners), before, strict=True)]
    memory = [held(fleet, pid) for pid in burners]
    medians = [(statistics.median(rest), statistics.median(work)) for rest, work in zip(idle, busy, strict=True)]
    for what, (rest, work) in zip(("list-vms", "published to answered"), medians, strict=True):
        print(f"{what}: {rest:.4f} s idle, {work:.4f} s while guests burn")
    print(f"shares of the agent's core: {shares}; MiB that they hold of {SIZE}: {memory}")
    assert sum(shares) > 0.3, shares  # the control: they do burn, on the agent's own processor
    assert min(shares) > 0.05, shares  # … each of them
    assert min(memory) >= LEAST_HELD, memory  # … and still have all their memory
    assert {fleet.show(name, 0)["state"] for name in BURNERS} == {"running"}
    for rest, work in medians:
        assert work <= 2 * rest, medians
