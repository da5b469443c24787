"""The guest image's formats."""

import subprocess
from pathlib import Path

import pytest

from aetherscale_lab import guest, guest_files
from aetherscale_lab.errors import LabError


def _unpack(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Read "newc" back, by the format's description."""
    found: dict[str, tuple[int, bytes]] = {}
    offset = 0
    while True:
        assert archive[offset : offset + 6] == b"070701"
        numbers = [int(archive[offset + 6 + 8 * i : offset + 14 + 8 * i], 16) for i in range(13)]
        name = archive[offset + 110 : offset + 110 + numbers[11] - 1].decode()
        start = (offset + 110 + numbers[11] + 3) & ~3
        if name == "TRAILER!!!":
            return found
        found[name] = (numbers[1], archive[start : start + numbers[6]])
        offset = (start + numbers[6] + 3) & ~3


def test_initramfs_holds_files_links_and_their_parents() -> None:
    archive = guest_files.pack_initramfs(
        [guest_files.regular_file("etc/a/b", b"12345", 0o600), guest_files.symlink("bin/sh", "busybox")]
    )
    found = _unpack(archive)
    assert list(found) == ["bin", "bin/sh", "etc", "etc/a", "etc/a/b"]
    assert found["etc/a/b"] == (0o100600, b"12345")
    assert found["bin/sh"] == (0o120777, b"busybox")
    assert found["etc"][0] == 0o040755


def test_boot_record_has_two_partitions_behind_each_other() -> None:
    record = guest_files.pack_boot_record(b"\xeb" * 500, 10, 32)
    assert len(record) == 512
    assert record[510:] == b"\x55\xaa"
    assert record[446] == 0x80
    starts = [int.from_bytes(record[446 + 16 * n + 8 :][:4], "little") for n in range(2)]
    assert starts == [2048, 11 * 2048]


def test_modules_load_after_what_they_need() -> None:
    needs = {"virtio_pci": ["virtio", "virtio_ring"], "virtio_ring": ["virtio"], "virtio": []}
    assert guest_files.load_order(["virtio-pci", "built_in"], needs) == [
        "virtio",
        "virtio_ring",
        "virtio_pci",
    ]


def test_dependencies_are_read_from_the_module() -> None:
    module = b"\x7fELF...\0license=GPL\0depends=fat,nls-x\0name=vfat\0"
    assert guest_files.module_dependencies(module) == ["fat", "nls_x"]
    assert guest_files.module_dependencies(b"\0depends=\0") == []
    assert guest_files.module_name("kernel/fs/nls/nls_iso8859-1.ko.xz") == "nls_iso8859_1"


@pytest.mark.parametrize("word", ["", "two words", "a;b", "x" * 65, "ä", "a\n"])
def test_words_that_could_break_the_console_are_refused(word: str, tmp_path: Path) -> None:
    with pytest.raises(LabError):
        guest.with_word(tmp_path / "image", word, tmp_path / "out")


@pytest.mark.parametrize("script", ["init", "seed.sh", "udhcpc.sh"])
def test_guest_scripts_are_valid_shell(script: str) -> None:
    path = Path(guest.__file__).parent / "guest_data" / script
    assert subprocess.run(["sh", "-n", str(path)], check=False).returncode == 0
