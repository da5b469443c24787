"""What a host and a VM take of the broker: memory and connections, with so many hosts, and so many VMs.

Hosts are real agents. VMs are what real agents make of them in the broker: a binding each, and a row in their host's
last word; for a while after its create, a claim. A client makes those, so that it takes minutes and not hours.
"""

import asyncio
import string
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import islice, pairwise, product
from pathlib import Path
from typing import Any

import msgspec
import pika

from aetherscale_agent.broker import Connection
from aetherscale_bench import node
from aetherscale_bench.figures import Result, Sample, Target
from aetherscale_protocol import topology
from aetherscale_protocol.answers import KnownVms, VmDetails
from aetherscale_protocol.names import host_queue, vm_key
from aetherscale_protocol.settings import BrokerSettings
from aetherscale_protocol.topology import EXCHANGE, Binding
from aetherscale_testing.broker import TestBroker
from aetherscale_testing.certificates import Authority
from aetherscale_testing.swarm import Swarm

HOSTS = (0, 100, 300, 1000)
TLS_HOSTS = (0, 100, 200, 300)
VMS = (0, 10, 30, 100)
"""Of each of the thousand hosts: 100,000 in the end."""
CLAIMS = 2000
PROCESSES = 2


@dataclass(frozen=True)
class Taken:
    """What the broker has."""

    count: int  #: of hosts, VMs or claims
    memory: float  #: MiB
    connections: int = 0

    def but_of(self, count: int) -> "Taken":
        """The same, taken as the beginning of something else."""
        return replace(self, count=count)


def measure(runs: int) -> Result:  # noqa: ARG001 (what it takes is the same every time)
    """KiB for each host, VM and claim: the slope between two sizes; MiB in all."""
    with node.node() as (broker, folder):
        facts = {"RabbitMQ": node.version(broker)}
        with growing(broker, folder, HOSTS, {}) as hosts:
            vms = [hosts[-1].but_of(0)]
            for fewer, more in pairwise(VMS):
                asyncio.run(make_vms(broker, fewer, more))
                vms.append(look(broker, more * HOSTS[-1]))
            claims = [Taken(0, node.erlang_mib(broker)), claim(broker)]
    secured = with_tls()
    totals = [total(one, "hosts, no VM") for one in hosts] + [total(one, "VMs on 1,000 hosts") for one in vms[1:]]
    totals += [total(one, "hosts over TLS, no VM") for one in secured]
    opened = [slopes([one.connections for one in some], some) for some in (hosts, secured)]
    per_host = Sample("connections for each host", "", opened[0] + opened[1])
    samples = (
        *totals,
        per_one(hosts, "host"),
        per_one(secured, "host over TLS"),
        per_host,
        per_one(vms, "VM"),
        per_one(claims, "claim"),
    )
    off = max(abs(value - 2) for value in per_host.values)
    return Result("broker", samples, (Target("connections for each host: two, and none more or fewer", off, 0),), facts)


def with_tls() -> list[Taken]:
    """What a broker has of hosts that come over TLS, as all do that site.yml sets up."""
    with tempfile.TemporaryDirectory() as name:
        authority = Authority(Path(name))
        with node.node(authority.broker("127.0.0.1")) as (broker, folder):
            url = broker.url(port=broker.tls_port).replace("amqp:", "amqps:")
            settings = {"broker": {"url": url, "ca_file": str(authority.ca)}}
            with growing(broker, folder, TLS_HOSTS, settings) as hosts:
                return hosts


@contextmanager
def growing(broker: TestBroker, folder: Path, sizes: Sequence[int], settings: dict[str, Any]) -> Iterator[list[Taken]]:
    """What the broker has with each of these numbers of hosts; the last of them are there until the block ends."""
    with ExitStack() as stack:
        taken = [look(broker, sizes[0])]
        for fewer, more in pairwise(sizes):
            hosts = {f"h{number:04}": settings for number in range(fewer, more)}
            stack.enter_context(Swarm(broker, folder / str(more), hosts, PROCESSES))
            taken.append(look(broker, more))
        yield taken


def look(broker: TestBroker, count: int) -> Taken:
    """What the broker has now."""
    return Taken(count, node.memory_mib(broker), node.connections(broker))


def vm_ids() -> Iterator[str]:
    """As many ids as are needed, always the same."""
    return ("vm" + "".join(letters) for letters in product(string.ascii_lowercase, repeat=6))


async def make_vms(broker: TestBroker, fewer: int, more: int) -> None:
    """Give each host more VMs than it had: bound, and told of in its last word."""
    connection = await Connection.open(BrokerSettings(url=broker.url()), name="bench", heartbeat_s=60)
    channel = await connection.channel()
    for number in range(HOSTS[-1]):
        host = f"h{number:04}"
        ids = list(islice(vm_ids(), number * VMS[-1], number * VMS[-1] + more))
        await channel.bind_all([Binding(EXCHANGE, host_queue(host), vm_key(vm_id)) for vm_id in ids[fewer:]])
        rows = [
            VmDetails(vm_id=vm_id, state="running", image="debian-13", cpus=2, memory=2048, disk=20, since=1.7e9)
            for vm_id in ids
        ]
        queue = topology.known(host)
        await channel.declare_queue(queue)
        body = msgspec.json.encode(KnownVms(host=host, time=1.7e9, vms=rows))
        channel.send(queue.name, body, pika.BasicProperties(delivery_mode=2), exchange="")
    connection.drop("done")


def claim(broker: TestBroker) -> Taken:
    """Claim ids, as creates do. Rss is too coarse for so few."""
    parameters = pika.ConnectionParameters("127.0.0.1", broker.port, heartbeat=600)
    with pika.BlockingConnection(parameters) as connection:
        channel = connection.channel()
        for vm_id in islice(vm_ids(), CLAIMS):
            queue = topology.claim(vm_id, "h0000")
            channel.queue_declare(queue.name, durable=True, arguments=queue.arguments)
    return Taken(CLAIMS, node.erlang_mib(broker))


def total(taken: Taken, what: str) -> Sample:
    """MiB in all."""
    return Sample(f"broker with {taken.count:,} {what}", "MiB", (round(taken.memory, 1),))


def per_one(steps: Sequence[Taken], what: str) -> Sample:
    """KiB for each, between one size and the next."""
    return Sample(f"memory for each {what}", "KiB", slopes([one.memory * 1024 for one in steps], steps))


def slopes(values: Sequence[float], steps: Sequence[Taken]) -> tuple[float, ...]:
    """By how much a value grows for each host, VM or claim that is added."""
    rows = pairwise(zip(values, steps, strict=True))
    return tuple(round((more - less) / (many.count - few.count), 3) for (less, few), (more, many) in rows)
