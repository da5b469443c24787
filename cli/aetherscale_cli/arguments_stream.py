"""What may be typed for the commands that speak with a VM itself, by a stream (docs/protocol.md)."""

import argparse
from collections.abc import Sequence
from typing import Any

from aetherscale_cli import values
from aetherscale_cli.ssh import SshWish

SUMMARIES = {
    "console-vm": "be at a VM's serial console; Ctrl-] leaves",
    "logs-vm": "show what a VM printed on its console",
    "tunnel-vm": "connect standard input and output to a TCP port of a VM",
    "ssh-vm": "log in to a VM by ssh, through the broker",
}


def _add_vm(sub: argparse.ArgumentParser) -> None:
    said = "which VM: its id, its name, or the beginning of its id"
    sub.add_argument("vm", metavar="VM", type=values.vm, help=said)


def _add_console(sub: argparse.ArgumentParser) -> None:
    _add_vm(sub)
    sub.add_argument(
        "-n",
        "--lines",
        type=values.lines,
        default=10,
        metavar="N",
        help="show so many lines first (default: %(default)s)",
    )


def _add_logs(sub: argparse.ArgumentParser) -> None:
    _add_vm(sub)
    sub.add_argument("-f", "--follow", action="store_true", help="go on with what it prints from now on")
    sub.add_argument(
        "-n", "--lines", type=values.lines, default=100, metavar="N", help="so many lines (default: %(default)s)"
    )


def _add_tunnel(sub: argparse.ArgumentParser) -> None:
    _add_vm(sub)
    sub.add_argument("port", type=values.port, metavar="PORT", help="a TCP port that something in the guest listens on")


def _add_ssh(sub: argparse.ArgumentParser) -> None:
    sub.usage = "aetherscale-cli ssh-vm [OPTIONS] VM [OPTIONS] [SSH OPTIONS] [-- COMMAND …]"
    sub.epilog = "What follows VM and is not listed here is given to ssh as it is; what follows -- is run in the guest."
    _add_ssh_options(sub)
    _add_vm(sub)
    sub.add_argument("rest", nargs=argparse.REMAINDER, metavar="SSH OPTIONS", help="of ssh itself, such as -L or -A")


def _add_ssh_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--user", "-l", metavar="USER", default=argparse.SUPPRESS, help="who to be (default: root)")
    parser.add_argument(
        "--port", "-p", type=values.port, metavar="PORT", default=argparse.SUPPRESS, help="of its sshd (default: 22)"
    )
    parser.add_argument(
        "-i", dest="key", metavar="KEY", default=argparse.SUPPRESS, help="a private key (default: ssh's own choice)"
    )


def split_off_command(argv: Sequence[str]) -> tuple[Sequence[str], tuple[str, ...]]:
    """What is for us, and what ssh-vm is to run in the guest."""
    if "--" not in argv or "ssh-vm" not in argv[: argv.index("--")]:
        return argv, ()
    at = argv.index("--")
    return argv[:at], tuple(argv[at + 1 :])


def finalize_wishes(space: argparse.Namespace, command: tuple[str, ...]) -> dict[str, Any]:
    if space.command not in SUMMARIES:
        return {}
    wishes: dict[str, Any] = {name: getattr(space, name) for name in ("vm", "lines", "follow") if name in space}
    if space.command == "ssh-vm":
        more = type(space.parser)(prog="aetherscale-cli ssh-vm", add_help=False, allow_abbrev=False)
        _add_ssh_options(more)
        _, options = more.parse_known_args(space.rest, space)
        chosen = {name: getattr(space, name) for name in ("user", "port", "key") if name in space}
        wishes["ssh"] = SshWish(**chosen, options=tuple(options), command=command)
    elif space.command == "tunnel-vm":
        wishes["port"] = space.port
    return wishes


ADD = {"console-vm": _add_console, "logs-vm": _add_logs, "tunnel-vm": _add_tunnel, "ssh-vm": _add_ssh}
