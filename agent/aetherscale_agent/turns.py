"""Whose message is next: everybody who asks gets a turn, however many messages somebody else has sent. Pure.

Turns go round the broker users (whom the broker has checked), and for each of them, and for those who did not sign,
round the clients that wait for answers: a script of one operator's does not hold up that operator's next command.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

LONG = 100
"""From how many messages on a line is joined by those of its user to whom nobody could answer."""
ENTRY = 100
"""Bytes of memory that an entry of a table or a list takes beside what is in it, about."""


def weigh(value: object) -> int:
    """About how much memory a decoded table of headers takes, in bytes."""
    if isinstance(value, dict):
        return sum(ENTRY + weigh(key) + weigh(item) for key, item in value.items())
    if isinstance(value, list):
        return sum(ENTRY + weigh(item) for item in value)
    return len(value) if isinstance(value, str | bytes) else 0


@dataclass
class _Entry(Generic[T]):
    """A message that waits, and what it counts for; 0 once it has been given up."""

    message: T
    size: int


@dataclass
class _Client(Generic[T]):
    """What one client has sent: all of it in order, and those of it that could be given up."""

    waiting: deque[_Entry[T]] = field(default_factory=deque)
    heavy: deque[_Entry[T]] = field(default_factory=deque)


class _Line(Generic[T]):
    """What one user has sent: by client, with its size in bytes."""

    def __init__(self) -> None:
        self.clients: OrderedDict[str, _Client[T]] = OrderedDict()
        self.heavy: OrderedDict[str, _Client[T]] = OrderedDict()  #: those of whom something could be given up
        self.longest = ""  #: whose line was the longest when something was added last
        self.size = 0

    def length(self, client: str) -> int:
        """How many messages of a client wait."""
        return len(self.clients[client].waiting) if client in self.clients else 0


class Turns(Generic[T]):
    """Messages that wait for their turn. Together they hold no more than `most` bytes.

    For want of room the last ones of whoever holds most are given up: `lighten` makes them ones that hold nothing. They
    keep their places, so that each client's messages have their turns in the order in which they came.
    """

    def __init__(self, most: int, lighten: Callable[[T], T]) -> None:
        self._most = most
        self._lighten = lighten
        self._users: OrderedDict[str, _Line[T]] = OrderedDict()
        self._size = 0
        self._waiting = 0

    def __len__(self) -> int:
        """How many wait."""
        return self._waiting

    def put(self, user: str, client: str | None, message: T, size: int = 0) -> None:
        """Let a message of `size` bytes wait. `client` None: nobody waits for the answer; it joins its user's flood if
        there is one.
        """
        line = self._users.setdefault(user, _Line())
        if client is None:
            client = line.longest if line.length(line.longest) >= LONG else ""
        whose = line.clients.setdefault(client, _Client())
        entry = _Entry(message, size)
        whose.waiting.append(entry)
        if size:
            whose.heavy.append(entry)
            line.heavy[client] = whose
        if len(whose.waiting) >= line.length(line.longest):
            line.longest = client
        line.size += size
        self._size += size
        self._waiting += 1
        while self._size > self._most:
            self._give_up_one()

    def _give_up_one(self) -> None:
        line = max(self._users.values(), key=lambda one: one.size)
        client = next(reversed(line.heavy))
        entry = line.heavy[client].heavy.pop()
        if not line.heavy[client].heavy:
            del line.heavy[client]
        line.size -= entry.size
        self._size -= entry.size
        entry.message, entry.size = self._lighten(entry.message), 0

    def take(self, busy: Container[str] = ()) -> T:
        """The message whose turn it is; those of users who are `busy` go on waiting.

        :raise KeyError: when none waits but theirs.
        """
        user = next((user for user in self._users if user not in busy), None)
        if user is None:
            raise KeyError("nobody waits")
        line = self._users[user]
        client = next(iter(line.clients))
        self._users.move_to_end(user)
        line.clients.move_to_end(client)
        if client in line.heavy:
            line.heavy.move_to_end(client)
        return self._remove(user, client)

    def _remove(self, user: str, client: str) -> T:
        line = self._users[user]
        whose = line.clients[client]
        entry = whose.waiting.popleft()
        if entry.size:
            whose.heavy.popleft()
            if not whose.heavy:
                del line.heavy[client]
        line.size -= entry.size
        self._size -= entry.size
        self._waiting -= 1
        if not whose.waiting:
            del line.clients[client]
        if not line.clients:
            del self._users[user]
        return entry.message
