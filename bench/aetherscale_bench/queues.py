"""Which type queues should have, classic or quorum: that of creates, side by side on one broker; hosts' (`bare`).

What an agent does with the first for each create, each timed to the broker's word that it is done: subscribe anew with
another priority, publish with a confirm, acknowledge with a barrier; how long a create takes from publish to delivery;
and whether creates come back after the broker was killed.
"""

import contextlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pika

from aetherscale_bench import bare, node
from aetherscale_bench.figures import Result, Sample
from aetherscale_bench.timing import side_by_side
from aetherscale_protocol import topology
from aetherscale_testing.broker import TestBroker

CONSUMERS = 200
"""Other hosts that consume it, too."""
TYPES = ("classic", "quorum")
NEW, USED = "new queues", "used queues"
BOOTS = {1: 8, 10: 5}
"""How often a broker with new queues is killed, by how many clients each of them has."""
LIMIT_S = 15.0
"""How long a queue is tried after the broker came back."""


@dataclass
class Subject:
    """A queue of that type, with consumers of lower priority, and what was delivered from it to us."""

    kind: str
    channel: Any
    tag: str = ""
    priority: int = 1000
    delivered: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Of the queue."""
        return f"creates-{self.kind}"

    def declare(self) -> None:
        """Declare it as agents do, but for its type."""
        arguments = topology.SHARED_QUEUES[0].arguments | {"x-queue-type": self.kind}
        self.channel.queue_declare(self.name, durable=True, arguments=arguments)
        self.channel.basic_qos(prefetch_count=1)
        self.channel.confirm_delivery()

    def subscribe(self) -> None:
        """Subscribe anew with another priority, as an agent does whose free memory has changed."""
        if self.tag:
            self.channel.basic_cancel(self.tag)
        self.priority += 1
        self.tag = self.channel.basic_consume(
            self.name, lambda _c, method, _p, _b: self._note(method), arguments={"x-priority": self.priority}
        )

    def publish(self) -> None:
        """Publish a create, durable, and wait for the broker's confirm."""
        self.channel.basic_publish("", self.name, b"{}", pika.BasicProperties(delivery_mode=2), mandatory=True)

    def receive(self) -> None:
        """Publish a create, and wait until it is delivered."""
        self.publish()
        while not self.delivered:
            self.channel.connection.process_data_events(1)

    def acknowledge(self) -> None:
        """Acknowledge what was delivered, and wait until the broker has it."""
        while not self.delivered:
            self.channel.connection.process_data_events(1)
        self.channel.basic_ack(self.delivered.pop())
        self.channel.queue_declare(self.name, passive=True)

    def _note(self, method: Any) -> None:
        self.delivered.append(method.delivery_tag)


def measure(runs: int) -> Result:
    """ms of what is done for each create; s until creates pass again after the broker was killed; a thousand queues."""
    facts: dict[str, Any] = {"other consumers": CONSUMERS}
    with node.node() as (broker, _folder):
        facts["RabbitMQ"] = node.version(broker)
        parameters = pika.ConnectionParameters("127.0.0.1", broker.port, heartbeat=600)
        connection, crowd = pika.BlockingConnection(parameters), pika.BlockingConnection(parameters)
        subjects = [Subject(kind, connection.channel()) for kind in TYPES]
        for subject in subjects:
            subject.declare()
            attend(crowd, subject.name)
        samples = compare(subjects, runs)
        crowd.close()
        connection.close()
        samples += recover(broker, USED, *max(BOOTS.items()))
    for clients, boots in BOOTS.items():
        with node.node() as (broker, _folder):
            samples += recover(broker, NEW, clients, boots)
    samples += bare.measure(max(1, runs // 4))
    return Result("queues", tuple(samples), (), facts)


def attend(crowd: pika.BlockingConnection, queue: str) -> None:
    """Consume a queue as all other hosts do: with lower priorities, one message each."""
    for priority in range(CONSUMERS):
        channel = crowd.channel()
        channel.basic_qos(prefetch_count=1)
        channel.basic_consume(queue, lambda *_: None, arguments={"x-priority": priority})


def compare(subjects: Sequence[Subject], runs: int) -> list[Sample]:
    """Each action on each type in turn."""
    for subject in subjects:
        subject.subscribe()
    samples: list[Sample] = []
    for what, action, after in (
        ("subscribe anew", Subject.subscribe, None),
        ("publish, to delivery", Subject.receive, Subject.acknowledge),
        ("publish, to confirm", Subject.publish, Subject.acknowledge),
    ):
        timed = {f"{what}, {one.kind}": partial(action, one) for one in subjects}
        untimed = {f"{what}, {one.kind}": partial(after, one) for one in subjects} if after else None
        samples += side_by_side(timed, runs, untimed)
    for one in subjects:
        one.receive()
    return samples + side_by_side(
        {f"acknowledge and barrier, {one.kind}": one.acknowledge for one in subjects},
        runs,
        {f"acknowledge and barrier, {one.kind}": one.receive for one in subjects},
    )


def recover(broker: TestBroker, which: str, clients: int, boots: int) -> list[Sample]:
    """Kill the broker, start it again; seconds from its return until creates pass through each queue; boots without.

    So many clients of each queue, which consume it when the broker is killed, try from the first moment on, as agents
    do: until all of them were let in, and have passed one.
    """
    took: dict[str, list[float]] = {kind: [] for kind in TYPES}
    for boot in range(boots + 1):  # before the first one they are let in
        if boot:
            broker.stop(hard=True)
            broker.launch()
        waiting = {kind: [threading.Event() for _ in range(clients)] for kind in TYPES}
        for kind, passed in ((kind, one) for kind, some in waiting.items() for one in some):
            threading.Thread(target=try_on, args=(broker, kind, passed), daemon=True).start()
        node.wait_until_listening(broker)
        begin = time.monotonic()
        for kind, some in waiting.items():
            there = [one.wait(max(0.0, begin + LIMIT_S - time.monotonic())) for one in some]
            if boot:
                took[kind].append(round(time.monotonic() - begin, 2) if all(there) else LIMIT_S)
        for passed in (one for some in waiting.values() for one in some):
            passed.set()  # who is still waiting gives up when the broker is killed
    who = f"{which}, {'one client' if clients == 1 else f'{clients} clients'}"
    name = f"kill -9 and start, from listening to delivery ({LIMIT_S:.0f}: not within these), {who}"
    times = [Sample(f"{name}, {kind}", "s", tuple(values)) for kind, values in took.items()]
    name = f"boots after which creates did not come back within {LIMIT_S:.0f} s, {who}"
    never = [Sample(f"{name}, {kind}", f"of {boots}", (values.count(LIMIT_S),)) for kind, values in took.items()]
    return times + never


def try_on(broker: TestBroker, kind: str, passed: threading.Event) -> None:
    """Try again and again to pass a create through a queue, and consume it then until the broker is gone.

    Some calls fail, others are never answered.
    """
    parameters = pika.ConnectionParameters("127.0.0.1", broker.port, heartbeat=600)
    while not passed.is_set():
        with contextlib.suppress(pika.exceptions.AMQPError), pika.BlockingConnection(parameters) as connection:
            subject = Subject(kind, connection.channel())
            subject.declare()
            subject.subscribe()
            subject.receive()
            passed.set()
            while True:
                connection.process_data_events(1)
        time.sleep(0.1)
