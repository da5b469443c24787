"""`forget-host`: show what is known of a host that is gone, ask, have it forgotten, say what comes next."""

import sys
import time
from collections.abc import Callable

import msgspec

from aetherscale_cli import ask, outlet, report, views
from aetherscale_cli.arguments import Invocation
from aetherscale_cli.errors import CliError, Exit
from aetherscale_cli.report import Outcome
from aetherscale_cli.settle import Call
from aetherscale_cli.wire import Session
from aetherscale_protocol.answers import ForgetReport
from aetherscale_protocol.commands import COMMANDS
from aetherscale_protocol.options import ForgetHost

Show = Callable[[Outcome], int]


def check_somebody_can_be_asked(invocation: Invocation) -> None:
    """Nothing, if `--yes` was said, or there is a person at a keyboard.

    :raise CliError: otherwise; nothing was sent.
    """
    if not invocation.yes and not _at_a_keyboard():
        message = "forget-host asks before it forgets, and there is no terminal to ask on; nothing was done"
        raise CliError(message, "--yes does it without asking", Exit.USAGE)


def _at_a_keyboard() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def forget_host(session: Session, invocation: Invocation, show: Show, *, as_json: bool) -> Outcome:
    """Do it, unless somebody says no; what is known of the host's VMs is shown first.

    :raise CliError: when nothing was sent.
    """
    host = invocation.options[0]
    assert isinstance(host, ForgetHost)
    look = _make(msgspec.structs.replace(host, dry_run=True), invocation)
    ask.ask_each(session, [look], invocation.timeout)
    if look.reply is None or not look.reply.answer.ok:
        return report.report_each([look], time.time(), as_json=as_json)
    page = views.forget_page(look.reply, time.time())
    show(Outcome(notes=page.splitlines()) if as_json else Outcome(stdout=page))
    if not invocation.yes and not outlet.agreed(f"Forget host {host.host}?"):
        return Outcome(notes=["nothing was forgotten"], exit_code=Exit.FAILED)
    done = _make(host, invocation)
    interrupted = ask.ask_to_the_end(session, [done], invocation.timeout)
    outcome = report.report_each([done], time.time(), as_json=as_json)
    if interrupted:
        outcome.exit_code = Exit.INTERRUPTED
    if done.reply is not None and done.reply.answer.ok:
        outcome.hint(_next_step(done.reply.answer.response))
    return outcome


def _make(options: ForgetHost, invocation: Invocation) -> Call:
    return ask.make_call(COMMANDS["forget-host"], options, invocation.timeout, None)


def _next_step(response: bytes) -> str:
    done = msgspec.json.decode(response, type=ForgetReport)
    if done.in_fleet:
        return f"next: take {done.host} out of the inventory and run site.yml, or lists keep naming it as missing"
    return f"next: run site.yml, which takes {done.host}'s broker user away, unless that was done"
