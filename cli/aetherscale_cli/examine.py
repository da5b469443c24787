"""What `doctor` looks at: connects, asks who is there, and pings every host through the broker. Judges nothing."""

import time
from collections.abc import Iterator

import msgspec

from aetherscale_cli import ask
from aetherscale_cli.contexts import Target
from aetherscale_cli.doctor import Examination, HostFacts
from aetherscale_cli.errors import CliError
from aetherscale_cli.insist import Connect
from aetherscale_cli.wire import Counted, Delivered, Event, Message, Returned, Session, decode_reply
from aetherscale_protocol import names
from aetherscale_protocol.answers import HostReport, Pong
from aetherscale_protocol.options import NoOptions

ROLL_CALL_S = 2.0
"""How long finding out which hosts there are may take; who does not say is pinged nevertheless."""


def examine(connect: Connect, target: Target, timeout: float) -> Examination:
    """Everything that there is to judge; `timeout` in seconds, for hosts that do not answer. Never raises CliError:
    what went wrong is part of what was found.
    """
    settings = target.settings
    found = Examination(address=target.address, user=settings.user, vhost=settings.vhost, timeout=timeout)
    began = time.monotonic()
    try:
        with connect() as session:
            found.connected_ms = (time.monotonic() - began) * 1000
            _call_the_roll(session, found)
            _ping_all(session, found, time.monotonic() + timeout)
    except CliError as error:
        found.error = error
    return found


def _call_the_roll(session: Session, found: Examination) -> None:
    """Which hosts there are: those alive, and those that they say the inventory names."""
    everyone = ask.ask_everyone(session, "list-hosts", min(found.timeout, ROLL_CALL_S))
    known = {missing.host for missing in everyone.missing}
    for reply in everyone.replies:
        try:
            report = msgspec.json.decode(reply.answer.response or b"", type=HostReport)
        except ValueError:  # it is of another version: it is pinged, and that tells
            report = None
        known |= {host for host in (reply.answer.host, *(report.fleet if report else ())) if host}
    found.hosts = {host: HostFacts() for host in sorted(known) if names.is_host_name(host)}
    found.nameless = everyone.nameless


def _ping_all(session: Session, found: Examination, deadline: float) -> None:
    pings: dict[str, tuple[str, float, float]] = {}
    for host in found.hosts:
        message = _ping(host, found.timeout)
        pings[message.correlation_id] = (host, time.monotonic(), time.time())
        session.publish(message)
        session.count_consumers(names.host_queue(host))
    for event in _events(session, found, deadline):
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


def _events(session: Session, found: Examination, deadline: float) -> Iterator[Event]:
    while not all(host.settled for host in found.hosts.values()):
        event = session.next_event(deadline)
        if event is None:
            return
        yield event


def _ping(host: str, timeout: float) -> Message:
    return ask.make_message("ping", NoOptions(), names.host_key(host), timeout)


def _take(host: HostFacts, body: bytes, took: float, sent_at: float) -> None:
    reply = decode_reply(body)
    if reply is None or not reply.answer.ok:
        info = reply.answer.execution_info if reply is not None else None
        host.down = host.down or (info is not None and info.code == "host-down")
        host.refusal = (info.reason or "refused without a reason") if info is not None else "its answer can't be read"
        return
    try:
        pong = msgspec.json.decode(reply.answer.response, type=Pong)
    except ValueError:
        host.refusal = "its answer can't be read"
        return
    host.answered_ms = took * 1000
    host.agent_version = pong.agent_version
    host.clock_ahead_s = pong.clock - (sent_at + took / 2)
