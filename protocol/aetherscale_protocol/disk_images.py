"""What the file of a disk image is, read by these lines alone: no QEMU opens a file before they have let it pass.

A qcow2 file can name other files, which whoever opens it would read, and sizes that cost its reader memory or time.
CLI, roll-out and agent all read headers here. Standard library only: the roll-out runs it with whatever Python
Ansible has. Source of all offsets and limits: QEMU, docs/interop/qcow2.rst and block/qcow2.{c,h}.
"""

import struct
from typing import BinaryIO, Literal, NamedTuple

SECTOR = 512
LARGEST = 1 << 46
"""Bytes that a disk may have at most: as much as `--disk` can ask for."""

QCOW2_MAGIC = b"QFI\xfb"
# Magic, version, backing file (offset, size), cluster bits, virtual size, encryption, L1 table (entries, offset),
# refcount table (offset, clusters), snapshots (number, offset).
_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
# Features (incompatible, compatible, autoclear), refcount order, length of the header.
_VERSION_3 = struct.Struct(">QQQII")
_COMPRESSION_AT = _HEADER.size + _VERSION_3.size
DIRTY, CORRUPT, EXTERNAL_DATA, COMPRESSION, EXTENDED_L2 = (1 << bit for bit in range(5))

_EXTENSION = struct.Struct(">II")
_END, _BACKING_FORMAT, _BITMAPS, _ENCRYPTION, _DATA_FILE = 0, 0xE2792ACA, 0x23852875, 0x0537BE77, 0x44415441
_BITMAP_DIRECTORY = struct.Struct(">IIQQ")
# L1 table (offset, entries), lengths of id and name, dates, clock, size of the machine's state, length of more.
_SNAPSHOT = struct.Struct(">QIHHIIQII")

_MOST_L1 = 32 << 20
_MOST_REFCOUNT_TABLE = 8 << 20
_MOST_SNAPSHOTS = 65_536
_MOST_SNAPSHOT_EXTRA = 1024
_LONGEST_BACKING = 1023

BOOT_SIGNATURE = b"\x55\xaa"
OTHERS = {
    b"KDMV": "a VMware disk",
    b"vhdxfile": "a VHDX disk",
    b"conectix": "a VHD disk",
    b"<<< Oracle VM": "a VirtualBox disk",
    b"\x1f\x8b": "compressed (gzip)",
    b"\xfd7zXZ\0": "compressed (xz)",
    b"\x28\xb5\x2f\xfd": "compressed (zstd)",
    b"BZh": "compressed (bzip2)",
    b"PK\x03\x04": "a zip archive",
    b"<": "a page of HTML or XML",
}


class ImageError(ValueError):
    """A file is no image that a host should open: `str()` says why."""


class Disk(NamedTuple):
    """What a file is: its format, how large a disk it stands for in bytes, and the file that it stands on."""

    format: Literal["qcow2", "raw"]
    virtual_size: int
    backing: str = ""
    backing_format: str = ""


class _Header(NamedTuple):
    """A qcow2 header, its numbers as they are."""

    version: int
    backing_at: int
    backing_length: int
    cluster_bits: int
    virtual_size: int
    encryption: int
    l1_entries: int
    l1_at: int
    refcounts_at: int
    refcount_clusters: int
    snapshots: int
    snapshots_at: int
    incompatible: int
    refcount_order: int
    length: int

    @property
    def cluster(self) -> int:
        return 1 << self.cluster_bits


def read_image(file: BinaryIO, largest: int = LARGEST) -> Disk:
    """What a base image is: a whole qcow2 file, or else a raw disk that looks like one.

    :raise ImageError: when it is neither, or none that a host should open.
    :raise OSError: when it can't be read.
    """
    head = _read(file, 0, SECTOR)
    disk = read_qcow2(file) if head.startswith(QCOW2_MAGIC) else Disk("raw", _raw_size(head, _length(file)))
    if disk.backing:
        raise ImageError("it has a backing file; flatten it first: qemu-img convert -O qcow2 IN OUT")
    if not SECTOR <= disk.virtual_size <= largest:
        raise ImageError(f"it stands for a disk of {disk.virtual_size} bytes; allowed are {SECTOR} to {largest}")
    return disk


def check_image(file: BinaryIO, claimed: Disk) -> None:
    """See that the file of a base image is the disk that was promised, and stands on no other file.

    :raise ImageError: when it is another disk, or none that a host should open.
    :raise OSError: when it can't be read.
    """
    is_qcow2 = _read(file, 0, len(QCOW2_MAGIC)) == QCOW2_MAGIC
    found = read_qcow2(file) if is_qcow2 else Disk("raw", _length(file))
    if found.backing:
        raise ImageError(f"it has a backing file, {found.backing!r}")
    if found.format != claimed.format:
        raise ImageError(f"it is {found.format}, not {claimed.format}")
    if found.virtual_size != claimed.virtual_size:
        raise ImageError(f"it stands for a disk of {found.virtual_size} bytes, not of {claimed.virtual_size}")


def _raw_size(head: bytes, size: int) -> int:
    """The size of a raw disk: that of its file, if it looks like a disk at all."""
    for magic, what in OTHERS.items():
        if head.startswith(magic):
            raise ImageError(f"it is {what}, neither qcow2 nor a raw disk")
    if len(head) < SECTOR or head[SECTOR - 2 : SECTOR] != BOOT_SIGNATURE:
        raise ImageError("it is neither qcow2 nor a raw disk with a boot sector")
    if size % SECTOR:
        raise ImageError(f"it is {size} bytes long, not a whole number of sectors")
    return size


def read_qcow2(file: BinaryIO) -> Disk:
    """What a qcow2 file says of itself; every table that it points to is inside of it.

    :raise ImageError: when it is damaged, encrypted, needs unknown features, or keeps its data elsewhere.
    :raise OSError: when it can't be read.
    """
    size = _length(file)
    header = _read_header(file)
    _check_tables(header, size)
    _check_snapshots(file, header, size)
    extensions = _read_extensions(file, header, size)
    backing = _read(file, header.backing_at, header.backing_length) if header.backing_at else b""
    return Disk(
        "qcow2",
        header.virtual_size,
        backing.decode("utf-8", "backslashreplace"),
        extensions.get(_BACKING_FORMAT, b"").decode("ascii", "backslashreplace"),
    )


def _read_header(file: BinaryIO) -> _Header:
    head = _read(file, 0, _COMPRESSION_AT + 8)
    if len(head) < _COMPRESSION_AT:
        raise ImageError("it ends within the header of a qcow2 file")
    _, version, *fields = _HEADER.unpack_from(head)
    if version not in (2, 3):
        raise ImageError(f"it is qcow2 of version {version}; known are 2 and 3")
    incompatible, _, _, order, length = _VERSION_3.unpack_from(head, _HEADER.size)
    header = _Header(version, *fields, *((0, 4, _HEADER.size) if version == 2 else (incompatible, order, length)))
    _check_features(header.incompatible)
    _check_numbers(header)
    has_compression, kind = header.length > _COMPRESSION_AT, head[_COMPRESSION_AT : _COMPRESSION_AT + 1]
    if (has_compression and kind not in (b"\0", b"\1")) or bool(header.incompatible & COMPRESSION) != (
        has_compression and kind == b"\1"
    ):
        raise ImageError("its kind of compression is not known here")
    return header


def _check_features(features: int) -> None:
    """Refuse a file that its header says can't be read by itself."""
    if features & EXTERNAL_DATA:
        raise ImageError("its data are in another file; flatten it first: qemu-img convert -O qcow2 IN OUT")
    if features & CORRUPT:
        raise ImageError("it is marked as corrupt; qemu-img check -r all may repair it")
    if unknown := features & ~(DIRTY | COMPRESSION | EXTENDED_L2):
        raise ImageError(f"it needs features of qcow2 that are not known here ({unknown:#x})")


def _check_numbers(header: _Header) -> None:
    if header.encryption:
        raise ImageError("it is encrypted")
    if not 9 <= header.cluster_bits <= 21 or (header.incompatible & EXTENDED_L2 and header.cluster_bits < 14):
        raise ImageError(f"its clusters have 2^{header.cluster_bits} bytes; qcow2 knows 2^9 to 2^21")
    if header.version == 3 and not (
        _COMPRESSION_AT <= header.length <= header.cluster and header.length % 8 == 0 and header.refcount_order <= 6
    ):
        raise ImageError("the numbers in its header make no sense")
    end = header.backing_at + header.backing_length
    if header.backing_at and not (
        header.length <= header.backing_at < end <= header.cluster and header.backing_length <= _LONGEST_BACKING
    ):
        raise ImageError("it has a backing file, whose name is not in its header")


def _check_tables(header: _Header, size: int) -> None:
    entry = 16 if header.incompatible & EXTENDED_L2 else 8
    per_l1_entry = header.cluster * header.cluster // entry
    if header.l1_entries < -(-header.virtual_size // per_l1_entry):
        raise ImageError(f"its L1 table is too small for a disk of {header.virtual_size} bytes")
    if header.refcount_clusters == 0:
        raise ImageError("it has no refcount table")
    l1, refcounts = header.l1_entries * 8, header.refcount_clusters * header.cluster
    for what, at, length, most in (
        ("L1", header.l1_at, l1, _MOST_L1),
        ("refcount", header.refcounts_at, refcounts, _MOST_REFCOUNT_TABLE),
    ):
        _check_table(what, at, length, most, header, size)


def _check_table(what: str, at: int, length: int, most: int, header: _Header, size: int) -> None:
    if length > most:
        raise ImageError(f"its {what} table has {length} bytes; {most} are the most")
    if length and (at < header.cluster or at % header.cluster or at + length > size):
        raise ImageError(f"its {what} table is not in the file")


def _check_snapshots(file: BinaryIO, header: _Header, size: int) -> None:
    if header.snapshots > _MOST_SNAPSHOTS:
        raise ImageError(f"it has {header.snapshots} snapshots; {_MOST_SNAPSHOTS} are the most")
    at = header.snapshots_at
    if header.snapshots and (at < header.cluster or at % header.cluster):
        raise ImageError("its table of snapshots is not in the file")
    for _ in range(header.snapshots):
        entry = _read(file, at, _SNAPSHOT.size)
        if len(entry) < _SNAPSHOT.size:
            raise ImageError("its table of snapshots is not in the file")
        l1_at, l1_entries, id_length, name_length, *_, extra = _SNAPSHOT.unpack(entry)
        length = _SNAPSHOT.size + extra + id_length + name_length
        if extra > _MOST_SNAPSHOT_EXTRA or at + length > size:
            raise ImageError("its table of snapshots is not in the file")
        _check_table("snapshots' L1", l1_at, l1_entries * 8, _MOST_L1, header, size)
        at += -(-length // 8) * 8


def _read_extensions(file: BinaryIO, header: _Header, size: int) -> dict[int, bytes]:
    """The extensions of a header, by their types."""
    end = header.backing_at or header.cluster
    area, found, at = _read(file, 0, end), dict[int, bytes](), header.length
    while end - at >= _EXTENSION.size:
        if len(area) < at + _EXTENSION.size:
            raise ImageError("it ends within the header of a qcow2 file")
        kind, length = _EXTENSION.unpack_from(area, at)
        if kind == _END:
            break
        at += _EXTENSION.size
        if at + length > len(area) or kind in found:
            raise ImageError("the extensions of its header are not in its header, or there twice")
        found[kind] = area[at : at + length]
        at += -(-length // 8) * 8
    _check_extensions(found, size)
    return found


def _check_extensions(found: dict[int, bytes], size: int) -> None:
    if _ENCRYPTION in found:
        raise ImageError("it is encrypted")
    if _DATA_FILE in found:
        raise ImageError("its data are in another file; flatten it first: qemu-img convert -O qcow2 IN OUT")
    if _BITMAPS in found:
        if len(found[_BITMAPS]) != _BITMAP_DIRECTORY.size:
            raise ImageError("its bitmaps make no sense")
        _, _, length, at = _BITMAP_DIRECTORY.unpack(found[_BITMAPS])
        if at + length > size:
            raise ImageError("its bitmaps are not in the file")


def _read(file: BinaryIO, at: int, length: int) -> bytes:
    """So many bytes from there, or as many as there are; no offset is too large."""
    if at > LARGEST:
        return b""
    file.seek(at)
    return file.read(length)


def _length(file: BinaryIO) -> int:
    return file.seek(0, 2)
