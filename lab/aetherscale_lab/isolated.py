"""Run a command in net, mount and pid namespaces of its own.

Labs made in there collide with nothing on this machine, and their processes, mounts and links are
gone with the namespaces, however the command ends. What outlives them (cgroups, state directory)
is written down first, and removed at the end or, after a kill -9, by the next run.
"""

import contextlib
import ctypes
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from aetherscale_lab import cgroups, paths
from aetherscale_lab.errors import LabError
from aetherscale_lab.shell import check_tools, process_alive, process_start, run_command

_PR_SET_PDEATHSIG = 1
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_UNSHARE = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--")
_NSPAWN_RUN = Path("/run/systemd/nspawn")


@dataclass(frozen=True)
class Record:
    """What a run leaves if it is killed, and who runs it."""

    pid: int
    start: int
    state: str
    cgroups: list[str]

    def is_running(self) -> bool:
        return process_alive(self.pid) and process_start(self.pid) == self.start


def run(command: Sequence[str]) -> int:
    """Run a command isolated and return its exit code, 128 + signal if it was killed.

    :raise LabError: when the namespaces can't be made.
    """
    if os.geteuid() != 0:
        raise LabError("isolated needs root", "run it with sudo")
    check_tools(["unshare", "ip", "mount"])
    sweep()
    identifier = f"aetherscale-lab-{secrets.token_hex(4)}"
    record_file, record = _make_record(identifier)
    try:
        return _run_unshared(command, record, identifier)
    finally:
        _clean(record_file, record)


def sweep() -> None:
    """Remove what killed runs left."""
    for path in paths.isolated_runs().glob("*.json"):
        record = Record(**json.loads(path.read_text()))
        if not record.is_running():
            _clean(path, record)


def _make_record(identifier: str) -> tuple[Path, Record]:
    own = os.getpid()
    state = paths.state_root() / f".{identifier}"
    groups = [str(directory / identifier) for directory in cgroups.own_directories()]
    record = Record(own, process_start(own), str(state), groups)
    path = paths.isolated_runs() / f"{identifier}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(record)))
    partial.rename(path)
    return path, record


def _clean(path: Path, record: Record) -> None:
    groups = [Path(group) for group in record.cgroups]
    # with the pid namespace all are dead or dying; this waits for them
    cgroups.kill_all(groups)
    for group in groups:
        cgroups.remove(group)
    state = Path(record.state)
    shutil.rmtree(state, ignore_errors=True)
    with contextlib.suppress(OSError):
        state.parent.rmdir()
    path.unlink(missing_ok=True)


def _run_unshared(command: Sequence[str], record: Record, identifier: str) -> int:
    _NSPAWN_RUN.mkdir(parents=True, exist_ok=True)
    package_root = str(Path(__file__).resolve().parent.parent)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH", "")])),
        "AETHERSCALE_LAB_ISOLATED": identifier,
        "AETHERSCALE_LAB_CGROUP": identifier,
        "AETHERSCALE_LAB_STATE": record.state,
    }
    inner = [sys.executable, "-m", "aetherscale_lab.isolated", *command]
    process = subprocess.Popen([*_UNSHARE, *inner], env=environment, preexec_fn=_die_with_parent)
    return _exit_code(_wait_forwarding(process))


def _die_with_parent() -> None:
    """Runs in the child: a kill -9 of us must end the namespaces too."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait_forwarding(process: "subprocess.Popen[bytes]") -> int:
    """Wait for a process, and hand it the signals we get.

    A terminal sends its signals to the whole group, so a SIGINT arrives there twice; that's harmless.
    """

    def forward(number: int, _: object) -> None:
        # unshare itself ignores SIGTERM; its child is the one to tell
        for child in _children(process.pid) or [process.pid]:
            os.kill(child, number)

    before = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _exit_code(returncode: int) -> int:
    return 128 - returncode if returncode < 0 else returncode


def inner_main(command: Sequence[str]) -> int:
    """PID 1 of the namespaces: set them up, run the command, reap whatever loses its parent."""
    run_command(["ip", "link", "set", "lo", "up"])
    run_command(["mount", "-t", "tmpfs", "tmpfs", str(_NSPAWN_RUN)])
    try:
        process = subprocess.Popen(command)
    except OSError as error:
        print(f"error: cannot run {command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    for number in _FORWARDED:
        signal.signal(number, lambda signum, _: process.send_signal(signum))
    while True:
        pid, status = os.wait()
        if pid == process.pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return _exit_code(process.returncode)


if __name__ == "__main__":
    sys.exit(inner_main(sys.argv[1:]))
