"""Removing a VM from its host, whatever state it is in and whatever the disk says: `courses.ERASE`, step by step."""

import contextlib
import logging
from collections.abc import Callable

from aetherscale_agent import courses
from aetherscale_agent.journal import Ending, Journal, JournalError
from aetherscale_agent.ports import Hypervisor, HypervisorError
from aetherscale_agent.records import Records
from aetherscale_agent.steps import step
from aetherscale_agent.vm import Vm

log = logging.getLogger(__name__)


class Eraser:
    """Erases the VMs of a host."""

    def __init__(self, records: Records, journal: Journal, hypervisor: Hypervisor, clock: Callable[[], float]) -> None:
        self._records = records
        self._journal = journal
        self._hypervisor = hypervisor
        self._clock = clock

    async def erase(self, vm: Vm, ending: Ending, until: float) -> bool:
        """Remove a VM, leaving a tombstone (at least `until` then); False if something of it is left.

        A full disk does not stop this: it is what frees space. The record is written again when that is done.
        """
        vm_id = vm.record.vm_id
        async with vm.pen:
            vm.record = vm.record.but(deadline=max(until, vm.record.deadline))
        try:
            for name in courses.ERASE:
                with step(name, vm_id):
                    await self._take(name, vm, ending)
        except HypervisorError as error:
            log.error("VM %s: could not be removed: %s", vm_id, error)
            vm.state = "deleting"  # which can be deleted again, and nothing else
            return False
        log.info("VM %s: removed", vm_id)
        return True

    async def _take(self, name: str, vm: Vm, ending: Ending) -> None:
        match name:
            case "erase.journal":
                try:
                    await self._records.write(vm, phase="deleting", ending=ending, wanted="off")
                except JournalError as error:
                    log.warning("VM %s: removed without a record of the intent: %s", vm.record.vm_id, error)
            case "erase.qemu":
                await self._hypervisor.kill(vm.record.vm_id)
            case "erase.remove":
                await self._hypervisor.remove(vm.record.vm_id)
            case "erase.entomb":
                await self._entomb(vm, ending)
            case _:
                raise AssertionError(f"no way to take {name}")

    async def _entomb(self, vm: Vm, ending: Ending) -> None:
        """Journal that a VM is gone; if that can't be written, at least nothing may say that it is not."""
        async with vm.pen:
            tomb = vm.record.but(phase="gone", ending=ending, wanted="off", since=self._clock())
            try:
                await self._journal.put(tomb)
            except JournalError as error:
                log.error("VM %s: its tombstone can't be written yet: %s", tomb.vm_id, error)
                with contextlib.suppress(JournalError):
                    await self._journal.drop(tomb.vm_id)
                self._records.write_later(vm)
            vm.record = tomb
