"""The start of the agent: journal, units and disks are compared, and what was half done is finished or undone.

Creates that are bound but not built are not finished here but once the directory names this host again: see Session.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping

from aetherscale_agent.alter import resized
from aetherscale_agent.decide import too_late
from aetherscale_agent.host import DELETED, Host
from aetherscale_agent.journal import Ending
from aetherscale_agent.ports import HypervisorError, Power
from aetherscale_agent.recover import Finding, find
from aetherscale_agent.steps import step
from aetherscale_agent.vm import Vm
from aetherscale_protocol.errors import Refused

log = logging.getLogger(__name__)

STARTS_AT_ONCE = 4


async def reconcile(host: Host) -> str:
    """Take stock, and begin to put things right; one sentence about it."""
    with step("agent.load"):
        for vm_id, record in host.journal.load(log.warning).items():
            host.vms[vm_id] = Vm(record, "creating")
    with step("agent.stock"):
        powers = await host.hypervisor.power(list(host.vms))
        paused = await _find_paused(host, powers)
    found = {
        vm_id: _find(host, vm, powers.get(vm_id, Power.OFF), is_paused=vm_id in paused)
        for vm_id, vm in host.vms.items()
    }
    to_start = [host.vms[vm_id] for vm_id, finding in found.items() if finding is Finding.HOST_WENT_DOWN]
    for vm in to_start:
        await vm.line.acquire()  # before anybody else: what was cut off is finished before the next command
    if to_start:
        host.spawn(_start_again(host, to_start))
    to_delete = [host.vms[vm_id] for vm_id, finding in found.items() if finding is Finding.DELETING]
    for vm in to_delete:
        await host.erase(vm, vm.record.ending or Ending(code="vm-unknown", reason=DELETED))
    with step("agent.remains"):
        remains = await _remove_remains(host)
    ready = [vm for vm in host.vms.values() if vm.record.phase == "ready"]
    running = sum(vm.state == "running" for vm in ready)
    return (
        f"{len(ready)} VMs: {running} running, {len(to_start)} to start again, {len(ready) - running - len(to_start)}"
        f" off; {len(to_delete)} deletions finished, {remains} remains removed"
    )


async def _find_paused(host: Host, powers: Mapping[str, Power]) -> set[str]:
    on = [vm_id for vm_id, power in powers.items() if power is Power.ON and host.vms[vm_id].record.phase == "ready"]
    answers = await asyncio.gather(*map(host.hypervisor.is_paused, on), return_exceptions=True)
    for vm_id, answer in zip(on, answers, strict=True):
        if isinstance(answer, BaseException):
            log.warning("VM %s: whether it is paused can't be told: %s", vm_id, answer)
    return {vm_id for vm_id, answer in zip(on, answers, strict=True) if answer is True}


def _find(host: Host, vm: Vm, power: Power, *, is_paused: bool) -> Finding:
    """What is found of a VM; its state is set, and what needs no waiting is begun."""
    finding = find(vm.record, power, host.boot_id, host.clock())
    match finding:
        case Finding.NOT_YET | Finding.DELETING:
            pass
        case Finding.RUNS:
            vm.state = "paused" if is_paused else "running"
        case Finding.STARTED:
            vm.state = "paused" if is_paused else "running"
            host.spawn(host.settle(vm, vm.state, boot_id=host.boot_id, start_by=0.0))
        case Finding.STOPPING:
            vm.state = "running"
            if vm.record.pulled:
                host.spawn(host.kill_again(vm))
            else:
                host.begin_shutdown(vm)
        case Finding.OFF:
            vm.state = "failed" if power is Power.FAILED else "stopped"
        case Finding.RESTED:
            why = "QEMU died" if power is Power.FAILED else "the guest shut itself down"
            vm.state = "failed" if power is Power.FAILED else "stopped"
            host.spawn(host.settle(vm, vm.state, wanted="off", reason=f"{why} while the agent was away"))
        case Finding.TOO_LATE:
            vm.state = "stopped"
            why = "its start was cut off, and could not be finished before its deadline"
            late = too_late(host.name, vm.record.start_by, host.clock())
            host.spawn(host.settle(vm, "stopped", late, wanted="off", start_by=0.0, reason=why))
        case Finding.HOST_WENT_DOWN:
            vm.state = "starting"
    altering = vm.record.altering
    if vm.record.phase == "ready" and altering is not None:
        if altering.verb == "resize-vm":
            vm.promised = resized(vm.record.spec, altering)
        if finding is not Finding.HOST_WENT_DOWN:  # which is started first
            host.spawn(_finish(host, vm))
    return finding


async def _finish(host: Host, vm: Vm) -> None:
    """Finish what was being done to a VM when the agent was cut off."""
    try:
        await host.alterer.finish(vm)
    finally:
        vm.promised = None


async def _start_again(host: Host, vms: Iterable[Vm]) -> None:
    slots = asyncio.Semaphore(STARTS_AT_ONCE)

    async def start(vm: Vm) -> None:
        was_paused = vm.record.paused
        try:
            async with slots:
                if not vm.exists:
                    return
                try:
                    await host.start(vm)
                    if was_paused:
                        await host.alterer.note_afresh(vm)
                except Refused as error:
                    log.error("VM %s: not started again after the host's restart: %s", vm.record.vm_id, error.reason)
            await host.alterer.finish_in_line(vm)
        finally:
            vm.line.release()

    await asyncio.gather(*(start(vm) for vm in vms))


async def _remove_remains(host: Host) -> int:
    """Remove what is left of VMs that are tombstones or mere claims; name what belongs to no record at all."""
    left = await host.hypervisor.list_remains()
    known = {vm_id for vm_id, vm in host.vms.items() if vm.exists}
    for stranger in sorted(left - set(host.vms)):
        log.warning("VM %s: something of it is on this host, but the journal does not know it; left alone", stranger)
    removed = 0
    for vm_id in sorted(left & set(host.vms) - known):
        try:
            await host.hypervisor.kill(vm_id)
            await host.hypervisor.remove(vm_id)
            removed += 1
        except HypervisorError as error:
            log.error("VM %s: its remains could not be removed: %s", vm_id, error)
    return removed
