"""The terminal of whoever looks at a console: raw while they do, and as it was before whatever happens."""

import contextlib
import os
import queue
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator
from types import FrameType

LEAVE = b"\x1d"
"""Ctrl-], as telnet and virsh have it."""


LINGER_S = 1.0
"""How long a console must be quiet before who typed from a file or a pipe has seen what came of it, in seconds."""


class TypedSource:
    """What is typed, until Ctrl-]: then `left` is called, and there is no more.

    `quiet` says for how many seconds nothing was shown: what comes from a pipe ends when that has its answer.
    """

    def __init__(self, descriptor: int, left: Callable[[], None], quiet: Callable[[], float]) -> None:
        self._descriptor = descriptor
        self._left = left
        self._quiet = quiet
        self._is_left = False

    def read(self, most: int) -> bytes:
        """What was typed; empty at the end, and after Ctrl-]."""
        if self._is_left:
            return b""
        typed, key, _ = os.read(self._descriptor, most).partition(LEAVE)
        if not (typed or key):
            while (quiet := self._quiet()) < LINGER_S:
                time.sleep(LINGER_S - quiet)
        if key:
            self._is_left = True
            if not typed:
                self._left()
        return typed


@contextlib.contextmanager
def raw(descriptor: int) -> Iterator[bool]:
    """Every key goes through as it is typed, if this is a terminal (yields whether it is); restored at the end."""
    if not os.isatty(descriptor):
        yield False
        return
    before = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor, termios.TCSANOW)
        yield True
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)
        with contextlib.suppress(OSError):
            print(file=sys.stderr, flush=True)  # the guest left the cursor anywhere


@contextlib.contextmanager
def signals_as_interrupts() -> Iterator[None]:
    """Let what would end the process at once end it as Ctrl-C does: the terminal is restored, and the stream closed.

    ssh ends its ProxyCommand by SIGHUP; a stream that was left so would keep its place for half a minute.
    """

    def end(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def resizes(tell: Callable[[int, int], None]) -> Iterator[None]:
    """Tell the terminal's size (columns, lines) now and whenever it changes; nothing where there is none.

    `tell` is called in a thread: a signal comes in the middle of anything, and only a SimpleQueue may be used there.
    """
    changes: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def watch() -> None:
        while changes.get():
            with contextlib.suppress(OSError):
                size = os.get_terminal_size(sys.stdout.fileno())
                tell(size.columns, size.lines)

    threading.Thread(target=watch, daemon=True).start()
    before = signal.signal(signal.SIGWINCH, lambda *_: changes.put(True))
    changes.put(True)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)
        changes.put(False)
