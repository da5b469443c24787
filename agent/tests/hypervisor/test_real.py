"""The real hypervisor is held to the same contract. It needs a host with systemd, QEMU and the agent's unit files,
on which no agent runs, and is run there as the agent's user:

    python -m aetherscale_testing.guests /var/lib/aetherscale/images       # as root
    python -m pytest -m host agent/tests/hypervisor/test_real.py

molecule/default/tests/test_hypervisor.py does that on the lab's hosts.
"""

import asyncio
import dataclasses
import os
import pwd
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from aetherscale_agent.hypervisor import HypervisorConfig, ManifestImages, QemuHypervisor, argv, monitor, probe
from aetherscale_agent.hypervisor.config import Layout
from aetherscale_agent.ports import HypervisorError, Power
from aetherscale_testing import guests
from aetherscale_testing.hypervisor_contract import ONE, SPEC, HypervisorContract, OpenWorld, begin, in_world

SYSTEM_CONTROL = Path("/run/systemd/system.control")

pytestmark = pytest.mark.host


class RealWorld:
    """The real thing, and one's ways on a host of being unkind to a VM."""

    def __init__(self, hypervisor: QemuHypervisor, layout: Layout) -> None:
        images = ManifestImages(layout.images).list()
        self.layout = layout
        self.hypervisor = hypervisor
        self.image = images[guests.POLITE]
        self.deaf_image = images[guests.DEAF]
        self.lost_image = dataclasses.replace(self.image, name="lost", path=f"{self.image.path}.lost")

    async def booted(self, vm_id: str, boots: int = 1) -> None:
        while await self.count_boots(vm_id) < boots:  # noqa: ASYNC110 (QEMU tells nobody what it writes)
            await asyncio.sleep(0.01)

    async def power_off_inside(self, vm_id: str) -> None:
        await monitor.execute(self.layout.vm(vm_id).stop_monitor, "system_powerdown", 5)

    async def start_by_hand(self, vm_id: str) -> None:
        process = await asyncio.create_subprocess_exec("systemctl", "start", f"aetherscale-vm@{vm_id}.service")
        assert await process.wait() == 0
        async with asyncio.timeout(10):
            while not self.hypervisor._units.may_be_on(vm_id):  # noqa: ASYNC110 (systemd's word for it is on its way)
                await asyncio.sleep(0.01)

    async def kill_qemu(self, vm_id: str) -> None:
        unit = f"aetherscale-vm@{vm_id}.service"
        process = await asyncio.create_subprocess_exec("systemctl", "kill", "--signal=KILL", unit)
        assert await process.wait() == 0

    async def say(self, vm_id: str, line: str) -> None:
        with self.layout.vm(vm_id).console.open("a") as console:
            console.write(f"{line}\r\n")

    async def spoil(self, vm_id: str) -> None:
        self.layout.vm(vm_id).disk.write_text("this is no qcow2")

    async def restart_agent(self) -> QemuHypervisor:
        await self.hypervisor.close()
        self.hypervisor = QemuHypervisor(HypervisorConfig())
        await self.hypervisor.open()
        return self.hypervisor

    async def count_boots(self, vm_id: str) -> int:
        return (await self.hypervisor.console_tail(vm_id, 100)).count("up")


@asynccontextmanager
async def open_real() -> AsyncIterator[RealWorld]:
    config = HypervisorConfig()
    world = RealWorld(QemuHypervisor(config), Layout(config.state_dir, config.run_dir))
    await world.hypervisor.open()
    try:
        await clean(world.hypervisor)
        yield world
        await clean(world.hypervisor)
    finally:
        await world.hypervisor.close()


async def clean(hypervisor: QemuHypervisor) -> None:
    for vm_id in await hypervisor.list_remains():
        await hypervisor.kill(vm_id)
        await hypervisor.remove(vm_id)


@pytest.fixture(scope="module", autouse=True)
def leaves_nothing() -> Iterator[None]:
    assert pwd.getpwuid(os.getuid()).pw_name == "aetherscale", "run this as the agent's user"
    yield
    until = time.monotonic() + 5  # systemd stops the units of taps a moment after those of VMs
    while list(SYSTEM_CONTROL.glob("aetherscale-vm@*")) and time.monotonic() < until:
        time.sleep(0.05)
    assert list(SYSTEM_CONTROL.glob("aetherscale-vm@*")) == []


class TestRealHypervisor(HypervisorContract):
    @pytest.fixture
    def open_world(self) -> OpenWorld:
        return open_real

    @in_world
    async def test_the_limits_of_an_interrupted_start_are_found_and_removed(self, world: RealWorld) -> None:
        await world.hypervisor._units.set_limits("interrup", {"MemoryMax": 1 << 30})
        assert await world.hypervisor.list_remains() == {"interrup"}
        await world.hypervisor.remove("interrup")
        assert await world.hypervisor.list_remains() == set()

    @in_world
    async def test_what_was_started_by_hand_after_its_plug_was_pulled_keeps_its_disk(self, world: RealWorld) -> None:
        hypervisor = await begin(world)
        await hypervisor.kill(ONE)
        await world.start_by_hand(ONE)
        with pytest.raises(HypervisorError, match="is running"):
            await hypervisor.remove(ONE)
        assert world.layout.vm(ONE).disk.exists()

    @in_world
    async def test_what_was_started_by_hand_and_failed_since_leaves_nothing_either(self, world: RealWorld) -> None:
        hypervisor = await begin(world)
        await hypervisor.kill(ONE)
        await world.start_by_hand(ONE)
        await world.kill_qemu(ONE)
        assert await hypervisor.wait_off(ONE) is Power.FAILED
        await hypervisor.remove(ONE)
        assert await hypervisor.list_remains() == set()

    @pytest.mark.parametrize(
        ("function", "result", "reason"),
        [
            ("finalize_limits", {"NoSuchLimit": 1}, "NoSuchLimit"),
            ("finalize_argv", ["-no-such-option"], "exit status 1"),
        ],
    )
    def test_what_systemd_or_qemu_refuses_is_told_and_leaves_nothing(
        self, function: str, result: object, reason: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(argv, function, lambda *_args, **_more: result)

        async def refused() -> None:
            async with open_real() as world:
                await world.hypervisor.build("refusedx", SPEC, world.image)
                with pytest.raises(HypervisorError, match=reason):
                    await world.hypervisor.start("refusedx", SPEC)
                assert await world.hypervisor.power(["refusedx"]) == {"refusedx": Power.OFF}
                await world.hypervisor.remove("refusedx")
                assert await world.hypervisor.list_remains() == set()

        asyncio.run(refused())

    @in_world
    async def test_what_a_guest_prints_goes_to_whoever_looks_and_to_the_log(self, world: RealWorld) -> None:
        hypervisor = await begin(world)
        reader, writer = await hypervisor.open_console(ONE)
        await monitor.execute(world.layout.vm(ONE).stop_monitor, "system_reset", 5)
        assert (await reader.readuntil(b"up\r\n")).endswith(b"up\r\n")
        await world.booted(ONE, 2)
        writer.close()
        await monitor.execute(world.layout.vm(ONE).stop_monitor, "system_reset", 5)
        await world.booted(ONE, 3)  # nobody looks, and nothing waits for that

    @in_world
    async def test_the_kvm_probe_says_yes_to_what_works(self, world: RealWorld) -> None:
        end = await probe.run(world.hypervisor._units, world.layout, "tcg")
        assert end is not None
        assert end.status == probe.EXIT_STATUS
