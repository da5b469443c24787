"""The cloud image's builder, as far as it needs no network."""

import subprocess
from pathlib import Path

import pytest

from aetherscale_lab import cloud, disk
from aetherscale_lab.errors import LabError


def test_what_finds_the_disk_is_valid_shell() -> None:
    assert subprocess.run(["sh", "-n"], input=cloud._INIT, check=False).returncode == 0


def test_without_a_network_a_missing_image_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud, "image_path", lambda: tmp_path / "cloud.qcow2")
    monkeypatch.setenv("AETHERSCALE_LAB_ISOLATED", "test")
    with pytest.raises(LabError, match="the cloud image is not built"):
        cloud.prepare_cloud()


def test_an_image_of_other_inputs_has_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    before = cloud.image_path()
    monkeypatch.setattr(cloud, "_PACKAGES", [*cloud._PACKAGES, "vim"])
    assert cloud.image_path() != before


def test_modules_come_with_what_they_need(tmp_path: Path) -> None:
    folder = tmp_path / "lib/modules/6.1/kernel"
    folder.mkdir(parents=True)
    for name, needs in (("vfat", "fat"), ("fat", ""), ("other", "")):
        (folder / f"{name}.ko").write_bytes(f"\0depends={needs}\0".encode())
    assert [path.name for path in disk.find_modules(tmp_path, ["vfat", "built-in"])] == ["fat.ko", "vfat.ko"]
