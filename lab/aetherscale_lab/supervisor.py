"""Keeps one host running: `python3 -m aetherscale_lab.supervisor HOST_DIRECTORY`.

Started by `host.start`, in a session of its own. A host that reboots is started again; one that
powers off, or is killed, ends the supervisor.
"""

import fcntl
import subprocess
import sys
import time
from pathlib import Path

from aetherscale_lab import cgroups
from aetherscale_lab.host import HostDirectory, Launch

# systemd-nspawn --keep-unit leaves the restart to whoever started it, and says so by this code.
_EXIT_REBOOT = 133


def main(path: str) -> int:
    """Run the host until it is off; return systemd-nspawn's last exit code."""
    directory = HostDirectory(Path(path))
    with (directory.path / "supervisor.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another supervisor runs this host", flush=True)
            return 1
        return _supervise(directory, Launch.load(directory))


def _supervise(directory: HostDirectory, launch: Launch) -> int:
    groups = cgroups.host_directories(launch.lab, launch.host)
    # written before they are made: what is not written down is never removed
    known = directory.cgroup_list()
    merged = groups + [group for group in known if group not in groups]
    directory.cgroups_file.write_text("".join(f"{group}\n" for group in merged))
    if launch.delegated:
        cgroups.leave_inner("supervisor")
    cgroups.make(groups)
    while True:
        code = _run_once(directory, launch.argv, groups)
        print(f"{time.strftime('%FT%T')} systemd-nspawn ended with code {code}", flush=True)
        if code != _EXIT_REBOOT:
            return code


def _run_once(directory: HostDirectory, argv: list[str], groups: list[Path]) -> int:
    with (directory.path / "console.log").open("ab") as console:
        return subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            preexec_fn=lambda: cgroups.enter(groups),
            check=False,
        ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
