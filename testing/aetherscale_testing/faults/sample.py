"""A world as it should be, and ways to change it in one place: for tests of the checker."""

from dataclasses import dataclass, field, replace
from typing import Any

from aetherscale_protocol import names, topology
from aetherscale_testing.faults.checker import Kind, check
from aetherscale_testing.faults.ledger import Entry, Ledger, Told, Verb
from aetherscale_testing.faults.views import BrokerView, ClaimView, HostView, QueueView, RecordView

NOW = 10_000.0
DEADLINE = NOW - 5  # of all that was asked
EXPIRES = topology.CLAIM_EXPIRES_MS

ON, OFF, NEW, TOMB = "runsaaaa", "restsaaa", "newaaaaa", "tombaaaa"
"""A running VM on h1, a stopped one on h2, an id of which there is nothing, and a deleted one of h1."""

DONE, REFUSED, UNKNOWN, NONE = Told("done"), Told("refused", "no-host"), Told("unknown"), Told("none")


@dataclass
class World:
    """What `check` is given, to be changed."""

    hosts: dict[str, HostView]
    broker: BrokerView
    entries: list[Entry] = field(default_factory=list)

    def find(self, strict: bool = False) -> set[Kind]:
        """The kinds of what the checker finds."""
        found = check(self.hosts.values(), self.broker, Ledger(tuple(self.entries)), NOW, strict)
        assert all(v.text and str(v).startswith(v.kind) for v in found)
        return {v.kind for v in found}

    def on(self, host: str, **changes: Any) -> None:
        """Add to what a host has: ids to its sets, entries to its mappings."""
        view = self.hosts[host]
        self.hosts[host] = replace(view, **{name: joined(getattr(view, name), more) for name, more in changes.items()})

    def off(self, host: str, *parts: str, vm: str) -> None:
        """Take a VM out of parts of what a host has."""
        view = self.hosts[host]
        self.hosts[host] = replace(view, **{part: less(getattr(view, part), vm) for part in parts})

    def record(self, host: str, vm: str, **changes: Any) -> None:
        """Change a host's record of a VM."""
        self.on(host, records={vm: replace(self.hosts[host].records[vm], **changes)})

    def bind(self, vm: str, *hosts: str) -> None:
        """Make the directory name these hosts for a VM."""
        rest = less(self.broker.bindings, vm)
        self.broker = replace(self.broker, bindings={**rest, vm: frozenset(hosts)} if hosts else rest)

    def claim(self, vm: str, owner: str = "h1", expires_ms: int | None = EXPIRES) -> None:
        """Put a claim into the broker."""
        self.broker = replace(self.broker, claims={**self.broker.claims, vm: ClaimView(owner, expires_ms)})

    def queue(self, name: str, **changes: int) -> None:
        """Change or make a queue."""
        queue = replace(self.broker.queues.get(name, QueueView()), **changes)
        self.broker = replace(self.broker, queues={**self.broker.queues, name: queue})

    def tell(self, verb: Verb, vm: str, told: Told, at: float = NOW - 3, request: str = "", took: float = 0.5) -> None:
        """A command of a client, and its answer."""
        told_at = None if told.outcome == "none" else at + took
        self.entries.append(Entry(vm, request or f"{verb}-{vm}", verb, DEADLINE, at, told, told_at))

    def forget(self, vm: str, verb: Verb = "create") -> None:
        """Take what was asked out of the ledger."""
        self.entries = [e for e in self.entries if (e.vm_id, e.verb) != (vm, verb)]

    def vanish(self, host: str, vm: str) -> None:
        """Take all that there is of a VM from a host, and from the directory."""
        self.off(host, "records", "disks", "running", "units", "processes", "runtime", vm=vm)
        self.bind(vm)


def joined(old: Any, more: Any) -> Any:
    if isinstance(old, dict):
        return {**old, **more}
    return old + more if isinstance(old, tuple) else old | more


def less(old: Any, vm: str) -> Any:
    return {k: v for k, v in old.items() if k != vm} if isinstance(old, dict) else old - {vm}


def clean() -> World:
    """A world as it should be."""
    h1 = HostView(
        "h1",
        records={
            ON: RecordView("ready", f"create-{ON}", True, DEADLINE, "on"),
            TOMB: RecordView("gone", f"create-{TOMB}", True, DEADLINE, "off"),
        },
        disks=frozenset({ON}),
        running=frozenset({ON}),
        units=frozenset({ON}),
        processes={ON: 1},
        runtime=frozenset({ON}),
    )
    h2 = HostView(
        "h2",
        records={OFF: RecordView("ready", f"create-{OFF}", True, DEADLINE, "off")},
        disks=frozenset({OFF}),
        units=frozenset({OFF}),
        runtime=frozenset({OFF}),
    )
    own = (*topology.SHARED_BINDINGS, *topology.host_bindings("h1"), *topology.host_bindings("h2"))
    broker = BrokerView(
        bindings={ON: frozenset({"h1"}), TOMB: frozenset({"h1"}), OFF: frozenset({"h2"})},
        other_bindings=frozenset((b.exchange, b.queue, b.key) for b in own)
        | {(b.source, b.destination, "") for b in topology.EXCHANGE_BINDINGS}
        | {("", "any", "any")},
        claims={ON: ClaimView("h1", EXPIRES), OFF: ClaimView("h2", EXPIRES)},
        queues={
            **{q.name: QueueView(consumers=2) for q in topology.SHARED_QUEUES},
            **{names.host_queue(h): QueueView(consumers=1) for h in ("h1", "h2")},
            **{names.lock_queue(h): QueueView() for h in ("h1", "h2")},
            names.claim_queue(ON): QueueView(),
        },
    )
    world = World({"h1": h1, "h2": h2}, broker)
    for vm in (ON, OFF, TOMB):
        world.tell("create", vm, Told("done", "starting"), NOW - 100)
    world.tell("kill", OFF, Told("done", "stopped"), NOW - 50)
    world.tell("delete", TOMB, Told("done", "deleted"), NOW - 50)
    return world
