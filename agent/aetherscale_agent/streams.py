"""The open streams of this host: consoles and tunnels. They last as long as the agent's process, and no longer.

A stream's messages are no commands: acknowledged when that is cheap, journalled nowhere, and lost with the connection.
"""

import asyncio
import contextlib
import logging
import os
from collections import Counter, deque
from typing import Any, Protocol

from aetherscale_agent.audit import Audit, Entry
from aetherscale_agent.broker import BrokerLost, Delivery
from aetherscale_agent.consoles import Consoles
from aetherscale_agent.envelope import Incoming, check_reply_to, died_in
from aetherscale_agent.host import Host
from aetherscale_agent.pipes import Pipe, SocketPipe
from aetherscale_agent.ports import HypervisorError, NotThere
from aetherscale_agent.steps import step
from aetherscale_agent.stream import End, Opener, Stream
from aetherscale_protocol.answers import StreamOpened
from aetherscale_protocol.errors import Refused
from aetherscale_protocol.options import OpenStream
from aetherscale_protocol.streams import AGENT_WINDOW, Frame, StreamError, read_frame

log = logging.getLogger(__name__)

MOST_OF_A_VM = 16
MOST = 128
"""How many streams one VM, and all of a host's together, may have open."""

MOST_FAREWELLS, FAREWELLS_AT_ONCE = 10_000, 4
"""How many messages of streams that are not open may wait to be told so; and how many are told before the broker is
listened to again: as they come, thousands of them would hold up everybody whose commands come behind them."""

ON = ("running", "stopping", "paused")


class Outlet(Protocol):
    """What sends a stream's messages to its client."""

    def post(self, reply_to: str, correlation_id: str | None, headers: dict[str, Any], body: bytes) -> None:
        """Send at once or never.

        :raise BrokerLost: when there is no connection.
        """


class Streams:
    """The table of open streams."""

    def __init__(self, host: Host, outlet: Outlet, audit: Audit | None = None) -> None:
        self._host = host
        self._audit = audit or Audit()
        self._outlet = outlet
        self._consoles = Consoles(host.hypervisor)
        self._open: dict[str, Stream] = {}
        self._farewells: deque[tuple[str, str | None, Frame]] = deque(maxlen=MOST_FAREWELLS)
        self._taken: Counter[str] = Counter()  #: places by VM, those of streams that are being opened too

    async def open(self, incoming: Incoming) -> StreamOpened:
        """Open what is asked for; it is served from now on.

        :raise Refused: when there is no such VM, it is off, or what the stream should lead to is not there.
        """
        options = incoming.request.options
        assert isinstance(options, OpenStream)
        vm_id = options.vm_id
        self._check(options)
        self._taken[vm_id] += 1
        try:
            with step("stream.dial", vm_id):
                pipe = await self._find_pipe(options)
        except BaseException as error:
            self._leave(vm_id)
            if isinstance(error, NotThere):
                raise Refused("wrong-state", str(error), error.hint) from None
            if isinstance(error, HypervisorError):
                raise Refused("failed", str(error)) from None
            raise
        with step("stream.serve", vm_id):
            stream = self._begin(incoming, options, pipe)
        return StreamOpened(stream=stream, window=AGENT_WINDOW)

    def _check(self, options: OpenStream) -> None:
        vm_id = options.vm_id
        state = self._host.get(vm_id).state
        if state not in ON:
            hint = "repeat it in a moment" if state in ("creating", "starting") else f"start-vm {vm_id} starts it"
            raise Refused("wrong-state", f"VM {vm_id} is {state}: there is nothing to connect to", hint)
        if state == "paused" and options.port is not None:
            hint = f"resume-vm {vm_id} lets it go on"
            raise Refused("wrong-state", f"VM {vm_id} is paused: its port {options.port} answers nobody", hint)
        if self._taken[vm_id] >= MOST_OF_A_VM:
            raise Refused("no-capacity", f"VM {vm_id} has {MOST_OF_A_VM} streams open, the most there may be", _CLOSE)
        if self._taken.total() >= MOST:
            raise Refused("no-capacity", f"host {self._host.name} has {MOST} streams open, the most it serves", _CLOSE)

    async def _find_pipe(self, options: OpenStream) -> Pipe:
        if options.port is not None:
            return SocketPipe(*await self._host.hypervisor.dial(options.vm_id, options.port))
        return await self._consoles.attach(options.vm_id, options.lines, read_only=options.kind == "log")

    def _begin(self, incoming: Incoming, options: OpenStream, pipe: Pipe) -> str:
        opener = Opener(
            stream=os.urandom(16).hex(),
            vm_id=options.vm_id,
            what=options.kind if options.port is None else f"port {options.port}",
            user=incoming.sender,
            reply_to=incoming.reply_to,
            correlation_id=incoming.correlation_id,
        )

        def post(frame: Frame) -> None:
            self._outlet.post(opener.reply_to, opener.correlation_id, frame.headers, frame.body)

        stream = self._open[opener.stream] = Stream(opener, pipe, options.window, post)
        self._host.spawn(self._serve(stream))
        return opener.stream

    async def _serve(self, stream: Stream) -> None:
        opener = stream.opener
        end = End("it broke down")
        try:
            end = await stream.run(self._host.hypervisor.wait_off(opener.vm_id))
        finally:
            self._audit.note(
                Entry(
                    who=opener.user,
                    command="close-stream",
                    result="success",
                    vm_id=opener.vm_id,
                    reason=end.reason,
                    options=opener.what,
                    bytes_in=stream.bytes_in,
                    bytes_out=stream.bytes_out,
                )
            )
            del self._open[opener.stream]
            self._leave(opener.vm_id)

    def _leave(self, vm_id: str) -> None:
        self._taken[vm_id] -= 1
        if not self._taken[vm_id]:
            del self._taken[vm_id]

    def take(self, delivery: Delivery) -> None:
        """Take a stream's message. One of a stream that is not open here, or not the sender's, is told so."""
        try:
            frame = read_frame(delivery.headers, delivery.body)
        except StreamError as error:
            log.debug("a stream's message was dropped: %s", error)
            return
        stream = self._open.get(frame.stream)
        if stream is not None and stream.opener.user != (delivery.properties.user_id or ""):
            log.warning("a message of %.80r for somebody else's stream was refused", delivery.properties.user_id)
            stream = None
        queue = died_in(delivery.queue, delivery.headers)
        if stream is None:
            self._turn_away(
                delivery,
                frame,
                "its host took no message in time" if queue else "its agent knows nothing of it: was it restarted?",
            )
        elif queue:
            stream.end("its host was too busy to take a message in time", "open it again")
        else:
            stream.take(frame)

    def _turn_away(self, delivery: Delivery, frame: Frame, reason: str) -> None:
        if frame.kind == "close":
            return
        properties = delivery.properties
        try:
            reply_to = check_reply_to(properties.reply_to)
        except Refused:
            return  # nobody to tell
        if not self._farewells:
            asyncio.get_running_loop().call_soon(self._say_farewells)
        farewell = Frame(frame.stream, "close", 0, reason=reason, hint="open it again")
        self._farewells.append((reply_to, properties.correlation_id, farewell))

    def _say_farewells(self) -> None:
        for _ in range(min(FAREWELLS_AT_ONCE, len(self._farewells))):
            reply_to, correlation_id, farewell = self._farewells.popleft()
            with contextlib.suppress(BrokerLost):  # no way to: the client's patience ends by itself
                self._outlet.post(reply_to, correlation_id, farewell.headers, b"")
        if self._farewells:
            asyncio.get_running_loop().call_soon(self._say_farewells)

    def drop_all(self, reason: str) -> None:
        """End all streams, for this reason."""
        for stream in self._open.values():
            stream.end(reason, "open it again")

    async def close(self, reason: str, seconds: float) -> None:
        """End all streams, and wait until their clients are told, for so many seconds at most."""
        self.drop_all(reason)
        try:
            async with asyncio.timeout(seconds):
                while self._open:  # noqa: ASYNC110 (once in an agent's life)
                    await asyncio.sleep(0.01)
        except TimeoutError:
            pass


_CLOSE = "close one of them first"
