"""A VM's disk: a qcow2 overlay on a base image."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aetherscale_agent.hypervisor import files, images
from aetherscale_agent.ports import HypervisorError, Image, ImageMissing
from aetherscale_protocol.disk_images import ImageError

GIB = 1 << 30
BLOCK = 4096
MOST_DRAFTS = 32
"""Of images and sizes that are asked for again and again there are few."""


def finalize_create(image: Image, disk: Path, size: int) -> list[str]:
    """The command that makes an overlay of `size` bytes on an image."""
    return [
        *("/usr/bin/qemu-img", "create", "-q"),
        *("-f", "qcow2"),
        *("-b", image.path),
        *("-F", image.format),
        str(disk),
        str(size),
    ]


def finalize_size(gib: int, image: Image) -> int:
    """The size of a VM's disk in bytes: what was asked for, or the image's own size if that is more."""
    return max(gib * GIB, image.virtual_size)


class Overlays:
    """Makes overlays. `qemu-img` is asked once for all that are alike: they differ in nothing but their names."""

    def __init__(self, timeout: float) -> None:
        """`timeout`: seconds for `qemu-img`."""
        self._timeout = timeout
        self._drafts: dict[tuple[str, str, int], Draft] = {}

    async def make(self, image: Image, disk: Path, size: int) -> None:
        """Make the overlay whole, or not at all. Nothing happens if it is there.

        :raise ImageMissing: when the image's file is gone.
        :raise HypervisorError: when it can't be made, or the image is not what it was.
        """
        new, alike = disk.with_suffix(".new"), (image.path, image.format, size)
        if not await asyncio.to_thread(_make_alike, image, disk, new, self._drafts.get(alike)):
            await run_tool(finalize_create(image, new, size), self._timeout)
            if len(self._drafts) >= MOST_DRAFTS:
                del self._drafts[next(iter(self._drafts))]
            self._drafts[alike] = await asyncio.to_thread(_keep, new, disk)


@dataclass(frozen=True)
class Draft:
    """A file that is nearly all holes: its size, and the blocks with something in them, by their offsets."""

    size: int
    blocks: Mapping[int, bytes]


def _make_alike(image: Image, disk: Path, new: Path, draft: Draft | None) -> bool:
    """Whether there is nothing left to do: the disk is there, or was made of an earlier one's draft."""
    if _is_made(image, disk):
        return True
    if draft is None:
        return False
    with new.open("wb") as file:
        for offset, block in draft.blocks.items():
            file.seek(offset)
            file.write(block)
        file.truncate(draft.size)
    settle(new, disk)
    return True


def _keep(new: Path, disk: Path) -> Draft:
    """Settle what `qemu-img` has made; the draft for those that will be alike."""
    data = new.read_bytes()
    settle(new, disk)
    blocks = {offset: data[offset : offset + BLOCK] for offset in range(0, len(data), BLOCK)}
    return Draft(len(data), {offset: block for offset, block in blocks.items() if any(block)})


def _is_made(image: Image, disk: Path) -> bool:
    if disk.exists():
        return True
    if not Path(image.path).is_file():
        raise ImageMissing(f'the file of image "{image.name}" is gone')
    vet_image(image)
    return False


def vet_image(image: Image) -> None:
    """See that `qemu-img` may open an image.

    :raise HypervisorError: when it may not.
    """
    try:
        images.vet(image)
    except (ImageError, OSError) as error:
        raise HypervisorError(f'image "{image.name}" is not opened: {error}') from None


async def run_tool(command: list[str], timeout: float, what: str = "the disk could not be made") -> bytes:
    """What `qemu-img` prints, within so many seconds.

    :raise HypervisorError: `what`, and why, when it fails or takes longer.
    """
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(timeout):
            stdout, stderr = await process.communicate()
    except TimeoutError:
        raise HypervisorError(f"{what}: qemu-img took more than {timeout:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode != 0:
        detail = stderr.decode("utf-8", "replace").strip().removeprefix("qemu-img: ")
        raise HypervisorError(f"{what}: {detail or f'qemu-img failed ({process.returncode})'}")
    return stdout


def settle(new: Path, disk: Path) -> None:
    """Give a finished draft of a disk its name."""
    # 0666 behind a wall of 0700: the VM's user of the day is not known before it starts.
    new.chmod(0o666)
    files.sync(new)
    new.rename(disk)
    files.sync(disk.parent)
