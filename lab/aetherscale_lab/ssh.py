"""Reaching a host by ssh."""

import shlex
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from aetherscale_lab.shell import run_command

# States in which systemd has finished booting.
_BOOTED = ("running", "degraded")


def finalize_ssh(address: str, identity_file: Path, known_hosts_file: Path, argv: Sequence[str]) -> list[str]:
    """The ssh command line that runs `argv` on a host as root, its arguments kept apart."""
    options = {
        "IdentityFile": identity_file,
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": known_hosts_file,
        "GlobalKnownHostsFile": "/dev/null",
        "BatchMode": "yes",
        "ConnectTimeout": 5,
        # a host that is cut off must not hang its caller
        "ServerAliveInterval": 5,
        "ServerAliveCountMax": 3,
        "LogLevel": "ERROR",
    }
    command = ["ssh", "-F", "/dev/null"]
    for key, value in options.items():
        command += ["-o", f"{key}={value}"]
    return [*command, f"root@{address}", shlex.join(argv)]


def make_key(path: Path, comment: str) -> None:
    """Make a key pair without a passphrase: `path` and `path`.pub."""
    run_command(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)])


def answers(address: str, timeout: float = 1.0) -> bool:
    """True if an ssh server greets at the address within `timeout` seconds."""
    try:
        with socket.create_connection((address, 22), timeout) as connection:
            connection.settimeout(timeout)
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def wait_ready(address: str, is_running: Sequence[str], deadline: float) -> str:
    """Wait until a host has booted; return systemd's state of it, "running" or "degraded".

    :param is_running: command that prints the state.
    :param deadline: on the monotonic clock, in seconds.
    :raise TimeoutError: when it hasn't by then.
    """
    while time.monotonic() < deadline:
        if not answers(address):
            time.sleep(0.05)
            continue
        done = subprocess.run(is_running, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if (state := done.stdout.strip()) in _BOOTED:
            return state
        time.sleep(0.1)
    raise TimeoutError(address)
