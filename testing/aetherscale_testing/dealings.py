"""One agent's handlers without a broker: commands go in, answers come out, and every step with the broker can be held.

dealings = Dealings(host)
answer = await dealings.ask("start-vm", request_id="r1", deadline=1060.0, vm_id="sgeqxcfi")
with dealings.holding("acknowledge"): ...      # every acknowledge waits in its middle
dealings.lost.add("acknowledge")               # … or ends as on a connection that is lost
"""

import asyncio
import contextlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, cast

import pika

from aetherscale_agent.answerer import Answerer
from aetherscale_agent.broker import BrokerLost, Channel, Connection, Delivery
from aetherscale_agent.decide import Claim
from aetherscale_agent.envelope import Incoming
from aetherscale_agent.handlers import Handlers
from aetherscale_agent.host import Host
from aetherscale_agent.session import Session
from aetherscale_protocol.answers import Answer
from aetherscale_protocol.topology import UNDELIVERABLE, Binding

REPLY_TO = "amq.rabbitmq.reply-to.g1h2AA5yZXBseUA2ODc4MTMzNAAAcEoAAAAAaS8eQg==.uh3PT7/gnq8t5CwSy0Ejvg=="


class Letters(Answerer):
    """Answers that go nowhere, by correlation id."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[str, asyncio.Future[Answer]] = {}

    def send(self, reply_to: str, correlation_id: str | None, answer: Answer) -> None:  # noqa: ARG002
        self.answers[correlation_id or ""].set_result(answer)


class _Acknowledged:
    """A channel that only takes acknowledgements."""

    def __init__(self) -> None:
        self.tags: list[int] = []

    def ack(self, delivery: Delivery) -> None:
        self.tags.append(delivery.tag)


class _Bindings:
    """A channel that only binds VMs."""

    def __init__(self, vms: set[str]) -> None:
        self._vms = vms

    async def bind_all(self, bindings: Sequence[Binding]) -> None:
        self._vms |= {binding.key.removeprefix("vm.") for binding in bindings}


class Dealings(Session):
    """A session whose broker does what it is asked: no other host holds anything."""

    def __init__(self, host: Host) -> None:
        self.letters = Letters()
        self.handlers = Handlers(host, self.letters, [])
        super().__init__(cast(Connection, None), host, "guest", lambda _s, _d: self._nothing())
        self.bound: set[str] = set()
        self._commands = cast(Channel, _Bindings(self.bound))
        self.is_new = False  #: its fleet is not there yet
        #: Steps on which the connection is lost.
        self.lost: set[str] = set()
        #: What other hosts say to an offer, and who a create was handed on to.
        self.offers: list[Answer] = []
        self.handed_on: list[str] = []
        self.acknowledged = _Acknowledged()
        #: How often each step was come to.
        self.passed: Counter[str] = Counter()
        self._gates: dict[str, asyncio.Event] = {}
        self._numbers = itertools.count(1)

    @contextlib.contextmanager
    def holding(self, step: str) -> Iterator[None]:
        """While in this block, every `acknowledge`, `bind`, `unbind` or `settled_in` waits in its middle."""
        gate = self._gates[step] = asyncio.Event()
        try:
            yield
        finally:
            gate.set()
            del self._gates[step]

    def begin(
        self,
        command: str,
        *,
        request_id: str | None = None,
        deadline: float | None = None,
        died: str = "",
        user: str | None = None,
        **options: Any,
    ) -> asyncio.Task[Answer]:
        """A message of a broker's user comes; the task ends with its answer. `died`: where it was dead-lettered."""
        number = next(self._numbers)
        correlation_id = f"c{number}"
        headers: dict[str, Any] = {} if deadline is None else {"deadline": int(deadline * 1000)}
        if died:
            headers["x-death"] = [{"queue": died}]
        properties = pika.BasicProperties(
            reply_to=REPLY_TO, correlation_id=correlation_id, message_id=request_id, headers=headers, user_id=user
        )
        wire = {name.replace("_", "-"): value for name, value in options.items()}
        body = json.dumps({"command": command, "options": wire}).encode()
        queue = UNDELIVERABLE if died else "computing-host.h1"
        channel = cast(Channel, self.acknowledged)
        delivery = Delivery(channel, queue, number, command, properties, body)
        self.letters.answers[correlation_id] = asyncio.get_running_loop().create_future()
        return asyncio.ensure_future(self._handle(delivery, correlation_id))

    async def ask(self, command: str, **more: Any) -> Answer:
        """A message comes; its answer."""
        async with asyncio.timeout(5):
            return await self.begin(command, **more)

    async def _handle(self, delivery: Delivery, correlation_id: str) -> Answer:
        await self.handlers.on_message(self, delivery)
        return await self.letters.answers[correlation_id]

    async def _nothing(self) -> None:
        pass

    # What a session does with its broker

    async def _pass(self, step: str) -> None:
        self.passed[step] += 1
        await asyncio.sleep(0)
        if step in self._gates:
            await self._gates[step].wait()
        if step in self.lost:
            raise BrokerLost("the connection was cut")

    async def acknowledge(self, delivery: Delivery) -> None:
        await self._pass("acknowledge")
        delivery.channel.ack(delivery)

    async def bind(self, vm_id: str) -> None:
        await self._pass("bind")
        self.bound.add(vm_id)

    async def unbind(self, vm_id: str) -> None:
        await self._pass("unbind")
        self.bound.discard(vm_id)

    async def claim(self, vm_id: str) -> Claim:  # noqa: ARG002
        return Claim(won=True)

    async def probe(self, incoming: Incoming) -> bool:  # noqa: ARG002
        return False

    async def ask_all(self, body: bytes) -> tuple[list[Answer], int]:  # noqa: ARG002
        return self.offers, 0

    async def hand_on(self, host: str, incoming: Incoming) -> bool:  # noqa: ARG002
        self.handed_on.append(host)
        return True

    async def offer_capacity(self) -> None:
        pass

    async def settled_in(self) -> None:
        await self._pass("settled_in")
