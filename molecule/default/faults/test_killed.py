"""kill -9 at every step of an agent, and a freeze beyond the heartbeat at some, with real units and QEMU."""

from itertools import zip_longest

import pytest

from aetherscale_agent.steps import STEPS
from aetherscale_testing.faults.lab_client import Command
from aetherscale_testing.faults.lab_courses import ELSEWHERE, Cell, held, run, strike
from aetherscale_testing.faults.lab_world import HEARTBEAT_S, LabWorld
from aetherscale_testing.faults.report import AGENT_KILLED

testinfra_hosts = ["broker1"]  # once, not per host

ALONE = ("create.offers", "create.let-go", "create.hand-on", "create.refuse")
"""Steps of a create that needs the other host to be up."""

DISK = "/var/lib/aetherscale/vms/{}/disk.qcow2"
FROZEN_S = 3.5 * HEARTBEAT_S
FROZEN = (
    (Cell("create.bind", "after", "h1"), Cell("start.acknowledge", "before", "h2")),
    (Cell("build.disk", "before", "h1"), Cell("delete.acknowledge", "before", "h2")),
    (Cell("create.acknowledge", "before", "h2"), Cell("erase.remove", "before", "h1")),
)

RESTORES = (
    Cell("alter.acknowledge", "after", "h1"),
    Cell("alter.journal", "after", "h2"),
    Cell("alter.act", "after", "h1"),
    Cell("alter.settle", "after", "h2"),
    Cell("alter.act", "before", "h1", "freeze", FROZEN_S),
)


def _pairs() -> list[tuple[Cell, ...]]:
    """A cell for every step, before and after by turns, one for each host at a time."""
    before_or_after = {step: "before" if number % 2 else "after" for number, step in enumerate(STEPS)}
    together = [step for step in STEPS if step not in ALONE and not step.startswith("bury.")]
    pairs = [
        *zip_longest(together[::2], together[1::2]),
        *((None, step) for step in ALONE),
        ("bury.unbind", "bury.forget"),
    ]
    return [
        tuple(Cell(step, before_or_after[step], host) for step, host in zip(pair, ("h1", "h2"), strict=True) if step)  # type: ignore[arg-type]
        for pair in pairs
    ]


KILLED = _pairs()


@pytest.fixture(scope="module", autouse=True)
def an_image_of_h1_alone(world: LabWorld) -> None:
    world.add_image("h1", ELSEWHERE)


def test_each_step_is_there() -> None:
    assert sorted(cell.step for pair in KILLED for cell in pair) == sorted(STEPS)


@pytest.mark.parametrize("cells", KILLED, ids=lambda cells: ", ".join(map(str, cells)))
def test_an_agent_killed_at_a_step(world: LabWorld, cells: tuple[Cell, ...]) -> None:
    hold(world, cells, AGENT_KILLED)


@pytest.mark.parametrize("cells", FROZEN, ids=lambda cells: ", ".join(map(str, cells)))
def test_an_agent_frozen_at_a_step(world: LabWorld, cells: tuple[Cell, ...]) -> None:
    frozen = tuple(Cell(cell.step, cell.when, cell.host, "freeze", FROZEN_S) for cell in cells)
    hold(world, frozen, "agent frozen beyond the heartbeat, woken")


@pytest.mark.parametrize("cell", RESTORES, ids=str)
def test_a_restore_that_is_cut_off_is_done_or_was_never_begun(world: LabWorld, cell: Cell) -> None:
    """The disk is sound, holds what it held at the snapshot once that was told, and the VM starts from it."""
    with held(world, f"agent {'killed' if cell.do == 'kill' else 'frozen'} in a restore", at=(cell,)):
        vm_id = world.client.create(cell.host)
        world.client.do("kill", vm_id)
        on_disk(world, cell.host, vm_id, "write -P 1 512M 64k")
        world.client.do("snapshot", vm_id)
        on_disk(world, cell.host, vm_id, "write -P 2 512M 64k")
        command = strike(world, cell, Command("restore", vm_id)).command
        assert command is not None
        told = world.client.insist(command)
        assert told.outcome in ("done", "refused"), told
        on_disk(world, cell.host, vm_id, f"read -P {1 if told.outcome == 'done' else 2} 512M 64k")
        world.shell(cell.host, f"qemu-img check -q {DISK.format(vm_id)}")
        assert world.client.insist(command) == told
        world.client.do("start", vm_id)


def on_disk(world: LabWorld, host: str, vm_id: str, what: str) -> None:
    """Have qemu-io write to the disk of a VM that is off, or compare it: it fails where something else is read."""
    world.shell(host, f"qemu-io -f qcow2 -c '{what}' {DISK.format(vm_id)}")


def hold(world: LabWorld, cells: tuple[Cell, ...], fault: str) -> None:
    """Strike, and write down how it went."""
    verdict, seconds = "broken", 0.0
    try:
        seconds = run(world, cells)
        verdict = "held"
    finally:
        for cell in cells:
            world.forget_orders(cell.host)
            world.record(cell.step, cell.when, fault, verdict, seconds)
        world.delete_all()
