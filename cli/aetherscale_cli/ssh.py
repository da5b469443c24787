"""From `ssh-vm` to the arguments of the system's ssh, whose way to the guest is our own `tunnel-vm`. Pure."""

import re
import shlex
from collections.abc import Sequence

from msgspec import Struct

START = "from aetherscale_cli.main import run; run()"


class SshWish(Struct, frozen=True):
    """What ssh-vm was asked for. `options` are ssh's own."""

    user: str = "root"
    port: int = 22
    key: str | None = None
    options: tuple[str, ...] = ()
    command: tuple[str, ...] = ()


def finalize_proxy(python: str, context: str | None, vm_id: str) -> str:
    """The ProxyCommand: this program, found again whatever the folder or the PATH; ssh itself fills in the port."""
    program = [python, "-P", "-c", START]
    where = ["--context", context] if context else []
    words = [*program, *where, "tunnel-vm", vm_id]
    return " ".join(shlex.quote(word).replace("%", "%%") for word in words) + " %p"


def finalize_alias(vm_id: str, instance: str) -> str:
    """What a guest's host key is remembered under; the next VM of this id has another.

    What an agent says of its VM names no other VM, and is one name: a comma would make several of it.
    """
    own = instance if instance.startswith(f"{vm_id}-") else vm_id
    return "aetherscale-" + re.sub(r"[^A-Za-z0-9-]", "_", own)


def finalize_argv(wish: SshWish, name: str, alias: str, proxy: str, known_hosts: str) -> list[str]:
    """ssh's arguments. `alias`: what the guest's host key is remembered under."""
    settings = {
        "ProxyCommand": proxy,
        "HostKeyAlias": alias,
        "UserKnownHostsFile": '"' + known_hosts.replace("%", "%%") + '"',
        "StrictHostKeyChecking": "accept-new",
        "CheckHostIP": "no",
        "ControlPath": "none",  # a connection that is open to another machine of this name must not be taken
    }
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    key = ["-i", wish.key] if wish.key else []
    # what was typed comes first: ssh takes the first value that it is given
    return ["ssh", *wish.options, *options, *key, "-p", str(wish.port), "-l", wish.user, name, *_quoted(wish.command)]


def _quoted(command: Sequence[str]) -> list[str]:
    """The command as ssh takes it: joined by spaces, for the guest's shell. `--`: it may begin with a dash."""
    return ["--", *command] if command else []
