"""Asking again until a host is back (`--wait-for-host`): what to send when, and what became of it. Pure.

Every try carries the same request id and the same deadline, so that it is done once, and never after that. A call is
asked again when it is known that it was not begun (its host is down, or no agent is there), and when its outcome is
not known (the connection broke, no answer came). Times are on `time.monotonic()`'s clock.
"""

from collections.abc import Callable, Sequence
from typing import Literal

from msgspec import Struct

from aetherscale_cli.arguments import PROGRAM
from aetherscale_cli.errors import CliError, Exit, NoAgent
from aetherscale_cli.settle import Call, settle, silence, unknown_outcome
from aetherscale_cli.text import listed, safe
from aetherscale_cli.wire import Counted, Delivered, Event, Message, Reply, Returned, decode_reply
from aetherscale_protocol import topology

AGAIN_S = 0.5
"""How long after a no it is asked again: a host that is down holds each try for as long as its queue does, 2 s."""


class Patience(Struct, frozen=True):
    """How long to go on. `wait`: for hosts to come back; `timeout`: for one answer; both in seconds."""

    begun: float
    wait: float
    timeout: float

    @property
    def until(self) -> float:
        """When the last try may begin."""
        return self.begun + self.wait

    @property
    def allowed(self) -> float:
        """How far ahead the deadline of all tries lies: none of them is begun later."""
        return min(self.wait + self.timeout, topology.MAX_PATIENCE_S)

    def answer_by(self, now: float, grace: float) -> float:
        """Until when a try that is sent now is waited for."""
        return min(now + self.timeout, self.begun + self.allowed) + grace


class _Try(Struct):
    """One call on its way: `due` to be asked at `at`, `held` until an agent is known to be there, `sent` and waited
    for until `at`, or `over`.
    """

    call: Call
    at: float
    state: Literal["due", "held", "sent", "over"] = "due"
    missing: str = ""  #: who is waited for, in words
    uncertain: CliError | None = None  #: why it is not known what became of an earlier try
    no: Reply | None = None  #: the last answer that said `host-down`


Renew = Callable[[Call, bool], Message]
"""Makes the next try's message; with new ids, if told so."""


class Waiting:
    """Takes what the session reports, and what time it is, until every call is settled.

    :param own_ids: whether the operator chose ids; if not, a create that nobody took may be given new ones.
    :param grace: how much longer than its time an answer is waited for, in seconds.
    """

    def __init__(self, calls: Sequence[Call], patience: Patience, renew: Renew, *, own_ids: bool, grace: float) -> None:
        self.calls = calls
        self.patience = patience
        self._renew = renew
        self._own_ids = own_ids
        self._grace = grace
        self._tries = [_Try(call, patience.begun) for call in calls]
        self._by_correlation: dict[str, _Try] = {}

    @property
    def complete(self) -> bool:
        """Whether every call is settled."""
        return all(one.state == "over" for one in self._tries)

    @property
    def missing(self) -> str:
        """Who is waited for, in words; '' as long as nobody is known to be missing."""
        return listed(sorted({safe(one.missing) for one in self._tries if one.missing and one.state != "over"}))

    def wake_at(self) -> float:
        """When to look at the clock again, if nothing happens before."""
        return min((one.at for one in self._tries if one.state in ("due", "sent")), default=self.patience.until)

    # What happens

    def hold_due(self, now: float) -> bool:
        """Whether some are due: then the agents are to be counted before they are sent."""
        due = [one for one in self._tries if one.state == "due" and one.at <= now]
        for one in due:
            one.state = "held"
        return bool(due)

    def take(self, event: Event, now: float) -> list[Message]:
        """Something happened; what is to be sent now."""
        if isinstance(event, Counted):
            return self._release(event, now)
        one = self._by_correlation.get(event.correlation_id)
        if one is not None and one.state != "over":
            self._take(one, event, now)
        return []

    def _release(self, event: Counted, now: float) -> list[Message]:
        held = [one for one in self._tries if one.state == "held" and event.queue == topology.HOSTS]
        if event.consumers == 0:
            for one in held:
                self._postpone(one, "an agent", now)
            return []
        return [self._send(one, now) for one in held]

    def _send(self, one: _Try, now: float) -> Message:
        one.call.message = self._renew(one.call, False)
        self._by_correlation[one.call.message.correlation_id] = one
        one.state, one.at = "sent", self.patience.answer_by(now, self._grace)
        return one.call.message

    def _take(self, one: _Try, event: Event, now: float) -> None:
        current = isinstance(event, Delivered | Returned) and event.correlation_id == one.call.message.correlation_id
        reply = decode_reply(event.body) if isinstance(event, Delivered) else None
        code = reply.answer.execution_info.code if reply is not None else None
        if reply is not None and code == "host-down":
            if current:  # else the copy that is under way counts
                one.no = reply
                self._postpone(one, _down_host(reply), now)
        elif isinstance(event, Returned) and one.call.command.name == "create-vm":
            self._postpone(one, "an agent", now)
        elif reply is not None and self._may_begin_anew(one, reply) and now < self.patience.until:
            self._by_correlation = {key: of for key, of in self._by_correlation.items() if of is not one}
            one.call.message = self._renew(one.call, True)
            one.uncertain = None  # that create is refused for good
            self._postpone(one, "an agent", now)
        elif code == "deadline-passed" and one.uncertain is not None:
            self._end(one)
        else:
            assert not isinstance(event, Counted)
            settle(one.call, event)
            one.state = "over"  # not before: Ctrl-C may come in between

    def _may_begin_anew(self, one: _Try, reply: Reply) -> bool:
        """Whether nobody took a create, which is a no for good to its ids, and its ids were our own choice."""
        info = reply.answer.execution_info
        return one.call.command.name == "create-vm" and info.code == "no-host" and not (info.reasons or self._own_ids)

    def _postpone(self, one: _Try, missing: str, now: float) -> None:
        one.missing = missing
        one.state, one.at = "due", min(now + AGAIN_S, self.patience.until)
        self._end_if_late(one, now)

    def pass_time(self, now: float) -> None:
        """It is so late now."""
        for one in self._tries:
            if one.state == "sent" and one.at <= now:
                self._doubt(one, silence(one.call, self.patience.timeout), now)
            elif one.state in ("due", "held"):
                self._end_if_late(one, now)

    def _doubt(self, one: _Try, why: CliError, now: float) -> None:
        """It is not known what becomes of what was sent: another try tells."""
        one.uncertain = why
        one.state, one.at = "due", now
        self._end_if_late(one, now)

    def disconnect(self, why: CliError, now: float) -> None:
        """The connection is gone, or could not be made again."""
        for one in self._tries:
            if one.state == "sent" and not isinstance(why, NoAgent):
                self._doubt(one, why, now)
            elif one.state != "over":
                self._postpone(one, "an agent" if isinstance(why, NoAgent) else "the broker", now)

    # How it ends

    def _end_if_late(self, one: _Try, now: float) -> None:
        if now >= self.patience.until:
            self._end(one)

    def _end(self, one: _Try) -> None:
        if one.uncertain is not None:
            one.call.trouble = self._unknown(one, one.uncertain)
        else:
            why = self._never_begun(one, f"{_still(one.missing)} after {self.patience.wait:g} s")
            one.call.reply, one.call.trouble = one.no, why
        one.state = "over"  # not before, here too

    def _unknown(self, one: _Try, why: CliError) -> CliError:
        return unknown_outcome(one.call, why) if one.call.command.changes else why

    def _never_begun(self, one: _Try, why: str, exit_code: Exit = Exit.PARTIAL) -> CliError:
        call = one.call
        done = f"; {call.command.name} was not begun, and will not be" if call.command.changes else ""
        return CliError(f"{call.subject}: {why}{done}", f"{PROGRAM} list-hosts shows who is up", exit_code)

    def fail(self, error: CliError) -> None:
        """The broker refuses what we want: asking again is of no use."""
        for one in self._tries:
            if one.state != "over":
                one.call.trouble = self._unknown(one, error) if one.uncertain or one.state == "sent" else error
                one.state = "over"

    def interrupt(self) -> None:
        """The operator has had enough."""
        for one in self._tries:
            if not one.call.pending:
                continue
            if one.state == "sent" or one.uncertain is not None:
                one.call.trouble = self._unknown(one, CliError("interrupted", exit_code=Exit.INTERRUPTED))
            else:
                missing = f" while waiting for {safe(one.missing)}" if one.missing else ""
                one.call.trouble = self._never_begun(one, f"interrupted{missing}", Exit.INTERRUPTED)
            one.state = "over"


def _down_host(reply: Reply) -> str:
    down = reply.answer.execution_info.down
    return f"host {down}" if down else "an agent"


def _still(missing: str) -> str:
    what = {
        "": "the broker does not answer",
        "an agent": "no agent is running",
        "the broker": "the broker can't be reached",
    }
    return f"{what.get(missing, f'{missing} is not running')}, still"
