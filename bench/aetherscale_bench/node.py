"""A RabbitMQ of the benchmark's own, with room for a thousand hosts, and what it takes."""

import contextlib
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aetherscale_testing import swarm
from aetherscale_testing.broker import START_TIMEOUT_S, TestBroker, private_broker
from aetherscale_testing.memory import memory_of
from aetherscale_testing.recovery import cpu_seconds

SHM = Path("/dev/shm")


@contextmanager
def node(certificate: bytes = b"") -> Iterator[tuple[TestBroker, Path]]:
    """A broker, and a folder in memory for agents: the disks of a whole fleet are not this machine's one disk.

    :param certificate: with its key, for a second listener, with TLS.
    """
    with (
        tempfile.TemporaryDirectory(prefix="bench-", dir=SHM if SHM.is_dir() else None) as folder,
        private_broker(swarm.BROKER, certificate=certificate) as broker,
    ):
        yield broker, Path(folder)


def version(broker: TestBroker) -> str:
    """RabbitMQ's."""
    return broker.ctl("version").strip()


def wait_until_listening(broker: TestBroker) -> None:
    """Return when a broker that was launched accepts connections.

    :raise TimeoutError: when it does not.
    """
    limit = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < limit:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", broker.port)):
            return
        time.sleep(0.01)
    raise TimeoutError("the broker does not come back")


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
    return rss_mib(broker)


def rss_mib(broker: TestBroker) -> float:
    """The same with its garbage, as it happens to be."""
    return memory_of(pid(broker))["Rss"]


def erlang_mib(broker: TestBroker) -> float:
    """What the broker has allocated by Erlang's count, in MiB: for little things that are no connections."""
    broker.ctl("force_gc")
    return int(broker.ctl("eval", "erlang:memory(total).")) / (1 << 20)


def connections(broker: TestBroker) -> int:
    """How many it has."""
    return int(broker.ctl("eval", "length(rabbit_networking:connections())."))
