"""What the agent's core needs of the world, as small protocols. `main` passes the real ones in; tests pass
fakes that behave, and both are held to the same contract tests.
"""

import enum
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from aetherscale_protocol.answers import AddressSource, BridgeState, Milestone, SumState
from aetherscale_protocol.options import CreateVm


class HypervisorError(Exception):
    """A VM could not be built, started or stopped; `str()` is a sentence for the operator."""


class OutcomeUnknown(HypervisorError):
    """It was asked for, and whether it was done was not said: it may be done by now, or still."""


class ImageMissing(HypervisorError):
    """The base image is not on this host (any more)."""


@dataclass(frozen=True)
class Image:
    """A base image on this host. `virtual_size` in bytes."""

    name: str
    path: str
    format: Literal["qcow2", "raw"]
    virtual_size: int
    sha256: str
    size: int = 0  #: of its file, in bytes


@dataclass(frozen=True)
class HostResources:
    """What this host has in all: cores, MiB of memory and GiB of disk that VMs may use together.

    `vm_overhead`: the MiB that each VM takes beside its guest's memory, for QEMU itself. `disk_taken`: the bytes that
    the disk of each VM takes up now, its snapshots included, by id. `disk_room`: the bytes that can still be written.
    """

    cpus: int
    memory: int
    disk: int
    vm_overhead: int = 0
    disk_taken: Mapping[str, int] = field(default_factory=dict)
    disk_room: int = 0


class Power(enum.Enum):
    """What the host's systemd says of a VM's unit."""

    ON = "on"
    OFF = "off"
    FAILED = "failed"  #: QEMU died, was killed, or did not start


@dataclass(frozen=True)
class PowerChange:
    """A VM's unit came to rest: the guest shut itself down, or QEMU died. `reason` is for people.

    With `Power.ON` it goes on, and `reason` says what is wrong with it; '' that nothing is wrong any more.
    """

    vm_id: str
    power: Power
    reason: str


@dataclass(frozen=True)
class Snapshot:
    """A VM's disk as it was once. `created` in seconds since the epoch."""

    name: str
    created: float


@dataclass(frozen=True)
class Nic:
    """A VM's network interface. `addresses`: those that its host knows of, if any; `source`: how it comes to know."""

    mac: str
    addresses: tuple[str, ...] = ()
    source: AddressSource = "host"


@dataclass(frozen=True)
class Condition:
    """What a host finds when it looks at itself, beside its VMs and images. Sizes in bytes.

    `services`: the units that should be active here, and the ActiveState of each.
    """

    accelerator_chosen: bool = False  #: by the configuration
    accelerator_reason: str = ""  #: why it is not KVM
    virtualization: bool = False  #: the CPU offers it
    bridge: str = ""
    bridge_state: BridgeState = "up"
    services: Mapping[str, str] = field(default_factory=dict)
    disk_size: int = 0
    disk_free: int = 0


@dataclass(frozen=True)
class Checksum:
    """Whether an image's file is what its checksum says. `unread`: bytes of it that are still to be read."""

    state: SumState
    reason: str = ""
    unread: int = 0


class NotThere(HypervisorError):
    """What should be connected to is not there: no console, no address, nobody who listens. `hint` says what to do."""

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.hint = hint


class Images(Protocol):
    """The base images of this host."""

    def list(self) -> Mapping[str, Image]:
        """The images that are here and whole, by name. Cheap: called for every create and every offer."""

    def find(self, sha256: str, name: str) -> Image | None:
        """The image of this digest, if its file is here: under any name, or under none any more, as `name` then."""

    def complaints(self) -> frozenset[str]:
        """What is wrong with images that are named here, and for that are not in the list."""

    def checksums(self) -> Mapping[str, Checksum]:
        """What is known of each image's checksum, by name. Cheap: files not read lately are read in the background."""

    def remove(self, name: str, *, keep_file: bool = False) -> None:
        """Remove an image, and (unless `keep_file`) its file, if no other name has that. It does not give way.

        Nothing happens if there is no such image.

        :raise HypervisorError: when it can't be removed.
        """

    def sweep(self, needed: Collection[str], age: float) -> tuple[str, ...]:
        """Remove the files that no image is of any more, but for those of the digests that are needed; their names.

        None is removed that was put there within the last `age` seconds: an import puts a file there before it names
        it. It does not give way.

        :raise HypervisorError: when it can't be told what images there are, or one can't be removed.
        """


class Hypervisor(Protocol):
    """Runs VMs. Every method may be called again after a crash in its middle, and then completes."""

    @property
    def accelerator(self) -> str:
        """`kvm` or `tcg`; empty until `probe` has found out."""

    async def probe(self) -> None:
        """Find out whether KVM works here (a device file that opens is no proof). May take seconds."""

    def resources(self) -> HostResources:
        """What the host has in all; cheap."""

    async def condition(self) -> Condition:
        """What the host finds when it looks at itself; takes a moment.

        :raise HypervisorError: when it can't be found out.
        """

    async def build(self, vm_id: str, spec: CreateVm, image: Image) -> None:
        """Make the VM's disk: an overlay on `image` of `spec.disk` GiB, or of the image's size if that is more.

        With `spec.clone_of` it is a copy of that VM's disk as it is now, without its snapshots; that VM must be off.

        :raise HypervisorError: when it can't; what was begun is removed by `remove`.
        """

    async def seed(self, vm_id: str, spec: CreateVm, instance: str) -> None:
        """Make the VM's seed disc, from which cloud-init takes the name, the keys and the user-data of `spec`.

        `instance`: another one for each VM that ever had this id; cloud-init begins anew when it changes.

        :raise HypervisorError: when it can't; what was begun is removed by `remove`.
        """

    async def start(self, vm_id: str, spec: CreateVm) -> None:
        """Start the VM with its limits; returns when QEMU runs the guest. Nothing happens if it runs already.

        :raise HypervisorError: when QEMU does not come up; the unit is off then.
        """

    async def press_power_button(self, vm_id: str) -> None:
        """Press the ACPI power button. Nothing happens if the VM is off."""

    async def kill(self, vm_id: str) -> None:
        """Pull the plug; the VM is off when this returns. Nothing happens if it is off already."""

    async def pause(self, vm_id: str) -> None:
        """Let the guest stand still; its memory stays. Nothing happens if it does already.

        :raise HypervisorError: when it is off, or QEMU does not answer. So do `resume` and `reset`.
        """

    async def resume(self, vm_id: str) -> None:
        """Let a paused guest go on. Nothing happens if it runs."""

    async def reset(self, vm_id: str) -> None:
        """Press the reset button; QEMU goes on."""

    async def is_paused(self, vm_id: str) -> bool:
        """Whether somebody paused the guest of a VM that is on. One that a full disk stalled is not paused.

        :raise HypervisorError: when it is off, or its QEMU does not answer.
        """

    async def disk_size(self, vm_id: str) -> int:
        """The size of the VM's disk in GiB, rounded down, whether or not it runs.

        :raise HypervisorError: when there is none, or it can't be looked at. So do all that follow here.
        """

    async def resize_disk(self, vm_id: str, gib: int) -> None:
        """Make the VM's disk so large, whether or not it runs. Nothing happens if it is; it is never made smaller.

        :raise OutcomeUnknown: when its QEMU does not say in time whether it did. So do all changes of a VM that runs.
        """

    async def snapshot(self, vm_id: str, name: str) -> None:
        """Keep the VM's disk as it is now, whether or not it runs. Nothing happens if there is one of that name."""

    async def restore(self, vm_id: str, name: str) -> None:
        """Take the disk of a VM that is off back to a snapshot, and to the size that it had then."""

    async def delete_snapshot(self, vm_id: str, name: str) -> None:
        """Delete a snapshot, whether or not the VM runs. Nothing happens if there is none of that name."""

    async def list_snapshots(self, vm_id: str) -> "list[Snapshot]":
        """The snapshots of the VM's disk, oldest first."""

    async def wait_off(self, vm_id: str) -> Power:
        """Wait until the VM's unit is at rest, and say how it came to it. Cancel it to stop waiting."""

    async def power(self, vm_ids: list[str]) -> dict[str, Power]:
        """The power of each of these VMs, now. A VM that was never started is OFF."""

    async def remove(self, vm_id: str) -> None:
        """Remove all that the VM has on this host but its journal: disk, console, run-time files, limits.

        The VM must be off. Nothing happens if there is nothing.
        """

    async def list_remains(self) -> set[str]:
        """The ids of all VMs of which anything is on this host: a disk, a running unit, a run-time file."""

    async def bases(self) -> set[str]:
        """The digests of the images on which the disks stand that are on this host, whoever knows of them.

        :raise HypervisorError: when one can't be looked at.
        """

    async def console_tail(self, vm_id: str, lines: int) -> list[str]:
        """The last lines of the VM's console, control characters made harmless; empty if there is none."""

    async def reached(self, vm_id: str) -> list[Milestone]:
        """How far the VM has come since it was started, in order; empty when it is off. Takes two seconds at most.

        :raise HypervisorError: when it can't be found out.
        """

    def nic(self, vm_id: str) -> Nic:
        """The VM's network interface, with the addresses that its host knows of; cheap. Those that the host gave it
        are known while it is off, too.
        """

    def port_conflict(self, spec: CreateVm) -> str:
        """Why the ports that this VM publishes can't be published on this host; '' if they can. Cheap."""

    async def open_console(self, vm_id: str) -> tuple[StreamReader, StreamWriter]:
        """Connect to the VM's serial console: what the guest prints from now on, and what it is to read.

        One connection at a time, which must always be read: a guest waits for whoever does not.

        :raise NotThere: when the VM is off, or was started by an agent that gave it no such console.
        """

    async def resize_console(self, vm_id: str, columns: int, lines: int) -> None:
        """Tell the guest how large the terminal at its serial console is; may take seconds.

        Nothing happens where nobody in the guest takes it.
        """

    async def dial(self, vm_id: str, port: int) -> tuple[StreamReader, StreamWriter]:
        """Connect to a TCP port of the guest.

        :raise NotThere: when it has no address, or does not take the connection.
        """

    def changes(self) -> AsyncIterator[PowerChange]:
        """VMs that come to rest from now on, whoever brought them there."""
