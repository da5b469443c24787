"""Who breaks in finds the sockets that are there, those without a file too: else what is refused would show nothing."""

import os
import socket
from collections.abc import Iterator

import pytest

from aetherscale_testing import intruder

KINDS = {"stream": socket.SOCK_STREAM, "datagram": socket.SOCK_DGRAM, "packets": socket.SOCK_SEQPACKET}


@pytest.fixture(params=KINDS)
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    """An abstract socket of each type, with a name that is hard to read."""
    name = f"\0planted {os.getpid()} @{request.param}\0\r\udcff"
    with socket.socket(socket.AF_UNIX, KINDS[request.param]) as server:
        server.bind(name.replace("@", "\0"))
        if request.param != "datagram":
            assert intruder.attempt("connect", name.replace("@", "\0")) == "ECONNREFUSED"  # nobody listens yet
            server.listen()
        yield name.replace("@", "\0")


def test_an_abstract_socket_is_found_and_connected_to(name: str) -> None:
    assert name in set(intruder.find_abstract())
    assert intruder.attempt("connect", name) == "done"


def test_a_socket_with_a_file_is_none(tmp_path: os.PathLike[str]) -> None:
    path = f"{os.fspath(tmp_path)}/a @b"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        assert intruder.attempt("connect", path) == "ECONNREFUSED"
        server.listen()
        assert intruder.attempt("connect", path) == "done"
        assert "\0b" not in set(intruder.find_abstract())
