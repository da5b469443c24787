"""Answered messages that changed nothing: when they are acknowledged, since nobody waits for that.

RabbitMQ walks through all unacknowledged messages before the one that is acknowledged, and the channel delivers nothing
meanwhile (rabbit_channel's `collect_acks`). In a flood thousands are before a stream's message, which waits for no
turn: acknowledged at once, they held up everybody's commands for a second.
"""

import asyncio
import contextlib
from collections.abc import Callable

from aetherscale_agent.broker import BrokerLost, Delivery
from aetherscale_protocol import topology

LATER_S = 0.2
"""How long what changed nothing may stay unacknowledged, at least. If the connection is lost meanwhile, it is answered
again."""
MANY = 500
"""While no more messages than these wait for their turn, any may be acknowledged."""
MOST, MOST_BYTES = 10_000, 32 << 20
"""How many may be kept back, and with how much in them: they count against the prefetch, and the broker holds them."""


class Answered:
    """What is answered, and not acknowledged yet. `waiting`: how many messages wait for their turn."""

    def __init__(self, waiting: Callable[[], int]) -> None:
        self._waiting = waiting
        self._kept: list[tuple[Delivery, int]] = []  #: each with the bytes that the broker holds of it
        self._lowest = 0  #: tag of those that had their turn since the last look; 0 if none had

    def __len__(self) -> int:
        """How many are kept back."""
        return len(self._kept)

    def add(self, delivery: Delivery, *, given_up: int = 0, soon: bool = False) -> None:
        """Acknowledge this some time after its answer: where all hosts are asked, answers go first.

        `given_up`: bytes of it that the broker holds, and we no more. `soon`: at once, unless many are before it, for
        until then the broker holds what may be large.
        """
        one_at_a_time = delivery.queue == topology.COMPETING  # the next one waits for this
        if one_at_a_time or (soon and self._waiting() + len(self._kept) <= MANY):
            delivery.channel.ack(delivery)
            return
        if not self._kept:
            asyncio.get_running_loop().call_later(LATER_S, self._look)
        self._kept.append((delivery.without_contents(), len(delivery.body) + given_up))

    def note_turn(self, tag: int) -> None:
        """A message has its turn: little that is before it still waits, if its sender is who has sent most."""
        self._lowest = min(self._lowest or tag, tag)

    def acknowledge(self, up_to: int | None = None) -> None:
        """Acknowledge all, or those with tags up to this one; in the broker's order."""
        due = sorted((d for d, _ in self._kept if up_to is None or d.tag <= up_to), key=lambda one: one.tag)
        self._kept = [] if up_to is None else [one for one in self._kept if one[0].tag > up_to]
        with contextlib.suppress(BrokerLost):  # then they come again, and are answered again
            for delivery in due:
                delivery.channel.ack(delivery)

    def _look(self) -> None:
        size = sum(size for _, size in self._kept)
        held_up = self._waiting() > MANY and len(self._kept) < MOST and size < MOST_BYTES
        self.acknowledge(self._lowest if held_up else None)
        self._lowest = 0
        if self._kept:
            asyncio.get_running_loop().call_later(LATER_S, self._look)
