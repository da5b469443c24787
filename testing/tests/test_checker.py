"""The checker finds whatever is planted, each from a clean world changed in one place, and nothing in a clean one."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from aetherscale_protocol import names, topology
from aetherscale_testing.faults.checker import TOMBSTONE_SLACK_S, Kind
from aetherscale_testing.faults.ledger import Entry, Told
from aetherscale_testing.faults.sample import (
    DEADLINE,
    DONE,
    EXPIRES,
    NEW,
    NONE,
    NOW,
    OFF,
    ON,
    REFUSED,
    TOMB,
    UNKNOWN,
    World,
    clean,
    less,
)
from aetherscale_testing.faults.views import RecordView


def test_a_clean_world_has_no_violation() -> None:
    assert clean().find() == set()


def test_a_clean_world_without_tombstones_has_none_strictly() -> None:
    world = clean()
    world.vanish("h1", TOMB)
    assert world.find(strict=True) == set()


Plant = Callable[[World], None]
PLANTED: list[tuple[str, Plant, set[Kind]]] = []
STRICT: list[tuple[str, Plant, set[Kind]]] = []


def planted(*kinds: Kind, strict: bool = False) -> Callable[[Plant], Plant]:
    def add(plant: Plant) -> Plant:
        (STRICT if strict else PLANTED).append((plant.__name__, plant, set(kinds)))
        return plant

    return add


def _copy_to_h2(world: World, *parts: str) -> None:
    one: dict[str, Any] = {part: frozenset({ON}) for part in parts if part not in ("records", "processes")}
    if "records" in parts:
        one["records"] = {ON: world.hosts["h1"].records[ON]}
    if "processes" in parts:
        one["processes"] = {ON: 1}
    world.on("h2", **one)


@planted(Kind.DOUBLE, Kind.BINDING_MISSING)
def a_double_vm(world: World) -> None:
    _copy_to_h2(world, "records", "disks", "running", "units", "processes", "runtime")


@planted(Kind.DOUBLE, Kind.BINDING_DOUBLE)
def a_double_vm_in_the_directory_too(world: World) -> None:
    _copy_to_h2(world, "records", "disks", "running", "units", "processes", "runtime")
    world.bind(ON, "h1", "h2")


@planted(Kind.DOUBLE, Kind.ORPHAN_DISK)
def a_second_disk(world: World) -> None:
    _copy_to_h2(world, "disks")


@planted(Kind.DOUBLE, Kind.ORPHAN_UNIT, Kind.ORPHAN_PROCESS)
def a_second_qemu_on_another_host(world: World) -> None:
    _copy_to_h2(world, "running", "units", "processes")


@planted(Kind.LOST)
def a_lost_vm(world: World) -> None:
    world.vanish("h1", ON)


@planted(Kind.LOST)
def a_vm_lost_after_a_refused_delete(world: World) -> None:
    world.tell("delete", ON, Told("refused", "host-down"))
    world.vanish("h1", ON)


@planted(Kind.REFUSED_EXISTS)
def a_refused_vm(world: World) -> None:
    world.forget(ON)
    world.tell("create", ON, REFUSED)


@planted(Kind.REFUSED_EXISTS)
def a_vm_of_a_request_that_was_refused_beside_one_that_was_not(world: World) -> None:
    world.forget(ON)
    world.tell("create", ON, REFUSED)
    world.tell("create", ON, UNKNOWN, request="another")


@planted(Kind.REFUSED_EXISTS)
def a_vm_that_was_refused_at_last(world: World) -> None:
    world.forget(ON)
    world.tell("create", ON, NONE, NOW - 20)
    world.tell("create", ON, REFUSED, NOW - 10)


@planted(Kind.RESURRECTED, Kind.ORPHAN_DISK)
def what_is_left_of_a_deleted_vm(world: World) -> None:
    world.tell("create", NEW, DONE, NOW - 9)
    world.tell("delete", NEW, DONE, NOW - 7)
    world.on("h1", disks={NEW})


@planted(Kind.RESURRECTED)
def a_resurrected_vm(world: World) -> None:
    world.tell("delete", ON, DONE)


@planted(Kind.RESURRECTED)
def a_vm_resurrected_by_a_late_copy(world: World) -> None:
    world.tell("delete", ON, DONE, NOW - 8)
    world.tell("create", ON, NONE, NOW - 4)


@planted(Kind.UNASKED)
def a_vm_that_nobody_asked_for(world: World) -> None:
    world.forget(ON)


@planted(Kind.UNASKED)
def a_vm_of_a_request_that_nobody_made(world: World) -> None:
    world.record("h1", ON, request_id="who")


@planted(Kind.DONE_TWICE)
def two_requests_that_made_one_vm(world: World) -> None:
    world.tell("create", ON, DONE, request="another")


@planted(Kind.TOLD_BOTH)
def a_request_that_was_done_and_refused(world: World) -> None:
    world.tell("create", ON, REFUSED)


@planted(Kind.SHOULD_RUN, Kind.UNWANTED_POWER)
def a_vm_that_is_off_although_it_was_started(world: World) -> None:
    world.off("h1", "running", "units", "processes", vm=ON)


@planted(Kind.SHOULD_RUN)
def a_vm_that_forgot_that_it_was_started(world: World) -> None:
    world.tell("start", OFF, Told("done", "starting"))


@planted(Kind.SHOULD_RUN)
def a_refused_stop_that_was_done(world: World) -> None:
    world.off("h1", "running", "units", "processes", vm=ON)
    world.record("h1", ON, wanted="off")
    world.tell("kill", ON, Told("refused", "host-down"))


@planted(Kind.SHOULD_RUN)
def a_vm_off_after_a_start_although_its_crash_was_before(world: World) -> None:
    world.entries.append(Entry(OFF, "", "crash", NOW - 40, NOW - 40, DONE, NOW - 40))
    world.tell("start", OFF, Told("done", "starting"))


@planted(Kind.SHOULD_REST)
def a_vm_that_runs_although_it_was_stopped(world: World) -> None:
    world.tell("stop", ON, Told("done", "stopped"))


@planted(Kind.SHOULD_REST)
def a_repeated_create_that_started_a_stopped_vm(world: World) -> None:
    world.tell("kill", ON, Told("done", "stopped"), NOW - 20)
    world.tell("create", ON, Told("done", "starting"), NOW - 3)


@planted(Kind.UNSETTLED)
def a_create_that_was_never_finished(world: World) -> None:
    world.record("h1", ON, phase="bound")


@planted(Kind.UNSETTLED)
def a_deletion_that_was_never_finished(world: World) -> None:
    world.record("h2", OFF, phase="deleting")


@planted(Kind.UNSETTLED)
def a_claim_in_the_journal(world: World) -> None:
    world.tell("create", NEW, NONE)
    world.on("h1", records={NEW: RecordView("claimed", f"create-{NEW}", False, DEADLINE)})


@planted(Kind.DISK_MISSING)
def a_vm_without_a_disk(world: World) -> None:
    world.off("h2", "disks", vm=OFF)


@planted(Kind.TOMBSTONE_OLD)
def an_old_tombstone(world: World) -> None:
    world.record("h1", TOMB, deadline=NOW - TOMBSTONE_SLACK_S - 1)


@planted(Kind.TOMBSTONE_OLD, strict=True)
def any_tombstone(world: World) -> None:
    world.record("h1", TOMB, deadline=NOW + 100)


@planted(Kind.UNWANTED_POWER)
def a_vm_that_a_reboot_would_start(world: World) -> None:
    world.record("h2", OFF, wanted="on")


@planted(Kind.ORPHAN_DISK)
def an_orphan_overlay(world: World) -> None:
    world.tell("create", NEW, UNKNOWN)
    world.on("h1", disks={NEW})


@planted(Kind.ORPHAN_DISK, Kind.RESURRECTED)
def the_disk_of_a_tombstone(world: World) -> None:
    world.on("h1", disks={TOMB})


@planted(Kind.ORPHAN_UNIT)
def a_failed_unit_or_drop_in(world: World) -> None:
    world.on("h1", units={NEW})


@planted(Kind.ORPHAN_UNIT, Kind.ORPHAN_PROCESS)
def a_running_unit_without_a_record(world: World) -> None:
    world.tell("create", NEW, UNKNOWN)
    world.on("h1", running={NEW}, processes={NEW: 1})


@planted(Kind.ORPHAN_PROCESS, Kind.PROCESS_STRAY)
def an_orphan_process(world: World) -> None:
    world.tell("create", NEW, UNKNOWN)
    world.on("h1", processes={NEW: 1})


@planted(Kind.ORPHAN_RUNTIME)
def a_stray_socket(world: World) -> None:
    world.on("h2", runtime={NEW})


@planted(Kind.PROCESS_MISSING)
def a_unit_without_a_process(world: World) -> None:
    world.off("h1", "processes", vm=ON)


@planted(Kind.PROCESS_STRAY)
def qemu_outside_of_its_unit(world: World) -> None:
    world.tell("kill", OFF, UNKNOWN)
    world.on("h2", processes={OFF: 1})
    world.forget(OFF, "kill")


@planted(Kind.PROCESSES_MANY)
def two_qemus(world: World) -> None:
    world.on("h1", processes={ON: 2})


@planted(Kind.CUT_OFF)
def a_vm_without_its_network(world: World) -> None:
    world.on("h1", cut_off=frozenset({ON}))


@planted(Kind.STRAY)
def a_tap(world: World) -> None:
    world.on("h1", strays=("tap-x",))


@planted(Kind.BINDING_MISSING)
def a_vm_that_the_directory_does_not_know(world: World) -> None:
    world.bind(ON)


@planted(Kind.BINDING_MISSING)
def a_tombstone_that_a_late_copy_would_miss(world: World) -> None:
    world.bind(TOMB)


@planted(Kind.BINDING_STRAY)
def a_stray_binding(world: World) -> None:
    world.bind(NEW, "h2")


@planted(Kind.BINDING_STRAY)
def the_binding_of_a_refused_create(world: World) -> None:
    world.record("h1", TOMB, bound=False)


@planted(Kind.BINDING_WRONG, Kind.BINDING_MISSING)
def a_binding_to_the_wrong_host(world: World) -> None:
    world.bind(ON, "h2")


@planted(Kind.BINDING_DOUBLE, Kind.BINDING_WRONG)
def a_binding_to_two_hosts(world: World) -> None:
    world.bind(ON, "h1", "h2")


@planted(Kind.KEY_MISSING)
def a_host_that_no_broadcast_reaches(world: World) -> None:
    left = world.broker.other_bindings - {("computing", "computing-host.h2", "list-vms")}
    world.broker = replace(world.broker, other_bindings=left)


@planted(Kind.KEY_STRAY)
def a_binding_that_nobody_knows(world: World) -> None:
    more = world.broker.other_bindings | {("computing", "computing-competing", "list-vms")}
    world.broker = replace(world.broker, other_bindings=more)


@planted(Kind.CLAIM_ENDLESS)
def a_claim_without_expiry(world: World) -> None:
    world.claim(ON, expires_ms=None)


@planted(Kind.CLAIM_ENDLESS)
def a_claim_with_another_expiry(world: World) -> None:
    world.claim(NEW, expires_ms=EXPIRES + 1)


@planted(Kind.CLAIM_OWNER)
def a_claim_of_a_host_that_is_gone(world: World) -> None:
    world.claim(ON, owner="h9")


@planted(Kind.CLAIM_FORGOTTEN, Kind.TOMBSTONE_OLD, strict=True)
def a_forgotten_claim(world: World) -> None:
    world.claim(NEW)


@planted(Kind.CLAIM_FORGOTTEN, Kind.TOMBSTONE_OLD, strict=True)
def a_claim_past_its_expiry(world: World) -> None:
    world.claim(NEW)
    old = NOW - EXPIRES / 1000 - TOMBSTONE_SLACK_S - 1
    world.entries.append(Entry(NEW, "old", "create", old, old, REFUSED, old))


@planted(Kind.QUEUE_UNKNOWN)
def an_unknown_queue(world: World) -> None:
    world.queue("amq.gen-x")


@planted(Kind.QUEUE_UNKNOWN)
def the_queue_of_a_host_that_is_gone(world: World) -> None:
    world.queue(names.host_queue("h9"))


@planted(Kind.QUEUE_UNKNOWN)
def the_lock_of_a_host_that_is_gone(world: World) -> None:
    world.queue(names.lock_queue("h9"))


@planted(Kind.QUEUE_UNKNOWN)
def the_last_word_of_a_host_that_is_gone(world: World) -> None:
    world.queue(names.known_queue("h9"))


@planted(Kind.MESSAGES_LEFT)
def a_host_with_two_last_words(world: World) -> None:
    world.queue(names.known_queue("h1"), ready=2)


@planted(Kind.QUEUE_MISSING)
def a_missing_queue(world: World) -> None:
    world.broker = replace(world.broker, queues=less(world.broker.queues, topology.UNDELIVERABLE))


@planted(Kind.MESSAGES_LEFT)
def a_message_that_nobody_takes(world: World) -> None:
    world.queue(topology.COMPETING, ready=1)


@planted(Kind.MESSAGES_LEFT)
def a_message_that_is_never_acknowledged(world: World) -> None:
    world.queue(names.host_queue("h1"), unacked=1)


@planted(Kind.CONSUMERS_MANY)
def two_agents_of_one_name(world: World) -> None:
    world.queue(names.host_queue("h1"), consumers=2)


@planted(Kind.CONSUMERS_MISSING)
def a_host_that_takes_no_creates(world: World) -> None:
    world.queue(topology.COMPETING, consumers=1)


@pytest.mark.parametrize(("plant", "kinds"), [row[1:] for row in PLANTED], ids=[row[0] for row in PLANTED])
def test_what_is_planted_is_found_and_nothing_else(plant: Plant, kinds: set[Kind]) -> None:
    world = clean()
    plant(world)
    assert world.find() == kinds


@pytest.mark.parametrize(("plant", "kinds"), [row[1:] for row in STRICT], ids=[row[0] for row in STRICT])
def test_what_only_a_strict_look_finds(plant: Plant, kinds: set[Kind]) -> None:
    world = clean()
    plant(world)
    assert world.find() == set()
    assert world.find(strict=True) == kinds


def test_each_kind_of_violation_is_planted() -> None:
    assert set(Kind) == set().union(*(kinds for _, _, kinds in [*PLANTED, *STRICT]))
