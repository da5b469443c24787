"""An agent that notes what it asks of its host: each file opened, renamed, removed and synced, folder made, removed and
listed, process started, D-Bus call, QMP connection and command, and thread.

    python counting.py FILE [ARGUMENT…]      # aetherscale-agent with these arguments, noting in FILE

A line is `<number> <what>`; a message that is handled gets the next number, and says so: `3 begin create-vm`. All that
is done on its behalf, in whatever task or thread, has its number, even if it comes after the answer. So whatever else
goes on meanwhile, a command's lines are its own. What no message asked for has the number 0, and says whose task it is:
`0 dbus GetAll by Host.watch`. It counts for the message before it, which brought it about: a VM's unit ended, say. What
has the number -1 is looked at every few seconds, for whoever asks first, and counts for nobody.

This file needs nothing but the agent: it runs in a release on a host, too.
"""

import asyncio
import functools
import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from dbus_fast.aio import MessageBus
from qemu.qmp import QMPClient

from aetherscale_agent.handlers import Handlers
from aetherscale_agent.hypervisor.resources import Resources

FILES = {
    "open": "open", "os.rename": "rename", "os.remove": "remove", "os.mkdir": "mkdir", "os.rmdir": "rmdir",
    "os.listdir": "list", "os.scandir": "list",
}  # fmt: skip
"""Python's audit events of what is done with files, and what they are called here."""

_number: ContextVar[int] = ContextVar("number", default=0)

_task: ContextVar[str] = ContextVar("task", default=" by itself")

STARTS = frozenset({"os.exec", "os.fork", "os.forkpty", "os.system"})
"""Python's audit events of processes that are not started by `subprocess`, which may use os.posix_spawn inside."""


PERIODIC = frozenset({
    "QemuHypervisor._keep_consoles", "keep_swept", "Session._consume_creates", "Session._guarded",
})  # fmt: skip
"""Tasks that look after something now and then, whatever is asked."""


CODE = (".py", ".pyc", ".so")


class Notes:
    """The file, as whoever counts reads it."""

    def __init__(self, text: str) -> None:
        self.begun: dict[int, str] = {}  #: which message each number is
        self._lines: dict[int, Counter[str]] = {}
        last = 0
        for line in text.splitlines():
            number, what = int(line.split(" ", 1)[0]), line.split(" ", 1)[1]
            if what.startswith("begin "):
                self.begun[number] = what.removeprefix("begin ")
                last = number
            elif number > 0 or (number == 0 and what.rpartition(" by ")[2] not in PERIODIC):
                self._lines.setdefault(number or last, Counter())[what] += 1

    def of(self, *numbers: int) -> Counter[str]:
        """What was done for these messages together."""
        return sum((self._lines.get(number, Counter()) for number in numbers), Counter())


def install(path: Path) -> None:
    """Note from now on, in this process."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def note(what: str) -> None:
        number = _number.get()
        os.write(file, f"{number} {what}{'' if number else _find_task()}\n".encode())

    def tell(of: Any, name: str, what: Callable[..., str]) -> None:
        real = getattr(of, name)

        @functools.wraps(real)
        def call(*args: Any, **more: Any) -> Any:
            if not _number.get():
                _task.set(_find_task())
            note(what(*args, **more))
            return real(*args, **more)

        setattr(of, name, call)

    def hear(event: str, args: tuple[Any, ...]) -> None:
        if event == "subprocess.Popen":
            note(f"exec {os.path.basename(os.fsdecode(args[0]))}")
        elif event in STARTS:
            note(event.replace(".", " "))
        elif event in FILES and (event != "open" or _is_ours(*args)):
            note(FILES[event])

    tell(os, "fsync", lambda _file: "sync")
    tell(os, "fdatasync", lambda _file: "sync")
    tell(asyncio, "to_thread", lambda *_args, **_more: "thread")
    tell(MessageBus, "call", lambda _bus, message: f"dbus {message.member}")
    tell(QMPClient, "_establish_session", lambda _client: "qmp connect")
    tell(QMPClient, "execute", lambda _client, command, *_args, **_more: f"qmp {command}")
    sys.addaudithook(hear)
    _leave_out_looks()
    _number_messages(note)


def _number_messages(note: Callable[[str], None]) -> None:
    """Give each message that is handled a number, which all that is done for it inherits."""
    numbers = itertools.count(1)
    real = Handlers.on_message

    async def on_message(self: Handlers, session: Any, delivery: Any) -> None:
        _number.set(next(numbers))
        note(f"begin {_command(delivery.body)}")
        await real(self, session, delivery)

    setattr(Handlers, "on_message", on_message)  # noqa: B010 (mypy lets no method be assigned)


def _is_ours(path: object, _mode: object, flags: int) -> bool:
    """Whether opening this is the agent's wish: not a module's code, nor what Python does to start a process, nor the
    way to a socket, which is looked for again until a QEMU that is just starting has made it.
    """
    if not isinstance(path, str | bytes) or flags & os.O_PATH:
        return False
    name = os.fsdecode(path)
    return name != os.devnull and not name.startswith((sys.prefix, sys.base_prefix)) and not name.endswith(CODE)


def _find_task() -> str:
    """` by Units._keep`: what the current task does, or the one that gave this thread its work."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    return f" by {getattr(task.get_coro(), '__qualname__', '?')}" if task is not None else _task.get()


def _leave_out_looks() -> None:
    """Give what is looked at every few seconds, for whoever asks first, a number that is no message's."""
    real = Resources._look

    def look(self: Resources) -> Any:
        token = _number.set(-1)
        try:
            return real(self)
        finally:
            _number.reset(token)

    setattr(Resources, "_look", look)  # noqa: B010 (mypy lets no method be assigned)


def _command(body: bytes) -> str:
    try:
        return str(json.loads(body)["command"])
    except (ValueError, KeyError, TypeError):
        return "?"


if __name__ == "__main__":
    from aetherscale_agent.main import run

    install(Path(sys.argv.pop(1)))
    run()
