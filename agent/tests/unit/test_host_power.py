"""The VMs of a host over a hypervisor in memory: how they start, stop and are deleted."""

import asyncio
import os
from pathlib import Path

import pytest

from aetherscale_agent import host as host_module
from aetherscale_agent.journal import Ending
from aetherscale_agent.lifecycle import Act, act_on
from aetherscale_agent.ports import Power
from aetherscale_testing.world import (
    DEADLINE,
    ID,
    World,
    came_to_rest,
    create,
    forget_to_sync,
    record,
    refusal,
)


@pytest.fixture
def world(tmp_path: Path) -> World:
    folder = tmp_path / "journal"
    folder.mkdir()
    return World(folder)


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
