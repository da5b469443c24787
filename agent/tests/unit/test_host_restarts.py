"""The VMs of a host over a hypervisor in memory: what guests do, and what restarts and crashes make of them."""

import asyncio
import logging
from pathlib import Path

import pytest

from aetherscale_agent.journal import Ending, Phase, Record
from aetherscale_agent.ports import HypervisorError, Power, PowerChange
from aetherscale_agent.reconcile import reconcile
from aetherscale_testing.world import (
    DEADLINE,
    ID,
    NOW,
    OTHER,
    World,
    bind,
    came_to_rest,
    create,
    quiet,
    record,
    refusal,
    until,
)


@pytest.fixture
def world(tmp_path: Path) -> World:
    folder = tmp_path / "journal"
    folder.mkdir()
    return World(folder)


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
        await reconcile(again)
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
            await reconcile(host)
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
        assert await reconcile(world.agent()) == (
            "2 VMs: 1 running, 0 to start again, 1 off; 1 deletions finished, 0 remains removed"
        )

    asyncio.run(scenario())


# Reports


def test_how_far_a_vm_has_come_is_said_if_it_is_asked(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def cut_off(_: str) -> list[str]:
        raise HypervisorError("systemd is gone")

    async def scenario() -> None:
        host = await world.started()
        await create(host)
        world.hypervisor.print_on_console(ID, "aetherscale: cloud-init finished after 9.1 s")
        assert (await host.show(ID, 0)).reached == []
        assert (await host.show(ID, 0, reached=True)).reached == ["running", "ip", "cloud-init"]
        world.hypervisor.silent.add(ID)
        assert (await host.show(ID, 0, reached=True)).reached == ["running", "cloud-init"]
        monkeypatch.setattr(world.hypervisor, "reached", cut_off)
        assert "systemd is gone" in (await refusal(host.show(ID, 0, reached=True))).reason
        assert (await host.show(ID, 0)).state == "running"

    asyncio.run(scenario())


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


def test_a_pause_by_hand_is_believed_by_who_asks_for_it(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        vm = await create(host)
        await world.hypervisor.pause(ID)
        await host.look(vm, whether_paused=False)
        assert vm.state == "running"
        await host.look(vm)
        assert vm.state == "paused"

    asyncio.run(scenario())


def test_a_guest_that_stalls_is_shown_with_the_reason(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        vm = await create(host)
        for reason in ("paused: the disk is full", ""):
            await host.came_to_rest(PowerChange(ID, Power.ON, reason))
            assert (vm.state, (await host.show(ID, 0)).reason) == ("running", reason)

    asyncio.run(scenario())
