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

from aetherscale_cli import ask, differences, inputs, lists, outlet, report, text
from aetherscale_cli.arguments import Invocation
from aetherscale_cli.errors import CliError, Exit, ManifestError, worst
from aetherscale_cli.manifest import Wanted, read_manifest
from aetherscale_cli.report import Outcome
from aetherscale_cli.settle import Call, not_sent
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


class Run(Struct):
    """One run of apply: what it does, and what it has to tell."""

    session: Session
    invocation: Invocation
    outcome: Outcome
    rows: list[Row] = []
    bases: dict[tuple[str, str], int] | None = None  #: the GiB of images, by host and name; None: not asked yet

    @property
    def only_shown(self) -> bool:
        """Whether nothing is to be changed (`--diff`)."""
        return bool(self.invocation.space.diff)

    def tell(self, vm: Wanted, result: str, detail: str = "", needs: str = "") -> None:
        """Note what became of a VM."""
        self.rows.append(Row(vm.name, vm.vm_id, result, detail, needs))

    def send(self, command: str, options: Sequence[tuple[Options, str]]) -> list[Call]:
        """Send these, each with its VM's name; what became of each. After Ctrl-C nothing more is sent."""
        timeout, why = self.invocation.timeout, CliError("interrupted", exit_code=Exit.INTERRUPTED)
        calls = [ask.make_call(COMMANDS[command], one, timeout, None, name) for one, name in options]
        try:
            if calls and not self.interrupted:
                ask.ask_each(self.session, calls, timeout)
        except KeyboardInterrupt:
            self.outcome.exit_code = Exit.INTERRUPTED
        except CliError as error:
            why = error
        for call in calls:
            if call.pending:
                call.trouble = not_sent(call, why)
        return calls

    def conclude(self, call: Call, done: str) -> str:
        """Report what became of a call, in a word: it was `done`, it was not, or nobody knows."""
        if not report.report_trouble(self.outcome, call, True):
            return done
        answered = call.reply.answer.execution_info.code if call.reply is not None else None
        code = call.trouble.code if call.trouble is not None else answered
        return f"perhaps {done}" if code == "outcome-unknown" else f"not {done}"

    @property
    def interrupted(self) -> bool:
        """Whether the operator has had enough."""
        return self.outcome.exit_code is Exit.INTERRUPTED

    def find_least_disk(self, vm: VmReport) -> int:
        """The GiB that a VM's disk has at least, because of the image that it stands on; 0 if nobody says."""
        if self.bases is None:
            everyone = ask.ask_everyone(self.session, "list-images", _LOOK_S)
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

    :raise CliError: when nothing was sent.
    """
    space = invocation.space
    vms = read_file(space.file, environ)
    if space.prune and not (space.yes or space.diff or (sys.stdin is not None and sys.stdin.isatty())):
        message = "apply --prune asks before it deletes, and there is no terminal to ask on; nothing was done"
        raise CliError(message, "--yes does it without asking; --diff only shows", Exit.USAGE)
    with connect() as session:
        run = Run(session, invocation, Outcome())
        try:
            _make_so(run, vms)
            if space.prune and not run.interrupted:
                _prune(run, vms)
        except (KeyboardInterrupt, CliError) as error:
            if not run.rows:
                raise
            why = error if isinstance(error, CliError) else CliError("interrupted", exit_code=Exit.INTERRUPTED)
            run.outcome.fail(str(why), why.hint, why.exit_code)  # what was done before is still to be told
    return _finish(run, len(vms))


def _make_so(run: Run, vms: Sequence[Wanted]) -> None:
    """Look at each VM, make those that are missing, change what can be changed."""
    calls = [
        ask.make_call(COMMANDS["show-vm"], ShowVm(vm_id=vm.vm_id, console_lines=0), _LOOK_S, None, vm.name)
        for vm in vms
    ]
    if calls:
        ask.ask_each(run.session, calls, _LOOK_S)
    missing = []
    for vm, call in zip(vms, calls, strict=True):
        if is_unknown(call):
            missing.append(vm)
        elif run.interrupted:
            run.tell(vm, "not looked at")
        elif report.report_trouble(run.outcome, call, True):
            run.tell(vm, "not known")
        else:
            _compare(run, vm, call)
    _create(run, missing)


def _create(run: Run, missing: Sequence[Wanted]) -> None:
    if run.only_shown:
        for vm in missing:
            run.tell(vm, "would create", vm.options.image)
        return
    warn_of_no_key(missing)
    calls = run.send("create-vm", [(vm.options, vm.name) for vm in missing])
    for vm, call in zip(missing, calls, strict=True):
        result = run.conclude(call, "created")
        host = call.reply.answer.host if call.reply is not None else None
        run.tell(vm, result, f"on {host}" if result == "created" else "")


def _compare(run: Run, wanted: Wanted, call: Call) -> None:
    assert call.reply is not None, "reported if there is none"
    now = time.time()
    try:
        vm = msgspec.json.decode(call.reply.answer.response, type=VmReport)
    except ValueError as error:
        run.outcome.fail(f"{call.subject}: the answer can't be read: {error}", "are agent and CLI of one version?")
        return run.tell(wanted, "not known")
    least = run.find_least_disk(vm) if vm.disk > wanted.options.disk else 0
    found = differences.compare(wanted, vm, now, least_disk=least)
    results: dict[str, str] = {}
    if not run.only_shown:
        for command, options in differences.find_commands(wanted, vm, found, now):
            (done,) = run.send(command, [(options, wanted.name)])
            results[command] = run.conclude(done, "changed")
    _tell_differences(run, wanted, found, results)
    return None


def _tell_differences(
    run: Run, wanted: Wanted, found: Sequence[differences.Difference], results: Mapping[str, str]
) -> None:
    if not found:
        run.tell(wanted, "unchanged")
    for one in found:
        if one.needs:
            run.tell(wanted, "differs", str(one), one.needs)
            run.outcome.fail(f"VM {wanted.name} differs: {one} ({one.needs})")
        else:
            run.tell(wanted, results.get(one.command, "would change"), str(one))


# --prune


def _prune(run: Run, vms: Sequence[Wanted]) -> None:
    """Delete what has the label and is not in the file, if all hosts tell of their VMs."""
    try:
        everyone = ask.ask_everyone(run.session, "list-vms", _LOOK_S)
    except CliError as error:
        raise CliError(f"nothing was pruned: {error}", error.hint, error.exit_code) from None
    refused = [reply.answer.host or "?" for reply in everyone.replies if not reply.answer.ok]
    if everyone.missing or everyone.nameless or everyone.unreadable or refused:
        report.report_missing(run.outcome, everyone, _LOOK_S)
        run.outcome.fail("nothing was pruned: not all hosts told of their VMs", None, Exit.PARTIAL)
        return
    kept = {vm.vm_id for vm in vms}
    selectors = [f"{key}={value}" for key, value in run.invocation.space.label]
    doomed = [
        vm
        for reply in everyone.replies
        for vm in lists.details_of(reply)
        if vm.vm_id not in kept and all(selects(one, vm.labels) for one in selectors)
    ]
    names = [(vm.vm_id, vm.name) for vm in doomed]
    if names and not (run.only_shown or run.invocation.space.yes):
        shown = _identify(run, names)
        if not _agreed(names):
            run.outcome.notes.append("nothing was pruned")
            run.outcome.exit_code = worst(run.outcome.exit_code, Exit.FAILED)
            return
        names = _still_the_same(run, names, shown)
    _delete(run, names)


def _identify(run: Run, names: Sequence[tuple[str, str]]) -> dict[str, tuple[float, str]]:
    """What tells each VM from another one of its id: when it was made, and its instance. By id; only of those that are
    there.
    """
    calls = [
        ask.make_call(COMMANDS["show-vm"], ShowVm(vm_id=vm_id, console_lines=0), _LOOK_S, None, name)
        for vm_id, name in names
    ]
    ask.ask_each(run.session, calls, _LOOK_S)
    identities = {}
    for call in calls:
        with contextlib.suppress(ValueError):
            if call.reply is not None and call.reply.answer.ok:
                vm = msgspec.json.decode(call.reply.answer.response, type=VmReport)
                identities[call.vm_id] = (vm.created, vm.instance)
    return identities


def _still_the_same(
    run: Run, names: Sequence[tuple[str, str]], shown: Mapping[str, tuple[float, str]]
) -> list[tuple[str, str]]:
    """Those that the yes was meant for: while somebody thinks, a VM may go and another be made under its name."""
    now = _identify(run, names)
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


def _delete(run: Run, names: Sequence[tuple[str, str]]) -> None:
    if run.only_shown:
        run.rows += [Row(name or vm_id, vm_id, "would delete") for vm_id, name in names]
        return
    calls = run.send("delete-vm", [(VmRef(vm_id=vm_id), name) for vm_id, name in names])
    for call in calls:
        run.rows.append(Row(call.spoken, call.vm_id, run.conclude(call, "deleted")))


def _finish(run: Run, vms: int) -> Outcome:
    outcome = run.outcome
    if run.invocation.as_json:
        outcome.stdout = report.json_list([msgspec.json.encode(row) for row in run.rows])
        return outcome
    outcome.stdout = text.partial_table(COLUMNS, [(row.vm, row.result, row.detail) for row in run.rows], {"DETAIL"})
    if all(row.result == "unchanged" for row in run.rows) and outcome.exit_code is Exit.DONE:
        many = "the one VM is" if vms == 1 else f"all {vms} VMs are"
        outcome.notes.append(f"Nothing to do: {many} as the file says.")
    return outcome
