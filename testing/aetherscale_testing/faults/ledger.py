"""What clients asked, and what they were told: the half of a promise that is not on any host."""

import json
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Verb = Literal[
    "create", "start", "stop", "kill", "delete", "snapshot", "restore", "resize", "reboot", "tunnel", "crash"
]
"""`crash` is no client's: the test itself killed the VM's QEMU, so that the VM may be off."""

Outcome = Literal["done", "refused", "unknown", "none"]

UNSURE = ("outcome-unknown",)
"""Codes of refusals after which the command may have been done."""


@dataclass(frozen=True)
class Told:
    """What a client was told: done (with a status), refused (with a code), that nobody knows, or nothing."""

    outcome: Outcome
    what: str = ""


NOTHING = Told("none")


def told_by(answer: Mapping[str, Any]) -> Told:
    """What an answer on the wire tells; one without a word of how it went tells nothing."""
    info = answer.get("execution-info")
    if not isinstance(info, Mapping):
        return NOTHING
    if info.get("status") == "success":
        response = answer.get("response")
        return Told("done", str(response.get("status", "")) if isinstance(response, Mapping) else "")
    code = str(info.get("code") or "")
    return Told("unknown", code) if code in UNSURE else Told("refused", code)


@dataclass(frozen=True)
class Entry:
    """One message of a client and its answer. Times in seconds since the epoch, by the client's clock."""

    vm_id: str
    request_id: str
    verb: Verb
    deadline: float
    sent_at: float
    told: Told = NOTHING
    told_at: float | None = None

    @property
    def may_have_worked(self) -> bool:
        """Whether it may have been done. What failed half-way may have, unless it is a create: that is undone."""
        if self.told.outcome == "refused":
            return self.told.what == "failed" and self.verb != "create"
        return True


class Ledger:
    """All entries of a run, in the order in which they were sent. Any thread may add to it."""

    def __init__(self, entries: tuple[Entry, ...] = ()) -> None:
        self._entries = list(entries)
        self._lock = threading.Lock()

    def ask(self, vm_id: str, request_id: str, verb: Verb, deadline: float, sent_at: float) -> int:
        """Note that a command is being sent; its number, for `tell`. A command that is sent again is a new entry."""
        with self._lock:
            self._entries.append(Entry(vm_id, request_id, verb, deadline, sent_at))
            return len(self._entries) - 1

    def tell(self, number: int, told: Told, at: float) -> None:
        """Note what the client was told."""
        with self._lock:
            self._entries[number] = replace(self._entries[number], told=told, told_at=at)

    def crash(self, vm_id: str, at: float) -> None:
        """Note that the test itself killed the VM's QEMU."""
        with self._lock:
            self._entries.append(Entry(vm_id, "", "crash", at, at, Told("done"), at))

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All entries so far."""
        with self._lock:
            return tuple(self._entries)

    def to_json(self) -> str:
        """The ledger as a JSON array."""
        return json.dumps([asdict(entry) for entry in self.entries])

    @classmethod
    def from_json(cls, text: str) -> "Ledger":
        """The ledger in a JSON array that `to_json` made."""
        return cls(tuple(Entry(**{**row, "told": Told(**row["told"])}) for row in json.loads(text)))
