"""The faults: what befalls h1, or whoever speaks to it, while it stands still at a step; and how it is healed."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import Any

from aetherscale_testing.fakes import lose_power
from aetherscale_testing.faults.machine import CLOCK
from aetherscale_testing.faults.meeting import Meeting
from aetherscale_testing.faults.scene import IMAGE, Scene

GIVEN_UP_S = 8.0
"""Within which the broker gives up an agent that is silent; three heartbeats, and its own slowness."""
AT_LEAST_S = 1.5
"""How long a silence is at least: longer than the heartbeat."""
BOOT_S = 0.3
CLOCK_OFF_S = 600
DISK_FULL_S = 2.0

Fault = Callable[[Scene, Meeting], None]


class Rendezvous:
    """Where the cells of a batch wait for what hits them all: the broker going down, and being there again."""

    def __init__(self) -> None:
        self.arrived = threading.Semaphore(0)
        self.down = threading.Event()
        self.up = threading.Event()


def kill_agent(scene: Scene, meeting: Meeting) -> None:
    scene.h1.stop(SIGKILL)
    meeting.answer()
    scene.h1.start()


def freeze_agent(scene: Scene, meeting: Meeting) -> None:
    scene.h1.signal(SIGSTOP)
    _until_given_up(scene)
    scene.h1.signal(SIGCONT)
    meeting.answer()


def take_power(scene: Scene, meeting: Meeting) -> None:
    scene.wires["h1"].lose_power()
    scene.h1.stop(SIGKILL)
    meeting.answer()
    time.sleep(BOOT_S)
    lose_power(scene.h1.folder / "vms")
    (scene.h1.folder / "run" / "boot-id").unlink(missing_ok=True)
    scene.h1.start()
    scene.wires["h1"].heal()


def cut_network(scene: Scene, meeting: Meeting) -> None:
    scene.wires["h1"].cut()
    meeting.answer()
    _until_given_up(scene)
    scene.wires["h1"].heal()


def _until_given_up(scene: Scene) -> None:
    begun = time.monotonic()
    scene.until(lambda: not scene.is_connected("h1"), GIVEN_UP_S, "the broker gives h1 up")
    time.sleep(max(0.0, begun + AT_LEAST_S - time.monotonic()))


def deliver_twice(scene: Scene, meeting: Meeting) -> None:
    """Every message that was sent for the VM: a late copy of its create meets the command that is under way, too."""
    for request in (*scene.told_before, *scene.pending):
        scene.client.duplicate(request)
    meeting.answer()


def ask_again(scene: Scene, meeting: Meeting) -> None:
    for request in list(scene.pending or scene.told_before[-1:]):
        scene.ask(scene.client.again(request, patience=scene.patience))
    meeting.answer()


def lose_client(scene: Scene, meeting: Meeting) -> None:
    scene.client.close()
    meeting.answer()


def create_same_id(scene: Scene, meeting: Meeting) -> None:
    scene.ask(scene.create())
    meeting.answer()


def shift_clock(seconds: float) -> Fault:
    """The fault of a clock that is off by so much; healed by `heal`."""

    def shift(scene: Scene, meeting: Meeting) -> None:
        (scene.h1.folder / CLOCK).write_text(str(seconds))
        meeting.answer()

    return shift


def befall(faults: Mapping[str, Any]) -> Fault:
    """A fault of the machine, which the agent's own process plays."""

    def fall(scene: Scene, meeting: Meeting) -> None:
        if "qemu-dies" in faults:
            scene.ledger.crash(scene.vm_id, time.time())
        scene.sound_at = time.monotonic() + faults.get("disk-full", 0)
        meeting.answer(faults)

    return fall


FAULTS: Mapping[str, Fault] = {
    "agent-killed": kill_agent,
    "agent-frozen": freeze_agent,
    "power-lost": take_power,
    "network-cut": cut_network,
    "twice": deliver_twice,
    "resend": ask_again,
    "client-gone": lose_client,
    "same-id": create_same_id,
    "clock-ahead": shift_clock(CLOCK_OFF_S),
    "clock-behind": shift_clock(-CLOCK_OFF_S),
    "disk-full": befall({"disk-full": DISK_FULL_S}),
    "build-fails": befall({"build-fails": 1}),
    "start-fails": befall({"start-fails": 1}),
    "qemu-dies": befall({"qemu-dies": 1}),
    "image-gone": befall({"image-gone": IMAGE}),
}


def meet_broker(scene: Scene, meeting: Meeting, together: Rendezvous) -> None:
    """Stand still until the broker is down, go on without it, and wait until it is there again."""
    together.arrived.release()
    together.down.wait()
    meeting.answer()
    together.up.wait()
    scene.client.reconnect()


@contextlib.contextmanager
def healed(scene: Scene) -> Iterator[None]:
    """What lasts is put right, or waited for, when the block ends."""
    try:
        yield
    finally:
        time.sleep(max(0.0, scene.sound_at - time.monotonic()))
        (scene.h1.folder / CLOCK).unlink(missing_ok=True)
