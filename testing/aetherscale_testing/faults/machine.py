"""The agent's side of a fault: a machine on which things go wrong, at a step, when its harness says so.

A cell is a folder. `meet.json` in it arms one meeting: {"host": …, "when": …, "step": …, "socket": path}. The first
agent that comes to that step renames the file, so that nobody meets twice; connects to the socket; says who and where
it is; and stands still, with all its tasks, until it is answered. The answer may hold faults of this machine.
"""

import contextlib
import errno
import json
import os
import socket
import stat
import time
from pathlib import Path
from typing import Any

from aetherscale_agent import connect, recover, session, steps, stream
from aetherscale_agent.ports import HypervisorError, Image, Power
from aetherscale_protocol.options import CreateVm
from aetherscale_testing.fakes import FakeHypervisor, FakeImages

ARMED, MET = "meet.json", "met.json"
CLOCK = "clock"
"""File in a host's folder: by how many seconds its clock is off."""

TOMBSTONE_SLACK_S = 1.0
LONGEST_DELAY_S = 0.6
CLIENT_SILENCE_S = 3.0


class Machine:
    """One host's disk, clock and images. Without a cell nothing ever goes wrong on it."""

    def __init__(self, host: str, folder: Path, images: FakeImages, cell: Path | None) -> None:
        self.host = host
        self.images = images
        self.failing_builds = 0
        self.failing_starts = 0
        self.dying_starts = 0
        self._clock_file = folder / CLOCK
        self._cell = cell
        self._full_until = 0.0
        if cell is not None:
            self._sync = os.fsync
            os.fsync = self._fsync  # type: ignore[assignment]
            _be_quick()
            steps.watch(self.on_step)

    @property
    def disk_is_full(self) -> bool:
        """Whether nothing can be written now."""
        return time.monotonic() < self._full_until

    def clock(self) -> float:
        """This host's time."""
        if self._cell is None:
            return time.time()
        try:
            return time.time() + float(self._clock_file.read_text())
        except (FileNotFoundError, ValueError):
            return time.time()

    def on_step(self, when: str, step: str, vm_id: str) -> None:
        """Meet the harness, if it waits here."""
        assert self._cell is not None
        armed = _read(self._cell / ARMED)
        if armed is None or (armed["when"], armed["step"], armed["host"]) != (when, step, self.host):
            return
        with contextlib.suppress(FileNotFoundError):
            (self._cell / ARMED).rename(self._cell / MET)
            me = {"cell": self._cell.name, "host": self.host, "pid": os.getpid(), "vm": vm_id}
            self.suffer(_meet(armed["socket"], me))

    def suffer(self, faults: dict[str, Any]) -> None:
        """Let these things go wrong from now on."""
        self._full_until = time.monotonic() + faults.get("disk-full", 0)
        self.failing_builds += faults.get("build-fails", 0)
        self.failing_starts += faults.get("start-fails", 0)
        self.dying_starts += faults.get("qemu-dies", 0)
        if "image-gone" in faults:
            with contextlib.suppress(KeyError):
                self.images.drop(faults["image-gone"])

    def _fsync(self, descriptor: int) -> None:
        if self.disk_is_full and stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._sync(descriptor)


class FaultyHypervisor(FakeHypervisor):
    """The fake hypervisor on a machine on which things go wrong."""

    def __init__(self, machine: Machine, **settings: Any) -> None:
        super().__init__(**settings)
        self._machine = machine

    async def build(self, vm_id: str, spec: CreateVm, image: Image) -> None:
        if self._machine.disk_is_full:
            raise HypervisorError("qemu-img failed: No space left on device")
        if self._machine.failing_builds > 0:
            self._machine.failing_builds -= 1
            raise HypervisorError("qemu-img failed")
        await super().build(vm_id, spec, image)

    async def snapshot(self, vm_id: str, name: str) -> None:
        if self._machine.disk_is_full:
            raise HypervisorError(f"snapshot {name} could not be made: No space left on device")
        await super().snapshot(vm_id, name)

    async def restore(self, vm_id: str, name: str) -> None:
        if self._machine.disk_is_full:
            raise HypervisorError(f"snapshot {name} could not be restored: No space left on device")
        await super().restore(vm_id, name)

    async def start(self, vm_id: str, spec: CreateVm) -> None:
        """Start the VM; its guest writes on its disk that it has booted."""
        if self.power_of(vm_id) is not Power.ON and self._machine.failing_starts > 0:
            self._machine.failing_starts -= 1
            raise HypervisorError("QEMU did not come up")
        was_on = self.power_of(vm_id) is Power.ON
        await super().start(vm_id, spec)
        if not was_on:
            vm = self._disk(vm_id)
            vm.content += f"{vm_id} "
            self._save(vm_id, vm, vm.power)
        if not was_on and self._machine.dying_starts > 0:
            self._machine.dying_starts -= 1
            self.qemu_dies(vm_id)


def _be_quick() -> None:
    """Shorter times, the same order of things."""
    for module in (recover, session):
        vars(module)["TOMBSTONE_SLACK_S"] = TOMBSTONE_SLACK_S
    session.LOOK_FOR_BURIALS_S = session.LOOK_AGAIN_S = TOMBSTONE_SLACK_S
    connect.LONGEST_DELAY_S = LONGEST_DELAY_S
    vars(stream)["CLIENT_SILENCE_S"] = CLIENT_SILENCE_S


def _read(path: Path) -> dict[str, str] | None:
    try:
        table: dict[str, str] = json.loads(path.read_bytes())
        return table
    except FileNotFoundError:
        return None


def _meet(address: str, me: dict[str, Any]) -> dict[str, Any]:
    """Say who is here, and wait for the answer; nothing else happens in this process meanwhile."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as harness:
        harness.connect(address)
        harness.sendall(json.dumps(me).encode() + b"\n")
        answer = harness.makefile().readline()
    table: dict[str, Any] = json.loads(answer or "{}")
    return table
