"""What is wrong, and what to do about it: facts in, findings out. Pure.

A check is a function from what was found (`examine` gathers it) to findings; add it to CHECKS. Here are those that
this machine can make alone or with the broker; `doctor_hosts` has those that take hosts.
"""

import ipaddress
import shlex
from collections.abc import Callable, Iterator, Sequence

import msgspec

from aetherscale_cli import doctor_hosts, text
from aetherscale_cli.doctor_facts import Certificate, Examination, Finding, Try, WireFacts
from aetherscale_cli.errors import CliError, Exit, NoAgent
from aetherscale_cli.report import Outcome, json_list
from aetherscale_protocol.topology import OPERATOR_PERMISSIONS

DAYS_LEFT = 21
"""A certificate that lasts for fewer days is worth a warning."""
DAY_S = 86_400.0

RENEW = "run site.yml again: it makes a new one when it is time (one of your own: put its successor there first)"

Check = Callable[[Examination], Iterator[Finding]]


def check_context(found: Examination) -> Iterator[Finding]:
    """Is it known which broker is meant, and is the password kept?"""
    if found.context_error is not None:
        yield trouble("context", "this machine", found.context_error)
        return
    for warning in found.warnings:
        said, _, remedy = warning.rpartition(": ")
        yield Finding(check="context", subject="this machine", result="warning", text=said, hint=remedy)
    if not found.warnings:
        yield Finding(check="context", subject="this machine", result="ok", text=found.source)


def check_address(found: Examination) -> Iterator[Finding]:
    """Is the broker there at all?"""
    if found.wire is None:
        return
    if found.wire.error is not None:
        yield trouble("address", found.address, found.wire.error)
        return
    where = f"at {found.wire.reached}, " if found.wire.reached != found.host else ""
    said = f"{where}connected in {found.wire.connected_ms:.0f} ms"
    yield Finding(check="address", subject=found.address, result="ok", text=said)


def check_tls(found: Examination) -> Iterator[Finding]:
    """Is what we say to the broker said to it alone, and how long does its certificate last?"""
    if found.wire is None or found.wire.error is not None:
        return
    if not found.tls:
        yield _judge_plain(found, found.wire)
    elif found.wire.tls_error is not None:
        more = _tell_refused(found.wire.certificate, found.now)
        yield trouble("tls", found.address, found.wire.tls_error, more)
    elif found.wire.certificate is not None:
        yield from _judge_certificate(found, found.wire, found.wire.certificate)


def _judge_plain(found: Examination, wire: WireFacts) -> Finding:
    stays = _is_loopback(wire.reached)
    if stays or found.is_play:
        why = "it stays on this machine" if stays else "this is play mode"
        return Finding(check="tls", subject=found.address, result="ok", text=f"not encrypted: {why}")
    return Finding(
        check="tls", subject=found.address, result="warning",
        text="not encrypted: whoever is on the way can read the password and every command, and change them",
        hint="site.yml makes the broker speak TLS, and the context's url amqps:// (docs/rollout.md)",
    )  # fmt: skip


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _judge_certificate(found: Examination, wire: WireFacts, shown: Certificate) -> Iterator[Finding]:
    days = int((shown.ends - found.now) // DAY_S)
    said = f"{wire.protocol}; {text.listed(shown.names)}, signed by {shown.issuer}; {days} days left"
    soon = days < DAYS_LEFT
    yield Finding(
        check="tls", subject=found.address, result="warning" if soon else "ok", text=said, days_left=days,
        hint=RENEW if soon else "",
    )  # fmt: skip
    if wire.ca_ends is not None and (left := int((wire.ca_ends - found.now) // DAY_S)) < DAYS_LEFT:
        yield Finding(
            check="tls", subject="ca_file", result="warning", days_left=left,
            text=f"a CA in it ends in {left} days",
            hint="run site.yml again (one of your own: put its successor into aetherscale_tls_ca_file first), "
            "and bring the new CA to all who log in",
        )  # fmt: skip
    if wire.own_ends is not None:
        left = int((wire.own_ends - found.now) // DAY_S)
        soon = left < DAYS_LEFT
        yield Finding(
            check="tls", subject="cert_file", result="warning" if soon else "ok", days_left=left,
            text=f"our own certificate: {left} days left",
            hint="run site.yml again, and bring the new one to this machine" if soon else "",
        )  # fmt: skip


def _tell_refused(shown: Certificate | None, now: float) -> str:
    """What there is to say about a certificate that was not accepted."""
    if shown is None:
        return ""
    if shown.ends < now:
        return f"; it ended {text.age(shown.ends, now)} ago"
    if shown.begins > now:
        return f"; it begins in {text.age(now, shown.begins)}"
    return f"; it is made for {text.listed(shown.names)}, and signed by {shown.issuer}"


def check_login(found: Examination) -> Iterator[Finding]:
    """Does the broker let us in?"""
    where = f"{found.user}, vhost {found.vhost}"
    if found.login_ms is not None:
        said = f"logged in within {found.login_ms:.0f} ms"
        yield Finding(check="login", subject=where, result="ok", text=said)
    if found.error is not None and not (found.login_ms is not None and _is_answer(found.error)):
        yield trouble("login", where, found.error)
    elif found.wire is not None and found.wire.broken:
        yield Finding(check="login", subject=where, result="skipped", text="not tried: see above")


def _is_answer(error: CliError) -> bool:
    """Whether that is an answer of the broker, and not a connection that was lost or is blocked."""
    return isinstance(error, NoAgent) or error.exit_code is Exit.FAILED


_MORE: dict[Try, str] = {
    "configure": "declare and delete exchanges and queues",
    "read": "take messages out of queues",
    "write": "publish past the exchange, into any queue",
}


def check_rights(found: Examination) -> Iterator[Finding]:
    """May we publish commands, and nothing else?"""
    if found.error is not None and found.error.exit_code is Exit.FAILED:
        yield trouble("rights", found.user, found.error, hint=_set_permissions(found))
    elif found.hosts or isinstance(found.error, NoAgent):  # the question was taken
        yield _judge_rights(found)


def _judge_rights(found: Examination) -> Finding:
    too_much = [_MORE[what] for what, allowed in found.allowed.items() if allowed]
    unsure = [_MORE[what] for what, allowed in found.allowed.items() if allowed is None]
    if found.user == "guest":
        return Finding(
            check="rights", subject=found.user, result="warning",
            text="guest may do everything on the broker: that is play mode, and nothing to work with",
            hint="site.yml without rabbitmq_loopback_users makes a user of your own, and guest is gone",
        )  # fmt: skip
    if too_much:
        return Finding(
            check="rights", subject=found.user, result="error", exit_code=Exit.FAILED,
            text=f"{found.user} may do more than publish commands: {'; '.join(too_much)}",
            hint=_set_permissions(found),
        )  # fmt: skip
    if not found.allowed:
        said = "may publish commands; what else it may was not tried, as no agent is there"
        return Finding(check="rights", subject=found.user, result="ok", text=said)
    if unsure:
        said = f"may publish commands; the broker did not say whether also to {'; '.join(unsure)}"
        hint = "it is slow, or of a version that answers otherwise: ask again"
        return Finding(check="rights", subject=found.user, result="warning", text=said, hint=hint)
    said = "may publish commands, and nothing else"
    return Finding(check="rights", subject=found.user, result="ok", text=said)


def _set_permissions(found: Examination) -> str:
    rights = OPERATOR_PERMISSIONS
    return (
        "site.yml sets it right; or, on the broker: rabbitmqctl set_permissions "
        f"-p {shlex.quote(found.vhost)} {shlex.quote(found.user)} '{rights.configure}' '{rights.write}' '{rights.read}'"
    )


def check_agents(found: Examination) -> Iterator[Finding]:
    """Is anybody there, and is everybody named?"""
    if isinstance(found.error, NoAgent):
        yield trouble("agents", "all", found.error)
    if found.nameless:
        agents = "1 agent is" if found.nameless == 1 else f"{found.nameless} agents are"
        yield Finding(
            check="agents", subject="unnamed", result="error", state="silent", exit_code=Exit.PARTIAL,
            text=f"{agents} connected, did not answer, and no inventory names it",
            hint="on the broker's machine: rabbitmqctl list_connections client_properties tells from where",
        )  # fmt: skip
    if found.hosts and found.login_ms is not None:
        up = sum(host.answered_ms is not None for host in found.hosts.values())
        said = f"{up} of {len(found.hosts)} hosts answer"
        if found.fleet:
            said += f"; the inventory names {len(found.fleet)}"
        yield Finding(check="agents", subject="all", result="ok", text=said)


def trouble(check: str, subject: str, error: CliError, more: str = "", hint: str = "") -> Finding:
    """An error of the CLI as a finding."""
    return Finding(
        check=check, subject=subject, result="error", text=f"{error}{more}", hint=hint or error.hint or "",
        exit_code=int(error.exit_code),
    )  # fmt: skip


CHECKS: tuple[Check, ...] = (
    check_context,
    check_address,
    check_tls,
    check_login,
    check_rights,
    check_agents,
    *doctor_hosts.CHECKS,
)

COLUMNS = ("CHECK", "WHAT", "RESULT", "DETAIL")
MOST_NAMED = 4
"""How many hosts share a line by name; of more they are counted."""


def judge(found: Examination) -> list[Finding]:
    """What all checks say."""
    return [finding for check in CHECKS for finding in check(found)]


def report(found: Examination, *, as_json: bool, strict: bool = False) -> Outcome:
    """All checks' findings; what is wrong once more on stderr, each with its remedy.

    `strict`: a warning is a failure.
    """
    findings = judge(found)
    outcome = Outcome()
    if as_json:
        outcome.stdout = json_list([msgspec.json.encode(finding) for finding in findings])
    else:
        outcome.stdout = text.table(COLUMNS, _rows(findings))
    for finding in findings:
        said = f"{finding.about}{finding.text}"
        if finding.result == "error":
            outcome.fail(said, finding.hint or None, Exit(finding.exit_code))
        elif finding.result == "warning":
            outcome.notes.append(f"warning: {text.safe(said)}")
            outcome.hint(finding.hint)
    if strict and outcome.exit_code is Exit.DONE and any(finding.result == "warning" for finding in findings):
        outcome.exit_code = Exit.FAILED
    return outcome


def _rows(findings: Sequence[Finding]) -> list[tuple[str, str, str, str]]:
    """A line for each finding; hosts of which the same is true, and good, share one."""
    lines: dict[tuple[str, str, str, str], list[str]] = {}
    for finding in findings:
        alone = "" if finding.result == "ok" else finding.subject
        lines.setdefault((finding.check, finding.result, finding.text, alone), []).append(finding.subject)
    return [(check, _together(who), result, said) for (check, result, said, _), who in lines.items()]


def _together(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= MOST_NAMED else f"{names[0]} … {names[-1]} ({len(names)})"
