"""Commands that are more than a question and its answers: creates with all that belongs to them, waits, files."""

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import msgspec

from aetherscale_cli import dialogue, inputs, milestones, report
from aetherscale_cli.arguments import PROGRAM, Invocation
from aetherscale_cli.errors import Exit, NoAgent, worst
from aetherscale_cli.milestones import Watched
from aetherscale_cli.progress import Line
from aetherscale_cli.report import Outcome
from aetherscale_cli.resolve import Found, find_each
from aetherscale_cli.wire import Session

if TYPE_CHECKING:
    from aetherscale_cli.insist import Connect


def run(connect: "Connect", invocation: Invocation, environ: Mapping[str, str]) -> Outcome:
    """Do what was asked for.

    :raise CliError: when nothing was sent.
    """
    try:
        match invocation.command:
            case "create-vm":
                return _create(connect, invocation, environ)
            case "clone-vm":
                return _clone(connect, invocation, environ)
            case "wait-vm":
                with connect() as session:
                    return _wait_for_these(session, invocation)
            case "apply":
                from aetherscale_cli import apply

                return apply.apply(connect, invocation, environ)
            case _:
                return _delete_image(connect, invocation)
    except NoAgent as error:
        return dialogue.nobody(error, invocation)


def _create(connect: "Connect", invocation: Invocation, environ: Mapping[str, str]) -> Outcome:
    if invocation.space.file:
        from aetherscale_cli import apply

        vms = apply.read_file(invocation.space.file, environ)
        apply.warn_of_no_key(vms)
        invocation = msgspec.structs.replace(invocation, options=tuple(vm.options for vm in vms), own_ids=True)
    else:
        invocation = inputs.add_inputs(invocation, environ)
    if invocation.space.dry_run:
        from aetherscale_cli import dry_run

        with connect() as session:
            return dry_run.ask_for_offers(session, invocation)
    if not invocation.wait:
        with connect() as session:
            return _ask_and_wait(session, invocation)
    asked = time.time()
    outcome = dialogue.insist(connect, invocation)
    return _wait(connect, invocation, outcome, asked)


def _clone(connect: "Connect", invocation: Invocation, environ: Mapping[str, str]) -> Outcome:
    from aetherscale_cli import clone

    with connect() as session:
        options = clone.finalize_clone(session, invocation)
        invocation = msgspec.structs.replace(invocation, command="create-vm", options=(options,))
        outcome = _ask_and_wait(session, inputs.add_inputs(invocation, environ))
    typed, meant = f"{PROGRAM} create-vm --", f"{PROGRAM} clone-vm {invocation.space.source} --"
    outcome.notes = [note.replace(typed, meant) for note in outcome.notes]  # how to ask again
    return outcome


def _delete_image(connect: "Connect", invocation: Invocation) -> Outcome:
    from aetherscale_cli import delete_image

    with connect() as session:
        if invocation.options:
            return dialogue.ask(session, invocation)
        return delete_image.delete_everywhere(session, invocation)


def _ask_and_wait(session: Session, invocation: Invocation) -> Outcome:
    asked, begun, line = time.time(), time.monotonic(), Line()
    if invocation.until:
        line.show(f"waiting until create-vm is answered, for {invocation.timeout:g} s at most")
    try:
        outcome = dialogue.ask(session, invocation)
    finally:
        line.clear()
    one = len(invocation.options) == 1  # of many each has its time from when it was sent
    return _wait(lambda: nullcontext(session), invocation, outcome, asked, begun if one else None)


def _wait(
    connect: "Connect", invocation: Invocation, outcome: Outcome, asked: float, begun: float | None = None
) -> Outcome:
    """After VMs were made, or perhaps made, wait for them if that is wanted; both outcomes in one.

    :param asked: when (`time.time()`) they were asked for.
    :param begun: since when the time for all of it counts (`time.monotonic()`); left out: from now on.
    """
    awaited = [call for call in outcome.calls if call.done or call.doubtful]
    if invocation.until is None or not awaited or outcome.exit_code is Exit.INTERRUPTED:
        return outcome
    watched = [Watched(call.vm_id, call.name, asked=asked if call.doubtful else None) for call in awaited]
    waited = milestones.wait_and_report(connect(), watched, invocation.until, invocation.until_s, time.monotonic, begun)
    found = {one.vm_id: one.raw for one in watched if one.asked is not None and one.report is not None}
    calls = [call for call in outcome.calls if call.vm_id not in found]
    made = report.report_each(calls, time.time(), as_json=invocation.as_json, also=list(found.values()))
    waited.notes = [note for note in made.notes if not note.startswith("hint: see it boot")] + waited.notes
    waited.exit_code = worst(made.exit_code, waited.exit_code)
    waited.names = outcome.names
    if invocation.as_json or not waited.stdout:
        waited.stdout = made.stdout
    return waited


def _wait_for_these(session: Session, invocation: Invocation) -> Outcome:
    assert invocation.until is not None, "wait-vm has a default"
    watched = _find(session, invocation.vms, invocation.timeout)
    outcome = milestones.wait_and_report(
        nullcontext(session), watched, invocation.until, invocation.until_s, time.monotonic
    )
    outcome.names = {one.vm_id: one.name for one in watched}
    if invocation.as_json:
        rows = [
            _row(one, vm) for one, vm in zip(watched, invocation.vms, strict=True) if one.report or len(watched) > 1
        ]
        outcome.stdout = report.json_list(rows)
    return outcome


def _row(one: Watched, typed: str) -> bytes:
    """What programs are told of a VM that was waited for."""
    if one.report is not None:
        return one.raw
    assert one.told is not None, "nothing is known of it, so that was told"
    return report.name_vm(one.raw or report.answer_of(one.told), one.vm_id, typed)


def _find(session: Session, tokens: Sequence[str], timeout: float) -> list[Watched]:
    watched = []
    for token, found in zip(tokens, find_each(session, tokens, timeout, trust_ids=False), strict=True):
        if isinstance(found, Found):
            watched.append(Watched(found.vm_id, found.name))
        else:
            watched.append(Watched("", token, verdict="hopeless", unfound=found))
    return watched
