"""When answered messages are acknowledged: at once where that is cheap, and in a flood once those before them are."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import cast

import pika
import pytest

from aetherscale_agent import answered
from aetherscale_agent.answered import MANY, Answered
from aetherscale_agent.broker import BrokerLost, Channel, Delivery
from aetherscale_protocol import topology


class Wire:
    """A channel that takes acknowledgements."""

    def __init__(self) -> None:
        self.acknowledged: list[int] = []
        self.lost = False

    def ack(self, delivery: Delivery) -> None:
        if self.lost:
            raise BrokerLost("gone")
        self.acknowledged.append(delivery.tag)

    def deliver(self, tag: int, queue: str = "computing-host.h1") -> Delivery:
        return Delivery(cast(Channel, self), queue, tag, "list-vms", pika.BasicProperties(), b"x")


def scene(check: Callable[[Wire], Awaitable[None]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks come in each round of the loop, and not every 0.2 s."""
    monkeypatch.setattr(answered, "LATER_S", 0)

    async def run() -> None:
        await check(Wire())

    asyncio.run(run())


async def look() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


def test_usually_all_are_some_time_later_in_the_brokers_order(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(wire: Wire) -> None:
        kept = Answered(lambda: MANY)
        for tag in (3, 1, 2):
            kept.add(wire.deliver(tag))
        assert wire.acknowledged == []
        await look()
        assert wire.acknowledged == [1, 2, 3]

    scene(check, monkeypatch)


def test_in_a_flood_those_are_that_the_turns_have_come_to(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(wire: Wire) -> None:
        waiting = MANY + 1
        kept = Answered(lambda: waiting)
        for tag in (7000, 20, 9000, 10):
            kept.add(wire.deliver(tag))
        await look()
        assert wire.acknowledged == [], "none has had its turn"
        for tag in (8000, 25):  # the first of them is another user's, who came behind the flood
            kept.note_turn(tag)
        await look()
        assert wire.acknowledged == [10, 20]
        waiting = MANY
        await look()
        assert wire.acknowledged == [10, 20, 7000, 9000]

    scene(check, monkeypatch)


def test_no_more_are_kept_back_than_the_prefetch_can_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(wire: Wire) -> None:
        monkeypatch.setattr(answered, "MOST", 3)
        kept = Answered(lambda: MANY + 1)
        for tag in (5, 6):
            kept.add(wire.deliver(tag))
        await look()
        assert wire.acknowledged == []
        kept.add(wire.deliver(7))
        await look()
        assert wire.acknowledged == [5, 6, 7]

    scene(check, monkeypatch)


def test_a_streams_message_is_at_once_unless_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(wire: Wire) -> None:
        waiting = MANY
        kept = Answered(lambda: waiting)
        kept.add(wire.deliver(1), soon=True)
        assert wire.acknowledged == [1]
        waiting += 1
        kept.add(wire.deliver(2), soon=True)
        await look()
        assert wire.acknowledged == [1]

    scene(check, monkeypatch)


def test_a_create_is_at_once_and_the_end_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(wire: Wire) -> None:
        kept = Answered(lambda: MANY + 1)
        kept.add(wire.deliver(1, topology.COMPETING))
        assert wire.acknowledged == [1]
        kept.add(wire.deliver(2))
        kept.acknowledge()
        assert wire.acknowledged == [1, 2]
        kept.add(wire.deliver(3))
        wire.lost = True
        kept.acknowledge()  # it comes again

    scene(check, monkeypatch)
