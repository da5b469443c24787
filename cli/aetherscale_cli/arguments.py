"""The command line: what may be typed, and what it means. Nothing here does anything but parse."""

import argparse
import math
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, get_args

from msgspec import Struct

from aetherscale_cli.ssh import SshWish
from aetherscale_cli.text import safe
from aetherscale_protocol import commands, names, options, topology
from aetherscale_protocol.options import CreateVm, ForgetHost, NoOptions, Options, ShowVm, StopVm, VmRef

PROGRAM = "aetherscale-cli"

TIMEOUTS = {
    "list-vms": 5,
    "list-hosts": 5,
    "show-vm": 5,
    "create-vm": 30,
    "start-vm": 30,
    "stop-vm": 60,
    "delete-vm": 30,
    "forget-host": 30,
    "doctor": 5,
    "console-vm": 15,
    "logs-vm": 15,
    "tunnel-vm": 15,
    "ssh-vm": 15,
}
"""How long to wait for hosts that do not answer, in seconds, unless `--timeout` says otherwise."""

_EPILOG = f"""\
Which broker: --context NAME, or $AETHERSCALE_CONTEXT, or what use-context chose, or the only context
there is (files in ~/.config/aetherscale/contexts). $RABBITMQ_HOST (host or host:port) replaces its host.

It never waits longer than it must; --timeout bounds the wait for hosts that do not answer. Unless given it is
{", ".join(f"{seconds} s for {name}" for name, seconds in TIMEOUTS.items())}.

exit codes:
  0    done
  1    refused, or failed
  2    usage or configuration error
  3    the broker can't be reached or refused the login, or no agent is connected to it
  4    partial: a host is down or did not answer; ask again when it is back (--wait-for-host does)
  5    outcome unknown: it may have been done; the hint says how to find out
  130  interrupted (Ctrl-C)
"""


class Invocation(Struct, frozen=True):
    """What was asked for. `options` holds the command's options, one per VM; `timeout` and `wait` (for hosts that are
    down) are in seconds; `own_ids`: whether VM id or request id were given.
    """

    command: str
    options: tuple[Options, ...] = ()
    timeout: float = 0
    wait: float = 0
    own_ids: bool = False
    yes: bool = False
    output: str | None = None
    context: str | None = None
    request_id: str | None = None
    name: str = ""
    debug: bool = False
    vm: str = ""
    port: int = 0
    lines: int = 0
    follow: bool = False
    ssh: SshWish | None = None


class _Parser(argparse.ArgumentParser):
    """Errors in the house's form, with what was typed made safe."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {safe(message)}\nhint: {self.prog} --help shows how it is used\n")


class _Version(argparse.Action):
    """`--version`, which looks the version up only when asked."""

    def __init__(self, option_strings: Sequence[str], dest: str, **_: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help="show the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from aetherscale_protocol import __version__

        parser.exit(0, f"{PROGRAM} {__version__}\n")


def parse(argv: Sequence[str]) -> Invocation:
    """What `argv` asks for.

    :raise SystemExit: after `--help` and `--version` (0) and usage errors (2), with the text already printed.
    """
    parser = build_parser()
    if not argv:
        parser.print_help(sys.stderr)
        raise SystemExit(2)
    argv, guest_command = _split_off_command(argv)
    space = parser.parse_args(argv)
    common: dict[str, Any] = {key: getattr(space, key, None) for key in ("output", "context", "request_id")}
    timeout = getattr(space, "timeout", None) or float(TIMEOUTS.get(space.command, 0))
    wait = getattr(space, "wait_for_host", None) or 0.0
    own_ids = bool(getattr(space, "vm_id", None) or common["request_id"])
    try:
        options = _finalize_options(space)
    except ValueError as error:
        space.parser.error(str(error))
    return Invocation(
        space.command,
        options,
        timeout,
        wait,
        own_ids,
        yes=getattr(space, "yes", False),
        name=getattr(space, "name", ""),
        debug=getattr(space, "debug", False),
        **common,
        **_stream_wishes(space, guest_command),
    )


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; also read by whatever makes completions and man pages."""
    parser = _Parser(
        prog=PROGRAM,
        description="Command a private cloud: virtual machines on your own hosts, RabbitMQ in between.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[_common_options("see below")],
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    for name, summary in _summaries().items():
        sub = subparsers.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            parents=[_common_options(f"default: {TIMEOUTS[name]}" if name in TIMEOUTS else "not needed here")],
            allow_abbrev=False,
        )
        sub.set_defaults(parser=sub)
        _ADD[name](sub)
    return parser


def _summaries() -> dict[str, str]:
    ours = {
        "doctor": "ping every host through the broker; name who does not answer, and why",
        "list-contexts": "list the brokers you can speak to",
        "use-context": "choose the broker to speak to",
        **_STREAM_SUMMARIES,
    }
    return {c.name: c.summary for c in commands.COMMANDS.values() if c.name in _ADD} | ours


def _common_options(patience: str) -> _Parser:
    """Options that may stand before or after the command's name (hence no defaults); `patience` says what
    `--timeout` is unless given.
    """
    common = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument(
        "-o",
        "--output",
        choices=("table", "json"),
        help="table, or the list of answers as JSON (default: table on a terminal)",
    )
    common.add_argument(
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        help=f"how long to wait for hosts that do not answer ({patience})",
    )
    common.add_argument("--context", metavar="NAME", help="speak to this context's broker")
    common.add_argument("--debug", action="store_true", help="log what happens on the wire, and show tracebacks")
    return common


def _add_create(sub: argparse.ArgumentParser) -> None:
    defaults = CreateVm(image="x")
    sub.add_argument("--image", required=True, help="the base image, as list-hosts shows them")
    sub.add_argument("--cpus", type=_cpus, default=defaults.cpus, metavar="N", help="cores (default: %(default)s)")
    sub.add_argument(
        "--memory",
        type=_memory,
        default=defaults.memory,
        metavar="SIZE",
        help="512M, 2G, or MiB as a number (default: 1G)",
    )
    sub.add_argument(
        "--disk", type=_disk, default=defaults.disk, metavar="SIZE", help="10G, 1T, or GiB as a number (default: 10G)"
    )
    sub.add_argument("--vm-id", metavar="ID", help="8 lower-case letters of your own choice (default: random)")
    _add_request_id(sub)
    _add_wait(sub)


def _add_vms(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("ids", nargs="*", metavar="ID", help="which VM; several are asked at once")
    sub.add_argument("--vm-id", action="append", default=[], metavar="ID", help="the same, as an option")
    _add_wait(sub)


def _add_changing(sub: argparse.ArgumentParser) -> None:
    _add_vms(sub)
    _add_request_id(sub)


def _add_stop(sub: argparse.ArgumentParser) -> None:
    _add_changing(sub)
    sub.add_argument("--kill", action="store_true", help="pull the plug instead of pressing the power button")


def _add_show(sub: argparse.ArgumentParser) -> None:
    _add_vms(sub)
    sub.add_argument(
        "--console-lines", type=_lines, default=ShowVm(vm_id="aaaaaaaa").console_lines, metavar="N",
        help="how many of the console's last lines to show (default: %(default)s)",
    )  # fmt: skip


def _add_request_id(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--request-id",
        type=_request_id,
        metavar="ID",
        help="ask again, after an unknown outcome, without doing it twice",
    )


def _add_wait(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--wait-for-host",
        type=_duration,
        metavar="TIME",
        help="if the host is down, ask again until it is back, for so long at most: 60s, 2m, or seconds",
    )


def _add_host(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("host", metavar="HOST", help="the host that is gone for good")
    sub.add_argument("--yes", action="store_true", help="don't ask")


def _add_nothing(_: argparse.ArgumentParser) -> None:
    pass


def _add_name(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("name", metavar="NAME", help="as list-contexts shows them")


# The commands that speak with a VM itself, by a stream (docs/protocol.md)

_STREAM_SUMMARIES = {
    "console-vm": "be at a VM's serial console; Ctrl-] leaves",
    "logs-vm": "show what a VM printed on its console",
    "tunnel-vm": "connect standard input and output to a TCP port of a VM",
    "ssh-vm": "log in to a VM by ssh, through the broker",
}


def _add_vm(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("vm", metavar="VM", type=_vm, help="which VM: its id or its name")


def _add_console(sub: argparse.ArgumentParser) -> None:
    _add_vm(sub)
    sub.add_argument(
        "-n", "--lines", type=_lines, default=10, metavar="N", help="show so many lines first (default: %(default)s)"
    )


def _add_logs(sub: argparse.ArgumentParser) -> None:
    _add_vm(sub)
    sub.add_argument("-f", "--follow", action="store_true", help="go on with what it prints from now on")
    sub.add_argument(
        "-n", "--lines", type=_lines, default=100, metavar="N", help="so many lines (default: %(default)s)"
    )


def _add_tunnel(sub: argparse.ArgumentParser) -> None:
    _add_vm(sub)
    sub.add_argument("port", type=_port, metavar="PORT", help="a TCP port that something in the guest listens on")


def _add_ssh(sub: argparse.ArgumentParser) -> None:
    sub.usage = f"{PROGRAM} ssh-vm [OPTIONS] VM [OPTIONS] [SSH OPTIONS] [-- COMMAND …]"
    sub.epilog = "What follows VM and is not listed here is given to ssh as it is; what follows -- is run in the guest."
    _add_ssh_options(sub)
    _add_vm(sub)
    sub.add_argument("rest", nargs=argparse.REMAINDER, metavar="SSH OPTIONS", help="of ssh itself, such as -L or -A")


def _add_ssh_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--user", "-l", metavar="USER", default=argparse.SUPPRESS, help="who to be (default: root)")
    parser.add_argument(
        "--port", "-p", type=_port, metavar="PORT", default=argparse.SUPPRESS, help="of its sshd (default: 22)"
    )
    parser.add_argument(
        "-i", dest="key", metavar="KEY", default=argparse.SUPPRESS, help="a private key (default: ssh's own choice)"
    )


def _split_off_command(argv: Sequence[str]) -> tuple[Sequence[str], tuple[str, ...]]:
    """What is for us, and what ssh-vm is to run in the guest."""
    if "--" not in argv or "ssh-vm" not in argv[: argv.index("--")]:
        return argv, ()
    at = argv.index("--")
    return argv[:at], tuple(argv[at + 1 :])


def _stream_wishes(space: argparse.Namespace, command: tuple[str, ...]) -> dict[str, Any]:
    if space.command not in _STREAM_SUMMARIES:
        return {}
    wishes: dict[str, Any] = {name: getattr(space, name) for name in ("vm", "lines", "follow") if name in space}
    if space.command == "ssh-vm":
        more = _Parser(prog=f"{PROGRAM} ssh-vm", add_help=False, allow_abbrev=False)
        _add_ssh_options(more)
        _, options = more.parse_known_args(space.rest, space)
        chosen = {name: getattr(space, name) for name in ("user", "port", "key") if name in space}
        wishes["ssh"] = SshWish(**chosen, options=tuple(options), command=command)
    elif space.command == "tunnel-vm":
        wishes["port"] = space.port
    return wishes


def _vm(text: str) -> str:
    if not (names.is_vm_id(text) or names.is_vm_name(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a VM's id nor a name: {names.VM_NAME_RULE}")
    return text


def _port(text: str) -> int:
    return _whole(text, options.Port, "a TCP port")


_ADD = {
    "console-vm": _add_console,
    "logs-vm": _add_logs,
    "tunnel-vm": _add_tunnel,
    "ssh-vm": _add_ssh,
    "create-vm": _add_create,
    "list-vms": _add_nothing,
    "start-vm": _add_changing,
    "stop-vm": _add_stop,
    "delete-vm": _add_changing,
    "show-vm": _add_show,
    "list-hosts": _add_nothing,
    "forget-host": _add_host,
    "doctor": _add_nothing,
    "list-contexts": _add_nothing,
    "use-context": _add_name,
}


def _finalize_options(space: argparse.Namespace) -> tuple[Options, ...]:
    """The options to send, one per VM.

    :raise ValueError: when they break a rule of the protocol.
    """
    if space.command == "create-vm":
        vm_id = space.vm_id if space.vm_id is not None else names.new_vm_id()
        return (CreateVm(image=space.image, vm_id=vm_id, cpus=space.cpus, memory=space.memory, disk=space.disk),)
    if space.command in ("list-vms", "list-hosts"):
        return (NoOptions(),)
    if space.command == "forget-host":
        return (ForgetHost(host=space.host),)
    if space.command in ("list-contexts", "use-context", "doctor", *_STREAM_SUMMARIES):
        return ()
    ids = list(dict.fromkeys([*space.ids, *space.vm_id]))
    if not ids:
        raise ValueError("which VM? give its id, as list-vms shows it")
    if len(ids) > 1 and getattr(space, "request_id", None):
        raise ValueError("--request-id goes with one VM")
    return tuple(_finalize_reference(space, vm_id) for vm_id in ids)


def _finalize_reference(space: argparse.Namespace, vm_id: str) -> Options:
    if space.command == "stop-vm":
        return StopVm(vm_id=vm_id, kill=space.kill)
    if space.command == "show-vm":
        return ShowVm(vm_id=vm_id, console_lines=space.console_lines)
    return VmRef(vm_id=vm_id)


def _seconds(text: str) -> float:
    most = topology.MAX_PATIENCE_S
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0 and up to {most}")
    return seconds


def _duration(text: str) -> float:
    """A time such as `60s`, `2m` or `90`, in seconds."""
    most = topology.MAX_PATIENCE_S
    match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)(s|m)?", text)
    seconds = float(match[1]) * (60 if match[2] == "m" else 1) if match else math.nan
    if not 0 < seconds <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 60s or 2m, above 0 and up to {most}s")
    return seconds


def _request_id(text: str) -> str:
    if re.fullmatch(r"[0-9a-f]{32}", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a request id: 32 hexadecimal digits")
    return text


def _whole(text: str, kind: Any, what: str) -> int:
    """A whole number within the bounds that the protocol gives its type `kind`."""
    meta = get_args(kind)[1]
    if re.fullmatch("[0-9]{1,9}", text) is None or not meta.ge <= int(text) <= meta.le:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of {what} from {meta.ge} to {meta.le}")
    return int(text)


def _cpus(text: str) -> int:
    return _whole(text, options.Cpus, "cores")


def _lines(text: str) -> int:
    return _whole(text, ShowVm.__annotations__["console_lines"], "lines")


_UNITS = {"M": 1, "G": 1024, "T": 1024 * 1024}


def _memory(text: str) -> int:
    return _size(text, "M", options.MemoryMiB, "512M or 2G")


def _disk(text: str) -> int:
    return _size(text, "G", options.DiskGiB, "10G or 1T")


def _size(text: str, unit: str, kind: Any, example: str) -> int:
    """A size in units of `unit`, which is also what a bare number means.

    :raise ArgumentTypeError: when it is none, no whole number of units, or out of the protocol's bounds.
    """
    match = re.fullmatch("([0-9]{1,9})([MGT]?)", text.upper().removesuffix("IB"))
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as {example}")
    mebibytes = int(match[1]) * _UNITS[match[2] or unit]
    amount, rest = divmod(mebibytes, _UNITS[unit])
    meta = get_args(kind)[1]
    if rest or not meta.ge <= amount <= meta.le:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a whole number of {unit} from {meta.ge}{unit} to {meta.le}{unit}"
        )
    return amount
