"""The base images of this host: content-addressed files, and a manifest per name that is written last."""

import contextlib
import logging
import os
import re
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

import msgspec

from aetherscale_agent.hypervisor.sums import Sums
from aetherscale_agent.ports import Checksum, HypervisorError, Image
from aetherscale_protocol import disk_images, names

_log = logging.getLogger(__name__)

_FILE = re.compile(r"sha256-(?P<sha256>[0-9a-f]{64})\.(?P<format>qcow2|raw)")

SETTLED = 2.0
"""Seconds after which a directory's time stamp tells every later change apart."""


class _Manifest(msgspec.Struct, frozen=True, rename="kebab"):
    name: str
    file: str
    format: Literal["qcow2", "raw"]
    virtual_size: Annotated[int, msgspec.Meta(gt=0)]
    sha256: str


class ManifestImages:
    """The images that manifests in one directory name, read again when the directory changes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stamp = -1
        self._images: Mapping[str, Image] = {}
        self._complaints: frozenset[str] = frozenset()
        self._sums = Sums()

    def list(self) -> Mapping[str, Image]:
        """The images that are here and whole, by name; one log line for each manifest that is not."""
        try:
            stamp = self._directory.stat().st_mtime_ns
        except OSError:
            stamp = 0
        if stamp != self._stamp:
            self._read()
            settled = time.time_ns() - stamp > SETTLED * 1e9
            self._stamp = stamp if settled else -1
        return self._images

    def complaints(self) -> frozenset[str]:
        """What is wrong with the manifests that are not in the list."""
        self.list()
        return self._complaints

    def checksums(self) -> Mapping[str, Checksum]:
        """What is known of each image's checksum; files not read lately are read in the background."""
        return self._sums.look(self.list())

    def remove(self, name: str, *, keep_file: bool = False) -> None:
        """Remove an image: first its manifest, then its file, if no other manifest names that.

        :raise HypervisorError: when it can't be removed.
        """
        image = self.list().get(name)
        if image is None:
            return
        try:
            (self._directory / f"{name}.json").unlink(missing_ok=True)
            self._stamp = -1
            if not keep_file and not _is_named(self._directory, Path(image.path).name):
                Path(image.path).unlink(missing_ok=True)
        except OSError as error:
            raise HypervisorError(f"image {name}: {error.filename}: {error.strerror}") from None

    def find(self, sha256: str, name: str) -> Image | None:
        """The image of this digest, if its file is here: under any name, or under none any more, as `name` then."""
        named = [image for image in self.list().values() if image.sha256 == sha256]
        return named[0] if named else find_file(self._directory, sha256, name)

    def sweep(self, needed: Collection[str], age: float) -> tuple[str, ...]:
        """Remove files that no manifest names, older than `age` in seconds, of none of the digests needed; their names.

        :raise HypervisorError: when a manifest can't be read, or a file not be removed.
        """
        placed = time.time() - age
        try:
            if not self._directory.is_dir():
                return ()
            named = {_read_manifest(path).file for path in _manifests(self._directory)}
            idle = [
                path for path in self._directory.iterdir() if path.name not in named and path.lstat().st_ctime < placed
            ]
            swept = [path for path in idle if (match := _FILE.fullmatch(path.name)) and match["sha256"] not in needed]
            for path in swept:
                path.unlink()
        except (OSError, ValueError) as error:
            raise HypervisorError(f"images: {error}") from None
        return tuple(path.name for path in swept)

    def _read(self) -> None:
        images: dict[str, Image] = {}
        complaints = set()
        for path in _manifests(self._directory):
            try:
                image = read_manifest(path)
            except (OSError, ValueError) as error:
                complaints.add(f"image manifest {path.name} ignored: {error}")
            else:
                images[image.name] = image
        for complaint in sorted(complaints - self._complaints):
            _log.warning("%s", complaint)
        self._complaints = frozenset(complaints)
        self._images = MappingProxyType(images)


def _manifests(directory: Path) -> Iterator[Path]:
    try:
        yield from sorted(path for path in directory.iterdir() if path.suffix == ".json" and path.name[0] != ".")
    except OSError as error:
        _log.warning("no images: %s: %s", directory, error.strerror)


def _is_named(directory: Path, file: str) -> bool:
    """Whether any manifest names a file; one that can't be read may."""
    for path in _manifests(directory):
        try:
            if _read_manifest(path).file == file:
                return True
        except (OSError, ValueError):
            return True
    return False


def _read_manifest(path: Path) -> _Manifest:
    return msgspec.json.decode(path.read_bytes(), type=_Manifest)


def find_file(directory: Path, sha256: str, name: str) -> Image | None:
    """The image in a file that no manifest names any more, if there is one of this digest."""
    for path in (directory / f"sha256-{sha256}.qcow2", directory / f"sha256-{sha256}.raw"):
        with contextlib.suppress(OSError, disk_images.ImageError), open(path, "rb", opener=_no_links) as file:
            size = os.fstat(file.fileno()).st_size
            if path.suffix == ".raw":
                return Image(name, str(path), "raw", size, sha256, size)
            return Image(name, str(path), "qcow2", disk_images.read_qcow2(file).virtual_size, sha256, size)
    return None


def read_manifest(path: Path) -> Image:
    """The image that a manifest names.

    :raise ValueError: when the manifest is broken, or points anywhere but at a whole image beside it, which is what
        it says and stands on no other file.
    :raise OSError: when it can't be read.
    """
    manifest = _read_manifest(path)
    if manifest.name != path.stem or not names.is_image_name(manifest.name):
        raise ValueError(f"it speaks of {manifest.name!r}")
    match = _FILE.fullmatch(manifest.file)
    if match is None or match["sha256"] != manifest.sha256 or match["format"] != manifest.format:
        raise ValueError(f"{manifest.file!r} is no name for an image of this digest and format")
    file = path.parent / manifest.file
    if file.is_symlink() or not file.is_file():
        raise ValueError(f"{manifest.file} is not there")
    image = Image(
        manifest.name, str(file), manifest.format, manifest.virtual_size, manifest.sha256, file.stat().st_size
    )
    vet(image)
    return image


def vet(image: Image) -> None:
    """See that an image's file is what was said of it, before any QEMU opens it.

    :raise ImageError: when it is not, or when it would lead whoever opens it to another file.
    :raise OSError: when it can't be read.
    """
    with open(image.path, "rb", opener=_no_links) as file:
        disk_images.check_image(file, disk_images.Disk(image.format, image.virtual_size))


def vet_overlay(disk: Path, folder: Path) -> None:
    """See that a VM's disk stands on an image of this host: its QEMU could write anything into it, header included.

    :raise ImageError: when it stands on anything else.
    :raise OSError: when it can't be read.
    """
    found = _read_overlay(disk)
    base = Path(found.backing)
    match = _FILE.fullmatch(base.name)
    if base.parent != folder or match is None or match["format"] != found.backing_format:
        raise disk_images.ImageError(f"it stands on {found.backing!r}, which is no image of this host")


def find_bases(homes: Path) -> set[str]:
    """The digests of the images on which the disks in these VMs' homes stand, as they themselves say.

    :raise HypervisorError: when one can't be read.
    """
    bases = set()
    for disk in homes.glob("*/disk.qcow2"):
        try:
            match = _FILE.fullmatch(Path(_read_overlay(disk).backing).name)
        except FileNotFoundError:
            continue  # removed since
        except (disk_images.ImageError, OSError) as error:
            raise HypervisorError(f"the disk of VM {disk.parent.name} can't be looked at: {error}") from None
        if match is not None:
            bases.add(match["sha256"])
    return bases


def _read_overlay(disk: Path) -> disk_images.Disk:
    with open(disk, "rb", opener=_no_links) as file:
        return disk_images.read_qcow2(file)


def _no_links(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
