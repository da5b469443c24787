"""The matrix as data: which scenario comes to a step, which faults there are, and which cells make no sense. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from aetherscale_agent.steps import STEPS, When

Scenario = Literal[
    "create",
    "clone",
    "hand-on",
    "owner",
    "refuse",
    "again",
    "taken",
    "start",
    "stop",
    "kill",
    "delete",
    "snapshot",
    "restore",
    "reboot",
    "tunnel",
    "restart",
    "restart-bare",
    "undo",
    "bury",
]

SCENARIOS: Mapping[Scenario, str] = {
    "create": "a create that its host takes",
    "clone": "the same, and its disk is a copy of that of a VM that is off",
    "hand-on": "a create that the preferred host can't take, because it lacks the image",
    "owner": "the same, and its claim is that host's, from a create that came to nothing",
    "refuse": "a create for which no host has room",
    "again": "a create that was done is asked again, with a later deadline",
    "taken": "a create of an id that another VM has",
    "start": "a start of a VM that is off",
    "stop": "a shutdown of a VM that runs",
    "kill": "the same by pulling its plug",
    "delete": "a deletion of a VM that runs",
    "snapshot": "a snapshot of a VM that runs",
    "restore": "a VM that is off, and has grown and booted since a snapshot, is taken back to that",
    "reboot": "a reboot of a VM that runs, by the power button",
    "tunnel": "a tunnel to a port of a VM that runs, and bytes through it",
    "restart": "an agent is killed while it builds, and started again, with VMs in several states",
    "restart-bare": "the same, and its queue was deleted meanwhile",
    "undo": "an agent is killed when it has claimed an id and no more, and started again",
    "bury": "the deadline of a deleted VM's create passes",
}

BROKER_FAULTS: Mapping[str, str] = {
    "broker-killed": "the broker is killed, and started again",
    "broker-wiped": "the broker is killed, and an empty one is started in its place",
}
"""They hit all cells of a batch at once."""

FAULTS: Mapping[str, str] = {
    "agent-killed": "the agent is killed, and started again",
    "agent-frozen": "the agent is frozen until the broker has given it up, and woken",
    "power-lost": "the host loses power, with all its VMs, and boots",
    "network-cut": "the network falls silent until the broker has given the agent up, and is there again",
    "twice": "the command is delivered twice",
    "resend": "the client asks again with the same request id",
    "client-gone": "the client goes away",
    "same-id": "another client creates a VM of the same id at that moment",
    "clock-ahead": "the host's clock is ten minutes ahead",
    "clock-behind": "the host's clock is ten minutes behind",
    "disk-full": "the host's disk is full for two seconds",
    "build-fails": "qemu-img fails",
    "start-fails": "QEMU does not start",
    "qemu-dies": "QEMU starts and dies at once",
    "image-gone": "the base image is gone",
    **BROKER_FAULTS,
}

VM_NET_STEPS: Mapping[str, tuple[str, str]] = {
    "up.tap": ("ip", "make the tap of a VM that starts"),
    "up.rules": ("nft", "let the firewall know it"),
    "down.tap": ("ip", "remove the tap of a VM that has ended"),
    "down.rules": ("nft", "have the firewall forget it"),
}
"""Steps of a host's `vm-net`, which are struck on the lab alone: the program that it calls for each, and what for."""

BY_STEP: Mapping[str, Scenario] = {
    "create.offers": "hand-on",
    "create.hand-on": "hand-on",
    "create.let-go": "owner",
    "create.refuse": "refuse",
    "create.prolong": "again",
    "create.remember": "taken",
    "connect.unbind": "undo",
    "connect.forget": "undo",
    "connect.verify": "restart-bare",
    "connect.queue": "restart-bare",
}
BY_PREFIX: Mapping[str, Scenario] = {
    "create": "create",
    "build": "create",
    "start": "start",
    "stop": "stop",
    "kill": "kill",
    "delete": "delete",
    "alter": "snapshot",
    "reboot": "reboot",
    "stream": "tunnel",
    "erase": "delete",
    "agent": "restart",
    "connect": "restart",
    "bury": "bury",
}
ALSO: Mapping[str, Scenario] = {"alter": "restore", "build": "clone"}
"""A second scenario that comes to steps of this prefix, and is played beside the first."""


@dataclass(frozen=True, order=True)
class Cell:
    """One cell of the matrix. `also`: of the second scenario that comes to its step."""

    step: str
    when: When
    fault: str
    also: bool = False

    @property
    def scenario(self) -> Scenario:
        """What comes to its step."""
        return ALSO[self.step.partition(".")[0]] if self.also else scenario_of(self.step)

    def __str__(self) -> str:
        return f"{self.when} {self.step}{f' of a {self.scenario}' if self.also else ''}: {self.fault}"


def scenario_of(step: str) -> Scenario:
    """The scenario that comes to a step; for some there is another (see `ALSO`)."""
    return BY_STEP.get(step) or BY_PREFIX[step.partition(".")[0]]


def all_cells() -> Iterator[Cell]:
    """Every cell, those included that make no sense, in the steps' order."""
    whens: tuple[When, When] = ("before", "after")
    courses = ((step, also) for step in STEPS for also in (False, True) if not also or step.partition(".")[0] in ALSO)
    return (Cell(step, when, fault, also) for step, also in courses for when in whens for fault in FAULTS)


def why_not(cell: Cell) -> str | None:
    """Why a cell makes no sense; None if it does."""
    if cell.fault in ("build-fails", "image-gone") and not _comes_to(cell, "build.disk"):
        return "no disk is made on this host from here on"
    if cell.fault in ("start-fails", "qemu-dies") and not _comes_to(cell, "build.start", "start.qemu"):
        return "no QEMU is started on this host from here on"
    if cell.fault == "client-gone" and cell.scenario == "bury":
        return "nobody waits for an answer"
    return None


def _comes_to(cell: Cell, *works: str) -> bool:
    """Whether the meeting host does one of these steps after the fault falls."""
    order = list(STEPS)
    if cell.scenario in ("restart", "restart-bare", "undo"):
        return True  # a create is built, or built again, once it is connected
    if cell.scenario == "reboot":
        return works == ("build.start", "start.qemu") and not _is_started(cell)
    if cell.scenario not in ("create", "clone", "start"):
        return False
    course = "create" if cell.scenario == "clone" else cell.scenario
    for work in works:
        same_course = scenario_of(work) == course
        done = order.index(cell.step) > order.index(work) or (cell.step, cell.when) == (work, "after")
        if same_course and not done:
            return True
    return False


def _is_started(cell: Cell) -> bool:
    """Whether a reboot has started its VM again."""
    return (cell.step, cell.when) in (
        ("reboot.start", "after"),
        *((name, when) for name in ("reboot.settle", "reboot.answer") for when in ("before", "after")),
    )
