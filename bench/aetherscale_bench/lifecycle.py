"""start-vm, stop-vm and delete-vm on a host: what they take beyond systemd's and the guest's own time.

- start: beside systemd starting the same VM's unit, until its QEMU runs the guest, with nobody in between;
- stop: until the press of the power button, and from the end of QEMU to the answer. What lies between is the guest's:
  QEMU stamps the press and its own shutdown, on the same clock;
- delete: the whole of it, of a VM that is off; of one that runs, all but QEMU's own end.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from aetherscale_bench import units
from aetherscale_bench.asking import Asker, asking_at
from aetherscale_bench.create import HOST, alone, created
from aetherscale_bench.figures import Result, Sample, Target
from aetherscale_bench.fleet import Fleet
from aetherscale_bench.on_host import OnHost, on_host
from aetherscale_bench.timing import in_turn, milliseconds
from aetherscale_bench.units import expect

START, BY_HAND = "start-vm, publish to QEMU running", "the same unit started over D-Bus, to QEMU running"
OFF, RUNNING = "delete-vm of a VM that is off", "delete-vm of a VM that runs, but for QEMU's own end"
STOP, GUEST = "stop-vm, but for the guest's own time", "of stop-vm, the guest's own: power button to QEMU's end"
WHOLE = "stop-vm, publish to answer"
LIMIT_MS = 30
STOPS = 7


@dataclass(frozen=True)
class Bench:
    """One VM of a host at a time."""

    fleet: Fleet
    host: OnHost
    client: Asker

    def start(self, vm_id: str) -> float:
        """By the agent."""
        return milliseconds(lambda: expect(self.client, "start-vm", vm_id, "starting"))

    def start_by_hand(self, vm_id: str) -> float:
        """By systemd alone."""
        return units.start(self.host, vm_id)

    def kill(self, vm_id: str) -> None:
        """Pull the plug: what is timed next does not wait for what systemd then tidies up."""
        units.kill(self.host, self.client, vm_id)

    def rest(self) -> None:
        """Wait until nothing is left of what was deleted."""
        units.rest(self.host)

    def watched(self, vm_id: str, action: Callable[[], object]) -> tuple[float, float, dict[str, float]]:
        """When an action began and ended, and when QEMU told of what, as times in s."""
        monitor = units.monitor(vm_id, "stop")
        self.host.do(["watch", monitor])
        begin = time.time()
        action()
        end = time.time()
        (told,) = self.host.do(["told", monitor])
        return begin, end, dict(reversed(told))

    def stop(self) -> tuple[float, float, float]:
        """ms of a stop: the whole, the guest's, and what is left, of a guest that is up."""
        vm_id = self.fleet.create("--wait", "cloud-init")
        begin, end, told = self.watched(vm_id, partial(expect, self.client, "stop-vm", vm_id, "stopped"))
        expect(self.client, "delete-vm", vm_id, "deleted")
        self.rest()
        whole, guest = (end - begin) * 1000, (told["EOF"] - told["POWERDOWN"]) * 1000
        return whole, guest, whole - guest

    def delete_running(self) -> float:
        """ms of the deletion of a VM that runs, but for QEMU's own end."""
        vm_id = created(self.client)
        begin, end, told = self.watched(vm_id, partial(expect, self.client, "delete-vm", vm_id, "deleted"))
        return (end - begin - (told["EOF"] - told["SHUTDOWN"])) * 1000

    def delete_off(self) -> float:
        """ms of the deletion of a VM that is off."""
        vm_id = created(self.client)
        self.kill(vm_id)
        return milliseconds(partial(expect, self.client, "delete-vm", vm_id, "deleted"))


def measure(fleet: Fleet, runs: int) -> Result:
    """ms by a client that is connected already."""
    facts = {"host": f"{HOST}, Debian 13"}
    with on_host(fleet, HOST) as host, asking_at(fleet.target()) as client, alone(fleet):
        bench = Bench(fleet, host, client)
        samples = starts(bench, runs)
        deletes = {OFF: bench.delete_off, RUNNING: bench.delete_running}
        samples += in_turn(deletes, runs, dict.fromkeys(deletes, bench.rest))
        stops = [bench.stop() for _ in range(STOPS)]
        for name, values in zip((WHOLE, GUEST, STOP), zip(*stops, strict=True), strict=True):
            samples.append(Sample(name, "ms", tuple(round(value, 3) for value in values)))
    return Result("lifecycle", tuple(samples), tuple(targets(samples)), facts)


def starts(bench: Bench, runs: int) -> list[Sample]:
    """Of one VM that is off, in turn."""
    vm_id = created(bench.client)
    bench.kill(vm_id)
    kill = partial(bench.kill, vm_id)
    samples = in_turn(
        {START: partial(bench.start, vm_id), BY_HAND: partial(bench.start_by_hand, vm_id)},
        runs,
        {START: kill, BY_HAND: kill},
    )
    expect(bench.client, "delete-vm", vm_id, "deleted")
    return samples


def targets(samples: list[Sample]) -> Iterator[Target]:
    """What is ours."""
    of = {sample.name: sample.median for sample in samples}
    yield Target(f"start-vm beyond {BY_HAND}: at most {LIMIT_MS} ms", of[START] - of[BY_HAND], LIMIT_MS)
    for name in (STOP, OFF, RUNNING):
        yield Target(f"{name}: at most {LIMIT_MS} ms", of[name], LIMIT_MS)
