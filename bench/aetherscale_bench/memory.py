"""What an agent takes of its host's memory: one real agent over a fake hypervisor, started as a program.

It is not forked, so that its memory is its own; its VMs are in its journal when it starts.
"""

from pathlib import Path

from aetherscale_bench import node
from aetherscale_bench.figures import Result, Sample, Target
from aetherscale_testing.broker import TestBroker
from aetherscale_testing.client import SeedClient
from aetherscale_testing.fleet import fleet
from aetherscale_testing.memory import memory_of
from aetherscale_testing.recovery import give_vms

LISTS, CHANGES = 1000, 200
LIMITS_MIB = {0: 40e6 / (1 << 20), 100: 60e6 / (1 << 20)}
"""At the end of all that it was asked, by the VMs that it has; 40 and 60 MB."""
VMS = (0, 100, 1000)
ROOM = {"cpus": 10_000, "memory": 1 << 24, "disk": 1 << 20}


def measure(runs: int) -> Result:
    """MiB from the kernel's smaps_rollup: idle, after lists, and after VMs were created and deleted."""
    samples, targets = [], []
    with node.node() as (broker, folder):
        facts = {"RabbitMQ": node.version(broker)}
        for vms in VMS:
            rows = [work(broker, folder / f"{vms}-{run}", vms) for run in range(runs)]
            moments = ("idle", f"after {LISTS:,} list-vms", f"and {CHANGES} created and deleted")
            for number, when in enumerate(moments):
                samples.append(Sample(f"{vms:,} VMs, Rss {when}", "MiB", tuple(row[number]["Rss"] for row in rows)))
            samples.append(Sample(f"{vms:,} VMs, Pss at the end", "MiB", tuple(row[-1]["Pss"] for row in rows)))
            if limit := LIMITS_MIB.get(vms):
                worst = max(samples[-2].values)
                targets.append(Target(f"{samples[-2].name}: at most {limit:.1f} MiB", worst, limit))
    return Result("memory", tuple(samples), tuple(targets), facts)


def work(broker: TestBroker, folder: Path, vms: int) -> list[dict[str, float]]:
    """What one agent has of memory, before and after each kind of work."""
    with fleet(broker, folder) as agents, SeedClient(broker.address) as client:
        give_vms(agents.folder / "h1", vms)
        agent = agents.add("h1", "a", keep=True, heartbeat=5, **ROOM)
        agents.wait_ready()
        assert agent.process is not None
        found = [memory_of(agent.process.pid)]
        for _ in range(LISTS):
            (answer,) = client.ask("list-vms", 1)
            assert len(answer["response"]) == vms
        found.append(memory_of(agent.process.pid))
        for _ in range(CHANGES):
            (made,) = client.ask("create-vm", 1, image="a", memory=128, disk=1)
            (gone,) = client.ask("delete-vm", 1, vm_id=made["response"]["vm-id"])
            assert gone["response"]["status"] == "deleted"
        return [*found, memory_of(agent.process.pid)]
