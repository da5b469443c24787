"""After a storm: the system settles without help, what was left unknown is asked for again, and all is compared.

Three looks at hosts and broker, each held against the ledger: when they have settled; when nothing is unknown any more;
and, strictly, when every VM has been deleted and every tombstone has had its time.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from aetherscale_protocol import names
from aetherscale_protocol.topology import SHARED_QUEUES
from aetherscale_testing.faults import lab_view
from aetherscale_testing.faults.checker import Kind, Violation, check
from aetherscale_testing.faults.ledger import Entry, Told
from aetherscale_testing.faults.storm_book import Book
from aetherscale_testing.faults.storm_stage import Stage
from aetherscale_testing.faults.storm_wire import Order, WireLine, find_broker
from aetherscale_testing.faults.views import BrokerView, HostView

SETTLE_S = 90.0
"""How long the system may take to settle once everything is healed."""

TOMBSTONE_S = 15.0
"""How long after the last deadline a tombstone may be there: the agent's slack of 5 s, and time to be looked at."""

ASK_TIMEOUT_S = 20.0
WHO = "reckoning"

Views = tuple[list[HostView], BrokerView]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Found:
    """What a reckoning found. Seconds until the system had settled; commands whose outcome was unknown until then."""

    violations: dict[str, Kind]
    settle_seconds: float
    unknown: int
    vms: int


def find_claims(stage: Stage) -> frozenset[str]:
    """The ids for which there are claims: those of VMs before the storm are none of its business."""
    return frozenset(lab_view.collect(stage.lab, stage.hosts)[1].claims)


def reckon(stage: Stage, book: Book, old_claims: frozenset[str], say: Say) -> Found:
    """Settle, ask again, compare, delete, and compare strictly."""
    violations: dict[str, Kind] = {}

    def judge(views: Views, *, strict: bool = False) -> list[Violation]:
        hosts, broker = views
        claims = {vm_id: claim for vm_id, claim in broker.claims.items() if vm_id not in old_claims}
        wrong = check(hosts, replace(broker, claims=claims), book.ledger(), time.time(), strict)
        book.note("look", strict=strict, violations=[str(violation) for violation in wrong])
        violations.update({str(violation): violation.kind for violation in wrong})
        return wrong

    views, seconds = settle(stage)
    judge(views)
    vms = sum(len(_live(host)) for host in views[0])
    say(f"settled after {seconds:.0f} s with {vms} VMs; {len(violations)} violations")
    line = WireLine(find_broker(), f"storm {WHO}")
    try:
        unknown = ask_again(book, line)
        views, _ = settle(stage)
        judge(views)
        say(f"{unknown} unknown outcomes asked for again; {len(violations)} violations")
        delete_all(book, line, views[0])
    finally:
        line.close()
    judge(wait_empty(stage, book), strict=True)
    say(f"all VMs deleted; {len(violations)} violations")
    return Found(violations, seconds, unknown, vms)


def settle(stage: Stage) -> tuple[Views, float]:
    """Look until two looks are equal and everybody consumes, or its time is over; the last look and the seconds."""
    began = time.monotonic()
    before: object = None
    while True:
        views = lab_view.collect(stage.lab, stage.hosts)
        now = _essence(views)
        seconds = time.monotonic() - began
        if (now == before and is_calm(views)) or seconds > SETTLE_S:
            return views, seconds
        before = now
        time.sleep(0.5)


def is_calm(views: Views) -> bool:
    """Whether every agent consumes and no message is on its way."""
    hosts, broker = views
    expected = {queue.name: len(hosts) for queue in SHARED_QUEUES} | {names.host_queue(host.name): 1 for host in hosts}
    consumers = {name: queue.consumers for name, queue in broker.queues.items() if name in expected}
    return consumers == expected and not any(queue.ready or queue.unacked for queue in broker.queues.values())


def _essence(views: Views) -> object:
    """What must not change any more: tombstones and claims may, they go in their time."""
    hosts, broker = views
    alive = {vm_id for host in hosts for vm_id in _live(host)}
    return (
        [replace(host, records={vm_id: host.records[vm_id] for vm_id in _live(host)}) for host in hosts],
        {vm_id: bound for vm_id, bound in broker.bindings.items() if vm_id in alive},
    )


def _live(host: HostView) -> list[str]:
    return [vm_id for vm_id, record in host.records.items() if record.phase != "gone"]


# Asked again


def find_unknown(entries: Iterable[Entry]) -> list[Entry]:
    """The requests whose outcome their client does not know, and that may be made again without harm.

    That is every create of a VM that nobody tried to delete, and whatever was the last that was asked of a VM.
    """
    by_vm: dict[str, dict[tuple[str, str], list[Entry]]] = {}
    for entry in entries:
        if entry.verb != "crash":
            by_vm.setdefault(entry.vm_id, {}).setdefault((entry.request_id, entry.verb), []).append(entry)
    found = []
    for requests in by_vm.values():
        deleted = any(verb == "delete" for _, verb in requests)
        latest = max((copies[-1] for copies in requests.values()), key=lambda e: e.sent_at)
        for (_, verb), copies in requests.items():
            open_ = all(entry.told.outcome in ("none", "unknown") for entry in copies)
            if open_ and ((verb == "create" and not deleted) or copies[-1] is latest):
                found.append(copies[-1])
    return found


def ask_again(book: Book, line: WireLine) -> int:
    """Ask for every unknown outcome with the same request id, and see that show-vm agrees; how many there were."""
    unknown = find_unknown(book.ledger().entries)
    for entry in unknown:
        order = Order(entry.verb, entry.vm_id, book.is_deaf(entry.vm_id), entry.request_id, ASK_TIMEOUT_S)  # type: ignore[arg-type]
        told = _ask(book, line, order)
        if told.outcome not in ("done", "refused"):
            book.suspect(f"{order.verb} of VM {order.vm_id} was still {told.outcome} when all was calm")
        if order.verb in ("create", "delete"):
            _compare(book, line, order, told)
    return len(unknown)


def _compare(book: Book, line: WireLine, order: Order, told: Told) -> None:
    """What show-vm says agrees with what the request was told; of a contested id another request may have it."""
    shown = _ask(book, line, replace(order, verb="show")).outcome == "done"
    gone = told.what == "vm-unknown" or (told.outcome == "done") == (order.verb == "delete")
    rivals = {e.request_id for e in book.ledger().entries if e.vm_id == order.vm_id and e.verb == "create"}
    if shown == gone and not (len(rivals) > 1 and shown):
        what = "knows" if shown else "lacks"
        book.suspect(f"{order.verb} of VM {order.vm_id} was told {told.outcome} {told.what}, and show-vm {what} it")


def _ask(book: Book, line: WireLine, order: Order) -> Told:
    began = time.monotonic()
    numbers = book.asked(WHO, order, "reckoning")
    line.start(order)
    answers = line.finish()
    book.told(WHO, order, numbers, answers, time.monotonic() - began)
    return answers[0].told


# Nothing left


def delete_all(book: Book, line: WireLine, hosts: Iterable[HostView]) -> None:
    """Delete every VM there is."""
    for vm_id in sorted({vm_id for host in hosts for vm_id in _live(host)}):
        order = Order("delete", vm_id, book.is_deaf(vm_id), names.new_request_id(), ASK_TIMEOUT_S)
        told = _ask(book, line, order)
        if told.outcome != "done":
            book.suspect(f"delete of VM {vm_id} was told {told.outcome} {told.what} when all was calm")


def wait_empty(stage: Stage, book: Book) -> Views:
    """Look until nothing is left, or every tombstone has had its time."""
    limit = max((entry.deadline for entry in book.ledger().entries), default=0.0) + TOMBSTONE_S
    while True:
        views = lab_view.collect(stage.lab, stage.hosts)
        hosts, broker = views
        left = any(host.records or host.disks or host.runtime or host.units or host.processes for host in hosts)
        if (not left and not broker.bindings) or time.time() > limit:
            return views
        time.sleep(1.0)
