"""VMs that live for a while only: their host deletes them when that is over, whether or not the broker is there.

A host may boot with a clock that is years ahead, and would delete all of them at once: so it waits until time was
enough to set the clock right, and waits again whenever the clock leaps.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from aetherscale_agent.audit import Audit, Entry
from aetherscale_agent.host import Host
from aetherscale_agent.journal import Record
from aetherscale_agent.vm import Vm
from aetherscale_protocol import names
from aetherscale_protocol.errors import Refused

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
"""How often the host looks whose time is over, in seconds: no VM outlives its time by more, but for its own work."""
TRY_AGAIN_S = 60.0
"""After how long a VM that could not be removed is tried again, in seconds."""
CLOCK_SETTLES_S = 120.0
"""For how long after the host's boot, or after a leap of its clock, no VM is deleted, in seconds."""
LEAP_S = 60.0
"""By how many seconds a clock that is set between two looks, or drifts, does not count as leaping."""
OVER = "VM was deleted: its time to live was over"


def read_uptime() -> float:
    """Seconds since the host booted, suspended or not; no clock that is set changes them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def is_over(record: Record, now: float) -> bool:
    """Whether a VM's time to live is over."""
    return 0 < record.expires <= now


class Reaper:
    """Deletes the VMs of a host whose time is over."""

    def __init__(self, host: Host, audit: Audit | None = None, *, uptime: Callable[[], float] = read_uptime) -> None:
        self._host = host
        self._audit = audit or Audit()
        self._not_before: dict[str, float] = {}
        self._uptime = uptime
        self._booted = host.clock() - uptime()
        self._trusts_from = CLOCK_SETTLES_S

    async def run(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Look again and again, until cancelled."""
        while True:
            self.look()
            await sleep(LOOK_EVERY_S)

    def look(self) -> None:
        """Begin to delete each VM whose time is over, each in its line; nothing waits for that."""
        now = self._host.clock()
        if not self._trusts(now):
            return
        over = [vm for vm in self._host.vms.values() if is_over(vm.record, now) and vm.exists]
        self._not_before = {vm.record.vm_id: self._not_before.get(vm.record.vm_id, 0.0) for vm in over}
        for vm in over:
            if self._not_before[vm.record.vm_id] <= now:
                self._not_before[vm.record.vm_id] = float("inf")  # it is in hand
                self._host.spawn(self._reap(vm))

    def _trusts(self, now: float) -> bool:
        """Whether the clock has been going evenly for so long that it may cost VMs."""
        uptime = self._uptime()
        leap, self._booted = now - uptime - self._booted, now - uptime
        if abs(leap) > LEAP_S:
            log.warning("the clock was set by %+.0f s: no VM's time is over for %.0f s", leap, CLOCK_SETTLES_S)
            self._trusts_from = uptime + CLOCK_SETTLES_S
        return uptime >= self._trusts_from

    async def _reap(self, vm: Vm) -> None:
        vm_id = vm.record.vm_id
        try:
            async with vm.line:
                if not vm.exists or not is_over(vm.record, self._host.clock()):
                    return  # whoever was before us in its line has deleted it, or let it live on
                log.info("VM %s: its time to live is over: it is deleted", vm_id)
                begun = (
                    vm.record.ending
                )  # by a delete-vm that could not remove all: its copies are told that it is done
                await self._host.delete(vm, begun.request_id if begun else "", reason=OVER)
                self._note(vm)
        except Refused as error:
            log.error("VM %s: %s; tried again in %.0f s", vm_id, error.reason, TRY_AGAIN_S)
            self._note(vm, error)
        finally:
            self._not_before[vm_id] = self._host.clock() + TRY_AGAIN_S

    def _note(self, vm: Vm, error: Refused | None = None) -> None:
        """What a host does of itself is the host's: its own user stands for it."""
        self._audit.note(
            Entry(
                who=names.agent_user(self._host.name),
                command="delete-vm",
                result="error" if error else "success",
                vm_id=vm.record.vm_id,
                vm_name=vm.record.spec.name or "",
                code=error.code if error else "",
                reason=error.reason if error else OVER,
            )
        )
