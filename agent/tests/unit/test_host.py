"""The VMs of a host over a hypervisor in memory: what commands do, what guests do, and what a restart makes of it."""

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from aetherscale_agent import host as host_module
from aetherscale_agent.host import Host, Vm
from aetherscale_agent.journal import Ending, Journal, Phase, Record
from aetherscale_agent.lifecycle import Act, act_on
from aetherscale_agent.ports import HostResources, HypervisorError, Power, PowerChange
from aetherscale_agent.refusals import ending_refusal
from aetherscale_protocol.commands import CreateVm
from aetherscale_protocol.errors import VM_UNKNOWN, Refused
from aetherscale_testing.fakes import FakeHypervisor, FakeImages

ID, OTHER = "sgeqxcfi", "abcdefgh"
NOW, DEADLINE = 1000.0, 1060.0


class World:
    """One machine: its disk, its clock, its guests. Agents come and go on it."""

    def __init__(self, folder: Path) -> None:
        self.now = NOW
        self.boot_id = "boot-1"
        self.images = FakeImages("tiny")
        self.hypervisor = FakeHypervisor(images=self.images, total=HostResources(cpus=8, memory=8192, disk=100))
        self.journal = Journal(folder)
        self.folder = folder

    def agent(self) -> Host:
        """An agent, just started: it has read nothing yet."""
        return Host("h1", self.journal, self.hypervisor, self.images, boot_id=self.boot_id, clock=lambda: self.now)

    async def started(self) -> Host:
        """An agent that has reconciled."""
        host = self.agent()
        await host.reconcile()
        await quiet(host)
        return host

    async def rebooted(self) -> Host:
        """The host loses power and comes back; its agent starts."""
        self.hypervisor.lose_power()
        self.boot_id += "+"
        return await self.started()

    def on_disk(self, vm_id: str = ID) -> Record | None:
        """What the journal holds of a VM."""
        return Journal(self.folder).load(pytest.fail).get(vm_id)

    async def power(self) -> Power:
        return self.hypervisor.power_of(ID)


def record(phase: Phase = "claimed", vm_id: str = ID, **changes: object) -> Record:
    base = Record(
        vm_id=vm_id,
        request_id="r1",
        spec=CreateVm(image="tiny", vm_id=vm_id, memory=512, disk=2),
        deadline=DEADLINE,
        created=NOW,
        since=NOW,
        phase=phase,
    )
    return base.but(**changes)


@pytest.fixture
def world(tmp_path: Path) -> World:
    folder = tmp_path / "journal"
    folder.mkdir()
    return World(folder)


async def quiet(host: Host) -> None:
    """Wait until nothing is under way any more."""
    async with asyncio.timeout(5):
        while host._tasks:
            await asyncio.wait(set(host._tasks))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def bind(host: Host, vm_id: str = ID) -> Vm:
    """What a create does before it is acknowledged."""
    await host.admit(record(vm_id=vm_id))
    await host.bound(vm_id)
    return host.vms[vm_id]


async def create(host: Host, vm_id: str = ID) -> Vm:
    """A VM that runs."""
    vm = await bind(host, vm_id)
    await host.build(host.vms[vm_id])
    return vm


async def refusal(work: Coroutine[Any, Any, object] | asyncio.Task[None]) -> Refused:
    with pytest.raises(Refused) as caught:
        await work
    return caught.value


def forget_to_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)


# Create


def test_a_create_is_journalled_in_three_steps(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        await host.admit(record())
        assert world.on_disk() == record("claimed")
        assert host.find(ID) is None
        assert host.details() == []
        world.now += 1
        await host.bound(ID)
        assert world.on_disk() == record("bound", since=NOW + 1, bound=True)
        assert [row.state for row in host.details()] == ["creating"]
        world.now += 1
        await host.build(host.vms[ID])
        assert world.on_disk() == record("ready", since=NOW + 2, boot_id="boot-1", bound=True)
        assert [row.state for row in host.details()] == ["running"]
        assert await world.power() is Power.ON

    asyncio.run(scenario())


def test_building_again_is_the_same_work(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        await bind(host)
        with world.hypervisor.holding("build"):
            first, second = host.build(host.vms[ID]), host.build(host.vms[ID])
            assert first is second
        await first
        assert host.build(host.vms[ID]) is first
        assert (world.hypervisor.builds[ID], world.hypervisor.boots[ID]) == (1, 1)

    asyncio.run(scenario())


@pytest.mark.parametrize("step", ["build", "start"])
def test_a_build_that_fails_is_undone_to_a_tombstone(world: World, step: str) -> None:
    async def scenario() -> None:
        host = await world.started()
        world.hypervisor.broken[step][ID] = "no such machine type"
        await bind(host)
        error = await refusal(host.build(host.vms[ID]))
        assert (error.code, error.reason) == ("failed", "create-vm: no such machine type")
        assert error.changed
        assert world.hypervisor.disk_of(ID) is None
        on_disk = world.on_disk()
        assert on_disk is not None
        assert (on_disk.phase, on_disk.wanted) == ("gone", "off")
        assert on_disk.ending == Ending(code="failed", reason=error.reason, request_id="r1")
        assert host.find(ID) is None
        assert host.free().memory == 8192
        assert host.buried.is_set()
        assert host.capacity_changed.is_set()

    asyncio.run(scenario())


def test_an_error_that_nobody_expected_is_undone_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def explode(*_args: object) -> None:
        raise ZeroDivisionError

    async def scenario() -> None:
        host = await world.started()
        monkeypatch.setattr(world.hypervisor, "start", explode)
        await bind(host)
        error = await refusal(host.build(host.vms[ID]))
        assert (error.code, world.hypervisor.disk_of(ID)) == ("failed", None)
        assert "log says why" in error.reason

    asyncio.run(scenario())


def test_an_image_that_went_meanwhile_undoes_the_create(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        await bind(host)
        world.images.drop("tiny")
        assert 'Image "tiny" does not exist' in (await refusal(host.build(host.vms[ID]))).reason
        assert host.find(ID) is None

    asyncio.run(scenario())


def test_a_deadline_that_passed_before_the_build_undoes_it_unbuilt(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        await bind(host)
        world.now = DEADLINE + 1
        assert (await refusal(host.build(host.vms[ID]))).code == "deadline-passed"
        assert (world.hypervisor.builds[ID], world.hypervisor.boots[ID]) == (0, 0)
        assert world.on_disk() is not None
        assert host.find(ID) is None

    asyncio.run(scenario())


def test_a_deadline_that_passes_while_the_disk_is_made_undoes_it_unstarted(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        await bind(host)
        with world.hypervisor.holding("build"):
            building = host.build(host.vms[ID])
            await asyncio.sleep(0)
            world.now = DEADLINE + 1
        assert (await refusal(building)).code == "deadline-passed"
        assert (world.hypervisor.boots[ID], world.hypervisor.disk_of(ID)) == (0, None)

    asyncio.run(scenario())


def test_what_a_late_copy_of_an_undone_create_is_told(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        world.hypervisor.broken["start"][ID] = "no such machine type"
        await bind(host)
        told = await refusal(host.build(host.vms[ID]))
        ending = (await world.started()).vms[ID].record.ending
        assert ending is not None
        again = ending_refusal(ending)
        assert (again.code, again.reason, again.hint) == (told.code, told.reason, told.hint)

    asyncio.run(scenario())


def test_a_final_no_is_journalled(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        await host.refuse(record(), Refused("no-host", "no host can take this VM", "hint", {"h2": "full"}))
        on_disk = world.on_disk()
        assert on_disk is not None
        assert on_disk.phase == "gone"
        assert on_disk.ending == Ending(
            code="no-host",
            reason="no host can take this VM",
            hint="hint",
            reasons={"h2": "full"},
            request_id="r1",
        )
        assert host.buried.is_set()

    asyncio.run(scenario())


def test_a_journal_that_is_full_refuses_this_create_and_its_later_copies(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        host = await world.started()
        forget_to_sync(monkeypatch)
        error = await refusal(host.admit(record()))
        assert error.code == "failed"
        assert "No space left" in error.reason
        assert host.vms[ID].record.phase == "gone"
        assert host.vms[ID].record.ending is not None
        assert os.listdir(world.folder) == []

    asyncio.run(scenario())


def test_a_journal_that_fills_up_refuses_before_anything_is_built(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        host = await world.started()
        await host.admit(record())
        forget_to_sync(monkeypatch)
        assert (await refusal(host.bound(ID))).code == "failed"
        assert world.on_disk() == record("claimed")
        assert host.find(ID) is None

    asyncio.run(scenario())


def test_a_create_that_cannot_be_undone_stays_visible_and_can_be_deleted(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        world.hypervisor.broken["start"][ID] = "no such machine type"
        world.hypervisor.broken["remove"][ID] = "read-only disk"
        vm = await bind(host)
        await refusal(host.build(host.vms[ID]))
        assert vm.state == "deleting"
        assert act_on("delete-vm", vm.state) is Act.REMOVE
        world.hypervisor.broken["remove"].clear()
        await host.delete(vm, "r2")
        assert world.hypervisor.disk_of(ID) is None
        assert host.find(ID) is None

    asyncio.run(scenario())


# Capacity


def test_capacity_is_held_from_the_reservation_to_the_tombstone(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        seen = [host.score()]
        host.reserve(ID, record().spec)
        seen.append(host.score())
        await host.admit(record())
        seen.append(host.score())
        await host.bound(ID)
        seen.append(host.score())
        await host.build(host.vms[ID])
        seen.append(host.score())
        await host.delete(host.vms[ID], "r2")
        assert [*seen, host.score()] == [8192, 7680, 7680, 7680, 7680, 8192]

    asyncio.run(scenario())


def test_what_is_reserved_twice_is_counted_once_and_released_once(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        host.reserve(ID, record().spec)
        host.reserve(ID, record().spec)
        assert host.free().memory == 7680
        host.release(ID)
        assert host.free().memory == 8192
        host.capacity_changed.clear()
        host.release(ID)
        assert not host.capacity_changed.is_set()

    asyncio.run(scenario())


def test_a_vm_that_is_off_keeps_its_place(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        vm = await create(host)
        await host.kill(vm)
        assert host.free().memory == 7680

    asyncio.run(scenario())


# Start, stop, kill, delete


def test_a_guest_shuts_down_when_the_button_is_pressed(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        vm = await create(host)
        await host.press(vm)
        assert vm.state == "stopping"
        assert world.on_disk() == vm.record
        assert vm.record.wanted == "off", "an agent that is killed now must not start it again"
        assert await host.settled(vm, 5) == "stopped"
        assert await world.power() is Power.OFF

    asyncio.run(scenario())


def test_a_client_that_waits_no_longer_is_told_how_far_it_is(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        world.hypervisor.deaf.add(ID)
        vm = await create(host)
        await host.press(vm)
        assert await host.settled(vm, 0) == "stopping"
        assert await host.settled(vm, -5) == "stopping"
        await host.kill(vm)

    asyncio.run(scenario())


def test_pressing_twice_is_one_shutdown(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        world.hypervisor.deaf.add(ID)
        vm = await create(host)
        await host.press(vm)
        shutdown = vm.shutdown
        await host.press(vm)
        assert vm.shutdown is shutdown
        await host.kill(vm)

    asyncio.run(scenario())


def test_a_deaf_guest_is_said_to_ignore_the_button_and_runs_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "SHUTDOWN_LIMIT_S", 0.01)
    monkeypatch.setattr(host_module, "PRESS_EVERY_S", 0.004)

    async def scenario() -> None:
        host = await world.started()
        world.hypervisor.deaf.add(ID)
        vm = await create(host)
        await host.press(vm)
        error = await refusal(host.settled(vm, 5))
        assert error.code == "guest-ignored"
        assert "ignored the power button" in error.reason
        assert "--kill" in (error.hint or "")
        assert (vm.state, vm.record.wanted) == ("running", "on")
        assert world.on_disk() == vm.record

    asyncio.run(scenario())


def test_a_guest_that_missed_the_first_press_is_pressed_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "PRESS_EVERY_S", 0.004)

    async def scenario() -> None:
        host = await world.started()
        world.hypervisor.deaf.add(ID)
        vm = await create(host)
        await host.press(vm)
        await asyncio.wait({asyncio.ensure_future(host.settled(vm, 0.002))})
        world.hypervisor.deaf.clear()
        assert await host.settled(vm, 5) == "stopped"

    asyncio.run(scenario())


def test_a_plug_can_be_pulled_while_the_guest_shuts_down(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        world.hypervisor.deaf.add(ID)
        vm = await create(host)
        await host.press(vm)
        await host.kill(vm)
        assert (vm.state, await world.power()) == ("stopped", Power.OFF)
        assert vm.shutdown is not None
        assert vm.shutdown.done()

    asyncio.run(scenario())


def test_a_stopped_vm_starts_again(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        vm = await create(host)
        await host.kill(vm)
        assert (world.on_disk() or record()).wanted == "off"
        await host.start(vm)
        assert (vm.state, await world.power(), world.hypervisor.boots[ID]) == ("running", Power.ON, 2)
        assert (vm.record.wanted, vm.record.boot_id) == ("on", "boot-1")
        assert world.on_disk() == vm.record

    asyncio.run(scenario())


def test_a_start_that_fails_leaves_it_failed_with_the_reason_and_off(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        vm = await create(host)
        await host.kill(vm)
        world.hypervisor.broken["start"][ID] = "no memory"
        error = await refusal(host.start(vm))
        assert (error.code, error.reason) == ("failed", "start-vm: no memory")
        assert (vm.state, vm.record.wanted, vm.record.reason) == ("failed", "off", "no memory")
        assert (await host.show(ID, 0)).reason == "no memory"
        world.hypervisor.broken["start"].clear()
        await host.start(vm)
        assert (vm.state, vm.record.reason) == ("running", "")

    asyncio.run(scenario())


def test_a_kill_that_fails_leaves_it_running(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        vm = await create(host)
        world.hypervisor.broken["kill"][ID] = "no word from systemd"
        assert (await refusal(host.kill(vm))).reason == "stop-vm --kill: no word from systemd"
        assert (vm.state, await world.power()) == ("running", Power.ON)

    asyncio.run(scenario())


@pytest.mark.parametrize("state", ["running", "stopping", "stopped", "failed", "deleting"])
def test_a_vm_is_deleted_whatever_state_it_is_in(world: World, state: str) -> None:
    async def scenario() -> None:
        host = await world.started()
        world.hypervisor.deaf.add(ID)
        vm = await create(host)
        if state == "stopping":
            await host.press(vm)
        elif state == "stopped":
            await host.kill(vm)
        elif state == "failed":
            await came_to_rest(host, world, Power.FAILED)
        elif state == "deleting":
            world.hypervisor.broken["remove"][ID] = "busy"
            await refusal(host.delete(vm, "r2"))
            world.hypervisor.broken["remove"].clear()
        assert vm.state == state
        assert act_on("delete-vm", vm.state) is Act.REMOVE
        await host.delete(vm, "r2")
        assert (world.hypervisor.disk_of(ID), await world.power()) == (None, Power.OFF)
        assert host.find(ID) is None
        assert host.details() == []
        on_disk = world.on_disk()
        assert on_disk is not None
        assert (on_disk.phase, on_disk.deadline) == ("gone", DEADLINE)
        assert on_disk.ending == Ending(code="vm-unknown", reason="VM was deleted", request_id="r2")

    asyncio.run(scenario())


async def came_to_rest(host: Host, world: World, power: Power) -> None:
    if power is Power.FAILED:
        world.hypervisor.qemu_dies(ID, "killed by signal 9")
    else:
        world.hypervisor.guest_powers_off(ID)
    await host.came_to_rest(PowerChange(ID, power, "why"))


@pytest.mark.parametrize("step", ["kill", "remove"])
def test_a_delete_that_fails_says_so_and_can_be_repeated(world: World, step: str) -> None:
    async def scenario() -> None:
        host = await world.started()
        vm = await create(host)
        world.hypervisor.broken[step][ID] = "busy"
        error = await refusal(host.delete(vm, "r2"))
        assert (error.code, error.hint) == ("failed", "repeat it")
        assert [row.state for row in host.details()] == ["deleting"]
        assert act_on("delete-vm", vm.state) is Act.REMOVE, "what the hint says must be possible"
        world.hypervisor.broken[step].clear()
        await host.delete(vm, "r3")
        assert host.find(ID) is None

    asyncio.run(scenario())


def test_a_stop_whose_intent_cannot_be_journalled_changes_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        host = await world.started()
        vm = await create(host)
        before = vm.record
        with monkeypatch.context() as patch:
            forget_to_sync(patch)
            error = await refusal(host.press(vm))
        assert "No space left" in error.reason
        assert (vm.state, vm.record, await world.power()) == ("running", before, Power.ON)
        assert world.on_disk() == before

    asyncio.run(scenario())


def test_the_plug_can_be_pulled_on_a_host_whose_disk_is_full(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        host = await world.started()
        vm = await create(host)
        forget_to_sync(monkeypatch)
        await host.kill(vm)
        assert (vm.state, await world.power()) == ("stopped", Power.OFF)

    asyncio.run(scenario())


def test_a_delete_frees_a_full_disk(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        host = await world.started()
        vm = await create(host)
        sync = os.fsync

        def full_until_removed(descriptor: int) -> None:
            if world.hypervisor.disk_of(ID) is not None:
                raise OSError(28, "No space left on device")
            sync(descriptor)

        monkeypatch.setattr(os, "fsync", full_until_removed)
        await host.delete(vm, "r2")
        on_disk = world.on_disk()
        assert on_disk is not None
        assert (on_disk.phase, host.find(ID)) == ("gone", None)

    asyncio.run(scenario())


def test_a_tombstone_is_forgotten_with_its_file(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        vm = await create(host)
        await host.delete(vm, "r2")
        await host.forget(ID)
        assert (host.vms, world.on_disk()) == ({}, None)
        await host.forget(ID)

    asyncio.run(scenario())


@pytest.mark.parametrize("phase", ["claimed", "gone", None])
def test_neither_a_claim_nor_a_tombstone_is_a_vm(world: World, phase: Phase | None) -> None:
    async def scenario() -> None:
        if phase:
            await world.journal.put(record(phase))
        host = await world.started()
        with pytest.raises(Refused) as caught:
            host.get(ID)
        assert (caught.value.code, caught.value.reason) == ("vm-unknown", VM_UNKNOWN)
        assert (host.details(), host.free().memory) == ([], 8192)

    asyncio.run(scenario())


# What guests do by themselves


@pytest.mark.parametrize(("power", "state"), [(Power.OFF, "stopped"), (Power.FAILED, "failed")])
def test_a_vm_that_came_to_rest_by_itself_is_said_to_be_so(world: World, power: Power, state: str) -> None:
    async def scenario() -> None:
        host = await world.started()
        vm = await create(host)
        watching = asyncio.create_task(host.watch(world.hypervisor.changes()))
        await asyncio.sleep(0)
        if power is Power.OFF:
            world.hypervisor.guest_powers_off(ID)
        else:
            world.hypervisor.qemu_dies(ID)
        await until(lambda: vm.state == state and vm.record.wanted == "off")
        await quiet(host)
        assert world.on_disk() == vm.record
        assert vm.record.reason
        watching.cancel()

    asyncio.run(scenario())


@pytest.mark.parametrize("power", [Power.OFF, Power.FAILED])
def test_a_vm_that_came_to_rest_by_itself_is_not_started_after_a_reboot(world: World, power: Power) -> None:
    async def scenario() -> None:
        host = await world.started()
        await create(host)
        await came_to_rest(host, world, power)
        again = await world.rebooted()
        assert world.hypervisor.boots[ID] == 1
        assert again.vms[ID].state == "stopped"

    asyncio.run(scenario())


def test_old_news_of_a_vm_that_runs_again_changes_nothing(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        vm = await create(host)
        before = vm.record
        await host.came_to_rest(PowerChange(ID, Power.OFF, "old"))
        await host.came_to_rest(PowerChange(OTHER, Power.OFF, "nobody's"))
        assert (vm.state, vm.record) == ("running", before)

    asyncio.run(scenario())


def test_a_guest_that_ends_while_its_start_is_journalled_is_noticed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start holds the VM's line then, and has already seen QEMU run."""

    async def scenario() -> None:
        host = await world.started()
        watching = asyncio.create_task(host.watch(world.hypervisor.changes()))
        vm = await bind(host)
        put = world.journal.put

        async def die_first(written: Record) -> None:
            if written.phase == "ready" and written.wanted == "on":
                world.hypervisor.qemu_dies(ID)
                await asyncio.sleep(0)
            await put(written)

        monkeypatch.setattr(world.journal, "put", die_first)
        await host.build(host.vms[ID])
        await until(lambda: vm.state == "failed")
        watching.cancel()

    asyncio.run(scenario())


def test_a_deleted_vms_last_change_is_not_its_tombstones(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        vm = await create(host)
        async with vm.line:
            late = asyncio.create_task(host.came_to_rest(PowerChange(ID, Power.FAILED, "killed")))
            await asyncio.sleep(0)
            await host.delete(vm, "r2")
        await late
        assert (world.on_disk() or record()).phase == "gone"

    asyncio.run(scenario())


# Restart of the agent: VMs notice nothing


def test_a_new_agent_finds_running_vms_and_does_not_touch_them(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        await create(host)
        await create(host, OTHER)
        await host.kill(host.vms[OTHER])
        before = (world.on_disk(), world.on_disk(OTHER))
        again = await world.started()
        assert [(row.vm_id, row.state) for row in again.details()] == [(OTHER, "stopped"), (ID, "running")]
        assert (world.hypervisor.boots[ID], world.hypervisor.boots[OTHER]) == (1, 1)
        assert (world.on_disk(), world.on_disk(OTHER)) == before

    asyncio.run(scenario())


@pytest.mark.parametrize("gone_wrong", ["nothing", "deadline", "image", "stopped"])
def test_a_create_repeated_after_an_agents_restart_changes_nothing(world: World, gone_wrong: str) -> None:
    """The same request may come again at any time, with a later deadline than the journal's."""

    async def scenario() -> None:
        host = await world.started()
        vm = await create(host)
        if gone_wrong == "deadline":
            world.now = DEADLINE + 100
        elif gone_wrong == "image":
            world.images.drop("tiny")
        elif gone_wrong == "stopped":
            await host.kill(vm)
        before, power = world.on_disk(), await world.power()
        again = await world.started()
        await again.build(again.vms[ID])
        assert world.on_disk() == before
        assert await world.power() is power
        assert (world.hypervisor.boots[ID], world.hypervisor.disk_of(ID)) == (1, 2)

    asyncio.run(scenario())


@pytest.mark.parametrize(("power", "state"), [(Power.OFF, "stopped"), (Power.FAILED, "failed")])
def test_a_vm_that_ended_while_the_agent_was_away_is_not_started(world: World, power: Power, state: str) -> None:
    async def scenario() -> None:
        await create(await world.started())
        if power is Power.OFF:
            world.hypervisor.guest_powers_off(ID)
        else:
            world.hypervisor.qemu_dies(ID)
        again = await world.started()
        vm = again.vms[ID]
        assert (vm.state, vm.record.wanted, world.hypervisor.boots[ID]) == (state, "off", 1)
        assert "while the agent was away" in vm.record.reason
        assert world.on_disk() == vm.record

    asyncio.run(scenario())


def test_a_shutdown_that_was_under_way_goes_on_under_the_next_agent(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        world.hypervisor.deaf.add(ID)
        vm = await create(host)
        await host.press(vm)
        await host._cancel_shutdown(vm)  # as if it had been killed
        world.hypervisor.deaf.clear()
        again = world.agent()
        await again.reconcile()
        assert again.vms[ID].state == "stopping"
        assert await again.settled(again.vms[ID], 5) == "stopped"

    asyncio.run(scenario())


def test_a_start_that_was_cut_short_is_finished(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        vm = await create(host)
        await host.kill(vm)
        with world.hypervisor.holding("start"):
            starting = asyncio.create_task(host.start(vm))
            await until(lambda: vm.state == "starting")
            starting.cancel()
            await asyncio.wait({starting})
        again = await world.started()
        assert (again.vms[ID].state, world.hypervisor.boots[ID]) == ("running", 2)

    asyncio.run(scenario())


# Restart of the host


def test_after_a_reboot_what_ran_runs_and_what_was_stopped_is_stopped(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        await create(host)
        await create(host, OTHER)
        await host.kill(host.vms[OTHER])
        again = await world.rebooted()  # no broker in sight
        assert [(row.vm_id, row.state) for row in again.details()] == [(OTHER, "stopped"), (ID, "running")]
        assert (world.hypervisor.boots[ID], world.hypervisor.boots[OTHER]) == (2, 1)
        assert (world.on_disk() or record()).boot_id == world.boot_id

    asyncio.run(scenario())


def test_every_reboot_starts_it_again_and_no_restart_of_the_agent_does(world: World) -> None:
    async def scenario() -> None:
        await create(await world.started())
        for boots in (2, 3, 4):
            await world.rebooted()
            await world.started()
            assert world.hypervisor.boots[ID] == boots

    asyncio.run(scenario())


def test_a_vm_that_cannot_be_started_after_a_reboot_is_failed_and_the_others_run(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        await create(host)
        await create(host, OTHER)
        world.hypervisor.broken["start"][ID] = "no memory"
        again = await world.rebooted()
        assert [(row.vm_id, row.state) for row in again.details()] == [(OTHER, "running"), (ID, "failed")]

    asyncio.run(scenario())


def test_commands_wait_while_a_vm_is_started_after_a_reboot(world: World) -> None:
    async def scenario() -> None:
        await create(await world.started())
        world.hypervisor.lose_power()
        world.boot_id = "boot-2"
        with world.hypervisor.holding("start"):
            host = world.agent()
            await host.reconcile()
            await until(host.vms[ID].line.locked)
            assert host.vms[ID].state == "starting"
        await quiet(host)
        assert host.vms[ID].state == "running"

    asyncio.run(scenario())


# A crash in every phase


@pytest.mark.parametrize("disk", [False, True])
@pytest.mark.parametrize("phase", ["claimed", "bound", "deleting", "gone"])
def test_a_crash_in_any_phase_is_finished_or_undone(world: World, phase: Phase, disk: bool) -> None:
    async def scenario() -> None:
        if disk:
            host = await world.started()
            await create(host)
        ending = Ending(code="vm-unknown", reason="VM was deleted", request_id="r2") if phase == "gone" else None
        await world.journal.put(record(phase, ending=ending))
        host = await world.started()
        vm = host.vms[ID]
        left = world.hypervisor.disk_of(ID) is not None
        if phase == "bound":
            assert (vm.exists, vm.state, left) == (True, "creating", disk)  # finished when the directory names us
            await host.build(host.vms[ID])
            assert (vm.state, await world.power()) == ("running", Power.ON)
            assert world.hypervisor.builds[ID] == 1
        else:
            assert (vm.exists, left, await world.power()) == (False, False, Power.OFF)
            assert vm.record.phase == ("claimed" if phase == "claimed" else "gone")
            assert world.on_disk() == vm.record

    asyncio.run(scenario())


def test_a_bound_create_whose_deadline_passed_meanwhile_is_undone(world: World) -> None:
    async def scenario() -> None:
        await world.journal.put(record("bound"))
        world.now = DEADLINE + 1
        host = await world.started()
        assert (await refusal(host.build(host.vms[ID]))).code == "deadline-passed"
        assert (world.on_disk() or record()).phase == "gone"

    asyncio.run(scenario())


@pytest.mark.parametrize("step", ["kill", "remove"])
@pytest.mark.parametrize("phase", ["claimed", "deleting", "gone"])
def test_one_vm_that_cannot_be_removed_does_not_stop_the_agent(world: World, phase: Phase, step: str) -> None:
    async def scenario() -> None:
        host = await world.started()
        await create(host)
        await create(host, OTHER)
        await world.journal.put(record(phase))
        world.hypervisor.broken[step][ID] = "busy"
        again = await world.started()
        assert again.vms[OTHER].state == "running"
        world.hypervisor.broken[step].clear()
        await world.started()
        assert world.hypervisor.disk_of(ID) is None

    asyncio.run(scenario())


def test_what_no_record_knows_is_named_and_left_alone(world: World, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        await create(await world.started())
        (world.folder / f"{ID}.json").write_bytes(b"broken")
        with caplog.at_level(logging.WARNING):
            host = await world.started()
        assert host.vms == {}
        assert await world.power() is Power.ON
        assert "left alone" in caplog.text
        assert "set aside" in caplog.text

    asyncio.run(scenario())


def test_what_was_found_is_said_in_one_sentence(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        await create(host)
        await create(host, OTHER)
        await host.kill(host.vms[OTHER])
        await world.journal.put(record("deleting", "zzzzzzzz"))
        assert await world.agent().reconcile() == (
            "2 VMs: 1 running, 0 to start again, 1 off; 1 deletions finished, 0 remains removed"
        )

    asyncio.run(scenario())


# Reports


def test_a_vm_is_shown_with_its_console(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        await world.hypervisor.probe()
        await create(host)
        world.hypervisor.print_on_console(ID, "one", "two", "three")
        report = await host.show(ID, 2)
        assert (report.console, report.host, report.accelerator) == (["two", "three"], "h1", "kvm")
        assert (report.vm_id, report.state, report.memory, report.created) == (ID, "running", 512, NOW)
        assert (await host.show(ID, 0)).console == []
        assert (await refusal(host.show(OTHER, 0))).code == "vm-unknown"

    asyncio.run(scenario())


def test_a_host_reports_what_it_has(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        await create(host)
        await create(host, OTHER)
        await host.kill(host.vms[OTHER])
        report = host.report(["h1", "h2"], "1.0")
        assert (report.cpus, report.cpus_free, report.memory_free, report.disk_free) == (8, 6, 7168, 96)
        assert (report.vms, report.running, report.images, report.fleet) == (2, 1, ["tiny"], ["h1", "h2"])

    asyncio.run(scenario())


def test_a_task_that_fails_is_logged_and_stops_nobody(world: World, caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise HypervisorError("boom")

    async def scenario() -> None:
        host = await world.started()
        host.go_on(fail())
        await quiet(host)
        await create(host)

    asyncio.run(scenario())
    assert "boom" in caplog.text


def test_what_was_done_to_a_unit_by_hand_is_believed(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        vm = await create(host)
        await host.kill(vm)
        await world.hypervisor.start(ID, vm.record.spec)
        await host.look(vm)
        assert (vm.state, vm.record.wanted) == ("running", "on")
        await world.hypervisor.kill(ID)
        await host.look(vm)
        assert (vm.state, vm.record.wanted) == ("stopped", "off")
        before = vm.record
        await host.look(vm)
        assert vm.record is before

    asyncio.run(scenario())
