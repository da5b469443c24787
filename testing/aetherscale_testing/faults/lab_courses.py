"""How an agent on the lab is brought to each of its steps: by which command, on what kind of VM."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from aetherscale_protocol import topology
from aetherscale_testing.faults.lab_client import Command
from aetherscale_testing.faults.lab_world import LabWorld, Order
from aetherscale_testing.faults.ledger import Verb

ELSEWHERE = "tiny_h1"
"""An image that h1 alone has: h2 hands on what wants it."""
NOWHERE = "nobody_has_it"

SHORT_S = 5.0
"""How far ahead the deadline lies of a create whose tombstone is waited for."""


@dataclass(frozen=True)
class Cell:
    """A fault at a step of a host's agent, or of its `vm-net`. `seconds`: for how long it is frozen."""

    step: str
    when: Literal["before", "after"]
    host: str
    do: Literal["kill", "freeze", "fail"] = "kill"
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.do} {self.when} {self.step} on {self.host}"


@dataclass
class Struck:
    """What a fault hit: the command (None: the agent's own start), and the order that was obeyed."""

    command: Command | None
    orders: list[Order]


Course = Callable[[LabWorld, Cell], Struck]


def strike(world: LabWorld, cell: Cell, command: Command) -> Struck:
    """Send a command to an agent that will be struck by it; the client gives up when it is."""
    order = world.order(cell.host, cell.step, cell.when, cell.do, vm=command.vm_id, seconds=cell.seconds)
    world.client.send(command, 20, enough=lambda: order.is_taken)
    order.wait()
    return Struck(command, [order])


def create(world: LabWorld, cell: Cell) -> Struck:
    """A create in the host's own queue."""
    return strike(world, cell, Command("create", host=cell.host))


def create_elsewhere(world: LabWorld, cell: Cell) -> Struck:
    """A create that h2 must hand on to h1."""
    return strike(world, cell, Command("create", host=cell.host, image=ELSEWHERE))


def create_nowhere(world: LabWorld, cell: Cell) -> Struck:
    """A create that nobody can take."""
    return strike(world, cell, Command("create", host=cell.host, image=NOWHERE))


def create_owned(world: LabWorld, cell: Cell) -> Struck:
    """A create that h2 must hand on to h1, and gets back, because its claim is h2's, from one that came to nothing."""
    command = Command("create", host=cell.host, image=ELSEWHERE)
    claim = topology.claim(command.vm_id, cell.host)
    with world.as_agent() as channel:
        channel.queue_declare(claim.name, durable=True, arguments=claim.arguments)
    return strike(world, cell, command)


def create_again(world: LabWorld, cell: Cell) -> Struck:
    """A create that was done, asked again with a later deadline."""
    command = Command("create", host=cell.host)
    world.client.insist(command)
    return strike(world, cell, replace(command, deadline=command.deadline + 2))


def create_taken(world: LabWorld, cell: Cell) -> Struck:
    """A create of an id that another VM has."""
    return strike(world, cell, Command("create", world.client.create(cell.host), host=cell.host))


def on(verb: Verb, *before: Verb, booted: bool = False) -> Course:
    """A command for a VM that is there, after others."""

    def course(world: LabWorld, cell: Cell) -> Struck:
        vm_id = world.client.create(cell.host)
        if booted:
            world.await_guest(cell.host, vm_id)
        for earlier in before:
            world.client.do(earlier, vm_id)
        return strike(world, cell, Command(verb, vm_id))

    return course


def restart(world: LabWorld, cell: Cell) -> Struck:
    """The agent's own start, after a crash, on a host with a VM that runs, one that is off and a tombstone."""
    world.client.create(cell.host)
    world.client.do("kill", world.client.create(cell.host))
    world.client.do("delete", world.client.create(cell.host))
    order = world.order(cell.host, cell.step, cell.when, cell.do, seconds=cell.seconds)
    world.kill_agent(cell.host)
    order.wait()
    return Struck(None, [order])


def restart_with_a_claim(world: LabWorld, cell: Cell) -> Struck:
    """The agent's start after a crash with an id that was claimed, and no more."""
    command = Command("create", host=cell.host)
    orders = [
        world.order(cell.host, "create.bind", "after", "kill", vm=command.vm_id),
        world.order(cell.host, cell.step, cell.when, cell.do, seconds=cell.seconds),
    ]
    world.client.send(command, 20, enough=lambda: orders[0].is_taken)
    for order in orders:
        order.wait()
    return Struck(command, orders)


def bury(world: LabWorld, cell: Cell) -> Struck:
    """A tombstone whose create's deadline passes."""
    command = Command("create", host=cell.host, deadline=time.time() + SHORT_S)
    order = world.order(cell.host, cell.step, cell.when, cell.do, vm=command.vm_id, seconds=cell.seconds)
    told = world.client.insist(command)
    if told.outcome == "done":
        world.client.insist(Command("delete", command.vm_id, deadline=time.time() + SHORT_S))
    order.wait()
    return Struck(None, [order])


COURSES: dict[str, Course] = {
    "create.offers": create_elsewhere,
    "create.hand-on": create_elsewhere,
    "create.let-go": create_owned,
    "create.refuse": create_nowhere,
    "create.prolong": create_again,
    "create.remember": create_taken,
    "create": create,
    "build": create,
    "start": on("start", "kill"),
    "stop": on("stop", booted=True),
    "kill": on("kill"),
    "alter": on("snapshot"),
    "reboot": on("reboot", booted=True),
    "stream": on("tunnel", booted=True),
    "delete": on("delete"),
    "erase": on("delete"),
    "connect.unbind": restart_with_a_claim,
    "connect.forget": restart_with_a_claim,
    "connect": restart,
    "agent": restart,
    "bury": bury,
}
"""By step, or by the first word of it."""


def course_of(step: str) -> Course:
    """How to bring an agent to this step."""
    return COURSES.get(step) or COURSES[step.partition(".")[0]]


@contextmanager
def held(world: LabWorld, *faults: str, at: Sequence[Cell] = ()) -> Iterator[None]:
    """Faults that are over when the block ends; then the system settles without help, and the rows are written."""
    began, verdict = time.monotonic(), "broken"
    try:
        yield
        world.settle()
        verdict = "held"
    finally:
        seconds = time.monotonic() - began
        places: list[tuple[str, str]] = [(cell.step, cell.when) for cell in at] or [("", "")]
        for fault in faults:
            for step, when in places:
                world.record(step, when, fault, verdict, seconds)
        world.delete_all()


def run(world: LabWorld, cells: Sequence[Cell]) -> float:
    """Strike hosts at once, each at its own step; ask again until every outcome is known; settle; the seconds it took.

    :raise AssertionError: when an agent does not come to its step, nobody knows an outcome, or it does not settle.
    """
    began = time.monotonic()
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda cell: _run(world, cell), cells))
    world.settle()
    return time.monotonic() - began


def _run(world: LabWorld, cell: Cell) -> None:
    struck = course_of(cell.step)(world, cell)
    thawed = time.monotonic() + cell.seconds
    if struck.command is not None:
        world.client.insist(struck.command)
    time.sleep(max(0.0, thawed - time.monotonic()))  # the fault itself, not a wait for its consequences
