#!/usr/bin/env python3
"""Check base images on the controller before any host opens one. The order comes on stdin and the answer goes to
stdout, both JSON:

    {"images": [{"name", "source", "sha256", "hosts"?}], "hosts": […],
     "base": "…", "cache": "…", "largest": GiB, "check": …}
    {"images": [{"name", "path", "file", "sha256", "hosts", "manifest"}], "fetched": ["…"]}

An image is read here, by these lines, and never opened by QEMU: a qcow2 file can name other files that whoever opens
it would read. Such files are refused.
"""

import hashlib
import json
import os
import re
import struct
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"  # names.IMAGE_PATTERN; a test holds the two equal
SECTOR = 512
GIB = 1 << 30
CHUNK = 1 << 20

QCOW2_MAGIC = b"QFI\xfb"
# Version 2 of the header: magic, version, backing file (offset, size), cluster bits, virtual size, encryption.
# Source: QEMU, docs/interop/qcow2.rst
QCOW2_HEADER = struct.Struct(">4sIQIIQI")
QCOW2_INCOMPATIBLE = struct.Struct(">Q")
QCOW2_INCOMPATIBLE_AT = 72
DIRTY, CORRUPT, EXTERNAL_DATA, COMPRESSION, EXTENDED_L2 = (1 << bit for bit in range(5))
QCOW2_HEAD = QCOW2_INCOMPATIBLE_AT + QCOW2_INCOMPATIBLE.size

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


class ImageError(Exception):
    """An image can't be used: `str()` says which and why."""


@dataclass(frozen=True)
class Disk:
    """What an image is: its format, and how large a disk it stands for, in bytes."""

    format: str
    virtual_size: int


def read_disk(head: bytes, size: int, largest: int) -> Disk:
    """What the file that begins with `head` (its first sector, or less) and is `size` bytes long is.

    :raise ImageError: when it is no image, or none that a host should open.
    """
    is_qcow2 = head.startswith(QCOW2_MAGIC)
    disk = Disk("qcow2", read_qcow2(head)) if is_qcow2 else Disk("raw", read_raw(head, size))
    if not SECTOR <= disk.virtual_size <= largest:
        raise ImageError(f"it stands for a disk of {disk.virtual_size} bytes; allowed are {SECTOR} to {largest}")
    return disk


def read_qcow2(head: bytes) -> int:
    """The virtual size that a qcow2 header tells, in bytes."""
    if len(head) < QCOW2_HEAD:
        raise ImageError("it ends within the header of a qcow2 file")
    _, version, backing, _, cluster_bits, virtual_size, encryption = QCOW2_HEADER.unpack_from(head)
    if version not in (2, 3):
        raise ImageError(f"it is qcow2 of version {version}; known are 2 and 3")
    if backing:
        raise ImageError("it has a backing file; flatten it first: qemu-img convert -O qcow2 IN OUT")
    if encryption:
        raise ImageError("it is encrypted")
    if not 9 <= cluster_bits <= 21:
        raise ImageError(f"its clusters have 2^{cluster_bits} bytes; qcow2 knows 2^9 to 2^21")
    if version == 3:
        check_features(QCOW2_INCOMPATIBLE.unpack_from(head, QCOW2_INCOMPATIBLE_AT)[0])
    return int(virtual_size)


def check_features(features: int) -> None:
    """Refuse a qcow2 file that its header says can't be read by itself."""
    if features & EXTERNAL_DATA:
        raise ImageError("its data are in another file; flatten it first: qemu-img convert -O qcow2 IN OUT")
    if features & CORRUPT:
        raise ImageError("it is marked as corrupt; qemu-img check -r all may repair it")
    if unknown := features & ~(DIRTY | COMPRESSION | EXTENDED_L2):
        raise ImageError(f"it needs features of qcow2 that are not known here ({unknown:#x})")


def read_raw(head: bytes, size: int) -> int:
    """The size of a raw disk: that of its file, if it looks like a disk at all."""
    for magic, what in OTHERS.items():
        if head.startswith(magic):
            raise ImageError(f"it is {what}, neither qcow2 nor a raw disk")
    if len(head) < SECTOR or head[SECTOR - 2 : SECTOR] != BOOT_SIGNATURE:
        raise ImageError("it is neither qcow2 nor a raw disk with a boot sector")
    if size % SECTOR:
        raise ImageError(f"it is {size} bytes long, not a whole number of sectors")
    return size


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def fetch(url: str, cached: Path, wanted: str) -> None:
    """Download `url` to `cached`, which appears whole and with the digest `wanted`, or not at all."""
    cached.parent.mkdir(parents=True, exist_ok=True)
    draft = cached.with_name(f"{cached.name}.{os.getpid()}")
    digest = hashlib.sha256()
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, draft.open("wb") as file:
            while chunk := answer.read(CHUNK):
                digest.update(chunk)
                file.write(chunk)
        if digest.hexdigest() != wanted:
            raise ImageError(f"{url} has sha256 {digest.hexdigest()}, and should have {wanted}")
        draft.rename(cached)
    except OSError as error:
        raise ImageError(f"can't fetch {url}: {error}") from None
    finally:
        draft.unlink(missing_ok=True)


def check_order(image: Mapping[str, Any], hosts: Sequence[str]) -> None:
    """Refuse an entry of the list that makes no sense."""
    if not re.fullmatch(NAME, image["name"]):
        raise ImageError("a name is 1 to 64 letters, digits, '.', '_' or '-', and starts with a letter or digit")
    if not re.fullmatch("[0-9a-f]{64}", image["sha256"]):
        raise ImageError(f"sha256 {image['sha256']!r} is not 64 hexadecimal digits in lower case")
    if unknown := sorted(set(image.get("hosts") or []) - set(hosts)):
        raise ImageError(f"hosts names {', '.join(unknown)}, not in the inventory's group compute")


def prepare(image: Mapping[str, Any], order: Mapping[str, Any], fetched: list[str]) -> dict[str, Any] | None:
    """One image, checked; its download is told in `fetched`. None when `--check` would have to download it first.

    :raise ImageError: when it can't be used.
    """
    check_order(image, order["hosts"])
    source, wanted = str(image["source"]), str(image["sha256"])
    path = Path(order["base"], os.path.expanduser(source))
    if is_url := re.match("(https?|ftp|file)://", source) is not None:
        path = Path(order["cache"], wanted)
        if not path.exists():
            fetched.append(f"{image['name']} from {source}")
            if order["check"]:
                return None
            fetch(source, path, wanted)
    if (found := digest_of(path)) != wanted:
        hint = f"; {path} is damaged, delete it" if is_url else ""
        raise ImageError(f"{path} has sha256 {found}, and should have {wanted}{hint}")
    with path.open("rb") as file:
        disk = read_disk(file.read(SECTOR), path.stat().st_size, int(order["largest"]) * GIB)
    return describe(image, path, disk, order["hosts"])


def describe(image: Mapping[str, Any], path: Path, disk: Disk, hosts: Sequence[str]) -> dict[str, Any]:
    """What Ansible needs to know of an image."""
    file = f"sha256-{image['sha256']}.{disk.format}"
    manifest = {
        "name": image["name"],
        "file": file,
        "format": disk.format,
        "virtual-size": disk.virtual_size,
        "sha256": image["sha256"],
    }
    return {
        "name": image["name"],
        "path": str(path.resolve()),
        "file": file,
        "sha256": image["sha256"],
        "hosts": image.get("hosts") or hosts,
        "manifest": json.dumps(manifest, indent=2),
    }


def main() -> int:
    """Exit status 0, or 1 when an image can't be used."""
    order = json.load(sys.stdin)
    fetched: list[str] = []
    prepared = []
    for image in order["images"]:
        try:
            prepared.append(prepare(image, order, fetched))
        except (ImageError, OSError) as error:
            print(f"error: image {image['name']}: {error}", file=sys.stderr)
            return 1
    json.dump({"images": [image for image in prepared if image], "fetched": fetched}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
