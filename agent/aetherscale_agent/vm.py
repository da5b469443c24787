"""One VM at run time: its record, its state, and the line in which its commands wait."""

import asyncio
from dataclasses import dataclass, field

from aetherscale_agent.journal import Record
from aetherscale_protocol.answers import VmState
from aetherscale_protocol.options import CreateVm


@dataclass
class Vm:
    """One VM at run time. `line` is held by the command that works on it, `pen` while its record is changed.

    The pen is no command's: a connection that is made anew, or a create that is asked again, changes records of VMs
    that are just being built, stopped or removed, and neither may undo what the other wrote.
    """

    record: Record
    state: VmState
    line: asyncio.Lock = field(default_factory=asyncio.Lock)
    pen: asyncio.Lock = field(default_factory=asyncio.Lock)
    built: asyncio.Task[None] | None = None
    shutdown: asyncio.Task[None] | None = None
    rebooting: asyncio.Task[None] | None = None
    promised: CreateVm | None = None  #: what it is being resized to
    waiting: int = 0  #: commands in its line, the one at work included

    @property
    def exists(self) -> bool:
        """Whether it is a VM to the outside: neither a claim only, nor a tombstone."""
        return self.record.phase in ("bound", "ready", "deleting")

    @property
    def is_tomb(self) -> bool:
        """Whether it is kept only so that a late copy of its create meets it."""
        return self.record.phase == "gone"
