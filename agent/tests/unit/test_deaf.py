"""When an agent takes itself for deaf, on a clock of the test's own; and that the loop does what was decided."""

import asyncio

import pika
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aetherscale_agent.broker import BrokerLost, NotTaken, Unroutable
from aetherscale_agent.deaf import SELF_PING, Hearing, Leave, Ping, Rest, is_self_ping, listen

BEAT = 5.0
PREFETCH = 3


@pytest.fixture
def hearing() -> Hearing:
    return Hearing(BEAT, PREFETCH, now=0)


def test_a_quiet_queue_is_tried_after_two_heartbeats(hearing: Hearing) -> None:
    assert hearing.next_step(0) == Rest(10)
    assert hearing.next_step(9) == Rest(1)
    assert hearing.next_step(10) == Ping()


def test_what_is_delivered_from_the_own_queue_begins_the_quiet_anew(hearing: Hearing) -> None:
    hearing.heard(9, own=True)
    assert hearing.next_step(10) == Rest(9)


def test_what_others_are_given_too_says_nothing_about_the_own_queue(hearing: Hearing) -> None:
    hearing.heard(9, own=False)
    assert hearing.next_step(10) == Ping()


def test_a_ping_that_comes_back_is_well(hearing: Hearing) -> None:
    hearing.pinged(10)
    assert hearing.next_step(10) == Rest(10)
    hearing.heard(11, own=True)
    assert hearing.next_step(11) == Rest(10)
    assert hearing.next_step(21) == Ping()


def test_silence_after_a_ping_is_deafness_and_says_for_how_long(hearing: Hearing) -> None:
    hearing.pinged(10)
    assert hearing.next_step(19.9) == Rest(pytest.approx(0.1))
    assert hearing.next_step(20) == Leave("deaf: nothing was delivered for 20 s, not even a ping to itself")


def test_in_a_flood_of_its_own_queue_the_ping_may_wait_its_turn(hearing: Hearing) -> None:
    hearing.pinged(10)
    hearing.heard(19.9, own=True)
    assert hearing.next_step(25) == Rest(pytest.approx(4.9))


def test_what_other_queues_deliver_does_not_answer_a_ping(hearing: Hearing) -> None:
    """A ping that nobody consumes dies, and comes back by the queue of the undeliverable, which this agent consumes."""
    hearing.pinged(10)
    hearing.heard(12, own=False)
    assert isinstance(hearing.next_step(20), Leave)


def test_a_full_prefetch_is_not_deafness() -> None:
    async def run() -> None:
        hearing = Hearing(BEAT, PREFETCH, now=0)
        gate = asyncio.Event()

        async def work() -> None:
            await gate.wait()

        tasks = [asyncio.ensure_future(hearing.hold(work())) for _ in range(PREFETCH)]
        await asyncio.sleep(0)
        assert hearing.next_step(10) == Rest(10)  # not tried: it would not be delivered
        hearing.pinged(11)
        assert hearing.next_step(99) == Rest(10)  # nor given up, if it filled after the ping
        gate.set()
        await asyncio.gather(*tasks)
        assert hearing.next_step(109) == Ping()
        hearing.pinged(109)
        assert isinstance(hearing.next_step(119), Leave)

    asyncio.run(run())


def test_what_is_held_counts_once_it_failed_too() -> None:
    async def run() -> None:
        hearing = Hearing(BEAT, 1, now=0)

        async def fail() -> None:
            raise BrokerLost("gone")

        with pytest.raises(BrokerLost):
            await hearing.hold(fail())
        assert hearing.next_step(10) == Ping()

    asyncio.run(run())


moments = st.lists(st.tuples(st.floats(0.01, 12), st.sampled_from(["own", "other", "nothing"])), max_size=30)


@given(moments)
def test_it_never_leaves_while_its_own_queue_is_heard_within_the_limit(course: list[tuple[float, str]]) -> None:
    """And if it leaves, nothing of its own was delivered for two heartbeats and two more."""
    hearing, now, own = Hearing(BEAT, PREFETCH, now=0), 0.0, 0.0
    for pause, what in course:
        now += pause
        if what != "nothing":
            hearing.heard(now, own=what == "own")
        own = now if what == "own" else own
        step = hearing.next_step(now)
        if isinstance(step, Ping):
            hearing.pinged(now)
        if isinstance(step, Leave):
            assert now - own >= hearing.quiet_s + hearing.limit_s - 1e-6
            return


# The loop


class Speaker:
    """A broker of whom the agent hears as the test says."""

    def __init__(self, hearing: Hearing, *outcomes: object) -> None:
        self.hearing = hearing
        self.outcomes = list(outcomes)
        self.pings = 0

    async def ping_itself(self) -> None:
        self.pings += 1
        outcome = self.outcomes.pop(0)
        if outcome == "hang":
            await asyncio.sleep(60)
        if isinstance(outcome, Exception):
            raise outcome
        if outcome == "delivered":
            asyncio.get_running_loop().call_later(0.001, lambda: self.hearing.heard(self.clock(), own=True))

    @staticmethod
    def clock() -> float:
        return asyncio.get_running_loop().time()


def listened(*outcomes: object) -> tuple[str, int]:
    """Why the loop ended, and how many pings it took."""

    async def run() -> tuple[str, int]:
        hearing = Hearing(0.01, PREFETCH, now=Speaker.clock())
        speaker = Speaker(hearing, *outcomes)
        with pytest.raises(BrokerLost) as caught:
            async with asyncio.timeout(10):
                await listen(hearing, speaker, Speaker.clock)
        return str(caught.value), speaker.pings

    return asyncio.run(run())


@pytest.mark.parametrize("last", ["nothing", "hang", NotTaken("full")], ids=str)
def test_it_pings_until_a_ping_does_not_come_back(last: object) -> None:
    reason, pings = listened("delivered", "delivered", last)
    assert reason.startswith("deaf: nothing was delivered")
    assert pings == 3


def test_a_queue_that_is_no_longer_bound_is_named_at_once() -> None:
    assert listened(Unroutable("host.h1")) == ("deaf: this host's queue is not bound to host.h1 any more", 1)


# What is a ping to oneself


def test_only_a_message_that_nobody_waits_for_is_one() -> None:
    own = "agent-h1"
    assert is_self_ping(pika.BasicProperties(type=SELF_PING, user_id=own), own)
    assert not is_self_ping(pika.BasicProperties(type=SELF_PING, user_id=own, reply_to="amq.rabbitmq.reply-to.x"), own)
    assert not is_self_ping(pika.BasicProperties(user_id=own), own)


def test_an_operator_can_not_ping_in_an_agents_name() -> None:
    assert not is_self_ping(pika.BasicProperties(type=SELF_PING, user_id="operator"), "agent-h1")
    assert not is_self_ping(pika.BasicProperties(type=SELF_PING), "agent-h1")
