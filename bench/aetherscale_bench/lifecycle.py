"""start-vm, stop-vm and delete-vm on a host: what they take beyond systemd's and the guest's own time.

- start: beside systemd starting the same VM's unit, until its QEMU runs the guest, with nobody in between;
- stop: until the press of the power button, which QEMU stamps, and from when the unit is at rest, by systemd's clock,
  to the answer. What lies between is the guest's, QEMU's (until its process has ended), and systemd's;
- delete: the whole of it, of a VM that is off; of one that runs, all but QEMU's own end and systemd's part in it.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
OFF, RUNNING = "delete-vm of a VM that is off", "delete-vm of a VM that runs"
STOP = "stop-vm"
GUEST = "the guest's: power button to its last word"
QEMUS = "QEMU's own end: from SHUTDOWN until its process is gone"
SYSTEMDS = "systemd's: until the unit is at rest"
OURS = "the rest, which is ours"
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

    def watched(self, vm_id: str, action: Callable[[], object]) -> dict[str, float]:
        """What an action took that ends a VM's run, in ms: the whole, and of it others' parts and ours."""
        monitor = units.monitor(vm_id, "stop")
        self.host.do(["watch", monitor, f"aetherscale-vm@{vm_id}.service"])
        begin = time.time()
        action()
        end = time.time()
        (told,) = self.host.do(["told", monitor])
        at = {"begin": begin, "end": end, **dict(reversed(told))}  # the first press
        return read_parts(at)

    def stop(self) -> dict[str, float]:
        """Of a guest that is up."""
        vm_id = self.fleet.create("--wait", "cloud-init")
        parts = self.watched(vm_id, partial(expect, self.client, "stop-vm", vm_id, "stopped"))
        expect(self.client, "delete-vm", vm_id, "deleted")
        self.rest()
        return parts

    def delete_running(self) -> dict[str, float]:
        """Of a VM that runs."""
        vm_id = created(self.client)
        parts = self.watched(vm_id, partial(expect, self.client, "delete-vm", vm_id, "deleted"))
        self.rest()
        return parts

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
        samples += in_turn({OFF: bench.delete_off}, runs, {OFF: bench.rest})
        samples += rows(RUNNING, [bench.delete_running() for _ in range(runs + 1)][1:])
        samples += rows(STOP, [bench.stop() for _ in range(STOPS)])
    return Result("lifecycle", tuple(samples), tuple(targets(samples)), facts)


def read_parts(at: Mapping[str, float]) -> dict[str, float]:
    """Whose each ms was, between an action's `begin` and `end`, by when QEMU and systemd told of what, in s."""
    parts = {QEMUS: at["EXIT"] - at["SHUTDOWN"], SYSTEMDS: at["REST"] - at["EXIT"]}
    if "POWERDOWN" in at:
        parts = {GUEST: at["SHUTDOWN"] - at["POWERDOWN"], **parts}
    whole = at["end"] - at["begin"]
    parts = {"": whole, **parts, OURS: whole - sum(parts.values())}
    return {name: round(part * 1000, 3) for name, part in parts.items()}


def rows(what: str, runs: Sequence[Mapping[str, float]]) -> list[Sample]:
    """The whole, and each part."""
    names = {part: f"{what}; {part}" if part else what for part in runs[0]}
    return [Sample(name, "ms", tuple(run[part] for run in runs)) for part, name in names.items()]


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
    for name in (f"{STOP}; {OURS}", OFF, f"{RUNNING}; {OURS}"):
        yield Target(f"{name}: at most {LIMIT_MS} ms", of[name], LIMIT_MS)
