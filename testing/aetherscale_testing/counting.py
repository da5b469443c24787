"""An agent that notes what it asks of its host: each file synced, process started, D-Bus call, QMP command and thread.

    python counting.py FILE [ARGUMENT…]      # aetherscale-agent with these arguments, noting in FILE

A line is `<number> <what>`; a message that is handled gets the next number, and says so: `3 begin create-vm`. All that
is done on its behalf, in whatever task or thread, has its number, even if it comes after the answer; what no message
asked for has the number 0. So whatever else goes on meanwhile, a command's lines are its own.

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

_number: ContextVar[int] = ContextVar("number", default=0)

STARTS = frozenset({"os.exec", "os.fork", "os.forkpty", "os.system"})
"""Python's audit events of processes that are not started by `subprocess`, which may use os.posix_spawn inside."""


class Notes:
    """The file, as whoever counts reads it."""

    def __init__(self, text: str) -> None:
        self.begun: dict[int, str] = {}  #: which message each number is
        self._lines: dict[int, Counter[str]] = {}
        for line in text.splitlines():
            number, what = int(line.split(" ", 1)[0]), line.split(" ", 1)[1]
            if what.startswith("begin "):
                self.begun[number] = what.removeprefix("begin ")
            else:
                self._lines.setdefault(number, Counter())[what] += 1

    def of(self, *numbers: int) -> Counter[str]:
        """What was done for these messages together."""
        return sum((self._lines.get(number, Counter()) for number in numbers), Counter())


def install(path: Path) -> None:
    """Note from now on, in this process."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def note(what: str) -> None:
        os.write(file, f"{_number.get()} {what}\n".encode())

    def tell(of: Any, name: str, what: Callable[..., str]) -> None:
        real = getattr(of, name)

        @functools.wraps(real)
        def call(*args: Any, **more: Any) -> Any:
            note(what(*args, **more))
            return real(*args, **more)

        setattr(of, name, call)

    def hear(event: str, args: tuple[Any, ...]) -> None:
        if event == "subprocess.Popen":
            note(f"exec {os.path.basename(os.fsdecode(args[0]))}")
        elif event in STARTS:
            note(event.replace(".", " "))

    tell(os, "fsync", lambda _file: "sync")
    tell(os, "fdatasync", lambda _file: "sync")
    tell(asyncio, "to_thread", lambda *_args, **_more: "thread")
    tell(MessageBus, "call", lambda _bus, message: f"dbus {message.member}")
    tell(QMPClient, "execute", lambda _client, command, *_args, **_more: f"qmp {command}")
    sys.addaudithook(hear)
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


def _command(body: bytes) -> str:
    try:
        return str(json.loads(body)["command"])
    except (ValueError, KeyError, TypeError):
        return "?"


if __name__ == "__main__":
    from aetherscale_agent.main import run

    install(Path(sys.argv.pop(1)))
    run()
