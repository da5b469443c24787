"""The fake hypervisor is held to the contract that the real one keeps."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from aetherscale_agent.ports import Image
from aetherscale_testing.fakes import FakeHypervisor, FakeImages
from aetherscale_testing.hypervisor_contract import HypervisorContract, OpenWorld


class FakeWorld:
    """The fake, and its own ways of being unkind to a VM."""

    def __init__(self) -> None:
        self.images = FakeImages("tiny", "deaf", "lost")
        self.hypervisor = FakeHypervisor(images=self.images)
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

    async def spoil(self, vm_id: str) -> None:
        self.hypervisor.broken["start"][vm_id] = "QEMU did not come up"

    async def restart_agent(self) -> FakeHypervisor:
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
