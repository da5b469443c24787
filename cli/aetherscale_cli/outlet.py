"""Where all words leave: whatever came from elsewhere, no control character reaches a terminal by this way.

Names, reasons, file contents and what was typed are made safe where they are put into sentences, since a line break
inside of them is for them to escape. This is the last gate, for what anybody forgot. What a console or a tunnel
carries goes past it (`conversation`): those bytes are what was asked for.
"""

import contextlib
import sys
from collections.abc import Sequence

from aetherscale_cli import text


def answer(shown: str) -> None:
    """Write to stdout, and have it out before anything else is said.

    :raise OSError: when it can't be written; not when whoever read has seen enough, as `… | head` does.
    """
    if sys.stdout is None or not shown:
        return
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.buffer.write(text.harmless(shown).encode("utf-8", "backslashreplace"))
        sys.stdout.buffer.flush()


def is_terminal() -> bool:
    """Whether somebody looks on. (A pipe's reader may stand still, and we with it.)"""
    return sys.stdout is not None and sys.stdout.isatty()


def say(lines: Sequence[str]) -> None:
    """Write lines to stderr; nothing happens where nobody listens."""
    with contextlib.suppress(OSError):
        if sys.stderr is not None and lines:
            print(*(text.harmless(line) for line in lines), sep="\n", file=sys.stderr, flush=True)


def agreed(question: str) -> bool:
    """Ask whoever is at the keyboard; whether they said yes."""
    sys.stderr.write(f"{text.harmless(question)} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
