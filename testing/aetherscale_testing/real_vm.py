"""Start or remove VMs on a host by hand, without an agent: `python -m aetherscale_testing.real_vm start|remove ID…`.

Run it as the agent's user. The VMs are guests of one sector that ignore the power button with `start-deaf`.
"""

import asyncio
import sys

from aetherscale_agent.hypervisor import HypervisorConfig, ManifestImages, QemuHypervisor
from aetherscale_protocol.options import CreateVm
from aetherscale_testing import guests

SPEC = CreateVm(image="sector", cpus=1, memory=64, disk=1)


async def apply(verb: str, vm_ids: list[str]) -> None:
    """Do this to all of these VMs."""
    config = HypervisorConfig(accelerator="tcg")
    hypervisor = QemuHypervisor(config)
    await hypervisor.open()
    await hypervisor.probe()
    image = ManifestImages(config.state_dir / "images").list()[guests.DEAF if verb == "start-deaf" else guests.POLITE]
    for vm_id in vm_ids:
        if verb == "remove":
            await hypervisor.kill(vm_id)
            await hypervisor.remove(vm_id)
        else:
            await hypervisor.build(vm_id, SPEC, image)
            await hypervisor.start(vm_id, SPEC)
    await hypervisor.close()


if __name__ == "__main__":
    asyncio.run(apply(sys.argv[1], sys.argv[2:]))
