"""The closed command table: agent, CLI, AsyncAPI document and tests all read this one.

A command on the wire is `{"command": <name>, "options": {…}}`. Options are strict: a missing, an unknown
or a wrongly typed one is refused with its name.
"""

import enum
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from aetherscale_protocol.errors import Refused
from aetherscale_protocol.options import (
    CheckHost,
    CreateVm,
    DeleteImage,
    ExtendVm,
    ForgetHost,
    HostRef,
    NoOptions,
    OpenStream,
    Options,
    RebootVm,
    ResizeVm,
    ShowVm,
    SnapshotRef,
    StopVm,
    VmRef,
)

MAX_BODY = 1 << 20
"""Largest body that is read, in bytes. The broker is configured to refuse larger ones."""

MAX_QUOTED = 300
"""How much of a message's own text a refusal repeats at most, in characters."""


class Reach(enum.Enum):
    """Whom a command reaches."""

    #: Published under the command's name it goes to ONE agent, through the shared queue.
    ONE = "one"
    #: Published under its name it reaches ALL agents; each answers.
    ALL = "all"
    #: As ALL, but it speaks of one VM: published under `vm.<id>` it reaches that VM's holder alone.
    HOLDER = "holder"
    #: It speaks of one host: published under `host.<host>` it reaches that host, and there is no other way.
    HOST = "host"


class Command(Struct, frozen=True):
    """One row of the command table."""

    name: str
    options: type[Options]
    reach: Reach
    changes: bool  #: False: it only reads, and may be executed twice without harm
    summary: str


def _table(*rows: Command) -> Mapping[str, Command]:
    return {row.name: row for row in rows}


COMMANDS: Mapping[str, Command] = _table(
    Command("create-vm", CreateVm, Reach.ONE, True, "create a VM and start it"),
    Command("list-vms", NoOptions, Reach.ALL, False, "list the VMs of every host"),
    Command("start-vm", VmRef, Reach.HOLDER, True, "start a stopped VM"),
    Command("stop-vm", StopVm, Reach.HOLDER, True, "shut a VM down, or pull its plug"),
    Command("reboot-vm", RebootVm, Reach.HOLDER, True, "shut a VM down and start it, or reset it"),
    Command("pause-vm", VmRef, Reach.HOLDER, True, "freeze a running VM; its memory stays"),
    Command("resume-vm", VmRef, Reach.HOLDER, True, "let a paused VM go on"),
    Command("resize-vm", ResizeVm, Reach.HOLDER, True, "give a VM other cores, other memory, a larger disk"),
    Command("snapshot-vm", SnapshotRef, Reach.HOLDER, True, "keep a VM's disk as it is now"),
    Command("restore-vm", SnapshotRef, Reach.HOLDER, True, "take a stopped VM's disk back to a snapshot"),
    Command("delete-snapshot", SnapshotRef, Reach.HOLDER, True, "delete a snapshot of a VM"),
    Command("list-snapshots", VmRef, Reach.HOLDER, False, "list the snapshots of a VM"),
    Command("extend-vm", ExtendVm, Reach.HOLDER, True, "set anew when a VM expires"),
    Command("delete-vm", VmRef, Reach.HOLDER, True, "delete a VM and its disk"),
    Command("show-vm", ShowVm, Reach.HOLDER, False, "show one VM: spec, state, host, console"),
    Command("open-stream", OpenStream, Reach.HOLDER, False, "open a VM's console, its log, or a port of its"),
    Command("list-hosts", NoOptions, Reach.ALL, False, "list the hosts, what they have and what is free"),
    Command("list-images", NoOptions, Reach.ALL, False, "list the images of every host"),
    Command("delete-image", DeleteImage, Reach.HOST, True, "delete an image that no VM uses"),
    Command("drain-host", HostRef, Reach.HOST, True, "let a host take no new VMs"),
    Command("undrain-host", HostRef, Reach.HOST, True, "let a host take VMs again"),
    Command("offer-vm", CreateVm, Reach.ALL, False, "ask every host how well it could take a VM"),
    Command("ping", NoOptions, Reach.ALL, False, "ask hosts whether they listen, and what time they have"),
    Command("check-host", CheckHost, Reach.ALL, False, "ask hosts what is wrong with them"),
    Command("forget-host", ForgetHost, Reach.ONE, True, "forget a host that is gone for good"),
)

BROADCAST_KEYS: tuple[str, ...] = tuple(c.name for c in COMMANDS.values() if c.reach in (Reach.ALL, Reach.HOLDER))
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
        known = ", ".join(c.name for c in COMMANDS.values())
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
