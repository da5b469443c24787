"""What a program says to its broker, counted on the wire: the methods that it sends, the messages that it gets, and how
often it waits for an answer.

    tally = Tally(wire)                  # a wire of `proxy`, before anything connects to it
    tally.client = Sleeper(pid)          # who does: the broker's answers are held back until this is known
    ...
    counts = tally.settle(expected)      # {"Basic.Publish": 1, "Queue.Declare": 2, "Basic.Deliver": 1, …}

Only plain AMQP can be read. Not counted, because how many there are is a matter of timing: heartbeats, the broker's
confirms (it may acknowledge several messages with one), what an agent tells its queue `computing-known.*`, once a
second at most, and when it forgets a VM that was deleted. What the broker answers to a method is not counted either: it
is one for one.
"""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Mapping

from pika import frame

from aetherscale_protocol import names
from aetherscale_testing.proxy import Wire
from aetherscale_testing.round_trips import Asked, Sleeper

ROUND_TRIPS = "round-trips"
FROM_BROKER = frozenset({"Basic.Deliver", "Basic.Return", "Basic.Cancel", "Channel.Close", "Connection.Close"})
"""What of the broker's words is no answer to a method."""

LATE = "Queue.Unbind"
"""What an agent does with a deleted VM's key a while later, when it forgets the VM."""

QUIET_S = 3.0
"""How long nothing may happen before what was expected is not waited for any more."""
LOOK_S = 0.005
HELD_LOOK_S = 0.001

_KNOWN = names.known_queue("")


class Tally:
    """Counts what passes a wire, on all its connections together."""

    def __init__(self, wire: Wire) -> None:
        self._counts: Counter[str] = Counter()
        self._settled: Counter[str] = Counter()
        self._buffers: dict[tuple[int, bool], bytes] = {}
        self._asked: dict[int, Asked] = {}
        self._wire = wire
        self._is_looking = False
        self.client: Sleeper | None = None
        self._changed = time.monotonic()
        self._lock = threading.Lock()
        wire.watch, wire.hold = self._see, self._hold

    def settle(self, expected: Mapping[str, int] | None, quiet: float = QUIET_S) -> Counter[str]:
        """What was counted since the last call, once it is what is expected, or nothing came for `quiet` seconds."""
        called = time.monotonic()
        while True:
            with self._lock:
                new = self._counts - self._settled
                if new == expected or time.monotonic() - max(called, self._changed) >= quiet:
                    self._settled += new
                    return new
            time.sleep(LOOK_S)

    def forget(self, quiet: float) -> None:
        """Leave out what was counted until now, once nothing has come for so many seconds."""
        while (left := self._changed + quiet - time.monotonic()) > 0:
            time.sleep(left)
        self.settle(None, 0)

    # in the relaying thread

    def _see(self, connection: int, to_broker: bool, data: bytes) -> None:
        where = (connection, to_broker)
        with self._lock:
            self._changed = time.monotonic()
            rest = self._buffers.get(where, b"") + data
            size, found = frame.decode_frame(rest)
            while size:
                rest = rest[size:]
                self._ask(connection, to_broker, found)
                if isinstance(found, frame.Method) and _counts(found.method, to_broker):
                    self._counts[found.method.NAME] += 1
                size, found = frame.decode_frame(rest)
            self._buffers[where] = rest

    def _ask(self, connection: int, to_broker: bool, found: object) -> None:
        if isinstance(found, frame.ProtocolHeader):
            self._asked.pop(connection, None)  # another one had its number
        asked = self._asked.setdefault(connection, Asked())
        if to_broker:
            asked.ask(found, isinstance(found, frame.Method) and _counts(found.method, to_broker))
        else:
            asked.answer(found)

    def _hold(self) -> None:
        if not self._is_looking:
            self._is_looking = True
            self._look_later()

    def _look_later(self) -> None:
        asyncio.get_running_loop().call_later(HELD_LOOK_S, self._look)

    def _look(self) -> None:
        if not self._wire.is_holding():  # who should have had it is gone
            self._is_looking = False
            return
        live = [self._asked[connection] for connection in self._wire.connections() if connection in self._asked]
        if any(asked.is_open() for asked in live) or self.client is None or not self.client.waits(self._wire.port):
            self._look_later()
            return
        with self._lock:
            self._changed = time.monotonic()
            self._counts[ROUND_TRIPS] += any(asked.answered for asked in live)
        for asked in live:
            asked.answered = 0
        self._is_looking = False
        self._wire.release()


def _counts(method: object, to_broker: bool) -> bool:
    name = str(getattr(method, "NAME", ""))
    where = getattr(method, "routing_key", None) or getattr(method, "queue", None) or ""
    return (to_broker or name in FROM_BROKER) and name != LATE and not str(where).startswith(_KNOWN)
