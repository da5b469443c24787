"""Noticing that nothing is delivered any more, although the connection looks healthy.

When the host's own queue was quiet for a while, the agent publishes a ping to itself by way of the broker. If then
nothing at all is delivered, the session ends with `deaf: …`, and the next one declares and binds everything anew.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from aetherscale_agent.broker import BrokerLost, NotTaken, Unroutable
from aetherscale_agent.envelope import is_agent

SELF_PING = "self-ping"
"""The `type` of an agent's message to itself. It carries no command and no reply_to, and is never answered."""

QUIET_BEATS = LIMIT_BEATS = 2
"""In heartbeats: how long the host's queue may be quiet before it is tried, and how long a try may take."""


class Step:
    """What to do next."""


@dataclass(frozen=True)
class Rest(Step):
    """Nothing, for so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Ping(Step):
    """Ping yourself, and say so (`pinged`)."""


@dataclass(frozen=True)
class Leave(Step):
    """Give the connection up."""

    reason: str


class Hearing:
    """What was heard, and when: pure. Times in seconds, on any clock that never goes back."""

    def __init__(self, heartbeat_s: float, prefetch: int, now: float, held: Callable[[], int] = lambda: 0) -> None:
        """`held`: how many deliveries wait for their turn, or for their acknowledgement."""
        self.quiet_s = QUIET_BEATS * heartbeat_s
        self.limit_s = LIMIT_BEATS * heartbeat_s
        self._prefetch = prefetch
        self._in_hand = 0  #: deliveries of the host's queue that are being handled
        self._held = held
        self._quiet_since = now
        self._pinged: float | None = None

    def heard(self, now: float, *, own: bool) -> None:
        """Something was delivered; `own`: from the host's queue."""
        if own:  # whatever it is, it shows that the queue is consumed: in a flood the ping waits its turn
            self._pinged, self._quiet_since = None, now

    def pinged(self, now: float) -> None:
        """A ping is being published."""
        self._pinged = now

    async def hold(self, work: Awaitable[None]) -> None:
        """Do what a delivery of the host's queue asks for; until then it counts against the prefetch."""
        self._in_hand += 1
        try:
            await work
        finally:
            self._in_hand -= 1

    def next_step(self, now: float) -> Step:
        """What to do next."""
        if self._in_hand + self._held() >= self._prefetch:  # no more is delivered until some of it is acknowledged
            self._pinged, self._quiet_since = None, now
        if self._pinged is not None:
            left = self._pinged + self.limit_s - now
            return Rest(left) if left > 0 else Leave(self._silence(now))
        left = self._quiet_since + self.quiet_s - now
        return Rest(left) if left > 0 else Ping()

    def _silence(self, now: float) -> str:
        return f"deaf: nothing was delivered for {now - self._quiet_since:.0f} s, not even a ping to itself"


class Speaker(Protocol):
    """What can publish the ping."""

    async def ping_itself(self) -> None:
        """Publish a ping to the host's own queue.

        :raise Unroutable: when that is not bound to its key.
        :raise NotTaken: when it is full.
        """


async def listen(hearing: Hearing, speaker: Speaker, clock: Callable[[], float] = time.monotonic) -> None:
    """Ping and wait, until cancelled.

    :raise BrokerLost: when nothing is delivered any more; its text is the reason to give.
    """
    while True:
        match hearing.next_step(clock()):
            case Rest(seconds):
                await asyncio.sleep(seconds)
            case Ping():
                hearing.pinged(clock())
                await _ping(speaker, hearing.limit_s)
            case Leave(reason):
                raise BrokerLost(reason)


async def _ping(speaker: Speaker, limit_s: float) -> None:
    try:
        async with asyncio.timeout(limit_s):
            await speaker.ping_itself()
    except Unroutable as error:
        raise BrokerLost(f"deaf: this host's queue is not bound to {error} any more") from None
    except (NotTaken, TimeoutError):
        pass  # what is delivered meanwhile decides


def is_self_ping(properties: Any, own_user: str) -> bool:
    """Whether this is an agent's ping to itself, of whatever session. Nobody waits for an answer to it."""
    return properties.type == SELF_PING and not properties.reply_to and is_agent(properties.user_id or "", own_user)
