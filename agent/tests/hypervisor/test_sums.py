"""Checksums of images: read in the background, believed while the file is the same, and no longer than a day."""

import hashlib
import os
import threading
from pathlib import Path

import pytest

from aetherscale_agent.hypervisor import sums
from aetherscale_agent.hypervisor.sums import Sums
from aetherscale_agent.ports import Checksum, Image

RIGHT, WRONG = Checksum("right"), Checksum("wrong")


class Disk:
    """Some images, the clock, and a reader that goes on only when it is let."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = 0.0
        self.gate = threading.Event()
        self.gate.set()
        self.reads = 0
        self.sums = Sums(lambda: self.now, self._pause)

    def _pause(self, _seconds: float) -> None:
        self.reads += 1
        assert self.gate.wait(10)

    def write(self, name: str, content: bytes, meant: bytes | None = None) -> Image:
        path = self.folder / name
        path.write_bytes(content)
        digest = hashlib.sha256(content if meant is None else meant).hexdigest()
        return Image(name, str(path), "raw", 1 << 30, digest, len(content))

    def look(self, *images: Image) -> list[Checksum]:
        """What is known once nothing is read any more."""
        wanted = {image.name: image for image in images}
        found = self.sums.look(wanted)
        while (reader := self.sums._reader) is not None:
            reader.join(10)
        return list((self.sums.look(wanted) if any(c.state == "pending" for c in found.values()) else found).values())


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def test_each_is_compared_with_what_it_should_be(disk: Disk) -> None:
    images = disk.write("a", b"good"), disk.write("b", b"goof", b"good"), disk.write("c", b"")
    assert disk.look(*images) == [RIGHT, WRONG, RIGHT]


def test_what_is_being_read_is_pending(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums, "CHUNK", 4)
    image = disk.write("a", b"12345678")
    disk.gate.clear()
    assert disk.sums.look({"a": image}) == {"a": Checksum("pending", unread=8)}
    while disk.reads == 0:
        os.sched_yield()
    assert disk.sums.look({"a": image}) == {"a": Checksum("pending", unread=4)}
    disk.gate.set()
    assert disk.look(image) == [RIGHT]


def test_it_is_read_once_while_it_stays_the_same(disk: Disk) -> None:
    image = disk.write("a", b"good")
    assert disk.look(image) == disk.look(image) == [RIGHT]
    assert disk.reads == 1
    file = Path(image.path)
    file.write_bytes(b"goofy")
    assert disk.look(image) == [WRONG]
    file.write_bytes(b"good")
    assert disk.look(image) == [RIGHT]
    assert disk.reads == 3


def test_another_checksum_is_another_question(disk: Disk) -> None:
    image = disk.write("a", b"good")
    other = Image("a", image.path, "raw", 1, "0" * 64, 4)
    assert disk.look(image) == [RIGHT]
    assert disk.look(other) == [WRONG]


def test_after_a_day_it_is_read_again(disk: Disk) -> None:
    """A disk can rot without a time stamp telling."""
    image = disk.write("a", b"good")
    status = os.stat(image.path)
    assert disk.look(image) == [RIGHT]
    with open(image.path, "r+b") as file:
        file.write(b"goof")
    os.utime(image.path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert disk.look(image) == [RIGHT]
    disk.now += sums.BELIEVED_S
    assert disk.look(image) == [WRONG]


def test_a_file_under_two_names_is_read_once(disk: Disk) -> None:
    image = disk.write("a", b"good")
    same = Image("b", image.path, "raw", 1, image.sha256, 4)
    assert disk.look(image, same) == [RIGHT, RIGHT]
    assert disk.reads == 1


def test_a_file_that_is_gone_and_one_that_goes_meanwhile(disk: Disk) -> None:
    image, other = disk.write("a", b"good"), disk.write("b", b"other")
    Path(image.path).unlink()
    assert disk.look(image) == [Checksum("unreadable", "No such file or directory")]
    disk.gate.clear()
    disk.sums.look({"b": other})
    assert disk.sums.look({}) == {}, "nobody asks for it any more"
    disk.gate.set()
    while (reader := disk.sums._reader) is not None:
        reader.join(10)
    assert disk.sums._found == {}


def test_a_directory_in_its_place(disk: Disk) -> None:
    image = disk.write("a", b"good")
    Path(image.path).unlink()
    Path(image.path).mkdir()
    assert disk.look(image) == [Checksum("unreadable", "Is a directory")]
