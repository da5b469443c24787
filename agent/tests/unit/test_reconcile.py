"""What an agent that starts makes of work that was cut off, with an eye on the clock."""

import asyncio
from pathlib import Path

import pytest

from aetherscale_agent import reconcile as reconcile_module
from aetherscale_agent.asked import Asked
from aetherscale_agent.journal import Ending
from aetherscale_agent.ports import Power
from aetherscale_agent.reconcile import reconcile
from aetherscale_testing.world import DEADLINE, ID, OTHER, World, create, quiet, record, until


@pytest.fixture
def world(tmp_path: Path) -> World:
    folder = tmp_path / "journal"
    folder.mkdir()
    return World(folder)


async def cut_off_a_start(world: World) -> None:
    """An agent dies when it has journalled a start, and QEMU is not there yet."""
    host = await world.started()
    vm = await create(host)
    await host.kill(vm)
    with world.hypervisor.holding("start"):
        starting = asyncio.create_task(host.start(vm, Asked("r1", DEADLINE)))
        await until(lambda: vm.state == "starting")
        starting.cancel()
        await asyncio.wait({starting})


@pytest.mark.parametrize(
    ("passed", "rebooted", "power"),
    [
        (-1.0, False, Power.ON),
        (-1.0, True, Power.ON),
        (0.0, False, Power.ON),
        (1.0, False, Power.OFF),
        (1.0, True, Power.OFF),
    ],
)
def test_a_start_that_was_cut_off_is_finished_in_time_or_never(
    world: World, passed: float, rebooted: bool, power: Power
) -> None:
    async def scenario() -> None:
        await cut_off_a_start(world)
        world.now = DEADLINE + passed
        host = await (world.rebooted() if rebooted else world.started())
        assert await world.power() is power
        known = host.vms[ID].record
        assert (known.start_by, known.wanted) == (0.0, "on" if power is Power.ON else "off")
        assert Asked("r1", DEADLINE).is_over(known)
        await world.rebooted()
        assert await world.power() is power

    asyncio.run(scenario())


def test_a_start_that_waits_its_turn_after_a_reboot_is_not_late_either(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile_module, "STARTS_AT_ONCE", 1)

    async def scenario() -> None:
        await create(await world.started(), OTHER)  # before the other in the alphabet, and so in line
        await cut_off_a_start(world)
        world.hypervisor.lose_power()
        world.boot_id = "boot-2"
        host = world.agent()
        with world.hypervisor.holding("start"):
            await reconcile(host)
            await until(lambda: host.vms[OTHER].record.boot_id == "")
            world.now = DEADLINE + 1
        await quiet(host)
        assert world.hypervisor.power_of(OTHER) is Power.ON
        assert await world.power() is Power.OFF
        assert (host.vms[ID].state, host.vms[ID].record.wanted) == ("stopped", "off")

    asyncio.run(scenario())


def test_after_a_reboot_what_was_started_long_ago_starts_again(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        vm = await create(host)
        await host.kill(vm)
        await host.start(vm, Asked("r1", DEADLINE))
        world.now = DEADLINE + 10_000
        await world.rebooted()
        assert await world.power() is Power.ON

    asyncio.run(scenario())


def test_a_deletion_is_finished_whatever_the_time_and_answers_as_it_would_have(world: World) -> None:
    async def scenario() -> None:
        await create(await world.started())
        ending = Ending(code="vm-unknown", reason="VM was deleted", request_id="r9")
        await world.journal.put(record("deleting", wanted="off", ending=ending))
        world.now = DEADLINE + 10_000
        await world.started()
        known = world.on_disk()
        assert known is not None
        assert (known.phase, known.ending) == ("gone", ending)
        assert (world.hypervisor.disk_of(ID), await world.power()) == (None, Power.OFF)

    asyncio.run(scenario())


def test_a_plug_that_was_about_to_be_pulled_is_pulled_whatever_the_guest_thinks_of_its_button(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        vm = await create(host)
        world.hypervisor.deaf.add(ID)
        with world.hypervisor.holding("kill"):
            killing = asyncio.create_task(host.kill(vm, Asked("r1", DEADLINE)))
            await until(lambda: vm.record.pulled and not vm.pen.locked())
            killing.cancel()
            await asyncio.wait({killing})
        assert await world.power() is Power.ON
        again = await world.started()
        assert await world.power() is Power.OFF
        assert (again.vms[ID].state, again.vms[ID].record.pulled) == ("stopped", False)
        assert Asked("r1", DEADLINE).is_over(again.vms[ID].record)

    asyncio.run(scenario())
