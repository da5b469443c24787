"""What a host finds when it looks at itself, for check-host. Changes nothing; judging it is the client's."""

from collections.abc import Iterable

from aetherscale_agent import capacity
from aetherscale_agent.host import Host
from aetherscale_agent.ports import HypervisorError, Images
from aetherscale_agent.refusals import failed
from aetherscale_agent.vm import Vm
from aetherscale_protocol.answers import HostCondition, ImageSum, VmTrouble

MOST_NAMED = 100
"""How many VMs in trouble are named, at most: an answer has a largest size."""


async def look(host: Host, *, checksums: bool) -> HostCondition:
    """What this host finds when it looks at itself; `checksums`: of its images, too.

    :raise Refused: `failed`, when it can't be found out.
    """
    try:
        found = await host.hypervisor.condition()
    except HypervisorError as error:
        raise failed("looking at the host", error) from None
    sums, unread = _sums(host.images) if checksums else ([], 0)
    vms = [vm for vm in host.vms.values() if vm.exists]
    return HostCondition(
        host=host.name,
        accelerator=host.hypervisor.accelerator,
        accelerator_chosen=found.accelerator_chosen,
        accelerator_reason=found.accelerator_reason,
        virtualization=found.virtualization,
        bridge=found.bridge,
        bridge_state=found.bridge_state,
        services=dict(found.services),
        disk_size=found.disk_size,
        disk_free=found.disk_free,
        disk_growth=sum(capacity.unwritten(vm.record.spec, host.hypervisor.resources()) for vm in vms),
        troubles=find_troubles(vms),
        manifests=sorted(host.images.complaints()),
        images=sums,
        unread=unread,
    )


def find_troubles(vms: Iterable[Vm]) -> list[VmTrouble]:
    """VMs that failed, and those that run and have something wrong with them."""
    troubled = [vm for vm in vms if vm.state == "failed" or (vm.state == "running" and vm.record.reason)]
    return [
        VmTrouble(
            vm_id=vm.record.vm_id, state=vm.state, name=vm.record.spec.name or "", reason=vm.record.reason
        )
        for vm in sorted(troubled, key=lambda vm: vm.record.vm_id)[:MOST_NAMED]
    ]  # fmt: skip


def _sums(images: Images) -> tuple[list[ImageSum], int]:
    """The images with what is known of their checksums, and how many bytes are still to be read."""
    here, known = images.list(), images.checksums()
    rows = [
        ImageSum(image=name, sha256=here[name].sha256, state=checksum.state, reason=checksum.reason)
        for name, checksum in sorted(known.items())
        if name in here
    ]
    files = {here[name].path: checksum.unread for name, checksum in known.items() if name in here}
    return rows, sum(files.values())
