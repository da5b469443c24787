"""Reading image headers: never by QEMU, and never trusting what they say."""

import hashlib
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aetherscale_protocol import names

GIB = 1 << 30
LARGEST = 64 * GIB


def qcow2(images, *, version=3, backing=0, cluster_bits=16, size=GIB, encryption=0, incompatible=0, rest=b""):
    head = images.QCOW2_HEADER.pack(images.QCOW2_MAGIC, version, backing, 20, cluster_bits, size, encryption)
    head = head.ljust(images.QCOW2_INCOMPATIBLE_AT, b"\0") + images.QCOW2_INCOMPATIBLE.pack(incompatible)
    return head + rest


def test_a_qcow2_tells_its_size(images):
    for version in (2, 3):
        assert images.read_disk(qcow2(images, version=version), 200_000, LARGEST) == images.Disk("qcow2", GIB)


def test_a_raw_disk_is_as_large_as_its_file(images):
    head = bytes(510) + b"\x55\xaa"
    assert images.read_disk(head, 4 * GIB, LARGEST) == images.Disk("raw", 4 * GIB)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"backing": 1024}, "backing file"),
        ({"version": 1}, "version 1"),
        ({"version": 4}, "version 4"),
        ({"encryption": 1}, "encrypted"),
        ({"encryption": 2}, "encrypted"),
        ({"cluster_bits": 8}, "clusters"),
        ({"cluster_bits": 22}, "clusters"),
        ({"size": 0}, "disk of 0 bytes"),
        ({"size": LARGEST + 512}, "allowed"),
        ({"size": (1 << 64) - 1}, "allowed"),
        ({"incompatible": 4}, "another file"),
        ({"incompatible": 2}, "corrupt"),
        ({"incompatible": 1 << 40}, "not known"),
    ],
)
def test_a_qcow2_that_no_host_should_open_is_refused(images, fields, words):
    with pytest.raises(images.ImageError, match=words):
        images.read_disk(qcow2(images, **fields), 200_000, LARGEST)


def test_features_that_need_no_other_file_are_fine(images):
    assert images.read_disk(qcow2(images, incompatible=1 | 8 | 16), 200_000, LARGEST).virtual_size == GIB


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"", "neither"),
        (b"\x1f\x8b\x08" + bytes(600), "gzip"),
        (b"<!DOCTYPE html>", "HTML"),
        (b"KDMV" + bytes(600), "VMware"),
        (bytes(512), "neither"),
        (b"QFI\xfb\0\0\0\3", "within the header"),
    ],
)
def test_what_is_no_image_is_told_what_it_is(images, head, words):
    with pytest.raises(images.ImageError, match=words):
        images.read_disk(head, 1 << 20, LARGEST)


@given(head=st.binary(max_size=512), size=st.integers(0, 1 << 70))
def test_any_bytes_give_a_disk_or_a_clear_error(images, head, size):
    check(images, head, size)


@given(rest=st.binary(min_size=100, max_size=508), size=st.integers(0, 1 << 70))
def test_any_qcow2_header_gives_a_disk_or_a_clear_error(images, rest, size):
    check(images, images.QCOW2_MAGIC + b"\0\0\0\3" + rest, size)


def check(images, head, size):
    try:
        disk = images.read_disk(head, size, LARGEST)
    except images.ImageError:
        return
    assert disk.format in ("qcow2", "raw")
    assert 512 <= disk.virtual_size <= LARGEST


def test_names_are_the_protocols(images):
    assert names.IMAGE_PATTERN == images.NAME


def run(images, order):
    done = subprocess.run([sys.executable, images.__file__], input=json.dumps(order), capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def order(images, tmp_path):
    data = qcow2(images, rest=bytes(5000))
    (tmp_path / "disk.img").write_bytes(data)
    image = {"name": "ubuntu_base", "source": "disk.img", "sha256": hashlib.sha256(data).hexdigest()}
    return {
        "images": [image], "hosts": ["h1", "h2"], "base": str(tmp_path), "cache": str(tmp_path / "cache"),
        "largest": 64, "check": False,
    }  # fmt: skip


def test_the_manifest_is_what_the_agent_reads(images, order, tmp_path):
    from aetherscale_agent.hypervisor.images import read_manifest

    code, out, _ = run(images, order)
    assert code == 0
    (image,) = json.loads(out)["images"]
    assert image["hosts"] == ["h1", "h2"]
    (tmp_path / image["file"]).touch()
    (tmp_path / "ubuntu_base.json").write_text(image["manifest"])
    read = read_manifest(tmp_path / "ubuntu_base.json")
    assert (read.name, read.format, read.virtual_size) == ("ubuntu_base", "qcow2", GIB)


def test_a_wrong_digest_names_both(images, order):
    found = order["images"][0]["sha256"]
    order["images"][0]["sha256"] = "0" * 64
    code, _, words = run(images, order)
    assert code == 1
    assert found in words
    assert "0" * 64 in words


def test_an_url_is_fetched_once_and_not_by_a_check(images, order, tmp_path):
    order["images"][0]["source"] = (tmp_path / "disk.img").as_uri()
    order["check"] = True
    code, out, _ = run(images, order)
    assert (code, json.loads(out)["images"]) == (0, [])
    assert not (tmp_path / "cache").exists()
    order["check"] = False
    code, out, _ = run(images, order)
    assert len(json.loads(out)["fetched"]) == len(json.loads(out)["images"]) == 1
    code, out, _ = run(images, order)
    assert json.loads(out)["fetched"] == []


def test_a_download_that_is_wrong_leaves_nothing(images, order, tmp_path):
    order["images"][0] |= {"source": (tmp_path / "disk.img").as_uri(), "sha256": "0" * 64}
    assert run(images, order)[0] == 1
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "../evil"}, "a name is"),
        ({"sha256": "abc"}, "64 hexadecimal"),
        ({"source": "nowhere.img"}, "No such file"),
        ({"hosts": ["h9"]}, "h9"),
    ],
)
def test_a_senseless_order_is_refused(images, order, change, words):
    order["images"][0] |= change
    code, _, said = run(images, order)
    assert code == 1
    assert words in said
    assert "Traceback" not in said


def test_an_image_may_be_for_one_host(images, order):
    order["images"][0]["hosts"] = ["h2"]
    assert json.loads(run(images, order)[1])["images"][0]["hosts"] == ["h2"]
