"""The console log: its last lines for people, and its bound.

QEMU appends (O_APPEND), so that cutting the file while QEMU writes is safe. What is bounded, and when: the agent
looks every few seconds; while it is down a guest that prints without end fills its host's disk.
"""

import asyncio
import contextlib
import os
import re
import stat
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable
from pathlib import Path

from aetherscale_agent.hypervisor import files
from aetherscale_agent.ports import NotThere
from aetherscale_protocol.streams import CHUNK

TAIL_BYTES = 256 << 10
"""How much of the log is read for its last lines, and kept of it when it is cut."""

LINE_LIMIT = 1000
"""Characters of a line that are shown."""

_SEQUENCES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)"  # OSC, DCS and the like: titles, clipboard
    r"|\x1b[ -/]*[0-~]",  # two-character ones
)
"""Each is looked for up to the next escape and no further: a guest that begins many and ends none costs no more."""
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def clean_lines(data: bytes, lines: int) -> list[str]:
    """The last `lines` lines of console output, as harmless text: no escape sequence, no control character."""
    if lines <= 0:
        return []
    text = _SEQUENCES.sub("", data.decode("utf-8", "replace").replace("\r\n", "\n"))
    # A bare carriage return starts the line anew (progress bars): what came last is what a terminal shows.
    found = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    while found and not found[-1].strip():
        found.pop()
    return [_CONTROLS.sub("", line).replace("\t", "    ").rstrip()[:LINE_LIMIT] for line in found[-lines:]]


def read_tail(path: Path) -> bytes:
    """The last bytes of a log; empty if there is none."""
    return read_from(path, TAIL_BYTES, lambda size: max(0, size - TAIL_BYTES))


def read_from(path: Path, most: int, position: Callable[[int], int]) -> bytes:
    """At most so many bytes of a log, from a position that follows from its size; empty if there is none."""
    try:
        # O_NONBLOCK and O_NOFOLLOW: QEMU can write this file, so don't believe that it is one.
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            return b""
        return os.pread(file, most, position(status.st_size))
    finally:
        os.close(file)


def read_lines(path: Path, lines: int) -> list[str]:
    """The last lines of a log and of what was cut from it last."""
    found = clean_lines(read_tail(path), lines)
    if len(found) < lines:
        found = clean_lines(read_tail(_cut_path(path)), lines - len(found)) + found
    return found


def _cut_path(path: Path) -> Path:
    return path.with_name(path.name + ".1")


async def connect(socket: Path, vm_id: str) -> tuple[StreamReader, StreamWriter]:
    """Connect to a running VM's console.

    :raise NotThere: when there is none.
    """
    try:
        with files.own_socket(socket) as address:
            return await asyncio.open_unix_connection(address, limit=CHUNK)
    except FileNotFoundError:
        reason = f"VM {vm_id} has no console to connect to: it was started by an older agent, or is off"
        raise NotThere(reason, "stop and start it once; logs-vm shows what it printed") from None
    except OSError as error:
        raise NotThere(f"the console of VM {vm_id}: {error.strerror}", "is it off? show-vm tells") from None


def make(path: Path) -> None:
    """Make an empty log that the VM can append to, unless there is one."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    path.chmod(0o666)


def is_long(path: Path, limit: int) -> bool:
    """Whether a log is longer than `limit` bytes."""
    try:
        return path.lstat().st_size > limit
    except FileNotFoundError:
        return False


def cut(path: Path, limit: int) -> bool:
    """Cut a log that is longer than `limit` bytes, keeping its tail beside it; whether it was."""
    try:
        if not is_long(path, limit):
            return False
        _cut_path(path).write_bytes(read_tail(path))
        os.truncate(path, 0)
    except FileNotFoundError:
        return False  # the VM is being removed
    return True
