"""The real hypervisor (QEMU in systemd units) and the real image store."""

from pathlib import Path

from aetherscale_agent.config import AgentConfig
from aetherscale_agent.hypervisor.config import HypervisorConfig
from aetherscale_agent.hypervisor.images import ManifestImages
from aetherscale_agent.hypervisor.qemu import QemuHypervisor

__all__ = ["HypervisorConfig", "ManifestImages", "QemuHypervisor", "open_hypervisor"]


async def open_hypervisor(config: AgentConfig) -> tuple[QemuHypervisor, ManifestImages]:
    """The hypervisor and the images that the agent's configuration describes; they last as long as the process.

    :raise HypervisorError: when systemd can't be reached.
    """
    resources = config.resources
    settings = HypervisorConfig(
        state_dir=Path(config.state_dir),
        run_dir=Path(config.run_dir),
        accelerator=config.hypervisor.accelerator,
        cpus=resources.cpus,
        cpu_overcommit=resources.cpu_overcommit,
        memory=resources.memory,
        memory_reserve=resources.reserve_memory,
        disk=resources.disk,
        network=config.network,
    )
    hypervisor = QemuHypervisor(settings)
    await hypervisor.open()
    return hypervisor, ManifestImages(settings.state_dir / "images")
