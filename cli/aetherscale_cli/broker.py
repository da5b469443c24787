"""The connection to the broker: pika in, plain events out. The only module that needs pika.

It is quick on a long wire, too: both channels are opened at once, and consumer, confirms and the first
command leave together, so that an answer is here six round trips after the first packet, TLS not counted.
"""

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pika

from aetherscale_cli import text
from aetherscale_cli.broker_errors import blocked, explain, timed_out
from aetherscale_cli.contexts import Target
from aetherscale_cli.errors import CliError, Exit
from aetherscale_cli.wire import Counted, Delivered, Event, Message, Nacked, Returned
from aetherscale_protocol import topology
from aetherscale_protocol.settings import SettingsError, connection_parameters

CONNECT_TIMEOUT_S = 5.0
_CLOSE_TIMEOUT_S = 1.0
_HEARTBEAT_S = 15
_NOT_FOUND = 404

S = TypeVar("S", bound="BrokerSession")


@contextlib.contextmanager
def open_session_of(kind: type[S], target: Target, name: str) -> Iterator[S]:
    """A session with the broker, of this kind; `name` is how it lists us.

    :raise CliError: when the broker can't be reached or does not let us in.
    """
    try:
        parameters = connection_parameters(
            target.settings, name=name, heartbeat_s=_HEARTBEAT_S, timeout_s=CONNECT_TIMEOUT_S
        )
    except SettingsError as error:
        hint = f"{error.hint}; see {target.source}" if error.hint else f"see {target.source}"
        raise CliError(str(error), hint, Exit.USAGE) from None
    session = kind(target, parameters)
    try:
        session.connect()
        yield session
    finally:
        session.close()


def open_session(target: Target, name: str) -> contextlib.AbstractContextManager["BrokerSession"]:
    """A session with the broker; `name` is how it lists us.

    :raise CliError: when the broker can't be reached or does not let us in.
    """
    return open_session_of(BrokerSession, target, name)


def log_to_stderr() -> None:
    """Show what pika does (for `--debug`)."""
    handler = logging.StreamHandler()
    handler.setFormatter(_SafeFormatter("debug: %(name)s: %(message)s"))
    logging.basicConfig(level=logging.DEBUG, handlers=[handler])


class _SafeFormatter(logging.Formatter):
    """What pika logs is the broker's words, too."""

    def format(self, record: logging.LogRecord) -> str:
        return text.harmless(super().format(record))


def keep_quiet() -> None:
    """Keep pika's own log off stderr: what matters of it reaches people as our errors."""
    logging.getLogger("pika").propagate = False


class BrokerSession:
    """`wire.Session` over pika's SelectConnection, whose callbacks only ever note what happened."""

    def __init__(self, target: Target, parameters: pika.ConnectionParameters) -> None:
        self._target = target
        self._events: deque[Event] = deque()
        self._error: CliError | None = None
        self._published = 0
        self._unconfirmed: dict[int, str] = {}  #: correlation ids, by the broker's numbers for what was published
        self._channel: Any = None
        self._closed = False
        self._connection = pika.SelectConnection(
            parameters,
            on_open_callback=self._on_open,
            on_open_error_callback=self._on_lost,
            on_close_callback=self._on_lost,
        )
        self._loop = self._connection.ioloop
        self._counter = _Counter(self._connection, self._note, self._loop.stop)

    def connect(self) -> None:
        """Connect and log in.

        :raise CliError: when that fails, with the reason in the operator's words.
        """
        self._run_until(self._is_ready, time.monotonic() + CONNECT_TIMEOUT_S)
        if self._error is not None:
            raise self._error
        if not self._is_ready():
            raise timed_out(self._target, CONNECT_TIMEOUT_S)

    def _is_ready(self) -> bool:
        return self._channel is not None and not self._counter.is_opening

    def publish(self, message: Message) -> None:
        """Send a command (see `wire.Session`)."""
        if self._error is not None:
            raise self._error
        properties = pika.BasicProperties(
            content_type="application/json",
            delivery_mode=2 if message.changes else 1,
            correlation_id=message.correlation_id,
            message_id=message.request_id,
            reply_to=topology.ReplyTo,
            user_id=self._target.settings.user,
            headers={"deadline": message.deadline_ms},
        )
        self._published += 1
        self._unconfirmed[self._published] = message.correlation_id
        self._channel.basic_publish(topology.EXCHANGE, message.key, message.body, properties, mandatory=True)

    def count_consumers(self, queue: str) -> None:
        """Ask how many consume a queue (see `wire.Session`)."""
        if self._error is not None:
            raise self._error
        self._counter.ask(queue)

    def next_event(self, deadline: float) -> Event | None:
        """Wait for what happens next (see `wire.Session`)."""
        if not self._events:
            self._run_until(lambda: bool(self._events), deadline)
        if self._events:
            return self._events.popleft()
        if self._error is not None:
            raise self._error
        return None

    def close(self) -> None:
        """Say goodbye to the broker, or it would log a lost connection; a broker that is slow is not waited for."""
        if self._connection.is_open:
            self._connection.close()
            self._run_until(lambda: self._closed, time.monotonic() + _CLOSE_TIMEOUT_S)

    def _run_until(self, done: Callable[[], bool], deadline: float) -> None:
        """Run pika's loop until something happened that makes `done` true, an error came, or the deadline did."""
        timer = self._loop.call_later(max(0.0, deadline - time.monotonic()), self._loop.stop)
        try:
            while not done() and not self._closed and time.monotonic() < deadline and self._going_on():
                self._loop.start()
        finally:
            self._loop.remove_timeout(timer)

    def _going_on(self) -> bool:
        return self._error is None or self._connection.is_closing

    def _note(self, event: Event) -> None:
        self._events.append(event)
        self._loop.stop()

    def _on_open(self, connection: Any) -> None:
        connection.add_on_connection_blocked_callback(self._on_blocked)
        connection.channel(on_open_callback=self._on_channel_open)
        self._counter.open()

    def _on_channel_open(self, channel: Any) -> None:
        channel.add_on_return_callback(lambda _c, _m, properties, _b: self._note(Returned(properties.correlation_id)))
        channel.add_on_close_callback(self._on_lost)
        channel.confirm_delivery(self._on_confirm)
        channel.basic_consume(topology.ReplyTo, self._on_answer, auto_ack=True)
        self._channel = channel
        self._loop.stop()

    def _on_answer(self, _channel: Any, _method: Any, properties: Any, body: bytes) -> None:
        self._note(Delivered(properties.correlation_id or "", body))

    def _on_confirm(self, frame: Any) -> None:
        last = frame.method.delivery_tag
        tags = [tag for tag in self._unconfirmed if tag <= last] if frame.method.multiple else [last]
        for correlation_id in [self._unconfirmed.pop(tag) for tag in tags]:
            if isinstance(frame.method, pika.spec.Basic.Nack):
                self._note(Nacked(correlation_id))

    def _on_blocked(self, _connection: Any, frame: Any) -> None:
        self._fail(blocked(self._target, str(frame.method.reason)))

    def _on_lost(self, whose: Any, reason: BaseException) -> None:
        """The connection or the publishing channel is gone; of several reasons the first is the true one."""
        self._closed = self._closed or whose is self._connection
        self._fail(explain(reason, self._target))

    def _fail(self, error: CliError) -> None:
        self._error = self._error or error
        self._loop.stop()


class _Counter:
    """Counts consumers, on a channel that nothing else needs, because a refusal closes it.

    Questions are answered in their order, and none waits for the answer to the one before, as it would in pika's own
    `queue_declare`: many take one round trip.
    """

    def __init__(self, connection: Any, note: Callable[[Event], None], on_open: Callable[[], None]) -> None:
        self._connection = connection
        self._note = note
        self._opened = on_open
        self._channel: Any = None
        self._queues: deque[str] = deque()  #: that are asked for, or will be once there is a channel
        self.is_opening = False

    def open(self) -> None:
        """Open the channel, before anything is asked."""
        self.is_opening = True
        self._connection.channel(on_open_callback=self._on_open)

    def ask(self, queue: str) -> None:
        """Ask how many consume this queue."""
        self._queues.append(queue)
        if self._channel is not None:
            self._send(queue)
        elif not self.is_opening:
            self.open()

    def _send(self, queue: str) -> None:
        self._channel._send_method(pika.spec.Queue.Declare(queue=queue, passive=True))

    def _on_open(self, channel: Any) -> None:
        self.is_opening = False
        self._channel = channel
        channel.add_on_close_callback(self._on_close)
        channel.add_callback(self._on_count, [pika.spec.Queue.DeclareOk], one_shot=False)
        for queue in self._queues:
            self._send(queue)
        self._opened()

    def _on_count(self, frame: Any) -> None:
        self._note(Counted(self._queues.popleft(), frame.method.consumer_count))

    def _on_close(self, _channel: Any, reason: BaseException) -> None:
        self._channel = None
        if not isinstance(reason, pika.exceptions.ChannelClosedByBroker):
            return
        if self._queues:  # the first was refused; the others are asked on a new channel
            self._note(Counted(self._queues.popleft(), 0 if reason.reply_code == _NOT_FOUND else None))
        if self._queues and self._connection.is_open:
            self.open()
