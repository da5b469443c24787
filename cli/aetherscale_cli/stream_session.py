"""A session whose answers may be a stream's messages: `BrokerSession` with a loop that other threads can wake."""

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import pika

from aetherscale_cli.broker import BrokerSession
from aetherscale_cli.wire import Returned
from aetherscale_protocol import topology
from aetherscale_protocol.streams import Frame, StreamError, is_stream, read_frame

_TURN_S = 3600.0


class StreamSession(BrokerSession):
    """One stream and the command that opens it. Nothing is confirmed: a message that is lost shows by its number."""

    frames: deque[Frame]  #: what came of the stream and was not looked at yet

    def __init__(self, target: Any, parameters: Any) -> None:
        super().__init__(target, parameters)
        self.frames = deque()
        self._on_frames: Callable[[], None] = self._loop.stop

    def send(self, key: str, correlation_id: str, frame: Frame) -> None:
        """Send a stream's message."""
        if self._error is not None or not self._channel.is_open:
            return  # `run` is about to say it, or has left already
        properties = pika.BasicProperties(
            correlation_id=correlation_id,
            reply_to=topology.ReplyTo,
            user_id=self._target.settings.user,
            headers=frame.headers,
        )
        self._channel.basic_publish(topology.EXCHANGE, key, frame.body, properties, mandatory=True)

    def run(self, on_frames: Callable[[], None], done: Callable[[], bool]) -> None:
        """Call `on_frames` whenever there are frames, until it is done.

        :raise CliError: when the connection is lost.
        :raise StreamError: when the stream's host is not there any more.
        """
        self._on_frames = on_frames
        on_frames()
        while not done():
            self._run_until(lambda: done() or bool(self._events), time.monotonic() + _TURN_S)
            if self._error is not None and not done():
                raise self._error
            while self._events:
                if isinstance(self._events.popleft(), Returned):
                    raise StreamError("its host is not known any more")

    def stop(self) -> None:
        """Let `run` look whether it is done."""
        self._loop.stop()

    def call(self, what: Callable[[], None]) -> None:
        """Have something done in the thread that runs the loop; any thread may ask for it."""
        self._loop.add_callback_threadsafe(what)

    def call_later(self, seconds: float, what: Callable[[], None]) -> None:
        """Have something done later."""
        self._loop.call_later(seconds, what)

    def _on_channel_open(self, channel: Any) -> None:
        channel.add_on_return_callback(lambda _c, _m, properties, _b: self._note(Returned(properties.correlation_id)))
        channel.add_on_close_callback(self._on_lost)
        channel.basic_consume(topology.ReplyTo, self._on_answer, auto_ack=True)
        self._channel = channel
        self._loop.stop()

    def _on_answer(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        if not is_stream(properties.headers):
            super()._on_answer(channel, method, properties, body)
            return
        try:
            self.frames.append(read_frame(properties.headers, body))
        except StreamError:
            return  # its number is missing then
        self._on_frames()
