"""Every step that an agent takes, by name, in the order in which it takes them.

A step is a piece of work with an effect that outlives it: a file, a unit, a binding, a message. The agent may be cut
off before and after each; what must hold then is tested for every one of them, which is what the names are for.
`watch` is for those tests alone: nothing in the agent calls it.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

When = Literal["before", "after"]
Watcher = Callable[[When, str, str], None]
"""Called with: before or after, the step's name, and the VM's id ('' if it is about none)."""

STEPS: Mapping[str, str] = {
    "create.claim": "claim the id in the broker",
    "create.probe": "ask the directory whether a host holds the id",
    "create.offers": "ask all hosts how well they could take the VM",
    "create.let-go": "take back a claim that guards nothing",
    "create.hand-on": "give the create to another host",
    "create.journal": "journal the claimed id",
    "create.bind": "bind vm.<id> to this host's queue",
    "create.journal-bound": "journal that it is bound",
    "create.capacity": "consume creates with the priority that is right now",
    "create.refuse": "journal a final no",
    "create.remember": "journal a no to a create whose id another VM has",
    "create.prolong": "journal the later deadline of a create that is asked again",
    "create.acknowledge": "acknowledge the create, and wait for the barrier",
    "build.disk": "make the overlay",
    "build.seed": "make the seed disc for cloud-init",
    "build.start": "start the VM's unit",
    "build.journal": "journal that the VM is ready",
    "create.answer": "hand the answer to the answers' connection",
    "start.look": "ask systemd for the unit's state",
    "start.acknowledge": "acknowledge, and wait for the barrier",
    "start.journal": "journal the intent",
    "start.qemu": "start the VM's unit",
    "start.settle": "journal the outcome",
    "start.answer": "hand the answer to the answers' connection",
    "stop.look": "ask systemd for the unit's state",
    "stop.acknowledge": "acknowledge, and wait for the barrier",
    "stop.journal": "journal the intent",
    "stop.press": "press the power button",
    "stop.off": "wait until the unit is at rest",
    "stop.settle": "journal the outcome",
    "stop.answer": "hand the answer to the answers' connection",
    "kill.look": "ask systemd for the unit's state",
    "kill.acknowledge": "acknowledge, and wait for the barrier",
    "kill.journal": "journal the intent",
    "kill.qemu": "stop the VM's unit at once",
    "kill.settle": "journal the outcome",
    "kill.answer": "hand the answer to the answers' connection",
    "alter.look": "ask systemd for the unit's state, and QEMU whether it is paused",
    "alter.acknowledge": "acknowledge, and wait for the barrier",
    "alter.journal": "journal the intent",
    "alter.act": "pause, resume, reset, resize, or keep, restore or delete a snapshot",
    "alter.settle": "journal the outcome",
    "alter.answer": "hand the answer to the answers' connection",
    "reboot.look": "ask systemd for the unit's state",
    "reboot.acknowledge": "acknowledge, and wait for the barrier",
    "reboot.journal": "journal the intent",
    "reboot.off": "press the power button, and wait until the unit is at rest",
    "reboot.start": "start the VM's unit again",
    "reboot.settle": "journal the outcome",
    "reboot.answer": "hand the answer to the answers' connection",
    "delete.look": "ask systemd for the unit's state",
    "delete.acknowledge": "acknowledge, and wait for the barrier",
    "erase.journal": "journal that the VM is being deleted",
    "erase.qemu": "stop the VM's unit at once",
    "erase.remove": "remove its disk and all else that it has on this host",
    "erase.entomb": "journal its tombstone",
    "delete.answer": "hand the answer to the answers' connection",
    "stream.dial": "connect to the guest's console or port",
    "stream.serve": "begin to serve the stream",
    "stream.send": "send its client what came from the guest",
    "agent.load": "read the journal",
    "agent.stock": "ask systemd for the state of all units",
    "agent.remains": "look for what belongs to no VM, and remove what a tombstone left",
    "connect.name": "declare the exclusive queue agent.<host>",
    "connect.declare": "declare exchanges and shared queues",
    "connect.unbind": "unbind an id that was claimed and not begun",
    "connect.forget": "drop its journal entry",
    "connect.verify": "claim and probe VMs that another host may hold",
    "connect.queue": "declare this host's queue and its own keys",
    "connect.bind": "bind the ids of this host's VMs",
    "connect.consume": "consume",
    "bury.unbind": "unbind a tombstone whose create's deadline has passed",
    "bury.forget": "drop its journal entry",
}

_watcher: Watcher | None = None


def watch(watcher: Watcher | None) -> None:
    """Have every step announced, before and after it; None ends that. For tests."""
    global _watcher
    _watcher = watcher


@contextlib.contextmanager
def step(name: str, vm_id: str = "") -> Iterator[None]:
    """The block is this step. A block that fails has no "after"."""
    if _watcher is not None:
        _watcher("before", name, vm_id)
    yield
    if _watcher is not None:
        _watcher("after", name, vm_id)
