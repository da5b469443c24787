"""Stay connected: again and again, with jittered back-off, saying so once per cause."""

import asyncio
import logging
import random
from collections.abc import Callable

from aetherscale_agent.answerer import Answerer
from aetherscale_agent.broker import BrokerLost, Connection, Declined
from aetherscale_agent.host import Host
from aetherscale_agent.notify import notify
from aetherscale_agent.session import Handler, NameTaken, OnStream, Session
from aetherscale_protocol.errors import Refused
from aetherscale_protocol.settings import BrokerSettings

log = logging.getLogger(__name__)

FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 5.0
OPEN_TIMEOUT_S = 30.0
"""How long a broker may take to let an agent declare and consume; one that has just started may be slow."""


class Backoff:
    """Delays that double, up to a limit, each drawn at random from its upper half: 200 agents don't come at once."""

    def __init__(self, draw: Callable[[float, float], float] = random.uniform) -> None:
        self._draw = draw
        self._delay = FIRST_DELAY_S

    def next(self) -> float:
        """The next delay, in seconds."""
        delay, self._delay = self._delay, min(self._delay * 2, LONGEST_DELAY_S)
        return self._draw(delay / 2, delay)

    def reset(self) -> None:
        """Start again: it worked."""
        self._delay = FIRST_DELAY_S


class Connector:
    """Opens connections to one broker, waiting between tries.

    What works for one need not be waited for by its `peer`: an agent that can hear should be able to answer.
    """

    def __init__(self, settings: BrokerSettings, *, name: str, heartbeat_s: int) -> None:
        self._settings = settings
        self._name = name
        self.heartbeat_s = heartbeat_s
        self._backoff = Backoff()
        self._said = ""
        self._pause: asyncio.Future[None] | None = None
        self.peer: Connector | None = None  #: the agent's other one, to the same broker

    async def connect(self) -> Connection:
        """A connection, however long it takes."""
        while True:
            try:
                return await Connection.open(self._settings, name=self._name, heartbeat_s=self.heartbeat_s)
            except BrokerLost as error:
                await self.wait(str(error))

    async def wait(self, why: str) -> None:
        """Say why, if that is news, and wait."""
        level = logging.DEBUG if why == self._said else logging.WARNING
        log.log(level, "%s at %s:%s: %s; trying on", self._name, self._settings.host, self._settings.port, why)
        self._said = why
        delay = self._backoff.next()
        log.debug("%s: next try in %.3f s", self._name, delay)
        pause = asyncio.ensure_future(asyncio.sleep(delay))
        if delay > FIRST_DELAY_S:  # a short one is kept, or two that work and fail in turn would not wait at all
            self._pause = pause
        try:
            await asyncio.wait({pause})
        finally:
            pause.cancel()
            self._pause = None

    def worked(self) -> None:
        """It works: the next failure is news, and is answered quickly; and the peer waits no longer."""
        self._said = ""
        self._backoff.reset()
        if self.peer is not None and self.peer._pause is not None:
            self.peer._pause.cancel()


async def stay_connected(
    connector: Connector,
    answerer: Answerer,
    host: Host,
    user: str,
    handler: Handler,
    *,
    fleet_size: int,
    on_stream: OnStream,
) -> None:
    """Run one session after the other, until cancelled; the first when answers can be sent."""
    await answerer.connected.wait()
    while True:
        heartbeat_s = connector.heartbeat_s
        session = Session(
            await connector.connect(),
            host,
            user,
            handler,
            fleet_size=fleet_size,
            heartbeat_s=heartbeat_s,
            on_stream=on_stream,
        )
        try:
            await _open(session, connector)
            reason = await session.closed()
        finally:
            session.cut("the agent stops")
        notify(f"STATUS=not connected: {reason}")
        await connector.wait(reason)


async def _open(session: Session, connector: Connector) -> None:
    """Open a session; if that fails, its connection is dropped with the reason."""
    name = session.host.name
    try:
        async with asyncio.timeout(OPEN_TIMEOUT_S):
            log.info(await session.open())
        notify(f"STATUS=connected as {name}")
        connector.worked()
    except NameTaken:
        why = f"another agent is connected as {name} (or the broker has not noticed yet that it is gone)"
        session.connection.drop(f"{why}: this one is refused")
    except (BrokerLost, Declined, Refused) as error:
        session.connection.drop(str(error))
    except TimeoutError:
        session.connection.drop(f"the broker did not do what it was asked within {OPEN_TIMEOUT_S:.0f} s")


async def answer_forever(answerer: Answerer, connector: Connector) -> None:
    """Send answers on one connection after the other, until cancelled."""
    while True:
        connection = await connector.connect()
        try:
            await answerer.serve(connection, connector.worked)
        except (BrokerLost, Declined) as error:
            connection.drop(str(error))
            await connector.wait(str(error))
