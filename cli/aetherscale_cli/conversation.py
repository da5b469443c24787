"""An open stream at this end: what comes in here goes out there, and the other way round, each as fast as it is taken.

The loop of the session owns all that is decided. Reading and writing may block, so each has a thread of its own; what
they hold is bounded by the credit.
"""

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol

from msgspec import Struct

from aetherscale_cli.arguments import PROGRAM
from aetherscale_cli.errors import CliError, Exit
from aetherscale_cli.stream_session import StreamSession
from aetherscale_protocol.streams import (
    AGENT_SILENCE_S,
    CHUNK,
    PING_EVERY_S,
    Credit,
    Frame,
    Intake,
    Kind,
    Order,
    StreamError,
)

READ_AHEAD = 4
"""How many pieces are read before there is credit for them, each a message's worth at most."""


class Opened(Struct, frozen=True):
    """A stream that an agent has opened for us. `window`s in bytes: what we take, and what the agent takes."""

    stream: str
    vm_id: str
    key: str
    correlation_id: str
    window: int
    agent_window: int


class Source(Protocol):
    """Where what is sent comes from."""

    def read(self, most: int) -> bytes:
        """Some bytes, waiting for them; empty at the end."""


class Sink(Protocol):
    """Where what comes is written to."""

    def write(self, data: bytes) -> None:
        """Write all of it.

        :raise OSError: when nobody takes it any more.
        """

    def end(self) -> None:
        """There will be no more."""


class Conversation:
    """One stream, from its opening to its end."""

    def __init__(self, session: StreamSession, opened: Opened, source: Source | None, sink: Sink) -> None:
        self._session = session
        self._opened = opened
        self._source = source
        self._sink = sink
        self._seq = 0
        self._order = Order()
        self._credit = Credit(opened.agent_window)
        self._intake = Intake(opened.window)
        self._outgoing: deque[bytes] = deque()
        self._source_ended = self._eof_sent = False
        self._slots = threading.Semaphore(READ_AHEAD)
        self._incoming: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._heard = time.monotonic()
        self._shown = self._heard
        self._over = False
        self._error: CliError | None = None

    def run(self) -> None:
        """Return when the stream has come to its end, or one of ours has left it.

        :raise CliError: when it was lost.
        """
        writer = threading.Thread(target=self._write, daemon=True)
        writer.start()
        if self._source is not None:
            threading.Thread(target=self._read, args=(self._source,), daemon=True).start()
        self._tick()
        try:
            self._session.run(self._take_frames, lambda: self._over)
        except StreamError as error:
            self._lose(str(error))
        except CliError as error:
            self._lose(str(error), error.hint, error.exit_code)
        except BaseException:
            self.leave()
            raise
        self._incoming.put(None)
        writer.join()
        if self._error is not None:
            raise self._error

    @property
    def quiet_s(self) -> float:
        """For how many seconds nothing has come."""
        return time.monotonic() - self._shown

    def leave(self) -> None:
        """Leave it: nothing more is wanted."""
        if not self._over:
            self._send("close")
            self._end()

    def resize(self, columns: int, lines: int) -> None:
        """Tell the other side how large the terminal is now."""
        if not self._over:
            self._post(Frame(self._opened.stream, "resize", self._seq, size=(columns, lines)))

    # In the session's loop

    def _end(self) -> None:
        self._over = True
        self._session.stop()

    def _lose(self, reason: str, hint: str | None = None, exit_code: Exit = Exit.FAILED) -> None:
        message = f"the stream to VM {self._opened.vm_id} was lost: {reason}"
        self._error = CliError(message, hint or "open it again", exit_code)
        self._end()

    def _tick(self) -> None:
        if self._over:
            return
        silence = time.monotonic() - self._heard
        if silence > AGENT_SILENCE_S:
            hint = f"its host may hang: {PROGRAM} doctor shows which do"
            self._lose(f"nothing was heard of its host for {silence:.0f} s", hint, Exit.UNREACHABLE)
            return
        self._send("ping")
        self._session.call_later(PING_EVERY_S, self._tick)

    def _take_frames(self) -> None:
        frames = self._session.frames
        while frames and not self._over:
            frame = frames.popleft()
            if frame.stream == self._opened.stream:
                try:
                    self._take(frame)
                except StreamError as error:
                    self._send("close")
                    self._lose(str(error))

    def _take(self, frame: Frame) -> None:
        if frame.kind == "close":  # in order or not: another agent may have sent it
            return self._lose(frame.reason, frame.hint or None) if frame.reason else self._end()
        if not self._order.is_new(frame.seq):
            return None
        self._heard = time.monotonic()
        match frame.kind:
            case "data":
                self._shown = self._heard
                self._intake.take(len(frame.body))
                self._incoming.put(frame.body)
            case "eof":
                self._incoming.put(b"")
            case "credit":
                self._credit.grant(frame.bytes)
                self._send_outgoing()
        return None

    def _read_some(self, data: bytes) -> None:
        if data:
            self._outgoing.append(data)
        self._source_ended = not data
        self._send_outgoing()

    def _send_outgoing(self) -> None:
        while not self._over and self._outgoing and (count := self._credit.chunk):
            data, rest = self._outgoing[0][:count], self._outgoing[0][count:]
            if rest:
                self._outgoing[0] = rest
            else:
                self._outgoing.popleft()
                self._slots.release()
            self._credit.spend(len(data))
            self._send("data", data)
        if self._source_ended and not self._outgoing and not self._eof_sent:
            self._eof_sent = True
            self._send("eof")

    def _written(self, count: int) -> None:
        credit = self._intake.used(count)
        if credit and not self._over:
            self._send("credit", credit=credit)

    def _send(self, kind: Kind, body: bytes = b"", *, credit: int = 0) -> None:
        self._post(Frame(self._opened.stream, kind, self._seq, body, credit))

    def _post(self, frame: Frame) -> None:
        self._seq += 1
        self._session.send(self._opened.key, self._opened.correlation_id, frame)

    # In threads

    def _read(self, source: Source) -> None:
        data = b"-"
        while data and not self._over:
            self._slots.acquire()
            try:
                data = source.read(CHUNK)
            except OSError:
                data = b""
            self._call(partial(self._read_some, data))

    def _write(self) -> None:
        try:
            while (data := self._incoming.get()) is not None:
                if not data:
                    self._sink.end()
                    continue
                self._sink.write(data)
                self._call(partial(self._written, len(data)))
        except OSError:
            self._call(self.leave)  # whoever read has seen enough

    def _call(self, what: Callable[[], None]) -> None:
        if not self._over:
            self._session.call(what)


class FileSource:
    """A file descriptor to read from."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self, most: int) -> bytes:
        """What there is."""
        return os.read(self._descriptor, most)


class FileSink:
    """A file descriptor to write to; `end` closes it if that is what the other side of a tunnel is to see."""

    def __init__(self, descriptor: int, *, closes: bool) -> None:
        self._descriptor = descriptor
        self._closes = closes

    def write(self, data: bytes) -> None:
        """Write all of it."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def end(self) -> None:
        """There will be no more."""
        if self._closes:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._descriptor)  # nobody else may be given its number
            os.close(null)
