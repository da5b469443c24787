"""site.yml: from nothing, once more, with a host added; and what each further host costs. On labs of its own.

"From nothing" are bare hosts: systemd, sshd, Python, and a repository of packages that is near. The agent's wheels are
built beforehand, as `make wheelhouse` does once per version.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from aetherscale_bench.figures import Result, Sample, Target
from aetherscale_bench.fleet import BROKER, SYNCS, Fleet
from aetherscale_bench.timing import milliseconds

NAME = "rollout"
HOSTS, FEW, MANY = 3, 4, 12
AGAIN = f"second run, {HOSTS} hosts"
LIMIT_S = 25
BUT = "but for its broker user and the new list of the fleet"
FLEET_LIST = frozenset({"Say what differs", "Write the agent's configuration", "Restart the agent"})
"""The tasks that bring a new list of the fleet to a host's agent, which reads it when it starts."""
USER = frozenset({"Say what differs", "Import definitions"})
"""The tasks that give the broker a new host's user, with its rights."""
PASSWORD = frozenset({"Make the passwords that are missing"})
"""The one that makes its password, on the controller."""
STATE = """\
cd /etc
find . -type f ! -path ./aetherscale/agent.toml -exec sha256sum {} + | sort -k 2
test ! -e aetherscale/agent.toml || sed '/^fleet = /d' aetherscale/agent.toml | sha256sum
echo
systemctl show --property Id,MainPID,ActiveEnterTimestamp 'aetherscale-vm@*' rabbitmq-server.service
"""
"""Of a host: its files of /etc, but for the list of the fleet; and of each VM and broker which process it is."""


class Run:
    """One roll-out: how long it took, and which tasks changed something on which host."""

    def __init__(self, fleet: Fleet) -> None:
        said = ""

        def roll_out() -> None:
            nonlocal said
            said = fleet.roll_out()

        self.seconds = round(milliseconds(roll_out) / 1000, 2)
        self.changed = list(read_changes(said))

    def tasks(self, host: str) -> set[str]:
        """The tasks that changed something on this host."""
        return {task for changed, task in self.changed if changed == host}

    def unchanged(self) -> "Run":
        """Itself.

        :raise RuntimeError: when it changed something: then it is not the second run of anything.
        """
        if self.changed:
            raise RuntimeError(f"a second run of site.yml changed something: {self.changed}")
        return self


def read_changes(said: str) -> Iterator[tuple[str, str]]:
    """Hosts and tasks that changed something, of what Ansible says: where it was done, not for which host."""
    task = ""
    for line in said.splitlines():
        if begun := re.match(r"(?:TASK|RUNNING HANDLER) \[(?:[\w.]+ : )?(.*)\] \**$", line):
            task = begun[1]
        elif changed := re.match(r"changed: \[(?:\S+ -> )?([\w.-]+)", line):
            yield changed[1], task


def measure(runs: int) -> Result:
    """s of whole runs of ansible-playbook; each lab is a new one."""
    samples, targets, facts = add_one(runs)
    few, many = from_nothing(FEW), from_nothing(MANY)
    growth = [
        seconds(f"{what}: each host between {FEW} and {MANY}", (large.median - small.median) / (MANY - FEW))
        for what, small, large in zip(("from nothing", "second run"), few, many, strict=True)
    ]
    return Result(NAME, (*samples, *few, *many, *growth), tuple(targets), SYNCS | facts)


def add_one(runs: int) -> tuple[list[Sample], list[Target], dict[str, str]]:
    """A fleet of three, rolled out twice and more; then with a fourth host: and what that changed on which machine."""
    with started(HOSTS + 1) as fleet:
        *known, added = fleet.computes
        others = [BROKER, *known]
        fleet.computes = known
        first = Run(fleet)
        again = [Run(fleet).unchanged().seconds for _ in range(runs)]
        fleet.wait_connected()
        fleet.create("--host", known[0])
        before = {host: read_state(fleet.run(host, "sh", "-ec", STATE)) for host in others}
        if not any(name.startswith("aetherscale-vm@") for name in before[known[0]]):
            raise RuntimeError(f"{known[0]} has a VM, and it is not seen: {before[known[0]]}")
        fleet.computes = [*known, added]
        more = Run(fleet)
        after = {host: read_state(fleet.run(host, "sh", "-ec", STATE)) for host in others}
    samples = [
        seconds(f"from nothing, {HOSTS} hosts", first.seconds),
        seconds(AGAIN, *again),
        seconds(f"one host added to {HOSTS}", more.seconds),
    ]
    changed = {host: sorted(more.tasks(host)) for host in ("localhost", *others)}
    differs = [f"{host}: {name}" for host in others for name in differing(before[host], after[host])]
    facts = {"changed for one host more": "; ".join(f"{host}: {', '.join(tasks)}" for host, tasks in changed.items())}
    targets = [
        Target(f"{AGAIN}: under {LIMIT_S} s", samples[1].median, LIMIT_S),
        Target(f"one host added: tasks that change another machine, {BUT}", len(strays(more, known, added)), 0),
        Target(f"one host added: files of /etc, VMs and brokers that it changes there, {BUT}", len(differs), 0),
    ]
    return samples, targets, facts | ({"differs": "; ".join(differs)} if differs else {})


def read_state(said: str) -> dict[str, str]:
    """What `STATE` prints, by name: each file's hash, each unit's process and start."""
    files, *units = said.strip().split("\n\n")
    named = {name: digest for digest, name in (line.split(maxsplit=1) for line in files.splitlines())}
    for unit in units:
        properties = dict(line.split("=", 1) for line in unit.splitlines())
        named[properties.pop("Id")] = str(properties)
    return named


def differing(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """The names of what is there no more, is new, or is another."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def strays(run: Run, known: Sequence[str], added: str) -> set[tuple[str, str]]:
    """Where a run that added a host changed what it need not: machines, and the tasks that did it.

    :raise RuntimeError: when a task changed nothing that must, so that what may change is less than is said here.
    """
    may = {"localhost": PASSWORD, BROKER: USER, **dict.fromkeys(known, FLEET_LIST)}
    idle = [(host, task) for host, tasks in may.items() for task in tasks - run.tasks(host)]
    if idle or not run.tasks(added):
        raise RuntimeError(f"a host was added, and these tasks changed nothing: {idle}; {run.changed}")
    return {(host, task) for host, task in run.changed if host != added and task not in may.get(host, ())}


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
