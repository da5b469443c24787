"""What a command line asks for, done and shown: the commands, and what each of them needs.

It is imported when the command line has been read: `--help` and what is typed wrong need none of it.
"""

import contextlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from aetherscale_cli import dialogue, interrupts, outlet, report, text
from aetherscale_cli.arguments import PROGRAM, Invocation
from aetherscale_cli.contexts import ContextStore, chosen, find_target
from aetherscale_cli.errors import CliError, Exit
from aetherscale_cli.report import Outcome

if TYPE_CHECKING:
    from aetherscale_cli.wire import Session


@interrupts.one_at_most()
def execute(invocation: Invocation, environ: Mapping[str, str]) -> int:
    """Do it, and show what came of it; the exit code.

    :raise CliError: when it ends before there is anything to show.
    """
    store = ContextStore.of(environ)
    invocation = msgspec.structs.replace(invocation, output=_choose_output(invocation))
    as_json = invocation.as_json
    if invocation.command == "use-context":
        store.use(invocation.name)
        return Exit.DONE
    if invocation.command == "import-image":
        from aetherscale_cli import import_image

        context, space = chosen(store, invocation.context, environ), invocation.space
        deployment = store.find_deployment(context) if context is not None else None
        digest = import_image.import_image(deployment, space.image, space.source, space.sha256, space.only)
        return show(import_image.report_image(space.image, digest, invocation.output), invocation)
    if invocation.command == "list-contexts":
        return show(_list_contexts(store, invocation, environ, as_json=as_json), invocation)
    if invocation.command == "doctor":
        return _examine(invocation, store, environ)
    return _execute_remote(invocation, store, environ, as_json=as_json)


def _examine(invocation: Invocation, store: ContextStore, environ: Mapping[str, str]) -> int:
    """Look at everything, and say what is wrong: also with the context, so it is not needed to be whole."""
    from aetherscale_cli import broker, doctor, examine

    broker.log_to_stderr() if invocation.debug else broker.keep_quiet()
    found = examine.examine(invocation, store, environ)
    return show(doctor.report(found, as_json=invocation.as_json, strict=invocation.space.strict), invocation)


def _choose_output(invocation: Invocation) -> str:
    if invocation.output is not None:
        return invocation.output
    return "json" if sys.stdout is None or not sys.stdout.isatty() else "table"


_LONGER = ("create-vm", "clone-vm", "wait-vm", "delete-image", "apply")
"""Commands that are, or may be, more than a question and its answers."""


def _execute_remote(invocation: Invocation, store: ContextStore, environ: Mapping[str, str], *, as_json: bool) -> int:
    """Ask the agents, and show what they answer before the connection is taken down."""
    target = find_target(store, invocation.context, environ)
    outlet.say([f"warning: {text.safe(warning)}" for warning in target.warnings])
    from aetherscale_cli import broker  # imports pika: not before it is needed

    broker.log_to_stderr() if invocation.debug else broker.keep_quiet()

    def connect() -> "contextlib.AbstractContextManager[Session]":
        return broker.open_session(target, f"{PROGRAM} {invocation.command}")

    if invocation.vm:
        from aetherscale_cli import stream_commands

        return stream_commands.execute(invocation, target, store, chosen(store, invocation.context, environ))
    if invocation.command in _LONGER:
        from aetherscale_cli import workflows

        return show(workflows.run(connect, invocation, environ), invocation)
    if invocation.wait:
        return show(dialogue.insist(connect, invocation), invocation)
    if invocation.command == "forget-host":
        from aetherscale_cli import forget

        forget.check_somebody_can_be_asked(invocation)
        with connect() as session:
            return show(forget.forget_host(session, invocation, show, as_json=as_json), invocation)
    with connect() as session:
        return show(dialogue.ask(session, invocation), invocation)


def _list_contexts(
    store: ContextStore, invocation: Invocation, environ: Mapping[str, str], *, as_json: bool
) -> Outcome:
    """The contexts; those whose files are broken are named on stderr."""
    try:
        current = chosen(store, invocation.context, environ)
    except CliError:  # several, none chosen: a thing to see here, not an error
        current = None
    rows, broken = [], []
    for name in store.names():
        try:
            rows.append((name, store.load(name).settings.url))
        except CliError as error:
            broken.append(error)
    return report.report_contexts(rows, broken, current, store.folder, as_json=as_json)


def show(outcome: Outcome, invocation: Invocation | None = None) -> int:
    """Print an outcome: answers first, then what there is to say about them; its exit code.

    :param invocation: says in which form data are wanted.
    """
    if invocation is not None and invocation.output in ("yaml", "name"):
        from aetherscale_cli import outputs

        outcome = outputs.convert(outcome, invocation.output, outcome.names)
    try:
        outlet.answer(outcome.stdout)
    except OSError as error:
        outcome.fail(f"can't write the output: {error.strerror}")
    outlet.say(outcome.notes)
    interrupts.let_through()
    return outcome.exit_code
