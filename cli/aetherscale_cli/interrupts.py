"""Ctrl-C: the first ends what is under way, and no other ends the telling of what was done.

What is told is made when all is over, so Ctrl-C is held back from there until the output is out; and from the first one
on, since many press it twice. SIGTERM and SIGQUIT (Ctrl-\\) end the process at any time.
"""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

from aetherscale_cli.errors import CliError, Exit


class _Gate:
    """The handler of Ctrl-C, which lets one through while it `is_open`, and else notes that there was one."""

    is_open = True
    was_rung = False

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        if self.is_open:
            self.is_open = False
            raise KeyboardInterrupt
        self.was_rung = True


_gate = _Gate()


@contextlib.contextmanager
def one_at_most() -> Iterator[None]:
    """Let one Ctrl-C through, and hold back those after it; nothing where it is ignored, or outside the main thread."""
    _gate.is_open, _gate.was_rung = True, False
    before = signal.getsignal(signal.SIGINT)
    try:
        if callable(before):
            with contextlib.suppress(ValueError):
                signal.signal(signal.SIGINT, _gate)
        yield
    finally:
        if callable(before):
            with contextlib.suppress(ValueError):
                signal.signal(signal.SIGINT, before)
        _gate.is_open, _gate.was_rung = True, False


def hold_back() -> None:
    """From now on Ctrl-C waits."""
    _gate.is_open = False


def let_through() -> None:
    """From now on Ctrl-C comes through.

    :raise KeyboardInterrupt: when there was one that had to wait.
    """
    _gate.is_open = True  # first: none is to be missed in between
    if _gate.was_rung:
        _gate.is_open = _gate.was_rung = False
        raise KeyboardInterrupt


def attempt(do: Callable[[], object]) -> CliError | KeyboardInterrupt | None:
    """Do it; what ended it before its time, if something did. From there on Ctrl-C is held back."""
    ended = None
    try:
        let_through()
        try:
            do()
        except CliError as error:
            ended = error
        hold_back()
    except KeyboardInterrupt as error:
        hold_back()
        return error
    return ended


def reason_of(ended: CliError | KeyboardInterrupt) -> CliError:
    """What ended it, as it is told."""
    return ended if isinstance(ended, CliError) else CliError("interrupted", exit_code=Exit.INTERRUPTED)
