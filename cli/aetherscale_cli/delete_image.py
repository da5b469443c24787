"""`delete-image`: on every host that has it, or on one."""

import time

from aetherscale_cli import ask, report
from aetherscale_cli.arguments import Invocation
from aetherscale_cli.errors import Exit
from aetherscale_cli.lists import images_of
from aetherscale_cli.report import Outcome
from aetherscale_cli.wire import Reply, Session
from aetherscale_protocol.answers import ImageRow
from aetherscale_protocol.commands import COMMANDS
from aetherscale_protocol.options import DeleteImage


def delete_everywhere(session: Session, invocation: Invocation) -> Outcome:
    """Ask who has it, and each of them to delete it; hosts that did not answer are named.

    :raise CliError: when no agent is running, or the broker fails.
    """
    image: str = invocation.space.image
    everyone = ask.ask_everyone(session, "list-images", invocation.timeout)
    having, unsure = [], everyone.unreadable
    for reply in everyone.replies:
        if reply.answer.execution_info.code == "host-down":
            continue  # it is among the missing
        rows = _find_rows(reply)
        unsure += rows is None
        if reply.answer.host and any(row.image == image for row in rows or ()):
            having.append(reply.answer.host)
    command = COMMANDS["delete-image"]
    calls = [ask.make_call(command, DeleteImage(host=host, image=image), invocation.timeout, None) for host in having]
    interrupted = bool(calls) and ask.ask_to_the_end(session, calls, invocation.timeout)
    outcome = report.report_each(calls, time.time(), as_json=invocation.as_json)
    report.report_missing(outcome, everyone, invocation.timeout)
    if unsure:
        hosts = "1 host" if unsure == 1 else f"{unsure} hosts"
        outcome.fail(
            f"{hosts} did not say whether they have it", "are all agents and the CLI of one version?", Exit.PARTIAL
        )
    elif not (calls or everyone.missing or everyone.nameless):
        outcome.fail(f'Image "{image}" does not exist on any host')
    if interrupted:
        outcome.exit_code = Exit.INTERRUPTED
    return outcome


def _find_rows(reply: Reply) -> list[ImageRow] | None:
    """The images of a host; None if it did not say, or nothing that can be read."""
    try:
        return images_of(reply) if reply.answer.ok else None
    except ValueError:
        return None
