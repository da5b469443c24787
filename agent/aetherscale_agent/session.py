"""One life of the command connection: take the name, declare, rebuild the directory, consume; until it is lost.

Everything here is tied to its connection. Work that has not passed its barrier when that is lost is cancelled,
because the broker gives its message to somebody else; work that has passed it belongs to the host, and goes on.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pika

from aetherscale_agent.answered import MANY, Answered
from aetherscale_agent.broker import BrokerLost, Channel, Connection, Declined, Delivery, NotTaken, Unroutable
from aetherscale_agent.courses import Course
from aetherscale_agent.deaf import SELF_PING, Hearing, is_self_ping, listen
from aetherscale_agent.decide import Claim
from aetherscale_agent.drain import is_drained
from aetherscale_agent.envelope import Incoming, find_client
from aetherscale_agent.host import Host
from aetherscale_agent.known import keep_known
from aetherscale_agent.recover import TOMBSTONE_SLACK_S, Right, burial, keeps_grave, right_to, undo_course
from aetherscale_agent.steps import step
from aetherscale_agent.succession import last_deadline
from aetherscale_agent.turns import Turns
from aetherscale_agent.unread import Unread, find_sender, find_size
from aetherscale_protocol import names, topology
from aetherscale_protocol.answers import Answer, decode_answer
from aetherscale_protocol.commands import encode_request
from aetherscale_protocol.errors import Refused
from aetherscale_protocol.names import host_key, vm_key
from aetherscale_protocol.options import ShowVm
from aetherscale_protocol.streams import is_stream
from aetherscale_protocol.topology import AGENTS, EXCHANGE, Binding, Exchange, Queue, ReplyTo

log = logging.getLogger(__name__)

HOST_PREFETCH = 20_000
"""Messages of the host's queue that may be in hand. Many, for who comes behind a flood must be seen before its turn can
come; and what waits in the queue for its TTL counts as undeliverable, as if this host were down."""
MOST_HELD = 32 << 20
"""Bytes of bodies that wait for their turn; beyond that the messages of whoever has sent most are not read."""
MOST_AT_WORK = 200
"""Commands of one user that are begun and not over; those that wait for a guest cost sockets and memory."""
LARGE = 20 << 10
"""Bytes of a message for which it counts as one more of those at work: they are kept until it is over."""
STARTED_AT_ONCE = 4
"""Commands begun before the broker is listened to again."""
LISTENING_S = 0.005
"""For how long the broker is listened to between these while a flood comes in, in seconds: whoever else asks is behind
it, and has the turn after the next as soon as that is taken in."""
OFFER_WAIT_S = 1.0
"""How long hosts may take to answer an offer; a healthy one takes milliseconds."""
LOOK_FOR_BURIALS_S = 60.0
"""How long a tombstone may stay past its time when the host's clock was set meanwhile."""

MUSTER_S = 15.0
"""How long agents that find a new broker wait for the fleet before they take creates."""
MUSTER_POLL_S, MUSTER_POLLS_PER_S = 0.2, 200
"""How often each asks for the fleet; and how often, at most, all of them together."""
LOOK_AGAIN_S = 60.0

NOT_FOUND, LOCKED, PRECONDITION_FAILED = 404, 405, 406

Handler = Callable[["Session", Delivery], Awaitable[None]]
OnStream = Callable[[Delivery], None]


class NameTaken(Exception):
    """Another agent is connected under this host's name."""


class Session:
    """The agent's dealings with the broker while one connection lasts."""

    def __init__(
        self,
        connection: Connection,
        host: Host,
        user: str,
        handler: Handler,
        *,
        fleet_size: int = 0,
        heartbeat_s: float = 5,
        on_stream: OnStream = lambda _delivery: None,
    ) -> None:
        self.connection = connection
        self.host = host
        self.fleet_size = fleet_size  #: how many hosts the inventory names; 0 if it is not known
        self.user = user
        self._handler = handler
        self._on_stream = on_stream
        self._tasks: set[asyncio.Task[None]] = set()
        self._claims: Channel | None = None
        self._claim_lock = asyncio.Lock()
        self._priority: int | None = None
        self._competing_tag = ""
        self._placement_lock = asyncio.Lock()
        self._asked: dict[str, asyncio.Queue[Answer]] = {}
        self._settled_in = asyncio.Event()
        self._hearing = Hearing(
            heartbeat_s, HOST_PREFETCH, time.monotonic(), lambda: len(self._turns) + len(self._answered)
        )
        self._unread = Unread(lambda: len(self._turns) < HOST_PREFETCH)
        self._turns: Turns[Delivery] = Turns(MOST_HELD, self._unread.give_up)
        self._at_work: Counter[str] = Counter()
        self._beginning = False  #: `_begin_next` will be called by itself
        self._came = False  #: a message has come since it was
        self._answered = Answered(lambda: len(self._turns))

    async def open(self) -> str:
        """Take the name, declare, rebuild the directory, consume; one sentence about it.

        :raise NameTaken: when another agent has this host's name.
        :raise BrokerLost: when the connection is lost meanwhile.
        :raise Declined: when the broker refuses something that an agent needs.
        """
        await self._take_name()
        self._commands, self._creates, self._outbox = await asyncio.gather(*(self._channel() for _ in range(3)))
        await self._outbox.confirm()
        await self._outbox.consume(ReplyTo, self._on_reply)
        with step("connect.declare"):
            await self._declare_shared()
        has_queue = await self._has_own_queue()
        if not has_queue:
            self.host.note_new_broker()
        await self._bury(has_queue=has_queue)
        await self._undo_claims(has_queue=has_queue)
        with step("connect.verify"):
            await self._verify(has_queue=has_queue)
        with step("connect.queue"):
            await self._declare_own_queue()
        with step("connect.bind"):
            held = await self._rebuild_directory()
        with step("connect.consume"):
            await self._consume()
        self._spawn(self._take_creates())
        self._spawn(self._bury_tombstones())
        self._spawn(self._look_again())
        self._spawn(keep_known(self.connection, self.host, self.user))
        self._spawn(listen(self._hearing, self))
        return f"connected as {self.host.name}; the directory names this host for {held} VMs"

    async def closed(self) -> str:
        """Wait until the connection is lost; the reason. All work that hangs on it is cancelled then."""
        reason = await asyncio.shield(self.connection.lost)
        tasks = list(self._tasks)
        self.cut(reason)
        await asyncio.gather(*tasks, return_exceptions=True)
        return reason

    def cut(self, reason: str) -> None:
        """Drop the connection and cancel all work that hangs on it; nothing happens if that was done."""
        self._answered.acknowledge()
        self.connection.drop(reason)
        for task in self._tasks:
            task.cancel()

    async def _channel(self) -> Channel:
        """A channel whose end ends the connection: an agent that goes on without it would be deaf."""
        channel = await self.connection.channel()
        channel.closed.add_done_callback(lambda gone: self.connection.drop(f"a channel was closed: {gone.result()}"))
        channel.cancelled = lambda: self.connection.drop("the broker cancelled a consumer: its queue was deleted")
        return channel

    async def _take_name(self) -> None:
        self._spare = await self.connection.channel()
        try:
            with step("connect.name"):
                await self._spare.declare_queue(Queue(names.lock_queue(self.host.name)), exclusive=True)
        except Declined as error:
            if error.code == LOCKED:
                raise NameTaken(self.host.name) from None
            raise

    async def _declare_shared(self) -> None:
        """Declare what all agents share, needing rights only for what is not there already."""
        if await self._is_there(*topology.EXCHANGES, *topology.SHARED_QUEUES):
            return
        for exchange in topology.EXCHANGES:
            if not await self._is_there(exchange):
                await self._commands.declare_exchange(exchange)
        for binding in topology.EXCHANGE_BINDINGS:
            await self._commands.bind_exchange(binding)
        for queue in topology.SHARED_QUEUES:
            if not await self._is_there(queue):
                await self._commands.declare_queue(queue)
                await self._commands.bind_all([b for b in topology.SHARED_BINDINGS if b.queue == queue.name])

    async def _has_own_queue(self) -> bool:
        """Whether the host's queue is there as this host makes it; another one in its place is deleted.

        Any agent can put one there (docs/decisions/004-forget-host.md), and this host could not declare its own any
        more. It holds the host's name here, so nobody who may have this queue works with it.
        """
        queue = topology.host_queue(self.host.name)
        if not await self._is_there(queue):
            return False
        try:
            await self._spare.declare_queue(queue)
        except Declined as error:
            if error.code != PRECONDITION_FAILED:
                raise
            log.error("%s is not as this host had made it, and is made anew: %s", queue.name, error)
            await self._commands.delete_queue(queue.name)
            return False
        return True

    async def _declare_own_queue(self) -> None:
        await self._commands.declare_queue(topology.host_queue(self.host.name))
        await self._commands.bind_all(topology.host_bindings(self.host.name))

    async def _is_there(self, *things: Exchange | Queue) -> bool:
        """Whether the broker has all of these; on a channel that nothing else needs, because a no closes it."""
        if self._spare.closed.done():
            self._spare = await self.connection.channel()
        try:
            await self._spare.check(*things)
        except Declined as error:
            if error.code != NOT_FOUND:
                raise
            return False
        return True

    # The directory

    def _binding(self, vm_id: str) -> Binding:
        return Binding(EXCHANGE, names.host_queue(self.host.name), vm_key(vm_id))

    async def bind(self, vm_id: str) -> None:
        """Make the directory name this host for a VM."""
        await self._commands.bind(self._binding(vm_id))

    async def unbind(self, vm_id: str) -> None:
        """Take the VM out of the directory."""
        await self._commands.unbind(self._binding(vm_id))

    async def _undo_claims(self, *, has_queue: bool) -> None:
        """Undo creates that had got no further than their claim."""
        undone = [vm for vm in self.host.vms.values() if right_to(vm.record, has_queue=has_queue) is Right.UNDO]
        for vm in undone:
            kept = keeps_grave(vm.record, self.host.clock())
            await self._follow(undo_course(has_queue=has_queue, keeps_grave=kept), vm.record.vm_id)
            log.info("VM %s: a create that had not begun was undone", vm.record.vm_id)

    async def _follow(self, course: Course, vm_id: str) -> None:
        """Take an id out of the directory and the journal, in this course's order."""
        for name in course:
            with step(name, vm_id):
                if name.endswith(".unbind"):
                    await self.unbind(vm_id)
                else:
                    await self.host.forget(vm_id)

    async def _verify(self, *, has_queue: bool) -> None:
        """Claim and probe for VMs before they are bound, if another host may have been given them.

        The host's queue, if it is missing, is made only after this, so that an interruption starts again here.
        """
        asked = [vm for vm in self.host.vms.values() if right_to(vm.record, has_queue=has_queue) is Right.ASK]
        verdicts = await asyncio.gather(*(self._may_bind(vm.record.vm_id) for vm in asked))
        for vm, ours in zip(asked, verdicts, strict=True):
            if ours != vm.record.bound:
                await self.host.set_bound(vm, ours)
            if not ours and vm.record.phase == "bound":
                self.host.give_up(vm)

    async def _rebuild_directory(self) -> int:
        """Bind what is ours and finish creates that were begun; how many VMs the directory names this host for."""
        ours = [vm for vm in self.host.vms.values() if vm.record.bound]
        await self._commands.bind_all([self._binding(vm.record.vm_id) for vm in ours])
        for vm in ours:
            if vm.record.phase == "bound":
                self.host.build(vm)
        return sum(vm.exists for vm in ours)

    async def _may_bind(self, vm_id: str) -> bool:
        try:
            claim = await self.claim(vm_id)
        except Refused as error:
            log.error("VM %s: %s; it is kept, but not in the directory", vm_id, error.reason)
            return False
        holder = await self._find_holder(vm_id) if claim.won else claim.owner
        if holder is None:
            return True
        log.error("VM %s: %s holds it too; this host's copy is kept, but not in the directory", vm_id, holder)
        return False

    async def _find_holder(self, vm_id: str) -> str | None:
        """The other host that the directory names for a VM, or None; `a silent host` if that one does not answer."""
        body = encode_request("show-vm", ShowVm(vm_id=vm_id, console_lines=0))
        try:
            answers = await self._ask(vm_key(vm_id), body, expected=1)
        except Unroutable:
            return None
        if not answers:
            return "a silent host"
        return answers[0].host if answers[0].ok and answers[0].host != self.host.name else None

    async def _bury(self, *, has_queue: bool) -> None:
        """Unbind and forget each tombstone whose create's deadline has passed."""
        for vm in list(self.host.vms.values()):
            if burial(vm.record, self.host.clock()):
                async with self.host.turn(vm.record.vm_id):  # a copy in hand may make it last longer
                    course = burial(vm.record, self.host.clock(), has_queue=has_queue)
                    await self._follow(course, vm.record.vm_id)

    async def _bury_tombstones(self) -> None:
        while True:
            self.host.buried.clear()
            await self._bury(has_queue=True)
            ends = [last_deadline(vm.record) + TOMBSTONE_SLACK_S for vm in self.host.vms.values() if vm.is_tomb]
            soon = min((end - self.host.clock() for end in ends), default=LOOK_FOR_BURIALS_S)
            await _wait(self.host.buried, max(0.1, min(soon, LOOK_FOR_BURIALS_S)))

    async def _look_again(self) -> None:
        """Ask again for VMs that were contested: whoever had claimed one may have let go of it."""
        while True:
            await asyncio.sleep(LOOK_AGAIN_S)
            if any(right_to(vm.record, has_queue=True) is Right.ASK for vm in self.host.vms.values()):
                await self._verify(has_queue=True)
                await self._rebuild_directory()

    # Claims and probes

    async def claim(self, vm_id: str) -> Claim:
        """Claim a VM id for this host, by declaring its queue: one atomic compare-and-set in the broker."""
        async with self._claim_lock:
            channel = await self._claims_channel()
            try:
                await channel.declare_queue(topology.claim(vm_id, self.host.name))
                return Claim(won=True)
            except Declined as error:
                if error.code != PRECONDITION_FAILED:
                    raise Refused("failed", f"the id {vm_id} can't be claimed: {error}") from None
                return Claim(won=False, owner=error.present)

    async def let_go(self, vm_id: str) -> None:
        """Take back the claim of a VM id that this host has just made, or made again."""
        async with self._claim_lock:
            channel = await self._claims_channel()
            await channel.delete_queue(names.claim_queue(vm_id))

    async def _claims_channel(self) -> Channel:
        """The channel for claims; a new one, if a claim that was lost has closed it."""
        if self._claims is None or self._claims.closed.done():
            self._claims = await self.connection.channel()
        return self._claims

    async def pass_to(self, key: str, incoming: Incoming) -> bool:
        """Publish a create to a key; False if the directory knows no such key.

        Only what is listed here travels on: a copied CC header would multiply the message at every hop.
        """
        headers: dict[str, Any] = {"hops": incoming.hops + 1, "operator": incoming.operator}
        if incoming.deadline is not None:
            headers["deadline"] = int(incoming.deadline * 1000)
        properties = pika.BasicProperties(
            reply_to=incoming.reply_to,
            correlation_id=incoming.correlation_id,
            message_id=incoming.request_id,
            user_id=self.user,
            delivery_mode=2,
            content_type="application/json",
            headers=headers,
        )
        body = encode_request("create-vm", incoming.create)
        try:
            await self._outbox.publish(key, body, properties, exchange=AGENTS, mandatory=True)
        except Unroutable:
            return False
        return True

    async def probe(self, incoming: Incoming) -> bool:
        """Whether some host holds this VM; if so, it has this create now, and will answer it.

        :raise Refused: `outcome-unknown`, when the holder's queue is full.
        """
        try:
            return await self.pass_to(vm_key(incoming.create.vm_id or ""), incoming)
        except NotTaken:
            raise Refused("outcome-unknown", "the host that holds this VM id takes no messages", "repeat it") from None

    async def hand_on(self, host: str, incoming: Incoming) -> bool:
        """Give the create to a host; False if it has no queue, or a full one."""
        try:
            return await self.pass_to(host_key(host), incoming)
        except NotTaken:
            return False

    # Asking other hosts

    async def ask_all(self, body: bytes) -> tuple[list[Answer], int]:
        """Every live host's answer to an offer, and how many did not answer in time."""
        expected = await self._count_hosts()
        answers = await self._ask("offer-vm", body, expected=expected)  # bound by this host itself: routable
        return answers, max(0, expected - len(answers))

    async def _ask(self, key: str, body: bytes, *, expected: int) -> list[Answer]:
        correlation_id = names.new_request_id()
        inbox = self._asked[correlation_id] = asyncio.Queue()
        properties = pika.BasicProperties(
            reply_to=ReplyTo, correlation_id=correlation_id, user_id=self.user, content_type="application/json"
        )
        answers: dict[str | None, Answer] = {}
        try:
            with contextlib.suppress(NotTaken):  # one queue is full; the others have it
                await self._outbox.publish(key, body, properties, exchange=AGENTS, mandatory=True)
            async with asyncio.timeout(OFFER_WAIT_S):
                while len(answers) < expected:
                    answer = await inbox.get()
                    answers[answer.host] = answer
        except TimeoutError:
            pass  # not everybody answered: the caller counts
        finally:
            del self._asked[correlation_id]
        return list(answers.values())

    def _on_reply(self, delivery: Delivery) -> None:
        inbox = self._asked.get(delivery.properties.correlation_id or "")
        if inbox is None:
            return  # came too late
        try:
            inbox.put_nowait(decode_answer(delivery.body))
        except ValueError as error:
            log.warning("an answer to this host's question can't be read: %s", error)

    # Consuming

    async def _consume(self) -> None:
        await asyncio.gather(self._consume_commands(), self._consume_creates())
        await self._commands.consume(topology.HOSTS, lambda d: d.channel.ack(d))

    async def _consume_commands(self) -> None:
        await self._commands.prefetch(HOST_PREFETCH)
        await self._commands.consume(names.host_queue(self.host.name), self._on_delivery)
        await self._commands.consume(topology.UNDELIVERABLE, self._on_delivery)

    async def _consume_creates(self) -> None:
        await self._creates.prefetch(1)
        if not self.host.new_broker:
            await self.offer_capacity()

    async def _take_creates(self) -> None:
        """Take creates, with a new broker only once the fleet is there; then follow the capacity."""
        if self.host.new_broker:
            await self._muster()
            self.host.settle_in()
        self._settled_in.set()
        while True:
            await self.offer_capacity()
            await self.host.capacity_changed.wait()
            self.host.capacity_changed.clear()

    async def _muster(self) -> None:
        """Wait until all hosts of the fleet have said which VMs they hold, or for so long that they must be down.

        A new broker knows of no VM. A create that is asked again could be begun a second time here, before the host
        that has made it is back in the directory.
        """
        limit = asyncio.get_running_loop().time() + MUSTER_S
        interval = max(MUSTER_POLL_S, self.fleet_size / MUSTER_POLLS_PER_S)
        while (there := await self._count_hosts()) < self.fleet_size:
            if asyncio.get_running_loop().time() > limit:
                log.warning("new broker: %d of %d hosts are there; taking creates", there, self.fleet_size)
                return
            await asyncio.sleep(random.uniform(interval / 2, interval))

    async def settled_in(self) -> None:
        """Wait until creates may be begun here, and those that nobody took refused (see `_muster`)."""
        await self._settled_in.wait()

    async def _count_hosts(self) -> int:
        return await self._outbox.declare_queue(Queue(topology.HOSTS), passive=True)

    def _on_delivery(self, delivery: Delivery) -> None:
        own = delivery.queue == names.host_queue(self.host.name)
        self._hearing.heard(time.monotonic(), own=own)
        if is_self_ping(delivery.properties, self.user):
            delivery.channel.ack(delivery)
            return
        if is_stream(delivery.properties.headers):  # no command: in its order, and with nothing to wait for
            self._answered.add(delivery, soon=True)
            self._on_stream(delivery)
            return
        if delivery.queue == topology.COMPETING:  # one at a time, as it is: whoever else waits for it
            self._spawn(self._handler(self, delivery))
            return
        self._wait_for_turn(delivery)
        self._begin_soon()

    def _wait_for_turn(self, delivery: Delivery) -> None:
        """Let a message wait; one that there is no room for gives its body up, and is refused when its turn comes."""
        self._came = True
        self._turns.put(find_sender(delivery), find_client(delivery.properties.reply_to), delivery, find_size(delivery))

    def _begin_soon(self) -> None:
        if not self._beginning:
            flooded = self._came and len(self._turns) > MANY
            self._beginning, self._came = True, False
            asyncio.get_running_loop().call_later(LISTENING_S if flooded else 0, self._begin_next)

    def _begin_next(self) -> None:
        """Begin the commands whose turn it is, and listen to the broker before the next ones."""
        self._beginning = False
        if self.connection.lost.done():
            return  # whoever is given these messages next begins them
        busy = {user for user, count in self._at_work.items() if count >= MOST_AT_WORK}
        for _ in range(STARTED_AT_ONCE):
            try:
                delivery = self._turns.take(busy)
            except KeyError:
                break  # the end of one that is at work calls this again
            self._answered.note_turn(delivery.tag)
            self._spawn(self._work_on(delivery))
        else:
            self._begin_soon()

    async def _work_on(self, delivery: Delivery) -> None:
        user, load = find_sender(delivery), 1 + find_size(delivery) // LARGE
        self._at_work[user] += load
        try:
            work = self._handler(self, delivery)
            own = delivery.queue == names.host_queue(self.host.name)
            await (self._hearing.hold(work) if own else work)
        finally:
            self._at_work[user] -= load
            if not self._at_work[user]:
                del self._at_work[user]
            self._begin_soon()

    async def ping_itself(self) -> None:
        """Publish a ping to the host's own queue (see `deaf`).

        :raise Unroutable: when that is not bound to its key.
        :raise NotTaken: when it is full.
        """
        properties = pika.BasicProperties(type=SELF_PING, user_id=self.user)
        await self._outbox.publish(host_key(self.host.name), b"", properties, exchange=AGENTS, mandatory=True)

    async def offer_capacity(self) -> None:
        """Consume creates with a priority that says how well a VM could be taken now: the broker schedules by it.

        A drained host consumes none.
        """
        async with self._placement_lock:
            if self.host.new_broker:
                return
            priority = None if is_drained(self.host.journal) else min(self.host.score(), 2**31 - 1)
            if priority == self._priority:
                return
            if self._competing_tag:
                await self._creates.cancel(self._competing_tag)
            self._competing_tag, self._priority = "", priority
            if priority is not None:
                self._competing_tag = await self._creates.consume(
                    topology.COMPETING, self._on_delivery, priority=priority
                )

    async def acknowledge(self, delivery: Delivery) -> None:
        """Acknowledge, and wait until the broker has it: from here on nobody else is given this message."""
        delivery.channel.ack(delivery)
        await delivery.channel.barrier(names.host_queue(self.host.name))

    def acknowledge_later(self, delivery: Delivery) -> None:
        """Acknowledge what changed nothing, when that is cheap (see `answered`)."""
        if not delivery.is_shed:
            self._answered.add(delivery)
        elif (size := self._unread.take(delivery)) is not None:
            self._answered.add(delivery, given_up=size)

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, work: Awaitable[None]) -> None:
        """Do work that this session can't be without: if it fails, the session ends, and the next begins it anew."""
        try:
            await work
        except (BrokerLost, Declined) as error:
            self.connection.drop(str(error))  # harmless if it is lost already
        except Exception as error:
            log.exception("a task of the session failed")
            self.connection.drop(f"internal error: {error}")


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
