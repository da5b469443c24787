"""Answers, and what they carry. Written strictly, read tolerantly: unknown keys are ignored, so that an
older CLI survives a newer agent.
"""

from typing import Any, Literal

import msgspec
from msgspec import Raw, Struct

from aetherscale_protocol.errors import Refused

VmState = Literal["creating", "starting", "running", "paused", "stopping", "stopped", "deleting", "failed"]

Milestone = Literal["running", "ip", "ssh", "cloud-init"]
"""How far a VM has come: QEMU runs; it has asked for its address; its port 22 speaks ssh; cloud-init is done."""

AddressSource = Literal["host", "guest-agent", "none"]
"""How a host comes to know a VM's addresses: it gives them, the guest's own agent tells them, or not at all."""

HostState = Literal["up", "drained"]


SumState = Literal["right", "wrong", "unreadable", "pending"]

BridgeState = Literal["up", "down", "absent", "no-address"]
"""`down`: switched off; `no-address`: it lacks the host's own in the VMs' network."""


class _Wire(Struct, frozen=True, kw_only=True, rename="kebab", omit_defaults=True):
    """Base of what answers carry: kebab-case, defaults left out."""


class ExecutionInfo(_Wire, frozen=True):
    """How it went. The rest only with errors; `reasons` holds each host's own, where several refused; `down` is
    the host that does not run, where another one answers for it.
    """

    status: Literal["success", "error"]
    reason: str | None = None
    code: str | None = None
    hint: str | None = None
    reasons: dict[str, str] = {}
    down: str | None = None


class Fleet(_Wire, frozen=True):
    """The hosts that the inventory names: how many, and a digest of their names (see `fleet_digest`)."""

    size: int
    digest: str


NOTHING = Raw(b"")
"""What an answer does not carry; false, and left out on the wire. (msgspec can't decode `Raw | None`.)"""


class Answer(_Wire, frozen=True):
    """One agent's answer. `response` is raw JSON; its type depends on the command (see `RESPONSES`)."""

    execution_info: ExecutionInfo
    response: Raw = NOTHING
    host: str | None = None
    details: Raw = NOTHING
    fleet: Fleet | None = None

    @property
    def ok(self) -> bool:
        """Whether the command was done."""
        return self.execution_info.status == "success"


class VmStatus(_Wire, frozen=True):
    """Response of create-vm and of what changes a VM."""

    status: str
    vm_id: str


class VmDetails(_Wire, frozen=True):
    """One row of list-vms. `memory` in MiB, `disk` in GiB, `since` and `expires` in seconds since the epoch."""

    vm_id: str
    state: VmState
    image: str
    cpus: int
    memory: int
    disk: int
    since: float
    name: str = ""
    labels: dict[str, str] = {}
    addresses: list[str] = []  #: of the guest, IPv4 first
    published: list[str] = []  #: HOST-PORT:GUEST-PORT
    expires: float = 0  #: 0: never


class VmReport(VmDetails, frozen=True, kw_only=True):
    """Response of show-vm."""

    host: str
    created: float
    accelerator: str = ""
    reason: str = ""  #: why it is in this state, where there is more to say
    console: list[str] = []
    instance: str = ""  #: another one for each VM that ever had this id
    mac: str = ""
    address_source: AddressSource = "host"
    clone_of: str = ""
    reached: list[Milestone] = []  #: only if it was asked for


class SnapshotRow(_Wire, frozen=True):
    """One row of list-snapshots. `created` in seconds since the epoch."""

    snapshot: str
    created: float


class SnapshotDone(_Wire, frozen=True):
    """Response of snapshot-vm, restore-vm and delete-snapshot."""

    status: str
    vm_id: str
    snapshot: str


class ExpiryStatus(_Wire, frozen=True):
    """Response of extend-vm. `expires` in seconds since the epoch; 0: never."""

    status: str
    vm_id: str
    expires: float


class ImageRow(_Wire, frozen=True):
    """One row of list-images. `virtual_size`, `size` (of the file) in bytes; `used_by`: ids of VMs."""

    image: str
    format: str
    virtual_size: int
    size: int
    sha256: str
    used_by: list[str] = []


class ImageDone(_Wire, frozen=True):
    """Response of delete-image."""

    status: str
    image: str


class HostStatus(_Wire, frozen=True):
    """Response of drain-host and undrain-host."""

    status: HostState
    host: str


class StreamOpened(_Wire, frozen=True):
    """Response of open-stream: its id, and how many bytes the agent takes before it has given credit for more."""

    stream: str
    window: int


class HostReport(_Wire, frozen=True):
    """Response of list-hosts. Memory in MiB, disk in GiB; free = total less what VMs were promised."""

    host: str
    state: HostState
    cpus: int
    cpus_free: int
    memory: int
    memory_free: int
    disk: int
    disk_free: int
    vms: int
    running: int
    images: list[str]
    accelerator: str
    agent_version: str
    fleet: list[str]
    labels: dict[str, str] = {}


class Offer(_Wire, frozen=True):
    """Response of offer-vm: how well this host could take the VM; higher is better. `alike`: how many VMs it has that
    the create's `spread` or `near` selects.
    """

    score: int
    alike: int = 0


class Pong(_Wire, frozen=True):
    """Response of ping. `clock`: what the host takes the time to be, in seconds since the epoch."""

    host: str
    agent_version: str
    clock: float


class VmTrouble(_Wire, frozen=True):
    """A VM that failed, or that runs and has something wrong with it."""

    vm_id: str
    state: VmState
    name: str = ""
    reason: str = ""


class ImageSum(_Wire, frozen=True):
    """Whether an image's file is what its checksum says; `pending`: it is being read, or waits for that. `sha256`: what
    it should be.
    """

    image: str
    sha256: str
    state: SumState
    reason: str = ""  #: why it is unreadable


class HostCondition(_Wire, frozen=True):
    """Response of check-host: what a host finds when it looks at itself. Sizes in bytes."""

    host: str
    accelerator: str
    accelerator_chosen: bool = False  #: it was told so; it did not try
    accelerator_reason: str = ""  #: why it is not KVM
    virtualization: bool = False  #: its CPU offers it to this system
    bridge: str = ""  #: '': each VM is behind a network of its QEMU's own
    bridge_state: BridgeState = "up"
    services: dict[str, str] = {}  #: the units that should be active here, and what systemd says of each
    disk_size: int = 0  #: of the file system that VMs are on
    disk_free: int = 0
    disk_growth: int = 0  #: what the VMs' disks may still take of it
    troubles: list[VmTrouble] = []
    manifests: list[str] = []  #: what is wrong with images that are not used for that
    images: list[ImageSum] = []  #: only if checksums were asked for
    unread: int = 0  #: of these images, still to be read


class KnownVms(_Wire, frozen=True):
    """What a host last said of its VMs; kept in the broker, so that it outlives the host. `time`: when it said so,
    in seconds since the epoch by its own clock.
    """

    host: str
    time: float
    vms: list[VmDetails]


class ForgetReport(_Wire, frozen=True):
    """Response of forget-host. `told`: when the host last spoke of its VMs (0: nothing is known of them)."""

    status: Literal["would-forget", "forgotten"]
    host: str
    vms: list[VmDetails] = []
    told: float = 0
    claims: list[str] = []  #: the VM ids whose claims this host held
    in_fleet: bool = False  #: whether the inventory still names it, as far as the answering host was told


RESPONSES: dict[str, Any] = {
    "create-vm": VmStatus,
    "list-vms": list[str],
    "start-vm": VmStatus,
    "stop-vm": VmStatus,
    "reboot-vm": VmStatus,
    "pause-vm": VmStatus,
    "resume-vm": VmStatus,
    "resize-vm": VmStatus,
    "snapshot-vm": SnapshotDone,
    "restore-vm": SnapshotDone,
    "delete-snapshot": SnapshotDone,
    "list-snapshots": list[SnapshotRow],
    "extend-vm": ExpiryStatus,
    "delete-vm": VmStatus,
    "show-vm": VmReport,
    "open-stream": StreamOpened,
    "list-hosts": HostReport,
    "list-images": list[ImageRow],
    "delete-image": ImageDone,
    "drain-host": HostStatus,
    "undrain-host": HostStatus,
    "offer-vm": Offer,
    "ping": Pong,
    "check-host": HostCondition,
    "forget-host": ForgetReport,
}


def raw(value: Any) -> Raw:
    """`value` as a piece of JSON that an Answer can carry."""
    return Raw(msgspec.json.encode(value))


def success(response: Any, host: str, *, details: Any = None, fleet: Fleet | None = None) -> Answer:
    """The answer to a command that was done."""
    return Answer(
        execution_info=ExecutionInfo(status="success"),
        response=raw(response),
        host=host,
        details=NOTHING if details is None else raw(details),
        fleet=fleet,
    )


def failure(error: Refused, host: str | None = None, *, fleet: Fleet | None = None) -> Answer:
    """The answer to a command that was not done."""
    info = ExecutionInfo(
        status="error",
        reason=error.reason,
        code=error.code,
        hint=error.hint,
        reasons=error.reasons,
        down=error.down,
    )
    return Answer(execution_info=info, host=host, fleet=fleet)


def encode_answer(answer: Answer) -> bytes:
    """An answer as a message's body."""
    return msgspec.json.encode(answer)


def decode_answer(body: bytes) -> Answer:
    """The answer in a message's body.

    :raise ValueError: when it is not one (msgspec's errors are ValueErrors).
    """
    return msgspec.json.decode(body, type=Answer)


def fleet_digest(hosts: list[str]) -> str:
    """A short digest of the fleet's names, equal on every host that was given the same list."""
    import hashlib  # not before it is needed: it loads OpenSSL

    return hashlib.sha256("\n".join(sorted(hosts)).encode()).hexdigest()[:12]
