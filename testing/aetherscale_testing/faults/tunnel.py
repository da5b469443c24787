"""A client's tunnel in a cell, and the guest's port at its other end, which echoes."""

import contextlib
import socketserver
import threading
from collections.abc import Iterator
from typing import Literal

from aetherscale_protocol.streams import Frame, Order, StreamError

GREETING = b"are you there?\n"
PROBE_S = 5.0


class _Echoing(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        echo = self.server
        assert isinstance(echo, Echo)
        with echo.counting():
            try:
                while data := self.request.recv(4096):
                    self.request.sendall(data)
            except OSError:
                pass  # its agent is gone


class Echo(socketserver.ThreadingTCPServer):
    """A port that sends back what it is sent, and counts who is connected."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Echoing)
        self.connections = 0
        self._lock = threading.Lock()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, name="echo", daemon=True).start()

    @property
    def port(self) -> int:
        """Where it listens, on 127.0.0.1."""
        return int(self.server_address[1])

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Count a connection while the block lasts."""
        self._add(1)
        try:
            yield
        finally:
            self._add(-1)

    def _add(self, count: int) -> None:
        with self._lock:
            self.connections += count

    def close(self) -> None:
        """Listen no more."""
        self.shutdown()
        self.server_close()


class Tunnel:
    """The client's end of a stream: bytes that come in order, or a word that it is over."""

    def __init__(self, stream: str) -> None:
        self.over = ""  #: why, once it is
        self._stream = stream
        self._seq = 0
        self._written = 0
        self._echoed = bytearray()
        self._order = Order()
        self._wrong = ""

    def write(self, data: bytes) -> Frame:
        """The message that carries this."""
        self._written += len(data)
        return self._frame("data", data)

    def close(self) -> Frame:
        """The message that ends it."""
        self.over = "closed"
        return self._frame("close")

    def _frame(self, kind: Literal["data", "close"], body: bytes = b"") -> Frame:
        self._seq += 1
        return Frame(self._stream, kind, self._seq - 1, body)

    def take(self, frame: Frame) -> None:
        """Take a message of this or of another stream that the same command opened."""
        if frame.stream != self._stream or self.over:
            return
        if frame.kind == "close":  # a host that knows nothing of the stream does not know its numbers either
            self.over = frame.reason or "ended"
            return
        try:
            if self._order.is_new(frame.seq) and frame.kind == "data":
                self._echoed += frame.body
        except StreamError as error:
            self._wrong = f"a tunnel that goes on: {error}"

    @property
    def is_settled(self) -> bool:
        """Whether all that was written came back, or it is over."""
        return bool(self.over) or len(self._echoed) >= self._written

    def find_fault(self) -> str:
        """What is wrong with it; '' if nothing is."""
        if self._wrong:
            return self._wrong
        if not self.is_settled:
            passed = f"{self._written} bytes in, {len(self._echoed)} out"
            return f"a tunnel carries nothing, and nobody says that it is over: {passed}"
        whole = GREETING * (len(self._echoed) // len(GREETING) + 1)
        return "" if whole.startswith(self._echoed) else f"a tunnel mixes up its bytes: {bytes(self._echoed[:80])!r}"
