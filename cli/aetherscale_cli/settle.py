"""Commands that get one answer each: when each is sent, and what became of it. Pure: events in, decisions out."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct

from aetherscale_cli.arguments import PROGRAM
from aetherscale_cli.errors import CliError, Exit, NoAgent
from aetherscale_cli.wire import Counted, Delivered, Event, Message, Nacked, Reply, Returned, decode_reply
from aetherscale_protocol import topology
from aetherscale_protocol.answers import encode_answer, failure
from aetherscale_protocol.commands import Command, Reach
from aetherscale_protocol.errors import VM_UNKNOWN, Refused
from aetherscale_protocol.options import Options

CREATES_AT_ONCE = 20
"""How many creates may be unanswered at a time. Of those that lie in the queue every agent is given one whenever it is
free, however full its host: of 1,000 VMs the fullest host of 200 was given 14 more than the emptiest, with 20 at a time
one more. And none may lie there for longer than `topology.COMPETING_TTL_MS`.

When the time of one is over the next is sent in its place; it may lie there still if its time is shorter than that
(`--timeout`), and an agent that takes it then says that its deadline has passed. But where so many times run out
with no answer in between nobody answers, and no more are sent in vain.

With `--wait-for-host` (`waiting`) all are sent at once: they share one deadline, and one that had to wait for others'
answers before it was sent could miss it with no host ever down."""


class Call(Struct):
    """One command for one VM, and what became of it: a `reply`, or `trouble`, or (yet) neither. `vm_id` is '' where it
    is not known which VM is meant.
    """

    command: Command
    options: Options
    vm_id: str
    message: Message
    reply: Reply | None = None
    trouble: CliError | None = None
    until: float = 0.0  #: when to wait no longer for its answer; 0: it was not sent yet
    name: str = ""  #: of the VM, if it was named so
    typed: str = ""  #: what the VM was called on the command line

    @property
    def subject(self) -> str:
        """What it speaks of, in words."""
        host = getattr(self.options, "host", None)
        return f"VM {self.spoken}" if self.vm_id else f"host {host}"

    @property
    def spoken(self) -> str:
        """The VM, as the operator knows it."""
        return self.name or self.vm_id

    @property
    def pending(self) -> bool:
        """Whether nothing has become of it yet."""
        return self.reply is None and self.trouble is None

    @property
    def done(self) -> bool:
        """Whether an agent says that it was done."""
        return self.reply is not None and self.reply.answer.ok

    @property
    def doubtful(self) -> bool:
        """Whether it may have been done, and nobody knows."""
        answered = self.reply.answer.execution_info.code if self.reply is not None else None
        return (self.trouble.code if self.trouble is not None else answered) == "outcome-unknown"


class Settling:
    """Says what is to be sent, and takes what the session reports until every call is settled.

    Times are on `time.monotonic()`'s clock.
    """

    def __init__(self, calls: Sequence[Call]) -> None:
        self.calls = calls
        self._unsent = deque(calls)
        self._unanswered: dict[str, Call] = {}  #: what was sent, the first first; also those whose time is over
        self._in_vain = 0  #: how many times ran out since the last answer

    def release(self, until: float) -> Iterator[Call]:
        """The calls to be sent now, whose answers are waited for until then; what was handed over counts as sent."""
        while self._unsent and (self._unsent[0].command.reach is not Reach.ONE or self._has_room):
            call = self._unsent.popleft()
            call.until = until
            self._unanswered[call.message.correlation_id] = call
            yield call

    @property
    def wake_at(self) -> float:
        """When the first answer that is waited for is too late."""
        return next(call.until for call in self._unanswered.values() if call.pending)

    def find_late(self, now: float) -> list[Call]:
        """The calls whose answers are not waited for any more."""
        return [call for call in self._unanswered.values() if call.pending and call.until <= now]

    @property
    def _has_room(self) -> bool:
        waiting = sum(call.pending for call in self._unanswered.values())
        return waiting < CREATES_AT_ONCE and self._in_vain < CREATES_AT_ONCE

    @property
    def complete(self) -> bool:
        """Whether every call is settled."""
        return not any(call.pending for call in self.calls)

    def take(self, event: Event) -> None:
        """Something happened."""
        if isinstance(event, Counted):
            if event.queue == topology.HOSTS and event.consumers == 0:
                self.give_up(NoAgent())
            return
        call = self._unanswered.pop(event.correlation_id, None)
        if call is not None:
            call.trouble = None  # that it was too late, perhaps
            settle(call, event)
            self._in_vain = 0

    def give_up(self, trouble: CliError) -> None:
        """None of the pending was done, and none will be."""
        for call in self.calls:
            if call.pending:
                call.trouble = trouble

    def lose(self, why: CliError) -> None:
        """No answer will come any more: of what was sent, what changes something may have been done."""
        for call in self.calls:
            if call.pending:
                call.trouble = unanswered(call, why) if call.command.changes else why

    def time_out(self, late: Sequence[Call], timeout: float, holders: Mapping[str, str] | None = None) -> None:
        """The time for these answers is over. `holders`: what is known of the VMs' hosts, by VM id."""
        for call in late:
            if call.pending:
                silent = silence(call, timeout, (holders or {}).get(call.vm_id, ""))
                call.trouble = unknown_outcome(call, silent) if call.command.changes else silent
                self._in_vain += 1
        if not any(call.pending for call in self._unanswered.values()) and self._in_vain >= CREATES_AT_ONCE:
            hint = f"{PROGRAM} doctor shows which hosts hang"
            why = f"the time of {self._in_vain} creates ran out with no answer in between"
            self.lose(CliError(why, hint, Exit.PARTIAL))


def silence(call: Call, timeout: float, holder: str = "") -> CliError:
    """No answer came in time, in seconds. `holder`: what is known of the VM's host."""
    known = f"; {holder}" if holder else ""
    hint = f"its host may hang: {PROGRAM} doctor shows which do"
    return CliError(f"{call.subject}: no answer within {timeout:g} s{known}", hint, Exit.PARTIAL)


def unanswered(call: Call, why: CliError) -> CliError:
    """No answer to what changes something will be heard: it may have been done, if it was sent."""
    return unknown_outcome(call, why) if call.until else not_sent(call, why)


def not_sent(call: Call, why: CliError) -> CliError:
    """It was not even asked for, because of what befell those before it."""
    said = f"{call.subject}: {why}; {call.command.name} was not sent"
    return CliError(said, why.hint, why.exit_code, "deadline-passed")


def settle(call: Call, event: Delivered | Returned | Nacked) -> None:
    """What this event, which is about this call, makes of it."""
    match event:
        case Returned():
            if call.command.reach is Reach.HOLDER:
                call.reply = vm_unknown()
            elif call.command.reach is Reach.HOST:
                call.reply = _host_unknown(call.subject)
            else:
                call.trouble = NoAgent()
        case Nacked():
            message = f"{call.subject}: the broker did not take the command: a queue is full"
            call.trouble = CliError(message, "nothing was changed; try again later")
        case Delivered():
            call.reply = decode_reply(event.body)
            if call.reply is None:
                garbled = CliError(f"{call.subject}: the answer can't be read", "are agent and CLI of one version?")
                call.trouble = unknown_outcome(call, garbled) if call.command.changes else garbled


def _host_unknown(subject: str) -> Reply:
    answer = failure(
        Refused("host-unknown", f"{subject} does not exist", f"{PROGRAM} list-hosts shows those that there are")
    )
    return Reply(encode_answer(answer), answer)


def vm_unknown() -> Reply:
    """The answer that no agent has to give: the broker knows that nobody holds this VM."""
    answer = failure(Refused("vm-unknown", VM_UNKNOWN, f"{PROGRAM} list-vms shows those that there are"))
    return Reply(encode_answer(answer), answer)


def unknown_outcome(call: Call, why: CliError) -> CliError:
    """The outcome is unknown: say why, how to find out, and how to ask again without doing it twice."""
    reason = str(why).removeprefix(f"{call.subject}: ")
    message = f"{call.subject}: it is not known whether {call.command.name} was done: {reason}"
    if not call.vm_id:
        return CliError(message, "ask again: it goes on where it was, and changes nothing if it was done", Exit.UNKNOWN)
    which = f"--name {call.name}" if call.name and call.command.reach is Reach.ONE else f"--vm-id {call.spoken}"
    again = f"{call.command.name} {which} --request-id {call.message.request_id}"
    if call.command.reach is Reach.ONE:
        again += " and the same options"
    look = "wait-vm" if getattr(call.options, "clone_of", None) else "show-vm"  # its copy may go on
    hint = f"find out with: {PROGRAM} {look} {call.spoken}; or ask again, which is safe: {PROGRAM} {again}"
    return CliError(message, hint, Exit.UNKNOWN)
