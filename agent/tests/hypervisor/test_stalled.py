"""Guests that a full disk stalled are named, tried again, and named again when they go on."""

import asyncio
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from aetherscale_agent.hypervisor.config import Layout
from aetherscale_agent.hypervisor.stalled import PAUSED, TIGHT, Stalled
from aetherscale_agent.ports import Power, PowerChange

ID, OFF = "sgeqxcfi", "abcdefgh"
Usage = namedtuple("Usage", "total used free")


class Machine:
    """Two VMs, one of them on; a disk; and a QEMU that pauses its guest while the disk is full."""

    def __init__(self) -> None:
        self.free = TIGHT * 2
        self.status = "running"
        self.commands: list[str] = []
        self.told: list[PowerChange] = []

    async def states(self) -> dict[str, str]:
        return {ID: "active", OFF: "inactive"}

    async def execute(self, socket: Path, command: str, _timeout: float) -> object:
        assert ID in str(socket)
        self.commands.append(command)
        if command == "cont" and self.free:
            self.status = "running"
        return {"status": self.status, "running": self.status == "running"}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(0, 0, machine.free))
    return machine


def test_a_guest_is_named_while_it_is_stalled_and_goes_on_with_space(machine: Machine) -> None:
    stalled = Stalled(Layout(Path("/state"), Path("/run/a")), machine, machine.told.append, machine.execute)
    asyncio.run(stalled.look())
    assert machine.commands == [], "nobody is disturbed while there is space"

    machine.free, machine.status = 0, "io-error"
    for _ in range(2):
        asyncio.run(stalled.look())
    assert machine.commands == ["query-status", "cont"] * 2
    assert machine.told == [PowerChange(ID, Power.ON, PAUSED)], "named once"

    machine.free = TIGHT * 2
    for _ in range(3):
        asyncio.run(stalled.look())
    assert machine.status == "running"
    assert machine.told[1:] == [PowerChange(ID, Power.ON, "")]
    assert machine.commands[4:] == ["query-status", "cont", "query-status"], "and left alone then"
