"""What the hypervisor can be told, and where its files are."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from aetherscale_agent.config import NetworkSettings


@dataclass(frozen=True)
class HypervisorConfig:
    """The hypervisor's settings. `None` means: find out from the host. Memory in MiB, disk in GiB."""

    state_dir: Path = Path("/var/lib/aetherscale")
    run_dir: Path = Path("/run/aetherscale")
    accelerator: Literal["auto", "kvm", "tcg"] = "auto"
    cpus: int | None = None  #: cores that VMs may have together; None: the host's times `cpu_overcommit`
    cpu_overcommit: float = 4.0
    memory: int | None = None  #: memory for VMs together; None: the host's less `memory_reserve`
    memory_overcommit: float = 1.0  #: how much of that VMs may be promised for each MiB of it
    memory_reserve: int | None = None  #: left to the host; None: 1 GiB or 10 %, whichever is more
    disk: int | None = None  #: disk for VMs together; None: what is free or theirs, less `disk_reserve`
    disk_reserve: int | None = None  #: left free; None: 5 % of the file system
    start_timeout: float = 15.0  #: seconds until a QEMU that does not answer is given up
    build_timeout: float = 60.0  #: seconds for `qemu-img`
    network: NetworkSettings = field(default_factory=NetworkSettings)
    leases: Path = Path("/var/lib/aetherscale-network/leases")  #: dnsmasq's, of aetherscale's own bridge
    console_limit: int = 1 << 20  #: bytes; a console log that is longer is cut, its tail kept


@dataclass(frozen=True)
class VmPaths:
    """Where one VM's files are. The VM itself can write its disk, its console and `run`, and sees nothing else."""

    home: Path  #: the disk and the console
    run: Path  #: the sockets of its monitors, its console and its guest agent
    env: Path  #: QEMU's arguments, out of the VM's reach

    @property
    def net(self) -> Path:
        """What `vm-net` is told of the VM. It sees what the VM's unit sees; the VM itself can't write here."""
        return self.home / "network.conf"

    @property
    def boot(self) -> Path:
        """Where the VM's last boot begins, in what earlier ones left behind (see `reached`)."""
        return self.env.with_suffix(".boot")

    @property
    def disk(self) -> Path:
        """The overlay, qcow2."""
        return self.home / "disk.qcow2"

    @property
    def address(self) -> Path:
        """The guest's IPv4 address, if its host chose it."""
        return self.home / "address"

    @property
    def console(self) -> Path:
        """What the guest prints on its serial console."""
        return self.home / "console.log"

    @property
    def seed(self) -> Path:
        """The seed disc for cloud-init; a VM that an older agent made has none."""
        return self.home / "seed.iso"

    @property
    def console_socket(self) -> Path:
        """The serial console itself, for one client at a time; what it prints goes to `console` too."""
        return self.run / "console.sock"

    @property
    def guest_agent(self) -> Path:
        """The port to the agent in the guest; a VM that an older agent started has none."""
        return self.run / "guest.sock"

    @property
    def agent_monitor(self) -> Path:
        """The QMP socket for the agent."""
        return self.run / "qmp.sock"

    @property
    def stop_monitor(self) -> Path:
        """The QMP socket for the ExecStop= of the tap's unit: a QMP socket serves one client at a time."""
        return self.run / "stop.sock"


@dataclass(frozen=True)
class Layout:
    """Where all files are: the same directories that `aetherscale-vm@.service` names."""

    state_dir: Path
    run_dir: Path

    @property
    def homes(self) -> Path:
        """The wall between VMs on disk: mode 0700, each VM's home inside."""
        return self.state_dir / "vms"

    @property
    def runs(self) -> Path:
        """The same wall at run time."""
        return self.run_dir / "vms"

    @property
    def envs(self) -> Path:
        """QEMU's arguments, one file per VM."""
        return self.run_dir / "args"

    @property
    def images(self) -> Path:
        """Base images and their manifests; every VM can read them."""
        return self.state_dir / "images"

    @property
    def accelerator(self) -> Path:
        """What the probe for KVM found."""
        return self.state_dir / "accelerator.json"

    def vm(self, vm_id: str) -> VmPaths:
        """The files of one VM."""
        return VmPaths(self.homes / vm_id, self.runs / vm_id, self.envs / f"{vm_id}.env")
