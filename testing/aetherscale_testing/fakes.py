"""A hypervisor and an image store in memory, which behave like the real ones (same contract tests) at the speed
of a dictionary. One `FakeHypervisor` is one host: it outlives the agents that are started and killed on it.

    host = FakeHypervisor()
    host.deaf.add("sgeqxcfi")                     # this guest ignores the power button
    host.broken["start"]["sgeqxcfi"] = "no such machine type"
    with host.holding("build"): ...               # every build waits until the block is left
    host.guest_powers_off("sgeqxcfi")             # … as if someone typed `poweroff` in it

With a folder it outlives their processes, too: disks and running VMs are there again for the next agent.

    host = FakeHypervisor(folder=Path("h1/vms"))
    lose_power(Path("h1/vms"))                    # while no agent runs on it
"""

import asyncio
import contextlib
import functools
import hashlib
import time
from asyncio import StreamReader, StreamWriter
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import msgspec

from aetherscale_agent import pipes
from aetherscale_agent.hypervisor import reached
from aetherscale_agent.hypervisor.argv import finalize_mac
from aetherscale_agent.ports import (
    Checksum,
    Condition,
    HostResources,
    HypervisorError,
    Image,
    ImageMissing,
    Nic,
    NotThere,
    Power,
    PowerChange,
    Snapshot,
)
from aetherscale_protocol.answers import Milestone
from aetherscale_protocol.options import MIB_PER_GIB, CreateVm
from aetherscale_testing.fake_guest import FakeConsole

GIB = 1 << 30


def fake_digest(content: str) -> str:
    """The digest of a fake image's content."""
    return hashlib.sha256(content.encode()).hexdigest()


class FakeImages:
    """Images that can be added and dropped while an agent runs."""

    def __init__(self, *names: str) -> None:
        self._images: dict[str, Image] = {}
        self.files: set[str] = set()  #: digests of the files that are there, named or not
        self.fresh: set[str] = set()  #: of those, what was put there just now
        self._known: dict[str, Image] = {}
        #: What is known of images' checksums, by name, where it is anything but right.
        self.known: dict[str, Checksum] = {}
        #: What is wrong with manifests.
        self.ignored: set[str] = set()
        for name in names:
            self.add(name)

    def add(self, name: str, virtual_size: int = 1 << 30, content: str = "") -> Image:
        """Put an image of `virtual_size` bytes there, under a name that may have had another one; as an import does."""
        digest = fake_digest(content or name)
        image = Image(name, f"/images/sha256-{digest}.qcow2", "qcow2", virtual_size, digest, size=1 << 20)
        self._images[name] = self._known[digest] = image
        self.files.add(digest)
        return image

    def drop(self, name: str) -> None:
        """Take it away, as if someone had deleted its file."""
        self.files.discard(self._images.pop(name).sha256)

    def list(self) -> Mapping[str, Image]:
        """The images that are here now."""
        return dict(self._images)

    def find(self, sha256: str, name: str) -> Image | None:
        """The image of this digest, named or not."""
        return replace(self._known[sha256], name=name) if sha256 in self.files else None

    def sweep(self, needed: Collection[str], age: float) -> tuple[str, ...]:  # noqa: ARG002
        """Remove the files that nobody needs, if none is fresh."""
        idle = self.files - {image.sha256 for image in self._images.values()} - set(needed)
        swept = set() if self.fresh else idle
        self.files -= swept
        return tuple(sorted(swept))

    def complaints(self) -> frozenset[str]:
        """What is wrong with images that are not in the list."""
        return frozenset(self.ignored)

    def checksums(self) -> Mapping[str, Checksum]:
        """What is known of each image's checksum."""
        return {name: self.known.get(name, Checksum("right")) for name in self._images}

    def remove(self, name: str, *, keep_file: bool = False) -> None:
        """Remove an image, as `delete-image` does."""
        image = self._images.pop(name, None)
        if image is not None and not keep_file and all(i.sha256 != image.sha256 for i in self._images.values()):
            self.files.discard(image.sha256)


@dataclass(frozen=True)
class Delays:
    """How long the slow steps take, in seconds. With 0 they still give way to other tasks once."""

    probe: float = 0
    build: float = 0
    start: float = 0
    shutdown: float = 0


@dataclass(frozen=True)
class FakeSnapshot:
    """A disk as it was once."""

    created: float
    disk: int  #: GiB
    content: str = ""


@dataclass(frozen=True)
class FakeVmFile:
    """What a fake host's folder says of one VM: there is a disk, and a QEMU if `power` is on."""

    disk: int  #: GiB
    image: Image
    power: Power = Power.OFF
    rest: Power = Power.OFF  #: how it came to rest last
    boots: int = 0
    paused: bool = False
    content: str = ""  #: what the guest wrote
    snapshots: dict[str, FakeSnapshot] = field(default_factory=dict)
    terminal: tuple[int, int] | None = None  #: the size that its console was told last


def read_fake_vms(folder: Path) -> dict[str, FakeVmFile]:
    """The VMs of a fake host, whether or not an agent runs on it."""
    vms = {}
    for path in sorted(folder.glob("*.json")):
        with contextlib.suppress(FileNotFoundError):  # removed since
            vms[path.stem] = msgspec.json.decode(path.read_bytes(), type=FakeVmFile)
    return vms


def write_fake_vm(folder: Path, vm_id: str, vm: FakeVmFile) -> None:
    """Write it so that it is there whole, or as it was before."""
    draft = folder / f"{vm_id}.new"
    draft.write_bytes(msgspec.json.encode(asdict(vm)))
    draft.replace(folder / f"{vm_id}.json")


def lose_power(folder: Path) -> None:
    """A fake host on which no agent runs any more loses power: all its VMs are off."""
    for vm_id, vm in read_fake_vms(folder).items():
        off = replace(vm, power=Power.OFF, rest=Power.OFF, paused=False)
        write_fake_vm(folder, vm_id, off)


@dataclass
class _Vm:
    disk: int  #: GiB
    image: Image
    power: Power = Power.OFF
    rest: Power = Power.OFF  #: how it came to rest last
    paused: bool = False
    content: str = ""
    snapshots: dict[str, FakeSnapshot] = field(default_factory=dict)
    terminal: tuple[int, int] | None = None
    at_rest: asyncio.Event = field(default_factory=asyncio.Event)
    button: asyncio.TimerHandle | None = None


class FakeHypervisor:
    """One host's hypervisor, in memory."""

    def __init__(
        self,
        *,
        total: HostResources | None = None,
        images: FakeImages | None = None,
        delays: Delays | None = None,
        accelerator: str = "kvm",
        folder: Path | None = None,
    ) -> None:
        self.total = total or HostResources(cpus=16, memory=32 * MIB_PER_GIB, disk=500)
        self.delays = delays or Delays()
        #: Guests that ignore the power button.
        self.deaf: set[str] = set()
        #: Why a VM's build, start or kill fails, by step and VM id; take the entry out to heal it.
        self.broken: dict[str, dict[str, str]] = {
            step: {} for step in ("build", "seed", "start", "kill", "remove", "pause", "disk")
        }
        #: What was really asked to change something, and of which VM.
        self.calls: list[tuple[str, str]] = []
        #: How often each VM was really booted, and really built.
        self.boots: Counter[str] = Counter()
        self.builds: Counter[str] = Counter()
        #: The GiB that VMs' disks take up, by VM id, where it is more than nothing.
        self.taken: dict[str, int] = {}
        #: Ports on which something else listens on this host.
        self.ports_in_use: set[int] = set()
        #: Ports of the loopback that take the place of guests' ports.
        self.guest_ports: dict[int, int] = {}
        #: Guests that have not asked for their address.
        self.silent: set[str] = set()
        #: The sizes that guests' consoles were told: VM id, columns, lines.
        self.sizes: list[tuple[str, int, int]] = []
        #: The instance on each VM's seed disc.
        self.seeds: dict[str, str] = {}
        #: What the host finds when it looks at itself.
        self.state = Condition(virtualization=True, disk_size=1000 * GIB, disk_free=900 * GIB)
        self._consoles: dict[str, FakeConsole] = {}
        self._images = images
        self._vms: dict[str, _Vm] = {}
        self._gates: dict[str, asyncio.Event] = {}
        self._listeners: list[asyncio.Queue[PowerChange]] = []
        self._accelerator = accelerator
        self._probed = False
        self._folder = folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for vm_id, vm in read_fake_vms(folder).items():
                self._vms[vm_id] = _Vm(vm.disk, vm.image, vm.power, vm.rest, vm.paused, vm.content, dict(vm.snapshots))
                self.boots[vm_id], self.builds[vm_id] = vm.boots, 1

    # -- what the agent sees: the Hypervisor protocol

    @property
    def accelerator(self) -> str:
        return self._accelerator if self._probed else ""

    async def probe(self) -> None:
        await self._pass("probe", self.delays.probe)
        self._probed = True

    def resources(self) -> HostResources:
        taken = {vm_id: gib << 30 for vm_id, gib in self.taken.items()}
        room = max(0, (self.total.disk << 30) - sum(taken.values()))
        return replace(self.total, disk_taken=taken, disk_room=room)

    async def condition(self) -> Condition:
        await self._pass("condition", 0)
        return self.state

    async def build(self, vm_id: str, spec: CreateVm, image: Image) -> None:
        await self._pass("build", self.delays.build)
        self._check("build", vm_id)
        if self._images is not None and image.sha256 not in self._images.files:
            raise ImageMissing(f'the file of image "{image.name}" is gone')
        if vm_id not in self._vms:
            vm = _Vm(max(spec.disk, -(-image.virtual_size // GIB)), image)
            if spec.clone_of is not None:
                source = self._vms.get(spec.clone_of)
                if source is None or source.power is Power.ON:
                    why = "has no disk on this host" if source is None else "is running"
                    raise HypervisorError(f"VM {spec.clone_of}, which is to be cloned, {why}")
                vm.disk, vm.content = max(vm.disk, source.disk), source.content
            self._save(vm_id, vm, vm.power)
            self._vms[vm_id] = vm
            self.builds[vm_id] += 1

    async def seed(self, vm_id: str, spec: CreateVm, instance: str) -> None:  # noqa: ARG002
        await self._pass("seed", 0)
        self._check("seed", vm_id)
        self.seeds[vm_id] = instance

    async def start(self, vm_id: str, spec: CreateVm) -> None:  # noqa: ARG002
        if self._is_on(vm_id):
            return
        await self._pass("start", self.delays.start)
        self._check("start", vm_id)
        vm = self._vms.get(vm_id)
        if vm is None:
            raise HypervisorError(f"VM {vm_id} has no disk")
        self._save(vm_id, vm, Power.ON, boots=1)
        vm.power = Power.ON
        vm.at_rest.clear()
        self._console(vm_id).boot.clear()
        self.boots[vm_id] += 1

    async def press_power_button(self, vm_id: str) -> None:
        vm = self._vms.get(vm_id)
        await self._pass("press", 0)
        self.calls.append(("press", vm_id))
        if vm is None or not self._hears(vm_id, vm) or vm.button is not None:
            return
        vm.button = asyncio.get_running_loop().call_later(self.delays.shutdown, self.guest_powers_off, vm_id)

    async def kill(self, vm_id: str) -> None:
        await self._pass("kill", 0)
        self._check("kill", vm_id)
        self._rest(vm_id, Power.OFF, "its plug was pulled")
        vm = self._vms.get(vm_id)
        if vm is not None and vm.power is not Power.OFF:
            self._save(vm_id, vm, Power.OFF)
            vm.power = Power.OFF

    async def pause(self, vm_id: str) -> None:
        await self._set_paused(vm_id, True)

    async def resume(self, vm_id: str) -> None:
        await self._set_paused(vm_id, False)

    async def reset(self, vm_id: str) -> None:
        await self._pass("pause", 0)
        self._check("pause", vm_id)
        vm = self._on(vm_id)
        self._save(vm_id, vm, vm.power, boots=1)
        self.boots[vm_id] += 1

    async def is_paused(self, vm_id: str) -> bool:
        vm = self._vms.get(vm_id)
        if vm is None or vm.power is not Power.ON:
            raise HypervisorError(f"VM {vm_id} is off")
        return vm.paused

    async def disk_size(self, vm_id: str) -> int:
        return self._disk(vm_id).disk

    async def resize_disk(self, vm_id: str, gib: int) -> None:
        vm = await self._change_disk(vm_id)
        if gib < vm.disk:
            raise HypervisorError(f"the disk has {vm.disk} GiB, and is not made smaller")
        vm.disk = gib
        self._save(vm_id, vm, vm.power)

    async def snapshot(self, vm_id: str, name: str) -> None:
        vm = await self._change_disk(vm_id)
        vm.snapshots.setdefault(name, FakeSnapshot(time.time(), vm.disk, vm.content))
        self._save(vm_id, vm, vm.power)

    async def restore(self, vm_id: str, name: str) -> None:
        vm = await self._change_disk(vm_id)
        if vm.power is Power.ON:
            raise HypervisorError(f"VM {vm_id} is running")
        if name not in vm.snapshots:
            raise HypervisorError(f"VM {vm_id} has no snapshot {name}")
        vm.disk, vm.content = vm.snapshots[name].disk, vm.snapshots[name].content
        self._save(vm_id, vm, vm.power)

    async def delete_snapshot(self, vm_id: str, name: str) -> None:
        vm = await self._change_disk(vm_id)
        vm.snapshots.pop(name, None)
        self._save(vm_id, vm, vm.power)

    async def list_snapshots(self, vm_id: str) -> "list[Snapshot]":
        return [Snapshot(name, snapshot.created) for name, snapshot in self._disk(vm_id).snapshots.items()]

    async def wait_off(self, vm_id: str) -> Power:
        vm = self._vms.get(vm_id)
        if vm is None:
            return Power.OFF
        if vm.power is not Power.ON:
            return vm.power
        await vm.at_rest.wait()
        return vm.rest

    async def power(self, vm_ids: list[str]) -> dict[str, Power]:
        return {vm_id: self.power_of(vm_id) for vm_id in vm_ids}

    async def remove(self, vm_id: str) -> None:
        await self._pass("remove", 0)
        self._check("remove", vm_id)
        if self._is_on(vm_id):
            raise HypervisorError(f"VM {vm_id} is running")
        if self._folder is not None:
            (self._folder / f"{vm_id}.json").unlink(missing_ok=True)
        self._vms.pop(vm_id, None)
        self._consoles.pop(vm_id, None)
        self.seeds.pop(vm_id, None)

    async def list_remains(self) -> set[str]:
        return set(self._vms)

    async def bases(self) -> set[str]:
        for reason in self.broken["disk"].values():
            raise HypervisorError(reason)
        return {vm.image.sha256 for vm in self._vms.values()}

    async def console_tail(self, vm_id: str, lines: int) -> list[str]:
        return self._console(vm_id).lines[-lines:] if vm_id in self._vms and lines > 0 else []

    async def reached(self, vm_id: str) -> list[Milestone]:
        if not self._is_on(vm_id):
            return []
        found: list[Milestone] = ["running"]
        if vm_id not in self.silent:
            found.append("ip")
        if reached.FINISHED.search("\n".join(self._console(vm_id).boot).encode()):
            found.append("cloud-init")
        if reached.SSH_PORT in self.guest_ports and await reached.greets(functools.partial(self.dial, vm_id)):
            found.append("ssh")
        return reached.in_order(found)

    def nic(self, vm_id: str) -> Nic:
        return Nic(finalize_mac(vm_id), ("127.0.0.1",) if vm_id in self._vms else ())

    def port_conflict(self, spec: CreateVm) -> str:
        taken = [port.host_port for port in spec.publish if port.host_port in self.ports_in_use]
        return f"port {taken[0]} is in use on this host" if taken else ""

    async def open_console(self, vm_id: str) -> tuple[StreamReader, StreamWriter]:
        if not self._is_on(vm_id):
            raise NotThere(f"VM {vm_id} has no console to connect to", "start it")
        return await self._console(vm_id).connect()

    async def resize_console(self, vm_id: str, columns: int, lines: int) -> None:
        await self._pass("resize", 0)
        if self._is_on(vm_id):
            vm = self._vms[vm_id]
            self.sizes.append((vm_id, columns, lines))
            vm.terminal = (columns, lines)
            self._save(vm_id, vm, vm.power)

    async def dial(self, vm_id: str, port: int) -> tuple[StreamReader, StreamWriter]:
        addresses = self.nic(vm_id).addresses if self._is_on(vm_id) else ()
        return await pipes.dial(vm_id, addresses, self.guest_ports.get(port, port))

    def changes(self) -> AsyncIterator[PowerChange]:
        queue: asyncio.Queue[PowerChange] = asyncio.Queue()
        self._listeners.append(queue)
        return self._listen(queue)

    # -- what the world does to the host: for tests and simulations

    def guest_powers_off(self, vm_id: str) -> None:
        """The guest shuts itself down."""
        self._rest(vm_id, Power.OFF, "the guest shut itself down")

    def qemu_dies(self, vm_id: str, reason: str = "QEMU was killed by signal 9") -> None:
        """QEMU crashes, or the kernel kills it."""
        self._rest(vm_id, Power.FAILED, reason)

    def lose_power(self) -> None:
        """The host loses power: every VM is off when it comes back, and nobody saw them go."""
        for vm_id, vm in self._vms.items():
            self._unplug(vm_id, vm, Power.OFF)

    def print_on_console(self, vm_id: str, *lines: str) -> None:
        """The guest prints."""
        self._console(vm_id).print(*lines)

    def power_of(self, vm_id: str) -> Power:
        """The VM's power, for a test's assertion."""
        return self._vms[vm_id].power if vm_id in self._vms else Power.OFF

    def disk_of(self, vm_id: str) -> int | None:
        """The size of the VM's disk in GiB, if it has one."""
        return self._vms[vm_id].disk if vm_id in self._vms else None

    def write_in_guest(self, vm_id: str, content: str) -> None:
        """The guest writes this on its disk, in place of what was there."""
        self._vms[vm_id].content = content

    def content_of(self, vm_id: str) -> str:
        """What is on the VM's disk."""
        return self._vms[vm_id].content

    def image_of(self, vm_id: str) -> Image:
        """The image that the VM was built on."""
        return self._vms[vm_id].image

    @contextlib.contextmanager
    def holding(self, step: str) -> Iterator[asyncio.Event]:
        """While in this block, each `probe`, `build`, `seed`, `start`, `press`, `kill`, `resize` or
        `remove` waits in its middle.

        Yields an event; setting it lets them go on before the block's end.
        """
        gate = self._gates[step] = asyncio.Event()
        try:
            yield gate
        finally:
            gate.set()
            del self._gates[step]

    # -- inside

    async def _pass(self, step: str, delay: float) -> None:
        await asyncio.sleep(delay)
        if step in self._gates:
            await self._gates[step].wait()

    def _hears(self, vm_id: str, vm: _Vm) -> bool:
        return vm.power is Power.ON and not vm.paused and vm_id not in self.deaf

    async def _set_paused(self, vm_id: str, paused: bool) -> None:
        await self._pass("pause", 0)
        self._check("pause", vm_id)
        vm = self._on(vm_id)
        vm.paused = paused
        self._save(vm_id, vm, vm.power)

    async def _change_disk(self, vm_id: str) -> _Vm:
        await self._pass("disk", 0)
        self._check("disk", vm_id)
        return self._disk(vm_id)

    def _disk(self, vm_id: str) -> _Vm:
        if vm_id not in self._vms:
            raise HypervisorError("there is no disk")
        return self._vms[vm_id]

    def _on(self, vm_id: str) -> _Vm:
        if not self._is_on(vm_id):
            raise HypervisorError(f"VM {vm_id} is off")
        return self._vms[vm_id]

    def _check(self, step: str, vm_id: str) -> None:
        self.calls.append((step, vm_id))
        if vm_id in self.broken[step]:
            raise HypervisorError(self.broken[step][vm_id])

    def _console(self, vm_id: str) -> FakeConsole:
        if vm_id not in self._consoles:
            self._consoles[vm_id] = FakeConsole(functools.partial(self.guest_powers_off, vm_id))
        return self._consoles[vm_id]

    def _is_on(self, vm_id: str) -> bool:
        return self.power_of(vm_id) is Power.ON

    def _rest(self, vm_id: str, power: Power, reason: str) -> None:
        if not self._is_on(vm_id):
            return
        self._unplug(vm_id, self._vms[vm_id], power)
        for queue in self._listeners:
            queue.put_nowait(PowerChange(vm_id, power, reason))

    def _unplug(self, vm_id: str, vm: _Vm, power: Power) -> None:
        self._save(vm_id, vm, power, rest=power)
        vm.power = vm.rest = power
        vm.paused = False
        vm.at_rest.set()
        self._console(vm_id).hang_up()
        if vm.button is not None:
            vm.button.cancel()
            vm.button = None

    def _save(self, vm_id: str, vm: _Vm, power: Power, *, rest: Power | None = None, boots: int = 0) -> None:
        """Write what is about to change; then it may: an agent that is killed in between finds it done."""
        if self._folder is not None:
            file = FakeVmFile(
                vm.disk,
                vm.image,
                power,
                rest or vm.rest,
                self.boots[vm_id] + boots,
                vm.paused and power is Power.ON,
                vm.content,
                vm.snapshots,
                vm.terminal,
            )
            write_fake_vm(self._folder, vm_id, file)

    async def _listen(self, queue: asyncio.Queue[PowerChange]) -> AsyncIterator[PowerChange]:
        try:
            while True:
                yield await queue.get()
        finally:
            self._listeners.remove(queue)
