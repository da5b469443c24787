"""What a host says about its VMs and itself, for list-vms, show-vm and list-hosts. Pure."""

from collections.abc import Mapping, Sequence

import msgspec

from aetherscale_agent.capacity import Free
from aetherscale_agent.ports import HostResources, Nic
from aetherscale_agent.vm import Vm
from aetherscale_protocol.answers import HostReport, Milestone, VmDetails, VmReport

CONSOLE_BYTES = 256 << 10
"""How much of a console goes into one answer, as JSON."""


def vm_details(vm: Vm, nic: Nic) -> VmDetails:
    """A VM's row in list-vms."""
    spec, record = vm.record.spec, vm.record
    return VmDetails(
        vm_id=record.vm_id,
        state=vm.state,
        image=spec.image,
        cpus=spec.cpus,
        memory=spec.memory,
        disk=spec.disk,
        since=record.since,
        name=spec.name or "",
        labels=spec.labels,
        addresses=list(nic.addresses),
        published=[f"{port.host_port}:{port.guest_port}" for port in spec.publish],
        expires=record.expires,
    )


def vm_report(vm: Vm, nic: Nic, host: str, accelerator: str, console: list[str], reached: list[Milestone]) -> VmReport:
    """All that there is to say about a VM."""
    details = vm_details(vm, nic)
    row = {name: getattr(details, name) for name in VmDetails.__struct_fields__}
    return VmReport(
        **row,
        host=host,
        created=vm.record.created,
        accelerator=accelerator,
        reason=vm.record.reason,
        instance=vm.record.instance,
        mac=nic.mac,
        address_source=nic.source,
        clone_of=vm.record.spec.clone_of or "",
        console=_at_most(console, CONSOLE_BYTES),
        reached=reached,
    )


def host_report(
    host: str,
    total: HostResources,
    left: Free,
    vms: Sequence[Vm],
    images: list[str],
    accelerator: str,
    fleet: list[str],
    version: str,
) -> HostReport:
    """What a host has, and what is free."""
    return HostReport(
        host=host,
        state="up",
        cpus=total.cpus,
        cpus_free=left.cpus,
        memory=total.memory,
        memory_free=left.memory,
        disk=total.disk,
        disk_free=left.disk,
        vms=len(vms),
        running=sum(vm.state == "running" for vm in vms),
        images=images,
        accelerator=accelerator,
        agent_version=version,
        fleet=fleet,
    )


def with_standing(report: HostReport, labels: Mapping[str, str], *, drained: bool) -> HostReport:
    """The same, with what the operator has said of the host."""
    return msgspec.structs.replace(report, state="drained" if drained else "up", labels=dict(labels))


def _at_most(lines: list[str], size: int) -> list[str]:
    """The last of these lines that fit into so many bytes of JSON: a message has a largest size."""
    kept = 0
    for line in reversed(lines):
        size -= len(msgspec.json.encode(line)) + 1
        if size < 0:
            break
        kept += 1
    return lines[len(lines) - kept :]
