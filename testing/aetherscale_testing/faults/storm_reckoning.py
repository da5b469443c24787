"""After a storm: the system settles without help, what was left unknown is asked for again, and all is compared.

Three looks at hosts and broker, each held against the ledger: when they have settled; when nothing is unknown any more;
and, strictly, when every VM has been deleted and every tombstone has had its time.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from aetherscale_protocol import names
from aetherscale_testing.faults import lab_view
from aetherscale_testing.faults.checker import Kind, Violation, check
from aetherscale_testing.faults.ledger import Entry, Told
from aetherscale_testing.faults.storm_book import Book
from aetherscale_testing.faults.storm_stage import Stage
from aetherscale_testing.faults.storm_wire import Order, WireLine, find_broker
from aetherscale_testing.faults.views import BrokerView, HostView

SETTLE_S = 90.0
"""How long the system may take to settle once everything is healed."""

WRONG_FOR_S = 40.0
"""How long something must stay wrong, nothing else changing, to count; longer than the checker's own patience."""

TOMBSTONE_S = 15.0
"""How long after the last deadline a tombstone may be there: the agent's slack of 5 s, and time to be looked at."""

RESTLESS = {
    Kind.CONSUMERS_MANY, Kind.CONSUMERS_MISSING, Kind.MESSAGES_LEFT, Kind.QUEUE_MISSING, Kind.UNSETTLED,
}  # fmt: skip
"""What is wrong only for as long as the system has not come to rest."""

ASK_TIMEOUT_S = 20.0
WHO = "reckoning"

Views = tuple[list[HostView], BrokerView]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Found:
    """What a reckoning found. Seconds until the system had settled; commands whose outcome was unknown until then.

    `not_started_again`: VMs that ran, whose host went down, and whose start failed afterwards; by id, show-vm's reason.
    """

    violations: dict[str, Kind]
    not_started_again: dict[str, str]
    settle_seconds: float
    unknown: int
    vms: int


def find_claims(stage: Stage) -> frozenset[str]:
    """The ids for which there are claims: those of VMs before the storm are none of its business."""
    return frozenset(lab_view.collect(stage.lab, stage.hosts)[1].claims)


def reckon(stage: Stage, book: Book, old_claims: frozenset[str], say: Say) -> Found:
    """Settle, ask again, compare, delete, and compare strictly."""
    judge = Judge(stage, book, old_claims)
    hosts, seconds = judge.settle()
    vms = sum(len(_live(host)) for host in hosts)
    say(f"settled after {seconds:.0f} s with {vms} VMs; {len(judge.violations)} violations")
    with _on_the_line() as line:
        unknown = ask_again(book, line)
    hosts, _ = judge.settle()
    say(f"{unknown} unknown outcomes asked for again; {len(judge.violations)} violations")
    with _on_the_line() as line:
        delete_all(book, line, hosts)
    judge.wait_empty()
    say(f"all VMs deleted; {len(judge.violations)} violations")
    return Found(judge.violations, judge.not_started_again, seconds, unknown, vms)


@contextlib.contextmanager
def _on_the_line() -> Iterator[WireLine]:
    line = WireLine(find_broker(), f"storm {WHO}")
    try:
        yield line
    finally:
        line.close()


class Judge:
    """Looks at hosts and broker, and keeps what is wrong for good."""

    def __init__(self, stage: Stage, book: Book, old_claims: frozenset[str]) -> None:
        self.violations: dict[str, Kind] = {}
        self.not_started_again: dict[str, str] = {}
        self._stage = stage
        self._book = book
        self._old_claims = old_claims

    def settle(self) -> tuple[list[HostView], float]:
        """Look until all is calm and nothing changes any more; the hosts, and the seconds that took.

        What is wrong then may still go: a tombstone, for one, is looked at on its host before it is in the broker.
        """
        began = time.monotonic()
        seconds, before = 0.0, None
        while True:
            views = self._look()
            wrong = self._check(views)
            now = None if RESTLESS & {violation.kind for violation in wrong} else (_essence(views), wrong)
            elapsed = time.monotonic() - began
            if now is None or now != before:
                seconds, before = elapsed, now
            elif not wrong or elapsed > seconds + WRONG_FOR_S:
                break
            if elapsed > SETTLE_S:
                break
            time.sleep(0.5)
        self._keep(wrong, strict=False)
        return views[0], seconds

    def wait_empty(self) -> None:
        """Look until nothing is left, or every tombstone has had its time; what is left then is wrong."""
        limit = max((entry.deadline for entry in self._book.ledger().entries), default=0.0) + TOMBSTONE_S
        while (wrong := self._check(self._look(), strict=True)) and time.time() < limit:
            time.sleep(1.0)
        self._keep(wrong, strict=True)

    def _look(self) -> Views:
        hosts, broker = lab_view.collect(self._stage.lab, self._stage.hosts)
        claims = {vm_id: claim for vm_id, claim in broker.claims.items() if vm_id not in self._old_claims}
        return hosts, replace(broker, claims=claims)

    def _check(self, views: Views, *, strict: bool = False) -> list[Violation]:
        wrong = check(*views, self._book.ledger(), time.time(), strict)
        self._book.note("look", strict=strict, violations=[str(violation) for violation in wrong])
        return wrong

    def _keep(self, wrong: list[Violation], *, strict: bool) -> None:
        self._book.note("verdict", strict=strict, violations=[str(violation) for violation in wrong])
        with _on_the_line() as line:
            for violation in wrong:
                if violation.kind is Kind.SHOULD_RUN and (why := self._failed_to_start(line, violation)):
                    self.not_started_again[violation.vm_id] = why
                else:
                    self.violations[str(violation)] = violation.kind

    def _failed_to_start(self, line: WireLine, violation: Violation) -> str:
        """Why a VM could not be started again after its host went down, if that is so and show-vm says it."""
        if violation.host not in self._book.went_down:
            return ""
        order = Order("show", violation.vm_id, False, names.new_request_id(), ASK_TIMEOUT_S)
        line.start(order)
        (answer,) = line.finish()
        return answer.why if answer.state == "failed" else ""


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
