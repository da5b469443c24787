"""What a fake VM's guest does on its serial console, and with its TCP ports.

The guest echoes what is typed. A line `flood N` makes it print N bytes; `poweroff` makes it shut itself down.
"""

import asyncio
import contextlib
import socket
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable

MOST_LINES = 1000


class FakeConsole:
    """One guest's serial line: for one client at a time, and what it prints while there is none is lost to clients."""

    def __init__(self, power_off: Callable[[], None]) -> None:
        self.lines: list[str] = []
        self.boot: list[str] = []  #: those that the guest has printed since it was started
        self._power_off = power_off
        self._writer: StreamWriter | None = None
        self._guest: asyncio.Task[None] | None = None

    def print(self, *lines: str) -> None:
        """The guest prints."""
        self._keep(*lines)
        if self._writer is not None:
            self._writer.write("".join(f"{line}\r\n" for line in lines).encode())

    def _keep(self, *lines: str) -> None:
        self.lines = [*self.lines, *lines][-MOST_LINES:]
        self.boot = [*self.boot, *lines][-MOST_LINES:]

    async def connect(self) -> tuple[StreamReader, StreamWriter]:
        """The client's end of the line."""
        client, guest = socket.socketpair()
        reader, self._writer = await asyncio.open_connection(sock=guest)
        self._guest = asyncio.create_task(self._live(reader, self._writer))
        return await asyncio.open_connection(sock=client)

    def hang_up(self) -> None:
        """The machine is off."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    async def _live(self, reader: StreamReader, writer: StreamWriter) -> None:
        with contextlib.suppress(OSError):
            line = b""
            while data := await reader.read(4096):
                writer.write(data)
                line += data.replace(b"\r", b"\n")
                while b"\n" in line:
                    typed, _, line = line.partition(b"\n")
                    await self._obey(typed.decode("utf-8", "replace"), writer)
                await writer.drain()
        writer.close()

    async def _obey(self, typed: str, writer: StreamWriter) -> None:
        self._keep(typed)
        verb, _, rest = typed.partition(" ")
        if verb == "flood":
            for _ in range(int(rest) >> 10):
                writer.write(b"~" * 1023 + b"\n")
                await writer.drain()
        elif verb == "poweroff":
            self._power_off()
