"""Changing a VM that is there: pause, resize, snapshots, expiry, reset, reboot. Called by who holds the VM's line.

The intent is journalled before anything is done, with all that is needed to do it again: an agent that starts
finishes what one before it began, if its deadline allows, and says so where it does not.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import msgspec

from aetherscale_agent import capacity
from aetherscale_agent.asked import Asked, ended
from aetherscale_agent.decide import too_late
from aetherscale_agent.journal import Altering, Done, JournalError, Record
from aetherscale_agent.ports import HypervisorError, OutcomeUnknown, Power
from aetherscale_agent.records import Records
from aetherscale_agent.refusals import ending_of, failed, ignored
from aetherscale_agent.steps import step
from aetherscale_agent.vm import Vm
from aetherscale_protocol.answers import SnapshotRow, VmState
from aetherscale_protocol.errors import Refused
from aetherscale_protocol.options import CreateVm, ExtendVm, ResizeVm, SnapshotRef

if TYPE_CHECKING:
    from aetherscale_agent.host import Host

log = logging.getLogger(__name__)

OFF: tuple[VmState, ...] = ("stopped", "failed")
REBOOT = "reboot-vm"
LATE_LOOKS, LATE_LOOK_EVERY_S = 8, 3.0
"""How often, and after how many seconds each, a VM is looked at whose QEMU did not say whether a change was done."""
AFRESH = "it was paused when its host went down, and was started afresh"


def plan(verb: str, options: object, asked: Asked, now: float) -> Altering:
    """What is to be done to a VM, as it is journalled. Pure."""
    base = Altering(verb=verb, request_id=asked.request_id, deadline=asked.deadline or 0.0)
    match options:
        case ResizeVm():
            return base.but(cpus=options.cpus, memory=options.memory, disk=options.disk)
        case SnapshotRef():
            return base.but(snapshot=options.snapshot)
        case ExtendVm():
            return base.but(expires=now + options.ttl if options.ttl else 0.0)
        case _:
            return base


def resized(spec: CreateVm, altering: Altering) -> CreateVm:
    """What a VM is to be once that is done. Pure."""
    sizes = {"cpus": altering.cpus, "memory": altering.memory, "disk": altering.disk}
    return msgspec.structs.replace(spec, **{name: size for name, size in sizes.items() if size is not None})


def overtaken(record: Record) -> Record:
    """The record once another command takes the place of what was being done to the VM. Pure."""
    altering = record.altering
    if altering is None:
        return record
    ending = ending_of(_overtaken(altering.verb), "")
    return record.but(altering=None, done=tuple(_end(done, altering, ending) for done in record.done))


def _end(done: Done, altering: Altering, ending: object) -> Done:
    mine = done.request_id == altering.request_id and not done.finished
    return done.but(finished=True, ending=ending) if mine else done


def _overtaken(verb: str) -> Refused:
    return Refused("wrong-state", f"{verb} was overtaken by another command", "show-vm shows how the VM is now")


def check_free(record: Record, verb: str, request_id: str) -> None:
    """Nothing, unless a reboot is under way that this command would come between.

    :raise Refused: `wrong-state`.
    """
    altering = record.altering
    if altering is None or altering.verb != REBOOT or verb in ("stop-vm", "stop-vm --kill", "delete-vm"):
        return
    if not (verb == REBOOT and altering.request_id == request_id):
        raise Refused("wrong-state", f"the VM is being rebooted: {verb} is not possible now", f"repeat {verb} later")


class Alterer:
    """The changes of one host's VMs."""

    def __init__(self, host: "Host", records: Records) -> None:
        self._host = host
        self._records = records

    # What can be refused before anything is done

    async def check(self, vm: Vm, altering: Altering) -> None:
        """Nothing, if this can be done to a VM that is in the right state for its verb.

        :raise Refused: with what stands against it; nothing was changed.
        """
        if altering.verb == "resize-vm":
            self._check_sizes(vm, altering)
        elif altering.snapshot:
            await self._check_snapshot(vm.record, altering)

    def _check_sizes(self, vm: Vm, altering: Altering) -> None:
        old, new = vm.record.spec, resized(vm.record.spec, altering)
        if (new.cpus, new.memory) != (old.cpus, old.memory) and vm.state not in OFF:
            reason = f"VM {vm.record.vm_id} is {vm.state}; its cores and memory can be changed only while it is off"
            raise Refused("wrong-state", reason, "stop-vm first; its disk alone can grow while it runs")
        if new.disk < old.disk:
            raise Refused("bad-request", f"resize below: the disk has {old.disk} GiB, {new.disk} GiB asked for")
        misfit = capacity.misfit_growth(old, new, self._host.free())
        if misfit is not None:
            raise misfit

    async def _check_snapshot(self, record: Record, altering: Altering) -> None:
        vm_id, name = record.vm_id, altering.snapshot
        names = await self._snapshot_names(vm_id, altering.verb)
        if altering.verb != "snapshot-vm":
            if name not in names:
                hint = "list-snapshots shows those that it has"
                raise Refused("snapshot-unknown", f"VM {vm_id} has no snapshot {name}", hint)
            return
        if name in names:
            hint = "choose another name, or delete-snapshot"
            raise Refused("snapshot-exists", f"VM {vm_id} has a snapshot {name} already", hint)
        total = self._host.hypervisor.resources()
        misfit = capacity.misfit_snapshot(record.spec, len(names), total, self._host.promised())
        if misfit is not None:
            raise misfit

    async def _snapshot_names(self, vm_id: str, verb: str) -> list[str]:
        return [row.snapshot for row in await self._snapshots(vm_id, verb)]

    async def _snapshots(self, vm_id: str, verb: str) -> list[SnapshotRow]:
        try:
            found = await self._host.hypervisor.list_snapshots(vm_id)
        except HypervisorError as error:
            raise failed(verb, error) from None
        return [SnapshotRow(snapshot=snapshot.name, created=snapshot.created) for snapshot in found]

    async def list_snapshots(self, vm_id: str) -> list[SnapshotRow]:
        """The snapshots of a VM, oldest first.

        :raise Refused: `vm-unknown`; `failed`, when its disk can't be looked at.
        """
        self._host.get(vm_id)
        return await self._snapshots(vm_id, "list-snapshots")

    async def look_whether_paused(self, vm: Vm) -> None:
        """Believe QEMU, not memory: somebody may have paused a VM by hand, or let it go on."""
        try:
            state: VmState = "paused" if await self._host.hypervisor.is_paused(vm.record.vm_id) else "running"
        except HypervisorError as error:
            log.warning("VM %s: whether it is paused can't be told: %s", vm.record.vm_id, error)
            return  # its plug can be pulled nevertheless
        if state != vm.state:
            done = "paused" if state == "paused" else "resumed"
            await self._host.settle(vm, state, reason=f"{done} by hand on its host")

    # One step after the other

    async def alter(self, vm: Vm, altering: Altering, asked: Asked) -> None:
        """Do it.

        :raise Refused: `failed`, when it can't be done; `deadline-passed`; `no-capacity`.
        """
        if altering.verb == "resize-vm":
            try:
                self._check_sizes(vm, altering)  # again, and nothing comes between this and the next line
            except Refused as refusal:
                await self._host.note(vm, asked, refusal)
                raise
            vm.promised = resized(vm.record.spec, altering)
        try:
            await self._journal(vm, altering, asked)
            await self._go_through(vm, altering)
        finally:
            vm.promised = None

    async def _journal(self, vm: Vm, altering: Altering, asked: Asked) -> None:
        try:
            self._host.check_deadline(altering.deadline or None)
            with step("alter.journal", vm.record.vm_id):
                done = asked.begun(vm.record, self._host.clock())
                await self._records.write(vm, altering=altering, done=done)
        except JournalError as error:
            refusal = failed(altering.verb, error)
            await self._host.note(vm, asked, refusal)
            raise refusal from None

    async def _go_through(self, vm: Vm, altering: Altering) -> None:
        vm_id = vm.record.vm_id
        try:
            self._host.check_deadline(altering.deadline or None)
            with step("alter.act", vm_id):
                await self._act_or_look(vm, altering)
        except Exception as error:
            if not isinstance(error, HypervisorError | Refused):
                log.exception("VM %s: %s failed", vm_id, altering.verb)
            refusal = error if isinstance(error, Refused) else failed(altering.verb, error)
            await self._drop(vm, refusal)
            raise refusal from None
        with step("alter.settle", vm_id):
            await self._settle(vm, altering)

    async def _act_or_look(self, vm: Vm, altering: Altering) -> None:
        try:
            await self._act(vm, altering)
        except OutcomeUnknown as error:
            if not await self._was_done_late(vm, altering):
                hint = "show-vm and list-snapshots show how the VM is; then repeat it, if need be"
                raise Refused("outcome-unknown", f"{altering.verb}: {error}", hint) from None

    async def _was_done_late(self, vm: Vm, altering: Altering) -> bool:
        """Whether it can be seen that this was done, as soon as a QEMU that is busy with it can be asked again."""
        for _ in range(LATE_LOOKS):
            try:
                return await self._look(vm, altering)
            except (HypervisorError, Refused) as error:
                log.info("VM %s: whether %s was done can't be told yet: %s", vm.record.vm_id, altering.verb, error)
            await asyncio.sleep(LATE_LOOK_EVERY_S)
        return False

    async def _act(self, vm: Vm, altering: Altering) -> None:
        hypervisor, vm_id = self._host.hypervisor, vm.record.vm_id
        match altering.verb:
            case "pause-vm":
                await hypervisor.pause(vm_id)
            case "resume-vm":
                await hypervisor.resume(vm_id)
            case "reboot-vm --kill":
                await hypervisor.reset(vm_id)
            case "resize-vm":
                if altering.disk is not None:
                    await hypervisor.resize_disk(vm_id, altering.disk)
            case "snapshot-vm":
                await hypervisor.snapshot(vm_id, altering.snapshot)
            case "restore-vm":
                await hypervisor.restore(vm_id, altering.snapshot)
                await hypervisor.resize_disk(vm_id, vm.record.spec.disk)  # it had the size of its day
            case "delete-snapshot":
                await hypervisor.delete_snapshot(vm_id, altering.snapshot)
            case "extend-vm":
                pass  # the journal is all that there is
            case verb:
                raise AssertionError(f"no way to {verb}")

    async def _settle(self, vm: Vm, altering: Altering) -> None:
        log.info("VM %s: %s done", vm.record.vm_id, altering.verb)
        match altering.verb:
            case "pause-vm":
                await self._host.settle(vm, "paused", altering=None, reason="")
            case "resume-vm":
                await self._host.settle(vm, "running", altering=None, reason="")
            case "resize-vm":
                spec = resized(vm.record.spec, altering)
                await self._finish(vm, spec=spec, resized=True)
                self._host.capacity_changed.set()
            case "extend-vm":
                await self._finish(vm, expires=altering.expires)
            case _:
                await self._finish(vm)

    async def _finish(self, vm: Vm, **changes: object) -> None:
        await self._records.change(vm, lambda r: r.but(altering=None, done=ended(r.but(altering=None)), **changes))

    async def _drop(self, vm: Vm, error: Refused, reason: str = "") -> None:
        changes = {"reason": reason} if reason else {}
        await self._records.change(
            vm, lambda r: r.but(altering=None, done=ended(r.but(altering=None), error), **changes)
        )

    # Reboot: off by the power button, and on again

    async def reboot(self, vm: Vm, altering: Altering, asked: Asked) -> None:
        """Begin to reboot; `vm.rebooting` ends with it. Called again, it is the same work.

        :raise Refused: `failed`, when the journal can't be written; nothing was changed.
        """
        if vm.rebooting is not None and not vm.rebooting.done():
            return
        try:
            with step("reboot.journal", vm.record.vm_id):
                done = asked.begun(vm.record, self._host.clock())
                await self._records.write(vm, altering=altering, done=done, reason="")
        except JournalError as error:
            refusal = failed(REBOOT, error)
            await self._host.note(vm, asked, refusal)
            raise refusal from None
        try:
            self._host.check_deadline(altering.deadline or None)  # again: it may have been frozen meanwhile
        except Refused as late:
            await self._drop(vm, late)
            raise
        self._go_on_rebooting(vm)

    def _go_on_rebooting(self, vm: Vm) -> None:
        if vm.state == "running":
            self._host.begin_shutdown(vm)
        vm.rebooting = self._host.spawn(self._reboot(vm))

    async def _reboot(self, vm: Vm) -> None:
        vm_id = vm.record.vm_id
        with step("reboot.off", vm_id):
            if vm.shutdown is not None:
                await asyncio.wait({vm.shutdown})
        async with vm.line:
            altering = vm.record.altering
            if altering is None or altering.verb != REBOOT or vm.state not in ("running", *OFF) or not vm.exists:
                raise _overtaken(REBOOT)
            if vm.state == "running":  # it was not reached
                refusal = ignored(vm.record.reason or "the guest did not shut down")
                refusal.hint = "reboot-vm --kill resets it"
                await self._drop(vm, refusal)
                raise refusal
            await self._start_again(vm, altering)

    async def _start_again(self, vm: Vm, altering: Altering) -> None:
        async with vm.pen:  # journalled with the start's intent
            vm.record = vm.record.but(altering=altering.but(off=True))
        try:
            with step("reboot.start", vm.record.vm_id):
                await self._host.start(vm)
        except Refused as error:
            await self._drop(vm, error)
            raise
        with step("reboot.settle", vm.record.vm_id):
            await self._finish(vm)

    async def rebooted(self, vm: Vm, patience_s: float) -> VmState:
        """The state that a reboot came to, or has come to after so many seconds.

        :raise Refused: `guest-ignored`, and whatever its start may meet.
        """
        task = vm.rebooting
        if task is None:
            return vm.state
        await asyncio.wait({task}, timeout=max(0.0, patience_s))
        if not task.done():
            return vm.state
        task.result()
        return "starting"

    # After an agent's restart

    async def finish(self, vm: Vm) -> None:
        """Finish what an agent before this one began, if its deadline allows. Takes the VM's line."""
        async with vm.line:
            await self.finish_in_line(vm)

    async def finish_in_line(self, vm: Vm) -> None:
        """The same, for who holds the VM's line."""
        altering = vm.record.altering
        if altering is None or not vm.exists:
            return
        with contextlib.suppress(Refused):
            await self._finish_begun(vm, altering)

    async def _finish_begun(self, vm: Vm, altering: Altering) -> None:
        now, late = self._host.clock(), altering.deadline and self._host.clock() > altering.deadline
        if altering.verb == REBOOT:
            await self._finish_reboot(vm, altering, bool(late))
        elif altering.verb == "reboot-vm --kill":
            why = "the agent was cut off while it reset the VM; whether it did is not known"
            await self._drop(vm, Refused("outcome-unknown", why, "show-vm shows its console"))
        elif not late:
            await self._go_through(vm, altering)
        elif await self._took_effect(vm, altering):
            await self._settle(vm, altering)
        elif altering.verb == "restore-vm":
            why = "the agent was cut off while it restored the disk; whether it did is not known"
            await self._drop(vm, Refused("outcome-unknown", why, "restore-vm again, to be sure"), why)
        else:
            why = f"{altering.verb} was cut off, and could not be finished before its deadline"
            await self._drop(vm, too_late(self._host.name, altering.deadline, now), why)

    async def _took_effect(self, vm: Vm, altering: Altering) -> bool:
        """Whether it can be seen that this was done before the agent was cut off."""
        try:
            return await self._look(vm, altering)
        except (HypervisorError, Refused) as error:
            log.warning("VM %s: whether %s was done can't be told: %s", vm.record.vm_id, altering.verb, error)
        return False

    async def _look(self, vm: Vm, altering: Altering) -> bool:
        """Whether it can be seen that this was done; False also where it leaves no trace.

        :raise HypervisorError: when it can't be told now.
        """
        hypervisor, vm_id = self._host.hypervisor, vm.record.vm_id
        match altering.verb:
            case "pause-vm" | "resume-vm":
                is_on = (await hypervisor.power([vm_id]))[vm_id] is Power.ON
                return is_on and await hypervisor.is_paused(vm_id) == (altering.verb == "pause-vm")
            case "snapshot-vm":
                return altering.snapshot in await self._snapshot_names(vm_id, altering.verb)
            case "delete-snapshot":
                return altering.snapshot not in await self._snapshot_names(vm_id, altering.verb)
            case "resize-vm":
                grown = altering.disk is not None and altering.disk > vm.record.spec.disk
                return grown and await hypervisor.disk_size(vm_id) >= (altering.disk or 0)
        return False

    async def _finish_reboot(self, vm: Vm, altering: Altering, late: bool) -> None:
        if altering.off and vm.state == "running":
            await self._finish(vm)
        elif late or vm.state not in ("running", *OFF):
            why = "its reboot was cut off, and could not be finished before its deadline"
            refusal = Refused("outcome-unknown", f"{why}; the VM is {vm.state}", "show-vm shows it; start-vm starts it")
            await self._drop(vm, refusal, why)
        elif vm.state == "running":
            self._go_on_rebooting(vm)
        elif vm.state in OFF:
            await self._start_again(vm, altering)

    async def note_afresh(self, vm: Vm) -> None:
        """Say that a VM which was paused was started by its host's own start."""
        await self._records.change(vm, lambda r: r.but(reason=AFRESH))

    # Clones

    @contextlib.asynccontextmanager
    async def source_of(self, spec: CreateVm) -> AsyncIterator[None]:
        """Keep the VM that is to be cloned, if there is one, as it is while its disk is copied.

        :raise Refused: as `clone_misfit`.
        """
        source = self._host.find(spec.clone_of) if spec.clone_of else None
        async with source.line if source else contextlib.nullcontext():
            misfit = clone_misfit(self._host, spec)
            if misfit is not None:
                raise misfit
            if source is not None and source.record.spec.disk > spec.disk:
                reason = f"VM {spec.clone_of} has grown while its clone was made ready"
                raise Refused("no-capacity", reason, "repeat it")
            yield


def clone_misfit(host: "Host", spec: CreateVm) -> Refused | None:
    """Why a VM can't be cloned here now, or None; None for a VM that is no clone."""
    if spec.clone_of is None:
        return None
    source = host.find(spec.clone_of)
    if source is None:
        return Refused("no-capacity", f"VM {spec.clone_of}, which is to be cloned, is not on this host")
    if source.record.spec.image != spec.image:
        image = source.record.spec.image
        return Refused("bad-request", f"VM {spec.clone_of} is of image {image}, and its clone must be too")
    if source.state not in OFF:
        return Refused("wrong-state", f"VM {spec.clone_of} is {source.state}; stop it first")
    return None


def clone_disk(host: "Host", spec: CreateVm) -> int:
    """The GiB of the disk of which this VM is to have a copy; 0 if it is no clone of a VM that is here."""
    source = host.find(spec.clone_of) if spec.clone_of else None
    return source.record.spec.disk if source else 0
