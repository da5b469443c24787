"""One open stream: bytes from its pipe to the client and back, each as fast as the other side takes them."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aetherscale_agent.broker import BrokerLost
from aetherscale_agent.pipes import Pipe
from aetherscale_agent.steps import step
from aetherscale_protocol.streams import (
    AGENT_WINDOW,
    CLIENT_SILENCE_S,
    MOST_WINDOW,
    Credit,
    Frame,
    Intake,
    Kind,
    Order,
    StreamError,
)

LAST_WORDS_S = 0.5
"""How long what a VM printed last may take to be sent, once it is off."""

_CUT_OFF = "its agent lost its connection to the broker"

Post = Callable[[Frame], None]


@dataclass(frozen=True)
class Opener:
    """Whose stream it is, and of what."""

    stream: str
    vm_id: str
    what: str  #: for people: `console`, `log`, `port 22`
    user: str  #: broker-checked; '' if the opening command was not signed
    reply_to: str
    correlation_id: str | None


@dataclass(frozen=True)
class End:
    """Why a stream is over. Without a reason it came to its end; `told`: the client knows."""

    reason: str = ""
    hint: str = ""
    told: bool = False


class Stream:
    """A stream that is open. `take` is given its client's messages; `run` lasts until it is over."""

    def __init__(self, opener: Opener, pipe: Pipe, window: int, post: Post) -> None:
        self.opener = opener
        self.bytes_in = self.bytes_out = 0  #: from the client, and to it
        self._pipe = pipe
        self._post = post
        self._seq = 0
        self._order = Order()
        self._credit = Credit(min(window, MOST_WINDOW))
        self._credited = asyncio.Event()
        self._intake = Intake(AGENT_WINDOW)
        self._inbox: list[bytes] = []
        self._inbox_ended = False
        self._filled = asyncio.Event()
        self._heard = time.monotonic()
        self._end: asyncio.Future[End] = asyncio.get_running_loop().create_future()

    def take(self, frame: Frame) -> None:
        """Take a message from the client; one that breaks a rule ends the stream."""
        try:
            if self._order.is_new(frame.seq):
                self._heard = time.monotonic()
                self._take(frame)
        except StreamError as error:
            self.end(str(error), "open it again")
        except BrokerLost:
            self.end(_CUT_OFF, "open it again")

    def _take(self, frame: Frame) -> None:
        match frame.kind:
            case "data":
                self._intake.take(len(frame.body))
                self.bytes_in += len(frame.body)
                self._inbox.append(frame.body)
                self._filled.set()
            case "eof":
                self._inbox_ended = True
                self._filled.set()
            case "credit":
                self._credit.grant(frame.bytes)
                self._credited.set()
            case "ping":
                self._send("ping")
            case "close":
                self._over(End(told=True))
            case "resize":
                if frame.size is not None:
                    self._pipe.resize(*frame.size)

    def end(self, reason: str, hint: str = "") -> None:
        """End it; the client is told why."""
        self._over(End(reason, hint))

    def _over(self, end: End) -> None:
        if not self._end.done():
            self._end.set_result(end)

    async def run(self, off: Awaitable[object]) -> End:
        """Pump until it is over, which it also is when the VM is `off`; then let go of the pipe. Why it ended."""
        receiving, sending = asyncio.create_task(self._receive()), asyncio.create_task(self._transmit())
        both = asyncio.gather(receiving, sending)
        watch = asyncio.ensure_future(off)
        try:
            await self._wait(both, watch)
            if watch.done() and not self._end.done():
                await asyncio.wait({sending}, timeout=LAST_WORDS_S)
                self._end_with(watch)
        finally:
            for task in (receiving, sending, watch):
                task.cancel()
            await asyncio.gather(receiving, sending, both, watch, return_exceptions=True)
            self._pipe.close()
            self._over(End("the agent stopped", "open it again"))
        return self._tell()

    def _end_with(self, watch: asyncio.Future[object]) -> None:
        """The VM is off, or nobody can say any more when it will be."""
        error = watch.exception()
        if error is not None:
            self.end(f"whether the VM is on can't be told: {error}", "open it again")
        else:
            self.end("the VM is off", f"start-vm {self.opener.vm_id} starts it")

    async def _wait(self, both: asyncio.Future[Any], watch: asyncio.Future[object]) -> None:
        """Return when it is over, for whatever reason; all but that of `watch` is noted."""
        while not (self._end.done() or watch.done()):
            await asyncio.wait(
                {both, watch, self._end}, timeout=CLIENT_SILENCE_S / 6, return_when=asyncio.FIRST_COMPLETED
            )
            if both.done():
                self._over(_end_of(both))
            elif time.monotonic() - self._heard > CLIENT_SILENCE_S:
                self.end(f"nothing was heard of its client for {CLIENT_SILENCE_S:.0f} s")

    def _tell(self) -> End:
        end = self._end.result()
        if not end.told:
            with contextlib.suppress(BrokerLost):  # its next message will be answered by a close
                self._send("close", reason=end.reason, hint=end.hint)
        return end

    async def _receive(self) -> None:
        """From the client to the pipe."""
        while True:
            while not self._inbox and not self._inbox_ended:
                self._filled.clear()
                await self._filled.wait()
            if not self._inbox:
                await self._pipe.end()
                return
            taken, self._inbox = self._inbox, []
            await self._pipe.write(b"".join(taken))
            credit = self._intake.used(*map(len, taken))
            if credit:
                self._send("credit", credit=credit)

    async def _transmit(self) -> None:
        """From the pipe to the client."""
        while True:
            while not self._credit.chunk:
                self._credited.clear()
                await self._credited.wait()
            data = await self._pipe.read(self._credit.chunk)
            if not data:
                self._send("eof")
                return
            self._credit.spend(len(data))
            self.bytes_out += len(data)
            with step("stream.send", self.opener.vm_id):
                self._send("data", data)
            await asyncio.sleep(0)  # a full pipe would keep everybody else from their turn

    def _send(self, kind: Kind, body: bytes = b"", *, credit: int = 0, reason: str = "", hint: str = "") -> None:
        frame = Frame(self.opener.stream, kind, self._seq, body, credit, reason, hint)
        self._seq += 1
        self._post(frame)


def _end_of(both: asyncio.Future[Any]) -> End:
    """How the pumps ended."""
    error = both.exception()
    match error:
        case None:
            return End()
        case StreamError():
            return End(str(error))
        case BrokerLost():
            return End(_CUT_OFF, "open it again")
        case OSError():
            return End(f"the guest's end broke: {error.strerror or error}", "open it again")
        case _:
            raise error
