"""What a fake host has, read from its folder: its journal and its fake VMs. No agent is asked."""

import contextlib
import json
from pathlib import Path

from aetherscale_testing.fakes import read_fake_vms
from aetherscale_testing.faults import look
from aetherscale_testing.faults.views import HostView, RecordView


def look_at(name: str, folder: Path) -> HostView:
    """All that is there of a host."""
    vms = {vm_id: vm.power.value for vm_id, vm in read_fake_vms(folder / "vms").items()}
    running = frozenset(vm_id for vm_id, power in vms.items() if power == "on")
    found = {path.name for path in (*folder.glob("journal/*"), *folder.glob("vms/*"))} - {look.OF_THE_HOST}
    return HostView(
        name,
        records=_read_journal(folder / "journal"),
        disks=frozenset(vms),
        running=running,
        units=frozenset(vm_id for vm_id, power in vms.items() if power != "off"),
        processes=dict.fromkeys(running, 1),
        strays=tuple(sorted(name for name in found if not look.RECORD.fullmatch(name))),
    )


def _read_journal(folder: Path) -> dict[str, RecordView]:
    records = {}
    for path in sorted(path for path in folder.glob("*.json") if look.RECORD.fullmatch(path.name)):
        with contextlib.suppress(FileNotFoundError):  # dropped since
            records[path.stem] = RecordView.read(json.loads(path.read_bytes()))
    return records
