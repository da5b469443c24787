"""A wire between an agent and its broker that can be cut, and made deaf: one small TCP relay per agent.

    with Wires() as wires:
        wire = wires.open(("127.0.0.1", broker.port))   # the agent connects to wire.port
        wire.cut()          # silence both ways; nothing is closed, new connections are accepted and get nothing
        wire.heal()         # what was sent meanwhile flows on; a side that closed meanwhile is closed
        wire.lose_power()   # the connections that there are fall silent; the broker hears of it only at `heal`
        wire.deafen()       # the connections that there are carry everything but deliveries
    wire.watch = see    # see(connection, to_broker, data) is called with all that is relayed (see `tally`)
    wire.hold = look    # look() is called when the broker says something, which is held back until `wire.release()`

All wires of a `Wires` are relayed by one thread. Their methods may be called from any other.
"""

import asyncio
import contextlib
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar, cast

T = TypeVar("T")

Watch = Callable[[int, bool, bytes], None]
"""Called in the relaying thread: which connection, whether it goes to the broker, and what."""

METHOD, HEADER, BODY = 1, 2, 3
DELIVER = (60, 60)
_FRAME = struct.Struct(">BHL")
_FRAME_END = 1
CALL_TIMEOUT_S = 10.0


class DeliveryFilter:
    """Cuts AMQP 0-9-1 into frames; once `deaf`, every Basic.Deliver is swallowed, with its content."""

    def __init__(self) -> None:
        self.deaf = False
        self.swallowed = 0
        self._buffer = b""
        self._swallowing: dict[int, int | None] = {}  # channel: bytes of content to come, None before its header

    def feed(self, data: bytes) -> bytes:
        """What of the frames that are complete goes on."""
        self._buffer += data
        passed: list[bytes] = []
        start = 0
        while len(self._buffer) - start >= _FRAME.size:
            kind, channel, size = _FRAME.unpack_from(self._buffer, start)
            end = start + _FRAME.size + size + _FRAME_END
            if len(self._buffer) < end:
                break
            frame = self._buffer[start:end]
            if not self._swallows(kind, channel, frame[_FRAME.size : -_FRAME_END]):
                passed.append(frame)
            start = end
        self._buffer = self._buffer[start:]
        return b"".join(passed)

    def _swallows(self, kind: int, channel: int, payload: bytes) -> bool:
        if kind == METHOD and self.deaf and struct.unpack_from(">HH", payload) == DELIVER:
            self._swallowing[channel] = None
            self.swallowed += 1
            return True
        if kind == HEADER and channel in self._swallowing:
            (size,) = struct.unpack_from(">Q", payload, 4)
            self._expect(channel, size)
            return True
        if kind == BODY and channel in self._swallowing:
            self._expect(channel, (self._swallowing[channel] or 0) - len(payload))
            return True
        return False

    def _expect(self, channel: int, size: int) -> None:
        if size > 0:
            self._swallowing[channel] = size
        else:
            del self._swallowing[channel]


class _End(asyncio.Protocol):
    """One end of a link."""

    def __init__(self, link: "_Link") -> None:
        self.link = link
        self.transport: asyncio.Transport | None = None
        self.other: _End | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        asyncio.get_running_loop().call_soon(self.listen, False)  # asyncio of Python 3.11 begins to read after this
        self.link.made(self)

    def data_received(self, data: bytes) -> None:
        self.link.relay(self, data)

    def connection_lost(self, _error: Exception | None) -> None:
        self.link.lost(self)

    def listen(self, on: bool) -> None:
        if self.transport is None or self.transport.is_closing():
            return
        if on:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()


class _Link:
    """One connection of the agent, and the one to the broker that stands for it."""

    def __init__(self, wire: "Wire") -> None:
        self.wire = wire
        self.agent = _End(self)
        self.broker: _End | None = None
        self.filter = DeliveryFilter()
        self.held: list[bytes] = []
        self.is_over = False

    def made(self, end: _End) -> None:
        if end is self.agent:
            self.wire._links.add(self)
            self.wire._spawn(self._dial())

    def lost(self, end: _End) -> None:
        if end is self.broker:
            self.is_over = True
            if not self.held:
                self.agent.close()
            return
        if self.broker is not None:
            self.broker.close()
        if self not in self.wire._dead:
            self.wire._links.discard(self)

    async def _dial(self) -> None:
        await self.wire._whole.wait()
        broker = _End(self)
        broker.other, self.agent.other = self.agent, broker
        try:
            await asyncio.get_running_loop().create_connection(lambda: broker, *self.wire._upstream)
        except OSError:
            self.close()
            return
        self.broker = broker
        if self.agent.transport is None or self.agent.transport.is_closing():
            self.close()
        elif self.wire._whole.is_set() and self in self.wire._links:
            self.listen(True)

    def relay(self, end: _End, data: bytes) -> None:
        self.wire.watch(id(self), end is self.agent, data)
        if end is self.agent:
            if self.broker is not None and self.broker.transport is not None:
                self.broker.transport.write(data)
        elif passed := self.filter.feed(data):
            self.held.append(passed)
            if self.wire.hold is None:
                self.release()
            else:
                self.wire.hold()

    def release(self) -> None:
        if self.agent.transport is not None:
            self.agent.transport.write(b"".join(self.held))
        self.held.clear()
        if self.is_over:
            self.agent.close()

    def listen(self, on: bool) -> None:
        if self.broker is not None:
            self.agent.listen(on)
            self.broker.listen(on)

    def close(self) -> None:
        for end in (self.agent, self.broker):
            if end is not None and end.transport is not None:
                end.transport.abort()


class Wire:
    """One agent's way to the broker: `port` on loopback."""

    def __init__(self, wires: "Wires", upstream: tuple[str, int]) -> None:
        self.port = 0
        self.watch: Watch = lambda _connection, _to_broker, _data: None
        self.hold: Callable[[], None] | None = None
        self._wires = wires
        self._upstream = upstream
        self._whole = asyncio.Event()
        self._links: set[_Link] = set()
        self._dead: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    def cut(self) -> None:
        """Silence, both ways; nothing is closed. A new connection is accepted, and gets nothing."""
        self._wires._call(self._cut)

    def heal(self) -> None:
        """End `cut` and `lose_power`."""
        self._wires._call(self._heal)

    def lose_power(self) -> None:
        """Let the connections that there are fall silent. The agent may be gone: the broker does not hear of it."""
        self._wires._call(self._lose_power)

    def deafen(self) -> None:
        """Swallow every delivery on the connections that there are; all else passes. New ones hear."""
        self._wires._call(self._deafen)

    @property
    def swallowed(self) -> int:
        """How many deliveries were swallowed on the connections that there are."""
        return self._wires._call(lambda: sum(link.filter.swallowed for link in self._links))

    def close(self) -> None:
        """Close it, with all connections."""
        self._wires._call(self._close)

    # in the relaying thread

    def connections(self) -> set[int]:
        """Those there are, as `watch` is told them."""
        return {id(link) for link in self._links}

    def is_holding(self) -> bool:
        """Whether something is held back from somebody who is still there."""
        return any(link.held for link in self._links)

    def release(self) -> None:
        """Let go of all that was held back."""
        for link in [link for link in self._links if link.held]:
            link.release()

    async def _open(self) -> None:
        self._whole.set()
        self._server = await asyncio.get_running_loop().create_server(lambda: _Link(self).agent, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def _spawn(self, work: "asyncio._CoroutineLike[None]") -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _cut(self) -> None:
        self._whole.clear()
        for link in self._links:
            link.listen(False)

    def _heal(self) -> None:
        self._whole.set()
        for link in self._links:
            link.listen(True)
        for link in self._dead:
            link.close()
        self._dead.clear()

    def _lose_power(self) -> None:
        for link in self._links:
            link.listen(False)
        self._dead |= self._links
        self._links.clear()

    def _deafen(self) -> None:
        for link in self._links:
            link.filter.deaf = True

    def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        for link in self._links | self._dead:
            link.close()
        self._links.clear()
        self._dead.clear()


class Wires:
    """The thread that relays; leaving its block closes all wires."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="wires", daemon=True)
        self._open: list[Wire] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _where: TracebackType | None
    ) -> None:
        for wire in self._open:
            with contextlib.suppress(RuntimeError, TimeoutError):
                wire.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_TIMEOUT_S)
        self._loop.close()

    def open(self, upstream: tuple[str, int]) -> Wire:
        """A new wire to this address."""
        wire = Wire(self, upstream)
        asyncio.run_coroutine_threadsafe(wire._open(), self._loop).result(CALL_TIMEOUT_S)
        self._open.append(wire)
        return wire

    def _call(self, function: Callable[[], T]) -> T:
        async def run() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(CALL_TIMEOUT_S)
