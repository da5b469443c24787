"""Answers, on a connection of their own: on older brokers an answer to a forged address costs the connection
that publishes it, and commands must not suffer for that.

Answers are confirmed. Those that a lost connection leaves unconfirmed are sent again one at a time, so that
the one which costs the connection again is known, and dropped.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pika

from aetherscale_agent.broker import BrokerLost, Channel, Connection, Declined
from aetherscale_protocol.answers import Answer, encode_answer

log = logging.getLogger(__name__)

MAX_WAITING = 10_000
"""Answers kept while the broker is away; older ones are dropped, their askers have long given up."""


@dataclass
class _Letter:
    reply_to: str
    body: bytes
    properties: pika.BasicProperties
    tries: int = 0


class Answerer:
    """Sends answers. `send` never waits; `serve` does the work while a connection lasts."""

    def __init__(self) -> None:
        self._letters: deque[_Letter] = deque(maxlen=MAX_WAITING)
        self._under_way: set[asyncio.Task[None]] = set()
        self._filled = asyncio.Event()
        self._posts: Channel | None = None
        self.lost: Callable[[], None] = lambda: None  #: called when a connection is: what was posted may be lost, too
        self.connected = asyncio.Event()  #: once it could send: before, an agent should take no commands

    def send(self, reply_to: str, correlation_id: str | None, answer: Answer) -> None:
        """Send an answer as soon as may be; never `mandatory`: brokers up to 4.1 say NO_ROUTE of what they deliver."""
        properties = pika.BasicProperties(content_type="application/json", correlation_id=correlation_id)
        self._letters.append(_Letter(reply_to, encode_answer(answer), properties))
        self._filled.set()

    def post(self, reply_to: str, correlation_id: str | None, headers: dict[str, Any], body: bytes) -> None:
        """Send a stream's message at once or never: it is neither confirmed nor kept.

        :raise BrokerLost: when there is no connection.
        """
        if self._posts is None:
            raise BrokerLost("the answers' connection is lost")
        properties = pika.BasicProperties(correlation_id=correlation_id, headers=headers)
        self._posts.send(reply_to, body, properties, exchange="")

    async def serve(self, connection: Connection, worked: Callable[[], None]) -> None:
        """Send on this connection until it is lost; `worked` is called once it can be sent on.

        :raise BrokerLost: when it is.
        """
        channel, self._posts = await connection.channel(), await connection.channel()
        self._posts.closed.add_done_callback(lambda gone: connection.drop(f"a channel was closed: {gone.result()}"))
        await channel.confirm()
        self.connected.set()
        worked()
        try:
            await self._send_on(channel)
        finally:
            self._posts = None
            self.lost()

    async def flush(self, seconds: float) -> None:
        """Wait until everything is sent, for so many seconds at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._letters or self._under_way:  # noqa: ASYNC110 (once in an agent's life)
                    await asyncio.sleep(0.01)

    async def _send_on(self, channel: Channel) -> None:
        while self._letters and self._letters[0].tries:  # left over from a connection that was lost
            await self._deliver_suspect(channel, self._letters[0])
        while True:
            while self._letters:
                task = asyncio.create_task(self._deliver(channel, self._letters.popleft()))
                self._under_way.add(task)
                task.add_done_callback(self._under_way.discard)
            self._filled.clear()
            filled = asyncio.create_task(self._filled.wait())
            either: set[asyncio.Future[Any]] = {filled, channel.closed}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if channel.closed.done():
                filled.cancel()
                await asyncio.gather(*self._under_way)
                raise BrokerLost(f"the answers' channel was closed: {channel.closed.result()}")

    async def _deliver(self, channel: Channel, letter: _Letter) -> None:
        try:
            await channel.publish(letter.reply_to, letter.body, letter.properties, exchange="")
        except (BrokerLost, Declined):
            letter.tries += 1
            if len(self._letters) < MAX_WAITING:
                self._letters.appendleft(letter)
        except Exception:
            log.exception("an answer could not be sent")

    async def _deliver_suspect(self, channel: Channel, letter: _Letter) -> None:
        """Deliver it alone. If that costs the connection, it is the culprit, and dropped."""
        self._letters.popleft()
        try:
            await channel.publish(letter.reply_to, letter.body, letter.properties, exchange="")
        except (BrokerLost, Declined) as error:
            log.warning("an answer to %.80r was dropped: it costs the connection: %s", letter.reply_to, error)
            raise
