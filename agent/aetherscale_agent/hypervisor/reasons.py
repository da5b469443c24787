"""What systemd says of a unit, in the agent's terms and in words for people. Pure."""

import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aetherscale_agent.ports import Power
from aetherscale_protocol import names

UNIT_PREFIX = "aetherscale-vm@"
TAP_PREFIX = "aetherscale-tap@"
PROBE = "kvm-probe"
"""The instance in which the probe for KVM runs: no VM can have this name."""

GUEST_POWERED_OFF = "the guest shut itself down"
PLUG_PULLED = "its plug was pulled"

CLD_EXITED = 1
NO_NETWORK = "its network could not be made"
NO_NETWORK_SIGNAL = signal.SIGUSR1
"""What ends vm-run when `vm-net` has failed."""

FIRST_EXEC_FAILURE = 200
"""systemd uses exit statuses from here up to say that it could not even run QEMU (systemd.exec(5))."""

_UNIT = re.compile(re.escape(UNIT_PREFIX) + rf"({names.VM_ID_PATTERN}|{PROBE})\.service")
_ESCAPE = re.compile(r"_([0-9a-f]{2})")


@dataclass(frozen=True)
class UnitEnd:
    """How a unit came to rest: systemd's ActiveState, Result, ExecMainCode and ExecMainStatus."""

    active: str
    result: str = "success"
    code: int = 0
    status: int = 0

    @property
    def power(self) -> Power:
        """OFF, or FAILED."""
        return find_power(self.active)


def unit_name(vm_id: str) -> str:
    """The unit of a VM."""
    return f"{UNIT_PREFIX}{vm_id}.service"


def tap_unit_name(vm_id: str) -> str:
    """The unit of what its host does for a VM."""
    return f"{TAP_PREFIX}{vm_id}.service"


def find_vm_id(unit: str) -> str | None:
    """The VM whose unit this is, if it is one's (or the probe's)."""
    match = _UNIT.fullmatch(unit)
    return match[1] if match else None


def find_unit(path: str) -> str:
    """The name of the unit at this D-Bus object path."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 16)), path.rpartition("/")[2])


def find_power(active: str) -> Power:
    """A unit's power by its ActiveState. One that is still on its way down is ON: its files are in use."""
    return {"inactive": Power.OFF, "failed": Power.FAILED}.get(active, Power.ON)


def merge_end(known: UnitEnd, properties: Mapping[str, Any]) -> UnitEnd:
    """What is known of a unit, after systemd told of these changed properties."""
    return UnitEnd(
        properties.get("ActiveState", known.active),
        properties.get("Result", known.result),
        properties.get("ExecMainCode", known.code),
        properties.get("ExecMainStatus", known.status),
    )


def finalize_reason(end: UnitEnd) -> str:
    """Why the unit came to rest, in words for people."""
    if end.power is Power.OFF:
        return GUEST_POWERED_OFF
    return {
        "exit-code": _exit_reason(end.status),
        "signal": NO_NETWORK if end.status == NO_NETWORK_SIGNAL else f"QEMU was killed by {_signal(end.status)}",
        "core-dump": f"QEMU crashed with {_signal(end.status)}",
        "oom-kill": "QEMU was killed for using more memory than the VM's limit",
        "timeout": "QEMU did not stop in time and was killed",
        "resources": "systemd could not set its unit up",
    }.get(end.result, f"its unit failed ({end.result})")


def _exit_reason(status: int) -> str:
    if status >= FIRST_EXEC_FAILURE:
        return f"systemd could not run QEMU in its sandbox (status {status})"
    return f"QEMU ended with exit status {status}"


def _signal(number: int) -> str:
    try:
        return f"{signal.Signals(number).name} (signal {number})"
    except ValueError:
        return f"signal {number}"
