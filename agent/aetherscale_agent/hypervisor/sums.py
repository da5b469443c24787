"""Are the images what their checksums say? Read in the background, one file at a time, so that no guest suffers.

A thread of its own with the lowest priority reads at most half of the time; it is a daemon, so the agent's end does not
wait for it. What was found is believed for a day, for as long as the file is the same by inode, size and time stamp.
"""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping

from aetherscale_agent.ports import Checksum, Image

CHUNK = 4 << 20
"""Bytes that are read between two pauses."""

LOWEST = 19

BELIEVED_S = 86_400.0
"""For how long: a disk can rot without a file's time stamp telling."""

Key = tuple[str, int, int, int]
Clock = Callable[[], float]


class Sums:
    """What is known of files' checksums. `look` is for one thread, the agent's."""

    def __init__(self, clock: Clock = time.monotonic, pause: Callable[[float], None] = time.sleep) -> None:
        self._clock = clock
        self._pause = pause
        self._found: dict[Key, tuple[Checksum, float]] = {}
        self._wanted: dict[Key, Image] = {}
        self._read: dict[Key, int] = {}  #: bytes of the file that is being read
        self._lock = threading.Lock()
        self._reader: threading.Thread | None = None

    def look(self, images: Mapping[str, Image]) -> dict[str, Checksum]:
        """What is known of each image now; those of which nothing is are read from here on."""
        keys = {name: _key(image) for name, image in images.items()}
        with self._lock:
            self._forget(key for key in keys.values() if isinstance(key, tuple))
            return {name: self._state(key, images[name]) for name, key in keys.items()}

    def _forget(self, kept: Iterable[Key]) -> None:
        """Keep what is known, and wanted, of these files only."""
        still = set(kept)
        self._found = {key: found for key, found in self._found.items() if key in still}
        self._wanted = {key: image for key, image in self._wanted.items() if key in still}

    def _state(self, key: Key | str, image: Image) -> Checksum:
        if isinstance(key, str):
            return Checksum("unreadable", key)
        checksum, since = self._found.get(key, (None, 0.0))
        if checksum is not None and self._clock() - since < BELIEVED_S:
            return checksum
        self._wanted[key] = image
        if self._reader is None:
            self._reader = threading.Thread(target=self._read_all, name="checksums", daemon=True)
            self._reader.start()
        return Checksum("pending", unread=key[2] - self._read.get(key, 0))

    def _read_all(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST)
        while (wanted := self._next()) is not None:
            key, image = wanted
            try:
                found = self._compare(key, image)
            except OSError as error:
                found = Checksum("unreadable", error.strerror or str(error))
            with self._lock:
                self._read.pop(key, None)
                if self._wanted.pop(key, None) is not None:
                    self._found[key] = found, self._clock()

    def _next(self) -> tuple[Key, Image] | None:
        with self._lock:
            if not self._wanted:
                self._reader = None
                return None
            return next(iter(self._wanted.items()))

    def _compare(self, key: Key, image: Image) -> Checksum:
        digest = hashlib.sha256()
        with open(image.path, "rb", buffering=0) as file:
            began = self._clock()
            while (chunk := file.read(CHUNK)) and key in self._wanted:
                digest.update(chunk)
                self._read[key] = self._read.get(key, 0) + len(chunk)
                self._pause(self._clock() - began)
                began = self._clock()
        return Checksum("right" if digest.hexdigest() == image.sha256 else "wrong")


def _key(image: Image) -> Key | str:
    """What a finding holds for: this file as it is now, and this checksum; or why it can't be looked at."""
    try:
        status = os.stat(image.path)
    except OSError as error:
        return error.strerror or str(error)
    return image.sha256, status.st_ino, status.st_size, status.st_mtime_ns
