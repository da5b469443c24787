"""Whether a VM fits on this host, and how well. Pure: figures in, a reason or a score out."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from aetherscale_agent.ports import HostResources, Image
from aetherscale_protocol.errors import Refused, image_unknown
from aetherscale_protocol.options import CreateVm, selects

GIB = 1 << 30
MOST_SNAPSHOTS = 64
"""How many snapshots a VM may have."""


@dataclass(frozen=True)
class Free:
    """What VMs may still be promised: cores, MiB, GiB. May be negative after a host shrank."""

    cpus: int
    memory: int
    disk: int


def disk_gib(spec: CreateVm, image: Image | None) -> int:
    """The GiB that the VM's disk will have: what was asked for, or the image's size if that is more."""
    least = -(-image.virtual_size // GIB) if image else 0
    return max(spec.disk, least)


def free(total: HostResources, promised: Iterable[CreateVm]) -> Free:
    """What is left when each of these VMs has got all that it was promised, and what its snapshots take beside it."""
    cpus, memory, disk = total.cpus, total.memory, total.disk
    for spec in promised:
        cpus, memory = cpus - spec.cpus, memory - spec.memory - total.vm_overhead
        disk -= max(spec.disk, -(-total.disk_taken.get(spec.vm_id or "", 0) // GIB))
    return Free(cpus, memory, disk)


def misplaced(spec: CreateVm, host: str, labels: Mapping[str, str]) -> Refused | None:
    """Why the VM does not belong on this host, which has these labels; or None."""
    if spec.host is not None and spec.host != host:
        return Refused("no-capacity", f"host {spec.host} is asked for")
    for key, value in sorted(spec.host_labels.items()):
        if labels.get(key) != value:
            return Refused("no-capacity", f"host {host} has no label {key}={value}")
    return None


def count_alike(spec: CreateVm, promised: Iterable[CreateVm]) -> int:
    """How many of these VMs a create wants to be away from, or near."""
    selector = spec.spread or spec.near
    others = [one for one in promised if one.vm_id != spec.vm_id]
    return sum(selects(selector, one.labels) for one in others) if selector else 0


def port_taken(spec: CreateVm, others: Iterable[CreateVm], conflict: str = "") -> Refused | None:
    """Why the VM's ports can't be published beside those of other VMs, or None. `conflict`: why not on this host."""
    wanted = {port.host_port for port in spec.publish}
    for other in others if wanted else ():
        taken = sorted(wanted & {port.host_port for port in other.publish})
        if taken and other.vm_id != spec.vm_id:
            return Refused("no-capacity", f"port {taken[0]} is published by VM {other.name or other.vm_id}")
    return Refused("no-capacity", conflict) if conflict else None


def misfit(spec: CreateVm, image: Image | None, left: Free, vm_overhead: int = 0) -> Refused | None:
    """Why the VM can't be taken, or None if it can. `vm_overhead`: MiB beside its guest's memory."""
    if image is None:
        return Refused("image-unknown", image_unknown(spec.image))
    wants = (
        ("memory", spec.memory, left.memory - vm_overhead, "MiB"),
        ("cores", spec.cpus, left.cpus, ""),
        ("disk", disk_gib(spec, image), left.disk, "GiB"),
    )
    short = [
        f"{name}: {wanted} {unit}".rstrip() + f" wanted, {max(have, 0)} {unit}".rstrip() + " free"
        for name, wanted, have, unit in wants
        if wanted > have
    ]
    return Refused("no-capacity", "; ".join(short)) if short else None


def misfit_growth(old: CreateVm, new: CreateVm, left: Free) -> Refused | None:
    """Why a VM can't become this, or None if it can. What it has already is not in `left`."""
    wants = (
        ("memory", new.memory - old.memory, left.memory, "MiB"),
        ("cores", new.cpus - old.cpus, left.cpus, ""),
        ("disk", new.disk - old.disk, left.disk, "GiB"),
    )
    short = [
        f"{name}: {more} {unit}".rstrip() + f" more wanted, {max(have, 0)} {unit}".rstrip() + " free"
        for name, more, have, unit in wants
        if more > 0 and more > have
    ]
    return Refused("no-capacity", "; ".join(short)) if short else None


def unwritten(spec: CreateVm, total: HostResources) -> int:
    """The bytes that a VM may still write, of what it was promised."""
    return max(0, spec.disk * GIB - total.disk_taken.get(spec.vm_id or "", 0))


def misfit_snapshot(spec: CreateVm, count: int, total: HostResources, promised: Iterable[CreateVm]) -> Refused | None:
    """Why a VM that has so many snapshots can't have one more, or None. `promised`: the VMs that are here.

    All that the guest writes from then on is written anew, up to its whole disk, beside what others may still write.
    """
    others = sum(unwritten(other, total) for other in promised if other.vm_id != spec.vm_id)
    room = max(0, total.disk_room - others) // GIB
    if count >= MOST_SNAPSHOTS:
        reason = f"the VM has {count} snapshots, and can't have more"
        return Refused("no-capacity", reason, "delete-snapshot those that nobody needs")
    if spec.disk > room:
        reason = f"the guest could write its {spec.disk} GiB anew after a snapshot, and {room} GiB are free for VMs"
        return Refused("no-capacity", reason, "delete snapshots or VMs on this host, or enlarge its disk")
    return None


def score(left: Free) -> int:
    """How well this host could take a VM now: higher is better; free memory first, 0 if it can take none at all."""
    return max(left.memory, 0) if left.cpus > 0 and left.disk > 0 else 0


def with_disk(spec: CreateVm, disk: int) -> CreateVm:
    """The same VM with another disk size, in GiB."""
    return msgspec.structs.replace(spec, disk=disk)
