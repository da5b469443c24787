"""The program that sends datagrams for a guest, and what hears them on its host."""

import platform
import socket
import struct
import subprocess
from pathlib import Path

import pytest

from aetherscale_testing.datagrams import Datagram, finalize_sender
from aetherscale_testing.overheard import read


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the program is x86_64's machine code")
def test_a_datagram_comes_from_the_port_that_was_wanted(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver, socket.socket(type=socket.SOCK_DGRAM) as free:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(5)
        free.bind(("127.0.0.1", 0))
        source, port = free.getsockname()[1], receiver.getsockname()[1]
        free.close()
        program = tmp_path / "send"
        payloads = b"one", b"\xffnd 2"
        program.write_bytes(finalize_sender([Datagram(source, "127.0.0.1", port, payload) for payload in payloads]))
        program.chmod(0o755)
        assert len(program.read_bytes()) < 1000
        subprocess.run([program], check=True)
        assert [receiver.recvfrom(100) for _ in range(2)] == [(payload, ("127.0.0.1", source)) for payload in payloads]


def packet(protocol: int = 17, options: bytes = b"", padding: bytes = b"") -> bytes:
    text = b"offer"
    head = struct.pack(">BBHHHBBH", 0x45 + len(options) // 4, 0, 0, 0, 0, 64, protocol, 0)
    addresses = socket.inet_aton("10.126.0.2") + socket.inet_aton("10.126.0.3")
    return head + addresses + options + struct.pack(">HHHH", 67, 68, 8 + len(text), 0) + text + padding


@pytest.mark.parametrize("more", [{}, {"options": bytes(8)}, {"padding": bytes(20)}])
def test_what_comes_by_is_read(more: dict[str, bytes]) -> None:
    assert read(packet(**more)) == (67, "10.126.0.3", "offer")  # type: ignore[arg-type]


@pytest.mark.parametrize("other", [b"", b"\0" * 40, packet()[:24], packet(protocol=1)])
def test_what_is_no_datagram_is_passed_over(other: bytes) -> None:
    assert read(other) is None
