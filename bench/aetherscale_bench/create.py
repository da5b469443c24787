"""create-vm on one host, beside the floor and beside libvirt; and 20 at once on three hosts.

The floor is what nobody can leave out: `qemu-img create`, systemd starting the very QEMU that the agent starts (in a
plain unit, with a tap that is there already), and that QEMU's greeting. Guest, overlay and host are the same for all.
"""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aetherscale_bench import peers
from aetherscale_bench.asking import Asker, asking_at, vm_of
from aetherscale_bench.figures import Result, Sample, Target, ratio
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
    made: list[str] = field(default_factory=list)

    def ours(self) -> float:
        """A create by a client that is connected already."""
        return milliseconds(lambda: self.made.append(created(self.client)))

    def process(self) -> float:
        """A create by the CLI."""
        return milliseconds(lambda: self.made.append(self.fleet.create()))

    def delete(self) -> None:
        """Delete what was made."""
        self.fleet.cli("delete-vm", *self.made)
        self.made.clear()

    def overlay(self, disk: str) -> Step:
        """The same overlay as the agent's."""
        return ["run", "qemu-img", "create", "-q", "-f", "qcow2", "-b", self.base, "-F", self.base[-5:], disk, "1G"]

    def floor(self) -> float:
        """The floor."""
        return self.host.ms(self.overlay(f"{FOLDER}/disk.qcow2"), ["start", UNIT], ["greet", SOCKET])

    def floor_runs(self) -> float:
        """The floor, and what QEMU has to do after its greeting."""
        return self.host.ms(self.overlay(f"{FOLDER}/disk.qcow2"), ["start", UNIT], ["running", SOCKET])

    def clear_floor(self) -> None:
        """Stop that QEMU, and remove what it had."""
        self.host.do(["stop", UNIT], ["run", "sh", "-c", f"rm -f {FOLDER}/*.sock {FOLDER}/*.qcow2 {FOLDER}/*.log"])

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
        """Remove libvirt's guest."""
        self.host.do(["run", "virsh", "-q", "destroy", "peer"], ["run", "rm", f"{peers.IMAGES}/peer.qcow2"])


def measure(fleet: Fleet, runs: int) -> Result:
    """ms until QEMU runs the guest, and of whole processes."""
    peers.install(fleet, HOST)
    facts = {"host": f"{HOST}, Debian 13, {fleet.run(HOST, 'virsh', '--version').strip()} is its libvirt"}
    with on_host(fleet, HOST) as host, asking_at(fleet.target()) as client:
        base = fleet.run(HOST, "sh", "-c", "ls /var/lib/aetherscale/images/sha256-*").strip()
        bench = Bench(fleet, host, client, base)
        with alone(fleet), prepared(bench):
            samples = serial(bench, runs)
        samples += at_once(fleet, client)
    return Result("create", tuple(samples), tuple(targets(samples)), facts)


def serial(bench: Bench, runs: int) -> list[Sample]:
    """One create after the other on one host, each in turn."""
    timers = {
        OURS: bench.ours,
        FLOOR: bench.floor,
        RUNS: bench.floor_runs,
        PROCESS: bench.process,
        VIRSH: bench.virsh,
        VIRT_INSTALL: bench.virt_install,
    }
    after = {
        OURS: bench.delete,
        FLOOR: bench.clear_floor,
        RUNS: bench.clear_floor,
        PROCESS: bench.delete,
        VIRSH: bench.clear_peer,
        VIRT_INSTALL: bench.clear_peer,
    }
    return in_turn(timers, runs, after)


def at_once(fleet: Fleet, client: Asker) -> list[Sample]:
    """Many creates at once on all hosts, of guests that take no CPU from the others' start."""
    took = []
    for host in fleet.computes:
        fleet.give_sectors(host)
    fleet.wait_connected()
    for _ in range(ROUNDS + 1):
        begin = time.perf_counter()
        answers = client.ask_each("create-vm", [OPTIONS | {"image": guests.POLITE}] * AT_ONCE, AT_ONCE)
        took.append((time.perf_counter() - begin) * 1000)
        fleet.cli("delete-vm", *map(vm_of, answers))
    return [Sample(f"{AT_ONCE} at once on {len(fleet.computes)} hosts, to the last answer", "ms", tuple(took[1:]))]


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
    try:
        yield
    finally:
        bench.fleet.run(HOST, "ip", "link", "del", "bench0")
        bench.fleet.run(HOST, "rm", "-rf", FOLDER, f"/run/systemd/system/{UNIT}")
