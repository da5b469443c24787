"""Changes of VMs that are there: the whole table of states and commands, played; repeated, cut off, and refused."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pika
import pytest

from aetherscale_agent import alter
from aetherscale_agent.alter import AFRESH
from aetherscale_agent.envelope import Incoming, read_envelope
from aetherscale_agent.host import Host
from aetherscale_agent.journal import Altering, Done
from aetherscale_agent.lifecycle import ANY_STATE, TABLE
from aetherscale_agent.ports import HypervisorError, OutcomeUnknown, Power
from aetherscale_agent.streams import Streams
from aetherscale_protocol.answers import Answer, VmState
from aetherscale_protocol.commands import encode_request
from aetherscale_protocol.errors import Refused
from aetherscale_protocol.options import OpenStream
from aetherscale_testing.dealings import REPLY_TO, Dealings
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
        asked = asyncio.ensure_future(ask(dealings, verb))
        if verb == "stop-vm" and state == "stopping":
            await until(lambda: bool(host.vms[ID].record.done))  # from here on it waits for the guest
            world.hypervisor.guest_powers_off(ID)
        answer = await asked
        changed = promised(host) != before
        if state not in TABLE[verb]:
            assert (status(answer), bool(answer.execution_info.hint)) == ("wrong-state", True)
            assert (changed, world.hypervisor.calls, host.vms[ID].state) == (False, [], state)
        elif state == "stopping":
            assert await world.power() is Power.OFF
            await quiet(host)  # the shutdown that was at work beside this is over
            calls = [call for call, _ in world.hypervisor.calls]
            assert (status(answer), changed, calls, host.vms[ID].state) == HURRIED[verb]
        else:
            assert answer.ok
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
HURRIED: dict[str, tuple[str, bool, list[str], VmState]] = {
    "stop-vm": ("stopped", False, [], "stopped"),  # joins the shutdown that is at work: no second press
    "stop-vm --kill": ("stopped", False, ["kill"], "stopped"),
    "delete-vm": ("deleted", True, ["kill", "remove"], "deleting"),  # its tombstone
}
"""What comes of a guest that is shutting down: the answer, whether more is promised than before (it was to be off
already), what the hypervisor is asked, and the state in the end.
"""


# What is opened, and what is copied, in each state


class Nowhere:
    """What sends a stream's messages to nobody."""

    def post(self, reply_to: str, correlation_id: str | None, headers: dict[str, Any], body: bytes) -> None:
        pass


def opening(**options: Any) -> Incoming:
    """An open-stream of the VM."""
    body = encode_request("open-stream", OpenStream(vm_id=ID, **options))
    properties = pika.BasicProperties(reply_to=REPLY_TO, correlation_id="c1", user_id="alice")
    return read_envelope(body, properties, own_user="agent-h1")


@pytest.mark.parametrize("state", ANY_STATE)
@pytest.mark.parametrize("options", [{"kind": "console"}, {"kind": "log"}, {"kind": "tcp", "port": 22}])
def test_a_stream_is_opened_in_each_state_in_which_there_is_a_guest_and_refused_in_each_other(
    world: World, state: VmState, options: dict[str, Any]
) -> None:
    async def scenario() -> None:
        host, _ = await in_state(world, state)
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        world.hypervisor.guest_ports[22] = server.sockets[0].getsockname()[1]
        before, streams = promised(host), Streams(host, Nowhere())
        deaf = state == "paused" and options["kind"] == "tcp"
        if state in ("running", "paused", "stopping") and not deaf:
            assert (await streams.open(opening(**options))).stream
            await streams.close("the test is over", 5)
        else:
            with pytest.raises(Refused) as caught:
                await streams.open(opening(**options))
            error = caught.value
            assert (error.code, error.changed, bool(error.hint)) == ("wrong-state", False, True)
            why = "its port 22 answers nobody" if deaf else "there is nothing to connect to"
            assert error.reason == f"VM {ID} is {state}: {why}"
        assert (promised(host), world.hypervisor.calls, host.vms[ID].state) == (before, [], state)
        assert not streams._taken
        server.close()
        for task in host._tasks:
            task.cancel()

    asyncio.run(scenario())


@pytest.mark.parametrize("state", ANY_STATE)
def test_a_vm_is_cloned_in_each_state_in_which_it_is_off_and_in_no_other(world: World, state: VmState) -> None:
    async def scenario() -> None:
        host, dealings = await in_state(world, state)
        before = promised(host)
        options = {"image": "tiny", "vm_id": OTHER, "memory": 512, "disk": 2, "clone_of": ID}
        answer = await dealings.ask("create-vm", request_id="r9", deadline=DEADLINE, **options)
        if state in ("stopped", "failed"):
            assert status(answer) == "starting"
            assert world.hypervisor.disk_of(OTHER) == 2
        else:
            assert (status(answer), host.vms[OTHER].exists) == ("no-host", False)
            assert answer.execution_info.reasons == {"h1": f"VM {ID} is {state}; stop it first"}
            assert world.hypervisor.calls == []
        assert (promised(host), host.vms[ID].state) == (before, state)
        assert ID not in {vm_id for _, vm_id in world.hypervisor.calls}
        for task in host._tasks:
            task.cancel()

    asyncio.run(scenario())


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
