"""Asking again until a host is back: the wire and the clock for what `waiting` decides."""

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import msgspec

from aetherscale_cli.errors import CliError, Exit
from aetherscale_cli.progress import Line
from aetherscale_cli.settle import Call
from aetherscale_cli.waiting import AGAIN_S, Waiting
from aetherscale_cli.wire import Message, Session
from aetherscale_protocol import names, topology
from aetherscale_protocol.commands import encode_request

Connect = Callable[[], AbstractContextManager[Session]]


class Progress(Line):
    """One line on stderr that says who is waited for, and for how long at most."""

    def tell(self, waiting: Waiting, now: float) -> None:
        """Say it, if somebody is waited for."""
        if waiting.missing:
            left = max(0.0, waiting.patience.until - now)
            self.show(f"waiting for {waiting.missing} ({left:.0f} s left)")


def renew(call: Call, anew: bool) -> Message:
    """The message of the next try: the same request by the same deadline; `anew`: another request, for another id."""
    message = msgspec.structs.replace(call.message, correlation_id=os.urandom(8).hex())
    if not anew:
        return message
    call.vm_id = names.new_vm_id()
    call.options = msgspec.structs.replace(call.options, vm_id=call.vm_id)
    body = encode_request(call.command.name, call.options)
    return msgspec.structs.replace(message, body=body, request_id=names.new_request_id())


def ask_until_back(connect: Connect, waiting: Waiting) -> None:
    """Ask, and ask again, until every call is settled; reconnects if the connection is lost.

    :raise CliError: when the broker can't be reached at all; nothing was sent.
    """
    progress = Progress()
    reached = False
    try:
        while not waiting.complete:
            try:
                with connect() as session:
                    reached = True
                    _converse(session, waiting, progress)
            except CliError as error:
                if not reached:
                    raise
                _lose(waiting, error, progress)
    except KeyboardInterrupt:
        waiting.interrupt()
        raise
    finally:
        progress.clear()


def _converse(session: Session, waiting: Waiting, progress: Progress) -> None:
    while True:
        now = time.monotonic()
        waiting.pass_time(now)
        if waiting.complete:
            return
        if waiting.hold_due(now):
            session.count_consumers(topology.HOSTS)
        progress.tell(waiting, now)
        event = session.next_event(min(waiting.wake_at(), now + 1))
        if event is not None:
            for message in waiting.take(event, time.monotonic()):
                session.publish(message)


def _lose(waiting: Waiting, error: CliError, progress: Progress) -> None:
    """The connection is gone: wait a little before the next, or, if the broker says no, give up."""
    if error.exit_code is not Exit.UNREACHABLE:
        waiting.fail(error)
        return
    now = time.monotonic()
    waiting.disconnect(error, now)
    progress.tell(waiting, now)
    if not waiting.complete:
        time.sleep(AGAIN_S)
        waiting.pass_time(time.monotonic())
