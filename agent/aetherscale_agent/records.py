"""Changing VMs' records, in memory and in the journal, one change after the other.

Several have a hand in a VM's record: the command in its line, a shutdown, a create that is asked again, a connection
that is made anew. Each change is made to what the one before it left, under the VM's pen.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping

from aetherscale_agent.journal import Journal, JournalError, Record
from aetherscale_agent.vm import Vm

log = logging.getLogger(__name__)

WRITE_AGAIN_S = 1.0
"""After how long what the journal did not take is given to it again."""


class Records:
    """The records of these VMs. `vms` is the host's own table: what is not in it is not written."""

    def __init__(self, journal: Journal, vms: Mapping[str, Vm]) -> None:
        self._journal = journal
        self._vms = vms
        self._later: set[asyncio.Task[None]] = set()

    async def write(self, vm: Vm, **changes: object) -> None:
        """Change a VM's record, on disk first.

        :raise JournalError: when it can't be written; nothing was changed.
        """
        async with vm.pen:
            record = vm.record.but(**changes)
            await self._journal.put(record)
            vm.record = record

    async def change(self, vm: Vm, change: Callable[[Record], Record]) -> None:
        """Change a VM's record, whatever the disk says; what it does not take now it is given again until it does."""
        async with vm.pen:
            vm.record = change(vm.record)
            try:
                await self._journal.put(vm.record)
            except JournalError as error:
                log.error("VM %s is %s, but the journal does not know yet: %s", vm.record.vm_id, vm.state, error)
                self.write_later(vm)

    def write_later(self, vm: Vm) -> None:
        """Write a VM's record as soon as that can be: a host that restarts would else do what was long undone."""
        task = asyncio.create_task(self._write_until_written(vm))
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    async def _write_until_written(self, vm: Vm) -> None:
        while True:
            await asyncio.sleep(WRITE_AGAIN_S)
            async with vm.pen:
                if self._vms.get(vm.record.vm_id) is not vm:
                    return  # it was forgotten meanwhile
                with contextlib.suppress(JournalError):
                    await self._journal.put(vm.record)
                    return
