"""Changes of VMs that are there: the whole table of states and commands, played; repeated, cut off, and refused."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aetherscale_agent import alter
from aetherscale_agent.alter import AFRESH
from aetherscale_agent.host import Host
from aetherscale_agent.journal import Altering, Done
from aetherscale_agent.lifecycle import ANY_STATE, TABLE
from aetherscale_agent.ports import HypervisorError, OutcomeUnknown, Power
from aetherscale_protocol.answers import Answer, VmState
from aetherscale_testing.dealings import Dealings
from aetherscale_testing.world import DEADLINE, ID, NOW, OTHER, World, create, quiet, record, until

OPTIONS: dict[str, dict[str, Any]] = {
    "resize-vm": {"disk": 4},
    "snapshot-vm": {"snapshot": "new"},
    "restore-vm": {"snapshot": "old"},
    "delete-snapshot": {"snapshot": "old"},
    "extend-vm": {"ttl": 60},
}


@pytest.fixture
def world(tmp_path: Path) -> World:
    folder = tmp_path / "journal"
    folder.mkdir()
    return World(folder)


async def in_state(world: World, state: VmState) -> tuple[Host, Dealings]:
    """A VM with a snapshot, in this state, and nothing asked of its hypervisor yet."""
    host = await world.started()
    vm = await create(host)
    await world.hypervisor.snapshot(ID, "old")
    if state == "paused":
        await Dealings(host).ask("pause-vm", vm_id=ID)
    elif state in ("stopped", "failed"):
        await host.kill(vm)
        vm.state = state
    elif state == "stopping":
        world.hypervisor.deaf.add(ID)
        await host.press(vm)
        await until(lambda: ("press", ID) in world.hypervisor.calls)
    elif state != "running":
        vm.state = state  # as when its work got stuck
    world.hypervisor.calls.clear()
    return host, Dealings(host)


async def ask(dealings: Dealings, verb: str, request_id: str = "r9", **more: Any) -> Answer:
    command, _, kill = verb.partition(" ")
    options = {**OPTIONS.get(verb, {}), **({"kill": True} if kill else {}), **more}
    return await dealings.ask(command, request_id=request_id, deadline=DEADLINE, vm_id=ID, **options)


def status(answer: Answer) -> str:
    if not answer.ok:
        return str(answer.execution_info.code)
    return str(msgspec.json.decode(answer.response)["status"])


def promised(host: Host) -> object:
    """All that the journal says but that this was asked."""
    return host.vms[ID].record.but(done=())


@pytest.mark.parametrize("state", ANY_STATE)
@pytest.mark.parametrize("verb", TABLE)
def test_each_command_in_each_state_does_its_work_or_changes_nothing(world: World, verb: str, state: VmState) -> None:
    async def scenario() -> None:
        host, dealings = await in_state(world, state)
        before = promised(host)
        if verb == "stop-vm" and state == "stopping":
            world.hypervisor.guest_powers_off(ID)
        answer = await ask(dealings, verb)
        changed = promised(host) != before
        if state not in TABLE[verb]:
            assert (status(answer), bool(answer.execution_info.hint)) == ("wrong-state", True)
            assert (changed, world.hypervisor.calls) == (False, [])
        else:
            assert answer.ok
            if state == "stopping":  # its shutdown is at work beside this
                assert await world.power() is Power.OFF
                return
            is_idle = TABLE[verb][state].name == "NOTHING"
            assert (changed, bool(world.hypervisor.calls)) in ([(False, False)] if is_idle else WORK[verb])
        for task in host._tasks:
            task.cancel()

    asyncio.run(scenario())


ACTS, JOURNALS = (True, True), (True, False)
WORK: dict[str, list[tuple[bool, bool]]] = {verb: [ACTS] for verb in TABLE} | {
    "extend-vm": [JOURNALS],
    "reboot-vm": [ACTS, (False, True)],
    "reboot-vm --kill": [(False, True)],
    "snapshot-vm": [(False, True)],
    "restore-vm": [(False, True)],
    "delete-snapshot": [(False, True)],
}
"""Whether a command that works changes what is promised, and asks its hypervisor to do something."""


@pytest.mark.parametrize(
    ("verb", "before", "told"),
    [
        ("pause-vm", "running", "paused"),
        ("resume-vm", "paused", "running"),
        ("reboot-vm", "running", "starting"),
        ("reboot-vm --kill", "running", "starting"),
        ("resize-vm", "stopped", "resized"),
        ("snapshot-vm", "running", "created"),
        ("restore-vm", "stopped", "restored"),
        ("delete-snapshot", "stopped", "deleted"),
        ("extend-vm", "running", "extended"),
    ],
)
@pytest.mark.parametrize("restarted", [False, True])
def test_what_is_asked_again_is_told_the_same_and_not_done_again(
    world: World, verb: str, before: VmState, told: str, restarted: bool
) -> None:
    async def scenario() -> None:
        host, dealings = await in_state(world, before)
        assert status(await ask(dealings, verb)) == told
        await quiet(host)
        if restarted:
            dealings = Dealings(await world.started())
        world.hypervisor.calls.clear()
        assert status(await ask(dealings, verb)) == told
        assert world.hypervisor.calls == []

    asyncio.run(scenario())


# Refused


@pytest.mark.parametrize(
    ("verb", "state", "options", "code", "reason"),
    [
        ("resize-vm", "running", {"cpus": 2}, "wrong-state", "only while it is off"),
        ("resize-vm", "running", {"disk": 1}, "bad-request", "resize below: the disk has 2 GiB, 1 GiB asked for"),
        ("resize-vm", "stopped", {"cpus": 64}, "no-capacity", "cores: 63 more wanted, 7 free"),
        ("resize-vm", "stopped", {"memory": 9000}, "no-capacity", "memory"),
        ("snapshot-vm", "running", {"snapshot": "old"}, "snapshot-exists", f"VM {ID} has a snapshot old already"),
        ("restore-vm", "stopped", {"snapshot": "no"}, "snapshot-unknown", f"VM {ID} has no snapshot no"),
        ("delete-snapshot", "running", {"snapshot": "no"}, "snapshot-unknown", f"VM {ID} has no snapshot no"),
    ],
)
def test_a_wrong_use_is_named_and_changes_nothing(
    world: World, verb: str, state: VmState, options: dict[str, Any], code: str, reason: str
) -> None:
    async def scenario() -> None:
        host, dealings = await in_state(world, state)
        before = promised(host)
        answer = await ask(dealings, verb, **{"disk": None, **options} if verb == "resize-vm" else options)
        assert status(answer) == code
        assert reason in (answer.execution_info.reason or "")
        assert (promised(host), world.hypervisor.calls) == (before, [])

    asyncio.run(scenario())


@pytest.mark.parametrize("state", ["running", "stopped"])
@pytest.mark.parametrize("why", ["full", "many"])
def test_a_snapshot_for_which_there_is_no_room_is_refused(world: World, state: VmState, why: str) -> None:
    async def scenario() -> None:
        host, dealings = await in_state(world, state)
        if why == "full":
            world.hypervisor.taken[OTHER] = 99
        for number in range(63 if why == "many" else 0):
            await world.hypervisor.snapshot(ID, f"s{number}")
        world.hypervisor.calls.clear()
        before = promised(host)
        answer = await ask(dealings, "snapshot-vm")
        assert (status(answer), promised(host), world.hypervisor.calls) == ("no-capacity", before, [])
        assert answer.execution_info.hint
        assert (await ask(dealings, "delete-snapshot", "r8")).ok

    asyncio.run(scenario())


LATE = [
    ("snapshot-vm", "snapshot", {"snapshot": "new"}),
    ("delete-snapshot", "delete_snapshot", {"snapshot": "old"}),
    ("resize-vm", "resize_disk", {"disk": 4}),
    ("pause-vm", "pause", {}),
]


@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize(("verb", "method", "options"), LATE)
def test_what_qemu_did_not_say_is_looked_at_and_never_told_as_failed(
    world: World, monkeypatch: pytest.MonkeyPatch, verb: str, method: str, options: dict[str, Any], done: bool
) -> None:
    """QEMU ends a snapshot of a slow disk after the agent's patience, and answers nothing until then."""
    monkeypatch.setattr(alter, "LATE_LOOK_EVERY_S", 0.001)
    busy = ["it does not answer", "nor now"]

    async def scenario() -> None:
        host, dealings = await in_state(world, "running")
        act, look, is_paused = getattr(world.hypervisor, method), world.hypervisor._disk, world.hypervisor.is_paused

        async def silent(*args: Any) -> None:
            if done:
                await act(*args)
            monkeypatch.setattr(world.hypervisor, "_disk", busy_disk)
            monkeypatch.setattr(world.hypervisor, "is_paused", busy_guest)
            raise OutcomeUnknown("QEMU did not answer within 30 s")

        def busy_disk(vm_id: str) -> Any:
            if busy:
                raise HypervisorError(busy.pop())
            return look(vm_id)

        async def busy_guest(vm_id: str) -> bool:
            busy_disk(vm_id)
            return await is_paused(vm_id)

        monkeypatch.setattr(world.hypervisor, method, silent)
        answer = await ask(dealings, verb, **options)
        assert answer.ok == done
        assert done or (status(answer), bool(answer.execution_info.hint)) == ("outcome-unknown", True)
        assert host.vms[ID].record.altering is None
        assert busy == []

    asyncio.run(scenario())


def test_a_restored_disk_has_its_old_content_and_the_size_that_was_promised(world: World) -> None:
    async def scenario() -> None:
        _, dealings = await in_state(world, "stopped")
        await ask(dealings, "resize-vm", "r1")
        world.hypervisor.write_in_guest(ID, "new")
        assert (await ask(dealings, "restore-vm", "r2")).ok
        assert (world.hypervisor.content_of(ID), world.hypervisor.disk_of(ID)) == ("", 4)

    asyncio.run(scenario())


# Cut off


def cut_off(verb: str, **more: Any) -> dict[str, Any]:
    """The record of a VM on which an agent began this, and was killed."""
    done = (Done(request_id="r9", until=DEADLINE),)
    return {"altering": Altering(verb=verb, request_id="r9", deadline=DEADLINE, **more), "done": done}


BEGUN: list[tuple[str, VmState, dict[str, Any], str]] = [
    ("pause-vm", "running", {}, "paused"),
    ("resume-vm", "paused", {}, "running"),
    ("resize-vm", "stopped", {"disk": 4}, "resized"),
    ("snapshot-vm", "running", {"snapshot": "new"}, "created"),
    ("restore-vm", "stopped", {"snapshot": "old"}, "restored"),
    ("delete-snapshot", "running", {"snapshot": "old"}, "deleted"),
    ("extend-vm", "running", {"expires": NOW + 60}, "extended"),
    ("reboot-vm", "running", {}, "starting"),
    ("reboot-vm", "stopped", {}, "starting"),
]


@pytest.mark.parametrize(("verb", "state", "more", "told"), BEGUN)
@pytest.mark.parametrize("late", [False, True])
def test_what_was_cut_off_is_finished_in_time_or_never(
    world: World, verb: str, state: VmState, more: dict[str, Any], told: str, late: bool
) -> None:
    async def scenario() -> None:
        host, _ = await in_state(world, state)
        await world.journal.put(host.vms[ID].record.but(**cut_off(verb, **more)))
        world.now = DEADLINE + 1 if late else NOW
        again = await world.started()
        assert again.vms[ID].record.altering is None
        if late:
            assert world.hypervisor.calls == []
            assert "cut off" in again.vms[ID].record.reason
        answer = await ask(Dealings(again), verb)
        unsure = verb in ("restore-vm", "reboot-vm")  # something of it was done, or may have been
        assert status(answer) == ("outcome-unknown" if late and unsure else "deadline-passed" if late else told)

    asyncio.run(scenario())


def test_a_reset_that_was_cut_off_is_not_done_again(world: World) -> None:
    async def scenario() -> None:
        host, _ = await in_state(world, "running")
        await world.journal.put(host.vms[ID].record.but(**cut_off("reboot-vm --kill")))
        again = await world.started()
        assert world.hypervisor.calls == []
        assert status(await ask(Dealings(again), "reboot-vm --kill")) == "outcome-unknown"

    asyncio.run(scenario())


def test_a_paused_vm_is_found_paused_and_started_afresh_after_its_hosts_reboot(world: World) -> None:
    async def scenario() -> None:
        await in_state(world, "paused")
        assert (await world.started()).vms[ID].state == "paused"
        again = await world.rebooted()
        known = again.vms[ID]
        assert (known.state, known.record.reason, known.record.paused) == ("running", AFRESH, False)

    asyncio.run(scenario())


# Reboots


def test_a_guest_that_ignores_the_button_goes_on_and_the_reboot_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aetherscale_agent.host.SHUTDOWN_LIMIT_S", 0.05)

    async def scenario() -> None:
        host, dealings = await in_state(world, "running")
        world.hypervisor.deaf.add(ID)
        for _ in range(2):
            answer = await ask(dealings, "reboot-vm")
            assert (status(answer), answer.execution_info.hint) == ("guest-ignored", "reboot-vm --kill resets it")
        assert (host.vms[ID].state, world.hypervisor.boots[ID]) == ("running", 1)

    asyncio.run(scenario())


@pytest.mark.parametrize("verb", ["stop-vm --kill", "delete-vm"])
def test_who_pulls_the_plug_in_a_reboot_has_the_last_word(world: World, verb: str) -> None:
    async def scenario() -> None:
        host, dealings = await in_state(world, "running")
        world.hypervisor.deaf.add(ID)
        asked = dealings.begin("reboot-vm", request_id="r1", deadline=DEADLINE, vm_id=ID)
        await until(lambda: ("press", ID) in world.hypervisor.calls)
        assert status(await ask(dealings, "start-vm", "r2")) == "wrong-state"
        assert (await ask(dealings, verb, "r3")).ok
        assert status(await asked) == "wrong-state"
        await quiet(host)
        assert await world.power() is Power.OFF

    asyncio.run(scenario())


# Clones


def test_a_clone_has_its_sources_disk_and_a_source_that_runs_or_is_missing_is_named(world: World) -> None:
    async def scenario() -> None:
        host, dealings = await in_state(world, "running")
        spec = record(vm_id=OTHER).spec
        clone = msgspec.structs.replace(spec, clone_of=ID)
        running, missing = host.misfit(clone), host.misfit(msgspec.structs.replace(spec, clone_of="nowherea"))
        assert running is not None
        assert (running.code, running.reason) == (
            "wrong-state",
            f"VM {ID} is running; stop it first",
        )
        assert missing is not None
        assert missing.code == "no-capacity"
        await ask(dealings, "stop-vm --kill", "r1")
        world.hypervisor.write_in_guest(ID, "data")
        options = {"image": "tiny", "vm_id": OTHER, "memory": 512, "disk": 1, "clone_of": ID}
        answer = await dealings.ask("create-vm", request_id="r2", deadline=DEADLINE, **options)
        assert answer.ok
        assert (world.hypervisor.content_of(OTHER), world.hypervisor.disk_of(OTHER)) == ("data", 2)
        assert host.vms[OTHER].record.spec.disk == 2

    asyncio.run(scenario())


@pytest.mark.parametrize("name", ["replaced", "gone"])
def test_a_clone_stands_on_the_image_of_its_source_whatever_its_name_has_now(world: World, name: str) -> None:
    async def scenario() -> None:
        _, dealings = await in_state(world, "stopped")
        old = world.images.list()["tiny"]
        if name == "replaced":
            world.images.add("tiny", content="another")
        else:
            world.images.add("tiny", content="another")
            world.images.remove("tiny")
        options = {"image": "tiny", "vm_id": OTHER, "memory": 512, "disk": 1, "clone_of": ID}
        assert (await dealings.ask("create-vm", request_id="r2", deadline=DEADLINE, **options)).ok
        assert world.hypervisor.image_of(OTHER).sha256 == old.sha256
        assert (world.on_disk(OTHER) or record()).image_sha256 == old.sha256

    asyncio.run(scenario())


def test_a_clone_whose_sources_image_is_gone_is_refused(world: World) -> None:
    async def scenario() -> None:
        host, _ = await in_state(world, "stopped")
        world.images.files.clear()
        refused = host.misfit(msgspec.structs.replace(record(vm_id=OTHER).spec, clone_of=ID))
        assert refused is not None
        assert refused.code == "image-unknown"

    asyncio.run(scenario())
