"""The command line: what may be typed, and what it means. Nothing here does anything but parse."""

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, get_args

from msgspec import Struct

from aetherscale_cli import arguments_create, arguments_stream, values
from aetherscale_cli.ssh import SshWish
from aetherscale_cli.text import harmless, safe
from aetherscale_protocol import commands, names
from aetherscale_protocol.answers import VmState
from aetherscale_protocol.options import (
    DeleteImage,
    ExtendVm,
    ForgetHost,
    HostRef,
    NoOptions,
    Options,
    RebootVm,
    ResizeVm,
    ShowVm,
    SnapshotRef,
    StopVm,
    VmRef,
)

PROGRAM = "aetherscale-cli"

TIMEOUTS = {
    "list-vms": 5,
    "list-hosts": 5,
    "list-images": 5,
    "list-snapshots": 5,
    "show-vm": 5,
    "create-vm": 30,
    "clone-vm": 120,
    "start-vm": 30,
    "stop-vm": 60,
    "reboot-vm": 60,
    "pause-vm": 30,
    "resume-vm": 30,
    "resize-vm": 30,
    "snapshot-vm": 60,
    "restore-vm": 60,
    "delete-snapshot": 60,
    "extend-vm": 30,
    "delete-vm": 30,
    "delete-image": 30,
    "drain-host": 30,
    "undrain-host": 30,
    "forget-host": 30,
    "wait-vm": 300,
    "apply": 30,
    "doctor": 5,
    "console-vm": 15,
    "logs-vm": 15,
    "tunnel-vm": 15,
    "ssh-vm": 15,
}
"""How long to wait for hosts that do not answer, in seconds, unless `--timeout` says otherwise."""

WAIT_IMAGES_S = 60.0
"""How long the doctor waits for hosts that read their images, in seconds."""

_A_LINE = 6


def _list_timeouts() -> str:
    """The times with the commands that they hold for, a few a line."""
    lines = []
    for seconds in sorted(set(TIMEOUTS.values())):
        named = [name for name, value in TIMEOUTS.items() if value == seconds]
        for place in range(0, len(named), _A_LINE):
            lines.append(f"  {f'{seconds} s' if place == 0 else '':<6} {', '.join(named[place : place + _A_LINE])}")
    return "\n".join(lines)


_EPILOG = f"""\
Which broker: --context NAME, or $AETHERSCALE_CONTEXT, or what use-context chose, or the only context
there is (files in ~/.config/aetherscale/contexts). $RABBITMQ_HOST (host or host:port) replaces its host.

It never waits longer than it must; --timeout bounds the wait for hosts that do not answer. Unless given it is
{_list_timeouts()}

exit codes:
  0    done
  1    refused, or failed
  2    usage or configuration error
  3    the broker can't be reached or refused the login, or no agent is connected to it
  4    partial: a host is down or did not answer; ask again when it is back (--wait-for-host does)
  5    outcome unknown: it may have been done; the hint says how to find out
  130  interrupted (Ctrl-C)
"""


FORMATS = ("table", "wide", "json", "yaml", "name")
FORMLESS = ("use-context", "completion", *arguments_stream.SUMMARIES)
"""Commands that have no answer in any of these forms: they say nothing, or what a shell or a guest says."""


class Invocation(Struct, frozen=True):
    """What was asked for. `options` holds the command's options, one per VM; `timeout` and `wait` (for hosts that are
    down) are in seconds; `own_ids`: whether VM id or request id were given.

    `vms`: what was typed for each VM; where that is no id, the id in `options` is that of the VM with this name.
    `until`: the milestone to wait for, `until_s` seconds at most. `space`: what only this command knows of.
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
    vms: tuple[str, ...] = ()
    until: str | None = None
    until_s: float = arguments_create.WAIT_S
    space: argparse.Namespace = argparse.Namespace()

    @property
    def as_json(self) -> bool:
        """Whether the answers are wanted as data; `outputs` makes the form of it."""
        return self.output in ("json", "yaml", "name")


_NEGATIVE = re.compile("-[0-9]")
"""What is a value, and no option: also `-1h`, so that whoever reads values says what is wrong with it."""


class _Parser(argparse.ArgumentParser):
    """Errors in the house's form, with what was typed made safe."""

    _width: int | None = 80
    """Of a help that nobody reads: argparse formats each argument once to check it. Unset, it asks the terminal, by
    shutil, which takes as long to load as argparse.
    """

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        self._negative_number_matcher = _NEGATIVE

    def _get_formatter(self) -> argparse.HelpFormatter:
        make: Any = self.formatter_class
        formatter: argparse.HelpFormatter = make(prog=self.prog, width=self._width)
        return formatter

    def format_help(self) -> str:
        """The help, as wide as the terminal."""
        self._width = None
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {safe(message)}\nhint: {self.prog} --help shows how it is used\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        super()._print_message(harmless(message or ""), file)


class _Version(argparse.Action):
    """`--version`, which looks the version up only when asked."""

    def __init__(self, option_strings: Sequence[str], dest: str, **_: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help="show the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from aetherscale_protocol import __version__

        parser._print_message(f"{PROGRAM} {__version__}\n", sys.stdout)  # as argparse's own does
        parser.exit()


def parse(argv: Sequence[str]) -> Invocation:
    """What `argv` asks for.

    :raise SystemExit: after `--help` and `--version` (0) and usage errors (2), with the text already printed.
    """
    parser = build_parser(argv)
    if not argv:
        parser.print_help(sys.stderr)
        raise SystemExit(2)
    argv, guest_command = arguments_stream.split_off_command(argv)
    space = _parse_known(parser, argv)
    if space.command in FORMLESS and "output" in space:
        space.parser.error(f"{space.command} has one form of output; -o does not go with it")
    common: dict[str, Any] = {key: getattr(space, key, None) for key in ("output", "context", "request_id")}
    timeout = getattr(space, "timeout", None) or float(TIMEOUTS.get(space.command, 0))
    until, until_s = getattr(space, "until", None), getattr(space, "timeout", None) or arguments_create.WAIT_S
    if until is not None:
        timeout = min(timeout, _ANSWER_S.get(space.command, timeout))
    wait = getattr(space, "wait_for_host", None) or 0.0
    own_ids = bool(getattr(space, "vm_id", None) or common["request_id"] or getattr(space, "name", None))
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
        name=getattr(space, "name", None) or "",
        debug=getattr(space, "debug", False),
        vms=_vms(space),
        until=until,
        until_s=until_s,
        space=space,
        **common,
        **arguments_stream.finalize_wishes(space, guest_command),
    )


def _parse_known(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """What `argv` says; VMs may also be named behind an option (`stop-vm web1 --kill web2`), which argparse can't."""
    space, rest = parser.parse_known_args(argv)
    only_vms = hasattr(space, "ids") and not hasattr(space, "snapshot")
    if rest and (not only_vms or any(word.startswith("-") for word in rest)):
        getattr(space, "parser", parser).error(f"unrecognized arguments: {' '.join(rest)}")
    for word in rest:
        try:
            space.ids.append(values.vm(word))
        except argparse.ArgumentTypeError as error:
            space.parser.error(f"argument VM: {error}")
    return space


def build_parser(argv: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """The whole command line; also read by whatever makes completions and man pages. With `argv` only the commands
    that occur in it have their options: each command costs half a millisecond.
    """
    parser = _Parser(
        prog=PROGRAM,
        description="Command a private cloud: virtual machines on your own hosts, RabbitMQ in between.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[_common_options("see below")],
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version)
    subparsers = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=_Parser, prog=PROGRAM
    )
    for name, summary in _summaries().items():
        if argv is not None and name not in argv:
            subparsers.add_parser(name, help=summary, add_help=False)
            continue
        sub = subparsers.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            parents=[
                _common_options(
                    f"default: {TIMEOUTS[name]}" if name in TIMEOUTS else "not needed here",
                    forms=name not in FORMLESS,
                )
            ],
            allow_abbrev=False,
        )
        sub.set_defaults(parser=sub)
        _ADD[name](sub)
    return parser


def _summaries() -> dict[str, str]:
    ours = {
        "clone-vm": "create a VM whose disk is a copy of another's",
        "wait-vm": "wait until VMs have come so far",
        "apply": "make the VMs of a file, and say what differs",
        "doctor": "look at context, broker, rights and every host; say what is wrong, and what to do",
        "list-contexts": "list the brokers you can speak to",
        "use-context": "choose the broker to speak to",
        **arguments_stream.SUMMARIES,
        "import-image": "bring an image to the hosts, by the playbooks of the roll-out",
        "completion": "print the completions for a shell",
    }
    return {c.name: c.summary for c in commands.COMMANDS.values() if c.name in _ADD} | ours


def _common_options(patience: str, *, forms: bool = True) -> _Parser:
    """Options that may stand before or after the command's name (hence no defaults); `patience` says what
    `--timeout` is unless given, `forms` whether there is an output to choose the form of.
    """
    common = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    if forms:
        common.add_argument(
            "-o",
            "--output",
            choices=FORMATS,
            metavar="|".join(FORMATS),
            help="a table (wide: with more columns), the list of answers as JSON or YAML, or one name a line "
            "(default: table on a terminal, else json)",
        )
    common.add_argument(
        "--timeout",
        type=values.duration,
        metavar="TIME",
        help=f"30s, 5m, or seconds: how long to wait for hosts that do not answer ({patience})",
    )
    common.add_argument("--context", metavar="NAME", help="speak to this context's broker")
    common.add_argument("--debug", action="store_true", help="log what happens on the wire, and show tracebacks")
    return common


def _add_create(sub: argparse.ArgumentParser) -> None:
    arguments_create.add_create(sub)
    _add_request_id(sub)
    _add_wait(sub)


def _add_clone(sub: argparse.ArgumentParser) -> None:
    arguments_create.add_clone(sub)
    _add_request_id(sub)


def _add_wait_vm(sub: argparse.ArgumentParser) -> None:
    _add_which(sub)
    arguments_create.add_wait_vm(sub)


def _add_vms(sub: argparse.ArgumentParser) -> None:
    _add_which(sub)
    _add_wait(sub)


def _add_which(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "ids", nargs="*", type=values.vm, metavar="VM",
        help="which VM: its id, its name, or the beginning of its id; several are asked at once",
    )  # fmt: skip
    sub.add_argument(
        "--vm-id", action="append", default=[], type=values.vm, metavar="VM", help="the same, as an option"
    )


def _add_changing(sub: argparse.ArgumentParser) -> None:
    _add_vms(sub)
    _add_request_id(sub)


def _add_stop(sub: argparse.ArgumentParser) -> None:
    _add_changing(sub)
    sub.add_argument("--kill", action="store_true", help="pull the plug instead of pressing the power button")


def _add_reboot(sub: argparse.ArgumentParser) -> None:
    _add_changing(sub)
    sub.add_argument("--kill", action="store_true", help="press the reset button instead of the power button")


def _add_delete(sub: argparse.ArgumentParser) -> None:
    _add_changing(sub)
    sub.add_argument("--if-exists", action="store_true", help="a VM that does not exist is fine: absent")


def _add_resize(sub: argparse.ArgumentParser) -> None:
    _add_changing(sub)
    sub.add_argument("--cpus", type=values.cpus, metavar="N", help="cores; only while the VM is off")
    sub.add_argument("--memory", type=values.memory, metavar="SIZE", help="512M or 2G; only while the VM is off")
    sub.add_argument("--disk", type=values.disk, metavar="SIZE", help="20G or 1T; it can only grow")


def _add_snapshot(sub: argparse.ArgumentParser) -> None:
    _add_changing(sub)
    sub.add_argument("snapshot", metavar="SNAPSHOT", help="the snapshot's name, after the VMs")


def _add_extend(sub: argparse.ArgumentParser) -> None:
    _add_changing(sub)
    sub.add_argument(
        "--ttl", required=True, type=values.ttl_or_never, metavar="TIME",
        help="from now on: 30m, 2h, 7d; or never",
    )  # fmt: skip


def _add_doctor(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--wait-images", type=values.patience, default=WAIT_IMAGES_S, metavar="TIME",
        help=f"how long to wait for hosts that check their images (default: {WAIT_IMAGES_S:.0f}; 0: they are not to)",
    )  # fmt: skip
    sub.add_argument("--strict", action="store_true", help="warnings are failures, too: exit code 1")


def _add_list_vms(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--label", type=values.selector, action="append", default=[], metavar="K[=V]",
        help="only VMs with this label; repeatable: with all of them",
    )  # fmt: skip
    sub.add_argument("--state", choices=get_args(VmState), metavar="STATE", help="only VMs in this state")
    sub.add_argument("--host", type=values.host, help="only VMs of this host")


def _add_hosts(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("hosts", nargs="+", type=values.host, metavar="HOST", help="which host; several at once")


def _add_delete_image(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("image", type=values.image, metavar="IMAGE", help="as list-images shows them")
    sub.add_argument("--host", type=values.host, help="only there (default: wherever it is)")


def _add_import(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("source", metavar="FILE|URL", help="qcow2 or raw")
    sub.add_argument("--name", dest="image", type=values.image, required=True, help="what create-vm is to call it")
    sub.add_argument("--sha256", type=values.sha256, metavar="HEX", help="what it must be (a URL needs this)")
    sub.add_argument(
        "--host", type=values.host, action="append", default=[], dest="only", help="only there; repeatable"
    )


def _add_completion(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("name", choices=("bash", "zsh", "fish"), metavar="SHELL", help="bash, zsh or fish")


def _add_show(sub: argparse.ArgumentParser) -> None:
    _add_vms(sub)
    sub.add_argument(
        "--console-lines", type=values.lines, default=ShowVm(vm_id="aaaaaaaa").console_lines, metavar="N",
        help="how many of the console's last lines to show (default: %(default)s)",
    )  # fmt: skip


def _add_request_id(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--request-id",
        type=values.request_id,
        metavar="ID",
        help="ask again, after an unknown outcome, without doing it twice",
    )


def _add_wait(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--wait-for-host",
        type=values.duration,
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


_ADD = {
    **arguments_stream.ADD,
    "create-vm": _add_create,
    "clone-vm": _add_clone,
    "apply": arguments_create.add_apply,
    "wait-vm": _add_wait_vm,
    "list-vms": _add_list_vms,
    "start-vm": _add_changing,
    "stop-vm": _add_stop,
    "reboot-vm": _add_reboot,
    "pause-vm": _add_changing,
    "resume-vm": _add_changing,
    "resize-vm": _add_resize,
    "snapshot-vm": _add_snapshot,
    "restore-vm": _add_snapshot,
    "delete-snapshot": _add_snapshot,
    "list-snapshots": _add_vms,
    "extend-vm": _add_extend,
    "delete-vm": _add_delete,
    "show-vm": _add_show,
    "list-hosts": _add_nothing,
    "list-images": _add_nothing,
    "delete-image": _add_delete_image,
    "drain-host": _add_hosts,
    "undrain-host": _add_hosts,
    "forget-host": _add_host,
    "doctor": _add_doctor,
    "list-contexts": _add_nothing,
    "use-context": _add_name,
    "import-image": _add_import,
    "completion": _add_completion,
}


_WITHOUT_OPTIONS = ("list-contexts", "use-context", "completion", "doctor", "clone-vm", "apply", "import-image")
_ANSWER_S = {"create-vm": 30.0, "wait-vm": 5.0}
"""How long those that wait for a milestone wait for one answer at most, in seconds; a copy may take all of the time."""


def _finalize_options(space: argparse.Namespace) -> tuple[Options, ...]:
    """The options to send, one per VM.

    :raise ValueError: when they break a rule of the protocol.
    """
    command = space.command
    if command == "create-vm":
        return _finalize_create(space)
    if command in ("list-vms", "list-hosts", "list-images"):
        return (NoOptions(),)
    if command == "forget-host":
        return (ForgetHost(host=space.host),)
    if command in ("drain-host", "undrain-host"):
        return tuple(HostRef(host=host) for host in dict.fromkeys(space.hosts))
    if command == "delete-image":
        return (DeleteImage(host=space.host, image=space.image),) if space.host else ()
    if command == "apply" and space.prune != bool(space.label):
        raise ValueError("--prune and --label K=V go together: VMs without that label are never deleted")
    if command in _WITHOUT_OPTIONS or command in arguments_stream.SUMMARIES:
        return ()
    return _finalize_references(space)


def _finalize_create(space: argparse.Namespace) -> tuple[Options, ...]:
    if space.file is not None:
        beside = arguments_create.find_beside_file(space)
        if beside:
            raise ValueError(f"--file says what to make; {beside} does not go with it")
        return ()
    if space.image is None:
        raise ValueError("the following arguments are required: --image")
    return (arguments_create.finalize_create(space),)


def _vms(space: argparse.Namespace) -> tuple[str, ...]:
    """What was typed for each VM, each once."""
    if not hasattr(space, "ids"):
        return ()
    return tuple(dict.fromkeys([*space.ids, *space.vm_id]))


def _finalize_references(space: argparse.Namespace) -> tuple[Options, ...]:
    vms = _vms(space)
    if not vms:
        raise ValueError("which VM? give its id or name, as list-vms shows it")
    if len(vms) > 1 and getattr(space, "request_id", None):
        raise ValueError("--request-id goes with one VM")
    return tuple(_finalize_reference(space, vm if names.is_vm_id(vm) else names.id_of_name(vm)) for vm in vms)


def _finalize_reference(space: argparse.Namespace, vm_id: str) -> Options:
    match space.command:
        case "stop-vm":
            return StopVm(vm_id=vm_id, kill=space.kill)
        case "reboot-vm":
            return RebootVm(vm_id=vm_id, kill=space.kill)
        case "resize-vm":
            return ResizeVm(vm_id=vm_id, cpus=space.cpus, memory=space.memory, disk=space.disk)
        case "snapshot-vm" | "restore-vm" | "delete-snapshot":
            return SnapshotRef(vm_id=vm_id, snapshot=space.snapshot)
        case "extend-vm":
            return ExtendVm(vm_id=vm_id, ttl=space.ttl)
        case "show-vm":
            return ShowVm(vm_id=vm_id, console_lines=space.console_lines)
        case "wait-vm":
            return ShowVm(vm_id=vm_id, console_lines=1, reached=True)
    return VmRef(vm_id=vm_id)
