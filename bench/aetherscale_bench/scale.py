"""list-vms of a thousand hosts: real agents, each with its own two connections, on one private broker."""

import time
from collections.abc import Iterator, Sequence

from aetherscale_bench import node
from aetherscale_bench.asking import Asker, asking
from aetherscale_bench.figures import Result, Sample, Target, machine, ratio
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
    facts = machine() | {"hosts": HOSTS, "VMs": HOSTS * VMS, "processes": PROCESSES}
    hosts = {f"h{number:04}": {"vms": VMS} for number in range(HOSTS)}
    with node.node() as (broker, folder):
        facts["RabbitMQ"] = node.version(broker)
        remember(broker, list(hosts))
        with Swarm(broker, folder, hosts, PROCESSES) as swarm, asking(broker) as client:
            lists(client, 3)
            before = memory(swarm, broker, "before")
            times = lists(client, runs)
            after = memory(swarm, broker, f"after {runs} lists")
    first, half, last = (Sample(name, "ms", tuple(row)) for name, row in zip(NAMES, times, strict=True))
    return Result("scale", (first, half, last, *before, *after), tuple(targets(last, before, after)), facts)


NAMES = (
    "list-vms, publish to first answer",
    "list-vms, publish to half of the answers",
    f"list-vms, publish to last of {HOSTS:,} answers",
)


def lists(client: Asker, count: int) -> list[list[float]]:
    """Ask so often; when the first, the middle and the last answer came, in ms.

    :raise RuntimeError: when a VM is missing.
    """
    times: list[list[float]] = [[], [], []]
    for _ in range(count):
        time.sleep(REST_S)
        asked = client.ask("list-vms", HOSTS)
        there = {vm for response in asked.responses for vm in response}
        if len(there) != HOSTS * VMS:
            raise RuntimeError(f"{len(there)} of {HOSTS * VMS} VMs were listed")
        for row, at in zip(times, (0, HOSTS // 2, HOSTS - 1), strict=True):
            row.append(round(asked.times[at], 1))
    return times


def memory(swarm: Swarm, broker: TestBroker, when: str) -> tuple[Sample, Sample]:
    """Of the agents and of the broker, in MiB."""
    return (
        Sample(f"Rss of all agents, {when}", "MiB", (round(swarm.memory(), 1),)),
        Sample(f"memory of the broker, {when}", "MiB", (round(node.memory_mib(broker), 1),)),
    )


def targets(last: Sample, before: Sequence[Sample], after: Sequence[Sample]) -> Iterator[Target]:
    """The last answer in time, and flat memory."""
    yield Target(f"{last.name}: at most {LIMIT_MS} ms", last.median, LIMIT_MS)
    for one, other in zip(before, after, strict=True):
        what = one.name.rpartition(",")[0]
        yield Target(f"{what} after all lists: at most {FLAT} × that before", ratio(other, one), FLAT)
