"""How fast bytes go through the broker, and what commands feel of it.

A broker and an agent on this machine; the guest's ports are servers on the loopback, and the CLI is a process.
"""

import os
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from aetherscale_bench import node
from aetherscale_bench.figures import Result, Sample
from aetherscale_bench.fleet import CLI
from aetherscale_bench.timing import milliseconds
from aetherscale_testing import peers
from aetherscale_testing.client import SeedClient
from aetherscale_testing.fleet import fleet

MB = 1_000_000
SIZE_MB = 200
QUIET_LISTS = 100
FLOWS_AFTER_S = 0.5
FROM_GUEST, TO_GUEST = 1, 2
"""The guest's ports: one gives, one takes."""


def measure(runs: int) -> Result:
    """MB/s in both directions, and ms of list-vms while bytes flow and while none do."""
    facts: dict[str, Any] = {"MB of each run": SIZE_MB}
    data = os.urandom(SIZE_MB * MB)
    with (
        node.node() as (broker, folder),
        fleet(broker, folder) as agents,
        peers.listening(peers.give(data)) as giver,
        peers.listening(peers.take) as taker,
        SeedClient(broker.address) as client,
    ):
        facts["RabbitMQ"] = node.version(broker)
        agents.add("h1", "tiny", **{"guest-ports": {str(FROM_GUEST): giver.port, str(TO_GUEST): taker.port}})
        agents.wait_ready()
        (made,) = client.ask("create-vm", 1, image="tiny")
        tunnel = Tunnel(made["response"]["vm-id"], folder, broker.address)
        tunnel.source.write_bytes(data)
        samples = [Sample("list-vms, nothing else going on", "ms", tuple(listed(client) for _ in range(QUIET_LISTS)))]
        for what, port, peer in (("from the guest", FROM_GUEST, giver), ("to the guest", TO_GUEST, taker)):
            rates = tuple(tunnel.transfer(port, peer) for _ in range(runs))
            samples.append(Sample(f"tunnel-vm, {what}", "MB/s", rates))
            busy = [ms for _ in range(runs) for ms in beside(client, partial(tunnel.transfer, port, peer))]
            samples.append(Sample(f"list-vms while bytes go {what}", "ms", tuple(busy)))
    return Result("streams", tuple(samples), (), facts)


class Tunnel:
    """The CLI's `tunnel-vm` to one VM."""

    def __init__(self, vm_id: str, folder: Path, address: str) -> None:
        self.source = folder / "data"
        self._vm_id = vm_id
        self._env = {**os.environ, "RABBITMQ_HOST": address, "HOME": str(folder)}

    def transfer(self, port: int, peer: peers.Peer) -> float:
        """One run through it; MB/s, from the guest's accepting to its last byte."""
        peer.done.clear()
        with self.source.open("rb") as source:
            stdin = source if port == TO_GUEST else subprocess.DEVNULL
            argv = [CLI, "tunnel-vm", self._vm_id, str(port)]
            subprocess.run(argv, env=self._env, stdin=stdin, stdout=subprocess.DEVNULL, check=True)
        peer.done.wait(10)
        return round(peer.count / MB / peer.seconds, 1)


def listed(client: SeedClient) -> float:
    """How long list-vms takes, from publish to answer, in ms."""
    return round(milliseconds(lambda: client.ask("list-vms", 1)), 3)


def beside(client: SeedClient, work: Callable[[], object]) -> list[float]:
    """Listings, one after the other, while something else goes on."""
    found = []
    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(FLOWS_AFTER_S)
    while thread.is_alive():
        found.append(listed(client))
    thread.join()
    return found
