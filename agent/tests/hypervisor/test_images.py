"""Images are what whole manifests say, and nothing outside their directory."""

import asyncio
import hashlib
import json
import logging
import os
import subprocess
from pathlib import Path

import pytest

from aetherscale_agent.hypervisor import ManifestImages, overlay
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


def test_a_directory_that_is_not_there_has_no_images(tmp_path: Path) -> None:
    assert ManifestImages(tmp_path / "nothing").list() == {}
