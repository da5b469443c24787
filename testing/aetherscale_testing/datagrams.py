"""A program that sends UDP datagrams from any port, for guests that have none which does.

It is made here: machine code for x86_64, without a C library, in an ELF file of less than a kilobyte.
"""

import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

BASE = 0x400000
"""Where the file is in memory, from its first byte on."""

# Numbers of x86_64's system calls.
_CLOSE, _SOCKET, _SENDTO, _BIND, _SETSOCKOPT, _EXIT = 3, 41, 44, 49, 54, 60
_ARGUMENTS = [bytes.fromhex(mov) for mov in ("bf", "be", "ba", "41ba", "41b8", "41b9")]
"""mov edi, …; mov esi, …; mov edx, …; mov r10d, …; mov r8d, …; mov r9d, …"""
_KEEP_FD, _FD = bytes.fromhex("89c3"), bytes.fromhex("89df")
"""mov ebx, eax; mov edi, ebx"""
_ELF, _SEGMENT = struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQQQ")


@dataclass(frozen=True)
class Datagram:
    """What is sent, from which port, and where to."""

    source: int
    to: str
    port: int
    payload: bytes


def finalize_sender(datagrams: Sequence[Datagram]) -> bytes:
    """The program. It says nothing of what failed: who listens knows."""
    start = BASE + _ELF.size + _SEGMENT.size
    data, code = struct.pack("<I", 1), b""  # it begins with what SO_BROADCAST is set to
    for one in datagrams:
        own, peer, payload = (start + len(data) + offset for offset in (0, 16, 32))
        data += _address("0.0.0.0", one.source) + _address(one.to, one.port) + one.payload
        code += _call(_SOCKET, socket.AF_INET, socket.SOCK_DGRAM, 0) + _KEEP_FD
        code += _call(_SETSOCKOPT, None, socket.SOL_SOCKET, socket.SO_BROADCAST, start, 4)
        code += _call(_BIND, None, own, 16)
        code += _call(_SENDTO, None, payload, len(one.payload), 0, peer, 16)
        code += _call(_CLOSE, None)
    code += _call(_EXIT, 0)
    size = _ELF.size + _SEGMENT.size + len(data) + len(code)
    # 64 bits, little-endian; a program that is run where it says; x86_64. It has one segment, which is all of it.
    magic = b"\x7fELF" + bytes((2, 1, 1))
    head = _ELF.pack(magic, 2, 62, 1, start + len(data), _ELF.size, 0, 0, _ELF.size, _SEGMENT.size, 1, 0, 0, 0)
    readable_and_run = 5
    return head + _SEGMENT.pack(1, readable_and_run, 0, BASE, BASE, size, size, 0x1000) + data + code


def _address(address: str, port: int) -> bytes:
    """A sockaddr_in."""
    return struct.pack("<H", socket.AF_INET) + struct.pack(">H", port) + socket.inet_aton(address) + bytes(8)


def _call(number: int, *arguments: int | None) -> bytes:
    """A system call; None: the socket that was made last."""
    code = b""
    for mov, value in zip(_ARGUMENTS, arguments, strict=False):
        code += _FD if value is None else mov + struct.pack("<I", value)
    return code + b"\xb8" + struct.pack("<I", number) + b"\x0f\x05"  # mov eax, …; syscall
