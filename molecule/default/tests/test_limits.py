"""The limits of VMs hold: for a QEMU that was taken over, and for guests that take all they may."""

import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aetherscale_testing import glutton
from aetherscale_testing.rollout import Rollout

testinfra_hosts = ["broker1"]  # once; the hosts are parameters

HOSTS = ("h1", "h2")
MIB = 1 << 20
TURNS, ROUNDS = 3, 5
SECONDS = 1.0
CORES = 1.2  # of a VM with one
QUOTA = """
cd "/sys/fs/cgroup/cpu$1" 2>/dev/null && cat cpu.cfs_quota_us cpu.cfs_period_us || cat "/sys/fs/cgroup$1/cpu.max"
"""
"""What the kernel was told, on cgroup v1 and v2: microseconds of processor time per so many."""
BURN = """#!/bin/sh
dd if=/dev/zero of=/tmp/fill bs=1M count=90 2>/dev/null
echo BURNING
for n in 1 2; do yes >/dev/null 2>&1 </dev/null & done
"""


@pytest.fixture(scope="module")
def fleet() -> Iterator[Rollout]:
    rollout = Rollout()
    yield rollout
    rollout.cli("delete-vm", "--if-exists", *(f"{what}-{host}" for what in ("limited", "burner") for host in HOSTS))


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


def burned(fleet: Rollout, pid: str) -> float:
    """Seconds of processor time that a QEMU of h1 has had."""
    fields = fleet.run("h1", "cat", f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def pin(fleet: Rollout, pid: str, processors: str) -> None:
    fleet.run("h1", "taskset", "--all-tasks", "--cpu-list", "--pid", processors, pid)


@pytest.fixture(scope="module")
def burner(fleet: Rollout, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A guest that has filled its memory and keeps two processors busy; its QEMU's process id.

    It shares one processor with its host's agent, for the lab has few: what is left of them is for the broker, the
    other host and the CLI, which are other machines' outside of the lab.
    """
    script = tmp_path_factory.mktemp("burner") / "burn"
    script.write_text(BURN)
    sized = ("--cpus", "2", "--memory", "256M", "--user-data", str(script))
    vm_id = fleet.create("--host", "h1", "--name", "burner-h1", *sized)
    fleet.eventually(lambda: "BURNING" in fleet.console(vm_id), 240)
    pid = fleet.unit(vm_id, "MainPID")
    agent = fleet.run("h1", "systemctl", "show", "-P", "MainPID", "aetherscale-agent")
    for one in (pid, agent):
        pin(fleet, one, "0")
    yield pid
    pin(fleet, agent, f"0-{(os.cpu_count() or 1) - 1}")


def test_list_vms_is_as_quick_as_ever_while_a_guest_takes_all_it_may(fleet: Rollout, burner: str) -> None:
    """In turns, with the guest paused and not, for other work on the machine changes from minute to minute."""
    name = "burner-h1"
    before, burning = burned(fleet, burner), 0.0
    idle, busy = [], []
    for _ in range(TURNS):
        fleet.cli("pause-vm", name)
        idle += [list_vms(fleet) for _ in range(ROUNDS)]
        fleet.cli("resume-vm", name)
        begun = time.monotonic()
        busy += [list_vms(fleet) for _ in range(ROUNDS)]
        burning += time.monotonic() - begun
    share = (burned(fleet, burner) - before) / burning
    medians = statistics.median(idle), statistics.median(busy)
    print(f"list-vms: {medians[0]:.3f} s idle, {medians[1]:.3f} s while a guest uses {share:.2f} of the agent's core")
    assert share > 0.3, share  # the control: it does burn, on the agent's own processor
    assert medians[1] <= 2 * medians[0]
    assert fleet.show(name, 0)["state"] == "running"  # with all its memory, and alive
