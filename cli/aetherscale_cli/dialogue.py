"""A command and its answers: who is asked, until when, and with which outcome."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from aetherscale_cli import interrupts, outlet, report, targets
from aetherscale_cli.arguments import Invocation
from aetherscale_cli.ask import GRACE_S, ask_each, ask_everyone
from aetherscale_cli.errors import Exit, NoAgent
from aetherscale_cli.lists import Filter, Growing
from aetherscale_cli.report import Outcome
from aetherscale_cli.settle import Call, Settling
from aetherscale_cli.wire import Reply, Session
from aetherscale_protocol.commands import COMMANDS, Reach

if TYPE_CHECKING:
    from aetherscale_cli.insist import Connect

AskSome = Callable[[Sequence[Call]], None]


def insist(connect: "Connect", invocation: Invocation) -> Outcome:
    """Ask until hosts that are down are back; the outcome.

    :raise CliError: when the broker can't be reached at all; nothing was sent.
    """
    from aetherscale_cli.insist import ask_until_back, renew
    from aetherscale_cli.waiting import Patience, Waiting

    patience = Patience(time.monotonic(), invocation.wait, invocation.timeout)
    if targets.need_asking(invocation):
        with connect() as session:
            calls = targets.make_calls(session, invocation, invocation.timeout, patience.allowed)
    else:
        calls = targets.make_calls(None, invocation, invocation.timeout, patience.allowed)

    def ask_some(some: Sequence[Call]) -> None:
        waiting = Waiting(some, patience, renew, own_ids=invocation.own_ids, grace=GRACE_S)
        ask_until_back(connect, waiting)

    return _ask_calls(calls, invocation, ask_some)


def ask(session: Session, invocation: Invocation) -> Outcome:
    """Ask, wait for what there is to come, and no longer; the outcome.

    :raise CliError: when the broker fails; nothing was sent.
    """
    try:
        if COMMANDS[invocation.command].reach is Reach.ALL:
            return _ask_everyone(session, invocation)
        calls = targets.make_calls(session, invocation, invocation.timeout, invocation.timeout)
        return _ask_calls(calls, invocation, lambda some: ask_each(session, some, invocation.timeout))
    except NoAgent as error:
        return nobody(error, invocation)


def nobody(error: NoAgent, invocation: Invocation) -> Outcome:
    """The outcome where no agent is running: no answers."""
    outcome = report.failed(error)
    outcome.stdout = report.json_list([]) if invocation.as_json else ""
    return outcome


def _ask_everyone(session: Session, invocation: Invocation) -> Outcome:
    command, timeout, now = invocation.command, invocation.timeout, time.time()
    wanted, wide = Filter(), invocation.output == "wide"
    if command == "list-vms":
        space = invocation.space
        wanted = Filter(tuple(space.label), space.state, space.host)
    growing, failures = Growing(command, now, wide=wide, wanted=wanted), list[OSError]()

    def tell(replies: Sequence[Reply]) -> None:
        try:
            outlet.answer(growing.more(replies))
        except OSError as error:
            failures.append(error)

    grows = command in ("list-vms", "list-hosts") and not invocation.as_json and outlet.is_terminal()
    everyone = ask_everyone(session, command, timeout, tell=tell if grows else None)
    shown = growing.more(everyone.replies, everyone.missing) if growing.begun else None
    if wanted.active:
        replies = tuple(wanted.narrow(reply) for reply in everyone.replies)
        everyone = msgspec.structs.replace(everyone, replies=replies)
    outcome = report.report_everyone(
        command, everyone, timeout, now, as_json=invocation.as_json, wide=wide, wanted=wanted
    )
    if shown is not None:
        outcome.stdout = shown
    for error in failures[:1]:
        outcome.fail(f"can't write the output: {error.strerror}")
    return outcome


def _ask_calls(calls: Sequence[Call], invocation: Invocation, ask_some: AskSome) -> Outcome:
    """Ask; ask again for those whose 8 letters turn out to be a name; the outcome, also of what was ended midway.

    :raise CliError: when it ended before anything was sent; KeyboardInterrupt likewise.
    """
    first, asked = [call for call in calls if call.pending], list[Call]()

    def ask_all() -> None:
        pending = first
        while pending:
            ask_some(pending)
            asked.extend(pending)
            pending = targets.retry_as_names(calls, invocation, invocation.timeout)

    ended = interrupts.attempt(ask_all)
    if ended is not None:
        if not (asked or any(call.until or not call.pending for call in first)):
            raise ended
        targets.retry_as_names(calls, invocation, invocation.timeout)  # what was not asked for as a name is not sent
        Settling(calls).lose(interrupts.reason_of(ended))
    if getattr(invocation.space, "if_exists", False):
        targets.accept_absence(calls)
    outcome = report.report_each(calls, time.time(), as_json=invocation.as_json)
    outcome.names |= {call.vm_id: call.name for call in calls}
    outcome.calls = calls
    if isinstance(ended, KeyboardInterrupt):
        outcome.exit_code = Exit.INTERRUPTED
    return outcome
