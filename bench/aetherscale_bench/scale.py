"""list-vms of a thousand hosts: real agents, each with its own two connections, on one private broker."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from aetherscale_bench import node
from aetherscale_bench.asking import Asker, asking
from aetherscale_bench.figures import Result, Sample, Target
from aetherscale_testing.swarm import Swarm, remember

HOSTS, VMS = 1000, 10
PROCESSES = 2
LIMIT_MS = 400
GROWTH_KIB = {"agents": 30, "broker": 500}
"""What each of the later lists may leave: in all agents, 30 bytes in each; in the broker, half a KiB for each host."""
REST_S = 0.3
"""Between two lists: whoever lists has read the last one."""

Gauges = Mapping[str, Callable[[], float]]


def measure(runs: int) -> Result:
    """ms from publish to answers; MiB of all agents' processes, and of the broker."""
    facts: dict[str, Any] = {"hosts": HOSTS, "VMs": HOSTS * VMS, "processes": PROCESSES}
    hosts = {f"h{number:04}": {"vms": VMS} for number in range(HOSTS)}
    with node.node() as (broker, folder):
        facts["RabbitMQ"] = node.version(broker)
        remember(broker, list(hosts))
        with Swarm(broker, folder, hosts, PROCESSES) as swarm, asking(broker) as client:
            cpu: Gauges = {"client": time.process_time, "agents": swarm.cpu, "broker": partial(node.cpu_s, broker)}
            memory: Gauges = {"agents": swarm.memory, "broker": partial(node.rss_mib, broker)}
            lists(client, 3, cpu, memory)
            samples = lists(client, runs, cpu, memory)
    growths = [growth(sample, who) for sample, who in zip(samples[-len(memory) :], memory, strict=True)]
    return Result("scale", (*samples, *growths), tuple(targets(samples[0], growths)), facts)


def lists(client: Asker, count: int, cpu: Gauges, memory: Gauges) -> list[Sample]:
    """Ask so often; when the last, the middle and the first answer came; what CPU that took, and memory after it.

    :raise RuntimeError: when a VM is missing.
    """
    rows: list[list[float]] = []
    for _ in range(count):
        time.sleep(REST_S)
        before = [clock() for clock in cpu.values()]
        asked = client.ask("list-vms", HOSTS)
        spent = [round((clock() - begin) * 1000) for clock, begin in zip(cpu.values(), before, strict=True)]
        taken = [round(gauge(), 2) for gauge in memory.values()]
        rows.append([*(round(asked.times[at], 1) for at in (HOSTS - 1, HOSTS // 2, 0)), *spent, *taken])
        there = {vm for response in asked.responses for vm in response}
        if len(there) != HOSTS * VMS:
            raise RuntimeError(f"{len(there)} of {HOSTS * VMS} VMs were listed")
    answers = (f"last of {HOSTS:,} answers", "half of the answers", "first answer")
    heads = [(f"list-vms, publish to {what}", "ms") for what in answers]
    heads += [(f"CPU of the {who}, all cores, meanwhile", "ms") for who in cpu]
    heads += [(f"memory (Rss) of the {who}, after each list", "MiB") for who in memory]
    return [Sample(*head, tuple(values)) for head, values in zip(heads, zip(*rows, strict=True), strict=True)]


def growth(memory: Sample, who: str) -> Sample:
    """KiB that each list leaves: the slope (least squares) over the last two thirds of them.

    What the first lists make each process take is taken once.
    """
    later = memory.values[len(memory.values) // 3 :]
    slope = statistics.linear_regression(range(len(later)), later).slope * 1024
    return Sample(f"memory that each of the last {len(later)} lists leaves in the {who}", "KiB", (round(slope, 1),))


def targets(last: Sample, growths: Sequence[Sample]) -> Iterator[Target]:
    """The last answer in time, and memory that does not grow."""
    yield Target(f"{last.name}: at most {LIMIT_MS} ms", last.median, LIMIT_MS)
    for sample, limit in zip(growths, GROWTH_KIB.values(), strict=True):
        yield Target(f"{sample.name}: at most {limit} KiB", sample.median, limit)
