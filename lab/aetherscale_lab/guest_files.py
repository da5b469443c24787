"""Formats of the guest image: initramfs archive, partition table, kernel modules. No side effects."""

import re
import stat
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

MIB = 1 << 20
SECTOR = 512
_TYPE_FAT16_LBA = 0x0E
_TYPE_LINUX = 0x83
_DISK_ID = 0x41455448


@dataclass(frozen=True)
class Entry:
    """One thing in the initramfs: `mode` as in stat(2), `data` a file's content or a link's target."""

    path: str
    mode: int
    data: bytes = b""


def directory(path: str, permissions: int = 0o755) -> Entry:
    return Entry(path, stat.S_IFDIR | permissions)


def regular_file(path: str, data: bytes, permissions: int = 0o644) -> Entry:
    return Entry(path, stat.S_IFREG | permissions, data)


def symlink(path: str, target: str) -> Entry:
    return Entry(path, stat.S_IFLNK | 0o777, target.encode())


def pack_initramfs(entries: Iterable[Entry]) -> bytes:
    """Pack entries as the kernel wants its initramfs (cpio "newc"), all owned by root.

    Parents are made as needed. Format: buffer-format.rst in the kernel's documentation.
    """
    wanted = {entry.path: entry for entry in entries}
    for path in list(wanted):
        parts = path.split("/")
        for depth in range(1, len(parts)):
            parent = "/".join(parts[:depth])
            wanted.setdefault(parent, directory(parent))
    ordered = [wanted[path] for path in sorted(wanted)]
    members = [_pack_member(number, entry) for number, entry in enumerate(ordered, 1)]
    return b"".join([*members, _pack_member(0, Entry("TRAILER!!!", 0))])


def _pack_member(inode: int, entry: Entry) -> bytes:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    numbers = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, 0, 0, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % number for number in numbers)
    return _pad4(header + name) + _pad4(entry.data)


def _pad4(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def pack_boot_record(boot_code: bytes, boot_mib: int, data_mib: int) -> bytes:
    """A master boot record: a bootable FAT partition from 1 MiB on, a Linux one behind it."""
    sectors = MIB // SECTOR
    table = _pack_partition(0x80, _TYPE_FAT16_LBA, sectors, boot_mib * sectors)
    table += _pack_partition(0, _TYPE_LINUX, (1 + boot_mib) * sectors, data_mib * sectors)
    code = boot_code[:440].ljust(440, b"\0")
    return code + struct.pack("<IH", _DISK_ID, 0) + table + bytes(32) + b"\x55\xaa"


def _pack_partition(flag: int, kind: int, start: int, length: int) -> bytes:
    # cylinders, heads and sectors out of range: read the sector numbers instead
    beyond = b"\xfe\xff\xff"
    return struct.pack("<B3sB3sII", flag, beyond, kind, beyond, start, length)


def module_name(path: str) -> str:
    """Name of a kernel module, as others depend on it, from its file name."""
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


def module_dependencies(module: bytes) -> list[str]:
    """What a module needs loaded before it, from its .modinfo section."""
    match = re.search(rb"\0depends=([^\0]*)\0", module)
    names = match[1].decode().split(",") if match else []
    return [name.replace("-", "_") for name in names if name]


def load_order(wanted: Iterable[str], dependencies: Mapping[str, list[str]]) -> list[str]:
    """Modules in an order in which each can be loaded; names that are built in are left out."""
    order: list[str] = []

    def visit(name: str) -> None:
        if name in order or name not in dependencies:
            return
        for needed in dependencies[name]:
            visit(needed)
        order.append(name)

    for name in wanted:
        visit(name.replace("-", "_"))
    return order
