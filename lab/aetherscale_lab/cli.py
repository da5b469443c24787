"""The command line of the lab. Answers go to stdout; errors, with a hint, to stderr.

Exit codes: 0 done, 1 the lab failed, 2 wrong usage; `exec` and `isolated` end with their command's.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from aetherscale_lab import cloud, guest, isolated, model, roots
from aetherscale_lab.errors import LabError
from aetherscale_lab.lab import HostReport, Lab, list_labs

Verb = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code."""
    os.umask(0o022)  # the hosts' own files are made here: with another umask nobody but root could read them
    options = _parser().parse_args(arguments)
    verb: Verb = options.verb
    try:
        return verb(options)
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="aetherscale_lab", description="A fleet of real systemd hosts.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def add(
        name: str, verb: Verb, description: str, *, of_lab: bool = True, host: bool = False
    ) -> argparse.ArgumentParser:
        child = verbs.add_parser(name, help=description, description=description)
        child.set_defaults(verb=verb)
        if of_lab:
            child.add_argument("--lab", default="dev", metavar="NAME", help="the lab's name (default: dev)")
        if host:
            child.add_argument("host", metavar="HOST")
        return child

    up = add("up", _up, "make a lab, or start what of it is off")
    up.add_argument("--spec", metavar="FILE", help="JSON list of hosts, each with name and suite")
    up.add_argument("--host", action="append", default=[], metavar="NAME:SUITE", help="may be repeated")
    add("down", _down, "remove a lab and all it left on this machine")
    add("status", _status, "show the hosts of a lab")
    add("inventory", _inventory, "print the hosts as JSON, for Ansible and tests")
    add("exec", _exec, "run a command on a host", host=True).add_argument("command", nargs=argparse.REMAINDER)
    add("power-loss", _on_host(lambda lab, host: lab.power_loss(host)), "cut a host's power", host=True)
    add("power-on", _reporting(lambda lab, host: lab.power_on(host)), "start a host that is off", host=True)
    add("reboot", _reporting(lambda lab, host: lab.reboot(host)), "reboot a host in good order", host=True)
    add("cut", _on_host(lambda lab, host: lab.cut(host)), "drop all traffic of a host, in silence", host=True)
    add("heal", _on_host(lambda lab, host: lab.heal(host)), "undo cut", host=True)
    add("list", _list, "print the names of the labs on this machine", of_lab=False)
    prepare = add("prepare", _prepare, "build everything that needs the network", of_lab=False)
    prepare.add_argument("--force", action="store_true", help="build again, with today's packages")
    prepare.add_argument("--prune", action="store_true", help="then delete builds that are out of date")
    alone = add("isolated", _isolated, "run a command where its labs collide with nothing", of_lab=False)
    alone.add_argument("command", nargs=argparse.REMAINDER)
    word = add("guest-word", _guest_word, "make a guest image that says a word on its console", of_lab=False)
    word.add_argument("word")
    word.add_argument("output", type=Path)
    return parser


def _up(options: argparse.Namespace) -> int:
    specs = [model.parse_host(text) for text in options.host]
    if options.spec:
        try:
            specs += model.parse_spec(Path(options.spec).read_text())
        except OSError as error:
            raise LabError(f"cannot read {options.spec}: {error.strerror}") from error
    lab = Lab(options.lab)
    if not specs and options.lab not in list_labs():
        specs = [model.parse_host(text) for text in model.DEFAULT_FLEET]
    for report in lab.up(specs):
        _print_report(report)
    return 0


def _print_report(report: HostReport) -> None:
    print(f"{_describe(report.host)} {report.state:<9} {report.seconds:.1f} s", flush=True)


def _describe(host: model.Host) -> str:
    return f"{host.name:<12} {host.address:<15} {host.suite:<9}"


def _down(options: argparse.Namespace) -> int:
    Lab(options.lab).down()
    return 0


def _status(options: argparse.Namespace) -> int:
    for status in Lab(options.lab).status():
        words = ["up" if status.running else "off"]
        words += ["cut off"] if status.cut else []
        words += ["without supervisor"] if status.running and not status.supervised else []
        print(f"{_describe(status.host)} {', '.join(words)}")
    return 0


def _inventory(options: argparse.Namespace) -> int:
    print(json.dumps(Lab(options.lab).inventory(), indent=2))
    return 0


def _exec(options: argparse.Namespace) -> int:
    command = Lab(options.lab).ssh_command(options.host, _command(options))
    os.execvp(command[0], command)


def _on_host(action: Callable[[Lab, str], None]) -> Verb:
    def verb(options: argparse.Namespace) -> int:
        action(Lab(options.lab), options.host)
        return 0

    return verb


def _reporting(action: Callable[[Lab, str], HostReport]) -> Verb:
    def verb(options: argparse.Namespace) -> int:
        _print_report(action(Lab(options.lab), options.host))
        return 0

    return verb


def _list(_: argparse.Namespace) -> int:
    print("".join(f"{name}\n" for name in list_labs()), end="")
    return 0


def _prepare(options: argparse.Namespace) -> int:
    for suite in model.SUITES:
        print(roots.prepare_suite(suite, force=options.force), flush=True)
    print(guest.prepare_guest(force=options.force), flush=True)
    print(cloud.prepare_cloud(force=options.force), flush=True)
    if options.prune:
        for path in roots.remove_stale_builds():
            print(f"deleted {path}")
    return 0


def _isolated(options: argparse.Namespace) -> int:
    return isolated.run(_command(options))


def _guest_word(options: argparse.Namespace) -> int:
    guest.with_word(guest.prepare_guest(), options.word, options.output)
    return 0


def _command(options: argparse.Namespace) -> list[str]:
    command = list(options.command)
    if command[:1] == ["--"]:
        command = command[1:]
    if not command:
        raise LabError("no command given", "write it after --")
    return command
