"""The closed command table: agent, CLI, AsyncAPI document and tests all read this one.

A command on the wire is `{"command": <name>, "options": {…}}`. Options are strict: a missing, an unknown
or a wrongly typed one is refused with its name.
"""

import enum
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from aetherscale_protocol import names
from aetherscale_protocol.errors import Refused

MAX_BODY = 1 << 20
"""Largest body that is read, in bytes. The broker is configured to refuse larger ones."""

MAX_QUOTED = 300
"""How much of a message's own text a refusal repeats at most, in characters."""

MIB_PER_GIB = 1024

Cpus = Annotated[int, Meta(ge=1, le=256)]
MemoryMiB = Annotated[int, Meta(ge=64, le=4 * 1024 * 1024)]
DiskGiB = Annotated[int, Meta(ge=1, le=64 * 1024)]


class Options(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab", omit_defaults=True):
    """Base of all options: kebab-case on the wire, nothing unknown accepted."""

    def __post_init__(self) -> None:
        vm_id = getattr(self, "vm_id", None)
        if vm_id is not None and not names.is_vm_id(vm_id):
            raise ValueError(f"vm-id {vm_id!r}: {names.VM_ID_RULE}")
        image = getattr(self, "image", None)
        if image is not None and not names.is_image_name(image):
            raise ValueError(f"image {image!r}: {names.IMAGE_RULE}")
        host = getattr(self, "host", None)
        if host is not None and not names.is_host_name(host):
            raise ValueError(f"host {host!r}: {names.HOST_RULE}")


class NoOptions(Options, frozen=True):
    """A command without options."""


class CreateVm(Options, frozen=True):
    """What a new VM should be. `memory` in MiB, `disk` in GiB (at least the image's own size is given)."""

    image: str
    vm_id: str | None = None
    cpus: Cpus = 1
    memory: MemoryMiB = 1024
    disk: DiskGiB = 10


class VmRef(Options, frozen=True):
    """One VM, by its id."""

    vm_id: str


class StopVm(VmRef, frozen=True):
    """Which VM to stop, and whether by the power button (default) or by pulling the plug (`kill`)."""

    kill: bool = False


class ShowVm(VmRef, frozen=True):
    """Which VM to show, and how many of its console's last lines with it."""

    console_lines: Annotated[int, Meta(ge=0, le=1000)] = 10


class ForgetHost(Options, frozen=True):
    """A host that is gone for good; `dry_run`: only say what is known of it."""

    host: str
    dry_run: bool = False


class Reach(enum.Enum):
    """Whom a command reaches."""

    #: Published under the command's name it goes to ONE agent, through the shared queue.
    ONE = "one"
    #: Published under its name it reaches ALL agents; each answers.
    ALL = "all"
    #: As ALL, but it speaks of one VM: published under `vm.<id>` it reaches that VM's holder alone.
    HOLDER = "holder"


class Command(Struct, frozen=True):
    """One row of the command table."""

    name: str
    options: type[Options]
    reach: Reach
    changes: bool  #: False: it only reads, and may be executed twice without harm
    internal: bool  #: True: agents only; refused from anyone else
    summary: str


def _table(*rows: Command) -> Mapping[str, Command]:
    return {row.name: row for row in rows}


COMMANDS: Mapping[str, Command] = _table(
    Command("create-vm", CreateVm, Reach.ONE, True, False, "create a VM and start it"),
    Command("list-vms", NoOptions, Reach.ALL, False, False, "list the VMs of every host"),
    Command("start-vm", VmRef, Reach.HOLDER, True, False, "start a stopped VM"),
    Command("stop-vm", StopVm, Reach.HOLDER, True, False, "shut a VM down, or pull its plug"),
    Command("delete-vm", VmRef, Reach.HOLDER, True, False, "delete a VM and its disk"),
    Command("show-vm", ShowVm, Reach.HOLDER, False, False, "show one VM: spec, state, host, console"),
    Command("list-hosts", NoOptions, Reach.ALL, False, False, "list the hosts, what they have and what is free"),
    Command("offer-vm", CreateVm, Reach.ALL, False, True, "ask every host how well it could take a VM"),
    Command("ping", NoOptions, Reach.ALL, False, False, "ask hosts whether they listen, and what time they have"),
    Command("forget-host", ForgetHost, Reach.ONE, True, False, "forget a host that is gone for good"),
)

BROADCAST_KEYS: tuple[str, ...] = tuple(c.name for c in COMMANDS.values() if c.reach is not Reach.ONE)
"""The routing keys that every host's queue is bound to, beside `host.<host>` and `vm.<id>`."""


class _Envelope(Struct, forbid_unknown_fields=True):
    command: str
    options: msgspec.Raw = msgspec.Raw(b"{}")


class Request(Struct, frozen=True):
    """A command with its options, decoded and checked."""

    command: Command
    options: Any

    @property
    def vm_id(self) -> str | None:
        """The VM it speaks of, if it speaks of one."""
        return getattr(self.options, "vm_id", None)


def decode_request(body: bytes) -> Request:
    """The request in a message's body.

    :raise Refused: `bad-request` or `unknown-command`, saying what is wrong and where; never anything else.
    """
    if len(body) > MAX_BODY:
        raise Refused("bad-request", f"the body is {len(body)} bytes; {MAX_BODY} is the most that is read")
    try:
        envelope = msgspec.json.decode(body, type=_Envelope)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Refused("bad-request", f"not a command: {_in_short(error)}", _SHAPE_HINT) from None
    command = COMMANDS.get(envelope.command)
    if command is None:
        known = ", ".join(c.name for c in COMMANDS.values() if not c.internal)
        raise Refused("unknown-command", f"unknown command {envelope.command[:64]!r}", f"known are: {known}")
    return Request(command, _decode_options(command, bytes(envelope.options)))


_SHAPE_HINT = 'a command is {"command": "<name>", "options": {…}} in JSON, UTF-8'


def _decode_options(command: Command, raw: bytes) -> Options:
    try:
        return msgspec.json.decode(raw, type=command.options)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise Refused("bad-request", f"{command.name}: {_in_short(error)}") from None


def _in_short(error: Exception) -> str:
    """What is wrong, fit for a log and an answer: it quotes the message, which may be huge or hold escapes."""
    text = str(error)
    if len(text) > MAX_QUOTED:
        text = text[:MAX_QUOTED] + "…"
    return text if text.isprintable() else repr(text)[1:-1]


def encode_request(command: str, options: Options) -> bytes:
    """The body of a message that carries this command."""
    return msgspec.json.encode({"command": command, "options": options})
