"""A RabbitMQ of the benchmark's own, with room for a thousand hosts, and what it takes."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aetherscale_testing import swarm
from aetherscale_testing.broker import TestBroker, private_broker

SHM = Path("/dev/shm")


@contextmanager
def node() -> Iterator[tuple[TestBroker, Path]]:
    """A broker, and a folder in memory for agents: the disks of a whole fleet are not this machine's one disk."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-", dir=SHM if SHM.is_dir() else None) as folder,
        private_broker(swarm.BROKER) as broker,
    ):
        yield broker, Path(folder)


def version(broker: TestBroker) -> str:
    """RabbitMQ's."""
    return broker.ctl("version").strip()


def memory_mib(broker: TestBroker) -> float:
    """What the broker has allocated, garbage collected, in MiB."""
    broker.ctl("force_gc")
    return int(broker.ctl("eval", "erlang:memory(total).")) / (1 << 20)


def connections(broker: TestBroker) -> int:
    """How many it has."""
    return int(broker.ctl("eval", "length(rabbit_networking:connections())."))
