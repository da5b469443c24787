"""What a VM is, against what a file says that it should be: what can be made so now, and what the rest needs. Pure."""

from collections.abc import Iterator, Sequence

from msgspec import Struct

from aetherscale_cli import text
from aetherscale_cli.arguments import PROGRAM
from aetherscale_cli.manifest import Wanted
from aetherscale_protocol.answers import VmReport
from aetherscale_protocol.options import CreateVm, ExtendVm, Options, ResizeVm

CLOSE_S = 60.0
"""By how much a time of expiry may be off and still count as the same: clocks differ, and questions take time."""


class Difference(Struct, frozen=True):
    """One field that is not as it should be. `needs`: what to do about it; '' if it can be made so at once."""

    field: str
    now: str
    wanted: str
    needs: str = ""

    @property
    def command(self) -> str:
        """What makes it so."""
        return "extend-vm" if self.field == "ttl" else "resize-vm"

    def __str__(self) -> str:
        return f"{self.field} {self.now or 'none'} → {self.wanted or 'none'}"


def compare(wanted: Wanted, vm: VmReport, now: float, *, least_disk: int = 0) -> list[Difference]:
    """Where the VM differs in what the file speaks of. Keys, user data and placement count only when a VM is made.

    :param least_disk: the GiB of the image that it stands on: its disk was never smaller.
    """
    return [one for one in _all(wanted, vm, now, least_disk) if one.field in wanted.given]


def _all(wanted: Wanted, vm: VmReport, now: float, least_disk: int) -> Iterator[Difference]:
    options, anew = wanted.options, f"delete-vm {wanted.name} and apply again makes it anew"
    if vm.image != options.image:
        yield Difference("image", vm.image, options.image, anew)
    yield from _sizes(wanted.name, options, vm, least_disk)
    if vm.labels != options.labels:
        needs = f"labels can't be changed yet; {anew}"
        yield Difference("labels", text.labels(vm.labels), text.labels(options.labels), needs)
    published = [f"{port.host_port}:{port.guest_port}" for port in options.publish]
    if sorted(vm.published) != sorted(published):
        yield Difference("publish", ", ".join(sorted(vm.published)), ", ".join(sorted(published)), anew)
    if options.host and vm.host != options.host:
        yield Difference("host", vm.host, options.host, f"VMs don't move; {anew}")
    yield from _expiry(wanted.name, options, vm, now)


def _sizes(name: str, options: CreateVm, vm: VmReport, least_disk: int) -> Iterator[Difference]:
    off = vm.state in ("stopped", "failed")
    for field, has, want, show in (
        ("cpus", vm.cpus, options.cpus, str),
        ("memory", vm.memory, options.memory, text.mebibytes),
    ):
        if has != want:
            needs = (
                ""
                if off
                else f"needs stop: {PROGRAM} stop-vm {name}; {PROGRAM} resize-vm {name} --{field} {show(want)}"
            )
            yield Difference(field, show(has), show(want), needs)
    if not options.disk <= vm.disk <= max(options.disk, least_disk):
        needs = "" if options.disk > vm.disk else "a disk can only grow"
        yield Difference("disk", text.gibibytes(vm.disk), text.gibibytes(options.disk), needs)


def _expiry(name: str, options: CreateVm, vm: VmReport, now: float) -> Iterator[Difference]:
    due = vm.created + options.ttl if options.ttl else 0.0
    if bool(due) == bool(vm.expires) and abs(due - vm.expires) <= CLOSE_S:
        return
    needs = f"its time is over: {PROGRAM} delete-vm {name}" if due and due <= now + 1 else ""
    yield Difference("ttl", _left(vm.expires, now), _left(due, now), needs)


def _left(expires: float, now: float) -> str:
    return f"{text.left(expires, now)} left" if expires else "never"


def find_commands(wanted: Wanted, vm: VmReport, found: Sequence[Difference], now: float) -> list[tuple[str, Options]]:
    """The commands that make so what can be made so at once."""
    fields = {one.field for one in found if not one.needs}
    sizes = {field: getattr(wanted.options, field) for field in ("cpus", "memory", "disk") if field in fields}
    commands: list[tuple[str, Options]] = [("resize-vm", ResizeVm(vm_id=vm.vm_id, **sizes))] if sizes else []
    if "ttl" in fields:
        ttl = wanted.options.ttl
        left = max(1, round(vm.created + ttl - now)) if ttl else None
        commands.append(("extend-vm", ExtendVm(vm_id=vm.vm_id, ttl=left)))
    return commands
