"""What changes a VM and neither makes nor ends it: pause, reset, resize, snapshots, its time to live; and reboots.

They share one course (`courses.ALTER`): the intent is journalled as `Record.altering`, done, and settled. An agent that
comes back to one in between finishes it if its deadline allows, and undoes it otherwise: everything here may be done
twice. A reboot is a shutdown whose record says that a start follows.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import msgspec

from aetherscale_agent import capacity
from aetherscale_agent.asked import UNASKED, Asked
from aetherscale_agent.decide import too_late
from aetherscale_agent.host import Host
from aetherscale_agent.journal import Altering, JournalError, Record
from aetherscale_agent.ports import HypervisorError
from aetherscale_agent.refusals import failed, ignored
from aetherscale_agent.steps import step
from aetherscale_agent.vm import Vm
from aetherscale_protocol.answers import ExpiryStatus, SnapshotDone, SnapshotRow, VmState, VmStatus
from aetherscale_protocol.errors import Refused
from aetherscale_protocol.options import CreateVm, ExtendVm, Options, ResizeVm, SnapshotRef

log = logging.getLogger(__name__)

OFF: tuple[VmState, ...] = ("stopped", "failed")
REBOOT = "reboot-vm"

DONE: Mapping[str, str] = {
    "pause-vm": "paused",
    "resume-vm": "running",
    "reboot-vm --kill": "rebooting",
    "resize-vm": "resized",
    "snapshot-vm": "created",
    "restore-vm": "restored",
    "delete-snapshot": "deleted",
    "extend-vm": "extended",
}
"""What each is answered."""


class Alterer:
    """Alters the VMs of a host. Every method is called by who holds the VM's line, but for `recover`."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def alter(self, vm: Vm, verb: str, options: Options, asked: Asked) -> None:
        """Do it.

        :raise Refused: when it is not possible, and nothing was changed; `failed` when it was begun and failed.
        """
        host, vm_id = self._host, vm.record.vm_id
        try:
            wish = await self._plan(vm, verb, options, asked)
        except (HypervisorError, Refused) as error:
            refusal = error if isinstance(error, Refused) else failed(verb, error)
            await host.note(vm, asked, refusal)
            raise refusal from None
        try:
            with step("alter.journal", vm_id):
                await host.records.write(vm, altering=wish, done=asked.begun(vm.record, host.clock()))
            host.check_deadline(asked.deadline)  # again: it may have been frozen meanwhile
            with step("alter.act", vm_id):
                await self._act(vm, wish)
        except (HypervisorError, JournalError, Refused) as error:
            refusal = error if isinstance(error, Refused) else failed(verb, error)
            await self._settle(vm, wish.before, vm.state, refusal)
            raise refusal from None
        with step("alter.settle", vm_id):
            await self._settle(vm, wish.after, _state_after(verb, vm.state))

    async def _settle(self, vm: Vm, spec: CreateVm, state: VmState, error: Refused | None = None) -> None:
        expires, altering = vm.record.expires, vm.record.altering
        if altering is not None and altering.verb == "extend-vm" and error is None:
            expires = altering.expires
        changes: dict[str, Any] = {"spec": spec, "expires": expires, "altering": None, "paused": state == "paused"}
        since = vm.record.since
        await self._host.settle(vm, state, error, **changes)
        if state not in ("paused", "running"):
            await self._host.records.change(vm, lambda r: r.but(since=since))
        self._host.capacity_changed.set()

    # What is to be done

    async def _plan(self, vm: Vm, verb: str, options: Options, asked: Asked) -> Altering:
        spec = vm.record.spec
        wish = Altering(verb=verb, until=asked.deadline or 0.0, before=spec, after=spec)
        match options:
            case ResizeVm():
                return await self._plan_resize(vm, options, wish)
            case SnapshotRef(snapshot=name):
                await self._check_snapshot(vm, verb, name)
                return msgspec.structs.replace(wish, snapshot=name)
            case ExtendVm(ttl=ttl):
                return msgspec.structs.replace(wish, expires=self._host.clock() + ttl if ttl else 0.0)
        return wish

    async def _plan_resize(self, vm: Vm, wanted: ResizeVm, wish: Altering) -> Altering:
        spec = vm.record.spec
        if (wanted.cpus or wanted.memory) and vm.state not in OFF:
            reason = f"the VM is {vm.state}: its cores and its memory can only be changed while it is off"
            raise Refused("wrong-state", reason, "stop-vm first; the disk alone can grow while it runs")
        if wanted.disk is not None and wanted.disk < spec.disk:
            reason = f"the disk has {spec.disk} GiB, and can't be made smaller ({wanted.disk} GiB were asked for)"
            raise Refused("bad-request", reason, "make a new VM with a smaller disk")
        after = msgspec.structs.replace(
            spec,
            cpus=wanted.cpus or spec.cpus,
            memory=wanted.memory or spec.memory,
            disk=wanted.disk or spec.disk,
        )
        short = capacity.growth_misfit(spec, after, self._host.free())
        if short is not None:
            raise short
        return msgspec.structs.replace(wish, after=after)

    async def _check_snapshot(self, vm: Vm, verb: str, name: str) -> None:
        vm_id = vm.record.vm_id
        there = name in {one.name for one in await self._host.hypervisor.list_snapshots(vm_id)}
        called = vm.record.spec.name or vm_id
        if verb == "snapshot-vm" and there:
            reason = f"VM {called} has a snapshot {name} already"
            raise Refused("snapshot-exists", reason, "choose another name, or delete-snapshot")
        if verb != "snapshot-vm" and not there:
            reason = f"VM {called} has no snapshot {name}"
            raise Refused("snapshot-unknown", reason, "list-snapshots shows those that it has")

    # Doing it: again, after an interruption, too

    async def _act(self, vm: Vm, wish: Altering) -> None:
        hypervisor, vm_id = self._host.hypervisor, vm.record.vm_id
        match wish.verb:
            case "pause-vm":
                await hypervisor.pause(vm_id)
            case "resume-vm":
                await hypervisor.resume(vm_id)
            case "reboot-vm --kill":
                await hypervisor.reset(vm_id)
            case "resize-vm" if wish.after.disk > wish.before.disk:
                await hypervisor.resize_disk(vm_id, wish.after.disk)
            case "snapshot-vm":
                await hypervisor.snapshot(vm_id, wish.snapshot)
            case "restore-vm":
                await hypervisor.restore(vm_id, wish.snapshot)
            case "delete-snapshot":
                await hypervisor.delete_snapshot(vm_id, wish.snapshot)

    # After an interruption

    async def recover(self, vm: Vm) -> None:
        """Finish what an agent before this one had begun, or say that it was not done."""
        async with vm.line:
            wish = vm.record.altering
            if wish is None or not vm.exists or wish.verb == REBOOT:
                return
            now = self._host.clock()
            try:
                if wish.until and now > wish.until:
                    raise too_late(self._host.name, wish.until, now)
                if wish.verb in ("pause-vm", "resume-vm", "reboot-vm --kill") and vm.state not in ("running", "paused"):
                    raise Refused("wrong-state", f"the VM is {vm.state}", "start-vm starts it")
                await self._act(vm, wish)
            except (HypervisorError, Refused) as error:
                refusal = error if isinstance(error, Refused) else failed(wish.verb, error)
                log.warning("VM %s: %s was cut off, and is not done: %s", vm.record.vm_id, wish.verb, refusal.reason)
                await self._settle(vm, await self._as_it_is(vm, wish), vm.state, refusal)
            else:
                log.info("VM %s: %s was cut off, and is finished", vm.record.vm_id, wish.verb)
                await self._settle(vm, wish.after, _state_after(wish.verb, vm.state))

    async def _as_it_is(self, vm: Vm, wish: Altering) -> CreateVm:
        """The VM as it was before, with the disk that it has by now."""
        try:
            disk = max(wish.before.disk, await self._host.hypervisor.disk_size(vm.record.vm_id))
        except HypervisorError:
            disk = wish.before.disk
        return msgspec.structs.replace(wish.before, disk=disk)

    # Reboots

    async def reboot(self, vm: Vm, asked: Asked = UNASKED) -> None:
        """Begin to shut a VM down that starts again when it is off; `rebooted` waits for that.

        :raise Refused: `failed`, when the journal can't be written; nothing was changed.
        """
        host, spec = self._host, vm.record.spec
        wish = Altering(verb=REBOOT, until=asked.deadline or 0.0, before=spec, after=spec)
        try:
            with step("reboot.journal", vm.record.vm_id):
                done = asked.begun(vm.record, host.clock())
                await host.records.write(
                    vm, wanted="off", pulled=False, altering=wish, since=host.clock(), reason="", done=done
                )
        except JournalError as error:
            refusal = failed(REBOOT, error)
            await host.note(vm, asked, refusal)
            raise refusal from None
        vm.rebooting = None
        host.begin_shutdown(vm)

    async def rebooted(self, vm: Vm, patience_s: float) -> VmState:
        """The state of a VM that reboots, when that is over, or after so many seconds.

        :raise Refused: `guest-ignored`, or why it did not start again.
        """
        limit = asyncio.get_running_loop().time() + max(0.0, patience_s)
        if vm.shutdown is not None:
            await asyncio.wait({vm.shutdown}, timeout=patience_s)
            if not vm.shutdown.done():
                return "stopping"
        if vm.rebooting is None:  # it ignored the button, or another command has ended this
            if vm.state == "running":
                raise ignored(vm.record.reason or "the guest runs on")
            return vm.state
        await asyncio.wait({vm.rebooting}, timeout=limit - asyncio.get_running_loop().time())
        if vm.rebooting.done() and vm.state in OFF:
            raise Refused("failed", vm.record.reason or "the VM is off, and did not start again", "start-vm starts it")
        return vm.state

    # Reading

    async def list_snapshots(self, vm_id: str) -> list[SnapshotRow]:
        """The snapshots of a VM, oldest first.

        :raise Refused: `vm-unknown`; `failed`.
        """
        self._host.get(vm_id)
        try:
            found = await self._host.hypervisor.list_snapshots(vm_id)
        except HypervisorError as error:
            raise failed("list-snapshots", error) from None
        return [SnapshotRow(snapshot=one.name, created=one.created) for one in found]


def response_of(verb: str, options: Options, record: Record) -> VmStatus | SnapshotDone | ExpiryStatus:
    """What a command that altered a VM is answered, now and when it is asked again."""
    match options:
        case SnapshotRef(snapshot=name):
            return SnapshotDone(status=DONE[verb], vm_id=record.vm_id, snapshot=name)
        case ExtendVm():
            return ExpiryStatus(status=DONE[verb], vm_id=record.vm_id, expires=record.expires)
    return VmStatus(status=DONE[verb], vm_id=record.vm_id)


def _state_after(verb: str, state: VmState) -> VmState:
    if verb == "pause-vm":
        return "paused"
    return "running" if verb == "resume-vm" else state
