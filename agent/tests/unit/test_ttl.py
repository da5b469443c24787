"""VMs whose time is over: deleted once, also after a restart, but not because a clock is wrong."""

import asyncio
from pathlib import Path

import pytest

from aetherscale_agent import ttl
from aetherscale_agent.host import Host
from aetherscale_agent.journal import Ending
from aetherscale_agent.ports import Power
from aetherscale_agent.ttl import CLOCK_SETTLES_S, LEAP_S, OVER, TRY_AGAIN_S, Reaper
from aetherscale_testing.dealings import Dealings
from aetherscale_testing.world import ID, NOW, OTHER, World, bind, create, quiet, until

UNTIL = NOW + 3600
YEARS = 10 * 365 * 86400.0


class Days(World):
    """A machine that booted long before the test; its clock and its uptime go together, unless one is changed alone."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.up = 1e6

    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.now += seconds
        self.up += seconds

    def reaper(self, host: Host) -> Reaper:
        return Reaper(host, uptime=lambda: self.up)

    async def has(self, vm_id: str = ID) -> bool:
        """Whether there is anything left of the VM."""
        return self.hypervisor.disk_of(vm_id) is not None


@pytest.fixture
def world(tmp_path: Path) -> Days:
    folder = tmp_path / "journal"
    folder.mkdir()
    return Days(folder)


async def mortal(host: Host, vm_id: str = ID, expires: float = UNTIL) -> None:
    vm = await create(host, vm_id)
    await host._records.change(vm, lambda r: r.but(expires=expires))


async def look(reaper: Reaper, host: Host) -> None:
    reaper.look()
    await quiet(host)


def test_a_vm_is_deleted_when_its_time_is_over_and_others_live(world: Days) -> None:
    async def scenario() -> None:
        host = await world.started()
        await mortal(host)
        await mortal(host, OTHER, expires=0.0)
        reaper = world.reaper(host)
        world.wait(3599)
        await look(reaper, host)
        assert await world.has()
        world.wait(1)
        await look(reaper, host)
        assert (await world.has(), await world.has(OTHER)) == (False, True)
        ending = host.vms[ID].record.ending
        assert ending is not None
        assert ending.reason == OVER

    asyncio.run(scenario())


def test_a_vm_whose_time_was_over_while_the_agent_was_away_goes_when_it_is_back(world: Days) -> None:
    async def scenario() -> None:
        await mortal(await world.started())
        world.wait(7200)
        host = await world.started()
        assert host.find(ID) is not None
        await look(world.reaper(host), host)
        assert (host.find(ID), await world.has()) == (None, False)
        assert (await world.started()).find(ID) is None

    asyncio.run(scenario())


def test_a_vm_whose_time_was_over_while_its_host_was_off_goes_when_the_clock_has_settled(world: Days) -> None:
    async def scenario() -> None:
        await mortal(await world.started())
        world.wait(7200)
        world.up = 20.0
        host = await world.rebooted()
        reaper = world.reaper(host)
        await look(reaper, host)
        assert (host.vms[ID].state, await world.power()) == ("running", Power.ON)  # as if its time were not over
        world.wait(CLOCK_SETTLES_S - 20)
        await look(reaper, host)
        assert not await world.has()

    asyncio.run(scenario())


def test_a_clock_that_is_years_ahead_at_boot_and_set_right_soon_costs_no_vm(world: Days) -> None:
    async def scenario() -> None:
        await mortal(await world.started())
        world.up = 20.0
        world.now += YEARS
        host = await world.rebooted()
        reaper = world.reaper(host)
        for _ in range(9):
            world.wait(10)
            await look(reaper, host)
        world.now -= YEARS
        for _ in range(100):
            world.wait(10)
            await look(reaper, host)
        assert host.vms[ID].state == "running"
        world.wait(3600)
        await look(reaper, host)
        assert not await world.has()

    asyncio.run(scenario())


@pytest.mark.parametrize("leap", [LEAP_S + 1, YEARS])
def test_after_a_leap_of_the_clock_nothing_is_deleted_for_a_while(world: Days, leap: float) -> None:
    async def scenario() -> None:
        host = await world.started()
        await mortal(host, expires=NOW + 30)
        reaper = world.reaper(host)
        world.now += leap
        await look(reaper, host)
        world.wait(CLOCK_SETTLES_S - 1)
        await look(reaper, host)
        assert await world.has()
        world.wait(1)
        await look(reaper, host)
        assert not await world.has()

    asyncio.run(scenario())


def test_a_clock_that_drifts_and_a_host_that_was_suspended_are_no_leap(world: Days) -> None:
    async def scenario() -> None:
        host = await world.started()
        await mortal(host)
        reaper = world.reaper(host)
        for _ in range(10):
            world.now += LEAP_S / 2
            await look(reaper, host)
        world.wait(3600)
        await look(reaper, host)
        assert not await world.has()

    asyncio.run(scenario())


def test_a_vm_that_is_extended_while_it_waits_to_be_deleted_lives_on(world: Days) -> None:
    async def scenario() -> None:
        host = await world.started()
        await mortal(host)
        reaper = world.reaper(host)
        world.wait(3600)
        vm = host.vms[ID]
        async with vm.line:
            reaper.look()
            await asyncio.sleep(0)
            await host._records.change(vm, lambda r: r.but(expires=UNTIL + 3600))
        await quiet(host)
        assert (vm.state, await world.has()) == ("running", True)
        world.wait(3600)
        await look(reaper, host)
        assert not await world.has()

    asyncio.run(scenario())


def test_an_extend_that_comes_behind_the_deletion_finds_no_vm(world: Days) -> None:
    async def scenario() -> None:
        host = await world.started()
        await mortal(host)
        world.wait(3600)
        dealings = Dealings(host)
        with world.hypervisor.holding("remove"):
            world.reaper(host).look()
            extending = dealings.begin("extend-vm", request_id="r9", deadline=world.now + 60, vm_id=ID, ttl=60)
            await asyncio.sleep(0.01)
            assert not extending.done()
        answer = await extending
        assert (answer.ok, answer.execution_info.reason) == (False, "VM does not exist")
        assert not await world.has()

    asyncio.run(scenario())


def test_a_vm_in_hand_is_not_deleted_twice(world: Days) -> None:
    async def scenario() -> None:
        host = await world.started()
        await mortal(host)
        reaper = world.reaper(host)
        world.wait(3600)
        with world.hypervisor.holding("remove"):
            for _ in range(5):
                reaper.look()
                await asyncio.sleep(0)
                world.wait(TRY_AGAIN_S)
        await quiet(host)
        assert [call for call in world.hypervisor.calls if call[0] == "remove"] == [("remove", ID)]

    asyncio.run(scenario())


def test_a_deletion_that_fails_is_tried_again_after_a_while(world: Days) -> None:
    async def scenario() -> None:
        host = await world.started()
        await mortal(host)
        reaper = world.reaper(host)
        world.hypervisor.broken["remove"][ID] = "the disk is busy"
        world.wait(3600)
        for _ in range(3):
            await look(reaper, host)
        tries = [call for call in world.hypervisor.calls if call[0] == "remove"]
        assert (len(tries), host.vms[ID].state) == (1, "deleting")
        world.hypervisor.broken["remove"].clear()
        world.wait(TRY_AGAIN_S - 1)
        await look(reaper, host)
        assert await world.has()
        world.wait(1)
        await look(reaper, host)
        assert (await world.has(), host.find(ID)) == (False, None)

    asyncio.run(scenario())


def test_a_deletion_that_was_asked_for_and_failed_is_finished_as_that_one(world: Days) -> None:
    async def scenario() -> None:
        host = await world.started()
        await mortal(host)
        vm = host.vms[ID]
        world.hypervisor.broken["remove"][ID] = "the disk is busy"
        await host.erase(vm, Ending(code="vm-unknown", reason="VM was deleted", request_id="d1"))
        world.hypervisor.broken["remove"].clear()
        world.wait(3600)
        await look(world.reaper(host), host)
        assert vm.record.ending is not None
        assert (vm.record.phase, vm.record.ending.request_id) == ("gone", "d1")

    asyncio.run(scenario())


def test_what_is_being_built_is_deleted_once_it_is_there(world: Days) -> None:
    async def scenario() -> None:
        host = await world.started()
        vm = await bind(host)
        vm.record = vm.record.but(expires=NOW + 10)
        with world.hypervisor.holding("start"):
            building = host.build(vm)
            await asyncio.sleep(0.01)
            world.wait(10)
            world.reaper(host).look()
        await building
        await quiet(host)
        assert (await world.has(), host.find(ID)) == (False, None)

    asyncio.run(scenario())


def test_it_looks_every_second_until_it_is_cancelled(world: Days) -> None:
    async def scenario() -> None:
        host = await world.started()
        await mortal(host)

        naps = set()

        async def sleep(seconds: float) -> None:
            naps.add(seconds)
            world.wait(seconds)
            await asyncio.sleep(0)

        looking = asyncio.create_task(world.reaper(host).run(sleep))
        await until(lambda: host.find(ID) is None)
        looking.cancel()
        assert naps == {ttl.LOOK_EVERY_S}

    asyncio.run(scenario())


def test_uptime_is_the_hosts() -> None:
    before = ttl.read_uptime()
    assert 0 < before <= ttl.read_uptime()
