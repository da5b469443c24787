"""The guest agent (qemu-guest-agent) in a VM, on a virtio-serial port of the VM: asked for the guest's addresses, and
told how large the terminal at the guest's console is.

Whatever answers there is the guest's own program, so nothing of it is believed: it may say so much and take so long
and no more, and of what it says only addresses that a guest may have are kept. Source: QEMU, docs/interop/qemu-ga-ref.
"""

import asyncio
import contextlib
import ipaddress
import secrets
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar
from weakref import WeakValueDictionary

import msgspec

from aetherscale_agent.hypervisor import files
from aetherscale_agent.ports import HypervisorError

TIMEOUT = 1.0
"""Seconds for all that is said in one conversation."""

RESIZE_TIMEOUT = 5.0
"""Seconds for the guest to start a program and to see its end. Nobody waits for it, and a busy guest may be slow."""

LONGEST = 128 << 10
"""Bytes of one answer. A guest with 200 interfaces needs half of it."""

STALE = 8
"""Answers that earlier questions may have left, which are read over."""

MOST_ADDRESSES = 8

CONSOLE = "/dev/ttyS0"
"""What Linux calls the serial port that each VM has."""

LOOK_EVERY = 0.05
"""Seconds between looks whether a program in the guest has ended."""

_DELIMITER = b"\xff"
"""Never part of JSON: it makes the agent forget half a question, and stands before what `guest-sync-delimited` says."""


_talks: WeakValueDictionary[Path, asyncio.Lock] = WeakValueDictionary()
"""Held while somebody talks on a port: QEMU serves one at a time there."""


class GuestSilent(HypervisorError):
    """The guest has no agent that answers as one does, or one that does not do what it was asked."""


T = TypeVar("T")


class _Said(msgspec.Struct, Generic[T], frozen=True):
    value: T = msgspec.field(name="return")


class _Address(msgspec.Struct, frozen=True):
    address: str = msgspec.field(name="ip-address")


class _Interface(msgspec.Struct, frozen=True, rename="kebab"):
    hardware_address: str = ""
    ip_addresses: list[_Address] = []


_Number = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class _Started(msgspec.Struct, frozen=True):
    pid: _Number


class _Status(msgspec.Struct, frozen=True):
    exited: bool
    exitcode: _Number = 0


async def ask_addresses(socket: Path, mac: str, timeout: float = TIMEOUT) -> tuple[str, ...]:
    """The addresses that the guest has on its interface with our `mac`, IPv4 first; empty while it has none.

    :raise GuestSilent: when nobody answers within `timeout` seconds, or not as a guest agent does.
    """
    async with _talk(socket, timeout) as (reader, writer):
        interfaces = await _ask(reader, writer, _Said[list[_Interface]], "guest-network-get-interfaces")
    return select_addresses(interfaces, mac)


async def resize_console(socket: Path, columns: int, lines: int, timeout: float = RESIZE_TIMEOUT) -> None:
    """Give the terminal at the guest's serial console this size; whatever runs in front there gets a SIGWINCH.

    Waits until that is done, so that of two sizes the one that came last stays.

    :raise GuestSilent: when it is not done within `timeout` seconds, or is refused.
    """
    size = ["cols", f"{columns:d}", "rows", f"{lines:d}"]
    async with _talk(socket, timeout) as (reader, writer):
        started = await _ask(reader, writer, _Said[_Started], "guest-exec", path="stty", arg=["-F", CONSOLE, *size])
        status = await _ask(reader, writer, _Said[_Status], "guest-exec-status", pid=started.pid)
        while not status.exited:
            await asyncio.sleep(LOOK_EVERY)
            status = await _ask(reader, writer, _Said[_Status], "guest-exec-status", pid=started.pid)
    if status.exitcode:
        raise GuestSilent(f"its stty failed: {status.exitcode}")


@contextlib.asynccontextmanager
async def _talk(socket: Path, timeout: float) -> AsyncIterator[tuple[StreamReader, StreamWriter]]:
    """A conversation, and the only one there; who else has a question waits, within his own `timeout`.

    :raise GuestSilent: when it takes longer than `timeout` seconds, or what is said is not what a guest agent says.
    """
    try:
        async with (
            asyncio.timeout(timeout),
            _talks.setdefault(socket, asyncio.Lock()),
            _connected(socket) as (reader, writer),
        ):
            await _synchronize(reader, writer)
            yield reader, writer
    except TimeoutError:
        raise GuestSilent(f"no answer within {timeout:g} s") from None
    except (OSError, EOFError, asyncio.LimitOverrunError, ValueError, RecursionError) as error:
        raise GuestSilent(f"{type(error).__name__}: {error}"[:200]) from None


@contextlib.asynccontextmanager
async def _connected(socket: Path) -> AsyncIterator[tuple[StreamReader, StreamWriter]]:
    with files.own_socket(socket) as address:
        reader, writer = await asyncio.open_unix_connection(address, limit=LONGEST)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def _synchronize(reader: StreamReader, writer: StreamWriter) -> None:
    """Read over what earlier questions left unread.

    :raise ValueError: when there is no end of it.
    """
    number = secrets.randbits(31)
    _send(writer, _DELIMITER + b'{"execute":"guest-sync-delimited","arguments":{"id":%d}}\n' % number)
    for _ in range(STALE):
        await reader.readuntil(_DELIMITER)
        if msgspec.json.decode(await reader.readuntil(b"\n"), type=_Said[int]).value == number:
            return
    raise ValueError("it never answers the question")


async def _ask(reader: StreamReader, writer: StreamWriter, answer: type[_Said[T]], execute: str, **more: Any) -> T:
    _send(writer, msgspec.json.encode({"execute": execute, "arguments": more}) + b"\n")
    return msgspec.json.decode(await reader.readuntil(b"\n"), type=answer).value


def _send(writer: StreamWriter, line: bytes) -> None:
    writer.write(line)  # no drain: a guest that reads nothing would be waited for, and the line is short


def select_addresses(interfaces: Iterable[_Interface], mac: str) -> tuple[str, ...]:
    """The addresses of the interfaces with this MAC address that a guest may have; in an order of their own."""
    ours = [one for one in interfaces if one.hardware_address.lower() == mac]
    found = {_read_address(address.address) for one in ours for address in one.ip_addresses} - {None}
    ordered = sorted((one for one in found if one is not None), key=lambda one: (one.version, int(one)))
    return tuple(str(address) for address in ordered[:MOST_ADDRESSES])


def _read_address(said: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address that others can reach a guest by; None for all else."""
    try:
        address = ipaddress.ip_address(said)
    except ValueError:
        return None
    if address.is_loopback or address.is_link_local or address.is_multicast or address.is_reserved:
        return None
    if isinstance(address, ipaddress.IPv4Address):
        return address if address.packed[0] else None  # 0.0.0.0/8 means the host itself
    # Neither ::, nor an IPv4 address in disguise (::ffff:127.0.0.1 is the host's loopback), nor one of a scope.
    return None if address.is_unspecified or address.ipv4_mapped or address.scope_id else address
