"""Image headers as an attacker writes them: a disk that stands by itself, or a clear error. No QEMU opens any of it."""

import contextlib
import io
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aetherscale_protocol import disk_images
from aetherscale_protocol.disk_images import Disk, ImageError, check_image, read_image, read_qcow2

GIB = 1 << 30
CLUSTER = 1 << 16
QEMU_IMG = shutil.which("qemu-img") or "/usr/bin/qemu-img"

# Name: (offset, format) of the header's numbers.
FIELDS = {
    "magic": (0, ">I"), "version": (4, ">I"), "backing_at": (8, ">Q"), "backing_length": (16, ">I"),
    "cluster_bits": (20, ">I"), "size": (24, ">Q"), "encryption": (32, ">I"), "l1_entries": (36, ">I"),
    "l1_at": (40, ">Q"), "refcounts_at": (48, ">Q"), "refcount_clusters": (56, ">I"), "snapshots": (60, ">I"),
    "snapshots_at": (64, ">Q"), "incompatible": (72, ">Q"), "compatible": (80, ">Q"), "autoclear": (88, ">Q"),
    "refcount_order": (96, ">I"), "length": (100, ">I"), "compression": (104, ">B"),
}  # fmt: skip


def qcow2(kind: int = 3, extensions: bytes = b"", **changes: int) -> bytes:
    """A whole and empty qcow2 file of 1 GiB, as `qemu-img create` makes it, with some numbers changed."""
    data = bytearray(3 * CLUSTER + 16)
    numbers = {
        "magic": 0x514649FB, "version": kind, "cluster_bits": 16, "size": GIB, "l1_entries": 2, "l1_at": 3 * CLUSTER,
        "refcounts_at": CLUSTER, "refcount_clusters": 1,
    }  # fmt: skip
    if kind == 3:
        numbers |= {"refcount_order": 4, "length": 112}
    start = 112 if kind == 3 else 72
    data[start : start + len(extensions)] = extensions
    for name, value in {**numbers, **changes}.items():
        offset, form = FIELDS[name]
        struct.pack_into(form, data, offset, value)
    return bytes(data)


def extension(kind: int, data: bytes) -> bytes:
    return struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)


def read(data: bytes, largest: int = disk_images.LARGEST) -> Disk:
    return read_image(io.BytesIO(data), largest)


@pytest.mark.parametrize("version", [2, 3])
def test_a_qcow2_tells_its_size(version: int) -> None:
    assert read(qcow2(version)) == Disk("qcow2", GIB)


def test_a_raw_disk_is_as_large_as_its_file() -> None:
    assert read(bytes(510) + b"\x55\xaa" + bytes(512)) == Disk("raw", 1024)


REFUSED = [
    ({"backing_at": 512, "backing_length": 11}, "backing file"),
    ({"backing_at": 512}, "backing file"),
    ({"backing_at": 1 << 63, "backing_length": 11}, "backing file"),
    ({"version": 1}, "version 1"),
    ({"version": 4}, "version 4"),
    ({"encryption": 1}, "encrypted"),
    ({"encryption": 2}, "encrypted"),
    ({"cluster_bits": 8}, "clusters"),
    ({"cluster_bits": 22}, "clusters"),
    ({"cluster_bits": 0xFFFFFFFF}, "clusters"),
    ({"size": 0}, "disk of 0 bytes"),
    ({"size": 1 << 46, "l1_entries": 131_072}, "L1 table is not in the file"),
    ({"size": 2 * GIB}, "too small"),
    ({"size": (1 << 64) - 1}, "too small"),
    ({"l1_entries": 0xFFFFFFFF}, "are the most"),
    ({"l1_at": 0}, "not in the file"),
    ({"l1_at": 3 * CLUSTER + 8}, "not in the file"),
    ({"l1_at": 4 * CLUSTER}, "not in the file"),
    ({"refcount_clusters": 0}, "no refcount table"),
    ({"refcount_clusters": 0xFFFFFFFF}, "are the most"),
    ({"refcounts_at": 1 << 62}, "not in the file"),
    ({"snapshots": 1, "snapshots_at": 8 * CLUSTER}, "snapshots is not in the file"),
    ({"snapshots": 1, "snapshots_at": 1 << 63}, "snapshots is not in the file"),
    ({"snapshots": 65_537, "snapshots_at": CLUSTER}, "65537 snapshots"),
    ({"incompatible": 2}, "corrupt"),
    ({"incompatible": 4}, "another file"),
    ({"incompatible": 8}, "compression"),
    ({"incompatible": 1 << 40}, "not known"),
    ({"compression": 1}, "compression"),
    ({"incompatible": 8, "compression": 2}, "compression"),
    ({"refcount_order": 7}, "no sense"),
    ({"length": 96}, "no sense"),
    ({"length": 1 << 20}, "no sense"),
    ({"length": 109}, "no sense"),
]


@pytest.mark.parametrize(("changes", "words"), REFUSED)
def test_a_qcow2_that_no_host_should_open_is_refused(changes: dict[str, int], words: str) -> None:
    with pytest.raises(ImageError, match=words):
        read(qcow2(**changes))


@pytest.mark.parametrize(
    ("extensions", "words"),
    [
        (extension(0x44415441, b"/etc/shadow"), "another file"),
        (extension(0x0537BE77, bytes(16)), "encrypted"),
        (extension(1, b"a") + struct.pack(">II", 2, 0xFFFFFFFF), "not in its header"),
        (extension(1, b"a") + extension(1, b"b"), "twice"),
        (extension(0x23852875, struct.pack(">IIQQ", 1, 0, 64, 1 << 40)), "bitmaps"),
        (extension(0x23852875, b"short"), "bitmaps"),
    ],
)
@pytest.mark.parametrize("version", [2, 3])
def test_extensions_that_lead_elsewhere_are_refused(version: int, extensions: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        read(qcow2(version, extensions))


def test_sizes_beyond_what_is_allowed_are_refused() -> None:
    with pytest.raises(ImageError, match="allowed are 512 to 512"):
        read(qcow2(), largest=512)


def test_features_that_need_no_other_file_are_fine() -> None:
    assert read(qcow2(incompatible=1)).virtual_size == GIB
    assert read(qcow2(incompatible=8, compression=1)).virtual_size == GIB
    assert read(qcow2(incompatible=16, l1_entries=4)[:-16] + bytes(32)).virtual_size == GIB
    assert read(qcow2(extensions=extension(0x6803F857, bytes(48)) + extension(7, b"future"))).virtual_size == GIB


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "neither"),
        (b"\x1f\x8b\x08" + bytes(600), "gzip"),
        (b"<!DOCTYPE html>", "HTML"),
        (b"KDMV" + bytes(600), "VMware"),
        (bytes(512), "neither"),
        (b"QFI\xfb\0\0\0\3", "within the header"),
        (bytes(510) + b"\x55\xaa!", "whole number of sectors"),
    ],
)
def test_what_is_no_image_is_told_what_it_is(data: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        read(data)


NUMBERS = st.one_of(
    st.integers(0, 255), st.sampled_from([1 << bit for bit in range(64)]), st.integers(0, (1 << 64) - 1)
)
CHANGES = st.dictionaries(st.sampled_from(sorted(FIELDS)), NUMBERS, max_size=4)


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(
    version=st.sampled_from([2, 3]),
    changes=CHANGES,
    extensions=st.binary(max_size=64),
    cut=st.just(1 << 18) | st.integers(0, 1 << 18),
)
def test_no_mutation_crashes_or_leads_elsewhere(
    version: int, changes: dict[str, int], extensions: bytes, cut: int
) -> None:
    fitting = {name: value & ((1 << 8 * struct.calcsize(FIELDS[name][1])) - 1) for name, value in changes.items()}
    data = qcow2(version, extensions, **fitting)[:cut]
    try:
        disk = read(data, 64 * GIB)
    except ImageError:
        return
    assert 512 <= disk.virtual_size <= 64 * GIB
    if disk.format == "qcow2":
        assert data[8:16] == bytes(8)
        assert data[32:36] == bytes(4)
        assert disk.backing == ""


@settings(deadline=None, max_examples=200)
@given(head=st.binary(max_size=600))
def test_any_bytes_give_a_disk_or_a_clear_error(head: bytes) -> None:
    for data in (head, disk_images.QCOW2_MAGIC + b"\0\0\0\3" + head):
        with contextlib.suppress(ImageError):
            assert read(data).virtual_size >= 512


@settings(deadline=None, max_examples=200)
@given(table=st.binary(min_size=40, max_size=400), number=st.integers(1, 70_000))
def test_any_table_of_snapshots_is_walked_to_its_end(table: bytes, number: int) -> None:
    data = qcow2(snapshots=number, snapshots_at=4 * CLUSTER).ljust(4 * CLUSTER, b"\0") + table
    with contextlib.suppress(ImageError):
        assert read(data).virtual_size == GIB


MADE = [
    [],
    ["-o", "compat=0.10"],
    ["-o", "compression_type=zstd"],
    ["-o", "extended_l2=on"],
    ["-o", "cluster_size=512"],
    ["-o", "cluster_size=2M,lazy_refcounts=on,refcount_bits=1"],
    ["-o", "preallocation=metadata"],
]


def create(path: Path, *options: str, size: str = "3G") -> Path:
    command = [QEMU_IMG, "create", "-q", "-f", "qcow2", *options, str(path), size]
    subprocess.run(command, check=True, capture_output=True)
    return path


@pytest.mark.parametrize("options", MADE, ids=lambda options: "-".join(options) or "plain")
def test_what_qemu_img_makes_is_read_as_qemu_reads_it(tmp_path: Path, options: list[str]) -> None:
    path = create(tmp_path / "disk.qcow2", *options)
    for name in ("one", "two"):
        subprocess.run([QEMU_IMG, "snapshot", "-c", name, str(path)], check=True, capture_output=True)
    with path.open("rb") as file:
        assert read_image(file) == Disk("qcow2", 3 * GIB)
        check_image(file, Disk("qcow2", 3 * GIB))


@pytest.mark.parametrize("backing", ["/etc/shadow", "json:{}", "nbd://evil.example/x", "fat:/etc"])
def test_a_real_file_that_stands_on_another_is_refused(tmp_path: Path, backing: str) -> None:
    path = create(tmp_path / "evil.qcow2", "-u", "-b", backing, "-F", "raw")
    with path.open("rb") as file:
        assert read_qcow2(file) == Disk("qcow2", 3 * GIB, backing, "raw")
        with pytest.raises(ImageError, match="backing file"):
            read_image(file)
        with pytest.raises(ImageError, match="backing file"):
            check_image(file, Disk("qcow2", 3 * GIB))


def test_a_real_file_with_its_data_elsewhere_is_refused(tmp_path: Path) -> None:
    path = create(tmp_path / "evil.qcow2", "-o", f"data_file={tmp_path}/data")
    with path.open("rb") as file, pytest.raises(ImageError, match="another file"):
        read_image(file)


def test_what_was_claimed_must_be_so() -> None:
    whole = bytes(qcow2())
    check_image(io.BytesIO(b"any bytes"), Disk("raw", 9))
    check_image(io.BytesIO(whole), Disk("qcow2", GIB))
    for data, claimed, words in (
        (whole, Disk("raw", len(whole)), "it is qcow2, not raw"),
        (whole, Disk("qcow2", 2 * GIB), "not of 2147483648"),
        (bytes(512), Disk("qcow2", 512), "it is raw, not qcow2"),
        (bytes(512), Disk("raw", 1024), "not of 1024"),
    ):
        with pytest.raises(ImageError, match=words):
            check_image(io.BytesIO(data), claimed)
