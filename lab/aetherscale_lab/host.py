"""One host on this machine: its directory, its overlay mount, its cgroups, its processes."""

import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aetherscale_lab import cgroups, model, ssh
from aetherscale_lab.errors import LabError
from aetherscale_lab.shell import process_alive, process_arguments, run_command, succeeds

_SUPERVISOR = "aetherscale_lab.supervisor"
_TUN = (10, 200)
"""/dev/net/tun. Source: Linux, Documentation/admin-guide/devices.txt"""

_NSPAWN_RUN = Path("/run/systemd/nspawn")

# Limits in units (MemoryMax, CPUQuota) are enforced only where systemd may write: nspawn mounts the
# v1 controllers read-only, and once systemd runs it is too late to change that.
_INIT = (
    f"for c in {' '.join(cgroups.V1_LIMITS)}; do "
    "mount -o remount,bind,rw /sys/fs/cgroup/$c 2>/dev/null; done; exec /lib/systemd/systemd"
)

_NETWORK = """[Match]
Name=host0
[Network]
Address={address}/24
LinkLocalAddressing=no
ConfigureWithoutCarrier=yes
IgnoreCarrierLoss=yes
"""


@dataclass(frozen=True)
class HostDirectory:
    """All that a host owns on disk; `root` is where its overlay is mounted."""

    path: Path

    @property
    def upper(self) -> Path:
        return self.path / "upper"

    @property
    def root(self) -> Path:
        return self.path / "root"

    @property
    def launch_file(self) -> Path:
        return self.path / "launch.json"

    @property
    def cgroups_file(self) -> Path:
        return self.path / "cgroups"

    def make(self) -> None:
        for name in ("upper", "work", "root"):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        tun = self.path / "tun"
        if not tun.exists():  # a node of the host's own: open to all, as udev makes it, whatever this machine's is
            os.mknod(tun, stat.S_IFCHR | 0o666, os.makedev(*_TUN))
            tun.chmod(0o666)

    def cgroup_list(self) -> list[Path]:
        """The host's cgroups as its supervisor wrote them down; empty before its first start."""
        if not self.cgroups_file.exists():
            return []
        return [Path(line) for line in self.cgroups_file.read_text().splitlines()]

    def is_mounted(self) -> bool:
        return os.path.ismount(self.root)

    def tree(self) -> Path:
        """Where to write files of the host: never into the upper of a mounted overlay, it isn't seen."""
        return self.root if self.is_mounted() else self.upper


@dataclass(frozen=True)
class Launch:
    """What the supervisor needs to run a host; kept as `launch.json`."""

    lab: str
    host: str
    build: str
    argv: list[str]
    delegated: bool

    def save(self, directory: HostDirectory) -> None:
        directory.launch_file.write_text(json.dumps(self.__dict__, indent=2) + "\n")

    @classmethod
    def load(cls, directory: HostDirectory) -> "Launch":
        return cls(**json.loads(directory.launch_file.read_text()))


def finalize_nspawn(plan: model.LabPlan, host: model.Host, root: Path, build: Path, *, sync: bool = False) -> list[str]:
    """The systemd-nspawn command line of a host."""
    return [
        "systemd-nspawn",
        "--quiet",
        "--keep-unit",
        "--register=no",
        "--settings=no",
        "--kill-signal=SIGRTMIN+3",
        f"--suppress-sync={'no' if sync else 'yes'}",
        "--console=read-only",
        "--resolv-conf=off",
        "--timezone=off",
        "--link-journal=no",
        f"--directory={root}",
        f"--machine={model.machine_name(plan.name, host.name)}",
        f"--hostname={host.name}",
        f"--network-bridge={plan.bridge}",
        f"--bind={root.parent / 'tun'}:/dev/net/tun",
        f"--bind-ro={build / 'packages'}:/srv/packages",
        "/bin/sh",
        "-c",
        _INIT,
    ]


def write_identity(directory: HostDirectory, host: model.Host, public_key: str) -> str:
    """Give a new host its name, address and ssh keys; return its public host key."""
    tree = directory.tree()
    _write(tree / "etc/hostname", host.name + "\n")
    _write(tree / "etc/systemd/network/10-host0.network", _NETWORK.format(address=host.address))
    (tree / "root").mkdir(mode=0o700, exist_ok=True)
    (tree / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
    _write(tree / "root/.ssh/authorized_keys", public_key, 0o600)
    host_key = tree / "etc/ssh/ssh_host_ed25519_key"
    if not host_key.exists():
        host_key.parent.mkdir(parents=True, exist_ok=True)
        ssh.make_key(host_key, host.name)
    return " ".join(host_key.with_suffix(".pub").read_text().split()[:2])


def write_hosts_file(directory: HostDirectory, plan: model.LabPlan) -> None:
    _write(directory.tree() / "etc/hosts", model.hosts_file(plan))


def _write(path: Path, content: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.chmod(mode)


def mount(directory: HostDirectory, lab: str, host: str, build: Path) -> None:
    """Mount the host's root: the suite's build below, its own files above; unless it is mounted."""
    if directory.is_mounted():
        return
    layers = f"lowerdir={build / 'root'},upperdir={directory.upper},workdir={directory.path / 'work'}"
    source = f"lab-{model.machine_name(lab, host)}"
    run_command(["mount", "-t", "overlay", source, "-o", layers, str(directory.root)])


def start(directory: HostDirectory, launch: Launch) -> None:
    """Start a host's supervisor, detached from the caller in every way; returns at once."""
    launch.save(directory)
    package_root = str(Path(__file__).resolve().parent.parent)
    argv = [sys.executable, "-m", _SUPERVISOR, str(directory.path)]
    if launch.delegated:
        unit = f"--unit=aetherscale-lab-{model.machine_name(launch.lab, launch.host)}"
        argv = ["systemd-run", "--scope", "--quiet", "--collect", "--property=Delegate=yes", unit, *argv]
    with (directory.path / "supervisor.log").open("a") as log:
        subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env={**os.environ, "PYTHONPATH": package_root},
            start_new_session=True,
        )


def find_leader(directory: HostDirectory) -> int | None:
    """Pid of the host's PID 1 as this machine sees it; None while the host is off."""
    for group in directory.cgroup_list()[:1]:
        for pid in _likely_first(group):
            if _is_init_of_container(pid) and process_alive(pid):
                return pid
    return None


def _likely_first(group: Path) -> Iterator[int]:
    init_scope = group / "payload" / "init.scope"
    yield from cgroups.processes(init_scope)
    yield from cgroups.processes(group)


def _is_init_of_container(pid: int) -> bool:
    """Exactly one pid namespace below ours, and number 1 there."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    fields = next((line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:")), [])
    return len(fields) == 2 and fields[1] == "1"


def find_supervisor(directory: HostDirectory) -> int | None:
    """Pid of the host's supervisor, None if there is none.

    By command line, for one that has only just been started can't have left a word on disk.
    """
    for entry in Path("/proc").glob("[0-9]*"):
        if process_arguments(int(entry.name))[-2:] == [_SUPERVISOR, str(directory.path)]:
            return int(entry.name)
    return None


def wait_until_off(directory: HostDirectory, patience: float = 10.0) -> None:
    """Wait until nothing of a host runs any more.

    :param patience: seconds.
    :raise LabError: when something still does.
    """
    deadline = time.monotonic() + patience
    while find_supervisor(directory) or any(cgroups.processes(g) for g in directory.cgroup_list()):
        if time.monotonic() > deadline:
            raise LabError(f"host {directory.path.name} does not go away", "down kills what is left")
        time.sleep(0.02)


def kill(directory: HostDirectory) -> None:
    """Kill everything of a host, its supervisor first so that nothing comes back."""
    while pid := find_supervisor(directory):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    cgroups.kill_all(directory.cgroup_list())


def remove(directory: HostDirectory, lab: str) -> None:
    """Remove all that a killed host leaves on this machine."""
    machine = model.machine_name(lab, directory.path.name)
    lock = _lock_of(directory)
    while directory.is_mounted():
        # somebody's shell may stand in there; that must not keep the lab
        if not succeeds(["umount", str(directory.root)]):
            run_command(["umount", "--lazy", str(directory.root)])
    groups = directory.cgroup_list()
    for group in groups:
        cgroups.remove(group)
    cgroups.remove_empty_parents(groups)
    for leftover in (lock, _NSPAWN_RUN / "unix-export" / machine, _NSPAWN_RUN / "propagate" / machine):
        _remove_run_entry(leftover)
    shutil.rmtree(directory.path)


def _lock_of(directory: HostDirectory) -> Path:
    """nspawn's lock file of a root, named after the inode of the mounted directory."""
    try:
        info = directory.root.stat()
    except OSError:
        return _NSPAWN_RUN / "locks" / "none"
    return _NSPAWN_RUN / "locks" / f"inode-{info.st_dev}:{info.st_ino}"


def _remove_run_entry(path: Path) -> None:
    if path.is_dir():
        if os.path.ismount(path):
            run_command(["umount", str(path)])
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    try:
        path.parent.rmdir()
    except OSError:
        return
