"""list-vms of a thousand hosts: real agents, each with its own two connections, on one private broker."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from aetherscale_bench import node
from aetherscale_bench.asking import Asker, asking
from aetherscale_bench.figures import Result, Sample, Target, ratio
from aetherscale_testing.broker import TestBroker
from aetherscale_testing.swarm import Swarm, remember

HOSTS, VMS = 1000, 10
PROCESSES = 2
LIMIT_MS = 400
FLAT = 1.05
REST_S = 0.3
"""Between two lists: whoever lists has read the last one."""


def measure(runs: int) -> Result:
    """ms from publish to answers; MiB of all agents' processes, and of the broker."""
    facts: dict[str, Any] = {"hosts": HOSTS, "VMs": HOSTS * VMS, "processes": PROCESSES}
    hosts = {f"h{number:04}": {"vms": VMS} for number in range(HOSTS)}
    with node.node() as (broker, folder):
        facts["RabbitMQ"] = node.version(broker)
        remember(broker, list(hosts))
        with Swarm(broker, folder, hosts, PROCESSES) as swarm, asking(broker) as client:
            lists(client, 3, {})
            cpu = {"agents": swarm.cpu, "broker": lambda: node.cpu_s(broker)}
            seen, parts = [memory(swarm, broker, "before")], []
            for part in (1, 2):
                parts.append(lists(client, runs // 2, cpu))
                seen.append(memory(swarm, broker, f"after {part * (runs // 2)} lists"))
    samples = [Sample(one.name, one.unit, one.values + other.values) for one, other in zip(*parts, strict=True)]
    memories = [sample for pair in seen for sample in pair]
    return Result("scale", (*samples, *memories), tuple(targets(samples[0], *seen[1:])), facts)


def lists(client: Asker, count: int, cpu: Mapping[str, Callable[[], float]]) -> list[Sample]:
    """Ask so often; when the last, the middle and the first answer came, in ms; and what CPU that took.

    :raise RuntimeError: when a VM is missing.
    """
    rows: list[list[float]] = []
    for _ in range(count):
        time.sleep(REST_S)
        clocks = [time.process_time, *cpu.values()]
        before = [clock() for clock in clocks]
        asked = client.ask("list-vms", HOSTS)
        spent = [round((clock() - begin) * 1000) for clock, begin in zip(clocks, before, strict=True)]
        rows.append([*(round(asked.times[at], 1) for at in (HOSTS - 1, HOSTS // 2, 0)), *spent])
        there = {vm for response in asked.responses for vm in response}
        if len(there) != HOSTS * VMS:
            raise RuntimeError(f"{len(there)} of {HOSTS * VMS} VMs were listed")
    answers = (f"last of {HOSTS:,} answers", "half of the answers", "first answer")
    names = [f"list-vms, publish to {what}" for what in answers]
    names += [f"CPU of the {what}, all cores, meanwhile" for what in ("client", *cpu)]
    return [Sample(name, "ms", tuple(values)) for name, values in zip(names, zip(*rows, strict=True), strict=True)]


def memory(swarm: Swarm, broker: TestBroker, when: str) -> tuple[Sample, Sample]:
    """Of the agents and of the broker, in MiB."""
    return (
        Sample(f"Rss of all agents, {when}", "MiB", (round(swarm.memory(), 1),)),
        Sample(f"memory of the broker, {when}", "MiB", (round(node.memory_mib(broker), 1),)),
    )


def targets(last: Sample, half: Sequence[Sample], whole: Sequence[Sample]) -> Iterator[Target]:
    """The last answer in time, and flat memory: what the first lists make each process take is taken once."""
    yield Target(f"{last.name}: at most {LIMIT_MS} ms", last.median, LIMIT_MS)
    for one, other in zip(half, whole, strict=True):
        what = one.name.rpartition(",")[0]
        yield Target(f"{what} after all lists: at most {FLAT} × that after half of them", ratio(other, one), FLAT)
