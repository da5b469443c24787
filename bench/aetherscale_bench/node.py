"""A RabbitMQ of the benchmark's own, with room for a thousand hosts, and what it takes."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aetherscale_testing import swarm
from aetherscale_testing.broker import TestBroker, private_broker
from aetherscale_testing.memory import memory_of
from aetherscale_testing.recovery import cpu_seconds

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


def pid(broker: TestBroker) -> int:
    """Of the Erlang machine itself."""
    return int(Path(broker.environ["RABBITMQ_PID_FILE"]).read_text())


def cpu_s(broker: TestBroker) -> float:
    """What it has used of the CPU."""
    return cpu_seconds(pid(broker))


def memory_mib(broker: TestBroker) -> float:
    """The Rss of the broker, its garbage collected, in MiB: what it holds against its watermark.

    Not Erlang's own count, which says 8 MiB for each host: that has, for each connection, a buffer as large as what the
    kernel would let a connection on the loopback send at once (4 MiB), of which next to nothing is ever touched.
    """
    broker.ctl("force_gc")
    return memory_of(pid(broker))["Rss"]


def erlang_mib(broker: TestBroker) -> float:
    """What the broker has allocated by Erlang's count, in MiB: for little things that are no connections."""
    broker.ctl("force_gc")
    return int(broker.ctl("eval", "erlang:memory(total).")) / (1 << 20)


def connections(broker: TestBroker) -> int:
    """How many it has."""
    return int(broker.ctl("eval", "length(rabbit_networking:connections())."))
