"""Answers as people read them: one function per command, answers in, text out. Pure.

:raise ValueError: (all of them) when a response is not what its command's answers look like.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from aetherscale_cli import text
from aetherscale_cli.gather import Missing
from aetherscale_cli.wire import Reply
from aetherscale_protocol.answers import RESPONSES, ForgetReport, HostReport, VmDetails, VmReport, VmStatus

VM_COLUMNS = ("VM ID", "STATE", "HOST", "IMAGE", "CPUS", "MEMORY", "DISK", "SINCE")
HOST_COLUMNS = ("HOST", "STATE", "CPUS", "MEMORY", "DISK", "VMS", "IMAGES", "ACCEL", "AGENT")
FORGET_COLUMNS = ("VM ID", "STATE", "IMAGE", "CPUS", "MEMORY", "DISK")
STATUS_COLUMNS = ("VM ID", "STATUS", "HOST")


def _response(command: str, reply: Reply) -> Any:
    return msgspec.json.decode(reply.answer.response or b"null", type=RESPONSES[command])


def vm_rows(reply: Reply, now: float) -> list[Sequence[str]]:
    """The VMs of one host; of a host that sends no details, their ids."""
    host = reply.answer.host or ""
    names: list[str] = _response("list-vms", reply)
    if bytes(reply.answer.details) in (b"", b"null"):
        return [(name.removeprefix("vm-"), "", host, "", "", "", "", "") for name in names]
    details = msgspec.json.decode(reply.answer.details, type=list[VmDetails])
    return [
        (
            vm.vm_id, vm.state, host, vm.image, str(vm.cpus),
            text.mebibytes(vm.memory), text.gibibytes(vm.disk), text.age(vm.since, now),
        )
        for vm in details
    ]  # fmt: skip


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
    )


def missing_row(missing: Missing) -> Sequence[str]:
    """A host that did not answer."""
    return (missing.host, missing.state, *[""] * (len(HOST_COLUMNS) - 2))


def is_stopping(reply: Reply) -> bool:
    """Whether a stop was answered while the guest still shuts down; an unreadable answer is reported elsewhere."""
    try:
        status: VmStatus = _response("stop-vm", reply)
    except ValueError:
        return False
    return status.status == "stopping"


def status_row(command: str, reply: Reply) -> Sequence[str]:
    """What a command did to a VM."""
    status: VmStatus = _response(command, reply)
    return (status.vm_id, status.status, reply.answer.host or "")


def vm_page(reply: Reply, now: float) -> str:
    """All about one VM, and what its console showed last."""
    vm: VmReport = _response("show-vm", reply)
    page = text.block(
        (
            ("VM ID", vm.vm_id),
            ("State", f"{vm.state} for {text.age(vm.since, now)}"),
            ("Reason", vm.reason),
            ("Host", vm.host),
            ("Image", vm.image),
            ("CPUs", str(vm.cpus)),
            ("Memory", text.mebibytes(vm.memory)),
            ("Disk", text.gibibytes(vm.disk)),
            ("Accelerator", vm.accelerator),
            ("Created", f"{text.age(vm.created, now)} ago"),
        )
    )
    if not vm.console:
        return page
    return page + "Console:\n" + "".join(f"  {text.safe(line)}\n" for line in vm.console)


def forget_page(reply: Reply, now: float) -> str:
    """What is known of a host that is to be forgotten."""
    known: ForgetReport = _response("forget-host", reply)
    host = text.safe(known.host)
    if not known.told:
        return f"Host {host} is not running, and nothing is known of its VMs.\n"
    told = f"Host {host} is not running. {text.age(known.told, now)} ago it told of"
    if not known.vms:
        return f"{told} no VMs.\n"
    rows = [
        (vm.vm_id, vm.state, vm.image, str(vm.cpus), text.mebibytes(vm.memory), text.gibibytes(vm.disk))
        for vm in known.vms
    ]
    what = "this VM" if len(rows) == 1 else f"these {len(rows)} VMs"
    return (
        f"{told} {what}:\n{text.table(FORGET_COLUMNS, rows)}"
        f"Once it is forgotten nobody can command {'it' if len(rows) == 1 else 'them'}; what runs, runs on, "
        "and disks stay where they are.\n"
    )


def forgotten_page(reply: Reply) -> str:
    """That a host was forgotten."""
    done: ForgetReport = _response("forget-host", reply)
    return f"Host {text.safe(done.host)} is forgotten.\n"
