"""The part of the command line that says what a new VM should be. Nothing here does anything but parse."""

import argparse
from collections.abc import Sequence
from typing import Any, get_args

from aetherscale_cli import values
from aetherscale_protocol import names
from aetherscale_protocol.answers import Milestone
from aetherscale_protocol.options import CreateVm

MILESTONES: tuple[str, ...] = get_args(Milestone)
WAIT_S = 300.0
"""How long `--wait` and wait-vm wait, in seconds, unless `--timeout` says otherwise."""


def add_create(sub: argparse.ArgumentParser) -> None:
    """What create-vm takes beside what others take, too."""
    defaults = CreateVm(image="x")
    sub.add_argument("--image", type=values.image, help="the base image, as list-images shows them")
    sub.add_argument("-f", "--file", metavar="FILE", help="make all VMs of this file, instead (see apply)")
    _add_size(sub, defaults)
    sub.add_argument("--vm-id", metavar="ID", help="8 lower-case letters of your own choice (default: random)")
    _add_identity(sub)
    sub.add_argument(
        "--dry-run", action="store_true", help="ask every host whether it would take the VM; change nothing"
    )
    _add_wait_for(sub)


def add_clone(sub: argparse.ArgumentParser) -> None:
    """What clone-vm takes: what is not given is as the source has it."""
    said = "a VM that is off: its id, its name, or the beginning of its id"
    sub.add_argument("source", type=values.vm, metavar="SOURCE", help=said)
    _add_size(sub, None)
    sub.add_argument("--vm-id", metavar="ID", help="8 lower-case letters of your own choice (default: random)")
    _add_identity(sub)
    _add_wait_for(sub)


def add_wait_vm(sub: argparse.ArgumentParser) -> None:
    """What wait-vm takes beside VMs."""
    sub.add_argument(
        "--for", dest="until", choices=MILESTONES, default="running",
        help="wait until QEMU runs, it has an address, its port 22 speaks ssh, cloud-init is done (default: running)",
    )  # fmt: skip


def add_apply(sub: argparse.ArgumentParser) -> None:
    """What apply takes."""
    sub.add_argument("-f", "--file", required=True, metavar="FILE", help="a YAML file of VMs (docs/cli.md)")
    sub.add_argument("--diff", action="store_true", help="only show what would be done")
    sub.add_argument("--prune", action="store_true", help="delete VMs with --label that the file does not name")
    sub.add_argument(
        "--label", type=values.label, action="append", default=[], metavar="K=V", help="which VMs to prune"
    )
    sub.add_argument("--yes", action="store_true", help="don't ask before something is deleted")


def _add_size(sub: argparse.ArgumentParser, defaults: CreateVm | None) -> None:
    """Cores, memory and disk; with no defaults, what is not given is None."""
    cpus, memory, disk = (defaults.cpus, defaults.memory, defaults.disk) if defaults else (None, None, None)
    said = {"cpus": "default: 1", "memory": "default: 1G", "disk": "default: 10G"} if defaults else {}
    for option, kind, value, metavar, text in (
        ("cpus", values.cpus, cpus, "N", "cores"),
        ("memory", values.memory, memory, "SIZE", "512M, 2G, or MiB as a number"),
        ("disk", values.disk, disk, "SIZE", "10G, 1T, or GiB as a number"),
    ):
        shown = f"{text} ({said.get(option, 'default: as the source')})"
        sub.add_argument(f"--{option}", type=kind, default=value, metavar=metavar, help=shown)


def _add_identity(sub: argparse.ArgumentParser) -> None:
    """What a VM is called, who may log in, and where it goes."""
    many: dict[str, Any] = {"action": "append", "default": []}
    sub.add_argument("--name", type=values.vm_name, help="unique in the fleet; the guest's host name")
    sub.add_argument("--label", type=values.label, **many, metavar="K=V", help="a label of the VM; repeatable")
    sub.add_argument(
        "--ssh-key", **many, metavar="FILE|KEY",
        help="who may log in; repeatable (default: your own, ~/.ssh/*.pub)",
    )  # fmt: skip
    sub.add_argument("--no-ssh-key", action="store_true", help="nobody's key")
    sub.add_argument("--user-data", metavar="FILE", help="cloud-init's user data")
    sub.add_argument(
        "--publish", type=values.publish, **many, metavar="HOST:GUEST",
        help="a TCP port of the host that leads to one of the guest; repeatable",
    )  # fmt: skip
    sub.add_argument("--ttl", type=values.ttl, metavar="TIME", help="delete it after so long: 30m, 2h, 7d")
    sub.add_argument("--host", type=values.host, help="on this host, and no other")
    sub.add_argument("--host-label", type=values.label, **many, metavar="K=V", help="on a host with it; repeatable")
    beside = sub.add_mutually_exclusive_group()
    beside.add_argument("--spread", type=values.selector, metavar="LABEL", help="away from VMs with that label")
    beside.add_argument("--near", type=values.selector, metavar="LABEL", help="to VMs with that label")


def _add_wait_for(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--wait", dest="until", choices=MILESTONES, metavar="FOR",
        help=f"wait until it has come so far: {', '.join(MILESTONES)} (--timeout, 5m unless given, bounds it)",
    )  # fmt: skip


def finalize_create(space: argparse.Namespace) -> CreateVm:
    """What a new VM should be; keys and user data are files, which are read later.

    :raise ValueError: when it breaks a rule of the protocol.
    """
    return CreateVm(
        image=space.image,
        vm_id=choose_id(space.vm_id, space.name),
        name=space.name,
        cpus=space.cpus,
        memory=space.memory,
        disk=space.disk,
        labels=unite_labels(space.label),
        publish=tuple(space.publish),
        ttl=space.ttl,
        host=space.host,
        host_labels=unite_labels(space.host_label),
        spread=space.spread,
        near=space.near,
    )


def find_beside_file(space: argparse.Namespace) -> str:
    """What was said of one VM where a file says all; '' if nothing was."""
    defaults = CreateVm(image="x")
    for dest in ("cpus", "memory", "disk"):
        if getattr(space, dest) != getattr(defaults, dest):
            return f"--{dest}"
    for dest in (
        "image", "name", "vm_id", "label", "ssh_key", "no_ssh_key", "user_data", "publish", "ttl", "host", "host_label",
        "spread", "near", "dry_run", "request_id",
    ):  # fmt: skip
        if getattr(space, dest, None):
            return f"--{dest.replace('_', '-')}"
    return ""


def choose_id(vm_id: str | None, name: str | None) -> str:
    """The id of a new VM: the one that was chosen, its name's, or a random one."""
    if vm_id is not None:
        return vm_id
    return names.id_of_name(name) if name is not None else names.new_vm_id()


def unite_labels(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Labels as a mapping.

    :raise ValueError: when a key is given two values.
    """
    united: dict[str, str] = {}
    for key, value in pairs:
        if united.setdefault(key, value) != value:
            raise ValueError(f"label {key} is given two values: {united[key]!r} and {value!r}")
    return united
