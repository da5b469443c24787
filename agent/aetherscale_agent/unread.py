"""Messages of a flood that are given up unread, and that the broker holds until they are acknowledged.

Each is acknowledged when its turn comes, for that is in the broker's order (see `answered`); before, if the broker
would hold too much. But where too many wait, those that are not acknowledged keep more from coming.
"""

from collections.abc import Callable

from aetherscale_agent.broker import Delivery
from aetherscale_agent.turns import weigh
from aetherscale_protocol import names

MOST_UNREAD = 128 << 20
"""Bytes of messages that were given up here, and that the broker still holds: with its memory full of what is not
acknowledged, it would let nobody publish."""


class Unread:
    """What was given up, and is not acknowledged. `may_hold_less`: whether so few wait that some may be, early."""

    def __init__(self, may_hold_less: Callable[[], bool]) -> None:
        self._may_hold_less = may_hold_less
        self._kept: dict[int, tuple[Delivery, int]] = {}  #: by tag, with their bytes
        self.size = 0

    def give_up(self, delivery: Delivery) -> Delivery:
        """The same message, unread."""
        unread, size = delivery.without_contents(), find_size(delivery)
        self._kept[delivery.tag] = unread, size
        self.size += size
        while self.size > MOST_UNREAD and self._may_hold_less():
            oldest, freed = self._kept.pop(next(iter(self._kept)))  # few are before it
            self.size -= freed
            oldest.channel.ack(oldest)
        return unread

    def take(self, delivery: Delivery) -> int | None:
        """Its bytes, now that it is to be acknowledged; None if that was done before its turn."""
        if delivery.tag not in self._kept:
            return None
        _, size = self._kept.pop(delivery.tag)
        self.size -= size
        return size


def find_sender(delivery: Delivery) -> str:
    """The user that the broker has checked, or '' if the message was not signed."""
    return str(delivery.properties.user_id or "")


def find_size(delivery: Delivery) -> int:
    """Bytes of memory that a message takes; 0 for hosts' creates, which are never given up."""
    if find_sender(delivery).startswith(names.AGENT_USER_PREFIX):
        return 0
    return len(delivery.body) + weigh(delivery.headers)
