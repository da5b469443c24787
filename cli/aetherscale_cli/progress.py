"""How far a wait is, on stderr: one line that is written over, for somebody at a terminal."""

import sys

from aetherscale_cli import text


class Line:
    """One line on stderr that tells how far it is; nothing where nobody would see it."""

    def __init__(self) -> None:
        self._on = sys.stderr is not None and sys.stderr.isatty()
        self._shown = False

    def show(self, said: str) -> None:
        """Say this instead of what was said before."""
        if self._on:
            sys.stderr.write(f"\r\x1b[K{text.safe(said)}")
            sys.stderr.flush()
            self._shown = True

    def clear(self) -> None:
        """Take the line away."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._shown = False
