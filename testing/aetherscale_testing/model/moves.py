"""What can happen next in a world: to its messages, its hosts, its clients. Every move is one that can't be divided."""

from collections.abc import Iterator

from aetherscale_agent import courses, decide
from aetherscale_agent.courses import BEGIN
from aetherscale_agent.recover import Finding, Right
from aetherscale_testing.model.decisions import Decisions
from aetherscale_testing.model.state import (
    EXISTS,
    LOCAL,
    SHARED,
    Entry,
    HostState,
    Known,
    Line,
    Message,
    Past,
    State,
    Tied,
    add,
    change,
    take,
)

Move = tuple[str, State]


class Moves:
    """All moves, under these decisions."""

    def __init__(self, decisions: Decisions) -> None:
        self._do = decisions

    def after(self, state: State) -> list[Move]:
        """Every world that can come next, and what leads to it."""
        hurried = self._hurried(state)
        if hurried is not None:
            return [hurried]
        moves = list(self._environment(state))
        for number in range(len(state.hosts)):
            moves += self._host(state, number)
        return moves

    def _hurried(self, state: State) -> Move | None:
        """A step that nothing can come before any more, nor see: taken at once, to spare all its interleavings."""
        budget = state.budget
        if budget.crash or budget.power or budget.drop or budget.wipe or budget.fail:
            return None
        for number, host in enumerate(state.hosts):
            line = host.line
            if line is None or (line.course[line.step] in self._do.due and state.time == 0):
                continue
            if not line.course[line.step].endswith(".answer"):
                return next(self._line(state, number, line))
        return None

    # The environment

    def _environment(self, state: State) -> Iterator[Move]:
        budget = state.budget
        if state.time < 2:
            yield (
                ("the deadline passes", "the tombstones' slack passes")[state.time],
                state._replace(time=state.time + 1),
            )
        if state.time == 2 and state.claim is not None and self._is_calm(state):
            yield "the claim expires", state._replace(claim=None)
        yield from self._clients(state)
        if budget.expire:
            yield from self._expiries(state._replace(budget=budget._replace(expire=budget.expire - 1)))
        if budget.wipe:
            yield "THE BROKER IS WIPED", self._wiped(state._replace(budget=budget._replace(wipe=budget.wipe - 1)))
        if budget.forget:
            for number, host in enumerate(state.hosts):
                if not host.connected and state.queue[number]:
                    less = state._replace(budget=budget._replace(forget=budget.forget - 1))
                    yield f"h{number} IS FORGOTTEN", self._without_queue(less, number)._replace(wiped=True)

    def _is_calm(self, state: State) -> bool:
        """Whether minutes may pass unused: nobody has a copy or anything else in hand, and no tombstone is due."""
        queued = [*state.comp, *state.dead, *(m for inbox in state.inbox for m in inbox)]
        if any(message.kind == "C" for message in queued):
            return False
        for host in state.hosts:
            if host.tied is not None and not host.tied.stale:
                return False
            if host.connected and host.entry is not None and self._do.grave(host.entry, state.time):
                return False
        return True

    def _clients(self, state: State) -> Iterator[Move]:
        budget = state.budget
        if budget.resend and state.time == 0:
            less = state._replace(budget=budget._replace(resend=budget.resend - 1))
            yield "the client sends the create again", less._replace(comp=add(less.comp, Message("C", "A")))
        made = ("A", "ok") in state.told
        if budget.again and state.time == 2 and ("A", "no") not in state.told and not _asked_to_delete(state):
            less = state._replace(budget=budget._replace(again=budget.again - 1))
            yield "long after, the client asks again", less._replace(comp=add(less.comp, Message("C", "A", fresh=True)))
        if budget.delete and made:
            less = state._replace(budget=budget._replace(delete=budget.delete - 1)).tell("D", "asked")
            yield "the client sends delete-vm", self._publish(less, Message("D", "D"))
        if budget.reuse and ("D", "deleted") in state.told:
            less = state._replace(budget=budget._replace(reuse=budget.reuse - 1))
            yield "a client creates the id anew", less._replace(comp=add(less.comp, Message("C", "B", fresh=True)))
        if budget.start:
            less = state._replace(budget=budget._replace(start=budget.start - 1))
            yield "the client sends start-vm", self._publish(less, Message("S", "S"))

    @staticmethod
    def _publish(state: State, message: Message) -> State:
        holders = [number for number, bound in enumerate(state.bound) if bound]
        for number in holders:
            state = state.put(number, message._replace(by_vm_key=True))
        return state if holders else state.tell(message.request, "gone")

    @staticmethod
    def _expiries(state: State) -> Iterator[Move]:
        for message in set(state.comp):
            died = add(state.dead, message._replace(died=SHARED))
            yield "a create expires in the shared queue", state._replace(comp=take(state.comp, message), dead=died)
        for number, inbox in enumerate(state.inbox):
            for message in set(inbox):
                rest = state._replace(inbox=change(state.inbox, number, take(inbox, message)))
                yield (
                    f"{message.kind} expires in the queue of h{number}",
                    rest._replace(dead=add(rest.dead, message._replace(died=number))),
                )

    def _wiped(self, state: State) -> State:
        for number in range(len(state.hosts)):
            state = self._without_queue(self._dropped(state, number), number)
        return state._replace(comp=(), dead=(), claim=None, wiped=True)

    @staticmethod
    def _without_queue(state: State, number: int) -> State:
        return state._replace(
            queue=change(state.queue, number, False),
            bound=change(state.bound, number, False),
            inbox=change(state.inbox, number, ()),
        )

    # A host: its agent, its connection

    def _host(self, state: State, number: int) -> Iterator[Move]:
        host, budget = state.hosts[number], state.budget
        if host.alive and budget.crash:
            yield (
                f"h{number} CRASHES",
                self._crashed(state._replace(budget=budget._replace(crash=budget.crash - 1)), number),
            )
        if host.alive and budget.power:
            less = self._crashed(state._replace(budget=budget._replace(power=budget.power - 1)), number)
            entry = host.entry
            if entry is not None and entry.started == "now":
                entry = entry._replace(started="old")
            yield f"h{number} LOSES POWER", less.host(number, on=False, entry=entry)
        if host.connected and budget.drop:
            less = state._replace(budget=budget._replace(drop=budget.drop - 1))
            yield f"h{number} LOSES ITS CONNECTION", self._dropped(less, number)
        if not host.alive:
            yield f"h{number} starts", state.host(number, alive=True, restock=True)
        elif host.restock:
            yield f"h{number} takes stock", self._restocked(state, number)
        else:
            yield from self._working(state, number, host)

    def _working(self, state: State, number: int, host: HostState) -> Iterator[Move]:
        if host.line is not None:
            yield from self._line(state, number, host.line)
        if host.tied is not None:
            yield from self._tied(state, number, host.tied)
        if not host.connected and (host.tied is None or not self._do.same_connection):
            tied = host.tied
            if tied is None:
                tied = Tied(None, "", Known(), ("connect.find",), 0, "")
            elif tied.stale:
                tied = tied._replace(stale=False)
            yield f"h{number} connects", state.host(number, connected=True, tied=tied, consuming=False)
        elif host.connected and host.tied is None:
            if host.consuming:
                yield from self._deliveries(state, number, host)
            else:  # only without the rule of the same connection
                yield (
                    f"h{number} opens its session",
                    state.host(number, tied=Tied(None, "", Known(), ("connect.find",), 0, "")),
                )
            if host.entry is not None and host.entry.phase in EXISTS and not host.entry.bound:
                tied = Tied(None, "", Known(), ("connect.claim", "connect.ask", "connect.bind"), 0, "")
                yield f"h{number} looks again at a VM that was contested", state.host(number, tied=tied)
            if host.entry is not None and host.line is None and (course := self._do.grave(host.entry, state.time)):
                yield f"h{number} buries", state.host(number, tied=Tied(None, "", Known(), course, 0, ""))

    def _crashed(self, state: State, number: int) -> State:
        state = self._dropped(state, number)
        return state.host(number, alive=False, tied=None, line=None, restock=False)

    def _dropped(self, state: State, number: int) -> State:
        host = state.hosts[number]
        tied = host.tied
        if tied is not None and not tied.stale and host.connected:
            if tied.message is not None and not tied.acknowledged:
                state = self._requeued(state, number, tied)
            tied = tied._replace(stale=True) if tied.message is not None or tied.course[0] != "connect.find" else None
        return state.host(number, connected=False, consuming=False, tied=tied)

    @staticmethod
    def _requeued(state: State, number: int, tied: Tied) -> State:
        message = tied.message
        assert message is not None
        match tied.source:
            case "comp":
                return state._replace(comp=add(state.comp, message))
            case "dead":
                return state._replace(dead=add(state.dead, message))
            case _:
                return state.put(number, message) if state.queue[number] else state

    def _restocked(self, state: State, number: int) -> State:
        host = state.hosts[number]._replace(restock=False)
        entry = host.entry
        if entry is None:
            return state.host(number, restock=False)
        match self._do.finding(entry, host.on, state.time):
            case Finding.DELETING:
                host = host._replace(line=Line((*self._do.erase, "delete.answer"), 0, entry.ending, told=False))
            case Finding.HOST_WENT_DOWN:
                host = host._replace(line=Line(courses.START[2:], 0, "started", told=False))
            case Finding.STARTED:
                host = host._replace(entry=entry._replace(started="now", timed=False))
            case Finding.TOO_LATE | Finding.RESTED:
                host = host._replace(entry=entry._replace(wanted="off", timed=False))
            case _:
                pass
        if entry.phase in ("claimed", "gone"):
            host = host._replace(disk=False, on=False)
        return state._replace(hosts=change(state.hosts, number, host))

    def _deliveries(self, state: State, number: int, host: HostState) -> Iterator[Move]:
        for message in set(state.comp):
            rest = state._replace(comp=take(state.comp, message))
            yield f"h{number} gets the create of {message.request}", self._received(rest, number, message, "comp")
        for message in set(state.inbox[number]):
            if message.kind != "C" and host.line is not None:
                continue  # it waits in the VM's line
            rest = state._replace(inbox=change(state.inbox, number, take(state.inbox[number], message)))
            yield f"h{number} gets {message.kind} by its own queue", self._received(rest, number, message, "host")
        for message in set(state.dead):
            rest = state._replace(dead=take(state.dead, message))
            if message.kind != "C":
                yield f"h{number} says that {message.kind} was not begun", rest.tell(message.request, "not-done")
            else:
                yield f"h{number} gets a create that nobody took", self._received(rest, number, message, "dead")

    def _received(self, state: State, number: int, message: Message, source: str) -> State:
        entry = state.hosts[number].entry
        if message.by_vm_key and entry is None:
            state = state._replace(bound=change(state.bound, number, False))
        tied = Tied(message, source, Known(), (), 0, "")
        if message.kind != "C":
            if entry is None or entry.phase not in EXISTS:
                return state.tell(message.request, "gone")
            if self._is_late(state):
                return state.tell(message.request, "not-done")
            verb = "delete-vm" if message.kind == "D" else "start-vm"
            tied = tied._replace(course=courses.tied(self._do.changes[verb]), decision=verb)
        return state.host(number, tied=tied)

    def _is_late(self, state: State, *, fresh: bool = False) -> bool:
        return state.time > 0 and not fresh and bool(self._do.due)

    # Work that is tied to the connection

    def _tied(self, state: State, number: int, tied: Tied) -> Iterator[Move]:
        if tied.message is not None and not tied.course:
            state, tied = self._decided(state, number, tied)
        name = tied.course[tied.step]
        live = state.hosts[number].connected and not tied.stale
        if not live:
            yield f"h{number} drops its work", self._ended(state, number)
            if not self._do.barrier and name.endswith(".acknowledge"):
                yield f"h{number} goes on without its barrier", self._finished(state, number, tied)
            if name not in LOCAL and not name.startswith(("erase.", "start.")):
                return
            if name.endswith(".acknowledge"):
                return
        yield from self._step(state, number, tied, name)

    def _decided(self, state: State, number: int, tied: Tied) -> tuple[State, Tied]:
        """Ask the product what to do next with a create, and lay its course out."""
        host = state.hosts[number]
        assert tied.message is not None
        step = self._do.next_step_for(number, tied.message, tied.known, host.entry, host.room, state.time)
        tied = tied._replace(course=courses.tied(self._do.course_of(step)), step=0)
        match step:
            case decide.HandOn(to):
                tied = tied._replace(decision="hand-on", to=int(to[1:]))
            case decide.Refuse(error):
                words = {"outcome-unknown": "unknown", "vm-id-taken": "taken"}
                tied = tied._replace(decision=words.get(error.code, "no"))
            case decide.Begin() | decide.Rejoin():
                tied = tied._replace(decision="build")
            case decide.Leave():
                tied = tied._replace(decision="leave")
            case _:
                tied = tied._replace(decision="learn")
        return state.host(number, tied=tied), tied

    @staticmethod
    def _ended(state: State, number: int) -> State:
        return state.host(number, tied=None)

    def _step(self, state: State, number: int, tied: Tied, name: str) -> Iterator[Move]:
        what = f"h{number} {name}"
        if name.endswith(".acknowledge"):
            if not tied.acknowledged and self._do.barrier:
                yield what, state.host(number, tied=tied._replace(acknowledged=True))
            else:
                yield f"{what}: the barrier is back", self._finished(state, number, tied)
            return
        for label, after, known in self._effects(state, number, tied, name):
            if after.hosts[number].tied is None:
                yield f"{what}{label}", after
            elif tied.decision == "learn":
                yield f"{what}{label}", after.host(number, tied=tied._replace(known=known, course=(), step=0))
            elif tied.message is None:
                yield f"{what}{label}", self._advanced(after, number)
            else:
                yield f"{what}{label}", after.host(number, tied=tied._replace(step=tied.step + 1))

    @staticmethod
    def _advanced(state: State, number: int) -> State:
        """The next step of connecting or burying; at its end the host is there for messages."""
        tied = state.hosts[number].tied
        assert tied is not None
        if tied.step + 1 < len(tied.course):
            return state.host(number, tied=tied._replace(step=tied.step + 1))
        return state.host(number, tied=None, consuming=True)

    def _effects(self, state: State, number: int, tied: Tied, name: str) -> Iterator[tuple[str, State, Known]]:
        host, known, message = state.hosts[number], tied.known, tied.message
        match name:
            case "create.claim":
                owner = number if state.claim is None else state.claim
                yield "", state._replace(claim=owner), known._replace(claim=owner)
            case "create.probe":
                assert message is not None
                holders = [i for i, bound in enumerate(state.bound) if bound]
                for i in holders:
                    state = state.put(i, message._replace(hops=message.hops + 1, by_vm_key=True, died=None))
                yield "", state, known._replace(held=bool(holders))
            case "create.let-go":
                yield "", state._replace(claim=None), known._replace(claim=None, let_go=True)
            case "create.offers":
                offers = tuple(h.room and h.consuming for h in state.hosts)
                yield "", state, known._replace(offers=offers)
            case "create.hand-on":
                assert message is not None
                if not state.queue[tied.to]:
                    yield " (it has no queue)", self._no_way(state, number, tied), known
                    return
                yield f" to h{tied.to}", state.put(tied.to, message._replace(hops=message.hops + 1, died=None)), known
            case "create.journal" | "create.refuse":
                assert message is not None
                past = self._do.remembered(host.entry, state.time)
                past = tuple(one for one in past if one.request != message.request)
                bound = host.entry is not None and host.entry.bound
                entry = Entry("claimed", message.request, bound, fresh=message.fresh, past=past)
                if name == "create.refuse":
                    entry = entry._replace(phase="gone", ending="no")
                yield "", state.host(number, entry=entry), known
            case "create.remember":
                assert message is not None
                assert host.entry is not None
                past = (*host.entry.past, Past(message.request, "taken", message.fresh))
                yield "", state.host(number, entry=host.entry._replace(past=tuple(sorted(past)))), known
            case "create.prolong":
                assert host.entry is not None
                yield "", state.host(number, entry=host.entry._replace(fresh=True)), known
            case "create.bind":
                yield "", state._replace(bound=change(state.bound, number, True)), known
            case "create.journal-bound":
                assert host.entry is not None
                yield "", state.host(number, entry=host.entry._replace(phase="bound", bound=True)), known
            case "connect.unbind" | "bury.unbind":
                yield "", state._replace(bound=change(state.bound, number, False)), known
            case "connect.forget" | "bury.forget":
                assert host.entry is not None
                yield "", state.host(number, entry=self._do.left(host.entry, state.time)), known
            case _ if name.startswith("connect."):
                yield from ((label, after, known) for label, after in self._connecting(state, number, host, name))
            case _ if name.startswith(("erase.", "start.")) and not name.endswith(".look"):
                yield (
                    "",
                    state._replace(hosts=change(state.hosts, number, self._worked(host, name, "deleted", asked=True))),
                    known,
                )
            case _:
                yield "", state, known

    def _no_way(self, state: State, number: int, tied: Tied) -> State:
        """The host to which a create should go is forgotten: decide anew, knowing that."""
        assert tied.message is not None
        known, message = tied.known, tied.message
        if known.claim is not None and known.claim != number:
            message = message._replace(hops=decide.MAX_HOPS)
        elif known.offers is not None:
            known = known._replace(offers=change(known.offers, tied.to, False))
        return state.host(number, tied=tied._replace(message=message, known=known, course=(), step=-1))

    def _finished(self, state: State, number: int, tied: Tied) -> State:
        """The acknowledge is through: what goes on now is the host's."""
        host, message = state.hosts[number], tied.message
        assert message is not None
        state = self._ended(state, number)
        if message.kind != "C":
            verb = tied.decision
            rest = self._do.changes[verb][len(courses.tied(self._do.changes[verb])) :]
            outcome = "deleted" if message.kind == "D" else "started"
            return state.host(number, line=Line(rest, 0, outcome, told=True))
        entry = host.entry
        match tied.decision:
            case "no" | "unknown" | "taken":
                return state.tell(message.asker, tied.decision)
            case "build":
                assert entry is not None
                if entry.ending:
                    return state.tell(message.asker, entry.ending)
                if entry.phase == "ready":
                    return state.tell(message.asker, "ok")
                state = self._without_old_line(state, number)
                line = state.hosts[number].line or Line((*self._do.build, BEGIN[-1]), 0, "ok", True, entry.asker)
                return state.host(number, line=line._replace(told=True))
        return state

    # Connecting

    def _connecting(self, state: State, number: int, host: HostState, name: str) -> Iterator[Move]:
        tied, entry = host.tied, host.entry
        assert tied is not None
        match name:
            case "connect.find":
                yield "", self._course_found(state, number, entry)
            case "connect.claim":
                owner = number if state.claim is None else state.claim
                state = state._replace(claim=owner)
                if owner != number:
                    state = self._contested(state, number)
                yield "", state
            case "connect.ask":
                others = [i for i, bound in enumerate(state.bound) if bound and i != number]
                assert entry is not None
                if others:
                    yield " (contested)", self._contested(state, number)
                elif tied.decision != "contested":
                    yield "", state.host(number, entry=entry._replace(bound=True))
                else:
                    yield "", state
            case "connect.queue":
                yield "", state._replace(queue=change(state.queue, number, True))
            case "connect.bind":
                yield "", self._bound_again(state, number, host)
            case "connect.consume":
                if not host.new_broker or not self._do.muster or self._is_fleet_there(state):
                    yield "", state.host(number, new_broker=False)

    def _course_found(self, state: State, number: int, entry: Entry | None) -> State:
        has_queue = state.queue[number]
        course: tuple[str, ...] = ("connect.find",)
        right = self._do.right(entry, has_queue) if entry is not None else Right.NONE
        grave = self._do.grave(entry, state.time) if entry is not None and state.hosts[number].line is None else ()
        if grave:
            course, right = course + grave, Right.NONE
        if right is Right.UNDO:
            kept = entry is not None and entry.bound and self._do.left(entry, state.time) is not None
            course += self._do.undo_course(has_queue=has_queue, keeps_grave=kept)
        if right is Right.ASK:
            course += ("connect.claim", "connect.ask")
        course += ("connect.queue",)
        if right in (Right.BIND, Right.ASK):
            course += ("connect.bind",)
        tied = Tied(None, "", Known(), (*course, "connect.consume"), 0, "")
        new_broker = state.hosts[number].new_broker or not has_queue
        return state.host(number, tied=tied, new_broker=new_broker)

    def _contested(self, state: State, number: int) -> State:
        host = state.hosts[number]
        assert host.entry is not None
        assert host.tied is not None
        tied, line = host.tied._replace(decision="contested"), host.line
        if host.entry.phase == "bound" and line is None:  # nothing is lost by giving it up
            line = Line((*self._do.erase, "create.answer"), 0, "unknown", told=False)
        return state.host(number, entry=host.entry._replace(bound=False), tied=tied, line=line)

    def _bound_again(self, state: State, number: int, host: HostState) -> State:
        entry = host.entry
        if entry is None or (not entry.bound and entry.phase != "claimed"):
            return state
        if entry.phase == "claimed":  # only without rule 5a
            entry = entry._replace(phase="bound", bound=True)
        if entry.phase == "bound":
            state = self._without_old_line(state, number)
        line = state.hosts[number].line
        if entry.phase == "bound" and line is None:
            line = Line((*self._do.build, BEGIN[-1]), 0, "ok", False, entry.asker)
        state = state._replace(bound=change(state.bound, number, True))
        return state.host(number, entry=entry, line=line)

    @staticmethod
    def _is_fleet_there(state: State) -> bool:
        """Whether every host has said what it holds: it consumes, or waits for the others to do so."""
        return all(h.connected and (h.consuming or _is_waiting(h)) for h in state.hosts)

    # Work that goes on whatever happens

    def _line(self, state: State, number: int, line: Line) -> Iterator[Move]:
        host = state.hosts[number]
        name = line.course[line.step]
        what = f"h{number} {name}"
        fresh = host.entry is not None and host.entry.fresh
        request = {"deleted": "D", "started": "S"}.get(line.outcome, line.request)
        if name.endswith(".answer"):
            yield what, self._answered(state, number, line)
            return
        first_of_command = line.told and line.step == 0 and line.outcome in ("deleted", "started")
        checked = name in self._do.due and (name.startswith("build.") or first_of_command)
        if checked and self._is_late(state, fresh=fresh):
            if name.startswith("build."):
                yield f"{what}: too late", self._undone(state, number, line)
            else:
                yield f"{what}: too late", state.host(number, line=None).tell(request, "not-done")
            if not (name.startswith("build.") and line.step):  # which may have been at work until now, and goes on
                return
        if name in ("build.disk", "build.seed", "build.start") and state.budget.fail:
            less = state._replace(budget=state.budget._replace(fail=state.budget.fail - 1))
            yield f"{what} FAILS", self._undone(less, number, line)
        after = self._worked(host, name, line.outcome, asked=line.told)
        yield (
            what,
            state._replace(hosts=change(state.hosts, number, after._replace(line=line._replace(step=line.step + 1)))),
        )

    def _without_old_line(self, state: State, number: int) -> State:
        """The line of the VM that had the id before is not this one's: nothing is left of it but its answer."""
        line = state.hosts[number].line
        old = line is not None and line.course[line.step].endswith(".answer")
        return self._answered(state, number, line) if line is not None and old else state

    @staticmethod
    def _answered(state: State, number: int, line: Line) -> State:
        done = state.host(number, line=None)
        request = {"deleted": "D", "started": "S"}.get(line.outcome, line.request)
        return done.tell(request, line.outcome) if line.told else done

    def _undone(self, state: State, number: int, line: Line) -> State:
        return state.host(number, line=Line((*self._do.erase, "create.answer"), 0, "no", line.told, line.request))

    @staticmethod
    def _worked(host: HostState, name: str, outcome: str, *, asked: bool) -> HostState:
        """A host after a step that needs no broker."""
        entry = host.entry
        assert entry is not None
        match name:
            case "build.disk":
                return host._replace(disk=True)
            case "build.seed":
                return host  # it goes with the disk, and nothing depends on it
            case "build.start" | "start.qemu":
                return host._replace(on=True)
            case "build.journal":
                return host._replace(entry=entry._replace(phase="ready", started="now"))
            case "start.journal":
                return host._replace(entry=entry._replace(wanted="on", started="", timed=asked or entry.timed))
            case "start.settle":
                return host._replace(entry=entry._replace(started="now", timed=False))
            case "erase.journal":
                return host._replace(entry=entry._replace(phase="deleting", ending=outcome, wanted="off"))
            case "erase.qemu":
                return host._replace(on=False)
            case "erase.remove":
                return host._replace(disk=False)
            case "erase.entomb":
                return host._replace(entry=entry._replace(phase="gone"))
            case _:
                raise AssertionError(f"the model does not know {name}")


def _is_waiting(host: HostState) -> bool:
    return host.tied is not None and host.tied.course[host.tied.step :] == ("connect.consume",)


def _asked_to_delete(state: State) -> bool:
    return any(request == "D" for request, _ in state.told)
