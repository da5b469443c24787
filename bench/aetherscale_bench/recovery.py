"""How long 200 agents take to consume again after their broker was killed, and how they come."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from aetherscale_bench import node
from aetherscale_bench.figures import Result, Sample, Target
from aetherscale_testing.forkserver import ForkServer
from aetherscale_testing.recovery import Herd, Recovery, count_calls

AGENTS, VMS = 200, 3
LIMIT_S = 10
"""The promise, where the broker kept its data."""


@dataclass(frozen=True)
class Fall:
    """What happens to the broker."""

    down_s: float
    wiped: bool

    def __str__(self) -> str:
        return f"{'wiped' if self.wiped else 'killed'}, down {self.down_s:.0f} s"


FALLS = (Fall(5, wiped=False), Fall(30, wiped=False), Fall(5, wiped=True))
SHOWN = {
    "half": ("half consume", "s"),
    "consuming": ("all consume and answer", "s"),
    "agents_cpu": ("CPU of all agents", "s"),
    "broker_cpu": ("CPU of the broker", "s"),
    "peak": ("connections accepted in 100 ms, most", "1"),
    "planned_peak": ("tries that fell into 100 ms, most", "1"),
    "busy_cores": ("busy cores", "1"),
}


def measure(runs: int) -> Result:
    """s since the broker's return, the moment its log says that it listens."""
    facts: dict[str, Any] = {"agents": AGENTS, "VMs of each": VMS}
    found: dict[Fall, list[Recovery]] = {fall: [] for fall in FALLS}
    with node.node() as (broker, folder), ForkServer() as server:
        facts["RabbitMQ"] = node.version(broker)
        facts |= {f"{name} until an agent consumes": n for name, n in count_calls(broker, folder).items()}
        herd = Herd(broker, server, folder, AGENTS, VMS)
        try:
            herd.start()
            for _ in range(runs):
                for fall in FALLS:
                    found[fall].append(herd.recover(fall.down_s, wiped=fall.wiped))
        finally:
            herd.stop()
    samples = [sample for fall, some in found.items() for sample in sampled(fall, some)]
    return Result("recovery", tuple(samples), tuple(targets(found)), facts)


def sampled(fall: Fall, runs: Sequence[Recovery]) -> Iterator[Sample]:
    """A sample of each figure that is shown."""
    for name, (what, unit) in SHOWN.items():
        yield Sample(f"{fall}: {what}", unit, tuple(float(getattr(run, name)) for run in runs))


def targets(found: dict[Fall, list[Recovery]]) -> Iterator[Target]:
    """The promise is kept by the worst run."""
    for fall, runs in found.items():
        if not fall.wiped:
            worst = max(run.consuming for run in runs)
            yield Target(f"{fall}: all consume and answer within {LIMIT_S} s", worst, LIMIT_S)
