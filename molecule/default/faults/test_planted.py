"""What is planted on real hosts and in the real broker is found by the checker, and nothing once it is removed."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

from aetherscale_protocol import names
from aetherscale_testing.faults.checker import Kind
from aetherscale_testing.faults.lab_world import HOSTS, LabWorld

testinfra_hosts = ["broker1"]  # once, not per host

HOME = "/var/lib/aetherscale"
Found = set[tuple[Kind, str, str]]
"""Violations: their kinds, VMs and hosts."""
Plant = Callable[[LabWorld], Iterator[Found]]


# Each plants, yields what must be found, and removes it again.


def a_second_vm_of_one_id(world: LabWorld) -> Iterator[Found]:
    vm = world.client.create("h1")
    files = f"{HOME}/journal/{vm}.json {HOME}/vms/{vm}"
    packed = world.shell("h1", f"tar -cP {files} | base64")
    world.shell("h2", "base64 -d | tar -xP", stdin=packed)
    yield {(Kind.DOUBLE, vm, ""), (Kind.BINDING_MISSING, vm, "h2"), (Kind.UNWANTED_POWER, vm, "h2")}
    world.shell("h2", f"rm -r {files}")
    world.client.do("delete", vm)


def an_orphan_overlay(world: LabWorld) -> Iterator[Found]:
    vm = names.new_vm_id()
    home = f"{HOME}/vms/{vm}"
    world.shell("h2", f"mkdir {home} && qemu-img create -q -f qcow2 {home}/disk.qcow2 1G")
    yield {(Kind.ORPHAN_DISK, vm, "h2"), (Kind.UNASKED, vm, "h2")}
    world.shell("h2", f"rm -r {home}")


def a_draft_and_a_tap(world: LabWorld) -> Iterator[Found]:
    draft = f"{HOME}/journal/{names.new_vm_id()}.new"
    world.shell("h1", f"touch {draft}; ip tuntap add dev tap0 mode tap")
    yield {(Kind.STRAY, "", "h1")}
    world.shell("h1", f"rm {draft}; ip link del tap0")


def a_failed_unit(world: LabWorld) -> Iterator[Found]:
    vm = names.new_vm_id()
    unit = f"aetherscale-vm@{vm}.service"
    world.lab.run("h2", ["systemctl", "start", unit], check=False)
    yield {(Kind.ORPHAN_UNIT, vm, "h2")}
    world.shell("h2", f"systemctl reset-failed {unit}")


def an_orphan_process(world: LabWorld) -> Iterator[Found]:
    vm = names.new_vm_id()
    world.shell("h2", f"systemd-run --quiet --unit=orphan qemu-system-x86_64 -name {vm} -display none -machine none")
    yield {(Kind.ORPHAN_PROCESS, vm, "h2"), (Kind.PROCESS_STRAY, vm, "h2"), (Kind.UNASKED, vm, "h2")}
    world.shell("h2", "systemctl stop orphan.service")


def a_second_qemu_of_one_vm(world: LabWorld) -> Iterator[Found]:
    vm = world.client.create("h1")
    world.shell("h1", f"systemd-run --quiet --unit=second qemu-system-x86_64 -name {vm} -display none -machine none")
    yield {(Kind.PROCESSES_MANY, vm, "h1")}
    world.shell("h1", "systemctl stop second.service")
    world.client.do("delete", vm)


def a_stray_file_of_a_run(world: LabWorld) -> Iterator[Found]:
    vm = names.new_vm_id()
    world.shell("h1", f"touch /run/aetherscale/args/{vm}.env")
    yield {(Kind.ORPHAN_RUNTIME, vm, "h1")}
    world.shell("h1", f"rm /run/aetherscale/args/{vm}.env")


def a_vm_of_whose_address_the_dhcp_server_knows_nothing(world: LabWorld) -> Iterator[Found]:
    vm = world.client.create("h2")
    folder, aside = "/run/aetherscale-network/reservations", f"/run/{vm}"
    world.shell("h2", f"mv {folder}/{vm} {aside}")
    yield {(Kind.CUT_OFF, vm, "h2")}
    world.shell("h2", f"mv {aside} {folder}/{vm}")
    world.client.do("delete", vm)


def a_tap_that_is_on_no_bridge(world: LabWorld) -> Iterator[Found]:
    vm = world.client.create("h1")
    world.shell("h1", f"ip link set vm-{vm} nomaster")
    yield {(Kind.CUT_OFF, vm, "h1")}
    world.shell("h1", f"ip link set vm-{vm} master aetherscale0")
    world.client.do("delete", vm)


def a_tap_that_is_down(world: LabWorld) -> Iterator[Found]:
    vm = world.client.create("h1")
    world.shell("h1", f"ip link set vm-{vm} down")
    yield {(Kind.CUT_OFF, vm, "h1")}
    world.shell("h1", f"ip link set vm-{vm} up")
    world.client.do("delete", vm)


def an_address_that_the_firewall_does_not_know(world: LabWorld) -> Iterator[Found]:
    """Beside its reservation. Other VMs of that host that come or go bring it back: this is planted last."""
    vm = world.client.create("h2")
    wanted = f"/run/aetherscale-network/vms/{vm}.conf"
    address = f"$(sed -n 's/^mac //p' {wanted}) . $(sed -n 's/^address //p' {wanted})"
    change = f'nft {{}} element bridge aetherscale addresses "{{{{ \\"vm-{vm}\\" . {address} }}}}"'
    world.shell("h2", change.format("delete"))
    yield {(Kind.CUT_OFF, vm, "h2")}
    world.shell("h2", change.format("add"))
    world.client.do("delete", vm)


def a_vm_that_is_gone(world: LabWorld) -> Iterator[Found]:
    vm = world.client.create("h1")
    world.client.do("kill", vm)
    files, aside = f"{HOME}/journal/{vm}.json {HOME}/vms/{vm}", f"/root/{vm}"
    world.shell("h1", f"mkdir {aside} && mv {files} {aside}")
    yield {(Kind.LOST, vm, ""), (Kind.BINDING_STRAY, vm, "h1"), (Kind.ORPHAN_RUNTIME, vm, "h1")}
    world.shell("h1", f"mv {aside}/{vm}.json {HOME}/journal/ && mv {aside}/{vm} {HOME}/vms/ && rmdir {aside}")
    world.client.do("delete", vm)


def a_stray_binding(world: LabWorld) -> Iterator[Found]:
    vm = names.new_vm_id()
    with world.as_agent() as channel:
        place = {"queue": names.host_queue("h1"), "exchange": "computing", "routing_key": names.vm_key(vm)}
        channel.queue_bind(**place)
        yield {(Kind.BINDING_STRAY, vm, "h1")}
        channel.queue_unbind(**place)


def a_lost_binding(world: LabWorld) -> Iterator[Found]:
    vm = world.client.create("h1")
    with world.as_agent() as channel:
        place = {"queue": names.host_queue("h1"), "exchange": "computing", "routing_key": names.vm_key(vm)}
        channel.queue_unbind(**place)
        yield {(Kind.BINDING_MISSING, vm, "h1")}
        channel.queue_bind(**place)
    world.client.do("delete", vm)


def a_forgotten_claim(world: LabWorld) -> Iterator[Found]:
    vm = names.new_vm_id()
    owner = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "h1"}
    with world.as_agent() as channel:
        channel.queue_declare(names.claim_queue(vm), durable=True, arguments=owner)
        yield {(Kind.CLAIM_ENDLESS, vm, "h1")}
        channel.queue_delete(names.claim_queue(vm))


def a_claim_of_nobody_with_a_message_in_it(world: LabWorld) -> Iterator[Found]:
    vm = names.new_vm_id()
    queue = names.claim_queue(vm)
    with world.as_agent() as channel:
        channel.queue_declare(queue, durable=True, arguments={"x-expires": 720_000})
        channel.basic_publish("", queue, b"")
        yield {(Kind.CLAIM_OWNER, vm, ""), (Kind.MESSAGES_LEFT, "", "")}
        channel.queue_delete(queue)


def a_second_consumer(world: LabWorld) -> Iterator[Found]:
    with world.as_agent() as channel:
        # The agent is given what comes for it all the same: to be deaf is another fault.
        channel.basic_consume(names.host_queue("h1"), print, arguments={"x-priority": -1})
        yield {(Kind.CONSUMERS_MANY, "", "")}
        channel.cancel()


PLANTS: tuple[Plant, ...] = (
    a_second_vm_of_one_id,
    an_orphan_overlay,
    a_draft_and_a_tap,
    a_failed_unit,
    an_orphan_process,
    a_second_qemu_of_one_vm,
    a_stray_file_of_a_run,
    a_vm_of_whose_address_the_dhcp_server_knows_nothing,
    a_tap_that_is_on_no_bridge,
    a_tap_that_is_down,
    a_vm_that_is_gone,
    a_stray_binding,
    a_lost_binding,
    a_forgotten_claim,
    a_claim_of_nobody_with_a_message_in_it,
    a_second_consumer,
    an_address_that_the_firewall_does_not_know,
)


def test_at_the_end_nothing_is_left(world: LabWorld) -> None:
    """No tombstone, no claim without its reason, no message; of all the tests in this folder."""
    world.settle(60, strict=True)
    hosts = [world.look_at(host) for host in HOSTS]
    assert not any(view.records or view.disks or view.units or view.processes or view.runtime for view in hosts)


def test_all_that_is_planted_is_found_and_nothing_else(world: LabWorld) -> None:
    """All at once, because a look at real hosts takes its time; no two are about the same VM."""
    world.settle()
    wanted: Found = set()
    with ExitStack() as removal:
        for plant in PLANTS:
            parts = plant(world)
            found = next(parts)
            removal.callback(next, parts, None)
            assert found
            wanted |= found
        assert {(v.kind, v.vm_id, v.host) for v in world.look()} == wanted
    world.settle()
