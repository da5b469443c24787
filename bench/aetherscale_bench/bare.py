"""A thousand hosts' queues, classic or quorum, each with a bare consumer: what list-vms costs with either type.

No agents: what consumes answers with nothing, so that queues are what differs. Each type has a broker of its own, and
both are there at once, so that lists are timed in turn. A type's consumers share one process and a few connections.
"""

import asyncio
import contextlib
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pika

from aetherscale_agent.broker import BrokerLost, Connection, Declined, Delivery
from aetherscale_agent.session import HOST_PREFETCH
from aetherscale_bench import node
from aetherscale_bench.asking import Asker, asking
from aetherscale_bench.figures import Sample
from aetherscale_bench.timing import in_turn
from aetherscale_protocol import topology
from aetherscale_protocol.settings import BrokerSettings
from aetherscale_protocol.topology import EXCHANGE, Queue
from aetherscale_testing.broker import TestBroker

HOSTS = 1000
CONNECTIONS = 20
"""That consumers share; each has a channel of its own."""
PARTS = 10
"""In which the queues are declared, so that it is seen whether it takes ever longer."""
REST_S = 0.2
"""After a list: the broker gets the acknowledgements, and the other one's turn is not disturbed."""
TYPES = ("classic", "quorum")
RESTARTS, LIMIT_S = 3, 120.0
COMMAND = "list-vms"


def queue_of(number: int, kind: str) -> Queue:
    """A host's queue, but for its type."""
    queue = topology.host_queue(f"h{number:04}")
    return Queue(queue.name, queue.arguments | {"x-queue-type": kind})


@dataclass
class Crowd:
    """The consumers of a type, on their own broker."""

    kind: str
    broker: TestBroker
    attended: Any = field(default_factory=lambda: multiprocessing.get_context("spawn").Value("i", 0))
    cpu: list[float] = field(default_factory=list)  #: ms of the broker, for each list
    memory: list[Sample] = field(default_factory=list)

    def declare(self) -> Sample:
        """Declare and bind all queues, one after the other, as each is by its own host."""
        self.weigh("without hosts' queues")
        took: list[float] = []
        with pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", self.broker.port, heartbeat=0)) as opened:
            channel = opened.channel()
            channel.exchange_declare(EXCHANGE, "direct", durable=True)
            for part in range(PARTS):
                begin = time.monotonic()
                for number in range(part, HOSTS, PARTS):
                    queue = queue_of(number, self.kind)
                    channel.queue_declare(queue.name, durable=True, arguments=queue.arguments)
                    channel.queue_bind(queue.name, EXCHANGE, COMMAND)
                took.append(round(time.monotonic() - begin, 2))
        return Sample(f"declare and bind {HOSTS // PARTS} of {HOSTS:,} hosts' queues, {self.kind}", "s", tuple(took))

    @contextmanager
    def consuming(self) -> Iterator[None]:
        """Consume all of them meanwhile."""
        arguments = (self.broker.url(), self.attended)
        process = multiprocessing.get_context("spawn").Process(target=consume, args=arguments, daemon=True)
        process.start()
        try:
            if not self.wait(HOSTS):
                raise TimeoutError(f"{self.attended.value} of {HOSTS} {self.kind} queues are consumed")
            self.weigh(f"with {HOSTS:,} of them consumed")
            yield
        finally:
            process.kill()
            process.join()

    def wait(self, count: int) -> bool:
        """Wait until so many queues are consumed; whether they were within LIMIT_S."""
        limit = time.monotonic() + LIMIT_S
        while self.attended.value != count and time.monotonic() < limit:
            time.sleep(0.01)
        return bool(self.attended.value == count)

    def weigh(self, when: str) -> None:
        """Note what the broker takes."""
        self.memory.append(
            Sample(f"memory of the broker {when}, {self.kind}", "MiB", (round(node.memory_mib(self.broker), 1),))
        )

    def ask(self, client: Asker) -> float:
        """ms from publish to the last answer."""
        before = node.cpu_s(self.broker)
        last = client.ask(COMMAND, HOSTS).times[-1]
        time.sleep(REST_S)
        self.cpu.append(round((node.cpu_s(self.broker) - before) * 1000))
        return last

    def recover(self) -> float:
        """Kill the broker; seconds from its start until all queues are consumed and all answer, or LIMIT_S."""
        self.broker.stop(hard=True)
        self.wait(0)
        begin = time.monotonic()
        self.broker.launch()
        if not self.wait(HOSTS):
            return LIMIT_S
        with asking(self.broker) as client:
            client.ask(COMMAND, HOSTS)
        return round(time.monotonic() - begin, 2)


def measure(runs: int) -> list[Sample]:
    """s to declare, ms from publish to the last answer, MiB and CPU of the broker, s after it was killed."""
    with ExitStack() as stack:
        crowds = [Crowd(kind, stack.enter_context(node.node())[0]) for kind in TYPES]
        declared = [one.declare() for one in crowds]
        for one in crowds:
            stack.enter_context(one.consuming())
        with ExitStack() as clients:
            name = f"{COMMAND}, publish to last of {HOSTS:,} bare consumers' answers"
            timers = {}
            for one in crowds:
                client = clients.enter_context(asking(one.broker))
                timers[f"{name}, {one.kind}"] = partial(one.ask, client)
            lists = in_turn(timers, runs)
        for one in crowds:
            one.weigh(f"after {runs} lists")
        cpu = [Sample(f"CPU of the broker for it, {one.kind}", "ms", tuple(one.cpu[1:])) for one in crowds]
        weights = [sample for both in zip(*(one.memory for one in crowds), strict=True) for sample in both]
        name = f"kill -9 and start, to {HOSTS:,} queues consumed and {COMMAND} answered ({LIMIT_S:.0f}: never)"
        back = [Sample(f"{name}, {one.kind}", "s", tuple(one.recover() for _ in range(RESTARTS))) for one in crowds]
    return [*declared, *lists, *cpu, *weights, *back]


def consume(url: str, attended: Any) -> None:
    """Be all consumers of a broker, until killed; `attended` counts those that consume."""

    async def attend_all() -> None:
        shares = [range(first, HOSTS, CONNECTIONS) for first in range(CONNECTIONS)]
        await asyncio.gather(*(keep_attending(url, share, attended) for share in shares))

    asyncio.run(attend_all())


async def keep_attending(url: str, share: range, attended: Any) -> None:
    """Consume these hosts' queues on one connection, and again when it is lost: from the first moment on, as agents."""
    while True:
        with contextlib.suppress(BrokerLost, Declined):
            connection = await Connection.open(BrokerSettings(url=url), name="bench", heartbeat_s=60)
            try:
                for number in share:
                    channel = await connection.channel()
                    await channel.prefetch(HOST_PREFETCH)
                    await channel.consume(topology.host_queue(f"h{number:04}").name, answer)
                attended.value += len(share)
                await connection.lost
                attended.value -= len(share)
            finally:
                connection.drop("again")
        await asyncio.sleep(0.1)


def answer(delivery: Delivery) -> None:
    """Answer with nothing, and acknowledge."""
    properties = pika.BasicProperties(correlation_id=delivery.properties.correlation_id)
    delivery.channel.send(delivery.properties.reply_to, b"", properties, exchange="")
    delivery.channel.ack(delivery)
