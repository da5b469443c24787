"""What the host has for VMs, together."""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from aetherscale_agent.hypervisor.config import HypervisorConfig
from aetherscale_agent.ports import HostResources

KIB_PER_MIB = 1024
MIB = 1 << 20
GIB = 1 << 30
BLOCK = 512
"""Bytes in a unit of st_blocks, on every Linux file system."""

MEMORY_RESERVE = 1024
MEMORY_RESERVE_SHARE = 0.10
DISK_RESERVE_SHARE = 0.05
DISK_OVERHEAD = 64 * MIB
"""Bytes that a VM may have beside its disk: qcow2's own tables, its console, its seed disc."""
VM_OVERHEAD = 96
"""MiB that a VM's QEMU was seen to take beside its guest's memory: 78 with TCG, and some to spare."""

FRESH = 5.0
"""Seconds for which a look at the disks is good enough."""


def total_memory(meminfo: str) -> int:
    """The host's memory in MiB, from the text of /proc/meminfo."""
    for line in meminfo.splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) // KIB_PER_MIB
    raise ValueError("no MemTotal in /proc/meminfo")


def memory_for_vms(config: HypervisorConfig, total: int) -> int:
    """MiB that VMs may be promised together, of `total`."""
    return int(_own_memory(config, total) * config.memory_overcommit)


def _own_memory(config: HypervisorConfig, total: int) -> int:
    """MiB that are there for VMs, before any overcommit."""
    if config.memory is not None:
        return config.memory
    reserve = config.memory_reserve
    if reserve is None:
        reserve = max(MEMORY_RESERVE, round(total * MEMORY_RESERVE_SHARE))
    return max(0, total - reserve)


def cpus_for_vms(config: HypervisorConfig, cores: int) -> int:
    """Cores that VMs may use together, on a host that has `cores`."""
    return config.cpus if config.cpus is not None else max(1, int(cores * config.cpu_overcommit))


def disk_for_vms(config: HypervisorConfig, size: int, free: int, used: int) -> int:
    """GiB that VMs may use together, on a file system of `size` bytes where they use `used` and `free` are left."""
    if config.disk is not None:
        return config.disk
    reserve = size * DISK_RESERVE_SHARE if config.disk_reserve is None else config.disk_reserve * GIB
    return max(0, int(free + used - reserve) // GIB)


def room_for_writing(disk: int, free: int, used: int) -> int:
    """Bytes that VMs which may use `disk` GiB, and use `used` bytes, can still write where `free` bytes are left."""
    return max(0, min(free, disk * GIB - used))


def used_by(homes: Path) -> dict[str, int]:
    """Bytes that the files in each of these VMs' homes take up on disk, by its id."""
    used: dict[str, int] = {}
    with contextlib.suppress(FileNotFoundError):
        for home in os.scandir(homes):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # being removed: the next look is right
                used[home.name] = sum(file.stat(follow_symlinks=False).st_blocks for file in os.scandir(home)) * BLOCK
    return used


def taken_by(used: int) -> int:
    """Bytes that a VM's disk takes up, of these in its home."""
    return max(0, used - DISK_OVERHEAD)


class Resources:
    """What VMs may use together; looks at the disks at most every few seconds."""

    def __init__(self, config: HypervisorConfig, homes: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._homes = homes
        self._clock = clock
        self._looked = float("-inf")
        self._found = HostResources(0, 0, 0)

    def get(self) -> HostResources:
        """The host's resources, now or a moment ago."""
        if self._clock() - self._looked >= FRESH:
            self._found = self._look()
            self._looked = self._clock()
        return self._found

    def _look(self) -> HostResources:
        disk, used = os.statvfs(self._config.state_dir), used_by(self._homes)
        size, free, in_all = disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize, sum(used.values())
        for_vms = disk_for_vms(self._config, size, free, in_all)
        return HostResources(
            cpus=cpus_for_vms(self._config, os.cpu_count() or 1),
            memory=memory_for_vms(self._config, total_memory(Path("/proc/meminfo").read_text())),
            disk=for_vms,
            vm_overhead=VM_OVERHEAD,
            disk_taken={vm_id: taken_by(amount) for vm_id, amount in used.items()},
            disk_room=room_for_writing(for_vms, free, in_all),
        )
