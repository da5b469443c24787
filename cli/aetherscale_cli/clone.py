"""`clone-vm`: what the source is, the clone is too, unless something else is said; its disk is a copy."""

import msgspec

from aetherscale_cli import ask
from aetherscale_cli.arguments import Invocation
from aetherscale_cli.arguments_create import choose_id, unite_labels
from aetherscale_cli.errors import CliError, Exit
from aetherscale_cli.report import EXIT_OF
from aetherscale_cli.resolve import resolve
from aetherscale_cli.wire import Session
from aetherscale_protocol.answers import VmReport
from aetherscale_protocol.commands import COMMANDS
from aetherscale_protocol.options import CreateVm, ShowVm

_LOOK_S = 5.0


def finalize_clone(session: Session, invocation: Invocation) -> CreateVm:
    """The create that makes the clone; keys and user data are not in it.

    :raise CliError: when the source is not known, is not off, or can't be asked for; nothing was changed.
    """
    space = invocation.space
    source = _show(session, space.source)
    if source.state not in ("stopped", "failed"):  # a refused create would keep the clone's name for a while
        raise CliError(f"VM {space.source} is {source.state}: only one that is off can be cloned", "stop-vm it first")
    try:
        return CreateVm(
            image=source.image,
            vm_id=choose_id(space.vm_id, space.name),
            name=space.name,
            cpus=space.cpus or source.cpus,
            memory=space.memory or source.memory,
            disk=space.disk or source.disk,
            labels=source.labels | unite_labels(space.label),
            publish=tuple(space.publish),
            ttl=space.ttl,
            host=space.host,
            host_labels=unite_labels(space.host_label),
            spread=space.spread,
            near=space.near,
            clone_of=source.vm_id,
        )
    except ValueError as error:
        raise CliError(str(error), None, Exit.USAGE) from None


def _show(session: Session, token: str) -> VmReport:
    (found,) = resolve(session, [token], _LOOK_S)
    call = ask.make_call(COMMANDS["show-vm"], ShowVm(vm_id=found.vm_id, console_lines=0), _LOOK_S, None, found.name)
    ask.ask_each(session, [call], _LOOK_S)
    if call.trouble is not None:
        raise call.trouble
    assert call.reply is not None, "asked until it was settled"
    info = call.reply.answer.execution_info
    if info.code == "vm-unknown":
        raise CliError(f"{call.subject} does not exist", info.hint)
    if not call.reply.answer.ok:
        raise CliError(f"{call.subject}: {info.reason}", info.hint, EXIT_OF.get(info.code or "", Exit.FAILED))
    try:
        return msgspec.json.decode(call.reply.answer.response, type=VmReport)
    except ValueError:
        raise CliError(f"{call.subject}: the answer can't be read", "are agent and CLI of one version?") from None
