"""Faults of a VM's network: `vm-net`, which is root's, is killed or stands still at a step, or what it calls fails.

Beside the VMs that are struck one runs on each host, and must keep its network.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager

from aetherscale_testing.faults.checker import Kind
from aetherscale_testing.faults.lab_client import Command
from aetherscale_testing.faults.lab_courses import Cell, held
from aetherscale_testing.faults.lab_network import planted
from aetherscale_testing.faults.lab_world import HOSTS, LabWorld, Order
from aetherscale_testing.faults.report import VM_NET_FAILS, VM_NET_KILLED

testinfra_hosts = ["broker1"]  # once, not per host

KILLED_UP = (Cell("up.tap", "after", "h1"), Cell("up.rules", "after", "h2"))
KILLED_DOWN = (Cell("down.tap", "before", "h1"), Cell("down.rules", "before", "h2"))
FAILS = (Cell("up.rules", "before", "h1", "fail"), Cell("up.tap", "before", "h2", "fail"))
FAILS_DOWN = (Cell("down.rules", "before", "h1", "fail"), Cell("down.tap", "before", "h2", "fail"))
POWER = (Cell("up.rules", "before", "h1", "freeze"), Cell("down.rules", "before", "h2", "freeze"))
REFUSED = ("refused", "failed")

Plant = Callable[..., AbstractContextManager[list[Order]]]


@contextmanager
def held_beside_others(world: LabWorld, fault: str) -> Iterator[Plant]:
    """As `held`, with a VM on each host that is not struck. What is yielded plants faults, and they are the rows."""
    at: list[Cell] = []

    def plant(*cells: Cell) -> AbstractContextManager[list[Order]]:
        at.extend(cells)
        return planted(world, *cells)

    with held(world, fault, at=at):
        with ThreadPoolExecutor() as pool:
            list(pool.map(world.client.create, HOSTS))
        yield plant


def make(world: LabWorld, host: str, *, off: bool = False) -> str:
    """A VM, which runs unless it is to be off."""
    vm_id = world.client.create(host)
    if off:
        world.client.do("kill", vm_id)
    return vm_id


def outcome(world: LabWorld, command: Command) -> tuple[str, str]:
    told = world.client.insist(command)
    return told.outcome, told.what


def strays(world: LabWorld) -> dict[str, str]:
    """What is on each host and should not be, in words."""
    found = [violation for violation in world.look() if violation.kind is Kind.STRAY]
    return {host: "; ".join(one.text for one in found if one.host == host) for host in HOSTS}


def test_vm_net_is_killed_when_a_vm_starts(world: LabWorld) -> None:
    with held_beside_others(world, VM_NET_KILLED) as plant:
        off = make(world, "h2", off=True)
        with plant(*KILLED_UP):
            assert outcome(world, Command("create", host="h1")) == REFUSED
            assert outcome(world, Command("start", off)) == REFUSED
        world.client.create("h1")
        world.client.do("start", off)


def test_vm_net_is_killed_when_a_vm_has_ended(world: LabWorld) -> None:
    with held_beside_others(world, VM_NET_KILLED) as plant:
        killed, deleted = make(world, "h1"), make(world, "h2")
        with plant(*KILLED_DOWN):
            world.client.do("kill", killed)
            world.client.do("delete", deleted)
        world.settle()  # with nobody's help: neither is started again, nor is anything else
        world.client.do("start", killed)


def test_what_vm_net_calls_fails(world: LabWorld) -> None:
    """It fails when VMs start, and then when others end, as long as it lasts; then the system is itself again."""
    with held_beside_others(world, VM_NET_FAILS) as plant:
        deleted, killed, off = make(world, "h1"), make(world, "h2"), make(world, "h2", off=True)
        with plant(*FAILS):
            assert outcome(world, Command("create", host="h1")) == REFUSED
            assert outcome(world, Command("start", off)) == REFUSED
        world.settle()  # what they left is gone, and does not come to the next
        with plant(*FAILS_DOWN):
            world.client.do("delete", deleted)
            world.client.do("kill", killed)
            left = strays(world)
            assert deleted in left["h1"], left  # the control: it can't be removed yet
            assert f"link vm-{killed} " in left["h2"], left
        world.settle()
        for vm_id in (off, killed):
            world.client.do("start", vm_id)
        world.client.create("h1")


def test_power_is_lost_while_vm_net_is_at_work(world: LabWorld) -> None:
    with held_beside_others(world, "power of the host lost") as plant:
        created, killed = Command("create", host="h1"), Command("kill", make(world, "h2"))
        with plant(*POWER) as orders:
            for command, order in zip((created, killed), orders, strict=True):
                world.client.send(command, 20, enough=lambda order=order: order.is_taken)  # type: ignore[misc]
                order.wait()
            for host in HOSTS:
                world.lab.power_loss(host)
            for host in HOSTS:
                world.lab.power_on(host)
        for command in (created, killed):
            world.client.insist(command)
    world.install(*HOSTS)
