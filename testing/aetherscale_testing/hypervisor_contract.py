"""What every hypervisor must do, the real one and the fake: each test here runs on both.

A suite subclasses `HypervisorContract` and defines the fixture `open_world`.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import msgspec
import pytest

from aetherscale_agent.ports import (
    Hypervisor,
    HypervisorError,
    Image,
    ImageMissing,
    NotThere,
    Power,
    PowerChange,
)
from aetherscale_protocol.options import CreateVm

PATIENCE = 30.0
"""Seconds after which a wait in these tests is given up; nothing here should take two."""

ONE, OTHER, ABSENT = "controne", "contrtwo", "nowherea"

SPEC = CreateVm(image="tiny", cpus=1, memory=64, disk=1)


class World(Protocol):
    """A hypervisor, and what the world can do to its VMs."""

    @property
    def hypervisor(self) -> Hypervisor: ...

    @property
    def image(self) -> Image:
        """Of a guest that hears the power button."""

    @property
    def deaf_image(self) -> Image:
        """Of one that does not."""

    @property
    def lost_image(self) -> Image:
        """One whose file is gone."""

    async def booted(self, vm_id: str, boots: int = 1) -> None:
        """Wait until the guest hears what it hears, in this boot of it."""

    async def power_off_inside(self, vm_id: str) -> None:
        """Make the guest shut itself down."""

    async def kill_qemu(self, vm_id: str) -> None:
        """Kill QEMU behind the hypervisor's back."""

    async def say(self, vm_id: str, line: str) -> None:
        """The guest prints a line."""

    async def spoil(self, vm_id: str) -> None:
        """Make every later start of this VM fail."""

    async def restart_agent(self) -> Hypervisor:
        """The hypervisor as the agent's next process finds it; the one before is closed."""

    async def count_boots(self, vm_id: str) -> int:
        """How often QEMU was started for this VM."""


OpenWorld = Callable[[], AbstractAsyncContextManager[World]]


def in_world(test: Callable[[Any, Any], Coroutine[Any, Any, None]]) -> Callable[[Any, OpenWorld], None]:
    """Run a coroutine as a test in a world of its own."""

    def run(self: Any, open_world: OpenWorld) -> None:
        async def within() -> None:
            async with asyncio.timeout(PATIENCE), open_world() as world:
                await test(self, world)

        asyncio.run(within())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


async def begin(world: World, vm_id: str = ONE, *, deaf: bool = False) -> Hypervisor:
    """Build a VM and boot it."""
    await world.hypervisor.build(vm_id, SPEC, world.deaf_image if deaf else world.image)
    await world.hypervisor.start(vm_id, SPEC)
    await world.booted(vm_id)
    return world.hypervisor


async def power(hypervisor: Hypervisor, vm_id: str = ONE) -> Power:
    """The power of one VM."""
    return (await hypervisor.power([vm_id]))[vm_id]


async def next_change(changes: Any) -> PowerChange:
    """The next power change."""
    found: PowerChange = await asyncio.wait_for(anext(changes), PATIENCE)
    return found


class HypervisorContract:
    """The tests."""

    @pytest.fixture
    def open_world(self) -> OpenWorld:
        """How to get a world with no VM in it; what the test leaves behind is removed with it."""
        raise NotImplementedError

    @in_world
    async def test_it_looks_at_its_host(self, world: World) -> None:
        found = await world.hypervisor.condition()
        assert found.disk_size >= found.disk_free > 0
        assert found.bridge_state in ("up", "down", "absent", "no-address")
        assert set(found.services.values()) <= {"active", "inactive", "failed", "activating", "deactivating"}

    @in_world
    async def test_a_vm_that_was_never_here_is_off(self, world: World) -> None:
        hypervisor = world.hypervisor
        assert await hypervisor.power([ONE, ABSENT]) == {ONE: Power.OFF, ABSENT: Power.OFF}
        assert await hypervisor.wait_off(ABSENT) is Power.OFF
        assert await hypervisor.console_tail(ABSENT, 5) == []
        await hypervisor.press_power_button(ABSENT)
        await hypervisor.kill(ABSENT)
        await hypervisor.remove(ABSENT)
        assert await hypervisor.list_remains() == set()

    @in_world
    async def test_the_host_has_resources_and_an_accelerator(self, world: World) -> None:
        assert world.hypervisor.accelerator == ""
        await world.hypervisor.probe()
        assert world.hypervisor.accelerator in ("kvm", "tcg")
        total = world.hypervisor.resources()
        assert min(total.cpus, total.memory, total.disk) > 0

    @in_world
    async def test_a_built_vm_remains_and_is_off(self, world: World) -> None:
        await world.hypervisor.build(ONE, SPEC, world.image)
        assert await power(world.hypervisor) is Power.OFF
        assert await world.hypervisor.list_remains() == {ONE}
        assert await world.hypervisor.bases() == {world.image.sha256}

    @in_world
    async def test_building_and_starting_again_completes(self, world: World) -> None:
        hypervisor = await begin(world)
        await hypervisor.build(ONE, SPEC, world.image)
        await hypervisor.start(ONE, SPEC)
        assert await power(hypervisor) is Power.ON
        assert await world.count_boots(ONE) == 1

    @in_world
    async def test_a_seed_can_be_made_again_and_again_and_goes_with_its_vm(self, world: World) -> None:
        hypervisor = world.hypervisor
        await hypervisor.build(ONE, SPEC, world.image)
        await hypervisor.seed(ONE, SPEC, "controne-1")
        await hypervisor.seed(ONE, SPEC, "controne-1")
        await hypervisor.start(ONE, SPEC)
        await world.booted(ONE)
        await hypervisor.seed(ONE, SPEC, "controne-1")
        assert await power(hypervisor) is Power.ON
        assert await hypervisor.list_remains() == {ONE}
        await hypervisor.kill(ONE)
        await hypervisor.remove(ONE)
        assert await hypervisor.list_remains() == set()

    @in_world
    async def test_a_lost_image_is_named(self, world: World) -> None:
        with pytest.raises(ImageMissing, match=world.lost_image.name):
            await world.hypervisor.build(ONE, SPEC, world.lost_image)
        await world.hypervisor.remove(ONE)
        assert await world.hypervisor.list_remains() == set()

    @in_world
    async def test_what_is_off_has_reached_nothing(self, world: World) -> None:
        assert await world.hypervisor.reached(ABSENT) == []
        hypervisor = await begin(world)
        assert "running" in await hypervisor.reached(ONE)
        await hypervisor.kill(ONE)
        assert await hypervisor.reached(ONE) == []

    @in_world
    async def test_cloud_init_is_done_when_it_says_so_in_this_boot(self, world: World) -> None:
        hypervisor = await begin(world)
        assert "cloud-init" not in await hypervisor.reached(ONE)
        await world.say(ONE, "aetherscale: cloud-init finished after 9.1 s")
        assert (await hypervisor.reached(ONE))[-1] == "cloud-init"
        await hypervisor.kill(ONE)
        await hypervisor.start(ONE, SPEC)
        await world.booted(ONE, 2)
        assert "cloud-init" not in await hypervisor.reached(ONE)

    @in_world
    async def test_a_vm_without_a_disk_does_not_start(self, world: World) -> None:
        with pytest.raises(HypervisorError, match="disk"):
            await world.hypervisor.start(ONE, SPEC)
        assert await power(world.hypervisor) is Power.OFF

    @in_world
    async def test_a_start_that_fails_leaves_the_vm_off_and_no_change(self, world: World) -> None:
        hypervisor = world.hypervisor
        await hypervisor.build(ONE, SPEC, world.image)
        await world.spoil(ONE)
        changes = hypervisor.changes()
        with pytest.raises(HypervisorError):
            await hypervisor.start(ONE, SPEC)
        assert await power(hypervisor) is Power.OFF
        await begin(world, OTHER)
        await hypervisor.kill(OTHER)
        assert (await next_change(changes)).vm_id == OTHER

    @in_world
    async def test_the_power_button_shuts_the_guest_down(self, world: World) -> None:
        hypervisor = await begin(world)
        changes = hypervisor.changes()
        await hypervisor.press_power_button(ONE)
        assert await hypervisor.wait_off(ONE) is Power.OFF
        assert await next_change(changes) == PowerChange(ONE, Power.OFF, "the guest shut itself down")
        assert await power(hypervisor) is Power.OFF

    @in_world
    async def test_a_deaf_guest_stays_on_until_its_plug_is_pulled(self, world: World) -> None:
        hypervisor = await begin(world, deaf=True)
        changes = hypervisor.changes()
        await hypervisor.press_power_button(ONE)
        off = asyncio.create_task(hypervisor.wait_off(ONE))
        done, _ = await asyncio.wait([off], timeout=0.3)
        assert not done
        await hypervisor.kill(ONE)
        assert await power(hypervisor) is Power.OFF
        assert await off is Power.OFF
        assert await next_change(changes) == PowerChange(ONE, Power.OFF, "its plug was pulled")

    @in_world
    async def test_waiting_can_be_given_up(self, world: World) -> None:
        hypervisor = await begin(world)
        waiting = asyncio.create_task(hypervisor.wait_off(ONE))
        await asyncio.wait([waiting], timeout=0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await power(hypervisor) is Power.ON

    @in_world
    async def test_a_guest_that_shuts_itself_down_is_told_to_every_listener(self, world: World) -> None:
        hypervisor = await begin(world)
        listeners = [hypervisor.changes(), hypervisor.changes()]
        await world.power_off_inside(ONE)
        for changes in listeners:
            change = await next_change(changes)
            assert (change.vm_id, change.power) == (ONE, Power.OFF)

    @in_world
    async def test_a_qemu_that_dies_is_failed_and_can_start_again(self, world: World) -> None:
        hypervisor = await begin(world)
        changes = hypervisor.changes()
        off = asyncio.create_task(hypervisor.wait_off(ONE))
        await asyncio.wait([off], timeout=0.05)
        await world.kill_qemu(ONE)
        change = await next_change(changes)
        assert (change.vm_id, change.power) == (ONE, Power.FAILED)
        assert "signal 9" in change.reason
        assert await off is Power.FAILED
        assert await power(hypervisor) is Power.FAILED
        await hypervisor.start(ONE, SPEC)
        assert await power(hypervisor) is Power.ON
        await world.booted(ONE, 2)
        assert await world.count_boots(ONE) == 2

    @in_world
    async def test_pulling_the_plug_of_a_failed_vm_makes_it_off(self, world: World) -> None:
        hypervisor = await begin(world)
        changes = hypervisor.changes()
        await world.kill_qemu(ONE)
        await next_change(changes)
        await hypervisor.kill(ONE)
        assert await power(hypervisor) is Power.OFF

    @in_world
    async def test_a_running_vm_is_not_removed(self, world: World) -> None:
        hypervisor = await begin(world)
        with pytest.raises(HypervisorError, match="running"):
            await hypervisor.remove(ONE)
        assert await power(hypervisor) is Power.ON

    @in_world
    async def test_nothing_remains_of_a_removed_vm(self, world: World) -> None:
        hypervisor = await begin(world)
        await begin(world, OTHER)
        await hypervisor.kill(ONE)
        await hypervisor.remove(ONE)
        await hypervisor.remove(ONE)
        assert await hypervisor.list_remains() == {OTHER}
        assert await power(hypervisor, OTHER) is Power.ON
        with pytest.raises(HypervisorError, match="disk"):
            await hypervisor.start(ONE, SPEC)

    @in_world
    async def test_nothing_remains_of_a_failed_vm_that_is_removed(self, world: World) -> None:
        hypervisor = await begin(world)
        changes = hypervisor.changes()
        await world.kill_qemu(ONE)
        await next_change(changes)
        await hypervisor.remove(ONE)
        assert await hypervisor.list_remains() == set()
        assert await power(hypervisor) is Power.OFF

    @in_world
    async def test_the_next_agent_finds_the_vms_running_and_hears_of_their_end(self, world: World) -> None:
        await begin(world)
        hypervisor = await world.restart_agent()
        changes = hypervisor.changes()
        assert await power(hypervisor) is Power.ON
        await hypervisor.start(ONE, SPEC)
        assert await world.count_boots(ONE) == 1
        await world.power_off_inside(ONE)
        assert (await next_change(changes)).vm_id == ONE

    @in_world
    async def test_a_console_lasts_as_long_as_its_vm(self, world: World) -> None:
        hypervisor = await begin(world)
        reader, writer = await hypervisor.open_console(ONE)
        writer.close()
        await writer.wait_closed()
        assert await reader.read() == b""
        reader, writer = await hypervisor.open_console(ONE)  # for one at a time, but again and again
        await hypervisor.kill(ONE)
        assert await reader.read() == b""
        writer.close()

    @in_world
    async def test_a_size_of_a_terminal_may_be_told_to_whoever_does_not_listen(self, world: World) -> None:
        hypervisor = await begin(world)
        for vm_id in (ONE, ABSENT):
            await hypervisor.resize_console(vm_id, 132, 50)
        assert await power(hypervisor) is Power.ON

    @in_world
    async def test_there_is_nothing_to_connect_to_in_a_vm_that_is_off(self, world: World) -> None:
        hypervisor = await begin(world)
        await hypervisor.kill(ONE)
        for vm_id in (ONE, ABSENT):
            with pytest.raises(NotThere):
                await hypervisor.open_console(vm_id)
            with pytest.raises(NotThere):
                await hypervisor.dial(vm_id, 22)

    @in_world
    async def test_a_mac_address_is_the_vms_own(self, world: World) -> None:
        hypervisor = world.hypervisor
        assert len({hypervisor.nic(vm_id).mac for vm_id in (ONE, ONE, OTHER)}) == 2

    @in_world
    async def test_what_address_a_host_gives_a_vm_is_known_while_it_is_off(self, world: World) -> None:
        hypervisor = await begin(world)
        given = hypervisor.nic(ONE).addresses
        await hypervisor.kill(ONE)
        assert hypervisor.nic(ONE).addresses == given
        await hypervisor.remove(ONE)
        assert hypervisor.nic(ONE).addresses == ()

    @in_world
    async def test_many_vms_start_and_end_at_once(self, world: World) -> None:
        vm_ids = [f"control{letter}" for letter in "abcd"]
        await asyncio.gather(*(begin(world, vm_id) for vm_id in vm_ids))
        await asyncio.gather(*(world.hypervisor.press_power_button(vm_id) for vm_id in vm_ids))
        ends = await asyncio.gather(*(world.hypervisor.wait_off(vm_id) for vm_id in vm_ids))
        assert set(ends) == {Power.OFF}
        await asyncio.gather(*(world.hypervisor.remove(vm_id) for vm_id in vm_ids))
        assert await world.hypervisor.list_remains() == set()

    @in_world
    async def test_a_guest_stands_still_and_goes_on(self, world: World) -> None:
        hypervisor = await begin(world)
        assert not await hypervisor.is_paused(ONE)
        for _ in range(2):
            await hypervisor.pause(ONE)
            assert await hypervisor.is_paused(ONE)
        assert await power(hypervisor) is Power.ON
        for _ in range(2):
            await hypervisor.resume(ONE)
            assert not await hypervisor.is_paused(ONE)
        await hypervisor.press_power_button(ONE)
        assert await hypervisor.wait_off(ONE) is Power.OFF

    @in_world
    async def test_the_next_agent_finds_a_guest_paused_and_its_next_start_runs(self, world: World) -> None:
        await (await begin(world)).pause(ONE)
        hypervisor = await world.restart_agent()
        assert await hypervisor.is_paused(ONE)
        await hypervisor.kill(ONE)
        await hypervisor.start(ONE, SPEC)
        assert not await hypervisor.is_paused(ONE)

    @in_world
    async def test_a_reset_guest_boots_again_in_the_same_qemu(self, world: World) -> None:
        hypervisor = await begin(world)
        await hypervisor.reset(ONE)
        await world.booted(ONE, 2)
        assert await power(hypervisor) is Power.ON

    @in_world
    async def test_what_is_off_is_neither_paused_nor_can_it_be(self, world: World) -> None:
        hypervisor = world.hypervisor
        await hypervisor.build(ONE, SPEC, world.image)
        with pytest.raises(HypervisorError):
            await hypervisor.is_paused(ABSENT)
        for act in (hypervisor.is_paused, hypervisor.pause, hypervisor.resume, hypervisor.reset):
            with pytest.raises(HypervisorError):
                await act(ONE)
        assert await power(hypervisor) is Power.OFF

    @pytest.mark.parametrize("on", [False, True])
    def test_a_disk_grows_and_never_shrinks(self, open_world: OpenWorld, on: bool) -> None:
        @in_world
        async def play(_self: object, world: World) -> None:
            hypervisor = await _with_disk(world, on)
            assert await hypervisor.disk_size(ONE) == SPEC.disk
            for gib in (3, 3):
                await hypervisor.resize_disk(ONE, gib)
                assert await hypervisor.disk_size(ONE) == 3
            with pytest.raises(HypervisorError, match="3 GiB"):
                await hypervisor.resize_disk(ONE, 2)
            assert await hypervisor.disk_size(ONE) == 3
            assert await power(hypervisor) is (Power.ON if on else Power.OFF)

        play(self, open_world)

    @pytest.mark.parametrize("on", [False, True])
    def test_snapshots_are_made_listed_and_deleted(self, open_world: OpenWorld, on: bool) -> None:
        @in_world
        async def play(_self: object, world: World) -> None:
            hypervisor = await _with_disk(world, on)
            assert await hypervisor.list_snapshots(ONE) == []
            for name in ("clean", "before-upgrade", "clean"):
                await hypervisor.snapshot(ONE, name)
            found = await hypervisor.list_snapshots(ONE)
            assert [snapshot.name for snapshot in found] == ["clean", "before-upgrade"]
            assert abs(found[0].created - time.time()) < PATIENCE
            for _ in range(2):
                await hypervisor.delete_snapshot(ONE, "clean")
            assert [snapshot.name for snapshot in await hypervisor.list_snapshots(ONE)] == ["before-upgrade"]

        play(self, open_world)

    @in_world
    async def test_a_snapshot_brings_the_disk_back_with_the_size_that_it_had(self, world: World) -> None:
        hypervisor = await begin(world)
        await hypervisor.snapshot(ONE, "small")
        await hypervisor.resize_disk(ONE, 2)
        with pytest.raises(HypervisorError, match="running"):
            await hypervisor.restore(ONE, "small")
        await hypervisor.kill(ONE)
        with pytest.raises(HypervisorError, match="no snapshot never"):
            await hypervisor.restore(ONE, "never")
        assert await hypervisor.disk_size(ONE) == 2
        for _ in range(2):
            await hypervisor.restore(ONE, "small")
            assert await hypervisor.disk_size(ONE) == SPEC.disk
        await hypervisor.start(ONE, SPEC)
        await world.booted(ONE, 2)

    @in_world
    async def test_a_vm_without_a_disk_has_no_snapshots(self, world: World) -> None:
        hypervisor = world.hypervisor
        for work in (hypervisor.list_snapshots(ABSENT), hypervisor.snapshot(ABSENT, "x"), hypervisor.disk_size(ABSENT)):
            with pytest.raises(HypervisorError, match="disk"):
                await work
        assert await hypervisor.list_remains() == set()

    @in_world
    async def test_a_clone_boots_outlives_its_source_and_has_no_snapshots(self, world: World) -> None:
        hypervisor = await begin(world)
        clone = msgspec.structs.replace(SPEC, clone_of=ONE, disk=2)
        with pytest.raises(HypervisorError, match=ONE):
            await hypervisor.build(OTHER, clone, world.image)
        await hypervisor.kill(ONE)
        await hypervisor.snapshot(ONE, "clean")
        for _ in range(2):
            await hypervisor.build(OTHER, clone, world.image)
        await hypervisor.remove(ONE)
        assert await hypervisor.list_snapshots(OTHER) == []
        assert await hypervisor.disk_size(OTHER) == 2
        await hypervisor.start(OTHER, clone)
        await world.booted(OTHER)

    @in_world
    async def test_a_clone_of_nothing_is_refused_and_leaves_nothing(self, world: World) -> None:
        clone = msgspec.structs.replace(SPEC, clone_of=ABSENT)
        with pytest.raises(HypervisorError, match=ABSENT):
            await world.hypervisor.build(ONE, clone, world.image)
        await world.hypervisor.remove(ONE)
        assert await world.hypervisor.list_remains() == set()


async def _with_disk(world: World, on: bool) -> Hypervisor:
    if on:
        return await begin(world)
    await world.hypervisor.build(ONE, SPEC, world.image)
    return world.hypervisor
