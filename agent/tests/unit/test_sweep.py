"""Files of images: which are swept, and which some VM needs."""

import asyncio
import logging
from pathlib import Path

import pytest

from aetherscale_agent.sweep import keep_swept, sweep
from aetherscale_testing.fakes import fake_digest
from aetherscale_testing.world import ID, OTHER, World, bind, create

OLD = fake_digest("tiny")


@pytest.fixture
def world(tmp_path: Path) -> World:
    folder = tmp_path / "journal"
    folder.mkdir()
    return World(folder)


def test_an_image_that_was_imported_anew_goes_with_the_last_vm_on_it(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        host = await world.started()
        vm = await create(host)
        new = world.images.add("tiny", content="new")
        await sweep(host)
        assert world.images.files == {OLD, new.sha256}
        await host.delete(vm, "r2")
        with caplog.at_level(logging.INFO):
            await sweep(host)
        assert world.images.files == {new.sha256}
        assert f"image file {OLD} removed" in caplog.text

    asyncio.run(scenario())


@pytest.mark.parametrize("needed", ["a VM that is being built", "a disk without a record", "an import"])
def test_what_may_be_needed_is_left_alone(world: World, needed: str) -> None:
    async def scenario() -> None:
        host = await world.started()
        if needed == "a VM that is being built":
            await bind(host)
        elif needed == "a disk without a record":
            await create(host, OTHER)
            del host.vms[OTHER]
        else:
            world.images.fresh.add(OLD)
        world.images.add("tiny", content="new")
        await sweep(host)
        assert OLD in world.images.files

    asyncio.run(scenario())


def test_what_is_not_named_yet_has_a_day(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ages: list[float] = []
    monkeypatch.setattr(world.images, "sweep", lambda _, age: ages.append(age) or ())

    async def scenario() -> None:
        await sweep(await world.started())

    asyncio.run(scenario())
    assert ages == [24 * 3600]


def test_nothing_is_swept_when_a_disk_cannot_be_looked_at_and_the_agent_goes_on(world: World) -> None:
    async def scenario() -> None:
        host = await world.started()
        world.hypervisor.broken["disk"][ID] = "it is damaged"
        world.images.add("tiny", content="new")
        keeping = asyncio.create_task(keep_swept(host))
        await asyncio.sleep(0.01)
        assert not keeping.done()
        assert OLD in world.images.files
        keeping.cancel()

    asyncio.run(scenario())
