"""What an agent takes of its host: memory and CPU while nothing is asked of it, without VMs and with 100 that run.

The agent of a host as site.yml sets it up, over real QEMUs. The guests are boot sectors that do nothing: 100 kernels
under TCG would leave no CPU to measure in.
"""

import time

from aetherscale_bench.asking import asking_at, vm_of
from aetherscale_bench.create import HOST, alone
from aetherscale_bench.figures import Result, Sample, Target
from aetherscale_bench.fleet import Fleet
from aetherscale_testing import guests
from aetherscale_testing.memory import read_rollup

VMS, AT_ONCE = 100, 5
UNIT = "aetherscale-agent.service"
SETTLE_S, WATCH_S = 15, 30
LIMITS_MIB = {0: 40e6 / (1 << 20), VMS: 60e6 / (1 << 20)}
CPU_PERCENT = 0.2
SPEC = {"image": guests.POLITE, "memory": 64, "disk": 1}


def measure(fleet: Fleet, runs: int) -> Result:
    """MiB (the kernel's smaps_rollup) and percents of one core (its schedstat)."""
    fleet.give_sectors(HOST)
    samples = watch(fleet, 0, runs)
    with alone(fleet), asking_at(fleet.target()) as client:
        made = [vm_of(answer) for answer in client.ask_each("create-vm", [SPEC] * VMS, AT_ONCE).answers]
    try:
        samples += watch(fleet, VMS, runs)
    finally:
        fleet.cli("delete-vm", *made)
    targets = []
    for vms, (memory, cpu) in zip(LIMITS_MIB, (samples[:2], samples[2:]), strict=True):
        targets.append(Target(f"{memory.name}: at most {LIMITS_MIB[vms]:.1f} MiB", memory.median, LIMITS_MIB[vms]))
        targets.append(Target(f"{cpu.name}: under {CPU_PERCENT} % of a core", cpu.median, CPU_PERCENT))
    return Result("agent", tuple(samples), tuple(targets), {"host": f"{HOST}, Debian 13", "s each": WATCH_S})


def watch(fleet: Fleet, vms: int, runs: int) -> list[Sample]:
    """Memory and CPU of an agent of which nothing is asked."""
    time.sleep(SETTLE_S)
    pid = fleet.run(HOST, "systemctl", "show", "--property=MainPID", "--value", UNIT).strip()
    memory, cpu = [], []
    for _ in range(runs):
        before = cpu_ns(fleet, pid)
        begin = time.monotonic()
        time.sleep(WATCH_S)
        took = time.monotonic() - begin
        cpu.append(round((cpu_ns(fleet, pid) - before) / took / 1e7, 4))
        memory.append(read_rollup(fleet.run(HOST, "cat", f"/proc/{pid}/smaps_rollup"))["Rss"])
    what = f"{vms} VMs that run" if vms else "no VMs"
    return [
        Sample(f"Rss, {what}, nothing asked", "MiB", tuple(memory)),
        Sample(f"CPU, {what}, nothing asked", "%", tuple(cpu)),
    ]


def cpu_ns(fleet: Fleet, pid: str) -> int:
    """What all threads of a process have used of the CPU."""
    return sum(
        int(line.split()[0]) for line in fleet.run(HOST, "sh", "-c", f"cat /proc/{pid}/task/*/schedstat").splitlines()
    )
