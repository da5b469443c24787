"""Running other programs and looking at processes."""

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from aetherscale_lab.errors import LabError

_PACKAGES_HINT = "docs/lab.md lists the packages the lab needs"


def run_command(
    argv: Sequence[str],
    *,
    stdin: str | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """Run a program to its end and return its standard output.

    :raise LabError: when it can't be started or fails; the message holds its last lines.
    """
    try:
        done = subprocess.run(argv, input=stdin, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise LabError(f"{argv[0]} is not installed", _PACKAGES_HINT) from error
    if done.returncode != 0:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
        raise LabError(f"{' '.join(argv[:4])} ... failed with code {done.returncode}: {tail}")
    return done.stdout


def succeeds(argv: Sequence[str]) -> bool:
    """Run a program for its exit code alone."""
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0


def check_tools(tools: Sequence[str]) -> None:
    """:raise LabError: when a program is missing on this machine."""
    missing = [tool for tool in tools if not shutil.which(tool, path="/usr/sbin:/usr/bin:/sbin:/bin")]
    if missing:
        raise LabError(f"not installed: {', '.join(missing)}", _PACKAGES_HINT)


def process_alive(pid: int) -> bool:
    """True while the process runs; a zombie, which only waits for its parent, does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def process_start(pid: int) -> int:
    """Start time in clock ticks since boot, 0 if there is no such process: tells a reused pid."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 0


def process_arguments(pid: int) -> list[str]:
    """Command line of a process, empty if there is none."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []
