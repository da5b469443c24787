"""site.yml: from nothing, once more, with a host added; and what each further host costs. On labs of its own.

"From nothing" are bare hosts: systemd, sshd, Python, and a repository of packages that is near. The agent's wheels are
built beforehand, as `make wheelhouse` does once per version.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from aetherscale_bench.figures import Result, Sample, Target
from aetherscale_bench.fleet import SYNCS, Fleet
from aetherscale_bench.timing import milliseconds

NAME = "rollout"
HOSTS, FEW, MANY = 3, 4, 12
AGAIN = f"second run, {HOSTS} hosts"
LIMIT_S = 25
LIST = "the new list of the fleet and their agents' restart for it"
FLEET_LIST = {"Say what differs", "Write the agent's configuration", "Restart the agent"}
"""The tasks that bring a new list of the fleet to a host's agent, which reads it when it starts."""


class Run:
    """One roll-out: how long it took, and which tasks changed something on which host."""

    def __init__(self, fleet: Fleet) -> None:
        said = ""

        def roll_out() -> None:
            nonlocal said
            said = fleet.roll_out()

        self.seconds = round(milliseconds(roll_out) / 1000, 2)
        self.changed = list(read_changes(said))

    def tasks(self, *hosts: str) -> set[str]:
        """The tasks that changed something on one of these hosts."""
        return {task for host, task in self.changed if host in hosts}

    def unchanged(self) -> "Run":
        """Itself.

        :raise RuntimeError: when it changed something: then it is not the second run of anything.
        """
        if self.changed:
            raise RuntimeError(f"a second run of site.yml changed something: {self.changed}")
        return self


def read_changes(said: str) -> Iterator[tuple[str, str]]:
    """Hosts and tasks that changed something, of what Ansible says."""
    task = ""
    for line in said.splitlines():
        if begun := re.match(r"(?:TASK|RUNNING HANDLER) \[(?:[\w.]+ : )?(.*)\] \**$", line):
            task = begun[1]
        elif changed := re.match(r"changed: \[([\w.-]+)", line):
            yield changed[1], task


def measure(runs: int) -> Result:
    """s of whole runs of ansible-playbook; each lab is a new one."""
    samples, targets = add_one(runs)
    few, many = from_nothing(FEW), from_nothing(MANY)
    growth = [
        seconds(f"{what}: each host between {FEW} and {MANY}", (large.median - small.median) / (MANY - FEW))
        for what, small, large in zip(("from nothing", "second run"), few, many, strict=True)
    ]
    return Result(NAME, (*samples, *few, *many, *growth), tuple(targets), SYNCS)


def add_one(runs: int) -> tuple[list[Sample], list[Target]]:
    """A fleet of three, rolled out twice and more; then with a fourth host."""
    with started(HOSTS + 1) as fleet:
        *known, added = fleet.computes
        fleet.computes = known
        first = Run(fleet)
        again = [Run(fleet).unchanged().seconds for _ in range(runs)]
        fleet.computes = [*known, added]
        more = Run(fleet)
    touched = more.tasks(*known) - FLEET_LIST
    if not more.tasks(added) or not more.tasks(*known):
        raise RuntimeError(f"a host was added, and it shows nowhere: {more.changed}")
    samples = [
        seconds(f"from nothing, {HOSTS} hosts", first.seconds),
        seconds(AGAIN, *again),
        seconds(f"one host added to {HOSTS}", more.seconds),
    ]
    return samples, [
        Target(f"{AGAIN}: under {LIMIT_S} s", samples[1].median, LIMIT_S),
        Target(f"one host added: tasks that change the others, but for {LIST}", len(touched), 0),
    ]


def from_nothing(hosts: int) -> tuple[Sample, Sample]:
    """A fleet of so many hosts, rolled out twice."""
    with started(hosts) as fleet:
        first, second = Run(fleet), Run(fleet).unchanged()
    return seconds(f"from nothing, {hosts} hosts", first.seconds), seconds(f"second run, {hosts} hosts", second.seconds)


@contextmanager
def started(hosts: int, name: str = NAME) -> Iterator[Fleet]:
    """Bare hosts, of a lab that goes with them."""
    fleet = Fleet(hosts, name)
    with ExitStack() as stack:
        stack.push(fleet.__exit__)
        fleet.start()
        yield fleet


def seconds(name: str, *values: float) -> Sample:
    """A sample in s."""
    return Sample(name, "s", tuple(round(value, 2) for value in values))
