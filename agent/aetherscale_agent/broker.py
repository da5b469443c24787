"""AMQP for asyncio: pika's callbacks as awaitables. I/O only; it knows no command and takes no decision.

Two habits of the wire are settled here once. A channel that the broker closes fails everything that waits on
it (pika alone would say nothing, and the agent would go deaf). A mandatory publish is confirmed, one at a time
on its channel, so that a returned message can be told from its neighbours.
"""

import asyncio
import contextlib
import logging
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pika import frame, spec
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.exceptions import AMQPError, ChannelClosed, InvalidFrameError

from aetherscale_protocol.settings import BrokerSettings, SettingsError, connection_parameters
from aetherscale_protocol.tls import explain
from aetherscale_protocol.topology import EXCHANGE, Binding, Exchange, ExchangeBinding, Queue, ReplyTo

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0


class BrokerLost(Exception):
    """The connection or the channel is gone. What was under way may or may not have reached the broker."""


class Declined(Exception):
    """The broker refused what was asked and closed the channel. `code` is AMQP's, e.g. 404, 405, 406."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code} {text}")
        self.code = code
        self.text = text

    @property
    def present(self) -> str:
        """The argument that a piece has already, which was to be declared with another; '' if none is named.

        Source: RabbitMQ's `inequivalent arg 'x-dead-letter-routing-key' … but current is the value 'h1' of type …`;
        3.10 to 4.0 print it so, or without `the value`.
        """
        match = re.search(r"but current is (?:the value )?'([^']+)'", self.text)
        return match[1] if match else ""


class NotTaken(Exception):
    """The broker did not take a message over: a queue that it should go to is full."""


class Unroutable(Exception):
    """A mandatory message came back: no queue is bound to its key."""


@dataclass(frozen=True)
class Got:
    """A message that was asked for, and must be acknowledged or rejected."""

    tag: int
    properties: Any  # pika.BasicProperties; pika is untyped
    body: bytes


@dataclass(frozen=True)
class Delivery:
    """A message from the broker, and the channel on which it must be acknowledged."""

    channel: "Channel"
    queue: str  #: the queue that it was consumed from
    tag: int
    key: str
    properties: Any  # pika.BasicProperties; pika is untyped
    body: bytes
    exchange: str = EXCHANGE  #: to which it was published; of one that died, the dead-letter exchange
    is_shed: bool = False  #: its body was given up unread: there were too many

    def without_contents(self) -> "Delivery":
        """The same message, unread: what is needed to refuse it."""
        old = self.properties
        slim = spec.BasicProperties(reply_to=old.reply_to, correlation_id=old.correlation_id, user_id=old.user_id)
        return replace(self, properties=slim, body=b"", is_shed=True)

    @property
    def headers(self) -> dict[str, Any]:
        """The message's headers; empty if it has none."""
        return self.properties.headers or {}


OnDelivery = Callable[[Delivery], None]


class _TolerantConnection(AsyncioConnection):  # type: ignore[misc]  # pika is untyped
    """pika's, but properties that it can't decode are read as none, and what is sent in one round of the loop leaves in
    one piece: pika makes a system call of each frame, which is most of what an agent does in a flood.

    A header that holds a date in the year 10^11, or tables nested a thousand deep, passes any broker, and ends any
    connection of pika's that it is delivered on: one message would cut off one agent after the other, for as long
    as it is delivered again.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._unsent: list[bytes] = []
        super().__init__(*args, **kwargs)

    def _adapter_emit_data(self, data: bytes) -> None:
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._send_all)
        self._unsent.append(data)

    def _send_all(self) -> None:
        data, self._unsent = b"".join(self._unsent), []
        if self._transport is not None:  # else it was lost meanwhile
            self._transport.write(data)

    def _read_frame(self) -> tuple[int, Any]:
        try:
            return super()._read_frame()  # type: ignore[no-any-return]
        except InvalidFrameError:
            raise
        except Exception as error:
            kind, channel, size = struct.unpack_from(">BHL", self._frame_buffer)
            if kind != spec.FRAME_HEADER:
                raise
            log.warning("a message's properties can't be decoded (%s): read as none", error)
            (body_size,) = struct.unpack_from(">Q", self._frame_buffer, spec.FRAME_HEADER_SIZE + 4)
            header = frame.Header(channel, body_size, spec.BasicProperties())
            return spec.FRAME_HEADER_SIZE + size + spec.FRAME_END_SIZE, header


class Connection:
    """One connection. `lost` resolves, with the reason, when it is gone."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        connection.add_on_close_callback(self._on_close)

    @classmethod
    async def open(cls, settings: BrokerSettings, *, name: str, heartbeat_s: int) -> "Connection":
        """A connection that is open.

        :raise BrokerLost: when the broker can't be reached, refuses the login, or takes too long.
        """
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[Any] = loop.create_future()

        def on_error(_connection: Any, error: BaseException) -> None:
            if not opened.done():
                opened.set_exception(BrokerLost(_describe_unopened(error, settings)))

        try:
            parameters = connection_parameters(
                settings, name=name, heartbeat_s=heartbeat_s, timeout_s=CONNECT_TIMEOUT_S
            )
        except SettingsError as error:
            raise BrokerLost(f"{error} ({error.hint})") from None  # it may be there at the next try
        raw = _TolerantConnection(
            parameters,
            on_open_callback=lambda c: None if opened.done() else opened.set_result(c),
            on_open_error_callback=on_error,
            custom_ioloop=loop,
        )
        try:
            return cls(await asyncio.wait_for(opened, CONNECT_TIMEOUT_S * 2))
        except BaseException as error:
            _close_quietly(raw)
            if isinstance(error, TimeoutError):
                raise BrokerLost("the broker does not answer") from None
            raise

    def _on_close(self, _connection: Any, error: BaseException) -> None:
        if not self.lost.done():
            self.lost.set_result(describe(error))

    async def channel(self) -> "Channel":
        """A new channel.

        :raise BrokerLost: when the connection is gone.
        """
        opened: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        try:
            self._connection.channel(on_open_callback=lambda c: None if opened.done() else opened.set_result(c))
        except AMQPError as error:
            raise BrokerLost(describe(error)) from None
        await asyncio.wait({opened, self.lost}, return_when=asyncio.FIRST_COMPLETED)
        if not opened.done():
            raise BrokerLost(self.lost.result())
        return Channel(opened.result())

    def drop(self, reason: str) -> None:
        """Give the connection up: it will be lost, with this reason."""
        if not self.lost.done():
            self.lost.set_result(reason)
        _close_quietly(self._connection)


def _close_quietly(connection: Any) -> None:
    with contextlib.suppress(AMQPError):  # closed already, or closing: that is what was wanted
        connection.close()


class Channel:
    """One channel. Every method raises `BrokerLost` when it is gone, `Declined` when the broker closes it for that."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._waiting: set[asyncio.Future[Any]] = set()
        self._unconfirmed: dict[int, asyncio.Future[Any]] = {}
        self._published = 0
        self._returned = False
        self._mandatory = asyncio.Lock()
        self.closed: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self.cancelled: Callable[[], None] = lambda: None
        channel.add_on_close_callback(self._on_close)
        channel.add_on_cancel_callback(lambda _frame: self.cancelled())
        channel.add_on_return_callback(self._on_return)

    def _on_close(self, _channel: Any, error: BaseException) -> None:
        if isinstance(error, ChannelClosed):
            failure: Exception = Declined(error.reply_code, error.reply_text)
        else:
            failure = BrokerLost(describe(error))
        if not self.closed.done():
            self.closed.set_result(failure)
        for waiter in (*self._waiting, *self._unconfirmed.values()):
            if not waiter.done():
                waiter.set_exception(failure)

    async def _call(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call a method of pika's channel that takes `callback`, and wait for the broker's answer to it."""
        answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.add(answered)
        try:
            self._start(method, *args, callback=lambda f: None if answered.done() else answered.set_result(f), **kwargs)
            return await answered
        finally:
            self._waiting.discard(answered)

    def _start(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        if self.closed.done():
            raise self._gone()
        try:
            return getattr(self._channel, method)(*args, **kwargs)
        except AMQPError as error:
            raise BrokerLost(describe(error)) from None

    def _gone(self) -> Exception:
        failure = self.closed.result()
        return failure if isinstance(failure, BrokerLost) else BrokerLost(str(failure))

    async def declare_exchange(self, exchange: Exchange, *, passive: bool = False) -> None:
        """Declare a durable exchange."""
        await self._call("exchange_declare", exchange.name, exchange.type, durable=True, passive=passive)

    async def declare_queue(self, queue: Queue, *, passive: bool = False, exclusive: bool = False) -> int:
        """Declare a queue (durable, unless exclusive); how many consumers it has."""
        frame = await self._call(
            "queue_declare",
            queue.name,
            durable=not exclusive,
            passive=passive,
            exclusive=exclusive,
            arguments=queue.arguments or None,
        )
        return int(frame.method.consumer_count)

    async def bind(self, binding: Binding) -> None:
        """Bind a queue; nothing happens if it is bound so already."""
        await self._call("queue_bind", binding.queue, binding.exchange, routing_key=binding.key)

    async def bind_exchange(self, binding: ExchangeBinding) -> None:
        """Bind an exchange to another; nothing happens if it is bound so already."""
        await self._call("exchange_bind", binding.destination, binding.source)

    async def bind_all(self, bindings: Sequence[Binding]) -> None:
        """Bind queues. Only the last is waited for: the broker handles what comes on a channel in its order."""
        for binding in bindings[:-1]:
            self._start("queue_bind", binding.queue, binding.exchange, routing_key=binding.key)
        for binding in bindings[-1:]:
            await self.bind(binding)

    async def check(self, *things: Exchange | Queue) -> None:
        """Return if all of these are there; one round trip for all. The arguments of queues are not compared.

        :raise Declined: when one is not there; the channel is closed then.
        """
        for thing in things[:-1]:
            if isinstance(thing, Exchange):
                self._start("exchange_declare", thing.name, thing.type, passive=True)
            else:
                self._start("queue_declare", thing.name, passive=True)
        for thing in things[-1:]:
            if isinstance(thing, Exchange):
                await self.declare_exchange(thing, passive=True)
            else:
                await self.declare_queue(thing, passive=True)

    async def unbind(self, binding: Binding) -> None:
        """Undo a binding; nothing happens if there is none."""
        await self._call("queue_unbind", binding.queue, binding.exchange, routing_key=binding.key)

    async def prefetch(self, count: int) -> None:
        """How many unacknowledged messages each later consumer of this channel may hold."""
        await self._call("basic_qos", prefetch_count=count)

    async def confirm(self) -> None:
        """Switch publisher confirms on."""
        await self._call("confirm_delivery", self._on_confirm)

    async def consume(self, queue: str, on_delivery: OnDelivery, *, priority: int | None = None) -> str:
        """Consume a queue (`amq.rabbitmq.reply-to`: without acknowledging); the consumer's tag."""

        def on_message(_channel: Any, method: Any, properties: Any, body: bytes) -> None:
            key, exchange = method.routing_key, method.exchange
            on_delivery(Delivery(self, queue, method.delivery_tag, key, properties, body, exchange))

        arguments = None if priority is None else {"x-priority": priority}
        frame = await self._call("basic_consume", queue, on_message, auto_ack=queue == ReplyTo, arguments=arguments)
        return str(frame.method.consumer_tag)

    async def cancel(self, tag: str) -> None:
        """Stop consuming; what was delivered before must still be acknowledged."""
        await self._call("basic_cancel", tag)

    def ack(self, delivery: Delivery) -> None:
        """Acknowledge; to know that the broker has it, follow with `barrier`."""
        self._start("basic_ack", delivery.tag)

    async def get(self, queue: str) -> Got | None:
        """One message of a queue, not acknowledged; None if it has none."""
        answered: asyncio.Future[Got | None] = asyncio.get_running_loop().create_future()

        def on_message(_channel: Any, method: Any, properties: Any, body: bytes) -> None:
            if not answered.done():
                answered.set_result(Got(method.delivery_tag, properties, body))

        self._waiting.add(answered)
        try:
            self._start(
                "add_callback", lambda _: None if answered.done() else answered.set_result(None), [spec.Basic.GetEmpty]
            )
            self._start("basic_get", queue, on_message)
            return await answered
        finally:
            self._waiting.discard(answered)

    def reject(self, message: Got) -> None:
        """Put a message back to where it was."""
        self._start("basic_reject", message.tag, requeue=True)

    async def delete_queue(self, queue: str, *, if_unused: bool = False, if_empty: bool = False) -> None:
        """Delete a queue; nothing happens if there is none. What it must not be is declined with 406."""
        await self._call("queue_delete", queue, if_unused=if_unused, if_empty=if_empty)

    async def barrier(self, queue: str) -> None:
        """Return when the broker has handled all that was sent on this channel before."""
        await self.declare_queue(Queue(queue), passive=True)

    async def publish(self, key: str, body: bytes, properties: Any, *, exchange: str, mandatory: bool = False) -> None:
        """Publish, and wait until the broker has taken the message over (needs `confirm`).

        :raise Unroutable: when it is mandatory and no queue is bound to its key.
        :raise NotTaken: when a queue that it should go to is full.
        """
        if not mandatory:
            await self._publish(key, body, properties, exchange, mandatory=False)
            return
        async with self._mandatory:
            self._returned = False
            await self._publish(key, body, properties, exchange, mandatory=True)
            if self._returned:
                raise Unroutable(key)

    def send(self, key: str, body: bytes, properties: Any, *, exchange: str) -> None:
        """Publish, and wait for nothing (on a channel without `confirm`): it may be lost with the connection."""
        self._start("basic_publish", exchange, key, body, properties)

    async def _publish(self, key: str, body: bytes, properties: Any, exchange: str, *, mandatory: bool) -> None:
        self._start("basic_publish", exchange, key, body, properties, mandatory=mandatory)
        self._published += 1
        tag = self._published
        confirmed = self._unconfirmed[tag] = asyncio.get_running_loop().create_future()
        try:
            await confirmed
        finally:
            self._unconfirmed.pop(tag, None)

    def _on_return(self, *_details: Any) -> None:
        self._returned = True

    def _on_confirm(self, frame: Any) -> None:
        last = frame.method.delivery_tag
        tags = [t for t in self._unconfirmed if t <= last] if frame.method.multiple else [last]
        nack = frame.method.NAME == "Basic.Nack"
        for waiter in (self._unconfirmed.get(tag) for tag in tags):
            if waiter is None or waiter.done():
                continue
            if nack:
                waiter.set_exception(NotTaken("the broker did not take the message: a queue is full"))
            else:
                waiter.set_result(None)

    def close(self) -> None:
        """Close the channel, without waiting for the broker to say so."""
        if not self.closed.done():
            self._start("close")


def _describe_unopened(error: BaseException, settings: BrokerSettings) -> str:
    """Why a connection could not be opened, with what to do about it where that is known."""
    trouble = explain(error, settings)
    return f"the broker {trouble[0]} ({trouble[1]})" if trouble else describe(error)


def describe(error: BaseException) -> str:
    """Why a connection failed or ended, in one line for people."""
    # pika nests the cause in its workflow's errors
    tried = getattr(error, "exceptions", None) or [getattr(error, "exception", None), *error.args]
    for inner in reversed(tried):
        if isinstance(inner, BaseException):
            return describe(inner)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return getattr(error, "reply_text", None) or str(error) or type(error).__name__
