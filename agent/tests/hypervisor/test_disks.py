"""A VM's disk while it is off: what its QEMU wrote into it never leads the agent's qemu-img to a file of the host's."""

import asyncio
import subprocess
from pathlib import Path

import pytest

from aetherscale_agent.hypervisor import ManifestImages, disks, overlay
from aetherscale_agent.ports import HypervisorError, Image
from aetherscale_testing.guests import write_image

GIB = 1 << 30


@pytest.fixture
def image(tmp_path: Path) -> Image:
    (tmp_path / "images").mkdir()
    write_image(tmp_path / "images", "base", bytes(1 << 20))
    return ManifestImages(tmp_path / "images").list()["base"]


@pytest.fixture
def disk(tmp_path: Path, image: Image) -> Path:
    path = tmp_path / "disk,of.qcow2"
    asyncio.run(overlay.Overlays(30).make(image, path, GIB))
    return path


def test_a_disk_grows_and_keeps_snapshots(tmp_path: Path, disk: Path, image: Image) -> None:
    images = tmp_path / "images"
    asyncio.run(disks.resize(disk, images, 2 * GIB, 30))
    asyncio.run(disks.change_snapshot("-c", disk, images, "one", 30))
    asyncio.run(disks.change_snapshot("-a", disk, images, "one", 30))
    found = asyncio.run(disks.info(disk, images, 30))
    assert (found["virtual-size"], [row.name for row in disks.read_snapshots(found)]) == (2 * GIB, ["one"])
    asyncio.run(disks.copy(disk, image, tmp_path / "copy.qcow2", 3 * GIB, 30))
    assert asyncio.run(disks.info(tmp_path / "copy.qcow2", images, 30))["virtual-size"] == 3 * GIB
    asyncio.run(disks.change_snapshot("-d", disk, images, "one", 30))
    assert disks.read_snapshots(asyncio.run(disks.info(disk, images, 30))) == []


@pytest.mark.parametrize(
    ("backing", "form", "words"),
    [
        ("/etc/shadow", "raw", "'/etc/shadow', which is no image"),
        ("{images}/../shadow", "raw", "no image"),
        ("{images}/{file}", "qcow2", "no image"),
        ("json:{{}}", "raw", "no image"),
    ],
)
def test_a_disk_that_leads_elsewhere_is_not_opened(
    tmp_path: Path, disk: Path, image: Image, backing: str, form: str, words: str
) -> None:
    images = tmp_path / "images"
    evil = backing.format(images=images, file=Path(image.path).name)
    command = ["/usr/bin/qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", evil, "-F", form, str(disk), "1G"]
    subprocess.run(command, check=True)
    for attempt in (
        disks.info(disk, images, 30),
        disks.resize(disk, images, 2 * GIB, 30),
        disks.change_snapshot("-c", disk, images, "one", 30),
        disks.copy(disk, image, tmp_path / "copy.qcow2", GIB, 30),
    ):
        with pytest.raises(HypervisorError, match=words):
            asyncio.run(attempt)
    assert not (tmp_path / "copy.qcow2").exists()


def test_a_disk_that_is_a_link_or_gone_is_told(tmp_path: Path, disk: Path) -> None:
    link = tmp_path / "link.qcow2"
    link.symlink_to(disk)
    for path, words in ((link, "not opened"), (tmp_path / "none", "there is no disk")):
        with pytest.raises(HypervisorError, match=words):
            asyncio.run(disks.info(path, tmp_path / "images", 30))
