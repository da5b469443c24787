"""Commands that get one answer each: what became of every one of them. Pure: events in, decisions out."""

from collections.abc import Mapping, Sequence

from msgspec import Struct

from aetherscale_cli.arguments import PROGRAM
from aetherscale_cli.errors import CliError, Exit, NoAgent
from aetherscale_cli.wire import Counted, Delivered, Event, Message, Nacked, Reply, Returned, decode_reply
from aetherscale_protocol import topology
from aetherscale_protocol.answers import encode_answer, failure
from aetherscale_protocol.commands import Command, Reach
from aetherscale_protocol.errors import VM_UNKNOWN, Refused
from aetherscale_protocol.options import Options


class Call(Struct):
    """One command for one VM, and what became of it: a `reply`, or `trouble`, or (yet) neither."""

    command: Command
    options: Options
    vm_id: str
    message: Message
    reply: Reply | None = None
    trouble: CliError | None = None
    name: str = ""  #: of the VM, if it was named so

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


class Settling:
    """Takes what the session reports until every call is settled."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self.calls = calls
        self._by_correlation = {call.message.correlation_id: call for call in calls}

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
        call = self._by_correlation.get(event.correlation_id)
        if call is not None and call.pending:
            settle(call, event)

    def give_up(self, trouble: CliError) -> None:
        """None of the pending was done, and none will be."""
        for call in self.calls:
            if call.pending:
                call.trouble = trouble

    def lose(self, why: CliError) -> None:
        """No answer will come any more to what was sent: what changes something may have been done."""
        for call in self.calls:
            if call.pending:
                call.trouble = unknown_outcome(call, why) if call.command.changes else why

    def time_out(self, timeout: float, holders: Mapping[str, str] | None = None) -> None:
        """The time for answers is over. `holders`: what is known of the VMs' hosts, by VM id."""
        for call in self.calls:
            if call.pending:
                why = silence(call, timeout, (holders or {}).get(call.vm_id, ""))
                call.trouble = unknown_outcome(call, why) if call.command.changes else why


def silence(call: Call, timeout: float, holder: str = "") -> CliError:
    """No answer came in time, in seconds. `holder`: what is known of the VM's host."""
    known = f"; {holder}" if holder else ""
    hint = f"its host may hang: {PROGRAM} doctor shows which do"
    return CliError(f"{call.subject}: no answer within {timeout:g} s{known}", hint, Exit.PARTIAL)


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
    hint = f"find out with: {PROGRAM} show-vm {call.spoken}; or ask again, which is safe: {PROGRAM} {again}"
    return CliError(message, hint, Exit.UNKNOWN)
