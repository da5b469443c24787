"""What is shown in the end, and the exit code that goes with it. Pure: answers in, text out."""

from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct

from aetherscale_cli import lists, text, views
from aetherscale_cli.arguments import PROGRAM
from aetherscale_cli.ask import FULL_HINT, Everyone
from aetherscale_cli.errors import CliError, Exit, ManifestError, worst
from aetherscale_cli.gather import Missing
from aetherscale_cli.settle import Call
from aetherscale_cli.wire import Reply
from aetherscale_protocol.answers import Answer, ExecutionInfo, encode_answer
from aetherscale_protocol.commands import Reach

EXIT_OF = {"outcome-unknown": Exit.UNKNOWN, "host-down": Exit.PARTIAL}
"""The exit codes of refusals that are more than a no: a script may wait and ask again."""


class Outcome(Struct):
    """`stdout` for answers, `notes` (lines) for stderr, and the exit code; `names` of VMs, by their ids, '' if they
    have none; `calls`: what was asked for.
    """

    stdout: str = ""
    notes: list[str] = []
    exit_code: Exit = Exit.DONE
    names: dict[str, str] = {}
    calls: Sequence[Call] = ()

    def fail(self, message: str, hint: str | None = None, exit_code: Exit = Exit.FAILED) -> None:
        """Add an error, made safe for a terminal."""
        self.notes.append(f"error: {text.safe(message)}")
        self.hint(hint)
        self.exit_code = worst(self.exit_code, exit_code)

    def refuse(self, subject: str, speaker: str, info: ExecutionInfo) -> None:
        """Add an agent's error, with every host's own reason if it brings them: then who speaks for the others is left
        out. What is said of a host that is down names the VM by itself.
        """
        exit_code = EXIT_OF.get(info.code or "", Exit.FAILED)
        where = "" if info.code == "host-down" else subject + ("" if info.reasons else speaker)
        self.fail(f"{where}{info.reason or 'refused without a reason'}", None, exit_code)
        self.notes += [text.safe(f"  {host}: {why}") for host, why in sorted(info.reasons.items())]
        self.hint(info.hint)

    def hint(self, hint: str | None) -> None:
        """Add a hint, if there is one that was not given just before."""
        line = f"hint: {text.safe(hint or '')}"
        if hint and line not in self.notes[-2:]:
            self.notes.append(line)


def failed(error: CliError) -> Outcome:
    """The outcome of a command that ended in an error of our own, or in several about one file."""
    outcome = Outcome()
    for said in error.errors if isinstance(error, ManifestError) else [str(error)]:
        outcome.fail(said, None, error.exit_code)
    outcome.hint(error.hint)
    return outcome


def json_list(answers: Sequence[bytes]) -> str:
    """The list of answers as received, in JSON, one a line."""
    body = ",\n ".join(text.safe_json(answer.decode()) for answer in answers)
    return f"[{body}]\n"


def report_everyone(
    command: str,
    everyone: Everyone,
    timeout: float,
    now: float,
    *,
    as_json: bool,
    wide: bool = False,
    wanted: lists.Filter | None = None,
) -> Outcome:
    """The outcome of a command that went to all hosts; `wanted`: which of the VMs it was asked for."""
    outcome = Outcome()
    usable = [reply for reply in everyone.replies if not _report_refusal(outcome, reply)]
    try:
        body, rows = _everyone_table(command, usable, everyone.missing, now, wide=wide)
    except ValueError as error:
        body, rows = "", -1
        outcome.fail(f"an answer can't be read: {error}", "are all agents and the CLI of one version?")
    outcome.stdout = json_list([reply.raw for reply in everyone.replies]) if as_json else body
    if everyone.unreadable:
        outcome.fail(
            f"{everyone.unreadable} of the answers can't be read", "are all agents and the CLI of one version?"
        )
    report_missing(outcome, everyone, timeout)
    if wanted is not None and wanted.host is not None:
        _report_unknown_host(outcome, everyone, wanted.host)
    if command == "list-vms" and rows == 0 and outcome.exit_code is Exit.DONE and not as_json:
        none = f"There are no VMs yet: {PROGRAM} create-vm --image IMAGE makes one."
        outcome.notes.append("No VM is like that." if wanted is not None and wanted.active else none)
    return outcome


def _report_unknown_host(outcome: Outcome, everyone: Everyone, host: str) -> None:
    """Report a host that neither answered nor is missing: there is none of that name."""
    known = {reply.answer.host or "" for reply in everyone.replies} | {one.host for one in everyone.missing}
    if host not in known and not (everyone.nameless or everyone.unreadable):  # it may be one of those
        outcome.fail(f"host {host} does not exist", f"there are {text.listed(sorted(known - {''}))}")


def _everyone_table(
    command: str, replies: Sequence[Reply], missing: Sequence[Missing], now: float, *, wide: bool
) -> tuple[str, int]:
    """The table and its number of rows."""
    if command == "list-images":
        return lists.images_table(replies, wide=wide), 0
    if command == "list-vms":
        rows = [row for reply in replies for row in lists.vm_rows(reply, now)]
        return lists.vms_table(rows, wide=wide), len(rows)
    rows = [lists.host_row(reply) for reply in replies] + [lists.missing_row(host) for host in missing]
    rows.sort(key=lambda row: row[0])
    return text.partial_table(lists.HOST_COLUMNS, rows, {"LABELS"}), len(rows)


def _report_refusal(outcome: Outcome, reply: Reply) -> bool:
    """Report an answer that is an error; False if it is none. A notice of a host that is down counts as missing."""
    info = reply.answer.execution_info
    if reply.answer.ok:
        return False
    if info.code != "host-down":
        where = f"{reply.answer.host}: " if reply.answer.host else ""
        outcome.refuse("", where, info)
    return True


def report_missing(outcome: Outcome, everyone: Everyone, timeout: float) -> None:
    silent = f"did not answer within {timeout:g} s"
    if everyone.full:
        silent = "may not have been asked: a host's queue is full"
    for host in everyone.missing:
        what = "is not running" if host.state == "down" else silent
        outcome.fail(f"host {host.host} {what}", None, Exit.PARTIAL)
    if everyone.nameless:
        hosts = "1 host" if everyone.nameless == 1 else f"{everyone.nameless} hosts"
        outcome.fail(f"{hosts} {silent}", None, Exit.PARTIAL)
    if everyone.full:
        outcome.hint(FULL_HINT)
    elif everyone.missing:
        names = text.listed([host.host for host in everyone.missing])
        outcome.hint(f"look there: systemctl status aetherscale-agent (on {names})")


def report_each(calls: Sequence[Call], now: float, *, as_json: bool, also: Sequence[bytes] = ()) -> Outcome:
    """The outcome of commands that got one answer each; `also`: more answers for programs, who are not told of here."""
    outcome, several = Outcome(), len(calls) + len(also) > 1
    done = [call for call in calls if not report_trouble(outcome, call, several)]
    try:
        body = _each_text(done, now)
    except ValueError as error:
        body = ""
        outcome.fail(f"the answer can't be read: {error}", "are agent and CLI of one version?")
    outcome.stdout = json_list([row for call in calls if (row := _row(call, several))] + [*also]) if as_json else body
    _report_unfinished(outcome, done)
    if done and done[0].command.name == "create-vm" and not as_json:
        outcome.hint(f"see it boot: {PROGRAM} show-vm {done[0].spoken}")
    return outcome


def _report_unfinished(outcome: Outcome, done: Sequence[Call]) -> None:
    """A VM that is still on its way down when the time was up is not off: no script may take it for that."""
    for call in done:
        if call.command.name == "stop-vm" and call.reply is not None and views.is_stopping(call.reply):
            hint = f"{PROGRAM} show-vm {call.spoken} tells when it is off; stop-vm --kill pulls its plug"
            outcome.fail(f"VM {call.spoken} is still shutting down", hint, Exit.UNKNOWN)


def _each_text(done: Sequence[Call], now: float) -> str:
    if not done:
        return ""
    command = done[0].command.name
    replies = [call.reply for call in done if call.reply is not None]
    if command == "forget-host":
        return "".join(views.forgotten_page(reply) for reply in replies)
    if command == "list-snapshots":
        return views.snapshots_table(done, now)
    if command == "show-vm":
        return "\n".join(views.vm_page(reply, now) for reply in replies)
    rows = [views.status_row(call, now) for call in done]
    return text.partial_table(views.STATUS_COLUMNS, rows, views.STATUS_OPTIONAL)


def report_trouble(outcome: Outcome, call: Call, several: bool) -> bool:
    """Report a call that was not done, or not known to be; False if it was done."""
    if call.trouble is not None:
        error = call.trouble
        outcome.fail(str(error), error.hint, error.exit_code)
        return True
    assert call.reply is not None, "reported before it was settled"
    info, host = call.reply.answer.execution_info, call.reply.answer.host
    if call.reply.answer.ok:
        return False
    if info.code == "vm-unknown":
        outcome.fail(f"{call.subject} does not exist", info.hint)
        return True
    subject = f"{call.subject}: " if (several or host is None) and info.code != "host-unknown" else ""
    outcome.refuse(subject, f"{host}: " if host and call.vm_id else "", info)
    return True


def _row(call: Call, several: bool) -> bytes | None:
    """The answer for programs; what is known without an agent has one, too, as an agent would have put it. Of several
    each that was not done says of whom it speaks.
    """
    if call.reply is not None:
        row = call.reply.raw
    elif call.trouble is not None and (several or call.trouble.code):
        row = answer_of(call.trouble)
    else:
        return None
    if call.done or not several:
        return row
    if call.command.reach is Reach.HOST:
        return _add(row, {"host": getattr(call.options, "host", "")})
    return name_vm(row, call.vm_id, call.typed or call.spoken)


def answer_of(error: CliError) -> bytes:
    """An error of our own as an agent would have put it."""
    info = ExecutionInfo(status="error", reason=str(error), code=error.code, hint=error.hint)
    return encode_answer(Answer(execution_info=info))


def name_vm(row: bytes, vm_id: str, typed: str) -> bytes:
    """An answer that says of which VM it speaks: its id, if that is known, and what was typed for it."""
    return _add(row, {"vm-id": vm_id, "vm": typed} if vm_id else {"vm": typed})


def _add(row: bytes, more: Mapping[str, str]) -> bytes:
    """An answer with keys that it lacks."""
    keys = {key: msgspec.Raw(msgspec.json.encode(value)) for key, value in more.items()}
    return msgspec.json.encode(keys | msgspec.json.decode(row, type=dict[str, msgspec.Raw]))


def report_contexts(
    contexts: Sequence[tuple[str, str]], broken: Sequence[CliError], current: str | None, folder: str, *, as_json: bool
) -> Outcome:
    """The outcome of list-contexts: names with their brokers' URLs; `broken` tells of files that can't be used."""
    outcome = Outcome()
    if as_json:
        rows = [{"name": name, "url": url, "current": name == current} for name, url in contexts]
        outcome.stdout = json_list([msgspec.json.encode(row) for row in rows])
    else:
        marked = [("*" if name == current else " ", name, url) for name, url in contexts]
        outcome.stdout = text.table(("CURRENT", "NAME", "BROKER"), marked)
    for error in broken:
        outcome.fail(str(error), error.hint, error.exit_code)
    if not contexts and not broken and not as_json:
        outcome.notes.append(f"There are no contexts in {text.safe(folder)}.")
    return outcome
