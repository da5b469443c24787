"""Lists as people read them: VMs, hosts, images; and which of a list's VMs are asked for. Pure.

:raise ValueError: (all of them) when a response is not what its command's answers look like.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from aetherscale_cli import text
from aetherscale_cli.gather import Missing
from aetherscale_cli.wire import Reply
from aetherscale_protocol.answers import NOTHING, RESPONSES, HostReport, ImageRow, VmDetails, raw
from aetherscale_protocol.options import selects

VM_COLUMNS = (
    "VM ID", "NAME", "STATE", "HOST", "ADDRESS", "IMAGE", "CPUS", "MEMORY", "DISK", "SINCE", "EXPIRES", "PUBLISHED",
    "LABELS",
)  # fmt: skip
HOST_COLUMNS = ("HOST", "STATE", "CPUS", "MEMORY", "DISK", "VMS", "IMAGES", "ACCEL", "AGENT", "LABELS")
IMAGE_COLUMNS = ("IMAGE", "FORMAT", "SIZE", "DISK", "SHA256", "HOSTS", "USED BY")

_FEW = 3


class Filter(Struct, frozen=True):
    """Which VMs are asked for: those with all of these labels (`KEY=VALUE` or `KEY`), in this state, on this host."""

    labels: tuple[str, ...] = ()
    state: str | None = None
    host: str | None = None

    @property
    def active(self) -> bool:
        """Whether it leaves anything out."""
        return bool(self.labels or self.state or self.host)

    def narrow(self, reply: Reply) -> Reply:
        """The answer to list-vms with only those VMs. What is no list of VMs stays as it is."""
        answer = reply.answer
        if not answer.ok:
            return reply
        try:
            rows = msgspec.json.decode(answer.details or b"[]", type=list[VmDetails] | None) or []
            untold = msgspec.json.decode(answer.details or b"[]", type=list[dict[str, Any]] | None) or []
            whole: dict[str, Any] = msgspec.json.decode(reply.raw)
        except ValueError:
            return reply
        kept = [vm for vm, row in zip(untold, rows, strict=True) if self.takes(row, answer.host or "")]
        ids = [f"vm-{vm['vm-id']}" for vm in kept]
        details = raw(kept) if answer.details else NOTHING
        narrowed = msgspec.structs.replace(answer, response=raw(ids), details=details)
        whole |= {"response": ids} | ({"details": kept} if answer.details else {})
        return Reply(msgspec.json.encode(whole), narrowed)

    def takes(self, vm: VmDetails, host: str) -> bool:
        """Whether it is one of those."""
        return (
            all(selects(label, vm.labels) for label in self.labels)
            and self.state in (None, vm.state)
            and self.host in (None, host)
        )


def _response(command: str, reply: Reply) -> Any:
    return msgspec.json.decode(reply.answer.response or b"null", type=RESPONSES[command])


def vm_rows(reply: Reply, now: float) -> list[Sequence[str]]:
    """The VMs of one host; of a host that sends no details, their ids."""
    host = reply.answer.host or ""
    names: list[str] = _response("list-vms", reply)
    if bytes(reply.answer.details) in (b"", b"null"):
        return [(name.removeprefix("vm-"), "", "", host, *[""] * (len(VM_COLUMNS) - 4)) for name in names]
    details = msgspec.json.decode(reply.answer.details, type=list[VmDetails])
    return [
        (
            vm.vm_id, vm.name, vm.state, host, ", ".join(vm.addresses), vm.image, str(vm.cpus),
            text.mebibytes(vm.memory), text.gibibytes(vm.disk), text.age(vm.since, now), text.left(vm.expires, now),
            ", ".join(vm.published), text.labels(vm.labels),
        )
        for vm in details
    ]  # fmt: skip


def details_of(reply: Reply) -> list[VmDetails]:
    """What a host tells of its VMs."""
    return msgspec.json.decode(reply.answer.details or b"null", type=list[VmDetails] | None) or []


def vms_table(rows: Sequence[Sequence[str]], *, wide: bool) -> str:
    """VMs, a line each."""
    return text.partial_table(VM_COLUMNS, rows, {"EXPIRES"}, () if wide else ("PUBLISHED", "LABELS"))


def host_row(reply: Reply) -> Sequence[str]:
    """One host: what it has in use, of what it has in all."""
    report: HostReport = _response("list-hosts", reply)
    return (
        report.host,
        report.state,
        f"{report.cpus - report.cpus_free}/{report.cpus}",
        f"{text.mebibytes(report.memory - report.memory_free)}/{text.mebibytes(report.memory)}",
        f"{text.gibibytes(report.disk - report.disk_free)}/{text.gibibytes(report.disk)}",
        f"{report.running}/{report.vms}",
        ", ".join(report.images),
        report.accelerator,
        report.agent_version,
        text.labels(report.labels),
    )


def missing_row(missing: Missing) -> Sequence[str]:
    """A host that did not answer."""
    return (missing.host, missing.state, *[""] * (len(HOST_COLUMNS) - 2))


class Growing:
    """VMs or hosts of which some are shown before all hosts have answered: what is to be shown beneath what was.

    It has every column, since nobody knows yet what the others have to say, as wide as the first rows want it.
    """

    def __init__(self, command: str, now: float, *, wide: bool, wanted: Filter) -> None:
        self._is_vms, self._now, self._wanted = command == "list-vms", now, wanted
        columns = VM_COLUMNS if self._is_vms else HOST_COLUMNS
        hidden = ("PUBLISHED", "LABELS") if self._is_vms and not wide else ()
        self._places = [place for place, column in enumerate(columns) if column not in hidden]
        self._head = [columns[place] for place in self._places]
        self._widths: list[int] = []
        self._seen: dict[int, Reply] = {}  #: by identity: a host's name is only what an answer claims

    @property
    def begun(self) -> bool:
        """Whether anything was shown."""
        return bool(self._widths)

    def more(self, replies: Sequence[Reply], missing: Sequence[Missing] = ()) -> str:
        """The lines of those of these answers that it has not seen yet, and of hosts that are missing."""
        new = [reply for reply in replies if id(reply) not in self._seen]
        self._seen |= {id(reply): reply for reply in new}
        rows = [row for reply in sorted(new, key=lambda one: one.answer.host or "") for row in self._rows(reply)]
        rows += [] if self._is_vms else [missing_row(host) for host in missing]
        shown = text.cells([[row[place] for place in self._places] for row in rows])
        if shown and not self._widths:
            shown.insert(0, self._head)
            self._widths = text.find_widths(shown)
        return text.lines(shown, self._widths)

    def _rows(self, reply: Reply) -> list[Sequence[str]]:
        if not reply.answer.ok:
            return []
        try:
            return vm_rows(self._wanted.narrow(reply), self._now) if self._is_vms else [host_row(reply)]
        except ValueError:  # is said in the end
            return []


def images_of(reply: Reply) -> list[ImageRow]:
    """The images of one host."""
    rows: list[ImageRow] = _response("list-images", reply)
    return rows


def images_table(replies: Sequence[Reply], *, wide: bool) -> str:
    """The images of all hosts. Hosts that have the same one share a line; where they differ, each has its own."""
    lines: dict[tuple[str, str, str], list[tuple[str, ImageRow]]] = {}
    for reply in replies:
        for row in images_of(reply):
            lines.setdefault((row.image, row.sha256, row.format), []).append((reply.answer.host or "", row))
    return text.table(IMAGE_COLUMNS, [_image_line(lines[key], wide=wide) for key in sorted(lines)])


def _image_line(having: Sequence[tuple[str, ImageRow]], *, wide: bool) -> Sequence[str]:
    image = having[0][1]
    users = sorted(vm_id for _, row in having for vm_id in row.used_by)
    shown = users if wide or len(users) <= _FEW else [*users[:_FEW], f"… ({len(users)})"]
    return (
        image.image, image.format, text.size(image.size), text.size(image.virtual_size),
        image.sha256 if wide else text.short_sum(image.sha256), ", ".join(sorted(host for host, _ in having)),
        ", ".join(shown),
    )  # fmt: skip
