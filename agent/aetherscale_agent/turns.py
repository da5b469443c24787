"""Whose message is next: everybody who asks gets a turn, however many messages somebody else has sent. Pure.

Turns go round the broker users (whom the broker has checked), and for each of them, and for those who did not sign,
round the clients that wait for answers: a script of one operator's does not hold up that operator's next command.
"""

from collections import OrderedDict, deque
from collections.abc import Container
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


class _Line(Generic[T]):
    """What one user has sent: by client, with its size in bytes."""

    def __init__(self) -> None:
        self.clients: OrderedDict[str, deque[tuple[T, int]]] = OrderedDict()
        self.longest = ""  #: whose line was the longest when something was added last
        self.size = 0


class Turns(Generic[T]):
    """Messages that wait for their turn. Together they hold no more than `most` bytes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._users: OrderedDict[str, _Line[T]] = OrderedDict()
        self._size = 0
        self._waiting = 0

    def __len__(self) -> int:
        """How many wait."""
        return self._waiting

    def put(self, user: str, client: str | None, message: T, size: int = 0) -> list[T]:
        """Let a message of `size` bytes wait; the messages that have to leave for want of room: the last ones of
        whoever holds most. `client` None: nobody waits for the answer; it joins its user's flood if there is one.
        """
        line = self._users.setdefault(user, _Line())
        if client is None:
            client = line.longest if len(line.clients.get(line.longest, ())) >= LONG else ""
        waiting = line.clients.setdefault(client, deque())
        waiting.append((message, size))
        if len(waiting) >= len(line.clients.get(line.longest, ())):
            line.longest = client
        line.size += size
        self._size += size
        self._waiting += 1
        shed = []
        while self._size > self._most:
            heaviest = max(self._users, key=lambda one: self._users[one].size)
            shed.append(self._remove(heaviest, next(reversed(self._users[heaviest].clients)), last=True))
        return shed

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
        return self._remove(user, client, last=False)

    def _remove(self, user: str, client: str, *, last: bool) -> T:
        line = self._users[user]
        waiting = line.clients[client]
        message, size = waiting.pop() if last else waiting.popleft()
        line.size -= size
        self._size -= size
        self._waiting -= 1
        if not waiting:
            del line.clients[client]
        if not line.clients:
            del self._users[user]
        return message
