"""The fake hypervisor is held to the contract that the real one keeps: in memory, and in a folder."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from aetherscale_agent.ports import Image, Power
from aetherscale_testing.fakes import FakeHypervisor, FakeImages, lose_power, read_fake_vms
from aetherscale_testing.hypervisor_contract import ONE, OTHER, SPEC, HypervisorContract, OpenWorld


class FakeWorld:
    """The fake, and its own ways of being unkind to a VM."""

    def __init__(self, folder: Path | None = None) -> None:
        self.images = FakeImages("tiny", "deaf", "lost")
        self.folder = folder
        self.hypervisor = FakeHypervisor(images=self.images, folder=folder)
        self.image = self.images.list()["tiny"]
        self.deaf_image = self.images.list()["deaf"]
        self.lost_image: Image = self.images.list()["lost"]
        self.images.drop("lost")

    async def booted(self, vm_id: str, boots: int = 1) -> None:
        assert self.hypervisor.boots[vm_id] == boots
        if self.hypervisor.image_of(vm_id) == self.deaf_image:
            self.hypervisor.deaf.add(vm_id)

    async def power_off_inside(self, vm_id: str) -> None:
        self.hypervisor.guest_powers_off(vm_id)

    async def kill_qemu(self, vm_id: str) -> None:
        self.hypervisor.qemu_dies(vm_id)

    async def say(self, vm_id: str, line: str) -> None:
        self.hypervisor.print_on_console(vm_id, line)

    async def spoil(self, vm_id: str) -> None:
        self.hypervisor.broken["start"][vm_id] = "QEMU did not come up"

    async def restart_agent(self) -> FakeHypervisor:
        if self.folder is not None:
            self.hypervisor = FakeHypervisor(images=self.images, folder=self.folder)
        return self.hypervisor

    async def count_boots(self, vm_id: str) -> int:
        return self.hypervisor.boots[vm_id]


@asynccontextmanager
async def open_fake() -> AsyncIterator[FakeWorld]:
    yield FakeWorld()


class TestFakeHypervisor(HypervisorContract):
    @pytest.fixture
    def open_world(self) -> OpenWorld:
        return open_fake


class TestFakeHypervisorInAFolder(HypervisorContract):
    @pytest.fixture
    def open_world(self, tmp_path: Path) -> OpenWorld:
        @asynccontextmanager
        async def open_folder() -> AsyncIterator[FakeWorld]:
            yield FakeWorld(tmp_path / "vms")

        return open_folder


def test_a_host_that_loses_power_has_its_disks_but_no_vm_that_runs(tmp_path: Path) -> None:
    world = FakeWorld(tmp_path)

    async def boot() -> None:
        for vm_id in (ONE, OTHER):
            await world.hypervisor.build(vm_id, SPEC, world.image)
        await world.hypervisor.start(ONE, SPEC)

    asyncio.run(boot())
    assert {vm_id: vm.power for vm_id, vm in read_fake_vms(tmp_path).items()} == {ONE: Power.ON, OTHER: Power.OFF}
    lose_power(tmp_path)
    again = FakeHypervisor(images=world.images, folder=tmp_path)
    assert asyncio.run(again.list_remains()) == {ONE, OTHER}
    assert again.power_of(ONE) is Power.OFF
    assert again.disk_of(ONE) == SPEC.disk
    assert again.boots[ONE] == 1
