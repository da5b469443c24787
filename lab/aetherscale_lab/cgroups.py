"""Control groups of the lab: one per host, in every hierarchy that systemd uses.

Without a cgroup of its own a container's systemd shares `/payload` with every other container of
the caller, and hosts kill each other's units.
"""

import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

from aetherscale_lab.errors import LabError

# Hierarchies of cgroup v1, plus "" for v2. Limits inside the hosts need these to be writable there.
V1_LIMITS = ("cpu", "cpuacct", "pids", "memory")
_HIERARCHIES = ("name=systemd", "", *V1_LIMITS)
_V2_CONTROLLERS = ("cpu", "memory", "pids")


def parent_name() -> str:
    """Directory below the caller's own cgroup that holds all that this lab makes."""
    return os.environ.get("AETHERSCALE_LAB_CGROUP") or "aetherscale-lab"


def parse_membership(text: str) -> dict[str, str]:
    """Map hierarchy ("" is v2) to the path of a process in it, from `/proc/PID/cgroup`."""
    membership = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            membership[controller] = path
    return membership


def parse_mounts(mountinfo: str) -> dict[str, str]:
    """Map hierarchy ("" is v2) to its mount point, from `/proc/PID/mountinfo`."""
    mounts = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        point = left.split()[4]
        if kind == "cgroup2":
            mounts[""] = point
        elif kind == "cgroup":
            for option in options.split()[-1].split(","):
                mounts[option] = point
    return mounts


def own_directories() -> list[Path]:
    """The caller's own cgroup in every hierarchy the lab uses."""
    membership = parse_membership(Path("/proc/self/cgroup").read_text())
    mounts = parse_mounts(Path("/proc/self/mountinfo").read_text())
    usable = (h for h in _HIERARCHIES if h in membership and h in mounts)
    # cpu and cpuacct may be one mount: name it once
    return list(dict.fromkeys(Path(mounts[h] + membership[h].rstrip("/")) for h in usable))


def host_directories(lab: str, host: str) -> list[Path]:
    """Where the cgroups of a host belong when the caller starts it."""
    return [own / parent_name() / lab / host for own in own_directories()]


def make(directories: Iterable[Path]) -> None:
    """Make the cgroups of a host.

    :raise LabError: when the kernel refuses.
    """
    for directory in directories:
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LabError(f"cannot make cgroup {directory}: {error}", "is /sys/fs/cgroup writable?") from error
        if (directory / "cgroup.controllers").exists():
            _pass_controllers_down(directory)


def _pass_controllers_down(directory: Path) -> None:
    """On cgroup v2 limits work only where every ancestor passes their controller down.

    From the caller's own cgroup on: those above it are not ours to change.
    """
    for ancestor in reversed(directory.parents[:3]):
        for controller in _V2_CONTROLLERS:
            try:
                (ancestor / "cgroup.subtree_control").write_text(f"+{controller}")
            except OSError:
                continue


def leave_inner(name: str) -> None:
    """On cgroup v2 move the caller into a child of its cgroup: a parent of groups may hold no process."""
    for own in own_directories():
        if (own / "cgroup.controllers").exists() and (own / "cgroup.type").exists():
            (own / name).mkdir(exist_ok=True)
            (own / name / "cgroup.procs").write_text("0")


def enter(directories: Iterable[Path]) -> None:
    """Move the calling process into the given cgroups."""
    for directory in directories:
        (directory / "cgroup.procs").write_text("0")


def processes(directory: Path) -> list[int]:
    """All processes in a cgroup and below it; none if it does not exist."""
    pids: list[int] = []
    for procs in [directory / "cgroup.procs", *directory.glob("**/cgroup.procs")]:
        try:
            pids += [int(pid) for pid in procs.read_text().split()]
        except OSError:
            continue
    return sorted(set(pids))


def kill_all(directories: Iterable[Path], patience: float = 10.0) -> None:
    """Kill every process in the cgroups and wait until they are gone.

    :param patience: seconds.
    :raise LabError: when processes are still there after that.
    """
    directories = list(directories)
    deadline = time.monotonic() + patience
    while pids := sorted({pid for directory in directories for pid in processes(directory)}):
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if time.monotonic() > deadline:
            raise LabError(f"processes survive being killed: {pids}", "those in state D wait for a disk")
        time.sleep(0.02)


def remove(directory: Path, patience: float = 3.0) -> None:
    """Remove a cgroup with all below it; a group that still holds a process is left.

    The kernel lets go of a cgroup a moment after its last process.
    """
    deadline = time.monotonic() + patience
    while directory.is_dir():
        _remove_once(directory)
        if not directory.is_dir() or time.monotonic() > deadline:
            return
        time.sleep(0.02)


def _remove_once(directory: Path) -> None:
    for root, _, _ in os.walk(directory, topdown=False):
        try:
            os.rmdir(root)
        except OSError:
            continue


def remove_empty_parents(directories: Iterable[Path]) -> None:
    """Remove the lab's own directories above its hosts, once they are empty."""
    for directory in directories:
        for parent in (directory.parent, directory.parent.parent):
            try:
                parent.rmdir()
            except OSError:
                break
