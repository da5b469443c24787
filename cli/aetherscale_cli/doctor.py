"""What is wrong, and what to do about it: facts in, findings out. Pure.

A check is a function from what was found (`examine` gathers it) to findings; add it to CHECKS.
"""

from collections.abc import Callable, Iterator
from typing import Literal

import msgspec
from msgspec import Struct

from aetherscale_cli import text
from aetherscale_cli.arguments import PROGRAM
from aetherscale_cli.errors import CliError, Exit, NoAgent
from aetherscale_cli.report import Outcome, json_list

CLOCK_LIMIT_S = 5.0
"""How far a host's clock may be off before it is worth a warning: deadlines of commands are compared with it."""


class HostFacts(Struct):
    """What was found of one host; of those that are None nothing is known."""

    answered_ms: float | None = None
    agent_version: str = ""
    clock_ahead_s: float = 0.0  #: of the clock of this machine
    refusal: str = ""
    down: bool = False  #: another host said so
    unroutable: bool = False  #: no queue is bound to its key
    counted: bool = False
    consumers: int | None = None  #: of its queue; 0 also if there is none, None if the broker does not say

    @property
    def settled(self) -> bool:
        """Whether more waiting tells no more about it."""
        if self.unroutable:
            return self.counted
        return self.answered_ms is not None or bool(self.refusal) or (self.counted and self.consumers == 0)


class Examination(Struct):
    """All that was found. `error`: what ended it early."""

    address: str
    user: str
    vhost: str
    timeout: float
    connected_ms: float | None = None
    error: CliError | None = None
    hosts: dict[str, HostFacts] = {}
    nameless: int = 0  #: agents that are alive, did not answer, and that nobody could name


class Finding(Struct, frozen=True, kw_only=True, rename="kebab", omit_defaults=True):
    """One line of the report. `hint` says what to do."""

    check: str
    subject: str
    result: Literal["ok", "warning", "fault"]
    text: str
    hint: str = ""
    state: str = ""  #: of a host: up, down, silent, unknown, unbound
    answer_ms: float | None = None
    agent_version: str = ""
    clock_ahead_s: float | None = None
    exit_code: int = 0

    @property
    def about(self) -> str:
        """The beginning of a sentence that goes on with `text`, where that says too little alone."""
        return {"host": f"host {self.subject} ", "clock": f"{self.subject}: "}.get(self.check, "")


Check = Callable[[Examination], Iterator[Finding]]


def check_broker(found: Examination) -> Iterator[Finding]:
    """Can it be reached, and does it let us in?"""
    where = f"{found.address}, vhost {found.vhost}"
    if found.connected_ms is not None:
        said = f"logged in as {found.user} in {found.connected_ms:.0f} ms"
        yield Finding(check="broker", subject=where, result="ok", text=said)
    if found.error is not None and not isinstance(found.error, NoAgent) and found.error.exit_code is not Exit.FAILED:
        yield _trouble("broker", where, found.error)


def check_rights(found: Examination) -> Iterator[Finding]:
    """May we publish commands, and count the agents?"""
    if found.error is not None and found.error.exit_code is Exit.FAILED:
        yield _trouble("rights", found.user, found.error)
    elif found.hosts:
        yield Finding(check="rights", subject=found.user, result="ok", text="may publish commands")


def check_agents(found: Examination) -> Iterator[Finding]:
    """Is anybody there, and is everybody named?"""
    if isinstance(found.error, NoAgent):
        yield _trouble("agents", "all", found.error)
    if found.nameless:
        agents = "1 agent is" if found.nameless == 1 else f"{found.nameless} agents are"
        yield Finding(
            check="agents", subject="unnamed", result="fault", state="silent", exit_code=Exit.PARTIAL,
            text=f"{agents} connected, did not answer, and no inventory names it",
            hint="on the broker's machine: rabbitmqctl list_connections client_properties tells from where",
        )  # fmt: skip


def check_hosts(found: Examination) -> Iterator[Finding]:
    """Does every host answer, and if not, why?"""
    for name, host in found.hosts.items():
        state = _state(host)
        if state == "up":
            yield Finding(
                check="host", subject=name, result="ok", state=state,
                text=f"answered in {host.answered_ms:.0f} ms; agent {host.agent_version}",
                answer_ms=round(host.answered_ms or 0, 1), agent_version=host.agent_version,
                clock_ahead_s=round(host.clock_ahead_s, 3),
            )  # fmt: skip
        else:
            said, hint = _WRONG[state]
            yield Finding(
                check="host", subject=name, result="fault", state=state, exit_code=Exit.PARTIAL,
                text=said.format(host=name, timeout=found.timeout, refusal=host.refusal),
                hint=hint.format(host=name, program=PROGRAM),
            )  # fmt: skip


def check_clocks(found: Examination) -> Iterator[Finding]:
    """Do the hosts and we agree about the time?"""
    ahead = {name: host.clock_ahead_s for name, host in found.hosts.items() if host.answered_ms is not None}
    off = {name: seconds for name, seconds in ahead.items() if abs(seconds) > CLOCK_LIMIT_S}
    if len(off) > 1 and len(off) == len(ahead) and max(off.values()) - min(off.values()) <= CLOCK_LIMIT_S:
        said = f"all hosts' clocks are {_off(sum(off.values()) / len(off))}: more likely it is yours"
        yield Finding(check="clock", subject="this machine", result="warning", text=said, hint=_CLOCK_HINT)
        return
    for name, seconds in off.items():
        said = f"its clock is {_off(seconds)}: commands may come too late for it, or seem to"
        hint = f"on {name}: {_CLOCK_HINT}"
        yield Finding(check="clock", subject=name, result="warning", text=said, hint=hint, clock_ahead_s=seconds)


CHECKS: tuple[Check, ...] = (check_broker, check_rights, check_agents, check_hosts, check_clocks)

_CLOCK_HINT = "timedatectl shows whether a time service runs; chrony or systemd-timesyncd keeps it right"

_WRONG = {
    "down": (
        "is down: its agent is not connected to the broker",
        "on {host}: systemctl status aetherscale-agent; if it is gone for good: {program} forget-host {host}",
    ),
    "silent": (
        "is silent: its agent is connected, but did not answer within {timeout:g} s: it hangs, or is frozen or cut off",
        "on {host}: systemctl restart aetherscale-agent (its VMs run on)",
    ),
    "unknown": (
        "is unknown to the broker: its agent was never connected, or it was forgotten",
        "on {host}: systemctl start aetherscale-agent; if it is gone: take it out of the inventory and run site.yml",
    ),
    "unbound": (
        "can't be reached: its agent is connected, but its queue is not bound to its key any more",
        "its agent mends that within 20 s; else, on {host}: systemctl restart aetherscale-agent (its VMs run on)",
    ),
    "odd": (
        "does not understand a ping: {refusal}",
        "are all agents and the CLI of one version? site.yml brings them up to date",
    ),
}


def _state(host: HostFacts) -> str:
    if host.answered_ms is not None:
        return "up"
    if host.unroutable:
        return "unbound" if host.consumers else "unknown"
    if host.down or (host.counted and host.consumers == 0):
        return "down"
    return "odd" if host.refusal else "silent"


def _off(seconds: float) -> str:
    return f"{abs(seconds):.0f} s {'ahead' if seconds > 0 else 'behind'}"


def _trouble(check: str, subject: str, error: CliError) -> Finding:
    hint = error.hint or ""
    code = int(error.exit_code)
    return Finding(check=check, subject=subject, result="fault", text=str(error), hint=hint, exit_code=code)


COLUMNS = ("CHECK", "WHAT", "RESULT", "DETAIL")


def report(found: Examination, *, as_json: bool) -> Outcome:
    """All checks' findings; what is wrong once more on stderr, each with its remedy."""
    findings = [finding for check in CHECKS for finding in check(found)]
    outcome = Outcome()
    if as_json:
        outcome.stdout = json_list([msgspec.json.encode(finding) for finding in findings])
    else:
        rows = [(finding.check, finding.subject, finding.result, finding.text) for finding in findings]
        outcome.stdout = text.table(COLUMNS, rows)
    for finding in findings:
        said = f"{finding.about}{finding.text}"
        if finding.result == "fault":
            outcome.fail(said, finding.hint or None, Exit(finding.exit_code))
        elif finding.result == "warning":
            outcome.notes.append(f"warning: {text.safe(said)}")
            outcome.hint(finding.hint)
    return outcome
