"""The VMs of this host: what was promised (journal), what is (power), and the work that turns one into the other.

It knows no broker. Commands of one VM run in its line, one after the other; nothing else waits for them.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from weakref import WeakValueDictionary

from aetherscale_agent import capacity, courses, drain, reports
from aetherscale_agent.alter import Alterer, clone_misfit, overtaken
from aetherscale_agent.asked import UNASKED, Asked, ended, ended_alone
from aetherscale_agent.at_work import time_at_work
from aetherscale_agent.decide import too_late
from aetherscale_agent.erase import Eraser
from aetherscale_agent.images import base_of, wanted
from aetherscale_agent.journal import Done, Ending, Journal, JournalError, Record
from aetherscale_agent.ports import Hypervisor, HypervisorError, Image, Images, Power, PowerChange
from aetherscale_agent.records import Records
from aetherscale_agent.refusals import because, ending_of, ending_refusal, failed, ignored, unwritten
from aetherscale_agent.steps import step
from aetherscale_agent.succession import fall_back, with_refused
from aetherscale_agent.vm import Vm
from aetherscale_protocol.answers import HostReport, VmDetails, VmReport, VmState
from aetherscale_protocol.errors import VM_UNKNOWN, Refused
from aetherscale_protocol.options import CreateVm

log = logging.getLogger(__name__)

SHUTDOWN_LIMIT_S = 50.0
"""How long a guest may take to shut down before it is said to ignore the power button."""
PRESS_EVERY_S = 4.0
"""A guest that was still booting misses the first press; so it is pressed again."""
NEW_BROKER = "new-broker"
DELETED = "VM was deleted"
MOST_WAITING = 16
"""How many commands may wait in one VM's line: they hold the host's prefetch, which all VMs share."""


class Host:
    """All VMs of this host."""

    def __init__(
        self,
        name: str,
        journal: Journal,
        hypervisor: Hypervisor,
        images: Images,
        *,
        boot_id: str,
        clock: Callable[[], float] = time.time,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.labels = dict(labels or {})
        self.images = images
        self.hypervisor = hypervisor
        self.clock = clock
        self.vms: dict[str, Vm] = {}
        self.capacity_changed = asyncio.Event()
        self.buried = asyncio.Event()  #: some VM became a tombstone
        self.journal = journal
        self.boot_id = boot_id
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.reserved: dict[str, CreateVm] = {}  #: of creates in hand
        self._tasks: set[asyncio.Task[None]] = set()
        self._records = Records(journal, self.vms)
        self.alterer = Alterer(self, self._records)
        self._eraser = Eraser(self._records, journal, hypervisor, clock)
        self._commands: set[asyncio.Task[None]] = set()  #: those of them that somebody waits for

    # What is there, and what fits

    def find(self, vm_id: str) -> Vm | None:
        """The VM of this id, if this host has one."""
        vm = self.vms.get(vm_id)
        return vm if vm is not None and vm.exists else None

    def get(self, vm_id: str) -> Vm:
        """The VM of this id.

        :raise Refused: `vm-unknown`, in the seed's words.
        """
        vm = self.find(vm_id)
        if vm is None:
            raise Refused("vm-unknown", VM_UNKNOWN, "list-vms shows the VMs that there are")
        return vm

    def turn(self, vm_id: str) -> asyncio.Lock:
        """Held by whoever settles whether an id is known here: one copy of a create, or a tombstone's burial."""
        return self._turns.setdefault(vm_id, asyncio.Lock())  # lives while somebody holds it, or waits for it

    def free(self) -> capacity.Free:
        """What is left for new VMs; what creates in hand have reserved is counted."""
        return capacity.free(self.hypervisor.resources(), self.promised())

    def promised(self) -> list[CreateVm]:
        """The VMs that are here, and those in hand."""
        return [*(vm.promised or vm.record.spec for vm in self.vms.values() if vm.exists), *self.reserved.values()]

    def find_image(self, spec: CreateVm) -> Image | None:
        """The base image that this VM wants, if it is here."""
        return wanted(self.images, spec, self.find(spec.clone_of or ""))

    def misfit(self, spec: CreateVm) -> Refused | None:
        """Why this VM can't be taken now, or None."""
        overhead = self.hypervisor.resources().vm_overhead
        return (
            drain.misfit(self.journal, self.name)
            or capacity.misplaced(spec, self.name, self.labels)
            or capacity.port_taken(spec, self.promised(), self.hypervisor.port_conflict(spec))
            or clone_misfit(self, spec)
            or capacity.misfit(spec, self.find_image(spec), self.free(), overhead)
        )

    def score(self) -> int:
        """How well a VM could be taken now; higher is better."""
        return capacity.score(self.free())

    def count_alike(self, spec: CreateVm) -> int:
        """How many VMs there are here, those in hand included, that a create wants to be away from, or near."""
        return capacity.count_alike(spec, self.promised())

    def reserve(self, vm_id: str, spec: CreateVm) -> None:
        """Hold capacity for a create in hand."""
        self.reserved[vm_id] = spec

    def release(self, vm_id: str) -> None:
        """Let go of what was reserved, if anything was."""
        if self.reserved.pop(vm_id, None) is not None:
            self.capacity_changed.set()

    # Reports

    def details(self) -> list[VmDetails]:
        """A row for each VM, by id."""
        return [
            reports.vm_details(vm, self.hypervisor.nic(vm_id)) for vm_id, vm in sorted(self.vms.items()) if vm.exists
        ]

    async def show(self, vm_id: str, console_lines: int, *, reached: bool = False) -> VmReport:
        """All that there is to say about a VM; how far it has come only if that is asked.

        :raise Refused: `vm-unknown`; `failed`, when it can't be found out how far it has come.
        """
        vm = self.get(vm_id)
        console = await self.hypervisor.console_tail(vm_id, console_lines) if console_lines else []
        try:
            milestones = await self.hypervisor.reached(vm_id) if reached else []
        except HypervisorError as error:
            raise failed("looking how far the VM has come", error) from None
        nic, accelerator = self.hypervisor.nic(vm_id), self.hypervisor.accelerator
        return reports.vm_report(vm, nic, self.name, accelerator, console, milestones)

    def report(self, fleet: list[str], version: str) -> HostReport:
        """What this host has, and what is free."""
        existing = [vm for vm in self.vms.values() if vm.exists]
        total = self.hypervisor.resources()
        images, accelerator = sorted(self.images.list()), self.hypervisor.accelerator
        report = reports.host_report(self.name, total, self.free(), existing, images, accelerator, fleet, version)
        return reports.with_standing(report, self.labels, drained=drain.is_drained(self.journal))

    # Journal

    async def settle(self, vm: Vm, state: VmState, error: Refused | None = None, **changes: object) -> None:
        """Enter a state and journal it, now or later. What was at work on the VM is over; `error`: it failed so."""
        log.info("VM %s: %s -> %s%s", vm.record.vm_id, vm.state, state, because(changes.get("reason")))
        vm.state = state
        now = self.clock()
        await self._records.change(
            vm, lambda r: r.but(since=now, paused=state == "paused", **{"done": _ended(r, error, changes), **changes})
        )

    async def note(self, vm: Vm, asked: Asked, error: Refused | None = None) -> None:
        """Remember the outcome of a command that changed nothing: asked again, it changes nothing either.

        In the journal too: what it met may have changed by the time a copy comes to an agent that was restarted.
        """
        now = self.clock()

        def noted(record: Record) -> Record:
            record = record.but(done=asked.begun(record, now))
            return record.but(done=ended_alone(record, asked.request_id, error))

        if asked.request_id:
            await self._records.change(vm, noted)

    # Create

    async def admit(self, record: Record) -> None:
        """Journal a claimed id, before it is bound.

        :raise Refused: `failed`, when the journal can't be written; later copies are refused then, too.
        """
        refusal = None
        try:
            await self.journal.put(record)
        except JournalError as error:
            refusal = unwritten(error)
            record = record.but(phase="gone", ending=ending_of(refusal, record.request_id))
            self.buried.set()
            raise refusal from None
        finally:
            vm = self.vms[record.vm_id] = Vm(record, "creating")
            if refusal is not None:
                self._records.write_later(vm)

    async def bound(self, vm_id: str) -> None:
        """Journal that the directory names this host for the id.

        :raise Refused: `failed`, when the journal can't be written; it is a tombstone then.
        """
        vm = self.vms[vm_id]
        try:
            await self._records.write(vm, phase="bound", bound=True, since=self.clock())
        except JournalError as error:
            refusal = unwritten(error)
            vm.record = vm.record.but(phase="gone", bound=True, ending=ending_of(refusal, vm.record.request_id))
            self._records.write_later(vm)
            self.buried.set()
            raise refusal from None
        self.release(vm_id)

    def build(self, vm: Vm) -> asyncio.Task[None]:
        """Build a bound VM, whether or not somebody waits for it. Called again, it is the same work.

        The task raises `Refused` when the VM could not be built; it is undone then.
        """
        if vm.built is None:
            vm.built = self.spawn(self._build(vm))
        return vm.built

    async def _build(self, vm: Vm) -> None:
        async with vm.line:
            record = vm.record
            if record.ending is not None:
                raise ending_refusal(record.ending)  # it was deleted while this create waited for it
            if record.phase != "bound":
                return  # built by an agent before this one: a create that is repeated changes nothing
            try:
                await self._make(vm)
            except (HypervisorError, Refused, JournalError) as error:
                refusal = error if isinstance(error, Refused) else failed("create-vm", error)
                raise await self._undo(vm, refusal) from None
            except Exception:
                log.exception("VM %s: create failed", record.vm_id)
                refusal = Refused("failed", f"create-vm failed on host {self.name}; its log says why")
                raise await self._undo(vm, refusal) from None

    async def _make(self, vm: Vm) -> None:
        spent = 0.0  # begun in time, a copy may take as long as it takes
        for name in courses.BUILD:
            if name in courses.DUE:
                self.check_deadline(vm.record.deadline + spent)
            with step(name, vm.record.vm_id):
                spent += await time_at_work(self._take_build(name, vm), self.clock)
        log.info("VM %s: created, running", vm.record.vm_id)

    async def _take_build(self, name: str, vm: Vm) -> None:
        record = vm.record
        match name:
            case "build.disk":
                image = base_of(record, self.find_image(record.spec))
                if image.sha256 != record.image_sha256:
                    await self._records.write(vm, image_sha256=image.sha256)
                async with self.alterer.source_of(record.spec):
                    self.check_deadline(record.deadline)
                    await self.hypervisor.build(record.vm_id, record.spec, image)
            case "build.seed":
                await self.hypervisor.seed(record.vm_id, record.spec, record.instance)
            case "build.start":
                await self.hypervisor.start(record.vm_id, record.spec)
            case "build.journal":
                await self._records.write(vm, phase="ready", wanted="on", boot_id=self.boot_id, since=self.clock())
                vm.state = "running"
            case _:
                raise AssertionError(f"no way to take {name}")

    def check_deadline(self, deadline: float | None) -> None:
        """Nothing, if what has this deadline may still be begun.

        :raise Refused: `deadline-passed` otherwise.
        """
        now = self.clock()
        if deadline is not None and now > deadline:
            raise too_late(self.name, deadline, now)

    async def _undo(self, vm: Vm, error: Refused) -> Refused:
        """Undo a create that failed; what to say of it."""
        log.warning("VM %s: create undone: %s", vm.record.vm_id, error.reason)
        if await self.erase(vm, ending_of(error, vm.record.request_id)):
            return error
        return Refused("failed", f"{error.reason}; something of the VM is left on host {self.name}", "delete-vm it")

    async def refuse(self, record: Record, error: Refused) -> None:
        """Journal a final no, so that a late copy of the create meets it.

        :raise Refused: `failed`, when the journal can't be written.
        """
        await self.admit(record.but(phase="gone", ending=ending_of(error, record.request_id)))
        self.buried.set()

    async def remember_refused(self, vm_id: str, request_id: str, deadline: float, error: Refused) -> None:
        """Journal, now or later, that a create was refused because this VM has its id."""
        vm, now = self.vms[vm_id], self.clock()
        await self._records.change(vm, lambda r: with_refused(r, request_id, deadline, error, now))

    async def prolong(self, vm_id: str, deadline: float) -> None:
        """Journal, now or later, that a create was asked again: it, and its tombstone, last until that deadline."""
        vm = self.vms[vm_id]
        await self._records.change(vm, lambda r: r.but(deadline=max(deadline, r.deadline)))

    # Start, stop, delete: called by who holds the VM's line

    async def look(self, vm: Vm, *, whether_paused: bool = True) -> None:
        """Believe systemd, not memory: somebody may have started or stopped the VM's unit by hand, or paused the VM.

        :raise Refused: `failed`, when systemd can't be asked; nothing was changed.
        """
        if vm.state not in ("running", "paused", "stopped", "failed"):
            return  # a shutdown is under way and will see for itself, or work got stuck
        try:
            power = (await self.hypervisor.power([vm.record.vm_id])).get(vm.record.vm_id, Power.OFF)
        except HypervisorError as error:
            raise failed("looking at the VM's unit", error) from None
        is_on, was_on = power is Power.ON, vm.state in ("running", "paused")
        if was_on and not is_on:
            await self._came_to_rest(vm, power, "stopped by hand on its host, or by its guest")
        elif is_on and not was_on:
            await self.settle(vm, "running", wanted="on", boot_id=self.boot_id, reason="started by hand on its host")
        elif is_on and whether_paused:
            await self.alterer.look_whether_paused(vm)

    async def start(self, vm: Vm, asked: Asked = UNASKED) -> None:
        """Start a VM that is off.

        :raise Refused: `failed`, when QEMU does not come up, or the journal can't be written; `deadline-passed`, when
            the deadline passed while the intent was written, or before an agent came back to a start that was cut off.
        """
        vm_id = vm.record.vm_id
        start_by = asked.deadline or vm.record.start_by
        try:
            self.check_deadline(start_by or None)
            with step("start.journal", vm_id):
                # without a boot id: an agent that is killed in between starts it again when it comes back in time
                done = asked.begun(vm.record, self.clock())
                await self._records.write(
                    vm, wanted="on", boot_id="", start_by=start_by, since=self.clock(), reason="", done=done
                )
            self.check_deadline(start_by or None)  # again: it may have been frozen meanwhile
            vm.state = "starting"
            with step("start.qemu", vm_id):
                await self.hypervisor.start(vm_id, vm.record.spec)
        except Refused as late:
            await self.settle(vm, "stopped", late, wanted="off", start_by=0.0, reason=late.reason)
            raise
        except Exception as error:
            if not isinstance(error, HypervisorError | JournalError):
                log.exception("VM %s: start failed", vm_id)
            refusal = failed("start-vm", error)
            await self.note(vm, asked, refusal)  # its intent, too, may be what could not be written
            await self.settle(vm, "failed", refusal, wanted="off", start_by=0.0, reason=str(error))
            raise refusal from None
        with step("start.settle", vm_id):
            await self.settle(vm, "running", boot_id=self.boot_id, start_by=0.0)

    async def press(self, vm: Vm, asked: Asked = UNASKED) -> None:
        """Begin to shut a VM down by its power button; `settled` tells how it went on.

        :raise Refused: `failed`, when the journal can't be written; nothing was changed.
        """
        joins = vm.shutdown is not None and not vm.shutdown.done()
        if joins and vm.record.altering is None:
            async with vm.pen:  # it ends with the shutdown that it joins, and is journalled with its outcome
                vm.record = vm.record.but(done=asked.begun(vm.record, self.clock()))
            return
        try:
            with step("stop.journal", vm.record.vm_id):
                over, now = overtaken(vm.record), self.clock()
                changes = {"altering": None, "done": asked.begun(over, now), "since": now}
                await self._records.write(vm, wanted="off", pulled=False, reason="", **changes)
        except JournalError as error:
            refusal = failed("stop-vm", error)
            await self.note(vm, asked, refusal)
            raise refusal from None
        if not joins:
            self.begin_shutdown(vm)

    def begin_shutdown(self, vm: Vm) -> None:
        """Press the power button until the guest is off, or has ignored it for long."""
        log.info("VM %s: %s -> stopping", vm.record.vm_id, vm.state)
        vm.state = "stopping"
        vm.shutdown = self.spawn(self._shut_down(vm))

    async def _shut_down(self, vm: Vm) -> None:
        vm_id = vm.record.vm_id
        off = asyncio.create_task(self.hypervisor.wait_off(vm_id))
        limit = time.monotonic() + SHUTDOWN_LIMIT_S
        try:
            while not off.done() and time.monotonic() < limit:
                try:
                    with step("stop.press", vm_id):
                        await self.hypervisor.press_power_button(vm_id)
                except HypervisorError as error:
                    log.warning("VM %s: power button: %s", vm_id, error)
                with step("stop.off", vm_id):
                    await asyncio.wait({off}, timeout=min(PRESS_EVERY_S, max(0.0, limit - time.monotonic())))
            if off.done():
                with step("stop.settle", vm_id):
                    await self._came_to_rest(vm, off.result(), "")
            else:
                await self._go_on_running(vm, f"the guest ignored the power button for {SHUTDOWN_LIMIT_S:.0f} s")
        except HypervisorError as error:
            await self._go_on_running(vm, f"whether it is off can't be told: {error}")
        finally:
            off.cancel()

    async def _go_on_running(self, vm: Vm, why: str) -> None:
        await self.settle(vm, "running", ignored(why), wanted="on", reason=why)

    async def settled(self, vm: Vm, patience_s: float) -> VmState:
        """The state of a VM that is being shut down, when that is over, or after so many seconds.

        :raise Refused: `guest-ignored`, when the guest took no notice of the power button; it still runs.
        """
        shutdown = vm.shutdown
        if shutdown is not None:
            await asyncio.wait({shutdown}, timeout=max(0.0, patience_s))
            if shutdown.cancelled():  # by a command that pulls the plug: see how that ends
                async with vm.line:
                    return vm.state if vm.exists else "stopped"
        if vm.state == "running":
            raise ignored(vm.record.reason or "the guest runs again")
        return vm.state

    async def kill(self, vm: Vm, asked: Asked = UNASKED) -> None:
        """Pull the plug; the VM is off when this returns.

        :raise Refused: `failed`, when it can't be killed.
        """
        await self._cancel_shutdown(vm)
        vm_id = vm.record.vm_id
        now = self.clock()
        with step("kill.journal", vm_id):  # a full disk does not stop this
            await self._records.change(
                vm,
                lambda r: overtaken(r).but(
                    wanted="off", pulled=True, since=now, reason="", done=asked.begun(overtaken(r), now)
                ),
            )
        try:
            with step("kill.qemu", vm_id):
                await self.hypervisor.kill(vm_id)
        except HypervisorError as error:
            vm.state = "running"  # as far as anybody knows; the next command finds out
            refusal = failed("stop-vm --kill", error)
            await self.note(vm, asked, refusal)
            raise refusal from None
        with step("kill.settle", vm_id):
            await self.settle(vm, "stopped", wanted="off", pulled=False)

    async def kill_again(self, vm: Vm) -> None:
        """Pull the plug that an agent before this one was about to pull."""
        async with vm.line:
            try:
                await self.kill(vm)
            except Refused as error:
                log.error("VM %s: %s", vm.record.vm_id, error.reason)

    async def delete(self, vm: Vm, request_id: str, deadline: float | None = None, reason: str = DELETED) -> None:
        """Remove a VM and its disk, whatever state it is in.

        A tombstone stays until its create's deadline, and until this one: whoever asks again is told that it was done.

        :raise Refused: `failed`, when something could not be removed; it is tried again when the agent starts.
        """
        await self._cancel_shutdown(vm)
        vm.state = "deleting"
        ending = Ending(code="vm-unknown", reason=reason, request_id=request_id)
        if not await self.erase(vm, ending, until=deadline or 0.0):
            raise Refused("failed", f"delete-vm: something of the VM is left on host {self.name}", "repeat it")

    async def erase(self, vm: Vm, ending: Ending, *, until: float = 0.0) -> bool:
        """Remove a VM, leaving a tombstone (at least `until` then); False if something of it is left."""
        if not await self._eraser.erase(vm, ending, until):
            return False
        self.capacity_changed.set()
        self.buried.set()
        return True

    async def set_bound(self, vm: Vm, bound: bool) -> None:
        """Journal, now or later, whether the directory may name this host for a VM."""
        if self.vms.get(vm.record.vm_id) is vm:  # it may have been buried while the broker was asked
            await self._records.change(vm, lambda r: r.but(bound=bound))

    def give_up(self, vm: Vm) -> None:
        """Undo a create that is not built, because another host turned out to hold its id."""
        if vm.built is None:
            error = Refused("outcome-unknown", "another host holds this VM id", "ask with show-vm")
            vm.built = self.spawn(self._give_up(vm, error))

    async def _give_up(self, vm: Vm, error: Refused) -> None:
        async with vm.line:
            if vm.record.ending is not None:
                raise ending_refusal(vm.record.ending)  # it was deleted while this waited
            raise await self._undo(vm, error)

    @property
    def new_broker(self) -> bool:
        """Whether this host found a broker that did not know it, and has taken no creates since."""
        return self.journal.has_mark(NEW_BROKER)

    def note_new_broker(self) -> None:
        """The broker does not know this host; remembered on disk, because the agent may die before it takes creates."""
        self.journal.mark(NEW_BROKER)

    def settle_in(self) -> None:
        """The broker is new no more: this host takes creates."""
        self.journal.unmark(NEW_BROKER)

    async def forget(self, vm_id: str) -> None:
        """Drop the record of a claim or a tombstone, after its binding is gone."""
        vm = self.vms.get(vm_id)
        if vm is None:
            return
        async with vm.pen:
            rest = fall_back(vm.record, self.clock())
            try:
                await (self.journal.drop(vm_id) if rest is None else self.journal.put(rest))
            except JournalError as error:
                log.error("VM %s: %s", vm_id, error)
                return
            if rest is None:
                del self.vms[vm_id]
            else:
                self.vms[vm_id] = Vm(rest, "creating")
                self.buried.set()

    async def _cancel_shutdown(self, vm: Vm) -> None:
        if vm.shutdown is not None:
            vm.shutdown.cancel()
            await asyncio.wait({vm.shutdown})

    # What happens without a command

    async def watch(self, changes: AsyncIterator[PowerChange]) -> None:
        """Follow the guests' own comings to rest, until cancelled."""
        async for change in changes:
            self.spawn(self.came_to_rest(change))

    async def came_to_rest(self, change: PowerChange) -> None:
        """A unit came to rest, by whatever cause: if nobody asked for it, the VM's state follows."""
        vm = self.find(change.vm_id)
        if vm is None:
            return
        if change.power is Power.ON:
            async with vm.pen:
                vm.record = vm.record.but(reason=change.reason)  # for show-vm; a restart looks again
            return
        async with vm.line:  # a command at work may have started it just now: it ended after that
            if not vm.exists or vm.state not in ("running", "paused"):
                return  # that command, or a shutdown, saw to it
            if (await self.hypervisor.power([change.vm_id])).get(change.vm_id) is Power.ON:
                return  # old news: it was started again since
            await self._came_to_rest(vm, change.power, change.reason)

    async def _came_to_rest(self, vm: Vm, power: Power, reason: str) -> None:
        state: VmState = "failed" if power is Power.FAILED and vm.state != "stopping" else "stopped"
        await self.settle(vm, state, wanted="off", reason=reason)

    # Work that goes on

    def go_on(self, work: Awaitable[None]) -> asyncio.Task[None]:
        """Let a command's work go on whoever waits for it, and whether or not the broker is there."""
        task = self.spawn(work)
        self._commands.add(task)
        task.add_done_callback(self._commands.discard)
        return task

    async def drain(self, seconds: float) -> None:
        """Let the commands under way end, for so many seconds at most."""
        if self._commands:
            await asyncio.wait(set(self._commands), timeout=seconds)

    def spawn(self, work: Awaitable[None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, Refused):
            log.error("a task failed", exc_info=error)


def _ended(record: Record, error: Refused | None, changes: dict[str, object]) -> tuple[Done, ...]:
    return ended(record.but(altering=None) if "altering" in changes else record, error)
