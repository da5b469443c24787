"""Agents for tests: the real agent over a hypervisor in memory, each a process of its own, on a broker of ours."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGTERM, Signals
from typing import Any

from aetherscale_testing.broker import TestBroker
from aetherscale_testing.client import SeedClient
from aetherscale_testing.forkserver import Forked, ForkServer

READY_TIMEOUT_S = 20.0


@dataclass
class AgentProcess:
    """One agent. Its state directory outlives it, as a host's disk does."""

    host: str
    folder: Path
    broker: TestBroker
    images: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    server: ForkServer | None = None  #: forks it; without, it is started as any program
    process: subprocess.Popen[bytes] | Forked | None = None

    @property
    def log(self) -> str:
        """All that the agent has logged."""
        return (self.folder / "agent.log").read_text()

    def start(self) -> None:
        """Start it; `wait_ready` waits until it consumes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = {"host": self.host, "state_dir": str(self.folder), "images": self.images, **self.options}
        if self.server is not None:
            self.process = self.server.start(settings, self.folder / "agent.log")
            return
        log = (self.folder / "agent.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "aetherscale_testing.agent", json.dumps(settings)],
            env={**os.environ, "RABBITMQ_HOST": self.broker.address, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )

    def signal(self, number: Signals) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self, number: Signals = SIGTERM) -> None:
        """Stop it, and wait until it is gone."""
        if self.process is None:
            return
        if number is not SIGKILL:
            self.process.send_signal(SIGCONT)
        self.process.send_signal(number)
        self.process.wait(20)
        self.process = None


class Fleet:
    """Agents that share a broker, or a vhost of it. With a `server` they are forked, which is much quicker."""

    def __init__(
        self,
        broker: TestBroker,
        folder: Path,
        client: SeedClient | None = None,
        *,
        vhost: str = "/",
        server: ForkServer | None = None,
    ) -> None:
        self.broker = broker
        self.folder = folder
        self.vhost = vhost
        self._server = server
        self._client = client
        self.agents: dict[str, AgentProcess] = {}

    def add(self, host: str, *images: str, **options: Any) -> AgentProcess:
        """Start one more agent. `options`: the agent's configuration, and those of `aetherscale_testing.agent`."""
        options.setdefault("broker", {"url": self.broker.url(self.vhost)})
        agent = AgentProcess(host, self.folder / host, self.broker, images, options, self._server)
        self.agents[host] = agent
        agent.start()
        return agent

    def wait_ready(self, count: int | None = None) -> None:
        """Wait until so many agents (default: all) consume."""
        wanted = len(self.agents) if count is None else count
        limit = time.monotonic() + READY_TIMEOUT_S
        with self._client or SeedClient(self.broker.address, vhost=self.vhost) as client:
            while client.agents_alive() != wanted:
                if time.monotonic() > limit:
                    logs = "\n".join(f"== {a.host}\n{a.log}" for a in self.agents.values())
                    raise TimeoutError(f"{client.agents_alive()} of {wanted} agents are ready\n{logs}")
                time.sleep(0.02)

    def stop(self) -> None:
        """Stop all agents."""
        for agent in self.agents.values():
            agent.stop(SIGKILL)


@contextlib.contextmanager
def fleet(broker: TestBroker, folder: Path) -> Iterator[Fleet]:
    """A fleet whose agents and queues are gone when the block ends."""
    agents = Fleet(broker, folder)
    try:
        yield agents
    finally:
        agents.stop()
        with SeedClient(broker.address) as client:
            client.purge(agents.agents)
