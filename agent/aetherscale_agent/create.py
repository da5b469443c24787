"""One copy of a create: asks `decide` what to do next, does it, and adds what it learnt."""

import asyncio
import logging
from typing import Protocol

import msgspec

from aetherscale_agent import capacity, courses
from aetherscale_agent import decide as d
from aetherscale_agent.alter import clone_disk
from aetherscale_agent.broker import Delivery
from aetherscale_agent.drain import is_drained
from aetherscale_agent.envelope import Incoming, died_in, queue_host
from aetherscale_agent.host import Host
from aetherscale_agent.journal import Record
from aetherscale_agent.refusals import ending_refusal
from aetherscale_agent.session import Session
from aetherscale_agent.steps import step
from aetherscale_agent.succession import find_past, may_follow, memory_of, with_memory
from aetherscale_protocol.answers import Answer, Offer
from aetherscale_protocol.commands import encode_request
from aetherscale_protocol.errors import Refused
from aetherscale_protocol.options import CreateVm

log = logging.getLogger(__name__)


class Replies(Protocol):
    """How a create is answered, and the names of the hosts that should have had their say."""

    @property
    def fleet(self) -> list[str]:
        """The hosts that the inventory names."""

    def refuse_create(self, incoming: Incoming, error: Refused) -> None:
        """Answer with a no."""

    def answer_when_built(self, incoming: Incoming, built: asyncio.Task[None]) -> None:
        """Answer when the VM runs, or could not be built."""


class CreateFlow:
    """One copy of a create, from its delivery to its acknowledgement."""

    def __init__(self, replies: Replies, host: Host, session: Session, delivery: Delivery, incoming: Incoming) -> None:
        self._replies = replies
        self._host = host
        self._session = session
        self._delivery = delivery
        self._incoming = incoming
        self._vm_id = incoming.create.vm_id or ""
        disk = max(
            clone_disk(host, incoming.create), capacity.disk_gib(incoming.create, host.find_image(incoming.create))
        )
        self._spec = capacity.with_disk(incoming.create, disk)
        self._facts = self._first_facts()

    def _first_facts(self) -> d.Facts:
        incoming, host = self._incoming, self._host
        queue = died_in(self._delivery.queue, self._delivery.headers)
        vm = host.vms.get(self._vm_id)
        record = vm.record if vm else None
        known = d.recorded_request(record, incoming.request_id)
        over = find_past(record, incoming.request_id)
        facts = d.Facts(
            host=host.name,
            request_id=incoming.request_id,
            now=host.clock(),
            deadline=incoming.deadline or 0.0,
            hops=incoming.hops,
            dead_lettered=bool(queue),
            dead_host=queue_host(queue),
            fleet=self._replies.fleet,
            recorded_request=known,
            refused_before=ending_refusal(over) if over is not None else None,
            guards_until=memory_of(record, host.clock()).until if known is None else 0.0,
            holds_grave=record is not None and record.bound and may_follow(record, incoming.request_id),
            name=self._spec.name or "",
            wanted_host=self._spec.host or "",
            recorded_deadline=record.deadline if record else 0.0,
            same_options=record is None or record.phase == "gone" or _is_such(record, incoming.create),
            drained=is_drained(host.journal),
        )
        if known is None and not facts.dead_lettered:
            self._reserve(facts)
        return facts

    def _reserve(self, facts: d.Facts) -> None:
        """Look whether it fits, and hold its place at once: nothing may come between."""
        facts.misfit = self._host.misfit(self._spec)
        if self._spec.spread or self._spec.near:  # offered without this VM, as the other hosts' offers are
            facts.choice = d.Choice("spread" if self._spec.spread else "near", self._own_offer(facts.misfit))
        if facts.misfit is None:
            self._host.reserve(self._vm_id, self._spec)

    def _own_offer(self, misfit: Refused | None) -> d.HostOffer:
        host = self._host
        if misfit is not None:
            return d.HostOffer(host.name, None, misfit.reason)
        return d.HostOffer(host.name, host.score(), alike=host.count_alike(self._spec))

    async def run(self) -> None:
        """Take step after step until the copy is dealt with.

        :raise Refused: when it can't be; nothing of it is left on this host, and it is not acknowledged.
        """
        done = False
        while not done:
            self._facts.now = self._host.clock()
            decision = d.next_step(self._facts)
            done = await self._follow(decision) and courses.is_end(decision)

    async def _follow(self, decision: d.Step) -> bool:
        """Carry a decision out; False if that did not work, and it must be decided anew."""
        for name in courses.tied(courses.course_of(decision)):
            with step(name, self._vm_id):
                if not await self._take(name, decision):
                    return False
        self._go_on(decision)
        return True

    async def _take(self, name: str, decision: d.Step) -> bool:
        """Take one step of a course; False if it did not work."""
        session, host, vm_id = self._session, self._host, self._vm_id
        match name, decision:
            case "create.claim", _:
                self._facts.claim = await session.claim(vm_id)
            case "create.probe", _:
                self._facts.held_elsewhere = await session.probe(self._incoming)
            case "create.offers", _:
                await self._ask_offers()
            case "create.let-go", _:
                await session.let_go(vm_id)
                self._facts.claim, self._facts.let_go = None, True
            case "create.hand-on", d.HandOn(to_host):
                return await self._hand_on(to_host)
            case "create.journal", _:
                await host.admit(self._record())
            case "create.bind", _:
                await session.bind(vm_id)
            case "create.journal-bound", _:
                await host.bound(vm_id)
            case "create.capacity", _:
                await session.offer_capacity()
            case "create.refuse", d.Refuse(error):
                await host.refuse(self._record(), error)
            case "create.remember", d.Refuse(error):
                await host.remember_refused(vm_id, self._facts.request_id, self._facts.deadline, error)
            case "create.prolong", _:
                await host.prolong(vm_id, self._facts.deadline)
            case "create.acknowledge", _:
                await session.acknowledge(self._delivery)
            case _:
                raise AssertionError(f"no way to take {name} of {decision}")
        return True

    def _go_on(self, decision: d.Step) -> None:
        """What follows the acknowledge: the build, and the answer."""
        match decision:
            case d.Refuse(error):
                self._replies.refuse_create(self._incoming, error)
            case d.Begin() | d.Rejoin():
                vm = self._host.vms[self._vm_id]
                if vm.record.ending is not None:  # read only now: it may have been deleted meanwhile
                    self._replies.refuse_create(self._incoming, ending_refusal(vm.record.ending))
                else:
                    self._replies.answer_when_built(self._incoming, self._host.build(vm))

    async def _ask_offers(self) -> None:
        body = encode_request("offer-vm", self._incoming.create)
        answers, self._facts.silent_hosts = await self._session.ask_all(body)
        self._facts.offers = [_offer(answer) for answer in answers]

    async def _hand_on(self, host: str) -> bool:
        log.info("create-vm %s handed on to %s", self._vm_id, host)
        if await self._session.hand_on(host, self._incoming):
            return True
        owner = self._facts.claim is not None and not self._facts.claim.won
        if owner:  # its queue is gone, but its claim stands: only it could say
            self._facts.hops = d.MAX_HOPS
        else:
            self._facts.offers = [o for o in self._facts.offers or [] if o.host != host]
        return False

    def _record(self) -> Record:
        now = self._host.clock()
        known = self._host.vms.get(self._vm_id)
        image = self._host.find_image(self._spec)
        record = Record(
            vm_id=self._vm_id,
            request_id=self._incoming.request_id,
            spec=self._spec,
            deadline=self._facts.deadline,
            created=now,
            since=now,
            expires=now + self._spec.ttl if self._spec.ttl else 0.0,
            image_sha256=image.sha256 if image else "",
            phase="claimed",
            bound=known is not None and known.record.bound,
        )
        return with_memory(record, memory_of(known.record if known else None, now))


def _is_such(record: Record, asked: CreateVm) -> bool:
    """Whether a VM is what a create asks for; its disk is at least that, because its image may be larger."""
    made = record.spec
    if record.resized:
        made = msgspec.structs.replace(made, cpus=asked.cpus, memory=asked.memory)
    return msgspec.structs.replace(made, disk=asked.disk) == asked and made.disk >= asked.disk


def _offer(answer: Answer) -> d.HostOffer:
    host = answer.host or ""
    if answer.ok and answer.response:
        offer = msgspec.json.decode(answer.response, type=Offer)
        return d.HostOffer(host, offer.score, alike=offer.alike)
    return d.HostOffer(host, None, answer.execution_info.reason or "refused")
