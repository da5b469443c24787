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
    asyncio.run(overlay.Overlays(30).make(image, disk, 1 << 30))
    assert disk.read_bytes()[:4] == b"QFI\xfb"
    assert mode(disk) == 0o666
    stamp = disk.stat().st_mtime_ns
    asyncio.run(overlay.Overlays(30).make(image, disk, 2 << 30))
    assert disk.stat().st_mtime_ns == stamp
    assert not disk.with_suffix(".new").exists()


def test_overlays_that_are_alike_are_made_of_the_first(
    tmp_path: Path, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []

    async def run_tool(command: list[str], timeout: float) -> bytes:
        started.append(command)
        return await real(command, timeout)

    real = overlay.run_tool
    monkeypatch.setattr(overlay, "run_tool", run_tool)
    overlays = overlay.Overlays(30)
    disks = [tmp_path / f"{number}.qcow2" for number in range(4)]
    for disk, size in zip(disks, (1 << 30, 1 << 30, 2 << 30, 1 << 30), strict=True):
        asyncio.run(overlays.make(image, disk, size))
    assert len(started) == 2
    first, second, larger, fourth = disks
    assert first.read_bytes() == second.read_bytes() == fourth.read_bytes() != larger.read_bytes()
    assert second.stat().st_blocks <= first.stat().st_blocks
    assert (mode(second), second.with_suffix(".new").exists()) == (0o666, False)
    for size in range(3, 3 + overlay.MOST_DRAFTS):  # the oldest is forgotten, and made again
        asyncio.run(overlays.make(image, tmp_path / f"more-{size}.qcow2", size << 30))
    asyncio.run(overlays.make(image, tmp_path / "again.qcow2", 1 << 30))
    assert len(started) == 3 + overlay.MOST_DRAFTS
    assert (tmp_path / "again.qcow2").read_bytes() == first.read_bytes()


def test_an_image_that_is_gone_is_told_though_its_overlay_is_known(tmp_path: Path, image: Image) -> None:
    overlays = overlay.Overlays(30)
    asyncio.run(overlays.make(image, tmp_path / "disk.qcow2", 1 << 30))
    Path(image.path).unlink()
    with pytest.raises(ImageMissing):
        asyncio.run(overlays.make(image, tmp_path / "other.qcow2", 1 << 30))


def test_a_half_made_overlay_is_made_again(image: Image, tmp_path: Path) -> None:
    disk = tmp_path / "disk.qcow2"
    disk.with_suffix(".new").write_text("half")
    asyncio.run(overlay.Overlays(30).make(image, disk, 1 << 30))
    assert disk.read_bytes()[:4] == b"QFI\xfb"


def test_a_missing_image_and_a_missing_directory_are_told(image: Image, tmp_path: Path) -> None:
    with pytest.raises(HypervisorError, match="could not be made"):
        asyncio.run(overlay.Overlays(30).make(image, tmp_path / "nowhere" / "disk.qcow2", 1 << 30))
    Path(image.path).unlink()
    with pytest.raises(ImageMissing, match='"base"'):
        asyncio.run(overlay.Overlays(30).make(image, tmp_path / "disk.qcow2", 1 << 30))


def test_a_finding_holds_for_one_boot_and_one_qemu(tmp_path: Path) -> None:
    path = tmp_path / "accelerator.json"
    assert probe.find_known(path, "boot qemu") is None
    files.write_whole(path, b'{"key": "boot qemu", "accelerator": "kvm"}')
    assert probe.find_known(path, "boot qemu") == probe.Finding("boot qemu", "kvm")
    assert probe.find_known(path, "other qemu") is None
    path.write_text("{")
    assert probe.find_known(path, "boot qemu") is None
