"""What there is on hosts and in the broker, as whoever collects it saw it: plain values, believing no agent."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

Phase = Literal["claimed", "bound", "ready", "deleting", "gone"]


@dataclass(frozen=True)
class RecordView:
    """One file of a host's journal. `deadline` in seconds since the epoch."""

    phase: Phase
    request_id: str
    bound: bool = True
    deadline: float = 0.0
    wanted: Literal["on", "off"] = "on"

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Self:
        """The view of what a file has; what it leaves out has the agent's default."""
        return cls(
            phase=record["phase"],
            request_id=record["request_id"],
            bound=record.get("bound", False),
            deadline=record["deadline"],
            wanted=record.get("wanted", "on"),
        )


@dataclass(frozen=True)
class HostView:
    """All that one host has of VMs. Sets hold VM ids."""

    name: str
    records: Mapping[str, RecordView] = field(default_factory=dict)
    disks: frozenset[str] = frozenset()  #: a VM folder, with or without an overlay in it
    running: frozenset[str] = frozenset()  #: an active unit
    units: frozenset[str] = frozenset()  #: any unit that systemd knows, failed or not, or a leftover drop-in
    processes: Mapping[str, int] = field(default_factory=dict)  #: how many QEMU processes
    runtime: frozenset[str] = frozenset()  #: sockets, arguments, anything under /run
    cut_off: frozenset[str] = frozenset()  #: active, and without its tap, its rules or its address
    strays: tuple[str, ...] = ()  #: taps, drafts (`*.new`), whatever else should not be there


@dataclass(frozen=True)
class ClaimView:
    """The queue `claim.<vm-id>`: its owner, and after how long without use it goes (None: never)."""

    owner: str
    expires_ms: int | None


@dataclass(frozen=True)
class QueueView:
    """A queue's messages and consumers."""

    ready: int = 0
    unacked: int = 0
    consumers: int = 0


@dataclass(frozen=True)
class BrokerView:
    """All that the product's vhost has. `other_bindings`: (exchange, queue, key) of all others than VMs'."""

    bindings: Mapping[str, frozenset[str]] = field(default_factory=dict)  #: VM id → hosts that `vm.<id>` leads to
    other_bindings: frozenset[tuple[str, str, str]] = frozenset()
    claims: Mapping[str, ClaimView] = field(default_factory=dict)
    queues: Mapping[str, QueueView] = field(default_factory=dict)  #: all of them, by name; claims may be left out
    started: float = 0.0  #: when the broker last started: the expiry of its claims counts from then
