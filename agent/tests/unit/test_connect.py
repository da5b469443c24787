"""Staying connected: how long an agent waits between its tries, and how often it says why."""

import asyncio
import logging
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aetherscale_agent import connect
from aetherscale_agent.broker import BrokerLost, Connection
from aetherscale_agent.connect import FIRST_DELAY_S, LONGEST_DELAY_S, Backoff, Connector
from aetherscale_protocol.settings import BrokerSettings

SOME = settings(max_examples=40, deadline=None, database=None)


def most(_low: float, high: float) -> float:
    return high


def test_delays_double_up_to_a_limit() -> None:
    backoff = Backoff(draw=most)
    assert [backoff.next() for _ in range(8)] == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0])


def test_what_worked_starts_it_again() -> None:
    backoff = Backoff(draw=most)
    for _ in range(9):
        backoff.next()
    backoff.reset()
    assert backoff.next() == FIRST_DELAY_S


@SOME
@given(st.randoms(use_true_random=False), st.integers(1, 20))
def test_each_delay_is_drawn_from_the_upper_half(source: random.Random, tries: int) -> None:
    drawn, highest = Backoff(draw=source.uniform), Backoff(draw=most)
    for _ in range(tries):
        limit = highest.next()
        assert limit / 2 <= drawn.next() <= limit <= LONGEST_DELAY_S


def test_two_hundred_agents_do_not_come_at_once() -> None:
    assert len({Backoff().next() for _ in range(200)}) > 190


def test_it_tries_until_it_is_connected_and_says_each_cause_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    causes = ["refused", "refused", "unreachable", "refused"]
    slept: list[float] = []

    async def open_(*_args: object, **_more: object) -> Connection:
        if causes:
            raise BrokerLost(causes.pop(0))
        return Connection.__new__(Connection)

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def scenario() -> None:
        monkeypatch.setattr(Connection, "open", open_)
        monkeypatch.setattr(connect.asyncio, "sleep", sleep)  # type: ignore[attr-defined]
        connector = Connector(BrokerSettings(password="hunter2-hunter2"), name="me", heartbeat_s=5)
        assert isinstance(await connector.connect(), Connection)

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert [r.getMessage() for r in caplog.records] == [
        f"me at localhost:5672: {cause}; trying on" for cause in ("refused", "unreachable", "refused")
    ]
    assert len(slept) == 4
    assert slept[-1] > slept[0]


def test_after_it_worked_the_same_cause_is_news_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def sleep(_seconds: float) -> None:
        return

    async def scenario() -> None:
        monkeypatch.setattr(connect.asyncio, "sleep", sleep)  # type: ignore[attr-defined]
        connector = Connector(BrokerSettings(), name="me", heartbeat_s=5)
        await connector.wait("lost")
        await connector.wait("lost")
        connector.worked()
        await connector.wait("lost")

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert len(caplog.records) == 2


def pair() -> tuple[Connector, Connector]:
    one, other = (Connector(BrokerSettings(), name=name, heartbeat_s=5) for name in ("one", "other"))
    one.peer, other.peer = other, one
    return one, other


def wear_out(connector: Connector) -> None:
    """Let its next delay be a long one."""
    for _ in range(9):
        connector._backoff.next()


def test_what_works_for_one_connection_is_not_waited_for_by_the_other() -> None:
    async def scenario() -> None:
        one, other = pair()
        wear_out(other)
        waiting = asyncio.create_task(other.wait("refused"))
        await asyncio.sleep(0)
        one.worked()
        async with asyncio.timeout(LONGEST_DELAY_S / 4):
            await waiting

    asyncio.run(scenario())


def test_two_connections_that_work_and_fail_in_turn_wait_all_the_same() -> None:
    async def scenario() -> None:
        one, other = pair()
        waiting = asyncio.create_task(other.wait("lost"))
        await asyncio.sleep(0)
        begin = asyncio.get_running_loop().time()
        one.worked()
        await waiting
        assert asyncio.get_running_loop().time() - begin > FIRST_DELAY_S / 4

    asyncio.run(scenario())


def test_a_wait_that_is_cancelled_leaves_nothing_behind() -> None:
    async def scenario() -> None:
        one, other = pair()
        wear_out(other)
        waiting = asyncio.create_task(other.wait("refused"))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1
        one.worked()

    asyncio.run(scenario())
