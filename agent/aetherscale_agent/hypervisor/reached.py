"""How far a running VM has come since it was started.

What a boot leaves behind outlasts it: console logs are appended to, and leases lie there for hours. So a mark is set
at every start, before QEMU runs: how long the log was then, and which lease the VM had. What is beyond the mark is of
this boot. A log that is shorter than its mark was cut since; all of it is of this boot.
"""

import re
from asyncio import StreamReader, StreamWriter, timeout
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import get_args

import msgspec

from aetherscale_agent.hypervisor import console, files
from aetherscale_agent.hypervisor.config import VmPaths
from aetherscale_agent.ports import NotThere
from aetherscale_protocol.answers import Milestone

SSH_PORT = 22
SSH_TIMEOUT = 1.0
"""Seconds for a guest to take a connection to its port 22, and to greet."""

SCAN_BYTES = 4 << 20
"""How much of a console log is looked at; the agent cuts it long before it is that long."""

FINISHED = re.compile(rb"aetherscale: cloud-init finished|Cloud-init v\. \S+ finished at ")
"""Our seed disc's final message, or cloud-init's own, where the operator's user-data took ours away."""


class Mark(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where this boot of a VM begins. `position` in bytes; `finished`: cloud-init was done in what was cut since."""

    position: int = 0
    lease: str = ""
    finished: bool = False


def find_lease(leases: str, mac: str) -> str:
    """The line of a VM's lease in dnsmasq's lease file; '' without one.

    Its first word is when it ends, so that it is another line each time that the VM asks for its address.
    """
    for line in leases.splitlines():
        if line.split()[1:2] == [mac]:
            return line
    return ""


def in_order(milestones: Collection[Milestone]) -> list[Milestone]:
    """The same, in the order in which a VM usually comes to them."""
    order: tuple[Milestone, ...] = get_args(Milestone)
    return [milestone for milestone in order if milestone in milestones]


def is_finished(console: bytes, mark: Mark) -> bool:
    """Whether cloud-init is done, by what the guest printed since `mark.position`."""
    return mark.finished or FINISHED.search(console) is not None


def read_mark(paths: VmPaths) -> Mark:
    """The mark of a VM's last start; one of a VM that an older agent started is at its console's beginning."""
    try:
        return msgspec.json.decode(paths.boot.read_bytes(), type=Mark)
    except (OSError, msgspec.DecodeError):
        return Mark()


def read_leases(path: Path) -> str:
    """dnsmasq's lease file; empty if there is none."""
    try:
        return path.read_text()
    except OSError:
        return ""


def set_mark(paths: VmPaths, leases: Path, mac: str) -> None:
    """A boot begins here."""
    mark = Mark(_size(paths.console), find_lease(read_leases(leases), mac))
    files.write_whole(paths.boot, msgspec.json.encode(mark))


def keep_mark(paths: VmPaths, cut: Callable[[], bool]) -> None:
    """Cut a VM's console log, and remember of it what must not be forgotten."""
    mark = read_mark(paths)
    finished = is_finished(_read_from(paths.console, mark.position), mark)
    if cut() and paths.boot.exists():
        files.write_whole(paths.boot, msgspec.json.encode(Mark(0, mark.lease, finished)))


def has_lease(paths: VmPaths, leases: Path, mac: str) -> bool:
    """Whether the VM has asked for its address in this boot."""
    lease = find_lease(read_leases(leases), mac)
    return bool(lease) and lease != read_mark(paths).lease


def has_finished(paths: VmPaths) -> bool:
    """Whether cloud-init has said in this boot that it is done."""
    mark = read_mark(paths)
    return is_finished(_read_from(paths.console, mark.position), mark)


def look(paths: VmPaths, leases: Path, mac: str) -> list[Milestone]:
    """What a running VM has reached, as far as the host's files tell."""
    found: list[Milestone] = ["running"]
    if has_lease(paths, leases, mac):
        found.append("ip")
    if has_finished(paths):
        found.append("cloud-init")
    return found


async def greets(dial: Callable[[int], Awaitable[tuple[StreamReader, StreamWriter]]]) -> bool:
    """Whether the guest's port 22 speaks ssh."""
    with suppress(NotThere, OSError, EOFError, TimeoutError):
        async with timeout(SSH_TIMEOUT):
            reader, writer = await dial(SSH_PORT)
            try:
                return await reader.readexactly(4) == b"SSH-"
            finally:
                writer.transport.abort()
    return False


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def _read_from(path: Path, position: int) -> bytes:
    return console.read_from(path, SCAN_BYTES, lambda size: position if position <= size else 0)
