"""A VM's directories and its disk, on a plain file system."""

import asyncio
from pathlib import Path

import pytest

from aetherscale_agent.hypervisor import ManifestImages, files, overlay, probe
from aetherscale_agent.hypervisor.config import Layout
from aetherscale_agent.ports import HypervisorError, Image, ImageMissing
from aetherscale_testing.guests import write_image


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    (tmp_path / "state").mkdir()
    (tmp_path / "run").mkdir()
    return Layout(tmp_path / "state", tmp_path / "run")


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_the_walls_are_closed_and_what_is_behind_them_is_open(layout: Layout) -> None:
    paths = layout.vm("sgeqxcfi")
    files.prepare_start(layout, paths, "X=y\n")
    assert [mode(wall) for wall in (layout.homes, layout.runs, layout.envs)] == [0o700] * 3
    assert (mode(paths.home), mode(paths.run)) == (0o755, 0o777)


def test_a_start_clears_the_sockets_of_the_run_before(layout: Layout) -> None:
    paths = layout.vm("sgeqxcfi")
    files.make_dirs(layout, paths)
    paths.agent_monitor.touch()
    files.prepare_start(layout, paths, "X=y\n")
    assert list(paths.run.iterdir()) == []
    assert paths.env.read_text() == "X=y\n"


def test_what_is_there_is_found_and_removed(layout: Layout) -> None:
    assert files.find_ids(layout) == set()
    files.prepare_start(layout, layout.vm("sgeqxcfi"), "X=y\n")
    layout.vm("sgeqxcfi").disk.touch()
    files.make_dirs(layout, layout.vm("kvm-probe"))
    (layout.homes / "lost+found").mkdir()
    assert files.find_ids(layout) == {"sgeqxcfi"}
    files.remove(layout, "sgeqxcfi")
    files.remove(layout, "sgeqxcfi")
    assert files.find_ids(layout) == set()


@pytest.fixture
def image(tmp_path: Path) -> Image:
    write_image(tmp_path, "base", bytes(1 << 20))
    return ManifestImages(tmp_path).list()["base"]


def test_a_disk_is_never_smaller_than_its_image(image: Image) -> None:
    assert overlay.finalize_size(1, image) == 1 << 30
    assert overlay.finalize_size(0, image) == image.virtual_size


def test_an_overlay_is_made_whole_and_kept(image: Image, tmp_path: Path) -> None:
    disk = tmp_path / "disk.qcow2"
    asyncio.run(overlay.make(image, disk, 1 << 30, timeout=30))
    assert disk.read_bytes()[:4] == b"QFI\xfb"
    assert mode(disk) == 0o666
    stamp = disk.stat().st_mtime_ns
    asyncio.run(overlay.make(image, disk, 2 << 30, timeout=30))
    assert disk.stat().st_mtime_ns == stamp
    assert not disk.with_suffix(".new").exists()


def test_a_half_made_overlay_is_made_again(image: Image, tmp_path: Path) -> None:
    disk = tmp_path / "disk.qcow2"
    disk.with_suffix(".new").write_text("half")
    asyncio.run(overlay.make(image, disk, 1 << 30, timeout=30))
    assert disk.read_bytes()[:4] == b"QFI\xfb"


def test_a_missing_image_and_a_missing_directory_are_told(image: Image, tmp_path: Path) -> None:
    with pytest.raises(HypervisorError, match="could not be made"):
        asyncio.run(overlay.make(image, tmp_path / "nowhere" / "disk.qcow2", 1 << 30, timeout=30))
    Path(image.path).unlink()
    with pytest.raises(ImageMissing, match='"base"'):
        asyncio.run(overlay.make(image, tmp_path / "disk.qcow2", 1 << 30, timeout=30))


def test_a_finding_holds_for_one_boot_and_one_qemu(tmp_path: Path) -> None:
    path = tmp_path / "accelerator.json"
    assert probe.find_known(path, "boot qemu") is None
    files.write_whole(path, b'{"key": "boot qemu", "accelerator": "kvm"}')
    assert probe.find_known(path, "boot qemu") == probe.Finding("boot qemu", "kvm")
    assert probe.find_known(path, "other qemu") is None
    path.write_text("{")
    assert probe.find_known(path, "boot qemu") is None
