"""Guests that QEMU paused because the host's disk was full: named while they are, and let go on when there is space.

QEMU's default for a write that meets ENOSPC is to pause the guest, which loses nothing; but nobody resumes it.
"""

import logging
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

from aetherscale_agent.hypervisor import monitor
from aetherscale_agent.hypervisor.config import Layout
from aetherscale_agent.ports import HypervisorError, Power, PowerChange

_log = logging.getLogger(__name__)

TIGHT = 1 << 30
"""Bytes free on the VMs' file system below which guests are looked at, one by one."""

PAUSED = "paused: its disk can't be written, because the host's disk is full; it goes on when there is space"

MONITOR_TIMEOUT = 2.0

Execute = Callable[[Path, str, float], Awaitable[object]]


class States(Protocol):
    """Whoever knows the units of VMs."""

    async def states(self) -> dict[str, str]:
        """The ActiveState of every VM's unit."""


class Stalled:
    """Looks after stalled guests; `look` is called every few seconds."""

    def __init__(
        self, layout: Layout, units: States, tell: Callable[[PowerChange], None], execute: Execute = monitor.execute
    ) -> None:
        self._layout = layout
        self._units = units
        self._tell = tell
        self._execute = execute
        self._paused: set[str] = set()
        self._was_tight = False

    async def look(self) -> None:
        """Look at each guest if the disk is nearly full, was so at the last look, or a guest is known to be paused.

        :raise HypervisorError: when systemd can't be asked.
        """
        tight = shutil.disk_usage(self._layout.homes).free < TIGHT
        if tight or self._was_tight or self._paused:
            on = [vm_id for vm_id, state in (await self._units.states()).items() if state == "active"]
            self._paused &= set(on)
            for vm_id in on:
                await self._look_at(vm_id)
        self._was_tight = tight

    async def _look_at(self, vm_id: str) -> None:
        socket = self._layout.vm(vm_id).agent_monitor
        try:
            status = await self._execute(socket, "query-status", MONITOR_TIMEOUT)
            if isinstance(status, dict) and status.get("status") == "io-error":
                self._note(vm_id)
                await self._execute(socket, "cont", MONITOR_TIMEOUT)  # paused again at once, if there is no space yet
            elif vm_id in self._paused:
                self._paused.discard(vm_id)
                _log.info("VM %s: goes on", vm_id)
                self._tell(PowerChange(vm_id, Power.ON, ""))
        except HypervisorError as error:
            _log.debug("VM %s: not looked at: %s", vm_id, error)

    def _note(self, vm_id: str) -> None:
        if vm_id not in self._paused:
            self._paused.add(vm_id)
            _log.warning("VM %s: %s", vm_id, PAUSED)
            self._tell(PowerChange(vm_id, Power.ON, PAUSED))
