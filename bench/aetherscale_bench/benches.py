"""The benchmarks by name. A module of each is imported when it runs: none pays for what another needs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from aetherscale_bench import installed
from aetherscale_bench.facts import machine
from aetherscale_bench.figures import Result
from aetherscale_bench.fleet import Fleet


@dataclass(frozen=True)
class Bench:
    """A benchmark: `measure(runs)`, or with a lab `measure(fleet, runs)`, of module `aetherscale_bench.<module>`."""

    about: str
    module: str
    runs: int
    hosts: int = 0  #: how many compute hosts its lab has; 0: it needs none
    least: int = 1  #: the fewest runs that say anything


BENCHES = {
    "startup": Bench("how long the CLI takes to say anything: --help, completion", "startup", runs=21),
    "list-vms": Bench("list-vms as a process: 3 hosts, 30 VMs; a dead host; a frozen one", "listing", runs=21, hosts=3),
    "create": Bench("create-vm beside its floor and beside libvirt, and 20 at once", "create", runs=21, hosts=3),
    "lifecycle": Bench("start, stop, delete: what they take beyond systemd's and the guest's own", "lifecycle", 21, 3),
    "agent": Bench("what an agent takes of its host, without VMs and with 100", "agent", runs=3, hosts=3),
    "scale": Bench("list-vms of 1,000 simulated hosts with 10 VMs each", "scale", runs=100, least=3),
    "placement": Bench("where 1,000 creates go on 200 simulated hosts; one for a single host", "placement", 21),
    "queues": Bench("classic and quorum queues, for creates and for hosts", "queues", runs=201),
    "recovery": Bench("200 agents, from their broker's return until all consume again", "recovery", runs=3),
    "memory": Bench("what an agent takes of its host's memory", "memory", runs=3),
    "streams": Bench("bytes through the broker: tunnel-vm, and list-vms meanwhile", "streams", runs=5),
    "broker": Bench("what a host and a VM take of the broker", "broker", runs=1),
    "rollout": Bench("site.yml from nothing, once more, with a host added; what a host costs", "rollout", runs=3),
    "article": Bench("list-vms beside the article's client, which waits for seconds", "article", runs=11),
}


def run(names: Sequence[str], runs: int | None = None) -> Iterator[Result]:
    """Run benchmarks one after the other; those on a lab of the same size share it, in the order of `BENCHES`."""
    installed.install()
    with ExitStack() as stack:
        fleets: dict[int, Fleet] = {}
        for name in (name for name in BENCHES if name in names):
            bench = BENCHES[name]
            measure: Callable[..., Result] = import_module(f"aetherscale_bench.{bench.module}").measure
            count = runs or bench.runs
            if not bench.hosts:
                facts = machine(count)
                yield told_of(measure(count), facts)
                continue
            if bench.hosts not in fleets:
                fleets[bench.hosts] = stack.enter_context(Fleet(bench.hosts))
            facts = machine(count) | fleets[bench.hosts].facts()
            yield told_of(measure(fleets[bench.hosts], count), facts)


def told_of(result: Result, facts: Mapping[str, Any]) -> Result:
    """A result that says on what it was measured, too."""
    return replace(result, facts={**facts, **result.facts})
