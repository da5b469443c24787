"""The independent checker: what hosts and broker have, held against what clients were told. Pure, no I/O.

It is asked once a system has settled: no command under way, every host and the broker up, every agent connected.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from aetherscale_protocol import names, topology
from aetherscale_testing.faults.ledger import Entry, Ledger
from aetherscale_testing.faults.views import BrokerView, HostView, RecordView

TOMBSTONE_SLACK_S = 30.0
"""How long after its create's deadline a tombstone may still be there: the agent's own slack, and time to reconnect."""


class Kind(StrEnum):
    """Everything that can be wrong."""

    DOUBLE = "double"  #: a VM, or something of it, is on more than one host
    LOST = "lost"  #: told done, never told to delete, and nowhere
    REFUSED_EXISTS = "refused-exists"  #: the create was refused, and the VM is there
    RESURRECTED = "resurrected"  #: told deleted, and it is there
    UNASKED = "unasked"  #: a VM that nobody asked for
    DONE_TWICE = "done-twice"  #: two requests were told that they made the same VM
    TOLD_BOTH = "told-both"  #: one request was told both that it was done and that it was not
    SHOULD_RUN = "should-run"  #: the last command was to run, and was told done; it is off
    SHOULD_REST = "should-rest"  #: the last command was to stop, and was told done; it runs

    UNSETTLED = "unsettled"  #: a record of work that is still to be done, or undone
    DISK_MISSING = "disk-missing"  #: a VM without a disk
    TOMBSTONE_OLD = "tombstone-old"  #: past its time
    UNWANTED_POWER = "unwanted-power"  #: the journal wants it on and it is off, or the reverse
    ORPHAN_DISK = "orphan-disk"
    ORPHAN_UNIT = "orphan-unit"
    ORPHAN_PROCESS = "orphan-process"
    ORPHAN_RUNTIME = "orphan-runtime"
    PROCESS_MISSING = "process-missing"  #: an active unit without QEMU
    PROCESS_STRAY = "process-stray"  #: QEMU outside of its unit
    PROCESSES_MANY = "processes-many"  #: more than one QEMU for one VM
    CUT_OFF = "cut-off"  #: a VM that is on without all of its network
    STRAY = "stray"  #: anything else that should not be on a host

    BINDING_MISSING = "binding-missing"  #: the directory does not name the host that has the VM
    BINDING_STRAY = "binding-stray"  #: it names a host for a VM that there is not
    BINDING_WRONG = "binding-wrong"  #: it names another host than the one that has it
    BINDING_DOUBLE = "binding-double"  #: it names two hosts
    KEY_MISSING = "key-missing"  #: a queue lacks a binding of the topology
    KEY_STRAY = "key-stray"  #: a binding that the topology does not know
    CLAIM_ENDLESS = "claim-endless"  #: a claim that does not expire in its time
    CLAIM_OWNER = "claim-owner"  #: a claim of a host that there is not
    CLAIM_FORGOTTEN = "claim-forgotten"  #: nothing accounts for it any more
    QUEUE_UNKNOWN = "queue-unknown"
    QUEUE_MISSING = "queue-missing"
    MESSAGES_LEFT = "messages-left"
    CONSUMERS_MANY = "consumers-many"
    CONSUMERS_MISSING = "consumers-missing"


@dataclass(frozen=True, order=True)
class Violation:
    """One thing that is wrong; `vm_id` and `host` are '' where it is about none."""

    kind: Kind
    vm_id: str
    host: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


def check(
    hosts: Iterable[HostView], broker: BrokerView, ledger: Ledger, now: float, strict: bool = False
) -> list[Violation]:
    """All that is wrong, sorted. `hosts` are all there are; `now` in seconds since the epoch, by the clients' clock.

    :param strict: everything has had its time: no tombstone may be left, no claim that nothing accounts for.
    """
    world = _World(sorted(hosts, key=lambda h: h.name), broker, ledger.entries, now, strict)
    rules = (_host_rules, _directory_rules, _claim_rules, _queue_rules, _promise_rules)
    return sorted({violation for rule in rules for violation in rule(world)})


@dataclass(frozen=True)
class _World:
    hosts: list[HostView]
    broker: BrokerView
    entries: tuple[Entry, ...]
    now: float
    strict: bool

    @property
    def host_names(self) -> set[str]:
        return {host.name for host in self.hosts}

    def holders(self, vm_id: str) -> list[HostView]:
        """The hosts that have anything of a VM but files of a run, or a tombstone."""
        return [host for host in self.hosts if _has(host, vm_id)]

    def is_running(self, vm_id: str) -> bool:
        return any(vm_id in host.running or host.processes.get(vm_id) for host in self.hosts)


def _is_live(record: RecordView | None) -> bool:
    return record is not None and record.phase != "gone"


def _has(host: HostView, vm_id: str) -> bool:
    parts = (host.disks, host.running, [i for i, count in host.processes.items() if count])
    return _is_live(host.records.get(vm_id)) or any(vm_id in part for part in parts)


# Each host by itself


def _host_rules(world: _World) -> Iterator[Violation]:
    for host in world.hosts:
        for vm_id, record in host.records.items():
            yield from _record_rules(world, host, vm_id, record)
        yield from _orphan_rules(host)
        yield from _process_rules(host)
        for vm_id in sorted(host.cut_off):
            text = f"VM {vm_id} is on, and lacks its tap, its rules or its address on {host.name}"
            yield Violation(Kind.CUT_OFF, vm_id, host.name, text)
        for stray in host.strays:
            yield Violation(Kind.STRAY, "", host.name, f"{stray} is left on {host.name}")


def _record_rules(world: _World, host: HostView, vm_id: str, record: RecordView) -> Iterator[Violation]:
    def wrong(kind: Kind, text: str) -> Violation:
        return Violation(kind, vm_id, host.name, f"VM {vm_id} on {host.name} {text}")

    if record.phase == "gone":
        age = world.now - record.deadline
        if world.strict or age > TOMBSTONE_SLACK_S:
            yield wrong(Kind.TOMBSTONE_OLD, f"is a tombstone {age:.0f} s after its deadline")
        return
    if record.phase != "ready":
        yield wrong(Kind.UNSETTLED, f"is still {record.phase}")
    if record.phase in ("bound", "ready") and vm_id not in host.disks:
        yield wrong(Kind.DISK_MISSING, f"is {record.phase} and has no disk")
    if record.phase == "ready" and (record.wanted == "on") != (vm_id in host.running):
        yield wrong(Kind.UNWANTED_POWER, f"is wanted {record.wanted}, and is not")


def _orphan_rules(host: HostView) -> Iterator[Violation]:
    live = {vm_id for vm_id, record in host.records.items() if _is_live(record)}
    parts = (
        (Kind.ORPHAN_DISK, host.disks, "disk"),
        (Kind.ORPHAN_UNIT, host.running | host.units, "unit"),
        (Kind.ORPHAN_PROCESS, {vm_id for vm_id, count in host.processes.items() if count}, "process"),
        (Kind.ORPHAN_RUNTIME, host.runtime, "run-time file"),
    )
    for kind, found, what in parts:
        for vm_id in sorted(found - live):
            yield Violation(kind, vm_id, host.name, f"{host.name} has a {what} of VM {vm_id}, and no record of it")


def _process_rules(host: HostView) -> Iterator[Violation]:
    for vm_id in sorted(host.running | set(host.processes)):
        count = host.processes.get(vm_id, 0)
        if count > 1:
            text = f"VM {vm_id} has {count} QEMU processes on {host.name}"
            yield Violation(Kind.PROCESSES_MANY, vm_id, host.name, text)
        if vm_id in host.running and not count:
            text = f"the unit of VM {vm_id} is active on {host.name}, without a process"
            yield Violation(Kind.PROCESS_MISSING, vm_id, host.name, text)
        if count and vm_id not in host.running:
            text = f"VM {vm_id} has a process on {host.name}, and its unit is not active"
            yield Violation(Kind.PROCESS_STRAY, vm_id, host.name, text)


# The directory


def _directory_rules(world: _World) -> Iterator[Violation]:
    expected: dict[str, set[str]] = defaultdict(set)
    for host in world.hosts:
        for vm_id, record in host.records.items():
            if record.phase in ("bound", "ready", "deleting") or (record.phase == "gone" and record.bound):
                expected[vm_id].add(host.name)
    for vm_id in sorted(set(expected) | set(world.broker.bindings)):
        bound = world.broker.bindings.get(vm_id, frozenset())
        yield from _binding_rules(vm_id, expected.get(vm_id, set()), bound)


def _binding_rules(vm_id: str, expected: set[str], bound: frozenset[str]) -> Iterator[Violation]:
    if len(bound) > 1:
        text = f"the directory names {_list(bound)} for VM {vm_id}"
        yield Violation(Kind.BINDING_DOUBLE, vm_id, "", text)
    for host in sorted(bound - expected):
        kind = Kind.BINDING_WRONG if expected else Kind.BINDING_STRAY
        where = f"{_list(expected)} has it" if expected else "it is nowhere"
        yield Violation(kind, vm_id, host, f"the directory names {host} for VM {vm_id}: {where}")
    for host in sorted(expected - bound):
        text = f"{host} has a record of VM {vm_id}, and the directory does not name it"
        yield Violation(Kind.BINDING_MISSING, vm_id, host, text)


# Claims


def _claim_rules(world: _World) -> Iterator[Violation]:
    for vm_id, claim in sorted(world.broker.claims.items()):
        name = names.claim_queue(vm_id)
        if claim.expires_ms is None or claim.expires_ms > topology.CLAIM_EXPIRES_MS:
            expiry = "never" if claim.expires_ms is None else f"only after {claim.expires_ms} ms"
            yield Violation(Kind.CLAIM_ENDLESS, vm_id, claim.owner, f"{name} expires {expiry}")
        if claim.owner not in world.host_names:
            text = f"{name} belongs to {claim.owner or 'nobody'}, which is no host"
            yield Violation(Kind.CLAIM_OWNER, vm_id, claim.owner, text)
        if world.strict and not _accounts_for_claim(world, vm_id):
            text = f"{name} is there, and no VM, tombstone or late request accounts for it"
            yield Violation(Kind.CLAIM_FORGOTTEN, vm_id, claim.owner, text)


def _accounts_for_claim(world: _World, vm_id: str) -> bool:
    if any(vm_id in host.records for host in world.hosts):
        return True
    asked = [entry for entry in world.entries if entry.vm_id == vm_id]
    if not asked:
        return False
    last = max(world.broker.started, *(max(e.deadline, e.sent_at) for e in asked))
    return world.now < last + topology.CLAIM_EXPIRES_MS / 1000 + TOMBSTONE_SLACK_S


# Queues, and the keys of the topology


def _queue_rules(world: _World) -> Iterator[Violation]:
    expected = _expected_consumers(world)
    locks = {names.lock_queue(host) for host in world.host_names}
    kept = {names.known_queue(host) for host in world.host_names}  # one message rests there: the host's last word
    for name, queue in sorted(world.broker.queues.items()):
        if name not in {*expected, *locks, *kept} and not _is_claim(name):
            yield Violation(Kind.QUEUE_UNKNOWN, "", "", f"there is a queue {name}")
        if queue.ready > (name in kept) or queue.unacked:
            text = f"{name} holds {queue.ready} messages, and {queue.unacked} more are not acknowledged"
            yield Violation(Kind.MESSAGES_LEFT, "", "", text)
    for name, count in sorted(expected.items()):
        yield from _consumer_rules(world, name, count)
    yield from _key_rules(world)


def _expected_consumers(world: _World) -> dict[str, int]:
    shared = {queue.name: len(world.hosts) for queue in topology.SHARED_QUEUES}
    return shared | {names.host_queue(host.name): 1 for host in world.hosts}


def _consumer_rules(world: _World, name: str, count: int) -> Iterator[Violation]:
    queue = world.broker.queues.get(name)
    if queue is None:
        yield Violation(Kind.QUEUE_MISSING, "", "", f"there is no queue {name}")
    elif queue.consumers != count:
        kind = Kind.CONSUMERS_MANY if queue.consumers > count else Kind.CONSUMERS_MISSING
        yield Violation(kind, "", "", f"{name} has {queue.consumers} consumers instead of {count}")


def _key_rules(world: _World) -> Iterator[Violation]:
    expected = {(b.exchange, b.queue, b.key) for b in topology.SHARED_BINDINGS}
    expected |= {(b.source, b.destination, "") for b in topology.EXCHANGE_BINDINGS}
    for host in world.hosts:
        expected |= {(b.exchange, b.queue, b.key) for b in topology.host_bindings(host.name)}
    found = {binding for binding in world.broker.other_bindings if binding[0]}
    for kind, bindings, text in (
        (Kind.KEY_MISSING, expected - found, "is not bound"),
        (Kind.KEY_STRAY, found - expected, "is bound"),
    ):
        for exchange, queue, key in sorted(bindings):
            yield Violation(kind, "", "", f"{queue} {text} to {exchange} with key {key!r}")


def _is_claim(queue: str) -> bool:
    prefix = names.claim_queue("")
    return queue.startswith(prefix) and names.is_vm_id(queue.removeprefix(prefix))


# What clients were told


def _promise_rules(world: _World) -> Iterator[Violation]:
    asked: dict[str, list[Entry]] = defaultdict(list)
    for entry in sorted(world.entries, key=lambda e: e.sent_at):
        asked[entry.vm_id].append(entry)
    found = {vm_id for host in world.hosts for vm_id in (*host.records, *host.disks, *host.running, *host.processes)}
    for vm_id in sorted(found | set(asked)):
        holders = world.holders(vm_id)
        if len(holders) > 1:
            text = f"VM {vm_id} is on {_list(host.name for host in holders)}"
            yield Violation(Kind.DOUBLE, vm_id, "", text)
        entries = asked.get(vm_id, [])
        yield from _existence_rules(vm_id, entries, holders)
        yield from _answer_rules(vm_id, entries)
        if holders:
            yield from _power_rules(vm_id, entries, holders[0].name, world.is_running(vm_id))


def _existence_rules(vm_id: str, entries: list[Entry], holders: list[HostView]) -> Iterator[Violation]:
    requests = {e.request_id: _verdict(e.request_id, entries) for e in entries if e.verb == "create"}
    for host in holders:
        record = host.records.get(vm_id)
        made_by = record.request_id if _is_live(record) and record is not None else None
        verdicts = [v for request, v in requests.items() if made_by in (None, request)]
        where = f"VM {vm_id} is on {host.name}"
        if not verdicts:
            yield Violation(Kind.UNASKED, vm_id, host.name, f"{where}, and nobody asked for it")
        elif set(verdicts) == {"refused"}:
            yield Violation(Kind.REFUSED_EXISTS, vm_id, host.name, f"{where}, and its create was refused")
        if _must_be_deleted(entries):
            yield Violation(Kind.RESURRECTED, vm_id, host.name, f"{where}, and was said to be deleted")
    deletes = [e for e in entries if e.verb == "delete" and e.may_have_worked]
    if "done" in requests.values() and not deletes and not holders:
        yield Violation(Kind.LOST, vm_id, "", f"VM {vm_id} was made, nobody deleted it, and it is nowhere")


def _verdict(request_id: str, entries: list[Entry]) -> str:
    """What the client of a create must take for true: done, refused or unknown."""
    mine = [e for e in entries if e.verb == "create" and e.request_id == request_id]
    outcomes = {e.told.outcome for e in mine}
    if "done" in outcomes:
        return "done"
    if "refused" not in outcomes:
        return "unknown"
    last_no = max(_end(e) for e in mine if e.told.outcome == "refused")
    asked_again = any(e.sent_at >= last_no for e in mine if e.told.outcome != "refused")
    return "unknown" if asked_again else "refused"


def _end(entry: Entry) -> float:
    return entry.sent_at if entry.told_at is None else entry.told_at


def _must_be_deleted(entries: list[Entry]) -> bool:
    """Whether somebody was told that the VM is deleted, and no other request may have made it again since."""
    deletes = [e for e in entries if e.verb == "delete" and e.told.outcome == "done"]
    if not deletes:
        return False
    last = max(deletes, key=lambda e: e.sent_at)
    before = {e.request_id for e in entries if e.verb == "create" and e.sent_at < last.sent_at}
    return not any(e.verb == "create" and e.request_id not in before and e.may_have_worked for e in entries)


def _answer_rules(vm_id: str, entries: list[Entry]) -> Iterator[Violation]:
    """What was told is consistent in itself. A delete in between makes all of this possible."""
    creates = [e for e in entries if e.verb == "create"]
    deletes = [e for e in entries if e.verb == "delete" and e.may_have_worked]
    done = [e for e in creates if e.told.outcome == "done"]
    for earlier, later in itertools.pairwise(done):
        deleted = any(d.sent_at < _end(later) for d in deletes)
        if earlier.request_id != later.request_id and not deleted:
            text = f"requests {earlier.request_id} and {later.request_id} were both told that they made VM {vm_id}"
            yield Violation(Kind.DONE_TWICE, vm_id, "", text)
    for no in (e for e in creates if e.told.outcome == "refused"):
        deleted = any(d.sent_at < _end(no) for d in deletes)
        if not deleted and any(e.request_id == no.request_id and e.sent_at < _end(no) for e in done):
            text = f"request {no.request_id} for VM {vm_id} was told both that it was done and {no.told.what!r}"
            yield Violation(Kind.TOLD_BOTH, vm_id, "", text)


_ON, _OFF = ("create", "start", "reboot"), ("stop", "kill", "crash")


def _power_rules(vm_id: str, entries: list[Entry], host: str, runs: bool) -> Iterator[Violation]:
    deleted = max((e.sent_at for e in entries if e.verb == "delete" and e.may_have_worked), default=float("-inf"))
    power = [
        e for e in _merge_creates(entries) if e.verb in (*_ON, *_OFF) and e.sent_at > deleted and e.may_have_worked
    ]
    done = [e for e in power if e.told.outcome == "done" and e.told.what != "stopping" and e.verb != "crash"]
    if not done:
        return
    last = done[-1]
    opposite = _OFF if last.verb in _ON else _ON
    half = [e for e in power if e.verb == "reboot" and e.told.outcome != "done"]  # it may be off, and not on again
    if any(_may_follow(e, last) for e in (*(e for e in power if e.verb in opposite), *half)):
        return
    if last.verb in _ON and not runs:
        text = f"VM {vm_id} is off, and the last that was done to it was {last.verb}"
        yield Violation(Kind.SHOULD_RUN, vm_id, host, text)
    if last.verb in _OFF and runs:
        text = f"VM {vm_id} runs, and the last that was done to it was {last.verb}"
        yield Violation(Kind.SHOULD_REST, vm_id, host, text)


def _merge_creates(entries: list[Entry]) -> list[Entry]:
    """The same, with all copies of one create as one, from its first to its first yes: repeated, it starts nothing."""
    merged: dict[str, Entry] = {}
    for entry in entries:
        if entry.verb != "create":
            continue
        first = merged.setdefault(entry.request_id, entry)
        if first.told.outcome != "done":
            merged[entry.request_id] = replace(first, told=entry.told, told_at=entry.told_at, deadline=entry.deadline)
    rest = [entry for entry in entries if entry.verb != "create"]
    return sorted([*merged.values(), *rest], key=lambda e: e.sent_at)


def _may_follow(entry: Entry, last: Entry) -> bool:
    """Whether a command may have had its effect after `last` had."""
    if entry.told.outcome == "done" and entry.told.what != "stopping":
        return _end(entry) > last.sent_at
    return entry.deadline > last.sent_at or entry.told.what == "stopping"


def _list(words: Iterable[str]) -> str:
    return " and ".join(sorted(words))
