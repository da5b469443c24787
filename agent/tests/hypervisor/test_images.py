"""Images are what whole manifests say, and nothing outside their directory."""

import asyncio
import hashlib
import json
import logging
import os
import subprocess
import time
from pathlib import Path

import pytest

from aetherscale_agent.hypervisor import ManifestImages, overlay
from aetherscale_agent.hypervisor import images as images_module
from aetherscale_agent.ports import HypervisorError
from aetherscale_testing.guests import write_image

CREATE = ["/usr/bin/qemu-img", "create", "-q", "-f", "qcow2"]


def break_manifest(directory: Path, **changes: object) -> None:
    """Write the image `broken`, with these keys of its manifest changed (None: left out)."""
    write_image(directory, "broken", b"broken")
    path = directory / "broken.json"
    manifest = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in manifest.items() if value is not None}))


def test_an_image_is_what_its_manifest_says(tmp_path: Path) -> None:
    file = write_image(tmp_path, "ubuntu_base", b"disk")
    image = ManifestImages(tmp_path).list()["ubuntu_base"]
    assert (image.path, image.format, image.virtual_size) == (str(file), "raw", 4)


@pytest.mark.parametrize(
    "changes",
    [
        {"file": "../../../etc/shadow"},
        {"file": "/etc/shadow"},
        {"file": "sha256-" + "0" * 64 + ".raw", "sha256": "0" * 64},
        {"sha256": "0" * 64},
        {"format": "qcow2"},
        {"format": "vmdk"},
        {"name": "other"},
        {"virtual-size": 0},
        {"virtual-size": "big"},
        {"virtual-size": None},
    ],
)
def test_a_bad_manifest_is_ignored_with_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, object]
) -> None:
    write_image(tmp_path, "good", b"good")
    break_manifest(tmp_path, **changes)
    images = ManifestImages(tmp_path)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert set(images.list()) == {"good"}
    assert [record.getMessage().startswith("image manifest broken.json ignored") for record in caplog.records] == [True]


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_manifest_that_is_no_json_is_ignored(tmp_path: Path, text: str) -> None:
    (tmp_path / "broken.json").write_text(text)
    assert ManifestImages(tmp_path).list() == {}


def test_an_image_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    file = write_image(tmp_path, "linked", b"linked")
    file.unlink()
    file.symlink_to("/etc/passwd")
    assert ManifestImages(tmp_path).list() == {}


def write_qcow2(directory: Path, *options: str, **changes: object) -> Path:
    """An image `evil` that qemu-img made, and its manifest; the image's file."""
    draft = directory / "draft"
    subprocess.run([*CREATE, *options, str(draft), "1G"], check=True, capture_output=True)
    digest = hashlib.sha256(draft.read_bytes()).hexdigest()
    file = draft.rename(directory / f"sha256-{digest}.qcow2")
    manifest = {"name": "evil", "file": file.name, "format": "qcow2", "virtual-size": 1 << 30, "sha256": digest}
    (directory / "evil.json").write_text(json.dumps({**manifest, **changes}))
    return file


@pytest.mark.parametrize(
    ("options", "changes", "words"),
    [
        (("-u", "-b", "/etc/shadow", "-F", "raw"), {}, "backing file, '/etc/shadow'"),
        (("-o", "data_file=data"), {}, "another file"),
        ((), {"virtual-size": 1 << 40}, "not of"),
    ],
)
def test_an_image_that_is_not_what_it_should_be_is_never_offered(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    changes: dict[str, object],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_qcow2(tmp_path, *options, **changes)
    with caplog.at_level(logging.WARNING):
        assert ManifestImages(tmp_path).list() == {}
    assert [words in record.getMessage() for record in caplog.records] == [True]


def test_an_image_that_was_changed_after_it_was_offered_is_not_opened(tmp_path: Path) -> None:
    file = write_qcow2(tmp_path)
    image = ManifestImages(tmp_path).list()["evil"]
    subprocess.run([*CREATE, "-u", "-b", "/etc/shadow", "-F", "raw", str(file), "1G"], check=True)
    with pytest.raises(HypervisorError, match="backing file, '/etc/shadow'"):
        asyncio.run(overlay.Overlays(30).make(image, tmp_path / "disk.qcow2", 1 << 30))
    assert not (tmp_path / "disk.qcow2").exists()


def test_changes_are_seen(tmp_path: Path) -> None:
    images = ManifestImages(tmp_path)
    assert images.list() == {}
    file = write_image(tmp_path, "late", b"late")
    assert set(images.list()) == {"late"}
    file.unlink()
    assert images.list() == {}


def test_a_settled_directory_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path, "old", b"old")
    os.utime(tmp_path, (1, 1))
    images = ManifestImages(tmp_path)
    assert set(images.list()) == {"old"}
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read again"))
    assert set(images.list()) == {"old"}


def let_time_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    later = time.time() + 100
    monkeypatch.setattr(time, "time", lambda: later)


@pytest.fixture
def imported_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of an image whose name has another one by now, some time ago."""
    old = write_image(tmp_path, "base", b"old")
    write_image(tmp_path, "base", b"new")
    let_time_pass(monkeypatch)
    return old


def digest_of(path: Path) -> str:
    return path.name[7:71]


def test_a_file_that_nobody_needs_is_swept(tmp_path: Path, imported_anew: Path) -> None:
    (tmp_path / "notes.txt").touch()
    assert ManifestImages(tmp_path).sweep(set(), 60) == (imported_anew.name,)
    assert {path.name for path in tmp_path.iterdir()} == {
        "notes.txt",
        "base.json",
        ManifestImages(tmp_path).list()["base"].path.rpartition("/")[2],
    }


def test_a_file_that_a_vm_needs_is_not_swept_and_is_found(tmp_path: Path, imported_anew: Path) -> None:
    images = ManifestImages(tmp_path)
    assert images.sweep({digest_of(imported_anew)}, 60) == ()
    found = images.find(digest_of(imported_anew), "base")
    assert found is not None
    assert (found.name, found.path, found.format, found.virtual_size) == ("base", str(imported_anew), "raw", 3)
    assert images.find("0" * 64, "base") is None
    named = images.list()["base"]
    assert images.find(named.sha256, "any") == named


def test_an_old_qcow2_file_is_found_with_the_size_that_its_header_has(tmp_path: Path) -> None:
    file = write_qcow2(tmp_path)
    (tmp_path / "evil.json").unlink()
    found = ManifestImages(tmp_path).find(digest_of(file), "base")
    assert found is not None
    assert (found.format, found.virtual_size) == ("qcow2", 1 << 30)
    file.write_bytes(b"no image")
    assert ManifestImages(tmp_path).find(digest_of(file), "base") is None


def test_nothing_is_swept_while_an_import_may_be_under_way(tmp_path: Path, imported_anew: Path) -> None:
    assert ManifestImages(tmp_path).sweep(set(), 200) == ()
    assert imported_anew.exists()


def test_nothing_is_swept_while_a_manifest_cannot_be_read(tmp_path: Path, imported_anew: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(HypervisorError):
        ManifestImages(tmp_path).sweep(set(), 60)
    assert imported_anew.exists()


def test_a_file_whose_manifest_is_not_believed_is_not_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_qcow2(tmp_path, **{"virtual-size": 1 << 40})
    let_time_pass(monkeypatch)
    assert ManifestImages(tmp_path).list() == {}
    assert ManifestImages(tmp_path).sweep(set(), 60) == ()
    assert file.exists()


def test_what_disks_stand_on_is_read_from_them(tmp_path: Path) -> None:
    base = write_qcow2(tmp_path)
    home = tmp_path / "vms" / "sgeqxcfi"
    home.mkdir(parents=True)
    asyncio.run(overlay.Overlays(30).make(ManifestImages(tmp_path).list()["evil"], home / "disk.qcow2", 1 << 30))
    (tmp_path / "vms" / "abcdefgh").mkdir()
    assert images_module.find_bases(tmp_path / "vms") == {digest_of(base)}
    (home / "disk.qcow2").write_bytes(b"no disk")
    with pytest.raises(HypervisorError, match="VM sgeqxcfi"):
        images_module.find_bases(tmp_path / "vms")
    assert images_module.find_bases(tmp_path / "nothing") == set()


def test_a_directory_that_is_not_there_has_no_images(tmp_path: Path) -> None:
    assert ManifestImages(tmp_path / "nothing").list() == {}
    assert ManifestImages(tmp_path / "nothing").sweep(set(), 0) == ()
