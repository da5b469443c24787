"""What check-host answers, over a hypervisor in memory."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aetherscale_agent import condition
from aetherscale_agent.ports import Checksum, HypervisorError
from aetherscale_protocol.answers import ImageSum, VmTrouble
from aetherscale_testing.fakes import fake_digest
from aetherscale_testing.world import ID, OTHER, World, create, refusal

GIB = 1 << 30

Test = Callable[[World], Coroutine[Any, Any, None]]


@pytest.fixture
def run(tmp_path: Path) -> Callable[[Test], None]:
    return lambda test: asyncio.run(test(World(tmp_path)))


def test_a_host_that_is_well(run: Any) -> None:
    async def test(world: World) -> None:
        await world.hypervisor.probe()
        host = await world.started()
        await create(host)
        found = await condition.look(host, checksums=False)
        assert (found.host, found.accelerator, found.troubles, found.images) == ("h1", "kvm", [], [])
        assert found.disk_growth == 2 * GIB
        found = await condition.look(host, checksums=True)
        assert found.images == [ImageSum(image="tiny", sha256=fake_digest("tiny"), state="right")]
        assert found.unread == 0

    run(test)


def test_growth_is_what_was_promised_and_not_taken_yet(run: Any) -> None:
    async def test(world: World) -> None:
        host = await world.started()
        await create(host)
        await create(host, OTHER)
        world.hypervisor.taken = {ID: 1}
        assert (await condition.look(host, checksums=False)).disk_growth == 3 * GIB
        world.hypervisor.taken = {ID: 5}  # snapshots take more than was promised, but not of the other's
        assert (await condition.look(host, checksums=False)).disk_growth == 2 * GIB

    run(test)


def test_vms_in_trouble_are_named_and_others_are_not(run: Any) -> None:
    async def test(world: World) -> None:
        host = await world.started()
        await create(host)
        vm = await create(host, OTHER)
        vm.record = vm.record.but(reason="QEMU was killed by signal 9")
        vm.state = "failed"
        found = await condition.look(host, checksums=False)
        assert found.troubles == [VmTrouble(vm_id=OTHER, state="failed", reason="QEMU was killed by signal 9")]
        host.vms[ID].record = host.vms[ID].record.but(reason="paused: its disk can't be written")
        assert [t.vm_id for t in condition.find_troubles(host.vms.values())] == sorted([ID, OTHER])
        host.vms[ID].state = "stopped"  # why it is off is no trouble
        assert [t.vm_id for t in condition.find_troubles(host.vms.values())] == [OTHER]

    run(test)


def test_images_that_are_damaged_unread_or_broken(run: Any) -> None:
    async def test(world: World) -> None:
        host = await world.started()
        world.images.add("alias", content="tiny")
        world.images.add("big")
        world.images.known = {
            "tiny": Checksum("pending", unread=7), "alias": Checksum("pending", unread=7), "big": Checksum("wrong")
        }  # fmt: skip
        world.images.ignored = {"z.json: no", "a.json: broken"}
        found = await condition.look(host, checksums=True)
        assert [(image.image, image.state) for image in found.images] == [
            ("alias", "pending"), ("big", "wrong"), ("tiny", "pending"),
        ]  # fmt: skip
        assert found.unread == 7, "one file, under two names"
        assert found.manifests == ["a.json: broken", "z.json: no"]

    run(test)


def test_a_host_that_can_t_be_looked_at_says_so(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(world: World) -> None:
        host = await world.started()

        async def fail() -> None:
            raise HypervisorError("systemd did not answer")

        monkeypatch.setattr(world.hypervisor, "condition", fail)
        error = await refusal(condition.look(host, checksums=False))
        assert (error.code, "systemd did not answer" in error.reason) == ("failed", True)

    run(test)


def _changed(world: World, **changes: Any) -> Any:
    return replace(world.hypervisor.state, **changes)
