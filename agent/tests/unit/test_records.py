"""Several change one VM's record at the same time, and none undoes what another wrote."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from aetherscale_agent import records
from aetherscale_agent.journal import Ending, Journal, Record
from aetherscale_agent.ports import Power, PowerChange
from aetherscale_testing.world import DEADLINE, ID, World, bind, create, forget_to_sync, quiet, refusal, until

LATER = DEADLINE + 60


@pytest.fixture
def world(tmp_path: Path) -> World:
    folder = tmp_path / "journal"
    folder.mkdir()
    return World(folder)


class Pen:
    """A journal that can be stopped in the middle of a write, as a slow disk stops it."""

    def __init__(self, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
        self._write = journal._write
        self._phase = ""
        self.writing, self._go_on = threading.Event(), threading.Event()
        monkeypatch.setattr(journal, "_write", self._slowly)

    def _slowly(self, written: Record) -> None:
        if written.phase == self._phase and not self.writing.is_set():
            self.writing.set()
            assert self._go_on.wait(5)
        self._write(written)

    @contextlib.contextmanager
    def held_at(self, phase: str) -> Iterator[None]:
        """While in this block, the first write of a record in this phase waits."""
        self._phase = phase
        try:
            yield
        finally:
            self._go_on.set()


@pytest.fixture
def pen(world: World, monkeypatch: pytest.MonkeyPatch) -> Pen:
    return Pen(world.journal, monkeypatch)


@pytest.mark.parametrize("who", ["prolong", "directory", "watch"])
def test_a_vm_that_was_just_built_stays_built(world: World, pen: Pen, who: str) -> None:
    """Or the next agent would take it for a create that was cut off, and undo it once its deadline has passed."""

    async def scenario() -> None:
        host = await world.started()
        vm = await bind(host)
        with pen.held_at("ready"):
            built = host.build(vm)
            await until(pen.writing.is_set)
            match who:
                case "prolong":
                    other = host.spawn(host.prolong(ID, LATER))
                case "directory":
                    other = host.spawn(host.set_bound(vm, False))
                case _:
                    other = host.spawn(host.came_to_rest(PowerChange(ID, Power.ON, "its disk is full")))
            await asyncio.sleep(0)
        await asyncio.gather(built, other)
        assert vm.record.phase == "ready"
        assert (vm.record.deadline, vm.record.bound, vm.record.reason) == {
            "prolong": (LATER, True, ""),
            "directory": (DEADLINE, False, ""),
            "watch": (DEADLINE, True, "its disk is full"),
        }[who]
        if who != "watch":
            assert world.on_disk() == vm.record
        world.now = LATER + 1
        again = await world.started()
        await quiet(again)
        assert await world.power() is Power.ON

    asyncio.run(scenario())


@pytest.mark.parametrize("phase", ["deleting", "gone"])
def test_a_vm_that_is_being_removed_is_gone_and_its_tombstone_lasts(world: World, pen: Pen, phase: str) -> None:
    async def scenario() -> None:
        host = await world.started()
        vm = await create(host)
        with pen.held_at(phase):
            deleted = host.spawn(host.delete(vm, "r2"))
            await until(pen.writing.is_set)
            prolonged = host.spawn(host.prolong(ID, LATER))
            await asyncio.sleep(0)
        await asyncio.gather(deleted, prolonged)
        assert (vm.record.phase, vm.record.deadline, vm.exists) == ("gone", LATER, False)
        assert world.on_disk() == vm.record

    asyncio.run(scenario())


def test_what_is_prolonged_never_gets_shorter(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        await create(host)
        await host.prolong(ID, LATER)
        await host.prolong(ID, LATER - 1)
        known = world.on_disk()
        assert known is not None
        assert known.deadline == LATER

    asyncio.run(scenario())


# A full disk


def test_what_could_not_be_written_is_not_written_over_what_came_after_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "WRITE_AGAIN_S", 0.0)

    async def scenario() -> None:
        host = await world.started()
        vm = await create(host)
        with monkeypatch.context() as patch:
            forget_to_sync(patch)
            await host.kill(vm)
            later = set(host._records._later)
        await host.delete(vm, "r2")
        await asyncio.wait(later)
        known = world.on_disk()
        assert known is not None
        assert (known, known.phase) == (vm.record, "gone")

    asyncio.run(scenario())


def test_what_was_forgotten_meanwhile_is_not_written_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "WRITE_AGAIN_S", 0.0)

    async def scenario() -> None:
        host = await world.started()
        vm = await create(host)
        with monkeypatch.context() as patch:
            forget_to_sync(patch)
            await host.kill(vm)
            later = set(host._records._later)
        await host.delete(vm, "r2")
        await host.forget(ID)
        await asyncio.wait(later)
        await host.set_bound(vm, True)
        assert world.on_disk() is None

    asyncio.run(scenario())


# Giving up, and marks


def test_a_create_that_is_not_built_is_given_up(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        vm = await bind(host)
        host.give_up(vm)
        assert (await refusal(host.build(vm))).code == "outcome-unknown"
        assert (vm.record.phase, world.hypervisor.disk_of(ID)) == ("gone", None)

    asyncio.run(scenario())


def test_a_create_that_is_being_built_is_not_given_up(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        vm = await bind(host)
        built = host.build(vm)
        host.give_up(vm)
        await built
        await quiet(host)
        assert await world.power() is Power.ON

    asyncio.run(scenario())


def test_what_was_deleted_before_it_is_given_up_was_deleted(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        vm = await bind(host)
        async with vm.line:
            host.give_up(vm)
            await asyncio.sleep(0)
            await host.delete(vm, "r2")
        assert (await refusal(host.build(vm))).reason == "VM was deleted"
        assert vm.record.ending == Ending(code="vm-unknown", reason="VM was deleted", request_id="r2")

    asyncio.run(scenario())


def test_a_host_remembers_that_its_broker_is_new(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        host = await world.started()
        assert not host.new_broker
        synced: list[None] = []
        monkeypatch.setattr(world.journal, "_sync_folder", lambda: synced.append(None))
        host.note_new_broker()
        assert synced  # or a host that loses power then takes creates at once when it comes back
        world.journal = Journal(world.folder)
        again = await world.started()
        assert again.new_broker
        again.settle_in()
        assert not again.new_broker
        assert not Journal(world.folder).has_mark("new-broker")

    asyncio.run(scenario())


def test_a_mark_is_no_record_and_holds_without_a_disk(world: World) -> None:
    world.journal.mark("new-broker")
    assert world.journal.load(pytest.fail) == {}
    (world.folder / "new-broker").unlink()
    world.folder.rmdir()
    world.journal.mark("other")
    assert world.journal.has_mark("other")
