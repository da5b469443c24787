"""`delete-image`: on every host that has it, or on one."""

import time

from aetherscale_cli import ask, report
from aetherscale_cli.arguments import Invocation
from aetherscale_cli.lists import images_of
from aetherscale_cli.report import Outcome
from aetherscale_cli.wire import Session
from aetherscale_protocol.commands import COMMANDS
from aetherscale_protocol.options import DeleteImage


def delete_everywhere(session: Session, invocation: Invocation) -> Outcome:
    """Ask who has it, and each of them to delete it; hosts that did not answer are named.

    :raise CliError: when no agent is running, or the broker fails.
    """
    image: str = invocation.space.image
    everyone = ask.ask_everyone(session, "list-images", invocation.timeout)
    having = []
    for reply in everyone.replies:
        try:
            rows = images_of(reply) if reply.answer.ok else []
        except ValueError:
            rows = []
        if reply.answer.host and any(row.image == image for row in rows):
            having.append(reply.answer.host)
    command = COMMANDS["delete-image"]
    calls = [ask.make_call(command, DeleteImage(host=host, image=image), invocation.timeout, None) for host in having]
    if calls:
        ask.ask_each(session, calls, invocation.timeout)
    outcome = report.report_each(calls, time.time(), as_json=invocation.as_json)
    report.report_missing(outcome, everyone, invocation.timeout)
    if not calls and not everyone.missing:
        outcome.fail(f'Image "{image}" does not exist on any host')
    return outcome
