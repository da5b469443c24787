"""From a message to its answer. Every message that arrives is answered (where it can be) and acknowledged,
whatever is in it; nothing that a message holds stops the agent.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from aetherscale_agent import condition, courses, images
from aetherscale_agent.access import Access
from aetherscale_agent.alter import REBOOT, check_free, plan
from aetherscale_agent.answerer import Answerer
from aetherscale_agent.asked import Asked
from aetherscale_agent.audit import UNSIGNED, Audit, entry_of, entry_of_unread
from aetherscale_agent.broker import BrokerLost, Declined, Delivery
from aetherscale_agent.create import CreateFlow
from aetherscale_agent.decide import recorded_request
from aetherscale_agent.envelope import (
    DEFAULT_PATIENCE_S,
    Incoming,
    check_deadline,
    check_patience,
    check_reply_to,
    died_in,
    queue_host,
    read_envelope,
)
from aetherscale_agent.forget import Forgetter
from aetherscale_agent.host import MOST_WAITING, Host
from aetherscale_agent.host_commands import HostCommands
from aetherscale_agent.lifecycle import Act, act_on, heeds_pause
from aetherscale_agent.refusals import ending_refusal
from aetherscale_agent.session import Session
from aetherscale_agent.steps import step
from aetherscale_agent.streams import Streams
from aetherscale_agent.vm import Vm
from aetherscale_protocol import __version__, topology
from aetherscale_protocol.answers import (
    Answer,
    ExpiryStatus,
    Fleet,
    ImageRow,
    Offer,
    Pong,
    SnapshotDone,
    VmStatus,
    failure,
    fleet_digest,
    success,
)
from aetherscale_protocol.commands import Reach
from aetherscale_protocol.errors import VM_UNKNOWN, Refused
from aetherscale_protocol.names import derive_vm_id, id_of_name, is_vm_id
from aetherscale_protocol.options import ExtendVm, ForgetHost, RebootVm, ShowVm, SnapshotRef, StopVm

Status = VmStatus | SnapshotDone | ExpiryStatus

log = logging.getLogger(__name__)

UNTOLD_PATIENCE_S = 4.0
"""How long a stop waits for a client that did not say how long it waits (the seed's), in seconds."""
ANSWER_MARGIN_S = 0.5
"""How long before the client gives up it is told how far things are."""


class Handlers:
    """The agent's side of every command."""

    def __init__(
        self,
        host: Host,
        answerer: Answerer,
        fleet: list[str],
        streams: Streams | None = None,
        *,
        access: Access | None = None,
        audit: Audit | None = None,
    ) -> None:
        self._host = host
        self._host_commands = HostCommands(host)
        self._access = access or Access()
        self._audit = audit or Audit()
        self._streams = streams or Streams(host, answerer)
        self._answerer = answerer
        self.fleet = fleet
        self._fleet = Fleet(size=len(fleet), digest=fleet_digest(fleet)) if fleet else None

    async def on_message(self, session: Session, delivery: Delivery) -> None:
        """Handle one message of any queue, whatever it holds."""
        incoming = None
        try:
            try:
                check_reply_to(delivery.properties.reply_to)
                if delivery.is_shed:
                    raise _too_many(self._host.name)
                incoming = self._read_envelope(session, delivery)
                await self._dispatch(session, delivery, incoming)
            except Refused as error:
                if incoming is None or not incoming.request.command.changes:
                    session.acknowledge_later(delivery)
                else:
                    await session.acknowledge(delivery)  # first: what was said no to must not come again, and be done
                self._refuse(delivery, incoming, error)
        except (BrokerLost, Declined, asyncio.CancelledError):
            raise  # the session ends with this: the broker gives the message to somebody else
        except Exception:
            user = delivery.properties.user_id or UNSIGNED
            log.exception("a %.80r from %.80r failed", delivery.key, user)
            await session.acknowledge(delivery)
            self._refuse(delivery, incoming, self._internal_error())

    def _read_envelope(self, session: Session, delivery: Delivery) -> Incoming:
        return read_envelope(
            delivery.body,
            delivery.properties,
            own_user=session.user,
            exchange=delivery.exchange,
            died=delivery.queue == topology.UNDELIVERABLE,
        )

    def _refuse(self, delivery: Delivery, incoming: Incoming | None, error: Refused) -> None:
        answer = failure(error, self._host.name, fleet=self._fleet)
        if incoming is not None:
            self._answer(incoming, answer)
            return
        properties = delivery.properties
        self._audit.note(entry_of_unread(properties.user_id or "", delivery.key, error))
        try:
            reply_to = check_reply_to(properties.reply_to)
        except Refused:
            return  # noted above; there is nobody to tell
        self._answerer.send(reply_to, properties.correlation_id, answer)

    def _answer(self, incoming: Incoming, answer: Answer) -> None:
        """Note what came of a command, and say it."""
        vm = self._host.vms.get(incoming.request.vm_id or "")
        self._audit.note(entry_of(incoming, answer, vm.record.spec.name or "" if vm is not None else ""))
        self._answerer.send(incoming.reply_to, incoming.correlation_id, answer)

    def _check_access(self, incoming: Incoming) -> None:
        """Nothing, if whoever asks this may.

        :raise Refused: `forbidden`.
        """
        self._access.check(incoming, _Labels(self._host.vms))

    def _success(self, response: Any, details: Any = None) -> Answer:
        return success(response, self._host.name, details=details, fleet=self._fleet)

    async def _dispatch(self, session: Session, delivery: Delivery, incoming: Incoming) -> None:
        name = incoming.request.command.name
        queue = died_in(delivery.queue, delivery.headers)
        if not queue:
            self._check_access(incoming)
            await self._drop_stale_binding(session, delivery.key)
        elif incoming.sender:  # else who may not create could still have ids claimed, by messages that nobody takes
            self._check_access(incoming)
        if name == "create-vm":
            await self._create(session, delivery, incoming)
            return
        if queue:
            raise _undeliverable(queue, incoming, self._host.name)
        if incoming.request.vm_id is not None and incoming.request.command.changes:
            await self._change(session, delivery, incoming)
            return
        if name not in ("ping", "check-host"):  # which tell what is wrong, as a clock that is off
            check_deadline(incoming.deadline, self._host.clock(), self._host.name)
        if isinstance(incoming.request.options, ForgetHost):
            forgetter = Forgetter(session.connection, self._host.name, session.user, self.fleet)
            await session.acknowledge(delivery)
            await self._change_host(incoming, lambda: forgetter.forget(incoming.request.options))
        elif incoming.request.command.reach is Reach.HOST:
            await session.acknowledge(delivery)
            execute = self._host_commands.execute
            work = self._change_host(incoming, lambda: execute(incoming.request, _asked(incoming)))
            await asyncio.shield(self._host.go_on(work))  # it is nobody else's now, whatever becomes of the connection
        else:
            self._answer(incoming, await self._read(incoming))
            session.acknowledge_later(delivery)

    async def _drop_stale_binding(self, session: Session, key: str) -> None:
        """Whom the directory names for a VM that it does not know takes itself out of the directory."""
        vm_id = key.removeprefix("vm.")
        if vm_id != key and is_vm_id(vm_id) and vm_id not in self._host.vms:
            log.warning("VM %s: the directory named this host, which does not know it; unbound", vm_id)
            await session.unbind(vm_id)

    # Commands that only read

    async def _read(self, incoming: Incoming) -> Answer:
        host, options = self._host, incoming.request.options
        match incoming.request.command.name:
            case "list-vms":
                rows = [row for row in host.details() if self._sees(incoming, row.vm_id)]
                return self._success([f"vm-{row.vm_id}" for row in rows], details=rows)
            case "list-hosts":
                return self._success(host.report(self.fleet, __version__))
            case "list-images":
                return self._success(self._images(incoming))
            case "show-vm":
                assert isinstance(options, ShowVm)
                return self._success(await host.show(options.vm_id, options.console_lines, reached=options.reached))
            case "offer-vm":
                misfit = host.misfit(incoming.create)
                if misfit is not None:
                    raise misfit
                return self._success(Offer(score=host.score(), alike=host.count_alike(incoming.create)))
            case "list-snapshots":
                return self._success(await host.alterer.list_snapshots(options.vm_id))
            case "open-stream":
                return self._success(await self._streams.open(incoming))
            case "ping":
                return self._success(Pong(host=host.name, agent_version=__version__, clock=host.clock()))
            case "check-host":
                found = await condition.look(host, checksums=options.checksums)
                troubles = [trouble for trouble in found.troubles if self._sees(incoming, trouble.vm_id)]
                return self._success(msgspec.structs.replace(found, troubles=troubles))
            case name:
                raise AssertionError(f"no handler for {name}")

    def _images(self, incoming: Incoming) -> list[ImageRow]:
        rows = images.rows(self._host.images, self._host.vms, self._host.reserved)
        return [
            msgspec.structs.replace(row, used_by=[vm_id for vm_id in row.used_by if self._sees(incoming, vm_id)])
            for row in rows
        ]

    def _sees(self, incoming: Incoming, vm_id: str) -> bool:
        """Whether whoever asks is told of this VM where many are."""
        vm = self._host.vms.get(vm_id)
        spec = vm.record.spec if vm is not None else self._host.reserved.get(vm_id)
        return self._access.sees(incoming, spec.labels if spec is not None else {})

    # Commands about a host: this one, or one that is gone

    async def _change_host(self, incoming: Incoming, work: Callable[[], Awaitable[Any]]) -> None:
        """Do acknowledged work, and answer with its outcome."""
        try:
            check_deadline(incoming.deadline, self._host.clock(), self._host.name)  # the barrier may have taken long
            self._answer(incoming, self._success(await work()))
        except Refused as error:
            self._answer(incoming, failure(error, self._host.name, fleet=self._fleet))
        except Exception:
            log.exception("%s failed", incoming.request.command.name)
            self._answer(incoming, failure(self._internal_error(), self._host.name, fleet=self._fleet))

    # Commands that change a VM that is there

    async def _change(self, session: Session, delivery: Delivery, incoming: Incoming) -> None:
        vm_id = incoming.request.vm_id
        assert vm_id is not None
        known = self._host.vms.get(vm_id)
        if known is not None and _deleted_by(known, incoming):
            self._answer(incoming, self._success(VmStatus(status="deleted", vm_id=vm_id)))
            delivery.channel.ack(delivery)
            return
        if known is None or _asked(incoming).find(known.record) is None:
            check_deadline(incoming.deadline, self._host.clock(), self._host.name)
        vm = self._host.get(vm_id)
        if vm.waiting >= MOST_WAITING:
            raise Refused("wrong-state", f"{vm.waiting} commands wait for this VM already", "repeat it later")
        vm.waiting += 1
        try:
            await vm.line.acquire()
        finally:
            vm.waiting -= 1
        try:
            act = await self._take_over(session, delivery, incoming, vm)
        except BaseException:
            vm.line.release()
            raise
        self._host.go_on(self._finish(incoming, self._work(vm, act, incoming)))

    async def _take_over(self, session: Session, delivery: Delivery, incoming: Incoming, vm: Vm) -> Act:
        """Take the part of a command's course that is tied to the connection; what is to be done after it."""
        deleted = _deleted_by(vm, incoming)  # by a copy of it, for which this one waited
        if not vm.exists and not deleted:
            raise Refused("vm-unknown", VM_UNKNOWN, "list-vms shows the VMs that there are")
        self._check_access(incoming)  # again: while it waited, another VM may have come to have the name
        act = Act.NOTHING
        for name in courses.tied(courses.CHANGES[_verb(incoming)]):
            with step(name, vm.record.vm_id):
                if name.endswith(".acknowledge"):
                    await session.acknowledge(delivery)
                elif not deleted:
                    act = await self._look(vm, incoming)
        return act

    async def _look(self, vm: Vm, incoming: Incoming) -> Act:
        """Look at the VM, and choose what to do; if it can't be looked at, a copy is told the same."""
        try:
            await self._host.look(vm, whether_paused=heeds_pause(_verb(incoming)))
        except Refused as error:
            if _asked(incoming).find(vm.record) is None:
                await self._host.note(vm, _asked(incoming), error)
            raise
        return await self._choose(vm, incoming)

    async def _choose(self, vm: Vm, incoming: Incoming) -> Act:
        """What a command does to its VM; nothing, if it was done before, or was begun and it is too late by now."""
        asked, now = _asked(incoming), self._host.clock()
        if asked.find(vm.record) is None:
            check_deadline(incoming.deadline, now, self._host.name)
        elif asked.is_over(vm.record) or (incoming.deadline is not None and now > incoming.deadline):
            return Act.NOTHING
        verb, begun = _verb(incoming), asked.find(vm.record) is not None
        try:
            check_free(vm.record, verb, asked.request_id)
            if begun and verb == REBOOT and vm.record.altering is not None:
                return Act.REBOOT  # it is under way, and joined
            act = act_on(verb, vm.state)
            if act is Act.ALTER and not begun:
                await self._host.alterer.check(vm, plan(verb, incoming.request.options, asked, now))
            return act
        except Refused as error:
            await self._host.note(vm, asked, error)
            raise

    async def _work(self, vm: Vm, act: Act, incoming: Incoming) -> Status:
        """Do acknowledged work in the VM's line; waiting for its guest is done outside of that."""
        try:
            if act is not Act.NOTHING:  # the barrier may have taken long: the agent may have been frozen in it
                self._host.check_deadline(incoming.deadline)
            status = await self._act(vm, act, incoming)
        finally:
            vm.line.release()
        if status is None and act is Act.REBOOT:
            return await self._wait_rebooted(vm, incoming)
        return status or await self._wait_off(vm, incoming)

    async def _finish(self, incoming: Incoming, work: Awaitable[Status]) -> None:
        """Do acknowledged work and answer with its outcome; it goes on whatever happens to the connection."""
        try:
            answer = self._success(await work)
        except Refused as refusal:
            answer = failure(refusal, self._host.name, fleet=self._fleet)
        except Exception:
            log.exception("%s of VM %s failed", incoming.request.command.name, incoming.request.vm_id)
            answer = failure(self._internal_error(), self._host.name, fleet=self._fleet)
        self._conclude(incoming, answer)

    def _conclude(self, incoming: Incoming, answer: Answer) -> None:
        """Answer a command that changes something."""
        verb = courses.verb_of(courses.CHANGES.get(_verb(incoming), courses.BEGIN))
        with step(f"{verb}.answer", incoming.request.vm_id or ""):
            self._answer(incoming, answer)

    def _internal_error(self) -> Refused:
        return Refused("failed", f"internal error on host {self._host.name}; its log says more")

    async def _act(self, vm: Vm, act: Act, incoming: Incoming) -> Status | None:
        host, vm_id, asked = self._host, vm.record.vm_id, _asked(incoming)
        match act:
            case Act.START:
                await host.start(vm, asked)
                return VmStatus(status="starting", vm_id=vm_id)
            case Act.PRESS:
                await host.press(vm, asked)
                return None  # answered when the guest is off, outside the VM's line
            case Act.KILL:
                await host.kill(vm, asked)
                return VmStatus(status="stopped", vm_id=vm_id)
            case Act.REMOVE:
                await host.delete(vm, incoming.request_id, incoming.deadline)
                return VmStatus(status="deleted", vm_id=vm_id)
            case Act.ALTER:
                change = plan(_verb(incoming), incoming.request.options, asked, host.clock())
                await host.alterer.alter(vm, change, asked)
                return _done(vm, incoming)
            case Act.REBOOT:
                await host.alterer.reboot(vm, plan(REBOOT, None, asked, host.clock()), asked)
                return None  # answered when it runs again, outside the VM's line
            case Act.NOTHING:
                return await self._status(vm, incoming)

    async def _status(self, vm: Vm, incoming: Incoming) -> Status:
        """What a command that does nothing is answered: its outcome, if it was done before; else how things are.

        :raise Refused: what it was refused with before.
        """
        asked, vm_id = _asked(incoming), vm.record.vm_id
        done = asked.find(vm.record)
        if done is not None and done.ending is not None:
            raise ending_refusal(done.ending)
        if _deleted_by(vm, incoming) or (done is not None and done.finished):
            return _done(vm, incoming)
        if done is None:
            await self._host.note(vm, asked)
        return VmStatus(status="stopped" if vm.state == "failed" else vm.state, vm_id=vm_id)

    def _patience(self, incoming: Incoming) -> float:
        if incoming.deadline is None:
            return UNTOLD_PATIENCE_S
        return incoming.deadline - self._host.clock() - ANSWER_MARGIN_S

    async def _wait_rebooted(self, vm: Vm, incoming: Incoming) -> VmStatus:
        state = await self._host.alterer.rebooted(vm, self._patience(incoming))
        return VmStatus(status=state, vm_id=vm.record.vm_id)

    async def _wait_off(self, vm: Vm, incoming: Incoming) -> VmStatus:
        state = await self._host.settled(vm, self._patience(incoming))
        return VmStatus(status="stopped" if state == "failed" else state, vm_id=vm.record.vm_id)

    # Create

    async def _create(self, session: Session, delivery: Delivery, incoming: Incoming) -> None:
        check_patience(incoming.deadline, self._host.clock(), self._host.name)
        incoming = _completed(incoming, self._host.clock())
        vm_id = incoming.create.vm_id
        assert vm_id is not None
        async with self._host.turn(vm_id):
            known = self._host.vms.get(vm_id)
            if recorded_request(known.record if known else None, incoming.request_id) is None:
                await session.settled_in()
            try:
                await CreateFlow(self, self._host, session, delivery, incoming).run()
            finally:
                self._host.release(vm_id)

    def refuse_create(self, incoming: Incoming, error: Refused) -> None:
        """Answer a create with a no."""
        self._conclude(incoming, failure(error, self._host.name, fleet=self._fleet))

    def answer_when_built(self, incoming: Incoming, built: asyncio.Task[None]) -> None:
        """Answer a create when its VM runs, or could not be built."""

        async def outcome() -> VmStatus:
            await asyncio.shield(built)
            return VmStatus(status="starting", vm_id=incoming.create.vm_id or "")

        self._host.go_on(self._finish(incoming, outcome()))


class _Labels(Mapping[str, Mapping[str, str]]):
    """The labels of each VM that a host knows, by its id."""

    def __init__(self, vms: Mapping[str, Vm]) -> None:
        self._vms = vms

    def __getitem__(self, vm_id: str) -> Mapping[str, str]:
        return self._vms[vm_id].record.spec.labels

    def __iter__(self) -> Iterator[str]:
        return iter(self._vms)

    def __len__(self) -> int:
        return len(self._vms)


def _completed(incoming: Incoming, now: float) -> Incoming:
    """A create with its VM id and its deadline, made up for a client that gave none (the seed's)."""
    if incoming.create.vm_id is None:
        name = incoming.create.name
        incoming = incoming.with_vm_id(id_of_name(name) if name else derive_vm_id(incoming.request_id))
    if incoming.deadline is None:
        incoming = replace(incoming, deadline=now + DEFAULT_PATIENCE_S)
    return incoming


def _undeliverable(queue: str, incoming: Incoming, own_host: str) -> Refused:
    host = queue_host(queue)
    if not host:
        return Refused("host-down", "no agent took this command in time; it was not begun", "repeat it")
    holds = f", which holds VM {incoming.request.vm_id}," if incoming.request.vm_id else ""
    trouble = "was too busy to take the command" if host == own_host else "is not running"
    return Refused(
        "host-down",
        f"host {host}{holds} {trouble}; the command was not begun",
        "repeat it when the host is back; list-hosts shows who is up",
        down=host,
    )


def _too_many(host: str) -> Refused:
    """Nothing can be said of what was not read: it may be a copy of a command that was done, and may come again."""
    reason = f"host {host} was sent more than it can hold; this command was not read"
    return Refused("outcome-unknown", reason, "repeat it, with fewer at once")


def _verb(incoming: Incoming) -> str:
    options = incoming.request.options
    if isinstance(options, StopVm | RebootVm) and options.kill:
        return f"{incoming.request.command.name} --kill"
    return incoming.request.command.name


_DONE = {
    "start-vm": "starting",
    "stop-vm": "stopped",
    "stop-vm --kill": "stopped",
    "delete-vm": "deleted",
    "reboot-vm": "starting",
    "reboot-vm --kill": "starting",
    "pause-vm": "paused",
    "resume-vm": "running",
    "resize-vm": "resized",
    "snapshot-vm": "created",
    "restore-vm": "restored",
    "delete-snapshot": "deleted",
    "extend-vm": "extended",
}
"""What a command that was done is answered, and whoever asks it again."""


def _done(vm: Vm, incoming: Incoming) -> Status:
    status, vm_id, options = _DONE[_verb(incoming)], vm.record.vm_id, incoming.request.options
    if isinstance(options, SnapshotRef):
        return SnapshotDone(status=status, vm_id=vm_id, snapshot=options.snapshot)
    if isinstance(options, ExtendVm):
        return ExpiryStatus(status=status, vm_id=vm_id, expires=vm.record.expires)
    return VmStatus(status=status, vm_id=vm_id)


def _asked(incoming: Incoming) -> Asked:
    return Asked(incoming.request_id if incoming.named else "", incoming.deadline)


def _deleted_by(vm: Vm, incoming: Incoming) -> bool:
    ending = vm.record.ending
    return (
        incoming.request.command.name == "delete-vm"
        and vm.record.phase == "gone"
        and ending is not None
        and ending.request_id == incoming.request_id
    )
