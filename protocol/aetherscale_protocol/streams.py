"""Streams of bytes between a client and a VM, as messages: their headers, and who may send how much. Pure.

A stream's messages travel beside the commands: the body is bytes, the headers say which stream it belongs to, what
it is, and its number. docs/protocol.md, "Streams", tells the whole.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from msgspec import Struct

from aetherscale_protocol.errors import Code

STREAM, KIND, SEQ, BYTES, CODE, REASON, HINT = "stream", "kind", "seq", "bytes", "code", "reason", "hint"
COLUMNS, LINES = "columns", "lines"

Kind = Literal["data", "credit", "eof", "close", "ping", "resize"]
KINDS: tuple[str, ...] = get_args(Kind)

CHUNK = 32 << 10
"""The most bytes that one message carries."""

LEAST_WEIGHT = 1 << 10
"""As how many bytes of credit a message with data counts at least: a byte costs the broker that much to carry. So a
guest that prints single bytes to somebody who does not read can't pile up more messages there than a window has of
these.
"""

AGENT_WINDOW = 256 << 10
"""How many bytes an agent takes before it has given credit for more."""

MOST_WINDOW = 1 << 20
"""How many bytes without credit an agent sends at most, however much more the client would take."""

PING_EVERY_S = 5.0
"""How often a client pings, in seconds; the agent pings back."""

CLIENT_SILENCE_S = 30.0
"""After how many seconds without a message an agent takes a client for gone."""

AGENT_SILENCE_S = 20.0
"""After how many seconds without a message a client takes the agent for gone."""

MOST_CELLS = 1000
"""Columns or lines of a terminal, at most."""

LONGEST_REASON = 500
LONGEST_ID = 64
"""Characters of a stream's id, which an agent gives (32) and repeats to whoever names it."""

GONE: Code = "stream-gone"


class StreamError(Exception):
    """A stream can't go on: the other side broke a rule, or a message was lost; `str()` is for people."""


class Frame(Struct, frozen=True):
    """One message of a stream. `seq` counts each direction's messages from 0; `bytes`: how much credit it gives."""

    stream: str
    kind: Kind
    seq: int
    body: bytes = b""
    bytes: int = 0
    reason: str = ""  #: of a `close`: why, for people; empty when the stream came to its end
    hint: str = ""
    size: tuple[int, int] | None = None  #: of a `resize`: columns and lines of the terminal; None: no sensible ones

    @property
    def headers(self) -> dict[str, Any]:
        """The headers that say all this."""
        headers: dict[str, Any] = {STREAM: self.stream, KIND: self.kind, SEQ: self.seq}
        if self.kind == "credit":
            headers[BYTES] = self.bytes
        if self.kind == "close":
            headers |= {REASON: self.reason[:LONGEST_REASON], HINT: self.hint[:LONGEST_REASON]}
            headers |= {CODE: GONE} if self.reason else {}
        if self.size is not None:
            headers[COLUMNS], headers[LINES] = self.size
        return headers


def is_stream(headers: Mapping[str, Any] | None) -> bool:
    """Whether a message is a stream's, and so no command."""
    return bool(headers) and STREAM in (headers or {})


def read_frame(headers: Mapping[str, Any], body: bytes) -> Frame:
    """The frame that a message is.

    :raise StreamError: when it is none.
    """
    stream, kind = headers.get(STREAM), headers.get(KIND)
    if not isinstance(stream, str) or len(stream) > LONGEST_ID or kind not in KINDS:
        raise StreamError("its headers are no stream's")
    if len(body) > (CHUNK if kind == "data" else 0):
        raise StreamError(f"a {kind} of {len(body)} bytes")
    seq, credit = _count(headers.get(SEQ)), _count(headers.get(BYTES, 0))
    reason, hint = (_text(headers.get(name)) for name in (REASON, HINT))
    return Frame(stream, kind, seq, body, credit, reason, hint, _size(headers))


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise StreamError("its headers hold no number where one should be")
    return value


def _text(value: object) -> str:
    return value[:LONGEST_REASON] if isinstance(value, str) else ""


def _size(headers: Mapping[str, Any]) -> tuple[int, int] | None:
    columns, lines = headers.get(COLUMNS), headers.get(LINES)
    if not isinstance(columns, int) or not isinstance(lines, int):
        return None
    # A terminal that does not know its own size says 0.
    return (columns, lines) if 1 <= columns <= MOST_CELLS and 1 <= lines <= MOST_CELLS else None


def weigh(count: int) -> int:
    """How much credit a message with so many bytes takes."""
    return max(count, LEAST_WEIGHT)


class Order:
    """The order of one direction's messages, as its receiver sees it."""

    def __init__(self) -> None:
        self._next = 0

    def is_new(self, seq: int) -> bool:
        """Whether this message is the next; False for one that came before, and was delivered again.

        :raise StreamError: when one before it is missing.
        """
        if seq > self._next:
            raise StreamError("a part of it was lost on the way")
        if seq < self._next:
            return False
        self._next += 1
        return True


class Credit:
    """How much may still be sent."""

    def __init__(self, window: int) -> None:
        self._window = window
        self.left = window  #: bytes

    @property
    def chunk(self) -> int:
        """How many bytes the next message may have; 0: wait for credit."""
        return min(CHUNK, self.left) if self.left >= LEAST_WEIGHT else 0

    def spend(self, count: int) -> None:
        """A message with so many bytes is sent."""
        weight = weigh(count)
        assert weight <= self.left, "sent without credit"
        self.left -= weight

    def grant(self, count: int) -> None:
        """The receiver has room for so many more.

        :raise StreamError: when that is more than it ever said that it would take.
        """
        if self.left + count > self._window:
            raise StreamError("it was given more credit than it had used")
        self.left += count


class Intake:
    """How much the other side may still send; its credit is given in pieces that are worth a message."""

    def __init__(self, window: int) -> None:
        self._left = window
        self._used = 0
        self._worth = max(1, min(window, MOST_WINDOW) // 4)

    def take(self, count: int) -> None:
        """A message with so many bytes came.

        :raise StreamError: when that is more than was allowed.
        """
        weight = weigh(count)
        if weight > self._left:
            raise StreamError("it sent more than it had credit for")
        self._left -= weight

    def used(self, *counts: int) -> int:
        """Messages with so many bytes each are dealt with; the credit to give now (0: later)."""
        self._used += sum(map(weigh, counts))
        if self._used < self._worth:
            return 0
        credit, self._used = self._used, 0
        self._left += credit
        return credit
