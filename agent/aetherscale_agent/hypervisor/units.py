"""The VMs' units in systemd, over D-Bus: start, limit, kill, and hear when one comes to rest.

One connection for the agent's life, made anew when it is lost; systemd is subscribed to once per connection.
Interfaces: org.freedesktop.systemd1(5).
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dbus_fast import BusType, Message, MessageType, Variant
from dbus_fast.aio import MessageBus

from aetherscale_agent.hypervisor.reasons import (
    TAP_PREFIX,
    UNIT_PREFIX,
    UnitEnd,
    find_power,
    find_unit,
    find_vm_id,
    merge_end,
    tap_unit_name,
    unit_name,
)
from aetherscale_agent.ports import HypervisorError, Power

_log = logging.getLogger(__name__)

SYSTEMD = "org.freedesktop.systemd1"
SYSTEMD_PATH = "/org/freedesktop/systemd1"
MANAGER = f"{SYSTEMD}.Manager"
UNIT = f"{SYSTEMD}.Unit"
SERVICE = f"{SYSTEMD}.Service"
PROPERTIES = "org.freedesktop.DBus.Properties"
DBUS = "org.freedesktop.DBus"

CALL_TIMEOUT = 10.0
"""Seconds for one call, a lost connection's return included."""

JOB_TIMEOUT = 30.0
"""Seconds for a start job, which waits for one that stops the unit."""

TIDY_TIMEOUT, TIDY_TURNS = 2.0, 5
"""Seconds for the unit of a tap to come to rest (it takes 0.1), and how often it is looked at."""

RECONNECT_FIRST, RECONNECT_MOST = 0.1, 5.0

CONTROL = Path("/run/systemd/system.control")
"""Where systemd keeps what SetUnitProperties set until the next boot."""

MATCHES = (
    f"type='signal',sender='{SYSTEMD}',interface='{MANAGER}',member='JobRemoved'",
    f"type='signal',sender='{SYSTEMD}',interface='{PROPERTIES}',member='PropertiesChanged',arg0='{SERVICE}'",
    f"type='signal',sender='{SYSTEMD}',interface='{PROPERTIES}',member='PropertiesChanged',arg0='{UNIT}'",
    f"type='signal',sender='{DBUS}',interface='{DBUS}',member='NameOwnerChanged',arg0='{SYSTEMD}'",
)


class UnitsError(HypervisorError):
    """systemd can't be reached, or refused; `name` is the D-Bus error's, empty if there was no answer."""

    def __init__(self, text: str, name: str = "") -> None:
        super().__init__(text)
        self.name = name


class Units:
    """The units of this host's VMs, between `open` and `close`."""

    def __init__(self, on_end: Callable[[str, UnitEnd], None]) -> None:
        """`on_end` is called with a VM's id and its unit's end, each time one that was on comes to rest."""
        self._on_end = on_end
        self._bus: MessageBus | None = None
        self._ready = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._known: dict[str, UnitEnd] = {}  #: what signals told of units, by VM id
        self._on: set[str] = set()
        self._jobs: dict[str, asyncio.Queue[tuple[str, str]]] = {}
        self._waiters: dict[str, list[asyncio.Future[UnitEnd]]] = {}
        self._tidied = asyncio.Event()  #: set, and replaced, when the unit of any tap comes to rest

    async def open(self) -> None:
        """Connect.

        :raise UnitsError: when systemd can't be reached.
        """
        try:
            await self._connect()
            await self._catch_up()
        except (OSError, EOFError) as error:
            raise UnitsError(f"systemd can't be reached over D-Bus: {error}") from None
        self._keeper = asyncio.create_task(self._keep(), name="units")

    async def close(self) -> None:
        """Disconnect."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._bus is not None:
            self._bus.disconnect()

    # -- what one does with units

    async def states(self) -> dict[str, str]:
        """The ActiveState of every VM's unit that systemd knows; one that it does not know is off."""
        known = await self._known_units([f"{UNIT_PREFIX}*.service"])
        found = ((find_vm_id(name), state) for name, state in known.items())
        return {vm_id: state for vm_id, state in found if vm_id is not None}

    async def states_of(self, names: Sequence[str]) -> dict[str, str]:
        """The ActiveState of each of these units; of one that systemd does not know: inactive."""
        known = await self._known_units(names) if names else {}
        return {name: known.get(name, "inactive") for name in names}

    async def _known_units(self, patterns: Sequence[str]) -> dict[str, str]:
        # ListUnitsByNames would load those that systemd does not know, and tell everybody of each.
        (rows,) = await self._manager("ListUnitsByPatterns", "asas", [[], list(patterns)])
        return {row[0]: row[3] for row in rows}

    def may_be_on(self, vm_id: str) -> bool:
        """Whether the VM's unit is on, as far as systemd has told without being asked; where it can't tell, it may."""
        return vm_id in self._on or not self._ready.is_set()

    async def state(self, vm_id: str) -> str:
        """The ActiveState of the VM's unit."""
        name = unit_name(vm_id)
        return (await self.states_of([name]))[name]

    async def set_limits(self, vm_id: str, limits: Mapping[str, int]) -> None:
        """Set properties of the VM's unit until it is off."""
        values = [[name, Variant("t", value)] for name, value in limits.items()]
        await self._manager("SetUnitProperties", "sba(sv)", [unit_name(vm_id), True, values])

    def find_limited(self) -> set[str]:
        """The VMs for which limits are set: those that are on, and those of an interrupted start."""
        try:
            found = {find_vm_id(name.removesuffix(".d")) for name in os.listdir(CONTROL)}
        except FileNotFoundError:
            return set()
        return {vm_id for vm_id in found if vm_id is not None}

    async def start(self, vm_id: str) -> None:
        """Start the VM's unit; returns when systemd is about to execute QEMU.

        :raise UnitsError: when systemd could not.
        """
        queue = self._jobs[vm_id] = asyncio.Queue()
        try:
            async with asyncio.timeout(JOB_TIMEOUT):
                (job,) = await self._manager("StartUnit", "ss", [unit_name(vm_id), "replace"])
                result = await _job_result(queue, job)
        except TimeoutError:
            raise UnitsError(f"systemd did not start {unit_name(vm_id)} within {JOB_TIMEOUT:g} s") from None
        finally:
            del self._jobs[vm_id]
        if result != "done":
            raise UnitsError(f"systemd could not start {unit_name(vm_id)} ({result})")

    async def find_tidy(self, vm_ids: Collection[str]) -> set[str]:
        """Those of these VMs whose tap's unit is at rest; it comes to rest a moment after the VM's own."""
        states = await self.states_of([tap_unit_name(vm_id) for vm_id in vm_ids])
        return {vm_id for vm_id in vm_ids if find_power(states[tap_unit_name(vm_id)]) is not Power.ON}

    async def wait_tidy(self, vm_id: str) -> None:
        """Wait until the unit of the tap of a VM that is at rest is so, too.

        One that goes on for long was forgotten by systemd, when the units were not ours for a while: it is stopped.

        :raise UnitsError: when it is not in time.
        """
        for _ in range(TIDY_TURNS):
            if await self._comes_to_rest(vm_id):
                return
            await self._manager("StopUnit", "ss", [unit_name(vm_id), "replace"])
        raise UnitsError(f"{tap_unit_name(vm_id)} does not come to rest")

    async def _comes_to_rest(self, vm_id: str) -> bool:
        """Whether it does in time. Taps of many other VMs may come to rest before this one's."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None) as patience:
                while True:
                    tidied = self._tidied
                    if await self.find_tidy([vm_id]):
                        return True
                    if patience.when() is None:  # a systemd that is slow to answer is another trouble
                        patience.reschedule(asyncio.get_running_loop().time() + TIDY_TIMEOUT)
                    await tidied.wait()
        return False

    async def kill(self, vm_id: str) -> None:
        """Send SIGKILL to the VM's QEMU; nothing happens if there is none."""
        with _tolerating(f"{SYSTEMD}.NoSuchUnit", f"{SYSTEMD}.UnitNotLoaded", f"{SYSTEMD}.NoSuchProcess"):
            await self._manager("KillUnit", "ssi", [unit_name(vm_id), "main", 9])

    async def reset_failed(self, vm_id: str) -> None:
        """Make systemd forget that the VM's unit failed."""
        with _tolerating(f"{SYSTEMD}.NoSuchUnit", f"{SYSTEMD}.UnitNotLoaded"):
            await self._manager("ResetFailedUnit", "s", [unit_name(vm_id)])

    async def wait_end(self, vm_id: str) -> UnitEnd:
        """Wait until the VM's unit is at rest. Cancel it to stop waiting."""
        future: asyncio.Future[UnitEnd] = asyncio.get_running_loop().create_future()
        waiters = self._waiters.setdefault(vm_id, [])
        waiters.append(future)
        try:
            state = await self.state(vm_id)
            if not future.done() and find_power(state) is not Power.ON:
                return await self.end(vm_id)
            return await future
        finally:
            waiters.remove(future)
            if not waiters:
                self._waiters.pop(vm_id, None)

    async def end(self, vm_id: str) -> UnitEnd:
        """What systemd says of the VM's unit now; OFF if it does not know it."""
        if not await self._known_units([unit_name(vm_id)]):
            return UnitEnd("inactive")
        (path,) = await self._manager("LoadUnit", "s", [unit_name(vm_id)])
        end = UnitEnd("inactive")
        for interface in (SERVICE, UNIT):
            (properties,) = await self._call(path, PROPERTIES, "GetAll", "s", [interface])
            end = merge_end(end, _plain(properties))
        return end

    # -- calls

    async def _manager(self, member: str, signature: str = "", body: list[Any] | None = None) -> list[Any]:
        return await self._call(SYSTEMD_PATH, MANAGER, member, signature, body or [])

    async def _call(self, path: str, interface: str, member: str, signature: str, body: list[Any]) -> list[Any]:
        message = Message(
            destination=SYSTEMD, path=path, interface=interface, member=member, signature=signature, body=body
        )
        try:
            async with asyncio.timeout(CALL_TIMEOUT):
                await self._ready.wait()
                assert self._bus is not None
                return _body(await self._bus.call(message), member)
        except TimeoutError:
            raise UnitsError(f"systemd did not answer {member} within {CALL_TIMEOUT:g} s") from None
        except (OSError, EOFError) as error:
            raise UnitsError(f"the connection to systemd was lost during {member}: {error}") from None

    # -- the connection

    async def _connect(self) -> None:
        bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
        bus.add_message_handler(self._on_message)
        for match in MATCHES:
            call = Message(destination=DBUS, path="/org/freedesktop/DBus", interface=DBUS, member="AddMatch")
            call.signature, call.body = "s", [match]
            _body(await bus.call(call), "AddMatch")
        self._bus = bus
        self._ready.set()
        await self._manager("Subscribe")

    async def _keep(self) -> None:
        """Connect again whenever the connection is lost, and catch up on what was missed."""
        while True:
            assert self._bus is not None
            with contextlib.suppress(Exception):
                await self._bus.wait_for_disconnect()  # type: ignore[no-untyped-call]
            self._ready.clear()
            _log.warning("the connection to systemd was lost")
            await self._reconnect()
            _log.info("connected to systemd again")

    async def _reconnect(self) -> None:
        pause = RECONNECT_FIRST
        while True:
            await asyncio.sleep(pause)
            try:
                await self._connect()
                return await self._catch_up()
            except (OSError, EOFError, HypervisorError) as error:
                _log.debug("no connection to systemd yet: %s", error)
            pause = min(2 * pause, RECONNECT_MOST)

    async def _catch_up(self) -> None:
        """Tell of the units that came to rest while nobody listened."""
        states = await self.states()
        for vm_id in list(self._on):
            if find_power(states.get(vm_id, "inactive")) is not Power.ON:
                self._rest(vm_id, await self.end(vm_id))
        self._on |= {vm_id for vm_id, state in states.items() if find_power(state) is Power.ON}

    # -- signals

    def _on_message(self, message: Message) -> None:
        if message.message_type is not MessageType.SIGNAL:
            return
        if message.member == "PropertiesChanged":
            self._on_properties(message.path or "", message.body[0], message.body[1])
        elif message.member == "JobRemoved":
            _, job, unit, result = message.body
            vm_id = find_vm_id(unit)
            if vm_id in self._jobs:
                self._jobs[vm_id].put_nowait((job, result))
        elif message.member == "NameOwnerChanged" and message.body[2]:
            self._start_over()

    def _start_over(self) -> None:
        # systemd came back to the bus (daemon-reexec): our subscription went with its old name.
        assert self._bus is not None
        self._bus.disconnect()

    def _on_properties(self, path: str, interface: str, changed: Mapping[str, Any]) -> None:
        unit = find_unit(path)
        vm_id = find_vm_id(unit)
        if vm_id is None:
            if unit.startswith(TAP_PREFIX) and _is_at_rest(changed):
                self._tidied.set()
                self._tidied = asyncio.Event()
            return
        end = self._known[vm_id] = merge_end(self._known.get(vm_id, UnitEnd("inactive")), _plain(changed))
        # systemd tells of the service first and of the unit last, so that the whole story is known here.
        if interface != UNIT:
            return
        if end.power is Power.ON:
            self._on.add(vm_id)
        elif vm_id in self._on:
            self._rest(vm_id, end)
        else:
            del self._known[vm_id]

    def _rest(self, vm_id: str, end: UnitEnd) -> None:
        self._on.discard(vm_id)
        self._known.pop(vm_id, None)
        for future in self._waiters.get(vm_id, []):
            if not future.done():
                future.set_result(end)
        self._on_end(vm_id, end)


def _is_at_rest(changed: Mapping[str, Any]) -> bool:
    return find_power(_plain(changed).get("ActiveState", "")) is not Power.ON


async def _job_result(queue: asyncio.Queue[tuple[str, str]], job: str) -> str:
    while True:
        found, result = await queue.get()
        if found == job:
            return result


def _body(reply: Message | None, member: str) -> list[Any]:
    if reply is None:
        raise UnitsError(f"no answer to {member}")
    if reply.message_type is MessageType.ERROR:
        detail = reply.body[0] if reply.body else reply.error_name
        raise UnitsError(f"systemd refused {member}: {detail}", reply.error_name or "")
    return list(reply.body)


def _plain(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {name: getattr(value, "value", value) for name, value in properties.items()}


@contextlib.contextmanager
def _tolerating(*names: str) -> Iterator[None]:
    try:
        yield
    except UnitsError as error:
        if error.name not in names:
            raise
