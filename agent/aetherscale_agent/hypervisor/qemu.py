"""The hypervisor: QEMU in a systemd unit per VM. The agent can come and go, a VM does not notice."""

import asyncio
import contextlib
import functools
import logging
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

from aetherscale_agent import pipes
from aetherscale_agent.hypervisor import (
    argv,
    condition,
    console,
    disks,
    files,
    guest_agent,
    images,
    learnt,
    machine,
    monitor,
    overlay,
    probe,
    reached,
    seed,
)
from aetherscale_agent.hypervisor.config import HypervisorConfig, Layout, VmPaths
from aetherscale_agent.hypervisor.network import Network
from aetherscale_agent.hypervisor.reasons import (
    NO_NETWORK,
    PLUG_PULLED,
    UnitEnd,
    finalize_reason,
    find_power,
    tap_unit_name,
    unit_name,
)
from aetherscale_agent.hypervisor.resources import Resources
from aetherscale_agent.hypervisor.stalled import Stalled
from aetherscale_agent.hypervisor.units import Units
from aetherscale_agent.ports import Condition, HostResources, HypervisorError, Image, Nic, Power, PowerChange, Snapshot
from aetherscale_protocol import names
from aetherscale_protocol.answers import Milestone
from aetherscale_protocol.options import CreateVm

_log = logging.getLogger(__name__)

MONITOR_TIMEOUT = 2.0
"""Seconds for a QEMU to answer its monitor, and then to quit."""

KILL_TIMEOUT = 10.0
"""Seconds for a killed QEMU to be gone."""

CONSOLE_CHECK = 10.0
"""Seconds between looks at running VMs: the size of their console logs, and guests stalled by a full disk."""


class QemuHypervisor:
    """VMs in QEMU on this host, between `open` and `close`."""

    def __init__(self, config: HypervisorConfig) -> None:
        self._config = config
        self._layout = Layout(config.state_dir, config.run_dir)
        self._resources = Resources(config, self._layout.homes)
        self._units = Units(self._on_end)
        self._network = Network(config.network, self._layout)
        self._overlays = overlay.Overlays(config.build_timeout)
        self._found = probe.Finding("", "")
        self._starting: set[str] = set()
        self._pulled: set[str] = set()
        self._ended: set[str] = set()  #: whose end the last `kill` was told of, by systemd itself
        self._listeners: list[asyncio.Queue[PowerChange]] = []
        self._console_keeper: asyncio.Task[None] | None = None
        self._stalled = Stalled(self._layout, self._units, self._tell)
        self._learnt = learnt.Learnt(self._ask_guest)
        self._asker: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect to systemd and begin to look after consoles.

        :raise HypervisorError: when systemd can't be reached, or the directories can't be made.
        """
        with _as_hypervisor_error(f"{self._config.state_dir} or {self._config.run_dir} can't be used"):
            files.make_walls(self._layout)
            self._network.load()
        await self._units.open()
        self._console_keeper = asyncio.create_task(self._keep_consoles(), name="consoles")
        if self._network.source == "guest-agent":
            self._asker = asyncio.create_task(self._learnt.keep(self._find_on), name="guest agents")

    async def close(self) -> None:
        """Let go; the VMs stay as they are."""
        keepers = [task for task in (self._console_keeper, self._asker) if task is not None]
        for task in keepers:
            task.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        await self._units.close()

    @property
    def accelerator(self) -> str:
        """`kvm` or `tcg`; empty until `probe` has found out."""
        return self._found.accelerator

    async def probe(self) -> None:
        """Find out whether KVM works here. The configuration has its way, and is told where that is in vain."""
        chosen = self._config.accelerator
        if chosen == "tcg":
            self._found = probe.Finding("", chosen)
            return
        self._found = await probe.find_accelerator(self._units, self._layout)
        if chosen == "kvm":
            self._found = probe.Finding("", chosen, self._found.reason)
            if self._found.reason:
                _log.error("KVM, which the configuration wants, does not work here: no VM will start")

    def resources(self) -> HostResources:
        """What the host has in all."""
        return self._resources.get()

    async def condition(self) -> Condition:
        """What the host finds when it looks at itself."""
        with _as_hypervisor_error("the host can't be looked at"):
            return await condition.look(self._found, self._config.network, self._layout, self._units)

    async def build(self, vm_id: str, spec: CreateVm, image: Image) -> None:
        """Make the VM's disk and its console log."""
        paths = self._layout.vm(vm_id)
        with _as_hypervisor_error("the disk could not be made"):
            files.make_dirs(self._layout, paths)
            console.make(paths.console)
            self._network.take(vm_id)
            size = overlay.finalize_size(spec.disk, image)
            if spec.clone_of is not None:
                await self._clone(spec.clone_of, paths, image, size)
                return
            await self._overlays.make(image, paths.disk, size)

    async def seed(self, vm_id: str, spec: CreateVm, instance: str) -> None:
        """Make the VM's seed disc."""
        paths = self._layout.vm(vm_id)
        contents = seed.finalize_files(vm_id, spec, instance, self.nic(vm_id).mac)
        with _as_hypervisor_error("the seed disc could not be made"):
            files.make_dirs(self._layout, paths)
            await asyncio.to_thread(seed.make, paths.seed, contents)

    async def start(self, vm_id: str, spec: CreateVm) -> None:
        """Start the VM with its limits; returns when QEMU runs the guest."""
        paths = self._layout.vm(vm_id)
        self._ended.discard(vm_id)
        if not paths.disk.exists():
            raise HypervisorError(f"VM {vm_id} has no disk")
        if await self._is_up(vm_id):
            return
        self._starting.add(vm_id)
        try:
            await self._start_unit(vm_id, spec, paths)
            await self._wait_running(vm_id, paths)
        except HypervisorError:
            await self._give_up(vm_id)
            raise
        finally:
            self._starting.discard(vm_id)

    async def press_power_button(self, vm_id: str) -> None:
        """Press the ACPI power button."""
        with contextlib.suppress(monitor.MonitorError):
            await monitor.execute(self._layout.vm(vm_id).agent_monitor, "system_powerdown", MONITOR_TIMEOUT)
            return
        if (await self.power([vm_id]))[vm_id] is Power.ON:
            _log.warning("VM %s: QEMU did not take the power button", vm_id)

    async def kill(self, vm_id: str) -> None:
        """Pull the plug: ask QEMU to quit, which leaves the disk's metadata tidy, and kill it if it does not."""
        self._ended.discard(vm_id)
        power = (await self.power([vm_id]))[vm_id]
        self._pulled.add(vm_id)
        try:
            if power is Power.ON:
                power = (await self._pull(vm_id)).power
                self._ended.add(vm_id)
            if power is Power.FAILED:
                await self._units.reset_failed(vm_id)
        finally:
            self._pulled.discard(vm_id)

    async def pause(self, vm_id: str) -> None:
        """Let the guest stand still."""
        await machine.pause(self._layout.vm(vm_id).agent_monitor)

    async def resume(self, vm_id: str) -> None:
        """Let it go on."""
        await machine.resume(self._layout.vm(vm_id).agent_monitor)

    async def reset(self, vm_id: str) -> None:
        """Press the reset button."""
        await asyncio.to_thread(reached.set_mark, self._layout.vm(vm_id), self._config.leases, self.nic(vm_id).mac)
        self._learnt.forget(vm_id)
        await machine.reset(self._layout.vm(vm_id).agent_monitor)

    async def is_paused(self, vm_id: str) -> bool:
        """Whether somebody paused the guest of a VM that is on."""
        return await machine.is_paused(self._layout.vm(vm_id).agent_monitor)

    async def disk_size(self, vm_id: str) -> int:
        """The size of the VM's disk in GiB, rounded down."""
        return int((await self._disk(vm_id))["virtual-size"]) // disks.GIB

    async def resize_disk(self, vm_id: str, gib: int) -> None:
        """Make the VM's disk so large, never smaller."""
        is_now, size = int((await self._disk(vm_id))["virtual-size"]), gib * disks.GIB
        if size < is_now:
            raise HypervisorError(f"the disk has {is_now // disks.GIB} GiB, and is not made smaller")
        if size == is_now:
            return
        paths = self._layout.vm(vm_id)
        if await self._is_on(vm_id):
            await machine.resize(paths.agent_monitor, size)
        else:
            await disks.resize(paths.disk, self._layout.images, size, self._config.build_timeout)

    async def snapshot(self, vm_id: str, name: str) -> None:
        """Keep the VM's disk as it is now."""
        if await self._has_snapshot(vm_id, name):
            return
        paths = self._layout.vm(vm_id)
        if await self._is_on(vm_id):
            await machine.snapshot(paths.agent_monitor, name)
        else:
            await disks.change_snapshot("-c", paths.disk, self._layout.images, name, self._config.build_timeout)

    async def restore(self, vm_id: str, name: str) -> None:
        """Take the disk of a VM that is off back to a snapshot."""
        if await self._is_on(vm_id):
            raise HypervisorError(f"VM {vm_id} is running")
        if not await self._has_snapshot(vm_id, name):
            raise HypervisorError(f"VM {vm_id} has no snapshot {name}")
        disk, images = self._layout.vm(vm_id).disk, self._layout.images
        await disks.change_snapshot("-a", disk, images, name, self._config.build_timeout)

    async def delete_snapshot(self, vm_id: str, name: str) -> None:
        """Delete a snapshot."""
        if not await self._has_snapshot(vm_id, name):
            return
        paths = self._layout.vm(vm_id)
        if await self._is_on(vm_id):
            await machine.delete_snapshot(paths.agent_monitor, name)
        else:
            await disks.change_snapshot("-d", paths.disk, self._layout.images, name, self._config.build_timeout)

    async def list_snapshots(self, vm_id: str) -> list[Snapshot]:
        """The snapshots of the VM's disk, oldest first."""
        return disks.read_snapshots(await self._disk(vm_id))

    async def wait_off(self, vm_id: str) -> Power:
        """Wait until the VM's unit is at rest."""
        end = await self._units.wait_end(vm_id)
        return Power.OFF if vm_id in self._pulled else end.power

    async def power(self, vm_ids: list[str]) -> dict[str, Power]:
        """The power of each of these VMs."""
        if len(vm_ids) == 1:  # of all that there are, most of them others' business
            return {vm_id: find_power(await self._units.state(vm_id)) for vm_id in vm_ids}
        states = await self._units.states()
        return {vm_id: find_power(states.get(vm_id, "inactive")) for vm_id in vm_ids}

    async def remove(self, vm_id: str) -> None:
        """Remove all that the VM has on this host but its journal."""
        # systemd, busy with tidying up after a VM that was just killed, would be asked for 20 ms. Whoever starts the
        # unit by hand within this moment loses its disk, as a moment later.
        if vm_id not in self._ended or self._units.may_be_on(vm_id):
            await self._clear_unit(vm_id)
        self._ended.discard(vm_id)
        with _as_hypervisor_error(f"VM {vm_id} could not be removed"):
            await asyncio.to_thread(files.remove, self._layout, vm_id)
        self._network.release(vm_id)

    async def list_remains(self) -> set[str]:
        """The ids of all VMs of which anything is on this host."""
        states = await self._units.states()
        limited = await self._units.find_tidy(self._units.find_limited())  # of others systemd lifts them in this moment
        units = {vm_id for vm_id, state in states.items() if state != "inactive"} | limited
        return {vm_id for vm_id in units if names.is_vm_id(vm_id)} | files.find_ids(self._layout)

    async def bases(self) -> set[str]:
        """The digests of the images on which the disks stand that are on this host."""
        return await asyncio.to_thread(images.find_bases, self._layout.homes)

    async def console_tail(self, vm_id: str, lines: int) -> list[str]:
        """The last lines of the VM's console."""
        return await asyncio.to_thread(console.read_lines, self._layout.vm(vm_id).console, lines)

    async def reached(self, vm_id: str) -> list[Milestone]:
        """How far the VM has come since it was started."""
        if (await self.power([vm_id]))[vm_id] is not Power.ON:
            return []
        paths, nic = self._layout.vm(vm_id), self.nic(vm_id)
        found = await asyncio.to_thread(reached.look, paths, self._config.leases, nic.mac)
        if nic.source == "guest-agent":
            await self._learnt.refresh(vm_id)
            found += ["ip"] if self._learnt.get(vm_id) else []
        if await reached.greets(functools.partial(self.dial, vm_id)):
            found.append("ssh")
        return reached.in_order(found)

    def nic(self, vm_id: str) -> Nic:
        """The VM's network interface; a guest behind QEMU's own network has no address that its host could reach."""
        nic = self._network.nic(vm_id, argv.finalize_mac(vm_id))
        return replace(nic, addresses=self._learnt.get(vm_id)) if nic.source == "guest-agent" else nic

    def port_conflict(self, spec: CreateVm) -> str:
        """Why the VM's ports can't be published on this host; '' if they can."""
        return self._network.port_conflict(spec)

    async def open_console(self, vm_id: str) -> tuple[StreamReader, StreamWriter]:
        """Connect to the VM's serial console."""
        return await console.connect(self._layout.vm(vm_id).console_socket, vm_id)

    async def resize_console(self, vm_id: str, columns: int, lines: int) -> None:
        """Tell the guest's agent, if there is one that listens."""
        try:
            await guest_agent.resize_console(self._layout.vm(vm_id).guest_agent, columns, lines)
        except guest_agent.GuestSilent as error:
            _log.debug("VM %s: its console has the size that it had: %s", vm_id, error)

    async def dial(self, vm_id: str, port: int) -> tuple[StreamReader, StreamWriter]:
        """Connect to a TCP port of the guest."""
        nic = self.nic(vm_id)
        if nic.source == "guest-agent":
            return await learnt.dial(vm_id, nic, port)
        return await pipes.dial(vm_id, pipes.find_dialable(nic.addresses), port)

    def changes(self) -> AsyncIterator[PowerChange]:
        """VMs that come to rest from now on. A start that fails says so itself, and is none."""
        queue: asyncio.Queue[PowerChange] = asyncio.Queue()
        self._listeners.append(queue)
        return self._listen(queue)

    # -- guests

    async def _ask_guest(self, vm_id: str) -> tuple[str, ...]:
        return await guest_agent.ask_addresses(self._layout.vm(vm_id).guest_agent, argv.finalize_mac(vm_id))

    async def _find_on(self) -> list[str]:
        return [vm_id for vm_id, state in (await self._units.states()).items() if state == "active"]

    # -- disks

    async def _is_on(self, vm_id: str) -> bool:
        return (await self.power([vm_id]))[vm_id] is Power.ON

    async def _disk(self, vm_id: str) -> dict[str, Any]:
        paths = self._layout.vm(vm_id)
        if await self._is_on(vm_id):
            return await machine.info(paths.agent_monitor)
        return await disks.info(paths.disk, self._layout.images, self._config.build_timeout)

    async def _has_snapshot(self, vm_id: str, name: str) -> bool:
        return any(snapshot.name == name for snapshot in await self.list_snapshots(vm_id))

    async def _clone(self, source: str, paths: VmPaths, image: Image, size: int) -> None:
        if paths.disk.exists():
            return
        disk = self._layout.vm(source).disk
        if not disk.exists():
            raise HypervisorError(f"VM {source}, which is to be cloned, has no disk on this host")
        if await self._is_on(source):
            raise HypervisorError(f"VM {source} is running; only one that is off can be cloned")
        await disks.copy(disk, image, paths.disk, size, self._config.build_timeout)

    # -- starting

    async def _is_up(self, vm_id: str) -> bool:
        """Whether the unit runs. One on its way down is waited for, and that of its tap."""
        unit, tap = unit_name(vm_id), tap_unit_name(vm_id)
        states = await self._units.states_of([unit, tap])
        if states[unit] == "deactivating":
            await self._wait_end(vm_id, self._config.start_timeout)
        elif find_power(states[unit]) is Power.ON:
            return True
        if find_power(states[tap]) is Power.ON:
            await self._units.wait_tidy(vm_id)
        return False

    async def _start_unit(self, vm_id: str, spec: CreateVm, paths: VmPaths) -> None:
        bridged = self._network.bridged
        arguments = argv.finalize_argv(vm_id, spec, paths, self.accelerator or "tcg", bridged=bridged)
        if paths.seed.exists():
            arguments += argv.finalize_seed(paths)
        arguments += argv.finalize_guest_agent(paths)
        with _as_hypervisor_error("its address could not be kept"):
            self._network.take(vm_id)
        net = self._network.finalize_wanted(vm_id, spec, argv.finalize_mac(vm_id))
        with _as_hypervisor_error("its run-time files could not be made"):
            files.prepare_start(self._layout, paths, argv.finalize_env(arguments), net)
            console.make(paths.console)
            reached.set_mark(paths, self._config.leases, self.nic(vm_id).mac)
        # Both at once, the start first: limits that come a moment after it hold just as well.
        results = await asyncio.gather(
            self._units.start(vm_id),
            self._units.set_limits(vm_id, argv.finalize_limits(spec, self.accelerator)),
            return_exceptions=True,
        )
        for error in results:
            if isinstance(error, BaseException):
                raise HypervisorError(_unit_reason(error, await self._units.end(vm_id))) from error

    async def _wait_running(self, vm_id: str, paths: VmPaths) -> None:
        running = asyncio.create_task(monitor.wait_running(paths.agent_monitor))
        ended = asyncio.create_task(self._units.wait_end(vm_id))
        try:
            done, _ = await asyncio.wait(
                {running, ended}, timeout=self._config.start_timeout, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            for task in (running, ended):
                task.cancel()
            await asyncio.gather(running, ended, return_exceptions=True)
        if running in done:
            return
        if ended in done:
            reason = _start_reason(ended.result())
            unit = tap_unit_name(vm_id) if reason == NO_NETWORK else unit_name(vm_id)
            raise HypervisorError(f"QEMU did not come up: {reason} (journalctl -u {unit} has its words)")
        raise HypervisorError(f"QEMU did not answer within {self._config.start_timeout:g} s of its start")

    async def _give_up(self, vm_id: str) -> None:
        try:
            await self.kill(vm_id)
        except HypervisorError as error:
            _log.error("VM %s did not start, and could not be put to rest: %s", vm_id, error)

    # -- stopping

    async def _pull(self, vm_id: str) -> UnitEnd:
        with contextlib.suppress(HypervisorError):
            await monitor.execute(self._layout.vm(vm_id).agent_monitor, "quit", MONITOR_TIMEOUT)
            return await self._wait_end(vm_id, MONITOR_TIMEOUT)
        await self._units.kill(vm_id)
        return await self._wait_end(vm_id, KILL_TIMEOUT)

    async def _wait_end(self, vm_id: str, timeout: float) -> UnitEnd:
        try:
            async with asyncio.timeout(timeout):
                return await self._units.wait_end(vm_id)
        except TimeoutError:
            raise HypervisorError(f"VM {vm_id} is not off after {timeout:g} s") from None

    async def _clear_unit(self, vm_id: str) -> None:
        """Leave nothing of the VM with systemd.

        :raise HypervisorError: when it runs.
        """
        power = (await self.power([vm_id]))[vm_id]
        if power is Power.ON:
            raise HypervisorError(f"VM {vm_id} is running")
        if power is Power.FAILED:
            await self._units.reset_failed(vm_id)
        if vm_id in self._units.find_limited() and await self._units.find_tidy([vm_id]):
            await self._sweep_limits(vm_id)

    async def _sweep_limits(self, vm_id: str) -> None:
        """Remove the limits of a start that was interrupted: only the end of its tap's unit may (they are root's)."""
        self._starting.add(vm_id)
        try:
            with _as_hypervisor_error(f"the limits of VM {vm_id} could not be removed"):
                files.prepare_start(self._layout, self._layout.vm(vm_id), argv.finalize_env(["-version"]))
            await self._units.start(vm_id)
            await self._wait_end(vm_id, KILL_TIMEOUT)
            await self._units.wait_tidy(vm_id)
        finally:
            self._starting.discard(vm_id)

    def _on_end(self, vm_id: str, end: UnitEnd) -> None:
        self._learnt.forget(vm_id)
        self._ended.discard(vm_id)  # of a plug that is being pulled, `kill` notes it after this
        if vm_id in self._starting or not names.is_vm_id(vm_id):
            return
        if vm_id in self._pulled:
            change = PowerChange(vm_id, Power.OFF, PLUG_PULLED)
        else:
            change = PowerChange(vm_id, end.power, finalize_reason(end))
        self._tell(change)

    def _tell(self, change: PowerChange) -> None:
        for queue in self._listeners:
            queue.put_nowait(change)

    async def _listen(self, queue: asyncio.Queue[PowerChange]) -> AsyncIterator[PowerChange]:
        try:
            while True:
                yield await queue.get()
        finally:
            self._listeners.remove(queue)

    # -- consoles

    async def _keep_consoles(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self._cut_consoles)
                await self._stalled.look()
            except (OSError, HypervisorError) as error:
                _log.warning("running VMs could not be looked after: %s", error)
            await asyncio.sleep(CONSOLE_CHECK)

    def _cut_consoles(self) -> None:
        for vm_id in files.find_ids(self._layout):
            paths = self._layout.vm(vm_id)
            if console.is_long(paths.console, self._config.console_limit):
                reached.keep_mark(paths, functools.partial(console.cut, paths.console, self._config.console_limit))


def _unit_reason(error: BaseException, end: UnitEnd) -> str:
    return f"{error}: {finalize_reason(end)}" if end.power is Power.FAILED else str(error)


def _start_reason(end: UnitEnd) -> str:
    return "it ended at once" if end.power is Power.OFF else finalize_reason(end)


@contextlib.contextmanager
def _as_hypervisor_error(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HypervisorError(f"{what}: {error.strerror or error}") from None
