"""Does KVM work here? A device file that opens is no proof: on some machines a guest then hangs for ever.

The probe is a guest of one sector that does nothing but leave through QEMU's debug exit, in a unit like any
VM's: a yes holds for the sandbox that VMs run in, and the agent itself needs no access to /dev/kvm.
"""

import asyncio
import logging
from pathlib import Path

import msgspec

from aetherscale_agent.hypervisor import files
from aetherscale_agent.hypervisor.argv import SANDBOX, finalize_accelerator, finalize_env
from aetherscale_agent.hypervisor.config import Layout
from aetherscale_agent.hypervisor.reasons import PROBE, UnitEnd, finalize_reason
from aetherscale_agent.hypervisor.units import Units
from aetherscale_agent.ports import HypervisorError

_log = logging.getLogger(__name__)

QEMU = Path("/usr/bin/qemu-system-x86_64")
KERNEL_KVM = Path("/sys/class/misc/kvm")
"""There as soon as the kernel has KVM; the device itself is hidden from the agent."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

PATIENCE = 15.0
"""Seconds for the guest to leave; a working KVM takes 0.1, and a cold disk at the host's boot a few."""

KILL_PATIENCE = 10.0

EXIT_PORT, EXIT_VALUE = 0xF4, 0x2A
EXIT_STATUS = EXIT_VALUE << 1 | 1
"""What QEMU's isa-debug-exit device makes of the value."""

SECTOR = bytes([0xB0, EXIT_VALUE, 0xE6, EXIT_PORT, 0xF4, 0xEB, 0xFD]).ljust(510, b"\0") + b"\x55\xaa"
"""mov al, value; out port, al; hlt and again."""

DISK_SIZE = 1 << 20
"""SeaBIOS does not boot a disk of one sector."""


class Finding(msgspec.Struct, frozen=True):
    """What was found, and for which boot and QEMU it holds; without a key it was not looked for."""

    key: str
    accelerator: str
    reason: str = ""  #: why it is not KVM


def finalize_argv(disk: Path, accelerator: str) -> list[str]:
    """QEMU's arguments for the probe's guest."""
    return [
        *("-name", PROBE),
        *("-nodefaults", "-no-user-config"),
        *("-display", "none"),
        *("-sandbox", SANDBOX),
        *("-machine", "pc"),
        *finalize_accelerator(accelerator),
        *("-m", "64M"),
        *("-blockdev", f"driver=file,node-name=file,filename={disk},read-only=on"),
        *("-blockdev", "driver=raw,node-name=disk,file=file,read-only=on"),
        *("-device", "virtio-blk-pci,drive=disk"),
        *("-device", f"isa-debug-exit,iobase={EXIT_PORT:#x},iosize=4"),
        "-no-reboot",
    ]


async def find_accelerator(units: Units, layout: Layout) -> Finding:
    """`kvm` if a guest runs under it, else `tcg`; asked once per boot and QEMU.

    :raise HypervisorError: when a unit can't be started at all.
    """
    key = finalize_key()
    known = find_known(layout.accelerator, key)
    if known is not None:
        return known
    end = await run(units, layout, "kvm")
    if end is not None and end.status == EXIT_STATUS:
        found = Finding(key, "kvm")
        _log.info("KVM works here")
    else:
        found = Finding(key, "tcg", _reason(end))
        _log.info("KVM does not work here: %s", found.reason)
    files.write_whole(layout.accelerator, msgspec.json.encode(found))
    return found


def _reason(end: UnitEnd | None) -> str:
    if not KERNEL_KVM.exists():
        return "this kernel has no KVM"
    if end is None:
        return f"a guest under it made no progress in {PATIENCE:g} s"
    return finalize_reason(end)


def finalize_key() -> str:
    """What a finding holds for: this boot, and this QEMU."""
    status = QEMU.stat()
    return f"{BOOT_ID.read_text().strip()} {status.st_size} {status.st_mtime_ns} {status.st_ino}"


def find_known(path: Path, key: str) -> Finding | None:
    """What was found before, if that holds still."""
    try:
        finding = msgspec.json.decode(path.read_bytes(), type=Finding)
    except (OSError, ValueError):
        return None
    return finding if finding.key == key and finding.accelerator in ("kvm", "tcg") else None


async def run(units: Units, layout: Layout, accelerator: str) -> UnitEnd | None:
    """Run the probe's guest; how it ended, or None if it had to be killed.

    :raise HypervisorError: when its unit can't be started.
    """
    paths = layout.vm(PROBE)
    disk = paths.home / "probe.raw"
    files.make_dirs(layout, paths)
    try:
        disk.write_bytes(SECTOR.ljust(DISK_SIZE, b"\0"))
        disk.chmod(0o644)
        paths.env.write_text(finalize_env(finalize_argv(disk, accelerator)))
        await units.start(PROBE)
        return await _wait(units)
    finally:
        await units.reset_failed(PROBE)
        await asyncio.to_thread(files.remove, layout, PROBE)


async def _wait(units: Units) -> UnitEnd | None:
    try:
        async with asyncio.timeout(PATIENCE):
            return await units.wait_end(PROBE)
    except TimeoutError:
        await units.kill(PROBE)
    try:
        async with asyncio.timeout(KILL_PATIENCE):
            await units.wait_end(PROBE)
    except TimeoutError:
        raise HypervisorError("the probe for KVM can't be killed: its QEMU hangs in the kernel") from None
    return None
