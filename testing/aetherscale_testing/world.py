"""One machine of the agent's host tests: its disk, its clock, its guests; and what those tests do again and again."""

import asyncio
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from aetherscale_agent.host import Host
from aetherscale_agent.journal import Journal, Phase, Record
from aetherscale_agent.ports import HostResources, Power, PowerChange
from aetherscale_agent.reconcile import reconcile
from aetherscale_agent.vm import Vm
from aetherscale_protocol.errors import Refused
from aetherscale_protocol.options import CreateVm
from aetherscale_testing.fakes import FakeHypervisor, FakeImages, fake_digest

ID, OTHER = "sgeqxcfi", "abcdefgh"
NOW, DEADLINE = 1000.0, 1060.0


class World:
    """One machine: its disk, its clock, its guests. Agents come and go on it."""

    def __init__(self, folder: Path) -> None:
        self.now = NOW
        self.boot_id = "boot-1"
        self.images = FakeImages("tiny")
        self.hypervisor = FakeHypervisor(images=self.images, total=HostResources(cpus=8, memory=8192, disk=100))
        self.journal = Journal(folder)
        self.folder = folder

    def agent(self) -> Host:
        """An agent, just started: it has read nothing yet."""
        return Host("h1", self.journal, self.hypervisor, self.images, boot_id=self.boot_id, clock=lambda: self.now)

    async def started(self) -> Host:
        """An agent that has reconciled."""
        host = self.agent()
        await reconcile(host)
        await quiet(host)
        return host

    async def rebooted(self) -> Host:
        """The host loses power and comes back; its agent starts."""
        self.hypervisor.lose_power()
        self.boot_id += "+"
        return await self.started()

    def on_disk(self, vm_id: str = ID) -> Record | None:
        """What the journal holds of a VM."""
        return Journal(self.folder).load(pytest.fail).get(vm_id)

    async def power(self) -> Power:
        return self.hypervisor.power_of(ID)


def record(phase: Phase = "claimed", vm_id: str = ID, **changes: object) -> Record:
    base = Record(
        vm_id=vm_id,
        request_id="r1",
        spec=CreateVm(image="tiny", vm_id=vm_id, memory=512, disk=2),
        deadline=DEADLINE,
        created=NOW,
        since=NOW,
        image_sha256=fake_digest("tiny"),
        phase=phase,
    )
    return base.but(**changes)


async def quiet(host: Host) -> None:
    """Wait until nothing is under way any more."""
    async with asyncio.timeout(5):
        while host._tasks:
            await asyncio.wait(set(host._tasks))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def bind(host: Host, vm_id: str = ID) -> Vm:
    """What a create does before it is acknowledged."""
    await host.admit(record(vm_id=vm_id))
    await host.bound(vm_id)
    return host.vms[vm_id]


async def create(host: Host, vm_id: str = ID) -> Vm:
    """A VM that runs."""
    vm = await bind(host, vm_id)
    await host.build(host.vms[vm_id])
    return vm


async def refusal(work: Coroutine[Any, Any, object] | asyncio.Task[None]) -> Refused:
    with pytest.raises(Refused) as caught:
        await work
    return caught.value


def forget_to_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)


async def came_to_rest(host: Host, world: World, power: Power) -> None:
    if power is Power.FAILED:
        world.hypervisor.qemu_dies(ID, "killed by signal 9")
    else:
        world.hypervisor.guest_powers_off(ID)
    await host.came_to_rest(PowerChange(ID, power, "why"))
