"""20 creates at once on all hosts, of guests that take no CPU from the others' start; beside a floor and libvirt.

Those are shared out evenly, and started on all hosts at once. How the agents share is for them to say: it is a fact.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from typing import TypeVar

from aetherscale_bench import floors
from aetherscale_bench.asking import asking_at, vm_of
from aetherscale_bench.figures import Sample
from aetherscale_bench.fleet import Fleet
from aetherscale_bench.floors import Floors
from aetherscale_bench.on_host import Chain
from aetherscale_bench.timing import milliseconds, order
from aetherscale_testing import guests

Got = TypeVar("Got")

COUNT, ROUNDS = 20, 5
OURS = f"{COUNT} at once: create-vm by one client"
FLOOR = f"{COUNT} at once: floor until QEMU runs the guest"
PROCESSES = f"{COUNT} at once: aetherscale-cli create-vm, whole processes"
VIRSH = f"{COUNT} at once: qemu-img create and virsh create, whole processes"
NAMES = (OURS, FLOOR, PROCESSES, VIRSH)


def shares(hosts: int) -> list[int]:
    """How many of them each of so many hosts gets, evenly."""
    return [len(range(number, COUNT, hosts)) for number in range(hosts)]


def last(name: str) -> str:
    """The sample of when the last of these was there."""
    return f"{name}, the last"


@dataclass
class Bench:
    """Hosts, and what creates many guests on them; each way says after how many ms each of them was there."""

    fleet: Fleet
    floors: Sequence[Floors]
    made: list[str] = field(default_factory=list)
    shared: set[str] = field(default_factory=set)  #: how many of ours were on each host

    def ours(self) -> list[float]:
        """By a client that is connected already."""
        options = {"image": guests.POLITE, "memory": 128, "disk": 1}
        with asking_at(self.fleet.target()) as client:  # anew: while others have their turn nobody answers heartbeats
            asked = client.ask_each("create-vm", [options] * COUNT, COUNT)
        self.made += map(vm_of, asked.answers)
        counts = Counter(answer.host for answer in asked.answers).values()
        self.shared.add(", ".join(map(str, sorted(counts, reverse=True))))
        return list(asked.times)

    def processes(self) -> list[float]:
        """By the CLI."""

        def create() -> float:
            return milliseconds(lambda: self.made.append(self.fleet.create("--image", guests.POLITE)))

        return together([create] * COUNT)

    def by(self, chain: Callable[[Floors, int], Chain]) -> list[float]:
        """By steps on each host."""
        each = zip(self.floors, shares(len(self.floors)), strict=True)
        ways = [partial(one.host.each_ms, [chain(one, number) for number in range(count)]) for one, count in each]
        return [ms for times in together(ways) for ms in times]

    def clear(self) -> None:
        """Remove them all."""
        if self.made:
            self.fleet.cli("delete-vm", *self.made)
            self.made.clear()
        together([one.clear for one in self.floors])


def measure(fleet: Fleet, made: Sequence[Floors], rounds: int) -> tuple[list[Sample], dict[str, str]]:
    """When the median and the last of them was there, each way in turn, the first round uncounted; hosts' shares."""
    for host in fleet.computes:
        fleet.give_sectors(host)
    fleet.wait_connected()
    images = [floors.image(fleet, host, guests.POLITE) for host in fleet.computes]
    bench = Bench(fleet, [replace(one, base=base) for one, base in zip(made, images, strict=True)])
    ways: dict[str, Callable[[], list[float]]] = {
        OURS: bench.ours,
        FLOOR: lambda: bench.by(Floors.runs),
        PROCESSES: bench.processes,
        VIRSH: lambda: bench.by(Floors.virsh),
    }
    took: dict[str, list[list[float]]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name in order(list(ways), turn):
            took[name].append(ways[name]())
            bench.clear()
    samples = [
        Sample(title, "ms", tuple(round(pick(one), 3) for one in times[1:]))
        for name, times in took.items()
        for title, pick in ((f"{name}, the median", median), (last(name), max))
    ]
    return samples, {f"hosts of the {COUNT} at once by create-vm": " or ".join(sorted(bench.shared))}


def together(actions: Sequence[Callable[[], Got]]) -> list[Got]:
    """What they come to, done at once."""
    with ThreadPoolExecutor(len(actions)) as pool:
        return [future.result() for future in [pool.submit(action) for action in actions]]
