"""What goes to the broker and what comes back, as plain values. The session (broker.py) moves them;
everything that decides (gather.py, settle.py, report.py) sees nothing else of the broker.
"""

from typing import Protocol

import msgspec
from msgspec import Struct

from aetherscale_protocol.answers import Answer, decode_answer


class Message(Struct, frozen=True):
    """A command, ready to be published to the exchange. `deadline_ms` since the epoch."""

    key: str
    body: bytes
    correlation_id: str
    request_id: str
    deadline_ms: int
    changes: bool


class Delivered(Struct, frozen=True):
    """An answer to the message with this correlation id."""

    correlation_id: str
    body: bytes


class Returned(Struct, frozen=True):
    """Nobody is bound to that message's key."""

    correlation_id: str


class Nacked(Struct, frozen=True):
    """The broker did not take that message: a queue is full."""

    correlation_id: str


class Counted(Struct, frozen=True):
    """How many consume a queue: 0 also when there is no such queue, None when the broker does not say."""

    queue: str
    consumers: int | None


Event = Delivered | Returned | Nacked | Counted


class Session(Protocol):
    """A connection to the broker. Deadlines are on `time.monotonic()`'s clock.

    Every method raises CliError when the connection is lost, or the broker refuses what was sent before.
    """

    def publish(self, message: Message) -> None:
        """Send a command; what becomes of it comes as events."""

    def count_consumers(self, queue: str) -> None:
        """Ask how many consume a queue; comes as `Counted`."""

    def next_event(self, deadline: float) -> Event | None:
        """Wait for what happens next; None when nothing did until the deadline."""


class Reply(Struct, frozen=True):
    """An answer: as received, for programs; and decoded, for people."""

    raw: bytes
    answer: Answer


def decode_reply(body: bytes) -> Reply | None:
    """The answer in a message's body, in compact JSON; None if it is none."""
    try:
        answer = decode_answer(body)
        compact = msgspec.json.format(body, indent=-1)
        compact.decode("utf-8")
    except (ValueError, RecursionError):  # msgspec's and Unicode's errors are ValueErrors
        return None
    return Reply(compact, answer)
