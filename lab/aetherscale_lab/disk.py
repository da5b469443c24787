"""Bootable disks and what is in them, made without root, mounts or loop devices: SYSLINUX on a FAT partition, and a
partition of ext4 behind it.

`tree` is a folder of unpacked packages, with syslinux, mtools and a kernel among them.
"""

import gzip
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from aetherscale_lab import guest_files
from aetherscale_lab.errors import LabError
from aetherscale_lab.shell import run_command

_BOOT_SLACK_MIB = 4
_SYSLINUX = """\
SERIAL 0 115200
PROMPT 0
TIMEOUT 1
DEFAULT guest
LABEL guest
 KERNEL vmlinuz
 INITRD initrd
 APPEND console=ttyS0 {append}
"""


@dataclass(frozen=True)
class Partition:
    """The second partition: its label, its size, and the folder whose files it gets (None: empty)."""

    label: str
    mib: int
    content: Path | None = None


def build(tree: Path, out: Path, initramfs: Iterable[guest_files.Entry], append: str, data: Partition) -> None:
    """Make a disk image that boots the kernel of `tree` with these parameters and this initramfs."""
    with tempfile.TemporaryDirectory(prefix="aetherscale-guest-", dir=out.parent) as directory:
        work = Path(directory)
        initrd, kernel, raw = work / "initrd", find_one(tree, "boot/vmlinuz-*"), work / "disk.raw"
        # no time stamp: the same inputs make the same bytes
        initrd.write_bytes(gzip.compress(guest_files.pack_initramfs(initramfs), 6, mtime=0))
        configuration = work / "syslinux.cfg"
        configuration.write_text(_SYSLINUX.format(append=append))
        boot_mib = (initrd.stat().st_size + kernel.stat().st_size) // guest_files.MIB + _BOOT_SLACK_MIB
        _make_disk(tree, raw, boot_mib, data.mib)
        copy_into_boot(tree, raw, {"syslinux.cfg": configuration, "vmlinuz": kernel, "initrd": initrd})
        _fill_partition(raw, boot_mib, data)
        compress(raw, out)


def find_one(tree: Path, pattern: str) -> Path:
    """The last of the files that match.

    :raise LabError: when none does.
    """
    found = sorted(tree.glob(pattern))
    if not found:
        raise LabError(f"no {pattern} in the guest's packages", "build them again: prepare --force")
    return found[-1]


def find_modules(tree: Path, names: Iterable[str]) -> list[Path]:
    """The files of kernel modules and of all they need, in loading order; those that are built in are left out."""
    files = {guest_files.module_name(path.name): path for path in tree.glob("lib/modules/*/kernel/**/*.ko")}
    needs: dict[str, list[str]] = {}
    wanted = [name.replace("-", "_") for name in names]
    pending = list(wanted)
    while pending:
        name = pending.pop()
        if name in files and name not in needs:
            needs[name] = guest_files.module_dependencies(files[name].read_bytes())
            pending += needs[name]
    return [files[name] for name in guest_files.load_order(wanted, needs)]


def module_entries(tree: Path, names: Iterable[str]) -> list[guest_files.Entry]:
    """Kernel modules for an initramfs, and the list of them in loading order."""
    modules = find_modules(tree, names)
    listing = "".join(f"{path.name}\n" for path in modules)
    entries = [guest_files.regular_file(f"lib/modules/{path.name}", path.read_bytes()) for path in modules]
    return [*entries, guest_files.regular_file("etc/modules", listing.encode())]


def _make_disk(tree: Path, raw: Path, boot_mib: int, data_mib: int) -> None:
    """A disk with its partition table and a bootable, otherwise empty FAT partition."""
    boot_code = find_one(tree, "usr/lib/syslinux/mbr/mbr.bin").read_bytes()
    with raw.open("wb") as disk:
        disk.write(guest_files.pack_boot_record(boot_code, boot_mib, data_mib))
        disk.truncate((1 + boot_mib + data_mib) * guest_files.MIB)
    sectors = guest_files.MIB // guest_files.SECTOR
    geometry = ["-T", str(boot_mib * sectors), "-h", "16", "-s", "63", "-H", str(sectors)]
    environment = _tools_environment(tree)
    run_command(["mformat", "-i", f"{raw}@@1M", *geometry, "-v", "GUEST", "::"], env=environment)
    run_command(["syslinux", "--install", "--offset", str(guest_files.MIB), str(raw)], env=environment)


def copy_into_boot(tree: Path, raw: Path, files: dict[str, Path]) -> None:
    """Put files onto the FAT partition."""
    environment = _tools_environment(tree)
    for name, source in files.items():
        run_command(["mcopy", "-o", "-i", f"{raw}@@1M", str(source), f"::/{name}"], env=environment)


def _tools_environment(tree: Path) -> dict[str, str]:
    """mtools and syslinux from the unpacked packages, so that they need not be installed."""
    search = f"{tree / 'usr/bin'}:{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin:/sbin:/bin"
    return {**os.environ, "PATH": search, "MTOOLS_SKIP_CHECK": "1"}


def _fill_partition(raw: Path, boot_mib: int, data: Partition) -> None:
    scratch = raw.with_suffix(".ext4")
    with scratch.open("wb") as partition:
        partition.truncate(data.mib * guest_files.MIB)
    filled = ["-d", str(data.content)] if data.content else []
    run_command(["/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-L", data.label, *filled, str(scratch)])
    run_command(["dd", f"if={scratch}", f"of={raw}", "bs=1M", f"seek={1 + boot_mib}", "conv=notrunc,sparse"])
    scratch.unlink()


def compress(raw: Path, out: Path) -> None:
    """Write `out` whole or not at all."""
    partial = out.with_name(out.name + ".partial")
    run_command(["qemu-img", "convert", "-c", "-O", "qcow2", str(raw), str(partial)])
    partial.rename(out)
