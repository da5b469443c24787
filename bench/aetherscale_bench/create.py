"""create-vm on one host, beside its floors and beside libvirt; and 20 at once on three hosts.

The floor is what nobody can leave out: `qemu-img create`, systemd starting the very QEMU that the agent starts (in a
plain unit, with a tap that is there already), and that QEMU's greeting. Higher ones are the same until the guest runs,
which is what a create waits for; and the VM's own unit, with its sandbox and its tap, started by systemd alone.
Guest, overlay and host are the same for all.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from aetherscale_bench import installed, peers, units
from aetherscale_bench.asking import Asker, asking_at, vm_of
from aetherscale_bench.figures import Result, Sample, Target, ratio, times
from aetherscale_bench.fleet import IMAGE, Fleet
from aetherscale_bench.on_host import OnHost, Step, on_host
from aetherscale_bench.timing import in_turn, milliseconds
from aetherscale_testing import guests

HOST = "h1"
AT_ONCE, ROUNDS = 20, 5
OPTIONS: dict[str, Any] = {"image": IMAGE, "memory": 128, "disk": 1}
BRIDGE = "aetherscale0"
FOLDER = "/var/lib/bench"
SOCKET = f"{FOLDER}/qmp.sock"
UNIT = "bench-floor.service"
UNIT_FILE = """\
[Service]
Type=exec
KillSignal=SIGKILL
SuccessExitStatus=SIGKILL
ExecStart=/usr/bin/qemu-system-x86_64 {argv}
"""

OURS = "create-vm, publish to QEMU running"
FLOOR = "floor: qemu-img create, systemd start, QMP greeting"
RUNS = "the same, until QEMU runs the guest"
OWN = "qemu-img create and the VM's own unit started over D-Bus, to QEMU running"
FIRST, FIRSTS = "create-vm, the first after the agent's start", 5
PROCESS = "aetherscale-cli create-vm, whole process"
VIRSH = "qemu-img create and virsh create, whole processes"
VIRT_INSTALL = "virt-install --import, whole process"


@dataclass
class Bench:
    """A host without VMs, and what creates some on it."""

    fleet: Fleet
    host: OnHost
    client: Asker
    base: str  #: the image's file on the host
    idle: str = ""  #: a VM that is off, for its unit
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
        units.rest(self.host)

    def first(self) -> float:
        """A create by an agent that has done nothing yet."""
        self.fleet.run(HOST, "systemctl", "restart", "aetherscale-agent.service")
        self.fleet.wait_connected()
        took = self.ours()
        self.delete()
        return round(took, 3)

    def overlay(self, disk: str) -> Step:
        """The same overlay as the agent's."""
        return ["run", "qemu-img", "create", "-q", "-f", "qcow2", "-b", self.base, "-F", self.base[-5:], disk, "1G"]

    def floor(self) -> float:
        """The floor."""
        return self.host.ms(self.overlay(f"{FOLDER}/disk.qcow2"), ["start", UNIT], ["greet", SOCKET])

    def floor_runs(self) -> float:
        """The floor, and what QEMU has to do after its greeting."""
        return self.host.ms(self.overlay(f"{FOLDER}/disk.qcow2"), ["start", UNIT], ["running", SOCKET])

    def own(self) -> float:
        """All of a create that is not the agent's: the overlay, and the unit of a VM."""
        return units.start(self.host, self.idle, self.overlay(f"{FOLDER}/disk.qcow2"))

    def clear_own(self) -> None:
        """Switch that VM off again."""
        units.kill(self.host, self.client, self.idle)
        self.clear_files()

    def clear_floor(self) -> None:
        """Stop that QEMU, and remove what it had."""
        self.host.do(["stop", UNIT])
        self.clear_files()

    def clear_files(self) -> None:
        """Remove what a floor had."""
        self.host.do(["run", "sh", "-c", f"rm -f {FOLDER}/*.sock {FOLDER}/*.qcow2 {FOLDER}/*.log"])

    def virsh(self) -> float:
        """libvirt's own."""
        disk = f"{peers.IMAGES}/peer.qcow2"
        return self.host.ms(self.overlay(disk), ["run", "virsh", "-q", "create", f"{FOLDER}/peer.xml"])

    def virt_install(self) -> float:
        """The usual way to a guest of libvirt's; it makes the overlay itself."""
        backing = f"backing_store={self.base},backing_format={self.base[-5:]}"
        disk = f"path={peers.IMAGES}/peer.qcow2,size=1,{backing},bus=virtio"
        guest = [
            "--memory",
            "128",
            "--vcpus",
            "1",
            "--machine",
            "pc",
            "--virt-type",
            "qemu",
            "--cpu",
            "mode=maximum",
            "--graphics",
            "none",
        ]
        devices = ("--disk", disk, "--network", f"bridge={BRIDGE},model=virtio")
        how = ["--import", "--transient", "--noautoconsole", "--osinfo", "detect=off,require=off", "--quiet"]
        return self.host.ms(["run", "virt-install", "--name", "peer", *guest, *devices, *how])

    def clear_peer(self) -> None:
        """Remove libvirt's guest, and wait until its QEMU and its tap are gone."""
        self.host.do(["run", "virsh", "-q", "destroy", "peer"], ["run", "rm", f"{peers.IMAGES}/peer.qcow2"])
        units.rest(self.host)


def measure(fleet: Fleet, runs: int) -> Result:
    """ms until QEMU runs the guest, and of whole processes."""
    peers.install(fleet, HOST)
    facts = {"host": f"{HOST}, Debian 13, {fleet.run(HOST, 'virsh', '--version').strip()} is its libvirt"}
    with on_host(fleet, HOST) as host, asking_at(fleet.target()) as client:
        base = fleet.run(HOST, "sh", "-c", "ls /var/lib/aetherscale/images/sha256-*").strip()
        bench = Bench(fleet, host, client, base)
        with alone(fleet), prepared(bench):
            samples = serial(bench, runs)
            samples += by_floors(samples)
            samples.append(Sample(FIRST, "ms", tuple(bench.first() for _ in range(FIRSTS))))
        samples += at_once(fleet, client)
    return Result("create", tuple(samples), tuple(targets(samples)), facts)


def serial(bench: Bench, runs: int) -> list[Sample]:
    """One create after the other on one host, each in turn."""
    timers = {
        OURS: bench.ours,
        FLOOR: bench.floor,
        RUNS: bench.floor_runs,
        OWN: bench.own,
        installed.FLOOR: lambda: milliseconds(installed.floor),
        PROCESS: bench.process,
        VIRSH: bench.virsh,
        VIRT_INSTALL: bench.virt_install,
    }
    after = {
        OURS: bench.delete,
        FLOOR: bench.clear_floor,
        RUNS: bench.clear_floor,
        OWN: bench.clear_own,
        PROCESS: bench.delete,
        VIRSH: bench.clear_peer,
        VIRT_INSTALL: bench.clear_peer,
    }
    return in_turn(timers, runs, after)


def by_floors(samples: list[Sample]) -> list[Sample]:
    """How many times the higher floors create-vm takes, round by round."""
    of = {sample.name: sample for sample in samples}
    names = {RUNS: "create-vm, in times of the floor until QEMU runs the guest", OWN: "the same, of the VM's own unit"}
    return [times(name, of[OURS], of[floor]) for floor, name in names.items()]


def at_once(fleet: Fleet, client: Asker) -> list[Sample]:
    """Many creates at once on all hosts, of guests that take no CPU from the others' start."""
    middle, last = [], []
    for host in fleet.computes:
        fleet.give_sectors(host)
    fleet.wait_connected()
    for _ in range(ROUNDS + 1):
        asked = client.ask_each("create-vm", [OPTIONS | {"image": guests.POLITE}] * AT_ONCE, AT_ONCE)
        middle.append(round(median(asked.times), 3))
        last.append(round(max(asked.times), 3))
        fleet.cli("delete-vm", *map(vm_of, asked.answers))
        for host in fleet.computes:
            fleet.run(host, *units.REST)
    name = f"{AT_ONCE} at once on {len(fleet.computes)} hosts, to the"
    took = {f"{name} median answer": middle, f"{name} last answer": last}
    return [Sample(one, "ms", tuple(values[1:])) for one, values in took.items()]


def targets(samples: list[Sample]) -> Iterator[Target]:
    """What create-vm must show beside each of them."""
    of = {sample.name: sample for sample in samples}
    yield Target(f"{OURS}: at most 1.5 × the floor", ratio(of[OURS], of[FLOOR]), 1.5)
    for peer in (VIRSH, VIRT_INSTALL):
        yield Target(f"{peer}: at least 3 × {PROCESS}", ratio(of[peer], of[PROCESS]), 3, at_most=False)


def created(client: Asker) -> str:
    """A new VM's id."""
    (answer,) = client.ask("create-vm", **OPTIONS).answers
    return vm_of(answer)


@contextmanager
def alone(fleet: Fleet) -> Iterator[None]:
    """Creates go to one host alone: the others are drained."""
    others = [name for name in fleet.computes if name != HOST]
    fleet.wait_connected()  # the benchmark before may have switched one off
    fleet.cli("drain-host", *others)
    try:
        yield
    finally:
        fleet.cli("undrain-host", *others)


@contextmanager
def prepared(bench: Bench) -> Iterator[None]:
    """The floor's unit and tap, and libvirt's description of the same guest."""
    tap = f"tuntap add bench0 mode tap\nlink set bench0 master {BRIDGE} up\n"
    domain = peers.DOMAIN.format(name="peer", disk=f"{peers.IMAGES}/peer.qcow2", bridge=BRIDGE)
    vm_id = bench.fleet.create()
    argv = bench.fleet.run(HOST, "cat", f"/run/aetherscale/args/{vm_id}.env").strip().partition("=")[2].strip('"')
    bench.fleet.run(HOST, "mkdir", "-p", FOLDER)
    bench.fleet.run(HOST, "cp", f"/var/lib/aetherscale/vms/{vm_id}/seed.iso", f"{FOLDER}/seed.iso")
    bench.fleet.cli("delete-vm", vm_id)
    argv = argv.replace(f"ifname=vm-{vm_id}", "ifname=bench0")
    argv = re.sub(rf"/(?:run|var/lib)/aetherscale/vms/{vm_id}", FOLDER, argv)
    unit = UNIT_FILE.format(argv=argv)
    write = 'printf %s "$1" >"$2"'
    bench.fleet.run(HOST, "sh", "-c", write, "sh", unit, f"/run/systemd/system/{UNIT}")
    bench.fleet.run(HOST, "sh", "-c", write, "sh", domain, f"{FOLDER}/peer.xml")
    bench.fleet.run(HOST, "sh", "-c", 'printf %s "$1" | ip -batch -', "sh", tap)
    bench.fleet.run(HOST, "systemctl", "daemon-reload")
    bench.idle = bench.fleet.create()
    units.kill(bench.host, bench.client, bench.idle)
    try:
        yield
    finally:
        bench.fleet.cli("delete-vm", bench.idle)
        bench.fleet.run(HOST, "ip", "link", "del", "bench0")
        bench.fleet.run(HOST, "rm", "-rf", FOLDER, f"/run/systemd/system/{UNIT}")
