"""The VMs of a host over a hypervisor in memory: how they are made, and what counts as one."""

import asyncio
import os
from pathlib import Path

import msgspec
import pytest

from aetherscale_agent import at_work, records
from aetherscale_agent.journal import Ending, Phase
from aetherscale_agent.lifecycle import Act, act_on
from aetherscale_agent.ports import Power
from aetherscale_agent.refusals import ending_refusal
from aetherscale_protocol.errors import VM_UNKNOWN, Refused
from aetherscale_testing.world import (
    DEADLINE,
    ID,
    NOW,
    OTHER,
    World,
    bind,
    create,
    forget_to_sync,
    record,
    refusal,
    until,
)


@pytest.fixture
def world(tmp_path: Path) -> World:
    folder = tmp_path / "journal"
    folder.mkdir()
    return World(folder)


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


def test_a_vms_seed_names_its_instance_which_is_not_that_of_a_vm_before_it(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        await create(host)
        report = await host.show(ID, 0)
        assert report.instance == world.hypervisor.seeds[ID] == f"{ID}-r1"
        assert record("ready").but(request_id="0123456789abcdef").instance == f"{ID}-01234567"

    asyncio.run(scenario())


@pytest.mark.parametrize("step", ["build", "seed", "start"])
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


def test_a_disk_whose_copy_outlasts_the_deadline_is_not_thrown_away(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(at_work, "LOOK_EVERY_S", 0.001)

    async def scenario() -> None:
        host = await world.started()
        await bind(host)
        with world.hypervisor.holding("build"):
            building = host.build(host.vms[ID])
            while world.now < DEADLINE + 100:
                world.now += 1
                await asyncio.sleep(0.004)
        await building
        assert (world.hypervisor.boots[ID], host.vms[ID].state) == (1, "running")

    asyncio.run(scenario())


def test_a_copy_that_outlasted_the_deadline_is_undone_by_the_next_agent(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        await bind(host)
        with world.hypervisor.holding("seed"):  # the disk is made
            building = host.build(host.vms[ID])
            await until(lambda: world.hypervisor.disk_of(ID) is not None)
            building.cancel()
            await asyncio.wait({building})
        world.now = DEADLINE + 1
        again = await world.started()
        assert (await refusal(again.build(again.vms[ID]))).code == "deadline-passed"
        assert (world.hypervisor.boots[ID], world.hypervisor.disk_of(ID)) == (0, None)

    asyncio.run(scenario())


def test_a_clone_that_waited_too_long_for_its_source_is_not_begun(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        source = await create(host, OTHER)
        await host.kill(source)
        spec = msgspec.structs.replace(record().spec, clone_of=OTHER)
        await host.admit(record(spec=spec))
        await host.bound(ID)
        async with source.line:
            building = host.build(host.vms[ID])
            await asyncio.sleep(0.01)
            world.now = DEADLINE + 1
        assert (await refusal(building)).code == "deadline-passed"
        assert world.hypervisor.builds[ID] == 0

    asyncio.run(scenario())


def test_an_agent_that_is_frozen_beyond_the_deadline_while_the_disk_is_made_undoes_it(world: World) -> None:
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


def test_a_plug_that_was_pulled_on_a_full_disk_is_journalled_when_there_is_space(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the VM would be started again when the host boots next, although its caller was told that it is off."""
    monkeypatch.setattr(records, "WRITE_AGAIN_S", 0.0)

    async def scenario() -> None:
        host = await world.started()
        vm = await create(host)
        with monkeypatch.context() as patch:
            forget_to_sync(patch)
            await host.kill(vm)
            known = world.on_disk()
            assert known is not None
            assert known.wanted == "on"
        async with asyncio.timeout(5):
            await asyncio.wait(set(host._records._later))
        known = world.on_disk()
        assert known is not None
        assert known.wanted == "off"

    asyncio.run(scenario())


def test_a_create_that_is_asked_again_while_it_is_built_loses_nothing_of_what_was_built(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        vm = await bind(host)
        with world.hypervisor.holding("start") as started:
            built = host.build(vm)
            prolonged = asyncio.create_task(host.prolong(ID, DEADLINE + 10))
            started.set()
            await asyncio.gather(built, prolonged)
        assert (vm.record.phase, vm.record.deadline) == ("ready", DEADLINE + 10)
        assert world.on_disk() == vm.record

    asyncio.run(scenario())
