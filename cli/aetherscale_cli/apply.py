"""`apply`: makes the VMs of a file that are missing, changes what can be changed at once, and says what differs.

Each VM is asked for by its own id, so a host that is down hides no VM: what it holds is not known, and is not made
twice. `--prune` needs to know all VMs, so it does nothing while a host is missing.
"""

import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from aetherscale_cli import ask, differences, inputs, interrupts, lists, outlet, report, text
from aetherscale_cli.arguments import Invocation
from aetherscale_cli.errors import CliError, Exit, ManifestError, worst
from aetherscale_cli.manifest import Wanted, read_manifest
from aetherscale_cli.report import Outcome
from aetherscale_cli.resolve import names_of
from aetherscale_cli.settle import Call, not_sent, unanswered
from aetherscale_cli.targets import is_unknown
from aetherscale_cli.wire import Session
from aetherscale_protocol.answers import VmReport
from aetherscale_protocol.commands import COMMANDS
from aetherscale_protocol.options import CreateVm, Options, ShowVm, VmRef, selects

if TYPE_CHECKING:
    from aetherscale_cli.insist import Connect

COLUMNS = ("VM", "RESULT", "DETAIL")
_LOOK_S = 5.0
_GIB = 1 << 30


class Row(Struct, frozen=True, rename="kebab", omit_defaults=True):
    """What was done about a VM, or would be."""

    vm: str
    vm_id: str
    result: str
    detail: str = ""
    needs: str = ""


class Item(Struct):
    """A VM of the file: what the look at it brought, and what was asked for because of that."""

    wanted: Wanted
    look: Call
    calls: Sequence[Call] = ()
    found: Sequence[differences.Difference] | None = None  #: where it differs; None: not compared (yet)


class Run(Struct):
    """One run of apply, as far as it has come. What is to be told is made of this in the end, wherever it ended."""

    invocation: Invocation
    outcome: Outcome
    items: Sequence[Item] = ()  #: none before all were looked at, and nothing was changed before
    deletes: Sequence[Call] = ()
    rows: list[Row] = []  #: of what is pruned, or is not
    bases: dict[tuple[str, str], int] | None = None  #: the GiB of images, by host and name; None: not asked yet
    why: CliError | None = None  #: what ended it midway: what is pending was not sent, or got no answer

    @property
    def only_shown(self) -> bool:
        """Whether nothing is to be changed (`--diff`)."""
        return bool(self.invocation.space.diff)

    def make_calls(self, commands: Sequence[tuple[str, Options]], name: str) -> list[Call]:
        """Calls for a VM of this name, which are not sent yet."""
        return [ask.make_call(COMMANDS[one], options, self.invocation.timeout, None, name) for one, options in commands]

    def send(self, session: Session, calls: Sequence[Call]) -> None:
        """Send these, which are noted in an item or in `deletes` already."""
        if not calls:
            return
        try:
            ask.ask_each(session, calls, self.invocation.timeout)
        except CliError as error:
            for call in calls:
                call.trouble = not_sent(call, error)

    def conclude(self, outcome: Outcome, call: Call, done: str) -> str:
        """Report what became of a call, in a word: it was `done`, it was not, or nobody knows."""
        if call.pending:
            assert self.why is not None, "what was not ended settles all"
            call.trouble = unanswered(call, self.why)
        if not report.report_trouble(outcome, call, True):
            return done
        return f"perhaps {done}" if call.doubtful else f"not {done}"

    def find_least_disk(self, session: Session, vm: VmReport) -> int:
        """The GiB that a VM's disk has at least, because of the image that it stands on; 0 if nobody says."""
        if self.bases is None:
            everyone = ask.ask_everyone(session, "list-images", _LOOK_S)
            self.bases = {}
            for reply in everyone.replies:
                with contextlib.suppress(ValueError):
                    rows = lists.images_of(reply) if reply.answer.ok else []
                    self.bases |= {(reply.answer.host or "", row.image): -(-row.virtual_size // _GIB) for row in rows}
        return self.bases.get((vm.host, vm.image), 0)


def read_file(path: str, environ: Mapping[str, str]) -> list[Wanted]:
    """The VMs of a file, with the keys and the user data that it names; files are relative to it.

    :raise CliError: when it, or one that it names, can't be read or is wrong; with every error of the file.
    """
    manifest = read_manifest(inputs.read_text(path, "file of VMs"), path)
    if manifest.errors:
        raise ManifestError(manifest.errors)
    return [msgspec.structs.replace(one, options=_finalize(one, Path(path).parent, environ)) for one in manifest.vms]


def _finalize(wanted: Wanted, folder: Path, environ: Mapping[str, str]) -> CreateVm:
    try:
        given = wanted.ssh_keys
        keys = inputs.find_keys(given or (), none=given == (), environ=environ, folder=folder)
        data = wanted.options.user_data
        if wanted.user_data_file:
            data = inputs.read_text(folder / Path(wanted.user_data_file).expanduser(), "user data")
        return inputs.replace(wanted.options, ssh_keys=keys, user_data=data)
    except CliError as error:
        raise CliError(f"{wanted.where}: VM {wanted.name}: {error}", error.hint, error.exit_code) from None


def warn_of_no_key(vms: Sequence[Wanted]) -> None:
    """Say it, once, if these are made and nobody can log in to one of them."""
    if any(vm.ssh_keys is None and not (vm.options.ssh_keys or vm.options.user_data) for vm in vms):
        inputs.warn_of_no_key()


def apply(connect: "Connect", invocation: Invocation, environ: Mapping[str, str]) -> Outcome:
    """Do it.

    :raise CliError: when it ended before anything was changed; KeyboardInterrupt likewise.
    """
    space = invocation.space
    vms = read_file(space.file, environ)
    if space.prune and not (space.yes or space.diff or (sys.stdin is not None and sys.stdin.isatty())):
        message = "apply --prune asks before it deletes, and there is no terminal to ask on; nothing was done"
        raise CliError(message, "--yes does it without asking; --diff only shows", Exit.USAGE)
    run = Run(invocation, Outcome())

    def make_all_so() -> None:
        with connect() as session:
            _make_so(session, run, vms)
            if space.prune:
                _prune(session, run)

    ended = interrupts.attempt(make_all_so)
    if ended is not None:
        if not (run.items or run.deletes):
            raise ended  # nothing was changed
        run.why = interrupts.reason_of(ended)
        run.outcome.fail(str(run.why), run.why.hint, run.why.exit_code)  # what was done before is still to be told
    return _finish(run)


def _make_so(session: Session, run: Run, vms: Sequence[Wanted]) -> None:
    """Look at each VM, change what can be changed, make those that are missing."""
    looks = [
        ask.make_call(COMMANDS["show-vm"], ShowVm(vm_id=vm.vm_id, console_lines=0), _LOOK_S, None, vm.name)
        for vm in vms
    ]
    if looks:
        ask.ask_each(session, looks, _LOOK_S)
    run.items = [_plan(run, vm, look) for vm, look in zip(vms, looks, strict=True)]
    for item in run.items:
        _compare(session, run, item)
    missing = [item for item in run.items if is_unknown(item.look)]
    if not run.only_shown:
        warn_of_no_key([item.wanted for item in missing])
        run.send(session, [call for item in missing for call in item.calls])


def _plan(run: Run, vm: Wanted, look: Call) -> Item:
    create = is_unknown(look) and not run.only_shown
    return Item(vm, look, run.make_calls([("create-vm", vm.options)], vm.name) if create else ())


def _compare(session: Session, run: Run, item: Item) -> None:
    """Find out where a VM that is there differs, and change what can be changed at once."""
    look, now = item.look, time.time()
    if look.reply is None or not look.reply.answer.ok:
        return
    try:
        vm = msgspec.json.decode(look.reply.answer.response, type=VmReport)
    except ValueError as error:
        message = f"{look.subject}: the answer can't be read: {error}"
        look.trouble = CliError(message, "are agent and CLI of one version?")
        return
    least = run.find_least_disk(session, vm) if vm.disk > item.wanted.options.disk else 0
    found = differences.compare(item.wanted, vm, now, least_disk=least)
    if not run.only_shown:
        item.calls = run.make_calls(differences.find_commands(item.wanted, vm, found, now), item.wanted.name)
    item.found = found
    for call in item.calls:
        run.send(session, [call])


# --prune


def _prune(session: Session, run: Run) -> None:
    """Delete what has the label and is not in the file, if all hosts tell of their VMs."""
    try:
        everyone = ask.ask_everyone(session, "list-vms", _LOOK_S)
    except CliError as error:
        raise CliError(f"nothing was pruned: {error}", error.hint, error.exit_code) from None
    refused = [reply.answer.host or "?" for reply in everyone.replies if not reply.answer.ok]
    if everyone.missing or everyone.nameless or everyone.unreadable or refused:
        report.report_missing(run.outcome, everyone, _LOOK_S)
        run.outcome.fail("nothing was pruned: not all hosts told of their VMs", None, Exit.PARTIAL)
        return
    kept = {item.wanted.vm_id for item in run.items}
    selectors = [f"{key}={value}" for key, value in run.invocation.space.label]
    doomed = [
        vm
        for reply in everyone.replies
        for vm in lists.details_of(reply)
        if vm.vm_id not in kept and all(selects(one, vm.labels) for one in selectors)
    ]
    told = names_of(everyone)
    names = [(vm.vm_id, told[vm.vm_id]) for vm in doomed if vm.vm_id in told]
    if names and not (run.only_shown or run.invocation.space.yes):
        shown = _identify(session, names)
        if not _agreed(names):
            run.outcome.notes.append("nothing was pruned")
            run.outcome.exit_code = worst(run.outcome.exit_code, Exit.FAILED)
            return
        names = _still_the_same(session, run, names, shown)
    _delete(session, run, names)


def _identify(session: Session, names: Sequence[tuple[str, str]]) -> dict[str, tuple[float, str]]:
    """What tells each VM from another one of its id: when it was made, and its instance. By id; only of those that are
    there.
    """
    calls = [
        ask.make_call(COMMANDS["show-vm"], ShowVm(vm_id=vm_id, console_lines=0), _LOOK_S, None, name)
        for vm_id, name in names
    ]
    ask.ask_each(session, calls, _LOOK_S)
    identities = {}
    for call in calls:
        with contextlib.suppress(ValueError):
            if call.reply is not None and call.reply.answer.ok:
                vm = msgspec.json.decode(call.reply.answer.response, type=VmReport)
                identities[call.vm_id] = (vm.created, vm.instance)
    return identities


def _still_the_same(
    session: Session, run: Run, names: Sequence[tuple[str, str]], shown: Mapping[str, tuple[float, str]]
) -> list[tuple[str, str]]:
    """Those that the yes was meant for: while somebody thinks, a VM may go and another be made under its name."""
    now = _identify(session, names)
    same = []
    for vm_id, name in names:
        if vm_id in now and now[vm_id] == shown.get(vm_id):
            same.append((vm_id, name))
        else:
            run.rows.append(Row(name or vm_id, vm_id, "not deleted"))
            why = "was made anew meanwhile" if vm_id in now else "is gone, or its host is"
            run.outcome.fail(f"VM {name or vm_id} {why}: not deleted", "apply again shows what there is now")
    return same


def _agreed(names: Sequence[tuple[str, str]]) -> bool:
    which = text.listed([text.safe(name or vm_id) for vm_id, name in names])
    return outlet.agreed(f"Delete {which}, and {'its disk' if len(names) == 1 else 'their disks'}?")


def _delete(session: Session, run: Run, names: Sequence[tuple[str, str]]) -> None:
    if run.only_shown:
        run.rows += [Row(name or vm_id, vm_id, "would delete") for vm_id, name in names]
        return
    run.deletes = [call for vm_id, name in names for call in run.make_calls([("delete-vm", VmRef(vm_id=vm_id))], name)]
    run.send(session, run.deletes)


# What is told in the end


def _finish(run: Run) -> Outcome:
    outcome = Outcome()
    items = sorted(run.items, key=lambda item: is_unknown(item.look))
    rows = [row for item in items for row in _rows_of(run, item, outcome)]
    rows += run.rows
    rows += [Row(call.spoken, call.vm_id, run.conclude(outcome, call, "deleted")) for call in run.deletes]
    outcome.notes += run.outcome.notes
    outcome.exit_code = worst(outcome.exit_code, run.outcome.exit_code)
    if run.invocation.as_json:
        outcome.stdout = report.json_list([msgspec.json.encode(row) for row in rows])
        return outcome
    outcome.stdout = text.partial_table(COLUMNS, [(row.vm, row.result, row.detail) for row in rows], {"DETAIL"})
    if all(row.result == "unchanged" for row in rows) and outcome.exit_code is Exit.DONE:
        many = "the one VM is" if len(run.items) == 1 else f"all {len(run.items)} VMs are"
        outcome.notes.append(f"Nothing to do: {many} as the file says.")
    return outcome


def _rows_of(run: Run, item: Item, outcome: Outcome) -> list[Row]:
    """What became of a VM of the file; what went wrong is added to the outcome."""
    vm = item.wanted

    def row(result: str, detail: str = "", needs: str = "") -> Row:
        return Row(vm.name, vm.vm_id, result, detail, needs)

    if is_unknown(item.look):
        return [row(*_made(run, item, outcome))]
    if report.report_trouble(outcome, item.look, True):
        return [row("not known")]
    if item.found is None:
        return [row("not compared")]
    results = {call.command.name: run.conclude(outcome, call, "changed") for call in item.calls}
    for one in item.found:
        if one.needs:
            outcome.fail(f"VM {vm.name} differs: {one} ({one.needs})")
    return [
        row("differs", str(one), one.needs) if one.needs else row(results.get(one.command, "would change"), str(one))
        for one in item.found
    ] or [row("unchanged")]


def _made(run: Run, item: Item, outcome: Outcome) -> tuple[str, str]:
    """What became of a VM that was missing, and the detail."""
    if run.only_shown:
        return "would create", item.wanted.options.image
    (call,) = item.calls
    result = run.conclude(outcome, call, "created")
    host = call.reply.answer.host if call.reply is not None else None
    return result, f"on {host}" if result == "created" else ""
