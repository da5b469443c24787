"""Waiting until VMs have come so far (`--wait`, wait-vm): what their holders say, and what to make of it.

The wait is not the VM: when the time is over the VM's true state is told, and it is not said to have failed.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Literal

import msgspec
from msgspec import Struct

from aetherscale_cli import ask, interrupts, text
from aetherscale_cli.arguments import PROGRAM
from aetherscale_cli.errors import CliError, Exit
from aetherscale_cli.progress import Line
from aetherscale_cli.report import Outcome
from aetherscale_cli.settle import Call
from aetherscale_cli.wire import Session
from aetherscale_protocol.answers import VmReport
from aetherscale_protocol.commands import COMMANDS
from aetherscale_protocol.options import ShowVm

FIRST_PAUSE_S, LONGEST_PAUSE_S, _GROWTH = 0.2, 2.0, 1.5
_ANSWER_S = 5.0
_CLOCKS_S = 5.0
"""By how much hosts' clocks may be behind ours."""
COLUMNS = ("VM ID", "NAME", "STATE", "REACHED", "HOST", "ADDRESS")

Verdict = Literal["waiting", "reached", "hopeless"]


class Watched(Struct):
    """A VM that is waited for, and what was last said of it."""

    vm_id: str
    name: str = ""
    verdict: Verdict = "waiting"
    report: VmReport | None = None
    raw: bytes = b""  #: the last report as it came; before there is one, the last refusal
    trouble: str = ""  #: why nothing is known of it, or why waiting is of no use
    hint: str = ""
    unfound: CliError | None = None  #: why it is not known which VM is meant
    told: CliError | None = None  #: what was told of it, if it has not come so far
    asked: float | None = None  #: when (`time.time()`) its create was sent that nobody answered: older ones are others

    @property
    def spoken(self) -> str:
        """The VM, as the operator knows it."""
        return self.name or self.vm_id

    @property
    def doubtful(self) -> bool:
        """Whether nothing is known of it but that its create may have been done."""
        return self.asked is not None and self.report is None

    def take(self, call: Call, milestone: str) -> None:
        """What became of asking for it."""
        if call.trouble is not None or call.reply is None:
            self.trouble = str(call.trouble).removeprefix(f"{call.subject}: ")
            return
        answer = call.reply.answer
        if not answer.ok:
            self.raw = self.raw if self.report else call.reply.raw
            self._take_refusal(answer.execution_info.code or "", answer.execution_info.reason or "refused")
            return
        try:
            report = msgspec.json.decode(answer.response, type=VmReport)
        except ValueError:
            self.trouble = "the answer can't be read"
            return
        if self.asked is not None and report.created < self.asked - _CLOCKS_S:
            self.verdict = "hopeless"
            return
        self.report = report
        self.raw, self.trouble = call.reply.raw, ""
        self._judge(self.report, milestone)

    def _take_refusal(self, code: str, reason: str) -> None:
        self.trouble = reason
        if code == "vm-unknown":
            self.verdict, self.trouble = "hopeless", "does not exist any more" if self.report else "does not exist"
        elif code not in _PASSING:
            self.verdict = "hopeless"

    def _judge(self, report: VmReport, milestone: str) -> None:
        if milestone in report.reached:
            self.verdict = "reached"
        elif report.state in _HINTS:
            why = f": {report.reason}" if report.reason else ""
            self.verdict, self.trouble = "hopeless", f"is {report.state}{why}"
            self.hint = _HINTS[report.state].format(PROGRAM, self.spoken, _go_on([self.spoken], milestone))
        elif _lacks_address(report, milestone) and report.address_source == "none":
            self.verdict, self.trouble = "hopeless", f"has no network in which host {report.host} could reach it"
            self.hint = "VMs get one from aetherscale_network, or from aetherscale_bridge, in the inventory"


def _go_on(vms: Sequence[str], milestone: str) -> str:
    """The command that goes on waiting."""
    return f"{PROGRAM} wait-vm {' '.join(vms)} --for {milestone} --timeout 5m"


def _lacks_address(report: VmReport, milestone: str) -> bool:
    """Whether what is waited for needs an address, and none is known."""
    return milestone in ("ip", "ssh") and report.state == "running" and not report.addresses


_HINTS = {
    "stopped": "{0} start-vm {1} starts it; then go on waiting: {2}",
    "failed": "{0} show-vm {1} shows more",
    "paused": "{0} resume-vm {1} lets it go on; then go on waiting: {2}",
    "deleting": "",
}
"""The states in which a VM comes no further by itself, and what to do."""

_PASSING = ("host-down", "deadline-passed", "failed", "outcome-unknown")
"""Refusals that say nothing of the VM: its host is down, or too busy to look in time. The next look tells more."""

_ASK_GUEST = (
    "on a bridge of your own only the guest knows its address, and its qemu-guest-agent tells it: is there one?"
)


def wait_for(
    session: Session,
    watched: Sequence[Watched],
    milestone: str,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Ask for the VMs, with growing pauses, until each has reached the milestone, or never will, or time is over.

    :raise CliError: when the connection is lost.
    """
    until, pause, line = clock() + seconds, FIRST_PAUSE_S, Line()
    try:
        while True:
            _look(session, [one for one in watched if one.verdict == "waiting"], milestone, until - clock())
            waiting = [one for one in watched if one.verdict == "waiting"]
            left = until - clock()
            if not waiting or left <= 0:
                return
            line.show(_progress(waiting, milestone, left))
            _rest(session, min(pause, left), clock)
            pause = min(pause * _GROWTH, LONGEST_PAUSE_S)
    finally:
        line.clear()


def _look(session: Session, watched: Sequence[Watched], milestone: str, left: float) -> None:
    timeout = max(0.5, min(_ANSWER_S, left))
    show = COMMANDS["show-vm"]
    calls = [
        ask.make_call(show, ShowVm(vm_id=one.vm_id, console_lines=1, reached=True), timeout, None, one.name)
        for one in watched
    ]
    ask.ask_each(session, calls, timeout)
    for one, call in zip(watched, calls, strict=True):
        one.take(call, milestone)


def _rest(session: Session, seconds: float, clock: Callable[[], float]) -> None:
    """Do nothing for a while, but keep the connection alive."""
    until = clock() + seconds
    while clock() < until:
        session.next_event(until)


def _progress(waiting: Sequence[Watched], milestone: str, left: float) -> str:
    states = text.listed([f"{text.safe(one.spoken)} ({_state(one, milestone)})" for one in waiting[:3]])
    more = f" and {len(waiting) - 3} more" if len(waiting) > 3 else ""
    return f"waiting for {milestone} of {states}{more}, {left:.0f} s left"


def _truth(one: Watched, milestone: str) -> str:
    state = _state(one, milestone)
    return f"it is {state}" if one.report is not None and not one.trouble else state


def _state(one: Watched, milestone: str) -> str:
    if one.report is None or one.trouble:
        return text.safe(one.trouble) or "not heard of"
    reached = f", reached: {one.report.reached[-1]}" if one.report.reached else ""
    silent = ", its guest agent has told no address" if _must_tell(one, milestone) else ""
    return f"{one.report.state}{reached}{silent}"


def _must_tell(one: Watched, milestone: str) -> bool:
    """Whether only the guest could say what is missing."""
    report = one.report
    return report is not None and _lacks_address(report, milestone) and report.address_source == "guest-agent"


def report_waits(watched: Sequence[Watched], milestone: str, seconds: float, *, interrupted: bool = False) -> Outcome:
    """The outcome of a wait; stdout is the table. Of a VM of which nothing is known its create has told."""
    outcome = Outcome()
    watched = [one for one in watched if not one.doubtful]
    rows = [_row(one) for one in watched if one.report is not None]
    outcome.stdout = text.partial_table(COLUMNS, rows, {"NAME"}) if rows else ""
    why = "interrupted" if interrupted else f"not within {seconds:g} s"
    for one in watched:
        one.told = one.unfound or _error_of(one, milestone, why)
        if one.told is not None:
            outcome.fail(str(one.told), one.told.hint, one.told.exit_code)
            _add_console(outcome, one)
    late = [one.spoken for one in watched if one.verdict == "waiting"]
    if any(_must_tell(one, milestone) for one in watched):
        outcome.hint(_ASK_GUEST)
    if late:
        outcome.hint(f"go on waiting: {_go_on(late, milestone)}")
    if interrupted:
        outcome.exit_code = Exit.INTERRUPTED
    return outcome


def _error_of(one: Watched, milestone: str, why: str) -> CliError | None:
    """What is to be told of a VM that has not come so far; `why` it is waited for no longer."""
    if one.verdict == "hopeless":
        return CliError(f"VM {one.spoken} {one.trouble}", one.hint or None)
    if one.verdict == "waiting":
        said = f"VM {one.spoken} has not reached {milestone}: {why}; {_truth(one, milestone)}"
        return CliError(said, None, Exit.PARTIAL)
    return None


def _row(one: Watched) -> Sequence[str]:
    assert one.report is not None, "only what is known is shown"
    vm = one.report
    name = one.name or vm.name
    return (vm.vm_id, name, vm.state, ", ".join(vm.reached), vm.host, ", ".join(vm.addresses))


def _add_console(outcome: Outcome, one: Watched) -> None:
    if one.report is not None and one.report.console:
        outcome.notes.append(f"  its console's last line: {text.safe(one.report.console[-1])}")


def wait_and_report(
    opening: AbstractContextManager[Session],
    watched: Sequence[Watched],
    milestone: str,
    seconds: float,
    clock: Callable[[], float],
    begun: float | None = None,
) -> Outcome:
    """Wait, and tell how it ended; Ctrl-C, or a connection that is lost, ends the wait, not the VM.

    :param begun: since when the `seconds` count, on that clock; left out: from now on.
    """
    begun = clock() if begun is None else begun

    def wait() -> None:
        with opening as session:
            wait_for(session, watched, milestone, seconds - (clock() - begun), clock)

    ended = interrupts.attempt(wait)
    spent = seconds if ended is None else clock() - begun
    outcome = report_waits(watched, milestone, spent, interrupted=isinstance(ended, KeyboardInterrupt))
    if isinstance(ended, CliError) and not all(one.doubtful for one in watched):  # else their create told the same
        outcome.fail(str(ended), ended.hint, ended.exit_code)
    return outcome
