"""What a stream reaches on this host: something to read from and to write to. The sockets' side of it."""

import asyncio
import contextlib
import ipaddress
import os
from asyncio import StreamReader, StreamWriter
from collections.abc import Sequence
from typing import Protocol

from aetherscale_agent.ports import NotThere
from aetherscale_protocol.streams import CHUNK

DIAL_TIMEOUT_S = 5.0
"""How long a guest may take to accept a connection, on all its addresses together."""


class Pipe(Protocol):
    """Two directions of bytes. Every method may raise OSError: it broke."""

    async def read(self, most: int) -> bytes:
        """What there is, at most so many bytes; waits for some. Empty at the end."""

    async def write(self, data: bytes) -> None:
        """Hand data over; returns when it is taken.

        :raise StreamError: when nothing may be written here.
        """

    def resize(self, columns: int, lines: int) -> None:
        """The client's terminal has this size now. Nothing happens where that means nothing, or he may only look."""

    async def end(self) -> None:
        """Nothing more will be written; what is there can still be read."""

    def close(self) -> None:
        """Let go of it at once."""


class SocketPipe:
    """A connection to a guest."""

    def __init__(self, reader: StreamReader, writer: StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        write_through(writer)

    async def read(self, most: int) -> bytes:
        """What the guest sent."""
        return await self._reader.read(most)

    async def write(self, data: bytes) -> None:
        """Send to the guest; returns when the kernel has it."""
        self._writer.write(data)
        await self._writer.drain()

    def resize(self, columns: int, lines: int) -> None:
        """A port has no terminal."""

    async def end(self) -> None:
        """Tell the guest that this was all."""
        self._writer.write_eof()

    def close(self) -> None:
        """Close the connection."""
        self._writer.transport.abort()


def write_through(writer: StreamWriter) -> None:
    """Let `drain` wait until all is written: nothing is kept here, and a close has nothing left to wait for."""
    writer.transport.set_write_buffer_limits(high=0)


def find_dialable(addresses: Sequence[str]) -> list[str]:
    """Those of a guest's addresses that can be dialled, IPv4 first.

    Never one that would mean the host itself, or a service of the cloud that it may live in: guests have a say in
    what their addresses are.
    """
    found = []
    for text in addresses:
        with contextlib.suppress(ValueError):
            address = ipaddress.ip_address(text)
            if not (address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified):
                found.append(address)
    return [str(address) for address in sorted(found, key=lambda a: a.version)]


async def dial(vm_id: str, addresses: Sequence[str], port: int) -> tuple[StreamReader, StreamWriter]:
    """Connect to a port of a guest at the first of its addresses that takes it.

    :raise NotThere: when none does.
    """
    if not addresses:
        reason = f"VM {vm_id} has no address that its host knows"
        raise NotThere(
            reason, "on a bridge of your own it must tell: run qemu-guest-agent in it; console-vm works without"
        )
    why = f"no answer within {DIAL_TIMEOUT_S:g} s"
    try:
        async with asyncio.timeout(DIAL_TIMEOUT_S):
            for address in addresses:
                try:
                    return await asyncio.open_connection(address, port, limit=CHUNK)
                except OSError as error:
                    why = f"{address}: {os.strerror(error.errno) if error.errno else error}"
    except TimeoutError:
        pass
    raise NotThere(f"port {port} of VM {vm_id} can't be reached: {why}", "does anything in the guest listen there yet?")
