"""Where a cell is played: two hosts, a wire each, a vhost, a client; and how each scenario gets to its step.

The host that meets the fault is h1; it has more room than h2, so creates come to it first.
"""

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL
from typing import Any

from aetherscale_protocol import names, topology
from aetherscale_testing.broker import TestBroker
from aetherscale_testing.fakes import FakeVmFile, read_fake_vms
from aetherscale_testing.faults.client import Client, Request
from aetherscale_testing.faults.fakehosts import look_at
from aetherscale_testing.faults.ledger import Ledger
from aetherscale_testing.faults.listing import Listing
from aetherscale_testing.faults.meeting import Hall, Meeting
from aetherscale_testing.faults.table import Cell, Scenario
from aetherscale_testing.faults.tunnel import Echo
from aetherscale_testing.faults.views import HostView
from aetherscale_testing.fleet import AgentProcess
from aetherscale_testing.forkserver import ForkServer
from aetherscale_testing.proxy import Wire, Wires

READY_S, MEETING_S = 20.0, 12.0
POLL_S = 0.05
MUSTER_S = 5.0
IMAGE = "a"
DISK_GIB, GROWN_GIB = 2, 3
SNAPSHOT = "clean"
MEMORY = {"h1": 32768, "h2": 16384}
TOO_MUCH_MIB = 65536


class Failed(Exception):
    """The cell failed; `str()` says how."""


@dataclass(frozen=True)
class Stage:
    """What all cells share."""

    broker: TestBroker
    server: ForkServer
    wires: Wires
    hall: Hall
    listing: Listing


class Scene:
    """One cell's hosts, client and ledger. For one thread."""

    def __init__(self, stage: Stage, cell: Cell, vhost: str, folder: Path, *, patience: float, heartbeat: int) -> None:
        self.stage = stage
        self.cell = cell
        self.vhost = vhost
        self.folder = folder
        self.patience = patience
        self.ledger = Ledger()
        self.vm_id = names.new_vm_id()
        self.source_id = names.new_vm_id()  #: of the VM that a clone is a copy of
        self.sound_at = 0.0  #: on time.monotonic()'s clock: from then on nothing of h1 is broken any more
        self.pending: list[Request] = []  #: what a client still waits for
        self.told_before: list[Request] = []  #: what was asked of its VM and done before the fault
        self.wires: dict[str, Wire] = {}
        self.agents: dict[str, AgentProcess] = {}
        folder.mkdir(parents=True)
        for host, memory in MEMORY.items():
            self.wires[host] = stage.wires.open(("127.0.0.1", stage.broker.port))
            options = {
                "broker": {"url": stage.broker.url(vhost, self.wires[host].port)},
                "faults": str(folder),
                "keep": True,
                "fleet": list(MEMORY),
                "muster": MUSTER_S,
                "memory": memory,
                "shutdown": 0.1,
                "heartbeat": heartbeat,
            }
            images = ("other",) if cell.scenario in ("hand-on", "owner") and host == "h1" else (IMAGE,)
            self.agents[host] = AgentProcess(host, folder / host, stage.broker, images, options, stage.server)
        self.echo = Echo()
        self.client = self.new_client()

    def new_client(self) -> Client:
        """One more operator."""
        return Client(self.stage.broker.port, self.vhost, self.ledger)

    def close(self) -> None:
        """Remove all of it, from this machine and from the broker."""
        for agent in self.agents.values():
            agent.stop(SIGKILL)
        for wire in self.wires.values():
            wire.close()
        self.client.reconnect()
        for queue in self.stage.listing.of(self.vhost).queues:
            self.client._channel.queue_delete(queue)
        self.client.close()
        self.echo.close()
        shutil.rmtree(self.folder)

    # Hosts

    @property
    def h1(self) -> AgentProcess:
        """The agent that meets the fault."""
        return self.agents["h1"]

    def start(self) -> None:
        """Start all agents, and wait until they consume."""
        for agent in self.agents.values():
            agent.start()
        self.until(self.all_ready, READY_S, "the agents consume")

    def all_ready(self) -> bool:
        """Whether all agents consume."""
        queues = self.stage.listing.of(self.vhost).queues
        wanted = ["computing-hosts", "computing-competing", *map(names.host_queue, self.agents)]
        return all(
            name in queues and queues[name].consumers == (1 if name.startswith("computing-host.") else len(self.agents))
            for name in wanted
        )

    def is_connected(self, host: str) -> bool:
        """Whether the broker believes that this host's agent is connected."""
        return names.lock_queue(host) in self.stage.listing.of(self.vhost).queues

    def look(self) -> list[HostView]:
        """What there is on each host."""
        return [look_at(host, agent.folder) for host, agent in self.agents.items()]

    def disk_of(self, vm_id: str) -> FakeVmFile:
        """The disk of a VM, wherever it is.

        :raise Failed: when there is none.
        """
        for agent in self.agents.values():
            if found := read_fake_vms(agent.folder / "vms").get(vm_id):
                return found
        raise Failed(f"VM {vm_id} has no disk")

    def until(self, what: Callable[[], bool], seconds: float, name: str) -> None:
        """Wait until something is so.

        :raise Failed: when it is not so within so many seconds.
        """
        limit = time.monotonic() + seconds
        while not what():
            if time.monotonic() > limit:
                raise Failed(f"not within {seconds:.0f} s: {name}")
            time.sleep(0.02)

    def logs(self, lines: int = 40) -> str:
        """The ends of the agents' logs."""
        tails = (f"== {host}\n" + "\n".join(agent.log.splitlines()[-lines:]) for host, agent in self.agents.items())
        return "\n".join(tails)

    # Scenarios

    def meet(self) -> Meeting:
        """Play the scenario until h1 stands still at the cell's step.

        :raise Failed: when it never comes there.
        """
        _PREPARE[self.cell.scenario](self)
        self.arm(self.cell.when, self.cell.step)
        _ACT[self.cell.scenario](self)
        return self.wait_for_meeting()

    def arm(self, when: str, step: str) -> None:
        """Have h1 stand still there."""
        self.stage.hall.arm(self.folder, "h1", when, step)

    def wait_for_meeting(self) -> Meeting:
        """The agent that stands still.

        :raise Failed: when none comes.
        """
        meeting = self.stage.hall.wait(self.folder, MEETING_S)
        if meeting is None:
            raise Failed(f"the step was not reached within {MEETING_S:.0f} s")
        return meeting

    def create(
        self, vm_id: str = "", *, patience: float | None = None, memory: int = 512, clone_of: str | None = None
    ) -> Request:
        """Ask for a VM."""
        more = {"clone-of": clone_of} if clone_of else {}
        patience = patience or self.patience
        return self.client.send(
            "create", vm_id or self.vm_id, patience=patience, image=IMAGE, memory=memory, disk=DISK_GIB, **more
        )

    def done(self, request: Request) -> None:
        """Wait until that is done.

        :raise Failed: when it is not.
        """
        told = self.client.learn(request)
        if told.outcome != "done":
            raise Failed(f"{request.verb} before the fault: {told}")
        if request.vm_id == self.vm_id:
            self.told_before.append(request)

    def ask(self, request: Request) -> None:
        """A client waits for this while the fault falls."""
        self.pending.append(request)


def _nothing(_scene: Scene) -> None:
    pass


def _with_claim(scene: Scene) -> None:
    claim = topology.claim(scene.vm_id, "h1")
    scene.client._channel.queue_declare(claim.name, durable=True, arguments=claim.arguments)


def _with_vm(scene: Scene) -> None:
    scene.done(scene.create())


def _with_vm_off(scene: Scene) -> None:
    _with_vm(scene)
    scene.done(scene.client.send("kill", scene.vm_id, patience=scene.patience))


def _with_source_off(scene: Scene) -> None:
    scene.done(scene.create(scene.source_id))
    scene.done(scene.client.send("kill", scene.source_id, patience=scene.patience))


def _with_snapshot(scene: Scene) -> None:
    """Its disk was smaller then, and had been booted from once."""
    _with_vm_off(scene)
    scene.done(scene.client.send("snapshot", scene.vm_id, patience=scene.patience, snapshot=SNAPSHOT))
    scene.done(scene.client.send("resize", scene.vm_id, patience=scene.patience, disk=GROWN_GIB))
    scene.done(scene.client.send("start", scene.vm_id, patience=scene.patience))
    scene.done(scene.client.send("kill", scene.vm_id, patience=scene.patience))


def _with_crash_while_building(scene: Scene) -> None:
    """VMs in several states: one runs, one is off, one is a tombstone, and one was being built when its agent died."""
    runs, off, gone = (names.new_vm_id() for _ in range(3))
    for vm_id in (runs, off, gone):
        scene.done(scene.create(vm_id))
    scene.done(scene.client.send("kill", off, patience=scene.patience))
    scene.done(scene.client.send("delete", gone, patience=scene.patience))
    _crash(scene, "before", "build.disk")


def _without_queue(scene: Scene) -> None:
    _with_crash_while_building(scene)
    scene.client._channel.queue_delete(names.host_queue("h1"))


def _with_mere_claim(scene: Scene) -> None:
    _crash(scene, "after", "create.journal")


def _crash(scene: Scene, when: str, step: str) -> None:
    """A create, and h1 is killed there. While h1 tells its new capacity, h2 may be given one: then it takes another."""
    scene.arm(when, step)
    while True:
        request = scene.create()
        meeting = None
        while meeting is None and not scene.client.is_answered(request) and time.time() < request.deadline:
            meeting = scene.stage.hall.wait(scene.folder, POLL_S)
        if meeting is not None:
            break
        scene.done(request)
        scene.vm_id = names.new_vm_id()
    scene.ask(request)
    scene.h1.stop(SIGKILL)
    meeting.answer()


def _with_tombstone(scene: Scene) -> None:
    """Buried soon: both deadlines are near, and a tombstone outlasts the later one."""
    scene.done(scene.create(patience=3.0))
    scene.done(scene.client.send("delete", scene.vm_id, patience=3.0))


def _act(verb: str, **options: Any) -> Callable[[Scene], None]:
    def act(scene: Scene) -> None:
        scene.ask(scene.client.send(verb, scene.vm_id, patience=scene.patience, **options))  # type: ignore[arg-type]

    return act


def _dig(scene: Scene) -> None:
    request = scene.client.send("tunnel", scene.vm_id, patience=scene.patience, kind="tcp", port=scene.echo.port)
    scene.ask(request)
    if scene.cell.step == "stream.send":  # which comes when something went through it
        scene.until(lambda: scene.client.is_answered(request), MEETING_S, "the tunnel is open")


def _start_again(scene: Scene) -> None:
    scene.h1.start()


_PREPARE: Mapping[Scenario, Callable[[Scene], None]] = {
    "create": _nothing,
    "clone": _with_source_off,
    "hand-on": _nothing,
    "owner": _with_claim,
    "refuse": _nothing,
    "again": _with_vm,
    "taken": _with_vm,
    "start": _with_vm_off,
    "stop": _with_vm,
    "kill": _with_vm,
    "delete": _with_vm,
    "snapshot": _with_vm,
    "restore": _with_snapshot,
    "reboot": _with_vm,
    "tunnel": _with_vm,
    "restart": _with_crash_while_building,
    "restart-bare": _without_queue,
    "undo": _with_mere_claim,
    "bury": _with_tombstone,
}

_ACT: Mapping[Scenario, Callable[[Scene], None]] = {
    "create": lambda scene: scene.ask(scene.create()),
    "clone": lambda scene: scene.ask(scene.create(clone_of=scene.source_id)),
    "hand-on": lambda scene: scene.ask(scene.create()),
    "owner": lambda scene: scene.ask(scene.create()),
    "refuse": lambda scene: scene.ask(scene.create(memory=TOO_MUCH_MIB)),
    "again": lambda scene: scene.ask(scene.client.again(scene.told_before[0], patience=scene.patience)),
    "taken": lambda scene: scene.ask(scene.create()),
    "start": _act("start"),
    "stop": _act("stop"),
    "kill": _act("kill"),
    "delete": _act("delete"),
    "snapshot": _act("snapshot", snapshot=SNAPSHOT),
    "restore": _act("restore", snapshot=SNAPSHOT),
    "reboot": _act("reboot"),
    "tunnel": _dig,
    "restart": _start_again,
    "restart-bare": _start_again,
    "undo": _start_again,
    "bury": _nothing,
}
