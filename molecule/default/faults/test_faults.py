"""Every other fault at least once, at a step where there is one: on real hosts, with real units, QEMU and broker."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from aetherscale_protocol import names
from aetherscale_testing.faults import tiny_guest
from aetherscale_testing.faults.lab_client import Command
from aetherscale_testing.faults.lab_courses import SHORT_S, Cell, Struck, course_of, held
from aetherscale_testing.faults.lab_world import FOLDER, HEARTBEAT_S, HOSTS, LabWorld

testinfra_hosts = ["broker1"]  # once, not per host

STATE = "/var/lib/aetherscale"
BROKER = "rabbitmq-server.service"


def strike(world: LabWorld, *cells: Cell) -> list[Struck]:
    """Bring each host's agent to its step."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda cell: course_of(cell.step)(world, cell), cells))


def insist(world: LabWorld, struck: list[Struck]) -> None:
    """Ask again until every outcome is known."""
    for one in struck:
        assert one.command is not None
        world.client.insist(one.command)


# The broker


def test_the_broker_is_killed(world: LabWorld) -> None:
    cells = (
        Cell("create.acknowledge", "before", "h1", "freeze", 3),
        Cell("delete.acknowledge", "after", "h2", "freeze", 3),
    )
    with held(world, "broker killed and restarted", at=cells):
        struck = strike(world, *cells)
        world.shell("broker1", f"systemctl kill -s KILL {BROKER}; sleep 0.2; systemctl start {BROKER}")
        insist(world, struck)


def test_the_broker_is_wiped(world: LabWorld, site: Callable[..., Any]) -> None:
    cells = (Cell("create.bind", "after", "h1", "freeze", 3), Cell("start.qemu", "before", "h2", "freeze", 3))
    with held(world, "broker wiped: agents rebuild the directory", at=cells):
        for host in HOSTS:
            world.client.create(host)
        struck = strike(world, *cells)
        world.shell("broker1", f"systemctl stop {BROKER}; rm -rf /var/lib/rabbitmq/mnesia/*; systemctl start {BROKER}")
        run = site("--limit", "broker1")
        assert run.code == 0, run.said
        world.await_agents()
        insist(world, struck)


# A host


def test_power_is_lost(world: LabWorld) -> None:
    cells = (Cell("build.start", "after", "h1", "freeze", 60), Cell("erase.remove", "before", "h2", "freeze", 60))
    with held(world, "power of the host lost", at=cells):
        running, off = world.client.create("h1"), world.client.create("h2")
        world.client.do("kill", off)
        struck = strike(world, *cells)
        for host in HOSTS:
            world.lab.power_loss(host)
        for host in HOSTS:
            world.lab.power_on(host)
        insist(world, struck)
        world.settle()
        assert {running} <= world.look_at("h1").running
    world.install(*HOSTS)


def test_the_network_is_cut_in_silence(world: LabWorld) -> None:
    cells = (Cell("create.acknowledge", "before", "h2", "freeze", 1),)
    with held(world, "network cut in silence, healed", at=cells):
        struck = strike(world, *cells)
        world.lab.cut("h2")
        try:
            time.sleep(4 * HEARTBEAT_S)  # the fault itself: both sides give up on the other
        finally:
            world.lab.heal("h2")
        insist(world, struck)


def test_a_clock_is_ten_minutes_off(world: LabWorld) -> None:
    with held(world, "clock of a host ten minutes ahead"):
        here, there = world.client.create("h1"), world.client.create("h2")
        world.shell("h2", f"echo 600 >{FOLDER}/clock")
        world.kill_agent("h2")
        try:
            world.settle()
            refused = [Command("create", host="h2"), Command("kill", there), Command("delete", there)]
            for told in map(world.client.insist, refused):
                assert (told.outcome, told.what) == ("refused", "deadline-passed")
            world.client.do("kill", here)
            world.client.send_twice(Command("create"), *HOSTS)
            world.settle()
        finally:
            world.shell("h2", f"rm {FOLDER}/clock")
            world.kill_agent("h2")


# Clients


def test_clients_that_repeat_themselves_vanish_or_collide(world: LabWorld) -> None:
    twice, again, gone = Command("create"), Command("create"), Command("create")
    faults = (
        "the same message twice",
        "the client asks again with the same request id",
        "the client is gone",
        "two clients create the same id",
    )
    with held(world, *faults):
        world.client.send_twice(twice, *HOSTS)
        assert [world.client.insist(again) for _ in range(3)] == [world.client.insist(again)] * 3
        world.client.leave(gone)
        one_id = names.new_vm_id()
        rivals = [Command("create", one_id, host=host) for host in HOSTS for _ in range(2)]
        with ThreadPoolExecutor() as pool:
            told = list(pool.map(world.client.insist, rivals))
        assert sorted(t.outcome for t in told) == ["done", "refused", "refused", "refused"]
        assert {t.what for t in told if t.outcome == "refused"} == {"vm-id-taken"}
        world.settle()
        assert world.client.insist(replace(gone)).outcome == "done"


# What a host's hypervisor may run into


@contextmanager
def small_disk(world: LabWorld, host: str, folder: str) -> Iterator[None]:
    """A folder of the agent's on a file system of its own that is full. Its files are there before and after.

    When there is space again the system must settle, before the files move back.
    """
    aside, owner = f"/root/{folder}", f"$(stat -c %U:%G {STATE})"
    move = "systemctl kill -s STOP aetherscale-agent; {}; systemctl kill -s CONT aetherscale-agent"
    fill = (
        f"cp -a {STATE}/{folder} {aside}; mount -t tmpfs -o size=128k,mode=700 full {STATE}/{folder};"
        f"chown {owner} {STATE}/{folder}; cp -a {aside}/. {STATE}/{folder}/;"
        f"cat /dev/zero >{STATE}/{folder}/.fill 2>/dev/null"
    )
    free = (
        f"rm -rf {aside}; cp -a {STATE}/{folder} {aside}; umount {STATE}/{folder}; rm -rf {STATE}/{folder}/*;"
        f"cp -a {aside}/. {STATE}/{folder}/; rm -rf {aside}"
    )
    world.shell(host, move.format(fill))
    try:
        yield
        world.shell(host, f"rm {STATE}/{folder}/.fill")
        world.settle()
    finally:
        world.shell(host, f"rm -f {STATE}/{folder}/.fill; " + move.format(free))


def test_the_journal_is_on_a_full_disk(world: LabWorld) -> None:
    with held(world, "disk full: the journal"):
        stopped = world.client.create("h1")
        world.client.do("kill", stopped)
        deleted = Command("create", host="h1", deadline=time.time() + 2 * SHORT_S)
        world.client.insist(deleted)
        with small_disk(world, "h1", "journal"):
            assert world.client.insist(Command("create", host="h1")).outcome == "refused"
            assert world.client.insist(Command("start", stopped)).outcome == "refused"
            world.client.do("delete", deleted.vm_id)


def test_what_a_full_disk_kept_out_of_the_journal_is_written_when_there_is_space_again(world: LabWorld) -> None:
    with held(world, "disk full: the journal", at=(Cell("kill.journal", "before", "h1"),)):
        killed = world.client.create("h1")
        with small_disk(world, "h1", "journal"):
            world.client.insist(Command("kill", killed))


def test_the_vms_are_on_a_full_disk(world: LabWorld) -> None:
    with held(world, "disk full: the VMs", at=(Cell("build.disk", "before", "h2"),)), small_disk(world, "h2", "vms"):
        assert world.client.insist(Command("create", host="h2")).outcome == "refused"


@contextmanager
def instead_of(world: LabWorld, host: str, program: str) -> Iterator[None]:
    """A program that fails at once, in place of a real one."""
    fake = f"/run/{program.rpartition('/')[2]}"
    world.shell(host, f"printf '#!/bin/sh\\nexit 1\\n' >{fake}; chmod 755 {fake}; mount --bind {fake} {program}")
    try:
        yield
    finally:
        world.shell(host, f"umount {program}; rm {fake}")


def test_qemu_img_fails(world: LabWorld) -> None:
    with held(world, "qemu-img fails", at=(Cell("build.disk", "before", "h1"),)):
        with instead_of(world, "h1", "/usr/bin/qemu-img"):
            world.shell("h1", "systemctl restart aetherscale-agent")  # which knows how overlays came out before
            told = world.client.insist(Command("create", host="h1"))
        assert (told.outcome, told.what) == ("refused", "failed")


def test_qemu_dies_at_once(world: LabWorld) -> None:
    host = "h1"
    cells = Cell("build.start", "before", "h1"), Cell("start.qemu", "before", "h1")
    with held(world, "QEMU dies at once", at=cells):
        victim, off = world.client.create(host), world.client.create(host)
        world.client.do("kill", off)
        with instead_of(world, host, "/usr/bin/qemu-system-x86_64"):
            told = [world.client.insist(command) for command in (Command("create", host=host), Command("start", off))]
        assert {(t.outcome, t.what) for t in told} == {("refused", "failed")}
        world.ledger.crash(victim, time.time())
        world.shell(host, f"systemctl kill -s KILL aetherscale-vm@{victim}.service")


def test_a_base_image_is_gone(world: LabWorld) -> None:
    cell = Cell("build.disk", "before", "h2", "freeze", 4)
    with held(world, "base image gone", at=(cell,)):
        off = world.client.create("h2")
        world.client.do("kill", off)
        struck = strike(world, cell)
        world.shell("h2", f"rm {STATE}/images/{tiny_guest.file_name()}")
        try:
            told = [world.client.insist(command) for command in (struck[0].command, Command("start", off)) if command]
        finally:
            world.add_image("h2")
        assert [t.outcome for t in told] == ["refused", "refused"]
