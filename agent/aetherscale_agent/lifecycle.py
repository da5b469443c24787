"""What each command does in each state: one pure table, which tests walk."""

import enum

from aetherscale_protocol.answers import VmState
from aetherscale_protocol.errors import Refused


class Act(enum.Enum):
    """What to do to the VM."""

    START = "start"
    PRESS = "press the power button, and wait"
    KILL = "pull the plug"
    REMOVE = "pull the plug if it is in, and remove the VM"
    ALTER = "change it in place"
    REBOOT = "press the power button, wait, and start it again"
    NOTHING = "it is so already"


ANY_STATE: tuple[VmState, ...] = (
    "creating",
    "starting",
    "running",
    "paused",
    "stopping",
    "stopped",
    "deleting",
    "failed",
)

_START = {"stopped": Act.START, "failed": Act.START, "running": Act.NOTHING, "starting": Act.NOTHING}
_STOP = {"running": Act.PRESS, "stopping": Act.PRESS, "stopped": Act.NOTHING, "failed": Act.NOTHING}
_KILL = {"running": Act.KILL, "paused": Act.KILL, "stopping": Act.KILL, "stopped": Act.NOTHING, "failed": Act.NOTHING}
_DELETE: dict[str, Act] = dict.fromkeys(ANY_STATE, Act.REMOVE)
_DISK = dict.fromkeys(("running", "paused", "stopped", "failed"), Act.ALTER)

TABLE: dict[str, dict[str, Act]] = {
    "start-vm": _START,
    "stop-vm": _STOP,
    "stop-vm --kill": _KILL,
    "delete-vm": _DELETE,
    "pause-vm": {"running": Act.ALTER, "paused": Act.NOTHING},
    "resume-vm": {"paused": Act.ALTER, "running": Act.NOTHING},
    "reboot-vm": {"running": Act.REBOOT},
    "reboot-vm --kill": {"running": Act.ALTER},
    "resize-vm": _DISK,  # cores and memory only while it is off: see `alter`
    "snapshot-vm": _DISK,
    "restore-vm": {"stopped": Act.ALTER, "failed": Act.ALTER},
    "delete-snapshot": _DISK,
    "extend-vm": _DISK,
}
"""Verb → state → what to do. A state that is missing refuses the verb. The states in which work is under way
(creating, starting, deleting) are left before the next command of that VM is looked at: they only show if
that work got stuck."""


def heeds_pause(verb: str) -> bool:
    """Whether a guest that stands still is another thing to it; who pulls the plug asks no QEMU that may hang."""
    return TABLE[verb].get("running") not in (Act.KILL, Act.REMOVE)


def act_on(verb: str, state: VmState) -> Act:
    """What this verb does to a VM in this state.

    :raise Refused: `wrong-state`, when it does nothing; nothing was changed.
    """
    act = TABLE[verb].get(state)
    if act is None:
        raise Refused("wrong-state", f"the VM is {state}: {verb} is not possible now", _hint(verb, state))
    return act


def _hint(verb: str, state: VmState) -> str:
    if state == "paused":
        return "resume-vm first, or stop-vm --kill" if verb == "stop-vm" else "resume-vm first"
    if verb == "restore-vm" and state == "running":
        return "stop-vm first"
    if state in ("stopped", "failed"):
        return "start-vm first"
    if state == "stopping":
        return "wait until it is off, or pull its plug with stop-vm --kill"
    return f"repeat {verb.split()[0]} when it is no longer {state}"
