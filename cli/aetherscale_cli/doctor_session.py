"""A session that also tries what an operator's user must not be allowed to do. It changes nothing even where it may.

Each try has a channel of its own, because a refusal closes it (and leaves a line in the broker's log).
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import pika

from aetherscale_cli.broker import BrokerSession
from aetherscale_cli.doctor_facts import Try
from aetherscale_protocol import topology

REFUSED = 403
NOBODY = "aetherscale-doctor.nobody"
"""No queue has this name: what is published to it is dropped."""


_Attempt = Callable[[Any, Callable[..., None]], None]
"""Tries something on a channel, and calls back when it was allowed."""


class DoctorSession(BrokerSession):
    """One examination's session."""

    def try_all(self, seconds: float) -> dict[Try, bool | None]:
        """What of these things the user may do; None where the broker did not say in time.

        Only where the exchange is known to be there: a user who may would make it.

        :raise CliError: when the connection is lost.
        """
        allowed: dict[Try, bool | None] = dict.fromkeys(_TRIES)
        for what, attempt in _TRIES.items():
            self._connection.channel(on_open_callback=functools.partial(self._attempt, what, attempt, allowed))
        self._run_until(lambda: None not in allowed.values(), time.monotonic() + seconds)
        if self._error is not None:
            raise self._error
        return allowed

    def _attempt(self, what: Try, attempt: _Attempt, allowed: dict[Try, bool | None], channel: Any) -> None:
        def close(_channel: Any, reason: BaseException) -> None:
            if isinstance(reason, pika.exceptions.ChannelClosedByBroker):
                # Another refusal comes only after the right to do it was looked at.
                settle(reason.reply_code != REFUSED)

        def settle(may: bool) -> None:
            if allowed[what] is None:
                allowed[what] = may
                self._loop.stop()

        channel.add_on_close_callback(close)
        attempt(channel, lambda *_: settle(True))


def _configure(channel: Any, done: Callable[..., None]) -> None:
    """Declare the exchange as it is already: whoever may, declares and deletes what he likes."""
    kinds = {exchange.name: exchange.type for exchange in topology.EXCHANGES}
    channel.exchange_declare(topology.EXCHANGE, kinds[topology.EXCHANGE], durable=True, callback=done)


def _read(channel: Any, done: Callable[..., None]) -> None:
    """Take from the queue to which nobody ever publishes."""
    channel.add_callback(done, [pika.spec.Basic.GetEmpty])
    channel.basic_get(topology.HOSTS, done)


def _write(channel: Any, done: Callable[..., None]) -> None:
    """Publish past the exchange, to nobody; a broker that lets us confirms it."""
    channel.confirm_delivery(lambda frame: done() if isinstance(frame.method, pika.spec.Basic.Ack) else None)
    channel.basic_publish("", NOBODY, b"")


_TRIES: dict[Try, _Attempt] = {"configure": _configure, "read": _read, "write": _write}
