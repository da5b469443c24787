"""The base images of this host: content-addressed files, and a manifest per name that is written last."""

import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
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
            if msgspec.json.decode(path.read_bytes(), type=_Manifest).file == file:
                return True
        except (OSError, ValueError):
            return True
    return False


def read_manifest(path: Path) -> Image:
    """The image that a manifest names.

    :raise ValueError: when the manifest is broken, or points anywhere but at a whole image beside it, which is what
        it says and stands on no other file.
    :raise OSError: when it can't be read.
    """
    manifest = msgspec.json.decode(path.read_bytes(), type=_Manifest)
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
    with open(disk, "rb", opener=_no_links) as file:
        found = disk_images.read_qcow2(file)
    base = Path(found.backing)
    match = _FILE.fullmatch(base.name)
    if base.parent != folder or match is None or match["format"] != found.backing_format:
        raise disk_images.ImageError(f"it stands on {found.backing!r}, which is no image of this host")


def _no_links(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
