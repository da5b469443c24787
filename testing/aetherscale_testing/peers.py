"""What a guest might listen with: TCP servers of the loopback that take, give, or echo bytes."""

import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

PIECE = 1 << 20


@dataclass
class Peer:
    """A server, and what became of its last connection: bytes, their sha256, and how many seconds they took."""

    port: int
    count: int = 0
    digest: str = ""
    seconds: float = 0.0
    done: threading.Event = field(default_factory=threading.Event)


Serve = Callable[[Peer, socket.socket], None]


def take(peer: Peer, connection: socket.socket) -> None:
    """Read to the end; then answer with the sha256 of it."""
    begin, count, digest = time.perf_counter(), 0, hashlib.sha256()
    while data := connection.recv(PIECE):
        count += len(data)
        digest.update(data)
    peer.count, peer.digest, peer.seconds = count, digest.hexdigest(), time.perf_counter() - begin
    connection.sendall(peer.digest.encode())


def give(data: bytes) -> Serve:
    """Send this, and wait until the other side is through with it."""

    def serve(peer: Peer, connection: socket.socket) -> None:
        begin = time.perf_counter()
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(PIECE):
            pass
        peer.count, peer.seconds = len(data), time.perf_counter() - begin

    return serve


def echo(_peer: Peer, connection: socket.socket) -> None:
    """Send back what comes."""
    while data := connection.recv(PIECE):
        connection.sendall(data)


@contextmanager
def listening(serve: Serve) -> Iterator[Peer]:
    """A server that treats each connection so, while the block lasts."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        peer = Peer(server.getsockname()[1])

        def treat(connection: socket.socket) -> None:
            try:
                with connection:
                    serve(peer, connection)
            except OSError:
                pass  # it was cut: what a test may be about
            finally:
                peer.done.set()

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=treat, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield peer
        server.shutdown(socket.SHUT_RDWR)
