"""From what was typed to calls: one for each VM or host, with the VM found that a name or a beginning stands for."""

from collections.abc import Sequence

import msgspec

from aetherscale_cli import ask
from aetherscale_cli.arguments import Invocation
from aetherscale_cli.errors import CliError
from aetherscale_cli.resolve import Found, UnknownVm, find_each, may_begin_an_id
from aetherscale_cli.settle import Call, vm_unknown
from aetherscale_cli.wire import Reply, Session
from aetherscale_protocol import names
from aetherscale_protocol.answers import encode_answer, success
from aetherscale_protocol.commands import COMMANDS
from aetherscale_protocol.options import Options

_DESTROYING = ("delete-vm", "restore-vm", "delete-snapshot")


def need_asking(invocation: Invocation) -> bool:
    """Whether hosts are to be asked which VMs are meant, before anything is sent."""
    if _may_be_absent(invocation):  # where a name may be gone, no other VM may be taken for it
        return False
    return any(may_begin_an_id(token) for token in invocation.vms)


def _may_be_absent(invocation: Invocation) -> bool:
    return bool(getattr(invocation.space, "if_exists", False))


def count_letters_needed(invocation: Invocation) -> int:
    """How many letters of an id this command must be given: more where a slip would cost a guest its data."""
    return 4 if invocation.command in _DESTROYING or getattr(invocation.space, "kill", False) else 1


def make_calls(session: Session | None, invocation: Invocation, timeout: float, allowed: float) -> list[Call]:
    """The calls, whose deadline is `allowed` seconds ahead; those for VMs that are not known are settled already.

    :param session: needed only if hosts need asking; that takes `timeout` seconds at most.
    :raise CliError: when they can't be asked; nothing was sent.
    """
    command = COMMANDS[invocation.command]
    if not invocation.vms:
        named = [getattr(options, "name", None) or "" for options in invocation.options]
        return [
            ask.make_call(command, options, allowed, invocation.request_id, name)
            for options, name in zip(invocation.options, named, strict=True)
        ]
    found = None
    if session and need_asking(invocation):
        needed = count_letters_needed(invocation)
        found = find_each(session, invocation.vms, timeout, letters_needed=needed)
    calls = []
    for place, token in enumerate(invocation.vms):
        one = found[place] if found else _taken_literally(token)
        calls.append(_make_call(invocation, invocation.options[place], token, one, allowed))
    return calls


def _taken_literally(token: str) -> Found:
    return Found(token) if names.is_vm_id(token) else Found(names.id_of_name(token), token)


def _make_call(invocation: Invocation, options: Options, token: str, found: Found | CliError, allowed: float) -> Call:
    known = found if isinstance(found, Found) else _taken_literally(token)
    about = msgspec.structs.replace(options, vm_id=known.vm_id)
    call = ask.make_call(COMMANDS[invocation.command], about, allowed, invocation.request_id, known.name)
    call.typed = token
    if isinstance(found, UnknownVm):
        call.reply = vm_unknown()
    elif isinstance(found, CliError):
        call.trouble, call.vm_id = found, ""
    return call


def retry_as_names(calls: Sequence[Call], invocation: Invocation, allowed: float) -> list[Call]:
    """Those of the calls whose 8 letters were no VM's id, made anew for the VM with this name; settled again."""
    again = []
    for call, token in zip(calls, invocation.vms, strict=False):
        if is_unknown(call) and names.is_vm_id(token) and not call.name:
            anew = ask.make_call(
                call.command,
                msgspec.structs.replace(call.options, vm_id=names.id_of_name(token)),
                allowed,
                invocation.request_id,
                token,
            )
            call.until, call.reply = 0.0, None  # first: what is half made anew, when Ctrl-C comes, was not sent
            call.vm_id, call.options, call.message, call.name = anew.vm_id, anew.options, anew.message, anew.name
            again.append(call)
    return again


def is_unknown(call: Call) -> bool:
    """Whether there is no such VM."""
    return call.reply is not None and call.reply.answer.execution_info.code == "vm-unknown"


def accept_absence(calls: Sequence[Call]) -> None:
    """`--if-exists`: that there is no such VM is what was wanted."""
    for call in calls:
        if is_unknown(call):
            answer = success({"status": "absent", "vm-id": call.vm_id}, "")
            answer = msgspec.structs.replace(answer, host=None)
            call.reply = Reply(encode_answer(answer), answer)
