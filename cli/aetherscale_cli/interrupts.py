"""Ctrl-C: the first ends what is under way, and no other ends the telling of what was done.

What is told is made when all is over, so Ctrl-C is held back from there until the output is out; and from the first one
on, since many press it twice. The third ends the telling, too; SIGTERM and SIGQUIT (Ctrl-\\) end the process at any
time.
"""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

from aetherscale_cli.errors import CliError, Exit

INSISTENCE = 3
"""How many say that nothing is to be told any more, or can be: nobody may read what is written."""


class _Gate:
    """The handler of Ctrl-C, which lets one through while it `is_open`, else notes it, and gives in to the third."""

    is_open = True
    was_rung = False
    count = 0

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
        if self.is_open or self.count >= INSISTENCE:
            self.is_open = False
            raise KeyboardInterrupt
        self.was_rung = True


_gate = _Gate()


@contextlib.contextmanager
def one_at_most() -> Iterator[None]:
    """Let one Ctrl-C through, and hold back those after it; nothing where it is ignored, or outside the main thread."""
    _gate.is_open, _gate.was_rung, _gate.count = True, False, 0
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
