"""Serial consoles with viewers: one connection to each VM's, as long as anybody looks, fanned out to all of them.

It is always read, because a guest stands still while nobody takes what it prints. So a viewer that does not keep up
misses some of it, and is told how much. Its terminal has one size for the guest: the one that was told last.
"""

import asyncio
import contextlib
import functools
import re
from asyncio import StreamReader, StreamWriter
from collections.abc import Awaitable, Callable

from aetherscale_agent.pipes import write_through
from aetherscale_agent.ports import Hypervisor
from aetherscale_protocol.streams import CHUNK, StreamError

MOST_COMPARED = 64
"""In how many lines it is looked for what a history holds already."""

VIEWER_BUFFER = 64 << 10
"""How many bytes are kept for a viewer that does not keep up."""


GATHER_S = 0.005
"""How soon after a piece the next one is read, in seconds. A serial port gives a few bytes at a time; what comes
meanwhile goes in one message, and what comes after a pause goes at once.
"""

SETTLE_S = 0.2
"""For how long sizes of terminals are gathered before the guest is told the last of them, in seconds. A window that is
dragged has a new one many times a second, and each that is told starts a program in the guest.
"""

_SEQUENCE = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]")
_BLANKS = bytes(byte for byte in range(256) if not 0x21 <= byte <= 0x7E)


def _print(text: bytes) -> bytes:
    """What is left without terminal sequences and white space, which the lines of a log, made harmless, may lack."""
    return _SEQUENCE.sub(b"", text).translate(None, _BLANKS)


def find_news(history: bytes, offered: bytes) -> bytes:
    """What of `offered` is not in `history` yet, in whole lines. Where they have nothing in common, all of it.

    It is the agent's loop that waits for this: each byte is looked at once, however many lines there are.
    """
    known = _print(history)
    lines = re.findall(rb"[^\n]*\n|[^\n]+", offered)
    printed = [_print(line) for line in lines]
    whole = b"".join(printed)
    end, length = len(offered), len(whole)
    for line, piece in list(zip(lines, printed, strict=True))[: -MOST_COMPARED - 1 : -1]:
        begun = whole[:length]
        if begun and (known.endswith(begun) or (known and begun.endswith(known))):
            return offered[end:]
        end, length = end - len(line), length - len(piece)
    return offered


class Viewer:
    """One viewer's end of a console: a `Pipe`."""

    def __init__(self, console: "_Console", *, read_only: bool) -> None:
        self._console = console
        self._read_only = read_only
        self._buffer = bytearray()
        self._skipped = 0
        self._ended = False
        self._next = 0.0  #: when more may be read, by the loop's clock
        self._changed = asyncio.Event()

    def offer(self, data: bytes) -> None:
        """The guest printed this. If the viewer is too far behind, it misses the oldest of it."""
        self._buffer += data
        excess = len(self._buffer) - VIEWER_BUFFER
        if excess > 0:
            del self._buffer[:excess]
            self._skipped += excess
        self._changed.set()

    def begin_with(self, history: bytes) -> None:
        """Let it begin with what was printed before; what it was offered so far may be part of that."""
        self._buffer[:] = (history + find_news(history, bytes(self._buffer)))[-VIEWER_BUFFER:]
        self._changed.set()

    def finish(self) -> None:
        """Nothing more will come."""
        self._ended = True
        self._changed.set()

    async def read(self, most: int) -> bytes:
        """What the guest printed."""
        while not self._buffer and not self._ended:
            self._changed.clear()
            await self._changed.wait()
        loop = asyncio.get_running_loop()
        if len(self._buffer) < most and (rest := self._next - loop.time()) > 0 and not self._ended:
            await asyncio.sleep(rest)
        self._next = loop.time() + GATHER_S
        if self._skipped:
            self._buffer[:0] = f"\r\n[… {self._skipped} bytes skipped]\r\n".encode()
            self._skipped = 0
        data = bytes(self._buffer[:most])
        del self._buffer[:most]
        return data

    async def write(self, data: bytes) -> None:
        """Type this."""
        if self._read_only:
            raise StreamError("a log can't be written to")
        await self._console.write(data)

    def resize(self, columns: int, lines: int) -> None:
        """Have the guest told; a log is for looking only."""
        if not self._read_only:
            self._console.resize(columns, lines)

    async def end(self) -> None:
        """Who has typed all that there was to type has seen enough."""
        self.finish()

    def close(self) -> None:
        """Look no longer."""
        self._console.leave(self)


class _Console:
    """One VM's console while it has viewers."""

    def __init__(
        self,
        consoles: dict[str, "_Console"],
        vm_id: str,
        ends: tuple[StreamReader, StreamWriter],
        tell_size: Callable[[int, int], Awaitable[None]],
    ) -> None:
        self._consoles = consoles
        self._vm_id = vm_id
        self._reader, self._writer = ends
        self._tell_size = tell_size
        self._size: tuple[int, int] | None = None  #: that the guest is to be told
        self._resizing: asyncio.Task[None] | None = None
        self._viewers: set[Viewer] = set()
        self._typing = asyncio.Lock()
        write_through(self._writer)
        self._reading = asyncio.create_task(self._read())

    def join(self, viewer: Viewer) -> None:
        self._viewers.add(viewer)

    def leave(self, viewer: Viewer) -> None:
        self._viewers.discard(viewer)
        if not self._viewers:
            self._reading.cancel()
            self._close()

    async def write(self, data: bytes) -> None:
        async with self._typing:
            await self._writer.drain()  # what somebody typed who did not wait for it: no more than that is ever kept
            self._writer.write(data)
            await self._writer.drain()

    def resize(self, columns: int, lines: int) -> None:
        self._size = (columns, lines)
        if self._resizing is None or self._resizing.done():
            self._resizing = asyncio.create_task(self._resize())

    async def _resize(self) -> None:
        while self._size is not None:
            await asyncio.sleep(SETTLE_S)
            size, self._size = self._size, None
            await self._tell_size(*size)

    async def _read(self) -> None:
        with contextlib.suppress(OSError):
            while data := await self._reader.read(CHUNK):
                for viewer in self._viewers:
                    viewer.offer(data)
        for viewer in self._viewers:
            viewer.finish()
        self._close()

    def _close(self) -> None:
        if self._resizing is not None:
            self._resizing.cancel()
        self._writer.transport.abort()
        if self._consoles.get(self._vm_id) is self:
            del self._consoles[self._vm_id]


class Consoles:
    """The consoles of this host's VMs that somebody looks at."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        self._hypervisor = hypervisor
        self._open: dict[str, _Console] = {}
        self._opening = asyncio.Lock()

    async def attach(self, vm_id: str, lines: int, *, read_only: bool) -> Viewer:
        """A new viewer of a VM's console, which begins with the last `lines` lines that were printed before.

        :raise NotThere: when it has no console to connect to.
        """
        async with self._opening:
            console = self._open.get(vm_id)
            if console is None:
                ends = await self._hypervisor.open_console(vm_id)
                tell_size = functools.partial(self._hypervisor.resize_console, vm_id)
                console = _Console(self._open, vm_id, ends, tell_size)
                self._open[vm_id] = console
            viewer = Viewer(console, read_only=read_only)
            console.join(viewer)
        try:
            if lines:
                tail = await self._hypervisor.console_tail(vm_id, lines)
                viewer.begin_with("".join(f"{line}\r\n" for line in tail).encode())
        except BaseException:
            viewer.close()
            raise
        return viewer
