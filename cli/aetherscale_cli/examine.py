"""What `doctor` looks at: the context, the way to the broker, the login, and every host. Judges nothing.

It goes as far as it can, and never raises CliError: what went wrong is part of what was found. Every wait has its end.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

import msgspec

from aetherscale_cli import ask, doctor_wire, text
from aetherscale_cli.arguments import PROGRAM, Invocation
from aetherscale_cli.broker import open_session_of
from aetherscale_cli.contexts import ContextStore, Target, find_target
from aetherscale_cli.doctor_facts import Examination, HostFacts
from aetherscale_cli.doctor_session import DoctorSession
from aetherscale_cli.errors import CliError
from aetherscale_cli.progress import Line
from aetherscale_cli.wire import Counted, Delivered, Event, Message, Reply, Returned, Session, decode_reply
from aetherscale_protocol import __version__, names
from aetherscale_protocol.answers import HostCondition, HostReport, Pong
from aetherscale_protocol.options import CheckHost, NoOptions, Options

ROLL_CALL_S = 2.0
"""How long finding out which hosts there are may take; who does not say is pinged nevertheless."""
RIGHTS_S = 3.0
PINGS_AT_ONCE, PROMPT_S = 20, 0.05
"""How many hosts are pinged at a time, and after how many seconds the next are, however few have answered."""
AGAIN_FIRST_S, AGAIN_S = 0.05, 1.0
"""How long hosts that read their images are left alone before they are asked again."""

Open = Callable[[], AbstractContextManager[DoctorSession]]


def examine(invocation: Invocation, store: ContextStore, environ: Mapping[str, str]) -> Examination:
    """Everything that there is to judge, of the broker that is meant."""
    found = Examination(version=__version__, now=time.time(), timeout=invocation.timeout)
    try:
        target = find_target(store, invocation.context, environ)
    except CliError as error:
        found.context_error = error
        return found
    settings = target.settings
    found.source, found.warnings, found.address = target.source, target.warnings, target.address
    found.host, found.user, found.vhost, found.tls = settings.host, settings.user, settings.vhost, settings.tls
    progress = Line()
    try:
        progress.show(f"looking at {target.address}")
        found.wire = doctor_wire.look(target)
        if not found.wire.broken:
            _examine_cloud(target, found, invocation.space.wait_images, progress)
    finally:
        progress.clear()
    return found


def _examine_cloud(target: Target, found: Examination, wait_images: float, progress: Line) -> None:
    began = time.monotonic()
    try:
        with open_session_of(DoctorSession, target, f"{PROGRAM} doctor") as session:
            found.login_ms = (time.monotonic() - began) * 1000
            progress.show("asking who is there")
            _call_the_roll(session, found)
            if found.user != "guest":  # who may do everything, as is known
                found.allowed = session.try_all(RIGHTS_S)
            _ping_all(session, found)
            _look_at_hosts(session, found, wait_images, progress)
    except CliError as error:
        found.error = error


def _call_the_roll(session: Session, found: Examination) -> None:
    """Which hosts there are: those alive, and those that they say the inventory names."""
    everyone = ask.ask_everyone(session, "list-hosts", min(found.timeout, ROLL_CALL_S))
    known = {missing.host for missing in everyone.missing}
    drained = set()
    for reply in everyone.replies:
        try:
            report = msgspec.json.decode(reply.answer.response or b"", type=HostReport)
        except ValueError:  # it is of another version: it is pinged, and that tells
            known |= {reply.answer.host} if reply.answer.host else set()
            continue
        found.fleet |= set(report.fleet)
        known |= {report.host, *report.fleet}
        drained |= {report.host} if report.state == "drained" else set()
    found.hosts = {host: HostFacts(drained=host in drained) for host in sorted(known) if names.is_host_name(host)}
    found.nameless = everyone.nameless


def _ping_all(session: Session, found: Examination) -> None:
    """Ping all hosts, a few at a time: so none's answer waits until many others' are sent for and read.

    Who consumes a queue is only asked where no answer came at once.
    """
    pings: dict[str, tuple[str, float, float]] = {}
    hosts = list(found.hosts)
    for first in range(0, len(hosts), PINGS_AT_ONCE):
        some = hosts[first : first + PINGS_AT_ONCE]
        for host in some:
            message = _question("ping", NoOptions(), host, found.timeout)
            pings[message.correlation_id] = (host, time.monotonic(), time.time())
            session.publish(message)
        _take_pings(session, found, pings, some, time.monotonic() + PROMPT_S)
    open_ones = [host for host in hosts if not found.hosts[host].settled]
    for host in open_ones:
        session.count_consumers(names.host_queue(host))
    _take_pings(session, found, pings, open_ones, time.monotonic() + found.timeout)


def _take_pings(
    session: Session,
    found: Examination,
    pings: Mapping[str, tuple[str, float, float]],
    hosts: Sequence[str],
    deadline: float,
) -> None:
    """Take what comes until these hosts are settled, or it is so late. `pings`: host and time by correlation id."""
    for event in _events(session, deadline, lambda: all(found.hosts[host].settled for host in hosts)):
        match event:
            case Delivered(correlation_id, body) if correlation_id in pings:
                host, sent, sent_at = pings[correlation_id]
                _take(found.hosts[host], body, time.monotonic() - sent, sent_at)
            case Returned(correlation_id) if correlation_id in pings:
                found.hosts[pings[correlation_id][0]].unroutable = True
            case Counted(queue, consumers):
                host = queue.removeprefix(names.host_queue(""))
                if host in found.hosts:
                    found.hosts[host].counted, found.hosts[host].consumers = True, consumers


def _events(session: Session, deadline: float, done: Callable[[], bool]) -> Iterator[Event]:
    while not done():
        event = session.next_event(deadline)
        if event is None:
            return
        yield event


def _question(command: str, options: Options, host: str, timeout: float) -> Message:
    return ask.make_message(command, options, names.host_key(host), timeout)


def _take(host: HostFacts, body: bytes, took: float, sent_at: float) -> None:
    reply = decode_reply(body)
    if reply is None or not reply.answer.ok:
        info = reply.answer.execution_info if reply is not None else None
        host.down = host.down or (info is not None and info.code == "host-down")
        host.refusal = _refusal(reply)
        return
    try:
        pong = msgspec.json.decode(reply.answer.response, type=Pong)
    except ValueError:
        host.refusal = _refusal(None)
        return
    host.answered_ms = took * 1000
    host.agent_version = pong.agent_version
    host.clock_ahead_s = pong.clock - (sent_at + took / 2)


def _refusal(reply: Reply | None) -> str:
    if reply is None:
        return "its answer can't be read"
    return reply.answer.execution_info.reason or "refused without a reason"


def _look_at_hosts(session: Session, found: Examination, wait_images: float, progress: Line) -> None:
    """What hosts find when they look at themselves; those that read images meanwhile are asked again and again."""
    until, pause = time.monotonic() + wait_images, AGAIN_FIRST_S
    asked = [name for name, host in found.hosts.items() if host.answered_ms is not None]
    while asked:
        _ask_conditions(session, found, asked, CheckHost(checksums=wait_images > 0))
        reading = {name: unread for name, host in found.hosts.items() if (unread := _unread(host)) is not None}
        left = until - time.monotonic()
        if not reading or left <= 0:
            return
        told = text.size(sum(reading.values()))
        progress.show(f"{text.listed(list(reading))} read their images: {told} left ({left:.0f} s more at most)")
        _pause(session, min(pause, left))
        asked, pause = list(reading), min(2 * pause, AGAIN_S)


def _pause(session: Session, seconds: float) -> None:
    until = time.monotonic() + seconds
    while session.next_event(until) is not None:
        pass  # the answer to a question that was given up


def _unread(host: HostFacts) -> int | None:
    """How many bytes of its images a host has still to read; None if it reads none."""
    if host.condition is None or all(image.state != "pending" for image in host.condition.images):
        return None
    return host.condition.unread


def _ask_conditions(session: Session, found: Examination, asked: list[str], options: CheckHost) -> None:
    waiting = {}
    for name in asked:
        message = _question("check-host", options, name, found.timeout)
        waiting[message.correlation_id] = name
        session.publish(message)
    for event in _events(session, time.monotonic() + found.timeout, lambda: not waiting):
        match event:
            case Delivered(correlation_id, body) if correlation_id in waiting:
                _take_condition(found.hosts[waiting.pop(correlation_id)], decode_reply(body))
            case Returned(correlation_id) if correlation_id in waiting:
                found.hosts[waiting.pop(correlation_id)].untold = "its queue is not bound to its key any more"
    for name in waiting.values():
        found.hosts[name].untold = f"no answer within {found.timeout:g} s"


def _take_condition(host: HostFacts, reply: Reply | None) -> None:
    if reply is None or not reply.answer.ok:
        host.untold = _refusal(reply)
        return
    try:
        host.condition = msgspec.json.decode(reply.answer.response, type=HostCondition)
    except ValueError:
        host.untold = _refusal(None)
