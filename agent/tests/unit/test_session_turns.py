"""What a session does with a flood: its sender waits, others don't, and what is at work at once is bounded."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pika
import pytest

from aetherscale_agent import session as session_module
from aetherscale_agent import unread as unread_module
from aetherscale_agent.answered import MANY
from aetherscale_agent.broker import Channel, Connection, Delivery
from aetherscale_agent.session import LARGE, MOST_AT_WORK, Session
from aetherscale_agent.turns import Turns
from aetherscale_testing.world import World


class Wire:
    """A channel that takes acknowledgements."""

    def __init__(self) -> None:
        self.acknowledged: list[int] = []

    def ack(self, delivery: Delivery) -> None:
        self.acknowledged.append(delivery.tag)


def delivery(user: str, number: int, size: int = 2, wire: Wire | None = None) -> Delivery:
    properties = pika.BasicProperties(user_id=user, reply_to=user)
    return Delivery(cast(Channel, wire), "computing-host.h1", number, "vm.sgeqxcfi", properties, b"x" * size)


class Desk:
    """A session without a broker; its commands end when they are told to."""

    def __init__(self, world: World) -> None:
        self.begun: list[Delivery] = []
        self.go_on = asyncio.Event()
        connection = SimpleNamespace(lost=asyncio.get_running_loop().create_future(), drop=print)
        self.session = Session(cast(Connection, connection), world.agent(), "agent-h1", self._handle)

    async def _handle(self, _session: Session, delivery: Delivery) -> None:
        self.begun.append(delivery)
        await self.go_on.wait()

    def users(self) -> list[str]:
        return [delivery.properties.user_id for delivery in self.begun]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing more comes here while a flood is listened to."""
    monkeypatch.setattr(session_module, "LISTENING_S", 0.0)


async def rest() -> None:
    for _ in range(2000):
        await asyncio.sleep(0)


def test_slow_commands_of_one_user_are_bounded_and_hold_nobody_else(tmp_path: Path) -> None:
    async def scene() -> None:
        desk = Desk(World(tmp_path))
        for number in range(3 * MOST_AT_WORK):
            desk.session._on_delivery(delivery("mallory", number))
        await rest()
        assert desk.users() == ["mallory"] * MOST_AT_WORK
        desk.session._on_delivery(delivery("alice", 1))
        await rest()
        assert desk.users()[-1] == "alice"
        desk.go_on.set()
        await rest()
        assert len(desk.begun) == 3 * MOST_AT_WORK + 1
        assert [one.tag for one in desk.begun if one.properties.user_id == "mallory"] == list(range(3 * MOST_AT_WORK))

    asyncio.run(scene())


def test_what_is_given_up_waits_in_its_own_senders_line(tmp_path: Path) -> None:
    async def scene() -> None:
        desk = Desk(World(tmp_path))
        desk.session._turns = Turns(1000, desk.session._unread.give_up)
        desk.go_on.set()
        for number in range(100):
            desk.session._wait_for_turn(delivery("mallory", number, 100))
        for number in range(3):
            desk.session._wait_for_turn(delivery("alice", number, 100))
        desk.session._begin_soon()
        await rest()
        assert len(desk.begun) == 103
        assert "mallory" in {one.properties.user_id for one in desk.begun if one.is_shed}
        assert not [one for one in desk.begun if one.properties.user_id == "alice" and one.is_shed]
        last = max(place for place, user in enumerate(desk.users()) if user == "alice")
        assert last < 6  # turns go round two lines
        assert [one.tag for one in desk.begun if one.properties.user_id == "mallory"] == list(range(100))

    asyncio.run(scene())


def test_large_messages_that_are_at_work_are_fewer(tmp_path: Path) -> None:
    """Each is kept until it is over: 200 of 1 MiB would be more than an agent may have."""

    async def scene() -> None:
        desk = Desk(World(tmp_path))
        for number in range(MOST_AT_WORK):
            desk.session._on_delivery(delivery("mallory", number, 10 * LARGE))
            desk.session._on_delivery(delivery("agent-h2", number, 10 * LARGE))
        await rest()
        assert MOST_AT_WORK // 11 <= desk.users().count("mallory") < MOST_AT_WORK // 11 + 5
        assert desk.users().count("agent-h2") == MOST_AT_WORK, "hosts hand creates on, and wait for each other"
        desk.go_on.set()
        await rest()
        assert desk.users().count("mallory") == MOST_AT_WORK

    asyncio.run(scene())


def test_what_is_given_up_is_acknowledged_in_its_turn_unless_the_broker_would_hold_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        desk, wire = Desk(World(tmp_path)), Wire()
        monkeypatch.setattr(unread_module, "MOST_UNREAD", 500)
        desk.session._turns = Turns(1000, desk.session._unread.give_up)
        desk.go_on.set()
        for number in range(20):
            desk.session._wait_for_turn(delivery("mallory", number, 100, wire))
        assert wire.acknowledged == [10, 11, 12, 13, 14]
        monkeypatch.setattr(session_module, "HOST_PREFETCH", 20)
        for number in range(20, 23):  # no more are let in for that while so many wait
            desk.session._wait_for_turn(delivery("mallory", number, 100, wire))
        assert wire.acknowledged == [10, 11, 12, 13, 14]
        desk.session._begin_soon()
        await rest()
        for one in desk.begun:
            if one.is_shed:
                desk.session.acknowledge_later(one)
        desk.session._answered.acknowledge()
        assert wire.acknowledged == list(range(10, 23)), "each once"


def test_an_empty_message_that_is_given_up_is_acknowledged_too(tmp_path: Path) -> None:
    async def scene() -> None:
        desk, wire = Desk(World(tmp_path)), Wire()
        desk.session.acknowledge_later(desk.session._unread.give_up(delivery("mallory", 7, 0, wire)))
        desk.session._answered.acknowledge()
        assert wire.acknowledged == [7]

    asyncio.run(scene())


@pytest.mark.parametrize(("waiting", "begins"), [(MANY, True), (MANY + 1, False)])
def test_a_flood_that_comes_in_is_listened_to_before_more_of_it_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waiting: int, begins: bool
) -> None:
    async def scene() -> None:
        desk = Desk(World(tmp_path))
        monkeypatch.setattr(session_module, "LISTENING_S", 3600.0)
        for number in range(waiting):
            desk.session._wait_for_turn(delivery("mallory", number))
        desk.session._begin_soon()
        desk.go_on.set()
        await rest()
        assert len(desk.begun) == (waiting if begins else 0)

    asyncio.run(scene())


def test_headers_count_too_and_a_message_that_is_given_up_keeps_none(tmp_path: Path) -> None:
    async def scene() -> None:
        desk = Desk(World(tmp_path))
        desk.session._turns = Turns(1 << 20, desk.session._unread.give_up)
        for number in range(20):
            heavy = delivery("guest", number)
            heavy.properties.headers = {f"h{n}": ["x" * 10] for n in range(500)}
            desk.session._wait_for_turn(heavy)
        assert desk.session._unread.size > len(desk.session._unread._kept) * 5000
        shed = [desk.session._turns.take() for _ in range(20)]
        assert 5 < sum(one.is_shed for one in shed) < 20
        assert not [one for one in shed if one.is_shed and (one.headers or one.body)]
        assert all(one.properties.reply_to == "guest" for one in shed)

    asyncio.run(scene())


def test_the_bounds_fit_the_prefetch() -> None:
    assert MOST_AT_WORK < session_module.HOST_PREFETCH
