"""The harness's side of a fault: where agents that come to an armed step stand still until they are answered."""

import contextlib
import json
import queue
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aetherscale_testing.faults.machine import ARMED, MET


@dataclass
class Meeting:
    """An agent that stands still before or after a step."""

    host: str
    pid: int
    vm_id: str
    _connection: socket.socket = field(repr=False)

    def answer(self, faults: Mapping[str, Any] | None = None) -> None:
        """Let it go on, with these faults of its machine. An agent that was killed meanwhile hears nothing of it."""
        with contextlib.suppress(OSError):
            self._connection.sendall(json.dumps(dict(faults or {})).encode() + b"\n")
        self._connection.close()


class Hall:
    """The socket to which agents of all cells come."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "meet")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.address)
        self._listener.listen(200)
        self._waiting: dict[str, queue.Queue[Meeting]] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._serve, name="meetings", daemon=True).start()

    def close(self) -> None:
        """Take no more agents."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def arm(self, cell: Path, host: str, when: str, step: str) -> None:
        """Have this host's agent stand still when it next comes there; nobody else, and only once."""
        draft = cell / "meet.new"
        draft.write_text(json.dumps({"host": host, "when": when, "step": step, "socket": self.address}))
        (cell / MET).unlink(missing_ok=True)
        draft.rename(cell / ARMED)

    def disarm(self, cell: Path) -> None:
        """Let nobody stand still any more."""
        (cell / ARMED).unlink(missing_ok=True)

    def wait(self, cell: Path, seconds: float) -> Meeting | None:
        """The agent that stands still; None if none comes."""
        try:
            return self._room(cell.name).get(timeout=seconds)
        except queue.Empty:
            return None

    def _room(self, cell: str) -> queue.Queue[Meeting]:
        with self._lock:
            return self._waiting.setdefault(cell, queue.Queue())

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                line = connection.makefile().readline()
                with contextlib.suppress(ValueError, KeyError):  # killed while it spoke
                    me = json.loads(line)
                    meeting = Meeting(me["host"], me["pid"], me["vm"], connection)
                    self._room(me["cell"]).put(meeting)
