"""What commands can be told: one struct per kind, checked in full when it is decoded.

Kebab-case on the wire; nothing unknown is accepted. Memory in MiB, disk in GiB, times in seconds.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from aetherscale_protocol import names

MIB_PER_GIB = 1024

Cpus = Annotated[int, Meta(ge=1, le=256)]
MemoryMiB = Annotated[int, Meta(ge=64, le=4 * 1024 * 1024)]
DiskGiB = Annotated[int, Meta(ge=1, le=64 * 1024)]
Port = Annotated[int, Meta(ge=1, le=65535)]
TtlS = Annotated[int, Meta(ge=1, le=10 * 366 * 86_400)]

MOST_LABELS = 32
MOST_KEYS = 64
MOST_PUBLISHED = 32
LONGEST_KEY = 16_384
LONGEST_TEXT = 256 << 10
"""Bytes of user-data, and of all ssh keys together: with the rest they must fit into one message."""


class Options(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab", omit_defaults=True):
    """Base of all options: kebab-case on the wire, nothing unknown accepted."""

    def __post_init__(self) -> None:
        for field, (is_right, rule) in _RULES.items():
            value = getattr(self, field, None)
            if value is not None and not is_right(value):
                raise ValueError(f"{field.replace('_', '-')} {value!r}: {rule}")


_RULES = {
    "vm_id": (names.is_vm_id, names.VM_ID_RULE),
    "clone_of": (names.is_vm_id, names.VM_ID_RULE),
    "image": (names.is_image_name, names.IMAGE_RULE),
    "host": (names.is_host_name, names.HOST_RULE),
    "name": (names.is_vm_name, names.VM_NAME_RULE),
    "snapshot": (names.is_snapshot_name, names.SNAPSHOT_RULE),
}


class NoOptions(Options, frozen=True):
    """A command without options."""


class Publish(Options, frozen=True):
    """A TCP port of the host that leads to a port of the guest."""

    host_port: Port
    guest_port: Port


class CreateVm(Options, frozen=True):
    """What a new VM should be. `memory` in MiB, `disk` in GiB (at least the image's own size is given).

    Where it goes: `host`, `host_labels` (the host has them all), `spread` (away from VMs with that label, KEY=VALUE or
    KEY), `near` (to them). `ttl` in seconds from its creation; then its host deletes it.
    """

    image: str
    vm_id: str | None = None  #: with a name it is the name's own, or left out
    name: str | None = None
    cpus: Cpus = 1
    memory: MemoryMiB = 1024
    disk: DiskGiB = 10
    labels: dict[str, str] = {}
    ssh_keys: tuple[str, ...] = ()
    user_data: str = ""
    publish: tuple[Publish, ...] = ()
    ttl: TtlS | None = None
    host: str | None = None
    host_labels: dict[str, str] = {}
    spread: str | None = None
    near: str | None = None
    clone_of: str | None = None  #: a VM that is off, of the same image: its disk is copied

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name is not None and self.vm_id not in (None, names.id_of_name(self.name)):
            raise ValueError(f"vm-id {self.vm_id!r} is not that of name {self.name!r}: leave one of them out")
        for key, value in [*self.labels.items(), *self.host_labels.items()]:
            if not names.is_label(key, value):
                raise ValueError(f"label {key}={value}: {names.LABEL_RULE}")
        for selector in (self.spread, self.near):
            if selector is not None and not names.is_label(*split_selector(selector)):
                raise ValueError(f"label {selector!r}: {names.LABEL_RULE}")
        if self.spread is not None and self.near is not None:
            raise ValueError("spread and near exclude each other")
        self._check_sizes()

    def _check_sizes(self) -> None:
        for number, key in enumerate(self.ssh_keys, 1):  # never quoted: it may be the private one
            if not key.isprintable() or not key.strip() or len(key) > LONGEST_KEY:
                raise ValueError(f"ssh-keys: number {number} is not one line of a public key")
        if len({port.host_port for port in self.publish}) < len(self.publish):
            raise ValueError("publish: a port of the host is named twice")
        for what, size in (
            ("user-data has", len(self.user_data.encode())),
            ("ssh-keys have", sum(len(key.encode()) for key in self.ssh_keys)),
        ):
            if size > LONGEST_TEXT:
                raise ValueError(f"{what} {size} bytes; {LONGEST_TEXT} are the most")
        for what, many, most in (
            ("labels", len(self.labels), MOST_LABELS),
            ("host-labels", len(self.host_labels), MOST_LABELS),
            ("ssh-keys", len(self.ssh_keys), MOST_KEYS),
            ("publish", len(self.publish), MOST_PUBLISHED),
        ):
            if many > most:
                raise ValueError(f"{what}: {many} of them; {most} are the most")


def split_selector(selector: str) -> tuple[str, str]:
    """The key and the value of a label's selector, `KEY=VALUE` or `KEY`; any value will do for a bare key."""
    key, _, value = selector.partition("=")
    return key, value


def selects(selector: str, labels: dict[str, str]) -> bool:
    """Whether labels are what a selector (`KEY=VALUE`, or `KEY` with any value) asks for."""
    key, sign, value = selector.partition("=")
    return key in labels and (not sign or labels[key] == value)


class VmRef(Options, frozen=True):
    """One VM, by its id."""

    vm_id: str


class StopVm(VmRef, frozen=True):
    """Which VM to stop, and whether by the power button (default) or by pulling the plug (`kill`)."""

    kill: bool = False


class RebootVm(VmRef, frozen=True):
    """Which VM to reboot: by power button and start (default), or by the reset button (`kill`)."""

    kill: bool = False


class ResizeVm(VmRef, frozen=True):
    """What a VM is to have from now on; what is left out stays. Cores and memory: only while it is off."""

    cpus: Cpus | None = None
    memory: MemoryMiB | None = None
    disk: DiskGiB | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cpus is None and self.memory is None and self.disk is None:
            raise ValueError("nothing to resize: give cpus, memory or disk")


class SnapshotRef(VmRef, frozen=True):
    """A snapshot of a VM, by its name."""

    snapshot: str


class ExtendVm(VmRef, frozen=True):
    """When a VM expires: `ttl` seconds from now, or never (null)."""

    ttl: TtlS | None


class ShowVm(VmRef, frozen=True):
    """Which VM to show, how many of its console's last lines with it, and whether to look how far it has booted."""

    console_lines: Annotated[int, Meta(ge=0, le=1000)] = 10
    reached: bool = False


class OpenStream(VmRef, frozen=True):
    """A stream of bytes to and from a VM: its serial console, what that shows (`log`, read only), or a TCP port.

    `lines`: how much of what the console showed before comes first. `window`: bytes that the client takes before it
    has given credit for more (docs/protocol.md, "Streams").
    """

    kind: Literal["console", "log", "tcp"]
    port: Port | None = None
    lines: Annotated[int, Meta(ge=0, le=1000)] = 0
    window: Annotated[int, Meta(ge=4096, le=4 << 20)] = 256 << 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.kind == "tcp") != (self.port is not None):
            raise ValueError("port goes with kind tcp, and with no other")


class HostRef(Options, frozen=True):
    """One host, by its name."""

    host: str


class DeleteImage(HostRef, frozen=True):
    """An image on one host."""

    image: str


class ForgetHost(Options, frozen=True):
    """A host that is gone for good; `dry_run`: only say what is known of it."""

    host: str
    dry_run: bool = False


class CheckHost(Options, frozen=True):
    """What a host is to look after on itself; `checksums`: also begin to read its images, unless they were read lately,
    and say of each whether it is what it should be.
    """

    checksums: bool = False
