"""A broker dies under a fleet and comes back: how long until all agents consume again, and how they come.

Agents are the real ones, forked, each with its own two connections and a few VMs of a fake hypervisor. All times are
read off the broker's own log and a watcher that asks the broker for its consumers; no agent is asked.

The broker's return is the moment its log says "started TCP listener": before it the kernel refuses connections.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pika
from pika.exceptions import AMQPError, ChannelClosedByBroker

from aetherscale_agent.journal import Record
from aetherscale_agent.main import read_boot_id
from aetherscale_agent.ports import Power
from aetherscale_protocol import names, topology
from aetherscale_protocol.options import CreateVm
from aetherscale_testing.broker import TestBroker
from aetherscale_testing.fakes import FakeImages, FakeVmFile, write_fake_vm
from aetherscale_testing.fleet import AgentProcess
from aetherscale_testing.forkserver import ForkServer

READY_S, RETURN_S = 120.0, 90.0
BUCKET_S = 0.1
STEADY_S = 3.0
"""How long after its death no herd is looked for: the first delays are short."""
ABREAST = 20
"""Agents that are started at once: the first start is not what is measured."""

_TICK = os.sysconf("SC_CLK_TCK")
_DELAY = re.compile(r"DEBUG (.*): next try in ([0-9.]+) s")
_ANSWERS = re.compile(r"has a client-provided name: aetherscale-agent (\S+) answers")
_ROW = re.compile(r".*aetherscale-agent (\w+) answers\b.*\t([0-9]+)")
QUIET_S = 3.0
"""After how many seconds without a new one in the log a login is looked for elsewhere."""


@dataclass(frozen=True)
class Recovery:
    """One run. Times in seconds since the broker's return; CPU in seconds of one core."""

    agents: int
    vms: int  #: of each agent
    down: float  #: seconds between the broker's death and its start
    wiped: bool
    boot: float  #: from the broker's start to its return
    half: float  #: half of the agents consume
    hosts: float  #: all consume `computing-hosts`: they answer commands
    creates: float  #: all consume `computing-competing`, too: they take creates
    answers: float  #: all have their second connection, too: they answer
    accepted: int  #: connections, the watcher's one included
    peak: int  #: most connections that were accepted within 100 ms
    per_100_ms: list[int]  #: accepted connections
    refused: int  #: tries that failed while the broker was away
    planned_peak: int  #: most tries that the agents' delays put into 100 ms, from 3 s after its death to its return
    late_failures: int  #: tries that failed after its return
    agents_cpu: float  #: of all agents, from the broker's return until all consume
    broker_cpu: float  #: the same of the broker
    busy_cores: float  #: cores that the whole machine kept busy meanwhile, on average, others' work included

    @property
    def consuming(self) -> float:
        """When all agents consumed both, and could answer."""
        return max(self.hosts, self.creates, self.answers)

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self)


class Herd:
    """Agents that share a broker which is ours to kill."""

    def __init__(
        self, broker: TestBroker, server: ForkServer, folder: Path, count: int, vms: int = 3, muster: float = 15.0
    ) -> None:
        self.broker = broker
        self.vms = vms
        names_ = [f"h{number:03}" for number in range(count)]
        options = {"broker": {"url": broker.url()}, "heartbeat": 5, "fleet": names_, "keep": True, "muster": muster}
        self.agents = [AgentProcess(name, folder / name, broker, ("a",), options, server) for name in names_]

    def start(self) -> None:
        """Start them, each with its VMs running, and wait until all consume."""
        for begin in range(0, len(self.agents), ABREAST):
            for agent in self.agents[begin : begin + ABREAST]:
                give_vms(agent.folder, self.vms)
                agent.start()
            wanted = min(begin + ABREAST, len(self.agents))
            if begin == 0:
                with _Watcher(self.broker) as watcher:
                    watcher.until(topology.HOSTS, wanted, READY_S)
        with _Watcher(self.broker) as watcher:
            watcher.until(topology.HOSTS, len(self.agents), READY_S)
            watcher.until(topology.COMPETING, len(self.agents), READY_S)

    def stop(self) -> None:
        """Kill them all."""
        for agent in self.agents:
            agent.stop(9)  # type: ignore[arg-type]

    def recover(self, down: float, *, wiped: bool = False) -> Recovery:
        """Kill the broker, start it `down` seconds later, wait until all agents consume again.

        :raise TimeoutError: when they don't.
        """
        for log in self._logs():
            os.truncate(log, 0)
        self.broker.stop(hard=True)
        died = time.time()
        if wiped:
            self.broker.lose_data()
        time.sleep(down)
        self.broker.log.unlink(missing_ok=True)
        self.broker.launch()
        returned = self._wait_for_return()
        before, looked = self._cpu(), time.time()
        with _Watcher(self.broker) as watcher:
            seen = watcher.follow(len(self.agents), returned)
            spent = [after - begin for after, begin in zip(self._cpu(), before, strict=True)]
            busy = spent[2] / (time.time() - looked)
            answers = self._wait_for_answers() - returned
        accepted = _stamps(self.broker.log, "accepting AMQP connection")
        tries = [stamp for log in self._logs() for stamp in _agent_stamps(log, "trying on")]
        buckets = _buckets([stamp - returned for stamp in accepted])
        planned = [at for log in self._logs() for at in _planned(log) if STEADY_S < at < returned - died]
        return Recovery(
            agents=len(self.agents),
            vms=self.vms,
            down=down,
            wiped=wiped,
            boot=round(returned - self.broker.started_at, 2),
            half=seen["half"],
            hosts=seen[topology.HOSTS],
            creates=seen[topology.COMPETING],
            answers=round(answers, 2),
            accepted=len(accepted),
            peak=max(buckets),
            per_100_ms=buckets,
            refused=sum(stamp < returned for stamp in tries),
            planned_peak=max(_buckets(planned)),
            late_failures=sum(stamp >= returned for stamp in tries),
            agents_cpu=round(spent[0], 2),
            broker_cpu=round(spent[1], 2),
            busy_cores=round(busy, 2),
        )

    def _logs(self) -> list[Path]:
        return [agent.folder / "agent.log" for agent in self.agents]

    def _wait_for_return(self) -> float:
        """When the broker was there again, in seconds since the epoch."""
        limit = time.monotonic() + RETURN_S
        while time.monotonic() < limit:
            if self.broker.log.exists() and (stamps := _stamps(self.broker.log, "started TCP listener")):
                return stamps[0]
            time.sleep(0.02)
        raise TimeoutError(f"the broker is not back: see {self.broker.log}")

    def _wait_for_answers(self) -> float:
        """When the last agent had logged in for its answers, in seconds since the epoch.

        By the broker's log; but that drops lines when more than 500 come in a second. So when no more come, whoever is
        missing there is looked for among the broker's connections.
        """
        limit, told = time.monotonic() + READY_S, dict[str, float]()
        quiet = time.monotonic() + QUIET_S
        while time.monotonic() < limit:
            came = _first_logins(self.broker.log)
            if len(came) < len(self.agents) and time.monotonic() > quiet:
                came = self._find_logins() | came
                quiet = time.monotonic() + QUIET_S
            if len(came) == len(self.agents):
                return max(came.values())
            if len(came) > len(told):
                told, quiet = came, time.monotonic() + QUIET_S
            time.sleep(0.1)
        raise TimeoutError(f"{len(came)} of {len(self.agents)} agents can answer")

    def _find_logins(self) -> dict[str, float]:
        """When each connection for answers that there is was made, by the broker's own table."""
        rows = self.broker.ctl("list_connections", "--silent", "client_properties", "connected_at").splitlines()
        found = (_ROW.fullmatch(row) for row in rows)
        return {match[1]: int(match[2]) / 1000 for match in found if match}

    def _cpu(self) -> tuple[float, float, float]:
        """What all agents, the broker, and the whole machine have used, in seconds."""
        agents = sum(cpu_seconds(agent.process.pid) for agent in self.agents if agent.process)
        broker = cpu_seconds(int(Path(self.broker.environ["RABBITMQ_PID_FILE"]).read_text()))
        user, nice, system, _idle, _waiting, *interrupts = map(int, Path("/proc/stat").read_text().split()[1:9])
        return agents, broker, (user + nice + system + sum(interrupts[:2])) / _TICK


class _Watcher:
    """A connection that asks how many consumers the shared queues have."""

    def __init__(self, broker: TestBroker) -> None:
        limit = time.monotonic() + READY_S
        parameters = pika.ConnectionParameters("127.0.0.1", broker.port, heartbeat=600)
        while True:
            try:
                self._connection = pika.BlockingConnection(parameters)
                break
            except AMQPError:
                if time.monotonic() > limit:
                    raise
                time.sleep(0.02)
        self._channel = self._connection.channel()

    def __enter__(self) -> "_Watcher":
        return self

    def __exit__(self, *_error: object) -> None:
        self._connection.close()

    def count(self, queue: str) -> int:
        """The queue's consumers; 0 if it is not there (yet)."""
        try:
            return int(self._channel.queue_declare(queue, passive=True).method.consumer_count)
        except ChannelClosedByBroker:
            self._channel = self._connection.channel()
            return 0

    def until(self, queue: str, wanted: int, seconds: float) -> None:
        """Wait until a queue has so many consumers.

        :raise TimeoutError: when it has not within so many seconds.
        """
        limit = time.monotonic() + seconds
        while (there := self.count(queue)) != wanted:
            if time.monotonic() > limit:
                raise TimeoutError(f"{there} of {wanted} agents consume {queue}")
            time.sleep(0.02)

    def follow(self, wanted: int, since: float) -> dict[str, float]:
        """When half of the agents, and all, consumed: seconds after `since`.

        :raise TimeoutError: when they don't.
        """
        seen: dict[str, float] = {}
        limit = time.monotonic() + READY_S
        while len(seen) < 3:
            counts = {queue: self.count(queue) for queue in (topology.HOSTS, topology.COMPETING)}
            now = round(time.time() - since, 2)
            if counts[topology.HOSTS] * 2 >= wanted:
                seen.setdefault("half", now)
            for queue, there in counts.items():
                if there == wanted:
                    seen.setdefault(queue, now)
            if time.monotonic() > limit:
                raise TimeoutError(f"of {wanted} agents there consume {counts}")
            time.sleep(0.02)
        return seen


def cpu_seconds(pid: int) -> float:
    """What a process has used of the CPU, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def give_vms(folder: Path, count: int) -> None:
    """Write VMs to a host's journal and its fake hypervisor, as if they had been created long ago."""
    shutil.rmtree(folder, ignore_errors=True)
    journal, disks = folder / "journal", folder / "vms"
    for path in (journal, disks):
        path.mkdir(parents=True)
    boot_id = read_boot_id(folder / "run")
    image = FakeImages("a").list()["a"]
    created = time.time() - 3600
    for _ in range(count):
        vm_id = names.new_vm_id()
        record = Record(
            vm_id=vm_id,
            request_id=names.new_request_id(),
            spec=CreateVm(image="a", vm_id=vm_id, memory=128, disk=1),
            deadline=created + 60,
            created=created,
            phase="ready",
            bound=True,
            boot_id=boot_id,
        )
        (journal / f"{vm_id}.json").write_bytes(msgspec.json.encode(record))
        write_fake_vm(disks, vm_id, FakeVmFile(1, image, Power.ON, boots=1))


def _stamps(log: Path, text: str) -> list[float]:
    """When the broker logged lines with this text: seconds since the epoch."""
    lines = log.read_text(errors="replace").splitlines()
    return [datetime.fromisoformat(line[:32]).timestamp() for line in lines if text in line]


def _first_logins(log: Path) -> dict[str, float]:
    """When each connection for answers first told its name."""
    came: dict[str, float] = {}
    for line in log.read_text(errors="replace").splitlines():
        if match := _ANSWERS.search(line):
            came.setdefault(match[1], datetime.fromisoformat(line[:32]).timestamp())
    return came


def _agent_stamps(log: Path, text: str) -> list[float]:
    lines = log.read_text(errors="replace").splitlines()
    return [datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp() for line in lines if text in line]


def _planned(log: Path) -> list[float]:
    """When an agent would have tried to connect, were all else instantaneous: seconds since it lost the broker.

    A machine that is busy disperses any herd; the delays that the agents drew say whether there was one.
    """
    sums: dict[str, float] = {}
    times = []
    for name, delay in _DELAY.findall(log.read_text(errors="replace")):
        sums[name] = sums.get(name, 0.0) + float(delay)
        times.append(sums[name])
    return times


def _buckets(times: Sequence[float]) -> list[int]:
    """How many of these fall into each bucket, from 0 on."""
    counts = [0] * (1 + max((int(max(at, 0) / BUCKET_S) for at in times), default=0))
    for at in times:
        counts[int(max(at, 0) / BUCKET_S)] += 1
    return counts


_COUNT = """
import json, os
from aetherscale_agent import broker, connect
from aetherscale_testing import agent
calls = {"channels": 0, "methods": 0}
def counted(of, name, key):
    was = getattr(of, name)
    async def call(*args, **more):
        calls[key] += 1
        return await was(*args, **more)
    setattr(of, name, call)
counted(broker.Connection, "channel", "channels")
counted(broker.Channel, "_call", "methods")
async def closed(_session):
    print(json.dumps(calls), flush=True)
    os._exit(0)
connect.Session.closed = closed
agent.run()
"""


def count_calls(broker: TestBroker, folder: Path, vms: int = 3) -> dict[str, int]:
    """How many channels an agent opens, and how many other methods it waits for, until it consumes; on both its
    connections together, its queue and what all agents share being there."""
    give_vms(folder / "count", vms)
    settings = {"host": "count", "state_dir": str(folder / "count"), "images": ["a"], "broker": {"url": broker.url()}}
    for _ in range(2):  # the first finds a new broker
        done = subprocess.run(
            [sys.executable, "-c", _COUNT, json.dumps(settings | {"keep": True})],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=False,
        )
    counted: dict[str, int] = json.loads(done.stdout)
    return counted
