"""Answers as people read them: one function per command, answers in, text out. Pure.

:raise ValueError: (all of them) when a response is not what its command's answers look like.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from aetherscale_cli import text
from aetherscale_cli.settle import Call
from aetherscale_cli.wire import Reply
from aetherscale_protocol.answers import RESPONSES, ExpiryStatus, ForgetReport, VmReport, VmStatus

FORGET_COLUMNS = ("VM ID", "STATE", "IMAGE", "CPUS", "MEMORY", "DISK")
STATUS_COLUMNS = ("VM ID", "NAME", "SNAPSHOT", "IMAGE", "STATUS", "EXPIRES", "HOST")
STATUS_OPTIONAL = ("VM ID", "NAME", "SNAPSHOT", "IMAGE", "EXPIRES")
SNAPSHOT_COLUMNS = ("VM ID", "NAME", "SNAPSHOT", "AGE")


def _response(command: str, reply: Reply) -> Any:
    return msgspec.json.decode(reply.answer.response or b"null", type=RESPONSES[command])


def is_stopping(reply: Reply) -> bool:
    """Whether a stop was answered while the guest still shuts down; an unreadable answer is reported elsewhere."""
    try:
        status: VmStatus = _response("stop-vm", reply)
    except ValueError:
        return False
    return status.status == "stopping"


def status_row(call: Call, now: float) -> tuple[str, ...]:
    """What a command did to a VM, a host or an image; of the columns only some are filled."""
    assert call.reply is not None, "reported before it was settled"
    done = _response(call.command.name, call.reply)
    expires = ""
    if isinstance(done, ExpiryStatus):
        expires = _expiry(done.expires, now) or "never"
    return (
        getattr(done, "vm_id", ""), call.name, getattr(done, "snapshot", ""), getattr(done, "image", ""),
        done.status, expires, call.reply.answer.host or str(getattr(done, "host", "")),
    )  # fmt: skip


def snapshots_table(done: Sequence[Call], now: float) -> str:
    """The snapshots of one VM, or of several."""
    rows = [
        (call.vm_id, call.name, row.snapshot, text.age(row.created, now))
        for call in done
        if call.reply is not None
        for row in _response("list-snapshots", call.reply)
    ]
    return text.partial_table(SNAPSHOT_COLUMNS, rows, {"NAME"})


def vm_page(reply: Reply, now: float) -> str:
    """All about one VM, and what its console showed last."""
    vm: VmReport = _response("show-vm", reply)
    page = text.block(
        (
            ("VM ID", vm.vm_id),
            ("Name", vm.name),
            ("State", f"{vm.state} for {text.age(vm.since, now)}"),
            ("Reason", vm.reason),
            ("Reached", ", ".join(vm.reached)),
            ("Host", vm.host),
            ("Addresses", _addresses(vm)),
            ("MAC", vm.mac),
            ("Published", ", ".join(vm.published)),
            ("Labels", text.labels(vm.labels)),
            ("Image", vm.image),
            ("Clone of", vm.clone_of),
            ("CPUs", str(vm.cpus)),
            ("Memory", text.mebibytes(vm.memory)),
            ("Disk", text.gibibytes(vm.disk)),
            ("Accelerator", vm.accelerator),
            ("Created", f"{text.age(vm.created, now)} ago"),
            ("Expires", _expiry(vm.expires, now)),
        )
    )
    if not vm.console:
        return page
    return page + "Console:\n" + "".join(f"  {text.safe(line)}\n" for line in vm.console)


def _addresses(vm: VmReport) -> str:
    told = " (its guest agent says)" if vm.addresses and vm.address_source == "guest-agent" else ""
    return ", ".join(vm.addresses) + told


def _expiry(expires: float, now: float) -> str:
    return f"in {text.left(expires, now)}" if expires > now else "now" if expires else ""


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
