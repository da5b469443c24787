"""A fleet of hundreds of real agents in a few processes: what it asks of a broker, on one machine.

Each agent is all of `main.serve_over`: its own two connections, state directory, journal and fake hypervisor. Those of
one process share its event loop, so that they share a core as that many processes would, but for the switches between
them; and its threads. What only sharing brings is taken away: the garbage collector passes over what was there
when all were up, as it would take a hundred times as long as that of a process with one agent.

    with private_broker(BROKER) as broker, Swarm(broker, folder, {"h0001": {"images": ["a"]}, …}) as swarm: …

run as a process: `python -m aetherscale_testing.swarm FILE`, a list of the settings of `agent`, and `vms` (how many
VMs run there from the beginning).
"""

import asyncio
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from signal import SIGUSR1
from types import TracebackType
from typing import Any, Self

import pika

from aetherscale_agent import main as agent_main
from aetherscale_protocol import topology
from aetherscale_testing import agent
from aetherscale_testing.broker import TestBroker
from aetherscale_testing.memory import memory_of
from aetherscale_testing.recovery import cpu_seconds, give_vms

BROKER = "vm_memory_high_watermark.absolute = 8GiB\n"
"""For brokers of a thousand hosts, on top of what `private_broker` says."""
START_EVERY_S = 0.01
"""How long each process waits between two agents' starts: the start is not what is measured."""
READY_S = 300.0
THREADS = 64
SETTLE_S = 3.0
"""How long after their start they are left alone: each tells the broker what it holds, and settles."""


class Swarm:
    """Agents by host, each with the settings of `agent`, in so many processes."""

    def __init__(
        self, broker: TestBroker, folder: Path, hosts: Mapping[str, dict[str, Any]], processes: int = 2
    ) -> None:
        self.broker = broker
        self.hosts = dict(hosts)
        self._folder = folder
        self._shares = [list(self.hosts)[number::processes] for number in range(processes)]
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _where: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start them, and wait until all take commands and creates."""
        before = agents_alive(self.broker)
        try:
            for number, share in enumerate(self._shares):
                self._start_process(number, share)
            self._wait_until_alive(before + len(self.hosts))
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Kill them all."""
        for process in self._processes:
            process.kill()
            process.wait()
        self._processes = []

    @property
    def pids(self) -> list[int]:
        """Of the processes that they are in."""
        return [process.pid for process in self._processes]

    def memory(self) -> float:
        """The Rss of all processes together, in MiB."""
        return sum(memory_of(pid)["Rss"] for pid in self.pids)

    def cpu(self) -> float:
        """What all of them have used of the CPU, in seconds."""
        return sum(cpu_seconds(pid) for pid in self.pids)

    def log(self) -> str:
        """What all of them have logged."""
        return "".join(path.read_text() for path in sorted(self._folder.glob("*.log")))

    def _start_process(self, number: int, share: Sequence[str]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{share[0]}-{number}.json"
        rows = [self._settings(name) for name in share]
        path.write_text(json.dumps(rows))
        with path.with_suffix(".log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "aetherscale_testing.swarm", str(path)],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._processes.append(process)

    def _settings(self, name: str) -> dict[str, Any]:
        own = {"host": name, "state_dir": str(self._folder / name), "broker": {"url": self.broker.url()}}
        return own | {"fleet": list(self.hosts), "heartbeat": 5, "images": ["a"]} | self.hosts[name]

    def _wait_until_alive(self, wanted: int) -> None:
        limit = time.monotonic() + READY_S
        while (there := agents_alive(self.broker)) != wanted:
            if time.monotonic() > limit or any(process.poll() is not None for process in self._processes):
                raise TimeoutError(f"{there} of {wanted} agents are ready\n{self.log()[-5000:]}")
            time.sleep(0.2)
        for process in self._processes:
            process.send_signal(SIGUSR1)
        time.sleep(SETTLE_S)


def agents_alive(broker: TestBroker) -> int:
    """How many agents take both commands and creates; a shared queue that is not there has none."""
    with pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", broker.port)) as connection:
        counts = []
        for queue in (topology.HOSTS, topology.COMPETING):
            try:
                channel = connection.channel()
                counts.append(int(channel.queue_declare(queue, passive=True).method.consumer_count))
            except pika.exceptions.ChannelClosedByBroker:
                return 0
        return min(counts)


def remember(broker: TestBroker, hosts: Sequence[str]) -> None:
    """Have the broker know these hosts, as one does at which they have been before: their queues are there.

    Where they are not, each host claims and probes for all its VMs first (see `Session.open`).
    """
    table = topology.definitions("/")
    for host in hosts:
        queue = topology.host_queue(host)
        table["queues"].append(
            {
                "vhost": "/",
                "name": queue.name,
                "durable": True,
                "auto_delete": False,
                "arguments": queue.arguments,
            }
        )
    broker.ctl("import_definitions", stdin=json.dumps(table))


async def serve(rows: Sequence[dict[str, Any]]) -> None:
    """Be all these agents until killed."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(THREADS))
    loop.add_signal_handler(SIGUSR1, settle)
    tasks = []
    for settings in rows:
        tasks.append(asyncio.create_task(agent.prepare(settings)()))
        await asyncio.sleep(START_EVERY_S)
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)  # none should end


def settle() -> None:
    """Take what is there out of the garbage collector's sight."""
    gc.collect()
    gc.freeze()


def main(path: Path) -> None:
    """Be the agents that a file describes."""
    rows = json.loads(path.read_text())
    for settings in rows:
        folder = Path(settings["state_dir"])
        folder.mkdir(parents=True, exist_ok=True)
        if vms := settings.pop("vms", 0):
            give_vms(folder, vms)
            settings["keep"] = True
    agent_main._set_up_logging("info")
    asyncio.run(serve(rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
