"""The addresses of guests on an operator's own bridge, as their guest agents tell them.

They are asked in the background, so that nobody who lists VMs waits for a guest; one that is silent is asked ever
more rarely. What a guest said counts for a while, and never beyond the VM's end. It is a claim: before anything is
said to such an address, the host's own neighbour table has to say that the VM has it.
"""

import asyncio
import ipaddress
import logging
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from aetherscale_agent import pipes
from aetherscale_agent.hypervisor.guest_agent import GuestSilent
from aetherscale_agent.ports import HypervisorError, Nic, NotThere

_log = logging.getLogger(__name__)

LOOK_EVERY = 5.0
"""Seconds between looks for guests that are due."""

ASK_EVERY = 30.0
"""Seconds until a guest that answered is asked again."""

SILENT_FIRST, SILENT_LAST = 5.0, 300.0
"""Seconds until one that did not answer is asked again: at first, and after many times."""

OLD = 600.0
"""Seconds after which what a guest said counts no more."""

AT_ONCE = 16

NEIGHBOURS = Path("/proc/net/arp")

Ask = Callable[[str], Awaitable[tuple[str, ...]]]
_Try = asyncio.Task[tuple[StreamReader, StreamWriter]]


@dataclass
class _Guest:
    """What one guest said in this run of its VM. Times in seconds."""

    addresses: tuple[str, ...] = ()
    heard: float = 0
    due: float = 0
    silences: int = 0
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)


class Learnt:
    """What guests said, by VM id."""

    def __init__(self, ask: Ask, clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._clock = clock
        self._guests: dict[str, _Guest] = {}

    def get(self, vm_id: str) -> tuple[str, ...]:
        """The addresses of a guest, as far as they are known."""
        guest = self._guests.get(vm_id)
        return guest.addresses if guest is not None and self._clock() - guest.heard < OLD else ()

    def forget(self, vm_id: str) -> None:
        """The VM is off, or begins anew: what it said counts no more."""
        self._guests.pop(vm_id, None)

    async def refresh(self, vm_id: str) -> None:
        """Ask a guest now; takes a second at most. Who comes while it is being asked waits for that answer."""
        guest = self._guests.setdefault(vm_id, _Guest())
        if guest.asking.locked():
            async with guest.asking:
                return
        async with guest.asking:
            await self._question(vm_id, guest)

    async def _question(self, vm_id: str, guest: _Guest) -> None:
        """`guest` is what is noted, also if it is forgotten meanwhile: then the answer is forgotten with it."""
        try:
            addresses = await self._ask(vm_id)
        except GuestSilent as error:
            guest.silences += 1
            _log.debug("VM %s: its guest agent: %s", vm_id, error)
        else:
            if addresses != guest.addresses:
                _log.info("VM %s: its guest agent says that it has %s", vm_id, ", ".join(addresses) or "no address")
            guest.addresses, guest.heard, guest.silences = addresses, self._clock(), 0
        guest.due = self._clock() + finalize_pause(guest.silences)

    async def look(self, running: Iterable[str]) -> None:
        """Ask those of the running guests that are due, some at a time."""
        now, gate = self._clock(), asyncio.Semaphore(AT_ONCE)

        async def ask(vm_id: str) -> None:
            async with gate:
                await self.refresh(vm_id)

        due = [vm_id for vm_id in running if self._guests.setdefault(vm_id, _Guest()).due <= now]
        await asyncio.gather(*(ask(vm_id) for vm_id in due))

    async def keep(self, find_running: Callable[[], Awaitable[Iterable[str]]]) -> None:
        """Look again and again, until cancelled."""
        while True:
            try:
                await self.look(await find_running())
            except (OSError, HypervisorError) as error:
                _log.warning("guests could not be asked for their addresses: %s", error)
            await asyncio.sleep(LOOK_EVERY)


def finalize_pause(silences: int) -> float:
    """Seconds until a guest is asked again that did not answer so many times in a row."""
    return min(SILENT_FIRST * 2 ** (min(silences, 16) - 1), SILENT_LAST) if silences else ASK_EVERY


async def dial(vm_id: str, nic: Nic, port: int) -> tuple[StreamReader, StreamWriter]:
    """Connect to a TCP port of a guest at one of the IPv4 addresses it told that is its own and takes it.

    All are tried at once: one that no way leads to from here, as of a VLAN in the guest, holds up none of the others.

    :raise NotThere: when there is none.
    """
    told = [address for address in pipes.find_dialable(nic.addresses) if ipaddress.ip_address(address).version == 4]
    if not told:
        raise NotThere(f"VM {vm_id} has told no IPv4 address", "run qemu-guest-agent in it; console-vm works without")
    tries = [asyncio.create_task(_dial_own(vm_id, nic.mac, address, port)) for address in told]
    taken = None
    try:
        async with asyncio.timeout(pipes.DIAL_TIMEOUT_S):
            taken = await _find_taken(tries)
            return taken
    except TimeoutError:
        reason = f"port {port} of VM {vm_id}: no answer within {pipes.DIAL_TIMEOUT_S:g} s"
        raise NotThere(reason, "is it still booting?") from None
    finally:
        await _leave(tries, taken)


async def _find_taken(tries: list[_Try]) -> tuple[StreamReader, StreamWriter]:
    """The first connection that is made.

    :raise NotThere: when none is, and why the first was not.
    """
    pending = set(tries)
    while pending:
        _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        made = next((one for one in tries if one.done() and one.exception() is None), None)
        if made is not None:
            return made.result()
    return tries[0].result()


async def _leave(tries: list[_Try], taken: tuple[StreamReader, StreamWriter] | None) -> None:
    """End all tries, and close what they connected to but for the one that was taken."""
    for one in tries:
        one.cancel()
    for found in await asyncio.gather(*tries, return_exceptions=True):
        if found is not taken and not isinstance(found, BaseException):
            found[1].transport.abort()


async def _dial_own(vm_id: str, mac: str, address: str, port: int) -> tuple[StreamReader, StreamWriter]:
    reader, writer = await pipes.dial(vm_id, [address], port)
    if not has_neighbour(NEIGHBOURS, address, mac):
        writer.transport.abort()
        reason = f"VM {vm_id} says that its address is {address}, and this host does not find it there"
        raise NotThere(reason, "the host needs an address of its own in that network, on aetherscale_bridge")
    return reader, writer


def has_neighbour(table: Path, address: str, mac: str) -> bool:
    """Whether it is this MAC address that answers for an IPv4 address on this host's links.

    Source: proc(5), /proc/net/arp: address, type, flags (0x0: nobody answered), MAC address, mask, device.
    """
    rows = [line.split() for line in table.read_text().splitlines()[1:]]
    return any(row[0] == address and int(row[2], 16) and row[3].lower() == mac for row in rows)
