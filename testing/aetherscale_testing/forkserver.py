"""Agents started by forking a process that has imported all of them once: 200 starts cost what one used to.

    with ForkServer() as server:
        agent = server.start({"host": "h1", …}, log=Path("h1/agent.log"))   # settings: those of `agent`
        agent.send_signal(SIGKILL)
        agent.wait(20)

All that was started ends with the server, or with the process that started the server.
"""

import array
import contextlib
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

MOST = 1 << 16
"""The longest settings, in bytes of JSON."""


class Forked:
    """A process that the server forked. It is named by a descriptor, so no signal reaches another of the same id."""

    def __init__(self, pid: int, descriptor: int) -> None:
        self.pid = pid
        self._descriptor = descriptor

    def send_signal(self, number: int) -> None:
        """Send it a signal; nothing happens if it is gone."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, number)

    def wait(self, timeout: float) -> None:
        """Wait until it is gone.

        :raise subprocess.TimeoutExpired: when it is not after so many seconds.
        """
        ready, _, _ = select.select([self._descriptor], [], [], timeout)
        if not ready:
            raise subprocess.TimeoutExpired(f"forked process {self.pid}", timeout)

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._descriptor)


class ForkServer:
    """The process that forks. Any thread may start agents."""

    def __enter__(self) -> Self:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket = ours
        self._lock = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "aetherscale_testing.forkserver", str(theirs.fileno())],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _where: TracebackType | None
    ) -> None:
        self._socket.close()
        self._process.wait(10)

    def start(self, settings: dict[str, Any], log: Path) -> Forked:
        """Start an agent with these settings; all that it prints is added to `log`."""
        with self._lock:
            self._socket.send(json.dumps({"settings": settings, "log": str(log)}).encode())
            said, descriptors, _, _ = socket.recv_fds(self._socket, 100, 1)
        return Forked(int(said), array.array("i", descriptors)[0])


def serve(channel: socket.socket) -> None:
    """Fork for every request, until the other end is closed; then everything that was forked is killed."""
    from aetherscale_testing import agent  # imported once, for all of them

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no child is waited for here
    gc.collect()
    gc.freeze()  # or the first collection in a child would copy all of it
    while request := channel.recv(MOST):
        pid = os.fork()
        if pid == 0:
            channel.close()
            _become(json.loads(request), agent.run_with)
        descriptor = os.pidfd_open(pid)
        socket.send_fds(channel, [str(pid).encode()], [descriptor])
        os.close(descriptor)
    os.killpg(0, signal.SIGKILL)


def _become(request: dict[str, Any], work: Any) -> None:
    """Be that agent, and nothing else ever."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        work(request["settings"])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
