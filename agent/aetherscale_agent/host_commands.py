"""Commands that change a host, not a VM: each is published to the key of that host alone, and does its work at once.

Like a VM's, they run once, however often they are asked with the same request id before their deadline.
"""

import asyncio
import logging

from aetherscale_agent import drain, images
from aetherscale_agent.asked import Asked, ended_alone
from aetherscale_agent.host import Host
from aetherscale_agent.journal import Done, HostRecord, JournalError
from aetherscale_agent.refusals import ending_refusal
from aetherscale_protocol.answers import HostStatus, ImageDone
from aetherscale_protocol.commands import Request
from aetherscale_protocol.errors import Refused
from aetherscale_protocol.options import DeleteImage, HostRef

log = logging.getLogger(__name__)

Status = HostStatus | ImageDone

CUT_OFF = "the agent was restarted in its middle, and another command for this host came after it"


class HostCommands:
    """What is asked of this host, one after the other."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._line = asyncio.Lock()
        self._record: HostRecord | None = None

    async def execute(self, request: Request, asked: Asked) -> Status:
        """Do what a command asks of this host; if it was done before, say how it came out.

        :raise Refused: `bad-request`, when it speaks of another host; `outcome-unknown`, when it was cut off and is
            overtaken; and what the work itself raises.
        """
        options = request.options
        assert isinstance(options, HostRef)
        if options.host != self._host.name:
            reason = f"this is host {self._host.name}, not {options.host}"
            raise Refused("bad-request", reason, "publish it to the host's own key")
        async with self._line:
            if self._record is None:
                self._record = self._host.journal.load_host(log.error)
            before = asked.find(self._record)
            if before is not None and before.finished:
                return self._outcome(before, request)
            if asked.is_over(self._record) and request.command.name != "delete-image":
                raise Refused("outcome-unknown", CUT_OFF, "list-hosts tells whether it is drained")
            await self._write(asked.begun(self._record, self._host.clock()))
            return await self._run(request, asked, again=before is not None)

    async def _run(self, request: Request, asked: Asked, *, again: bool) -> Status:
        assert self._record is not None
        try:
            status = self._act(request)
        except Refused as error:
            if not (again and error.code == "image-unknown"):  # else it was deleted, and nobody was told
                await self._write(ended_alone(self._record, asked.request_id, error))
                raise
            status = _done(request, self._host.name)
        await self._write(ended_alone(self._record, asked.request_id, None))
        return status

    def _act(self, request: Request) -> Status:
        host, options = self._host, request.options
        match request.command.name, options:
            case "drain-host", _:
                status = drain.drain(host.journal, host.name)
            case "undrain-host", _:
                status = drain.undrain(host.journal, host.name)
            case "delete-image", DeleteImage(image=image):
                return images.delete(host.name, image, host.images, host.vms, host.reserved)
            case name, _:
                raise AssertionError(f"no handler for {name}")
        log.info("host %s: %s", host.name, status.status)
        host.capacity_changed.set()
        return status

    def _outcome(self, before: Done, request: Request) -> Status:
        if before.ending is not None:
            raise ending_refusal(before.ending)
        return _done(request, self._host.name)

    async def _write(self, done: tuple[Done, ...]) -> None:
        """Remember it; if that can't be written, for this agent's life: an image is deleted to make room, after all."""
        assert self._record is not None
        if done == self._record.done:
            return
        self._record = HostRecord(done=done)
        try:
            await self._host.journal.put_host(self._record)
        except JournalError as error:
            log.warning("what was asked of this host is remembered until the agent is restarted: %s", error)


def _done(request: Request, host: str) -> Status:
    """What a command that was done is answered, and whoever asks it again."""
    options = request.options
    if isinstance(options, DeleteImage):
        return ImageDone(status="deleted", image=options.image)
    return HostStatus(status="drained" if request.command.name == "drain-host" else "up", host=host)
