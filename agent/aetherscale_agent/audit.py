"""Who asked for what, and what came of it: one structured entry in the systemd journal per command.

An entry never holds user-data, keys, a stream's bytes or a password: only the options that are named here are told.
`docs/security.md` says how to look things up.
"""

import logging
import socket
import struct
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from aetherscale_agent.envelope import Incoming
from aetherscale_protocol.answers import Answer
from aetherscale_protocol.commands import COMMANDS
from aetherscale_protocol.errors import Refused
from aetherscale_protocol.options import CreateVm, Options

log = logging.getLogger(__name__)

MESSAGE_ID = "5e0b1f6c3a7d4f0f9d0c6f0a4a8f2b31"
"""What all entries of the audit bear, and nothing else does: `journalctl MESSAGE_ID=…`."""

JOURNAL = "/run/systemd/journal/socket"
PATIENCE_S = 5.0
"""How long an entry waits for a journald whose queue is full: it syncs or rotates, or a flood is under way."""
INFO, DEBUG = 6, 7
UNSIGNED = "an unsigned client"

TOLD = ("image", "host", "snapshot", "kind", "port", "kill", "cpus", "memory", "disk", "ttl", "clone_of", "dry_run")
"""The options that an entry tells. All others, user-data and keys among them, are none of the journal's business."""

LONGEST = 500
"""Characters of one value: a refusal repeats what was sent."""


@dataclass(frozen=True)
class Entry:
    """One command and what came of it. `who`: '' if it was not signed; `handed_on`: the host's user it came through."""

    who: str
    command: str
    result: str  #: `success`, or `error`
    vm_id: str = ""
    vm_name: str = ""
    request_id: str = ""
    code: str = ""
    reason: str = ""
    options: str = ""
    handed_on: str = ""
    bytes_in: int | None = None  #: of a stream that is over: from the client, and to it
    bytes_out: int | None = None
    quiet: bool = False  #: it changed nothing, nor tried to

    @property
    def message(self) -> str:
        """The same for people."""
        what = f"{self.command} of VM {self.vm_id}" if self.vm_id else self.command
        what += f" ({self.options})" if self.options else ""
        moved = "" if self.bytes_in is None else f", {self.bytes_in} bytes in, {self.bytes_out} bytes out"
        why = f" ({self.code + ': ' if self.code else ''}{self.reason})" if self.reason else ""
        return in_one_line(f"{what} for {self.who or UNSIGNED!r}: {self.result}{moved}{why}")

    def fields(self) -> dict[str, str]:
        """The entry's fields; those that say nothing are left out."""
        told = {
            "OPERATOR": self.who,
            "COMMAND": self.command,
            "VM": self.vm_id,
            "VM_NAME": self.vm_name,
            "REQUEST_ID": self.request_id,
            "RESULT": self.result,
            "CODE": self.code,
            "REASON": self.reason,
            "OPTIONS": self.options,
            "HANDED_ON_BY": self.handed_on,
            "BYTES_IN": "" if self.bytes_in is None else str(self.bytes_in),
            "BYTES_OUT": "" if self.bytes_out is None else str(self.bytes_out),
        }
        return {
            "MESSAGE": self.message[:LONGEST],
            "MESSAGE_ID": MESSAGE_ID,
            "PRIORITY": str(DEBUG if self.quiet else INFO),
            "SYSLOG_IDENTIFIER": "aetherscale-agent",
            **{f"AETHERSCALE_{name}": value[:LONGEST] for name, value in told.items() if value},
        }


def encode(fields: Mapping[str, str]) -> bytes:
    """Fields as journald's native protocol has them; whatever is in a value, it stays a value.

    Source: systemd's `docs/JOURNAL_NATIVE_PROTOCOL.md`: `NAME=value`, or, for one with a line break, the name on a
    line of its own, then the length (64 bits, little-endian) and the value.
    """
    parts = []
    for name, value in fields.items():
        data = value.encode(errors="backslashreplace")
        if b"\n" in data:
            parts.append(name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n")
        else:
            parts.append(name.encode() + b"=" + data + b"\n")
    return b"".join(parts)


def told_options(options: Options) -> str:
    """What an entry tells of a command's options: `image=debian cpus=2`."""
    values = {name: getattr(options, name, None) for name in TOLD}
    return " ".join(f"{name.replace('_', '-')}={value}" for name, value in values.items() if value not in (None, False))


def in_one_line(text: str) -> str:
    """A text whose line breaks and escapes are shown, and not obeyed."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def entry_of(incoming: Incoming, answer: Answer, vm_name: str = "") -> Entry:
    """The entry of a command that was answered. `vm_name`: of the VM that it speaks of, if that is known."""
    request, info = incoming.request, answer.execution_info
    options, name = request.options, request.command.name
    return Entry(
        who=incoming.operator,
        command=name,
        result=info.status,
        vm_id=request.vm_id or "",
        vm_name=(options.name if isinstance(options, CreateVm) else None) or vm_name,
        request_id=incoming.request_id,
        code=info.code or "",
        reason=info.reason or "",
        options=told_options(options),
        handed_on=incoming.sender if incoming.internal and incoming.operator != incoming.sender else "",
        quiet=_is_quiet(name) or info.code == "host-down",  # said for somebody else, and never begun
    )


def entry_of_unread(user: str, key: str, error: Refused) -> Entry:
    """The entry of a message that is no command: its key stands for what it wanted. Neither need be text."""
    return Entry(who=str(user), command=str(key)[:80], result="error", code=error.code, reason=error.reason)


def _is_quiet(command: str) -> bool:
    """Whether a command is not worth an administrator's look: it only reads. A console is more than that."""
    return not COMMANDS[command].changes and command != "open-stream"


class Audit:
    """Writes entries: here, as lines of the log."""

    def note(self, entry: Entry) -> None:
        """Write one entry down; what this costs is some microseconds."""
        log.log(logging.DEBUG if entry.quiet else logging.INFO, "%s", entry.message[:LONGEST])


class JournalAudit(Audit):
    """Writes entries to the journal at once; to one whose queue is full, from a thread that waits, and in their order.

    The agent's loop never waits. What journald has not taken after `patience_s` becomes a line of the log, and so does
    what follows, until journald takes something again. At its end a program waits for the thread.
    """

    def __init__(self, path: str, patience_s: float = PATIENCE_S) -> None:
        self._path = path
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        # Not settimeout(): it polls, and a datagram socket that is not connected is always writable: it would spin.
        patience = struct.pack("@ll", int(patience_s), int(patience_s % 1 * 1e6))
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
        self._thread = ThreadPoolExecutor(1, "audit")
        self._last: Future[None] | None = None  #: the last entry that the thread was given
        self._stuck = False  #: journald did not take the last one that was waited with

    def note(self, entry: Entry) -> None:
        """Write one entry down. It never waits."""
        try:
            if self._last is None or self._last.done():  # else it would overtake those that wait
                self._send(entry, socket.MSG_DONTWAIT)
                return
        except BlockingIOError:
            pass
        except OSError:  # there is no journal
            super().note(entry)
            return
        self._last = self._thread.submit(self._wait_and_send, entry)

    def _send(self, entry: Entry, flags: int) -> None:
        self._sock.sendto(encode(entry.fields()), flags, self._path)
        self._stuck = False

    def _wait_and_send(self, entry: Entry) -> None:
        try:
            self._send(entry, socket.MSG_DONTWAIT if self._stuck else 0)
        except OSError as error:
            self._stuck = isinstance(error, BlockingIOError)
            super().note(entry)


def open_audit(environ: Mapping[str, str], path: str = JOURNAL) -> Audit:
    """The journal's, if systemd connected us to it; else the log's."""
    return JournalAudit(path) if "JOURNAL_STREAM" in environ else Audit()
