"""create-vm on one host, beside its floors (`floors`) and beside libvirt; and so 20 at once on three hosts (`at_once`).

Guest, overlay and host are the same for all.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from aetherscale_bench import at_once, floors, installed, peers, units
from aetherscale_bench.asking import Asker, asking_at, vm_of
from aetherscale_bench.figures import Result, Sample, Target, ratio, times
from aetherscale_bench.fleet import IMAGE, Fleet
from aetherscale_bench.floors import Floors
from aetherscale_bench.on_host import Chain, on_host
from aetherscale_bench.timing import Action, in_turn, milliseconds, nothing

HOST = "h1"
OPTIONS: dict[str, Any] = {"image": IMAGE, "memory": 128, "disk": 1}
DISK = f"{floors.FOLDER}/own.qcow2"

OURS = "create-vm, publish to QEMU running"
FLOOR = "floor: qemu-img create, systemd start, QMP greeting"
RUNS = "the same, until QEMU runs the guest"
OWN = "qemu-img create and the VM's own unit started over D-Bus, to QEMU running"
UNFILTERED = "the same, without the unit's filter of system calls"
UNHIDDEN = "the same, with that filter, but without the unit's view of the file system"
FIRST, FIRSTS = "create-vm, the first after the agent's start", 5
PROCESS = "aetherscale-cli create-vm, whole process"
VIRSH = "qemu-img create and virsh create, whole processes"
VIRT_INSTALL = "virt-install --import, whole process"

Way = tuple[Callable[[], float], Action]
"""What takes how many ms, and what removes it again."""


@dataclass
class Bench:
    """A host without VMs, and what creates some on it."""

    fleet: Fleet
    floors: Floors
    client: Asker
    idle: dict[str, str] = field(default_factory=dict)  #: VMs that are off, for their units, by what is measured
    made: list[str] = field(default_factory=list)

    def ours(self) -> float:
        """A create by a client that is connected already."""
        return milliseconds(lambda: self.made.append(created(self.client)))

    def process(self) -> float:
        """A create by the CLI."""
        return milliseconds(lambda: self.made.append(self.fleet.create()))

    def delete(self) -> None:
        """Delete what was made, and wait until nothing is left of it."""
        self.fleet.cli("delete-vm", *self.made)
        self.made.clear()
        units.rest(self.floors.host)

    def first(self) -> float:
        """A create by an agent that has done nothing yet."""
        self.fleet.run(HOST, "systemctl", "restart", "aetherscale-agent.service")
        self.fleet.wait_connected()
        took = self.ours()
        self.delete()
        return round(took, 3)

    def own(self, name: str) -> Way:
        """All of a create that is not the agent's: the overlay, and the unit of a VM."""
        host, vm_id = self.floors.host, self.idle[name]

        def clear() -> None:
            units.kill(host, self.client, vm_id)
            host.do(["run", "rm", DISK])

        return lambda: units.start(host, vm_id, self.floors.overlay(DISK)), clear

    def ways(self) -> dict[str, Way]:
        """All that is measured in turn."""
        made = self.floors

        def steps(chain: Chain) -> Way:
            return partial(made.host.ms, *chain), made.clear

        return {
            OURS: (self.ours, self.delete),
            FLOOR: steps(made.greets(0)),
            RUNS: steps(made.runs(0)),
            **{name: self.own(name) for name in self.idle},
            installed.FLOOR: (partial(milliseconds, installed.floor), nothing),
            PROCESS: (self.process, self.delete),
            VIRSH: steps(made.virsh(0)),
            VIRT_INSTALL: steps(made.virt_install(0)),
        }

    def devices(self, way: Way) -> peers.Devices:
        """What a guest has that is made this way."""
        make, clear = way
        make()
        found = floors.devices(self.fleet, HOST)
        clear()
        return found


def measure(fleet: Fleet, runs: int) -> Result:
    """ms until QEMU runs the guest, and of whole processes."""
    fleet.wait_connected()  # the benchmark before may have switched one off
    at_once.together([partial(peers.install, fleet, host) for host in fleet.computes])
    versions = ", ".join(fleet.run(host, "virsh", "--version").strip() for host in fleet.computes)
    facts = {"host": f"{HOST}, Debian 13", "libvirt of the hosts": versions}
    with laid_out(fleet) as made, asking_at(fleet.target()) as client:
        bench = Bench(fleet, made[0], client)
        with alone(fleet), switched_off(bench):
            samples = serial(bench, runs)
            samples.append(Sample(FIRST, "ms", tuple(bench.first() for _ in range(FIRSTS))))
        many, shared = at_once.measure(fleet, made, min(runs, at_once.ROUNDS))
    samples += many
    samples += by_floors(samples)
    return Result("create", tuple(samples), tuple(targets(samples)), facts | shared)


@contextmanager
def laid_out(fleet: Fleet) -> Iterator[list[Floors]]:
    """On each host what creates are measured beside: for as many at once as are its share."""
    with ExitStack() as stack:
        made = []
        for name, count in zip(fleet.computes, at_once.shares(len(fleet.computes)), strict=True):
            stack.enter_context(floors.laid_out(fleet, name, count))
            host = stack.enter_context(on_host(fleet, name))
            made.append(Floors(host, floors.image(fleet, name, IMAGE)))
        yield made


def serial(bench: Bench, runs: int) -> list[Sample]:
    """One create after the other on one host, each in turn.

    :raise RuntimeError: when not all of them make the same guest.
    """
    ways = bench.ways()
    ours = bench.devices(ways[OURS])
    for name, less in {
        FLOOR: peers.Devices(),
        PROCESS: peers.Devices(),
        VIRSH: peers.SEED,
        VIRT_INSTALL: peers.SEED,
    }.items():
        if (found := bench.devices(ways[name])) + less != ours:
            raise RuntimeError(f"{name}: a guest with {sorted(found.elements())}; create-vm: {sorted(ours.elements())}")
    return in_turn({name: way[0] for name, way in ways.items()}, runs, {name: way[1] for name, way in ways.items()})


def by_floors(samples: list[Sample]) -> list[Sample]:
    """How many times the higher floors create-vm takes, round by round."""
    of = {sample.name: sample for sample in samples}
    many = (of[at_once.last(at_once.OURS)], of[at_once.last(at_once.FLOOR)])
    return [
        times("create-vm, in times of the floor until QEMU runs the guest", of[OURS], of[RUNS]),
        times("the same, of the VM's own unit", of[OURS], of[OWN]),
        times(f"{at_once.OURS}, the last, in times of its floor", *many),
    ]


def targets(samples: list[Sample]) -> Iterator[Target]:
    """What create-vm must show beside each of them."""
    of = {sample.name: sample for sample in samples}
    yield Target(f"{OURS}: at most 1.5 × the floor", ratio(of[OURS], of[FLOOR]), 1.5)
    for peer in (VIRSH, VIRT_INSTALL):
        yield Target(f"{peer}: at least 3 × {PROCESS}", ratio(of[peer], of[PROCESS]), 3, at_most=False)
    ours, floor, processes, virsh = (of[at_once.last(name)] for name in at_once.NAMES)
    yield Target(f"{ours.name}: at most 1.5 × the floor until QEMU runs", ratio(ours, floor), 1.5)
    yield Target(f"{virsh.name}: at least 3 × {at_once.PROCESSES}", ratio(virsh, processes), 3, at_most=False)


def created(client: Asker) -> str:
    """A new VM's id."""
    (answer,) = client.ask("create-vm", **OPTIONS).answers
    return vm_of(answer)


@contextmanager
def alone(fleet: Fleet) -> Iterator[None]:
    """Creates go to one host alone: the others are drained."""
    others = [name for name in fleet.computes if name != HOST]
    fleet.wait_connected()
    fleet.cli("drain-host", *others)
    try:
        yield
    finally:
        fleet.cli("undrain-host", *others)


@contextmanager
def switched_off(bench: Bench) -> Iterator[None]:
    """VMs that are off, two of them with less of a sandbox than all others have."""
    for name, drop_in in {OWN: "", UNFILTERED: units.UNFILTERED, UNHIDDEN: units.UNHIDDEN}.items():
        bench.idle[name] = bench.fleet.create()
        units.kill(bench.floors.host, bench.client, bench.idle[name])
        units.vary(bench.fleet, HOST, bench.idle[name], drop_in)
    try:
        yield
    finally:
        for vm_id in bench.idle.values():
            bench.fleet.cli("delete-vm", vm_id)
            units.vary(bench.fleet, HOST, vm_id, "")
