"""How often a program waits for its broker, counted exactly: its answers come only when it does nothing else any more.

A wire that holds (see `proxy`) keeps what the broker says. It is let go, all at once, when the broker has answered
all that it was asked, and the program does nothing but wait: every thread of it sleeps, all that it sent has been
read here, and it has read all that it was sent. Each time that this lets an answer go is one round trip. However slow
the machine is, and whichever of two answers is quicker, there are as many as the program makes one after the other.

Deliveries are let go alike, and are no round trip: nobody knows when an agent, or a client, will say something.
"""

import contextlib
import itertools
from collections import deque
from pathlib import Path

from pika import frame, spec

_ANSWERED = (spec.Connection.StartOk,)
"""What is answered, too, of the methods that pika does not call synchronous."""
_ANSWERS = (spec.Connection.Start, spec.Connection.Tune, spec.Basic.GetEmpty)
"""What is an answer, too, of the methods whose name does not end in `Ok`."""


class Asked:
    """What was asked on one connection and is not answered yet.

    Each question counts or does not (`counts`): what an agent tells on its own is answered, too.
    """

    def __init__(self) -> None:
        self._methods: dict[int, deque[bool]] = {}  #: by channel; they are answered in their order
        self._publishes: dict[int, dict[int, bool]] = {}  #: by channel that confirms, and number
        self._numbers: dict[int, itertools.count[int]] = {}
        self.answered = 0  #: how many of those that count

    def is_open(self) -> bool:
        """Whether the broker owes an answer."""
        return any(self._methods.values()) or any(self._publishes.values())

    def ask(self, sent: object, counts: bool) -> None:
        """Note what went to the broker."""
        if isinstance(sent, frame.ProtocolHeader):
            self._methods[0] = deque([True])
        if not isinstance(sent, frame.Method):
            return
        channel, method = sent.channel_number, sent.method
        if isinstance(method, spec.Basic.Publish):
            if channel in self._numbers:
                self._publishes[channel][next(self._numbers[channel])] = counts
        elif isinstance(method, _ANSWERED) or (method.synchronous and not getattr(method, "nowait", False)):
            self._methods.setdefault(channel, deque()).append(counts)
        if isinstance(method, spec.Confirm.Select):
            self._numbers[channel], self._publishes[channel] = itertools.count(1), {}

    def answer(self, sent: object) -> None:
        """Note what came from the broker."""
        if not isinstance(sent, frame.Method):
            return
        channel, method = sent.channel_number, sent.method
        if isinstance(method, spec.Basic.Ack | spec.Basic.Nack):
            open_ = self._publishes[channel]
            tags = [tag for tag in open_ if tag <= method.delivery_tag] if method.multiple else [method.delivery_tag]
            self.answered += sum(open_.pop(tag) for tag in tags)
        elif isinstance(method, spec.Connection.Close):
            for each in [*self._methods, *self._publishes]:
                self._end(each)
        elif isinstance(method, spec.Channel.Close | spec.Channel.CloseOk):
            self._end(channel)
        elif isinstance(method, _ANSWERS) or method.NAME.endswith("Ok"):
            self.answered += self._methods[channel].popleft()

    def _end(self, channel: int) -> None:
        self.answered += any(self._methods.pop(channel, ())) or any(self._publishes.pop(channel, {}).values())
        self._numbers.pop(channel, None)


class Sleeper:
    """A process, looked at from outside."""

    def __init__(self, pid: int) -> None:
        self._tasks = Path(f"/proc/{pid}/task")
        self._sockets = Path(f"/proc/{pid}/net/tcp")

    def waits(self, port: int) -> bool:
        """Whether it does nothing, and nothing is under way on connections with this port of this machine.

        It has not woken between two looks, and between these the sockets were empty.
        """
        with contextlib.suppress(OSError):  # a thread, or all of it, has just ended
            before = self._look()
            return before is not None and not self._under_way(port) and self._look() == before
        return False

    def _look(self) -> dict[str, str] | None:
        """How often each of its threads has gone to sleep; None if one does not sleep."""
        seen = {}
        for task in self._tasks.iterdir():
            status = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines() if ":\t" in line)
            if not status["State"].startswith("S"):
                return None
            seen[task.name] = status["voluntary_ctxt_switches"]
        return seen

    def _under_way(self, port: int) -> bool:
        """Whether a socket there has bytes that were not read, or not acknowledged by the other's system."""
        wanted = f"{port:04X}"
        for line in self._sockets.read_text().splitlines()[1:]:
            _, here, there, _, queues, *_ = line.split()
            if queues != "00000000:00000000" and wanted in (here[-4:], there[-4:]):
                return True
        return False
