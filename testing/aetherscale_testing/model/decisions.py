"""The product's own decisions, as the model asks them, and each rule of the design taken out."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from aetherscale_agent import courses, decide, journal, recover
from aetherscale_agent.courses import Course
from aetherscale_agent.journal import Ending, Record
from aetherscale_agent.ports import Power
from aetherscale_agent.recover import Finding, Right
from aetherscale_agent.refusals import ending_refusal
from aetherscale_agent.succession import NO_MEMORY, Memory, fall_back, find_past, may_follow, memory_of
from aetherscale_protocol.errors import Refused
from aetherscale_protocol.options import CreateVm
from aetherscale_testing.model.state import SHARED, Entry, Known, Message, Past, Pasts

DEADLINE = 10.0
NOW = (0.0, DEADLINE + 1, DEADLINE + recover.TOMBSTONE_SLACK_S + 1)
"""The clock, by the model's time."""

FRESH_DEADLINE = 1000.0
VM = "sgeqxcfi"
BOOT = "boot-2"


class Decisions:
    """Everything that the agent decides; a rule is taken out by replacing one piece of it."""

    def __init__(self) -> None:
        self.build: Course = courses.BUILD
        self.erase: Course = courses.ERASE
        self.changes: dict[str, Course] = dict(courses.CHANGES)
        self.due = courses.DUE
        self.course_of: Callable[[decide.Step], Course] = courses.course_of
        self.next_step: Callable[[decide.Facts], decide.Step] = decide.next_step
        self.right_to: Callable[..., Right] = recover.right_to
        self.undo_course: Callable[..., Course] = recover.undo_course
        self.burial: Callable[[Record, float], Course] = recover.burial
        self.find: Callable[[Record, Power, str, float], Finding] = recover.find
        self.barrier = True  #: Session.acknowledge awaits it
        self.same_connection = True  #: Session.cut cancels what is tied to it
        self.muster = True  #: Session waits for the fleet when the broker is new
        self.memory_of: Callable[[Record | None, float], Memory] = memory_of
        self.fall_back: Callable[[Record, float], Record | None] = fall_back
        self.remembered = lru_cache(None)(self._remembered)
        self.left = lru_cache(None)(self._left)
        self.next_step_for = lru_cache(None)(self._next_step)
        self.right = lru_cache(None)(lambda entry, has_queue: self.right_to(_record(entry), has_queue=has_queue))
        self.finding = lru_cache(None)(
            lambda entry, on, time: self.find(_record(entry), Power.ON if on else Power.OFF, BOOT, NOW[time])
        )
        self.grave = lru_cache(None)(lambda entry, time: self.burial(_record(entry), NOW[time]))

    def _next_step(
        self, host: int, message: Message, known: Known, entry: Entry | None, room: bool, time: int
    ) -> decide.Step:
        """What the agent on this host does next with a copy of a create."""
        record = _record(entry) if entry else None
        claim = None
        if known.claim is not None:
            claim = decide.Claim(won=known.claim == host, owner="" if known.claim == host else f"h{known.claim}")
        offers = None
        if known.offers is not None:
            offers = [decide.HostOffer(f"h{i}", 1 if room else None) for i, room in enumerate(known.offers)]
        facts = decide.Facts(
            host=f"h{host}",
            request_id=message.request,
            now=NOW[time],
            deadline=FRESH_DEADLINE if message.fresh else DEADLINE,
            hops=message.hops,
            dead_lettered=message.died is not None,
            dead_host="" if message.died in (None, SHARED) else f"h{message.died}",
            recorded_request=decide.recorded_request(record, message.request),
            refused_before=ending_refusal(over) if (over := find_past(record, message.request)) else None,
            guards_until=self.memory_of(record, NOW[time]).until,
            holds_grave=record is not None and record.bound and may_follow(record, message.request),
            recorded_deadline=record.deadline if record else 0.0,
            misfit=None if room else Refused("no-capacity", "full"),
            offers=offers,
            claim=claim,
            held_elsewhere=known.held,
            let_go=known.let_go,
        )
        return self.next_step(facts)

    def _remembered(self, entry: Entry | None, time: int) -> Pasts:
        """What a create that follows this entry is to remember."""
        known = self.memory_of(_record(entry) if entry else None, NOW[time]).past
        return tuple(sorted(_model_past(one) for one in known))

    def _left(self, entry: Entry, time: int) -> Entry | None:
        """What is left of an entry that is forgotten."""
        rest = self.fall_back(_record(entry), NOW[time])
        if rest is None:
            return None
        assert rest.ending is not None
        fresh = rest.deadline > DEADLINE
        past = tuple(_model_past(one) for one in rest.past)
        return Entry("gone", rest.request_id, rest.bound, ending=rest.ending.reason, fresh=fresh, past=past)


@lru_cache(None)
def _record(entry: Entry) -> Record:
    ending = Ending(code="failed", reason=entry.ending) if entry.ending else None
    return Record(
        vm_id=VM,
        request_id=entry.request,
        spec=CreateVm(image="tiny", vm_id=VM),
        deadline=FRESH_DEADLINE if entry.fresh else DEADLINE,
        created=0.0,
        phase=entry.phase,  # type: ignore[arg-type]
        bound=entry.bound,
        wanted=entry.wanted,  # type: ignore[arg-type]
        boot_id={"now": BOOT, "old": "boot-1", "": ""}[entry.started],
        start_by=DEADLINE if entry.timed else 0.0,
        ending=ending,
        past=tuple(_past(one) for one in entry.past),
    )


def _model_past(one: journal.Past) -> Past:
    return Past(one.request_id, one.ending.reason, one.until > NOW[2])


def _past(one: Past) -> journal.Past:
    code = "vm-id-taken" if one.ending == "taken" else "failed"
    until = (FRESH_DEADLINE if one.fresh else DEADLINE) + recover.TOMBSTONE_SLACK_S
    return journal.Past(request_id=one.request, until=until, ending=Ending(code=code, reason=one.ending))


# Each rule taken out. The names are those of docs/reliability.md.


def _no_claim(known: decide.Facts, rest: Callable[[decide.Facts], decide.Step]) -> decide.Step:
    step = rest(known)
    if isinstance(step, decide.MakeClaim):
        known.claim = decide.Claim(won=True)
        return rest(known)
    return step


def _no_probe(known: decide.Facts, rest: Callable[[decide.Facts], decide.Step]) -> decide.Step:
    step = rest(known)
    if isinstance(step, decide.Probe):
        known.held_elsewhere = False
        return rest(known)
    return step


def _refuse_at_once(known: decide.Facts, rest: Callable[[decide.Facts], decide.Step]) -> decide.Step:
    """A final no without claim and probe."""
    step = rest(known)
    wants_no = known.offers is not None and not any(o.score for o in known.offers)
    if wants_no and isinstance(step, decide.MakeClaim):
        return decide.Refuse(Refused("no-host", "no"), final=True)
    return step


def _refuse_unwritten(known: decide.Facts, rest: Callable[[decide.Facts], decide.Step]) -> decide.Step:
    """A final no that nothing remembers."""
    step = rest(known)
    return decide.Refuse(step.error) if isinstance(step, decide.Refuse) and step.final else step


def _dead_means_no(known: decide.Facts, rest: Callable[[decide.Facts], decide.Step]) -> decide.Step:
    """A dead-lettered create is refused without claim and probe."""
    if known.dead_lettered and known.recorded_request is None:
        return decide.Refuse(Refused("no-host", "nobody took it"), final=True)
    return rest(known)


def _owner_means_no(known: decide.Facts, rest: Callable[[decide.Facts], decide.Step]) -> decide.Step:
    """A dead-lettered create that somebody owns is refused, instead of `unknown`."""
    step = rest(known)
    if known.dead_lettered and isinstance(step, decide.Refuse) and step.error.code == "outcome-unknown":
        return decide.Refuse(Refused("no-host", "nobody took it"))
    return step


def _any_request(known: decide.Facts, rest: Callable[[decide.Facts], decide.Step]) -> decide.Step:
    """Whoever asks for an id that is there is told that it was made for them."""
    if known.recorded_request is not None:
        return decide.Rejoin()
    return rest(known)


def _no_prolonging(known: decide.Facts, rest: Callable[[decide.Facts], decide.Step]) -> decide.Step:
    step = rest(known)
    return decide.Rejoin() if isinstance(step, decide.Rejoin) else step


def _never_late(known: decide.Facts, rest: Callable[[decide.Facts], decide.Step]) -> decide.Step:
    known.now = 0.0
    return rest(known)


Twist = Callable[[decide.Facts, Callable[[decide.Facts], decide.Step]], decide.Step]


def _twisted(twist: Twist) -> Callable[[Decisions], None]:
    def take_out(decisions: Decisions) -> None:
        decisions.next_step = lambda facts: twist(facts, decide.next_step)

    return take_out


def _act_before_acknowledge(decisions: Decisions) -> None:
    for verb, course in courses.CHANGES.items():
        look, acknowledge, *acts, answer = course
        decisions.changes[verb] = (look, *acts, acknowledge, answer)


def _no_barrier(decisions: Decisions) -> None:
    decisions.barrier = False


def _any_connection(decisions: Decisions) -> None:
    decisions.same_connection = False


def _no_muster(decisions: Decisions) -> None:
    decisions.muster = False


def _no_deadline(decisions: Decisions) -> None:
    decisions.next_step = lambda facts: _never_late(facts, decide.next_step)
    decisions.due = frozenset()


def _late_start(decisions: Decisions) -> None:
    decisions.find = lambda record, power, boot, _now: recover.find(record, power, boot, 0.0)


def _bury_at_once(decisions: Decisions) -> None:
    decisions.burial = lambda record, _now: recover.burial(record, float("inf"))


def _finish_claims(decisions: Decisions) -> None:
    def right_to(record: Record, *, has_queue: bool) -> Right:
        return Right.BIND if record.phase == "claimed" else recover.right_to(record, has_queue=has_queue)

    decisions.right_to = right_to


def _forget_first(decisions: Decisions) -> None:
    def undo_course(*, has_queue: bool, keeps_grave: bool) -> Course:
        return tuple(reversed(recover.undo_course(has_queue=has_queue, keeps_grave=keeps_grave)))

    decisions.undo_course = undo_course


def _bury_forgetting_first(decisions: Decisions) -> None:
    decisions.burial = lambda record, now: tuple(reversed(recover.burial(record, now)))


def _never_rebind(decisions: Decisions) -> None:
    def right_to(record: Record, *, has_queue: bool) -> Right:
        right = recover.right_to(record, has_queue=has_queue)
        return Right.NONE if right in (Right.BIND, Right.ASK) and not has_queue else right

    decisions.right_to = right_to


def _bind_unasked(decisions: Decisions) -> None:
    def right_to(record: Record, *, has_queue: bool) -> Right:  # noqa: ARG001
        return recover.right_to(record, has_queue=True)

    decisions.right_to = right_to


def _bind_before_journal(decisions: Decisions) -> None:
    def course_of(step: decide.Step) -> Course:
        course = courses.course_of(step)
        if not isinstance(step, decide.Begin):
            return course
        return ("create.bind", *(name for name in course if name != "create.bind"))

    decisions.course_of = course_of


def _forget_refusals(decisions: Decisions) -> None:
    def next_step(facts: decide.Facts) -> decide.Step:
        step = decide.next_step(facts)
        return decide.Refuse(step.error) if isinstance(step, decide.Refuse) and step.remember else step

    decisions.next_step = next_step


def _no_memory(decisions: Decisions) -> None:
    decisions.memory_of = lambda _record, _now: NO_MEMORY


def _no_falling_back(decisions: Decisions) -> None:
    decisions.fall_back = lambda _record, _now: None


def _let_go_of_graves(decisions: Decisions) -> None:
    def next_step(facts: decide.Facts) -> decide.Step:
        facts.guards_until, facts.holds_grave = 0.0, facts.holds_grave and facts.misfit is None
        return decide.next_step(facts)

    decisions.next_step = next_step


@dataclass(frozen=True)
class Rule:
    """One rule, how it is taken out, and the scenario that turns red then."""

    says: str
    take_out: Callable[[Decisions], None]
    scenario: str


RULES: dict[str, Rule] = {
    "1a": Rule("a command is acknowledged before it is acted on", _act_before_acknowledge, "start"),
    "1b": Rule("… and the barrier awaited", _no_barrier, "start"),
    "2a": Rule("a final no claims the id, and probes, first", _twisted(_refuse_at_once), "mixed"),
    "2b": Rule("… and is journalled, so that a late copy meets it", _twisted(_refuse_unwritten), "drop"),
    "3a": Rule("a dead-lettered create passes claim and probe before anyone says no", _twisted(_dead_means_no), "drop"),
    "3b": Rule("… and if somebody owns the id the answer is `unknown`", _twisted(_owner_means_no), "drop"),
    "4": Rule("a tombstone stays until its create's deadline has passed", _bury_at_once, "drop"),
    "5a": Rule(
        "a create that got no further than its claim is undone when the agent comes back", _finish_claims, "claimed"
    ),
    "5b": Rule("… unbound first, and its journal entry dropped after that", _forget_first, "bound"),
    "5c": Rule("a VM is bound again when its host connects", _never_rebind, "forget"),
    "5d": Rule(
        "a tombstone is unbound first, and its journal entry dropped after that", _bury_forgetting_first, "again"
    ),
    "5e": Rule("the claim is journalled before the id is bound", _bind_before_journal, "crash"),
    "6": Rule("work keeps the connection that it began on, and ends with it", _any_connection, "start"),
    "7a": Rule(
        "a deadline is checked on receipt, after the line, and before a restart or a thaw goes on",
        _no_deadline,
        "crash",
    ),
    "7b": Rule("… and a start that was cut off is not finished after it", _late_start, "start"),
    "8": Rule("a host whose queue is gone claims and probes each VM before it binds it", _bind_unasked, "forget"),
    "9": Rule("agents that find a new broker take creates once the fleet is there", _no_muster, "wipe"),
    "10": Rule("an id is claimed before it is begun", _twisted(_no_claim), "two"),
    "11": Rule("an id is probed before it is begun, because VMs outlive claims", _twisted(_no_probe), "again"),
    "12": Rule("an id belongs to one request", _twisted(_any_request), "two"),
    "12b": Rule("… and a create that is refused for that is remembered", _forget_refusals, "refused"),
    "14": Rule("who takes over an id guards what its tombstone guarded", _no_memory, "reuse"),
    "14b": Rule("… also when it got no further than its claim", _no_falling_back, "reuse"),
    "14c": Rule("… and nobody else takes it as long as that lasts", _let_go_of_graves, "over"),
    "13": Rule(
        "a create that is asked again is remembered until its later deadline", _twisted(_no_prolonging), "again"
    ),
}


def without(rule: str | None) -> Decisions:
    """The product's decisions without one rule; with all of them if it is None."""
    decisions = Decisions()
    if rule is not None:
        RULES[rule].take_out(decisions)
    return decisions
