"""A VM's disk while it is off: its size, its snapshots, a copy of it. All by qemu-img, on the overlay's file.

The VM's own QEMU wrote that file, and a guest may have broken out into its QEMU. So qemu-img, which runs as the agent,
opens none that stands on anything but an image in `images`, the host's folder of them.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

from aetherscale_agent.hypervisor import overlay
from aetherscale_agent.hypervisor.images import vet_overlay
from aetherscale_agent.ports import HypervisorError, Image, Snapshot
from aetherscale_protocol.disk_images import ImageError

GIB = 1 << 30

COPY_TIMEOUT = 1800.0
"""Seconds for a copy of a whole disk."""

_IMG = "/usr/bin/qemu-img"


def read_snapshots(image: dict[str, Any]) -> list[Snapshot]:
    """The snapshots in what QEMU or qemu-img says of an image, oldest first. Pure."""
    found = [
        Snapshot(str(row["name"]), row["date-sec"] + row["date-nsec"] / 1e9) for row in image.get("snapshots") or []
    ]
    return sorted(found, key=lambda snapshot: snapshot.created)


async def _vet(disk: Path, images: Path) -> None:
    try:
        await asyncio.to_thread(vet_overlay, disk, images)
    except FileNotFoundError:
        raise HypervisorError("there is no disk") from None
    except (ImageError, OSError) as error:
        raise HypervisorError(f"the disk is not opened: {error}") from None


async def info(disk: Path, images: Path, timeout: float) -> dict[str, Any]:
    """What qemu-img says of a disk that no QEMU uses."""
    await _vet(disk, images)
    command = [_IMG, "info", "--output=json", "-f", "qcow2", str(disk)]
    found: dict[str, Any] = json.loads(await overlay.run_tool(command, timeout, "the disk can't be looked at"))
    return found


async def resize(disk: Path, images: Path, size: int, timeout: float) -> None:
    """Make a disk `size` bytes large."""
    await _vet(disk, images)
    command = [_IMG, "resize", "-q", "-f", "qcow2", str(disk), str(size)]
    await overlay.run_tool(command, timeout, "the disk could not be resized")


async def change_snapshot(option: str, disk: Path, images: Path, name: str, timeout: float) -> None:
    """Make (-c), apply (-a) or delete (-d) a snapshot."""
    await _vet(disk, images)
    what = {"-c": "made", "-a": "restored", "-d": "deleted"}[option]
    command = [_IMG, "snapshot", "-q", option, name, "--image-opts", _as_qcow2(disk)]
    await overlay.run_tool(command, timeout, f"snapshot {name} could not be {what}")


def _as_qcow2(disk: Path) -> str:
    """A disk for those commands of qemu-img that have no `-f` and would guess its format."""
    return f"driver=qcow2,file.driver=file,file.filename={str(disk).replace(',', ',,')}"


async def copy(source: Path, image: Image, disk: Path, size: int, timeout: float) -> None:
    """Copy a disk that no QEMU uses, on the same image and without its snapshots: whole, or not at all.

    The copy is at least `size` bytes large.

    :raise HypervisorError: when it can't be copied.
    """
    images = Path(image.path).parent
    await _vet(source, images)
    await asyncio.to_thread(overlay.vet_image, image)
    new = disk.with_suffix(".new")
    backing = ["-B", image.path, "-F", image.format]
    command = [_IMG, "convert", "-q", "-f", "qcow2", "-O", "qcow2", *backing, str(source), str(new)]
    await overlay.run_tool(command, COPY_TIMEOUT, "the disk could not be copied")
    if (await info(new, images, timeout))["virtual-size"] < size:
        await resize(new, images, size, timeout)
    await asyncio.to_thread(overlay.settle, new, disk)
