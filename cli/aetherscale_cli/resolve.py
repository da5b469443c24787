"""Which VM is meant: by its full id, its name, or the beginning of its id, in this order.

A name's id can be computed, so most names cost no question. Asked is only for what may be several things: 8 letters
(an id, or a name), and fewer (a name, or the beginning of an id).
"""

import re
import time
from collections.abc import Iterable, Mapping, Sequence

import msgspec
from msgspec import Struct

from aetherscale_cli.arguments import PROGRAM
from aetherscale_cli.ask import Everyone, ask_everyone, make_message
from aetherscale_cli.errors import CliError, Exit
from aetherscale_cli.text import listed
from aetherscale_cli.wire import Delivered, Event, Reply, Returned, Session, decode_reply
from aetherscale_protocol import names, topology
from aetherscale_protocol.answers import VmDetails
from aetherscale_protocol.options import ShowVm

_HOLDER_S = topology.HOST_TTL_MS / 1000 + 0.5
"""How long finding out whether somebody holds a VM may take; after that somebody does, who is silent."""

_MOST_NAMED = 10


class Found(Struct, frozen=True):
    """The VM that was meant; `name` is '' where it has none, or it is not known."""

    vm_id: str
    name: str = ""


class UnknownVm(CliError):
    """There is no such VM, as far as all hosts say."""

    def __init__(self, token: str) -> None:
        hint = f"{PROGRAM} list-vms shows those that there are"
        super().__init__(f"VM {token} does not exist", hint, code="vm-unknown")


def may_begin_an_id(token: str) -> bool:
    """Whether this may be the beginning of a VM id, without being one; all else is an id or a name."""
    return re.fullmatch("[a-z]{1,7}", token) is not None


def resolve(session: Session, tokens: Sequence[str], timeout: float) -> list[Found]:
    """The VMs that `tokens` stand for, in their order.

    :raise CliError: when one is unknown, as far as was asked, or stands for several.
    """
    found = []
    for one in find_each(session, tokens, timeout, trust_ids=False):
        if isinstance(one, CliError):
            raise one
        found.append(one)
    return found


def find_each(
    session: Session, tokens: Sequence[str], timeout: float, *, trust_ids: bool = True, letters_needed: int = 1
) -> list[Found | CliError]:
    """For each token the VM, or why it is not known which. `trust_ids`: 8 letters are an id, without asking.
    `letters_needed`: how many of an id must be given at least.

    :raise CliError: when the broker fails, or no agent is running.
    """
    short = {token for token in tokens if may_begin_an_id(token)}
    letters = set() if trust_ids else {token for token in tokens if names.is_vm_id(token)}
    asked = {names.id_of_name(token) for token in short | letters} | letters
    held = find_held(session, asked, timeout) if asked else set()
    open_ones = {token for token in short if names.id_of_name(token) not in held}
    everyone = ask_everyone(session, "list-vms", timeout) if open_ones else None
    found: list[Found | CliError] = []
    for token in tokens:
        if token in open_ones and everyone is not None:
            found.append(_find_prefix(token, everyone, letters_needed))
        elif names.is_vm_id(token) and (trust_ids or token in held):
            found.append(Found(token))
        elif token in letters and names.id_of_name(token) not in held:
            found.append(UnknownVm(token))
        else:
            found.append(Found(names.id_of_name(token), token))
    return found


def find_held(session: Session, vm_ids: Iterable[str], timeout: float) -> set[str]:
    """Those of these VM ids that somebody holds, be it a host that is down or silent."""
    asked = {}
    for vm_id in sorted(vm_ids):
        message = make_message("show-vm", ShowVm(vm_id=vm_id, console_lines=0), names.vm_key(vm_id), timeout)
        asked[message.correlation_id] = vm_id
        session.publish(message)
    held, open_ones = set(asked.values()), set(asked)
    deadline = time.monotonic() + min(timeout, _HOLDER_S)
    while open_ones and (event := session.next_event(deadline)) is not None:
        correlation_id = getattr(event, "correlation_id", "")
        if correlation_id in open_ones:
            open_ones.discard(correlation_id)
            if _says_nobody(event):
                held.discard(asked[correlation_id])
    return held


def _says_nobody(event: Event) -> bool:
    if isinstance(event, Returned):
        return True
    reply = decode_reply(event.body) if isinstance(event, Delivered) else None
    return reply is not None and reply.answer.execution_info.code == "vm-unknown"


def _find_prefix(prefix: str, everyone: Everyone, letters_needed: int) -> Found | CliError:
    """The one VM whose id begins so, if that is sure."""
    candidates = {vm_id: name for vm_id, name in names_of(everyone).items() if vm_id.startswith(prefix)}
    if len(candidates) > 1:
        return _ambiguous(prefix, candidates)
    unread = everyone.unreadable or any(not _is_read(reply) for reply in everyone.replies)
    missing = [host.host for host in everyone.missing] + ["another host"] * bool(everyone.nameless or unread)
    if missing:
        what = f"{listed(missing)} did not answer, and {prefix} may be the beginning of the id of a VM there"
        return CliError(
            f"it is not known which VM {prefix} is: {what}", "give the VM's full id or name", Exit.PARTIAL, "host-down"
        )
    if not candidates:
        return UnknownVm(prefix)
    ((vm_id, name),) = candidates.items()
    if len(prefix) < letters_needed:
        return _too_short(prefix, _spoken(vm_id, name), letters_needed)
    return Found(vm_id, name)


def _is_read(reply: Reply) -> bool:
    """Whether this host said which VMs it has."""
    try:
        msgspec.json.decode(reply.answer.response or b"null", type=list[str])
    except ValueError:
        return False
    return reply.answer.ok


def names_of(everyone: Everyone) -> dict[str, str]:
    """The VMs' names by their ids, '' for those without, as answers to list-vms tell them. What can be no id or no name
    is left out: hints have them in commands that people copy.
    """
    known: dict[str, str] = {}
    for reply in everyone.replies:
        try:
            ids = msgspec.json.decode(reply.answer.response or b"[]", type=list[str])
            details = msgspec.json.decode(reply.answer.details or b"null", type=list[VmDetails] | None)
        except ValueError:
            continue  # it is reported where lists are shown
        known |= {text.removeprefix("vm-"): "" for text in ids} | {vm.vm_id: vm.name for vm in details or ()}
    return {vm_id: name if names.is_vm_name(name) else "" for vm_id, name in known.items() if names.is_vm_id(vm_id)}


def _spoken(vm_id: str, name: str) -> str:
    return f"{vm_id} ({name})" if name else vm_id


def _too_short(prefix: str, meant: str, letters_needed: int) -> CliError:
    return CliError(
        f"there is no VM named {prefix}, and it is too little of an id for what can't be undone; VM {meant} begins so",
        f"if that VM is meant, give its whole id, its name, or {letters_needed} letters of its id",
        code="bad-request",
    )


def _ambiguous(prefix: str, candidates: Mapping[str, str]) -> CliError:
    shown = [_spoken(vm_id, name) for vm_id, name in sorted(candidates.items())]
    more = [] if len(shown) <= _MOST_NAMED else ["…"]
    known = ", ".join(shown[:_MOST_NAMED] + more)
    return CliError(
        f"{prefix} is the beginning of {len(shown)} VM ids: {known}",
        "give more of the id, or the name",
        code="bad-request",
    )
