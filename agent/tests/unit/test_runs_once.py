"""A command runs once however often it is asked, never after its deadline, and never after its caller was told no."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from aetherscale_agent import host as host_module
from aetherscale_agent.broker import BrokerLost
from aetherscale_agent.host import Host
from aetherscale_agent.journal import Record
from aetherscale_agent.ports import Power
from aetherscale_agent.reconcile import reconcile
from aetherscale_protocol.answers import Answer
from aetherscale_testing.dealings import Dealings
from aetherscale_testing.world import DEADLINE, ID, World, create, forget_to_sync, quiet, until

COMMANDS = {
    "start": ("start-vm", {}),
    "stop": ("stop-vm", {}),
    "kill": ("stop-vm", {"kill": True}),
    "delete": ("delete-vm", {}),
}
Ask = Callable[..., Awaitable[Answer]]


@pytest.fixture
def world(tmp_path: Path) -> World:
    folder = tmp_path / "journal"
    folder.mkdir()
    return World(folder)


async def ask(dealings: Dealings, verb: str, request_id: str | None, deadline: float | None = DEADLINE) -> Answer:
    command, options = COMMANDS[verb]
    return await dealings.ask(command, request_id=request_id, deadline=deadline, vm_id=ID, **options)


def outcome(answer: Answer) -> str:
    """The status that was answered, or the code of the refusal."""
    if not answer.ok:
        return str(answer.execution_info.code)
    assert answer.response is not None
    return bytes(answer.response).decode().split('"status":"')[1].split('"')[0]


async def a_vm(world: World, state: str = "running") -> tuple[Host, Dealings]:
    host = await world.started()
    vm = await create(host)
    if state == "stopped":
        await host.kill(vm)
    return host, Dealings(host)


# Asked again


@pytest.mark.parametrize(
    ("verb", "before", "told", "between", "power"),
    [
        ("start", "stopped", "starting", "kill", Power.OFF),
        ("stop", "running", "stopped", "start", Power.ON),
        ("kill", "running", "stopped", "start", Power.ON),
    ],
)
@pytest.mark.parametrize("restarted", [False, True])
def test_what_was_done_is_not_done_again_behind_another_command(
    world: World, verb: str, before: str, told: str, between: str, power: Power, restarted: bool
) -> None:
    async def scenario() -> None:
        host, dealings = await a_vm(world, before)
        assert outcome(await ask(dealings, verb, "r1")) == told
        await ask(dealings, between, "r2")
        if restarted:
            dealings = Dealings(await world.started())
        assert outcome(await ask(dealings, verb, "r1")) == told
        await quiet(host)
        assert await world.power() is power

    asyncio.run(scenario())


@pytest.mark.parametrize(("verb", "before", "told"), [("start", "running", "running"), ("stop", "stopped", "stopped")])
def test_what_had_nothing_to_do_does_nothing_later_either(world: World, verb: str, before: str, told: str) -> None:
    other = {"start": "kill", "stop": "start"}[verb]

    async def scenario() -> None:
        _, dealings = await a_vm(world, before)
        assert outcome(await ask(dealings, verb, "r1")) == told
        await ask(dealings, other, "r2")
        left = await world.power()
        dealings = Dealings(await world.started())
        await ask(dealings, verb, "r1")
        assert await world.power() is left

    asyncio.run(scenario())


def test_a_stop_that_joins_a_shutdown_is_done_with_it(world: World) -> None:
    async def scenario() -> None:
        _, dealings = await a_vm(world)
        with world.hypervisor.holding("press"):
            stops = [dealings.begin("stop-vm", request_id=r, deadline=DEADLINE, vm_id=ID) for r in ("r1", "r2")]
            await until(lambda: len(dealings.acknowledged.tags) == 2)
        assert [outcome(await stop) for stop in stops] == ["stopped", "stopped"]
        await ask(dealings, "start", "r3")
        for again in ("r1", "r2"):
            assert outcome(await ask(dealings, "stop", again)) == "stopped"
        assert await world.power() is Power.ON

    asyncio.run(scenario())


def test_a_delete_that_waited_for_its_own_copy_is_told_that_it_was_done(world: World) -> None:
    async def scenario() -> None:
        _, dealings = await a_vm(world)
        with world.hypervisor.holding("remove"):
            copies = [dealings.begin("delete-vm", request_id="r1", deadline=DEADLINE, vm_id=ID) for _ in range(2)]
            other = dealings.begin("delete-vm", request_id="r2", deadline=DEADLINE, vm_id=ID)
            await until(lambda: len(dealings.acknowledged.tags) == 1)
        assert [outcome(await copy) for copy in copies] == ["deleted", "deleted"]
        assert outcome(await other) == "vm-unknown"

    asyncio.run(scenario())


def test_a_delete_of_an_old_vm_is_remembered_until_its_own_deadline(world: World) -> None:
    """Whoever waits for the host asks again, because the answer went down with its agent."""

    async def scenario() -> None:
        await a_vm(world)
        world.now = DEADLINE + 100
        dealings = Dealings(await world.started())
        assert outcome(await ask(dealings, "delete", "r1", world.now + 30)) == "deleted"
        dealings = Dealings(await world.started())
        await dealings._bury(has_queue=True)
        assert outcome(await ask(dealings, "delete", "r1", world.now + 30)) == "deleted"
        world.now += 36
        await dealings._bury(has_queue=True)
        assert world.on_disk() is None

    asyncio.run(scenario())


@pytest.mark.parametrize("ended", ["started", "started again", "shut down"])
def test_what_an_agent_finishes_for_the_one_before_it_is_done(world: World, ended: str) -> None:
    """Its guest goes on to do as it likes; the command must not come over it a second time."""
    verb, step = ("stop", "press") if ended == "shut down" else ("start", "start")

    async def scenario() -> None:
        host, dealings = await a_vm(world, "running" if verb == "stop" else "stopped")
        with world.hypervisor.holding(step):
            command, options = COMMANDS[verb]
            asked = dealings.begin(command, request_id="r1", deadline=DEADLINE, vm_id=ID, **options)
            await until(lambda: host.vms[ID].record.done != ())
            for task in host._tasks:  # the agent is killed
                task.cancel()
            await asyncio.wait(host._tasks)
            asked.cancel()
            if ended == "started":
                await FakeStart.come_up(world)
            dealings = Dealings(again := world.agent())
        await reconcile(again)
        await quiet(again)
        if verb == "start":
            world.hypervisor.guest_powers_off(ID)
        else:
            await world.hypervisor.start(ID, again.vms[ID].record.spec)
        before = world.hypervisor.boots[ID], await world.power()
        assert outcome(await ask(dealings, verb, "r1")) in ("starting", "stopped")
        assert (world.hypervisor.boots[ID], await world.power()) == before

    asyncio.run(scenario())


class FakeStart:
    """QEMU came up although the agent that started it died."""

    @staticmethod
    async def come_up(world: World) -> None:
        gates, world.hypervisor._gates = world.hypervisor._gates, {}
        known = world.on_disk()
        assert known is not None
        await world.hypervisor.start(ID, known.spec)
        world.hypervisor._gates = gates


def test_a_client_that_names_no_request_may_mean_two_equal_commands_to_be_two(world: World) -> None:
    async def scenario() -> None:
        _, dealings = await a_vm(world, "stopped")
        for verb in ("start", "kill", "start"):
            dealings._numbers = iter([7])  # the same correlation id each time: nothing tells the two starts apart
            assert (await ask(dealings, verb, None, None)).ok
        assert await world.power() is Power.ON

    asyncio.run(scenario())


# Told no


@pytest.mark.parametrize(("verb", "before", "step"), [("start", "stopped", "start"), ("kill", "running", "kill")])
def test_what_failed_is_not_tried_again_by_a_copy(world: World, verb: str, before: str, step: str) -> None:
    async def scenario() -> None:
        _, dealings = await a_vm(world, before)
        power = await world.power()
        world.hypervisor.broken[step][ID] = "no memory"
        first = await ask(dealings, verb, "r1")
        world.hypervisor.broken[step].clear()
        again = await ask(dealings, verb, "r1")
        assert (outcome(first), outcome(again)) == ("failed", "failed")
        assert first.execution_info.reason == again.execution_info.reason
        assert await world.power() is power
        assert outcome(await ask(dealings, verb, "r2")) in ("starting", "stopped")

    asyncio.run(scenario())


@pytest.mark.parametrize(("verb", "before"), [("start", "stopped"), ("stop", "running")])
def test_what_could_not_be_journalled_is_not_done_by_a_copy(
    world: World, verb: str, before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        _, dealings = await a_vm(world, before)
        power = await world.power()
        with monkeypatch.context() as patch:
            forget_to_sync(patch)
            assert outcome(await ask(dealings, verb, "r1")) == "failed"
        assert outcome(await ask(dealings, verb, "r1")) == "failed"
        assert await world.power() is power

    asyncio.run(scenario())


def test_a_stop_that_the_guest_ignored_does_not_take_it_by_surprise(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_module, "SHUTDOWN_LIMIT_S", 0.01)
    monkeypatch.setattr(host_module, "PRESS_EVERY_S", 0.004)

    async def scenario() -> None:
        _, dealings = await a_vm(world)
        world.hypervisor.deaf.add(ID)
        assert outcome(await ask(dealings, "stop", "r1")) == "guest-ignored"
        world.hypervisor.deaf.clear()
        assert outcome(await ask(dealings, "stop", "r1")) == "guest-ignored"
        assert await world.power() is Power.ON

    asyncio.run(scenario())


def test_what_was_not_possible_does_not_become_so_for_a_copy(world: World) -> None:
    async def scenario() -> None:
        _, dealings = await a_vm(world)
        with world.hypervisor.holding("press"):
            stop = dealings.begin("stop-vm", request_id="r1", deadline=DEADLINE, vm_id=ID)
            await until(lambda: len(dealings.acknowledged.tags) == 1)
            assert outcome(await ask(dealings, "start", "r2")) == "wrong-state"
        await stop
        assert outcome(await ask(dealings, "start", "r2")) == "wrong-state"
        assert await world.power() is Power.OFF

    asyncio.run(scenario())


def test_a_no_is_said_only_when_the_broker_has_let_go_of_its_message(world: World) -> None:
    """Else it is delivered once more, and done."""

    async def scenario() -> None:
        _, dealings = await a_vm(world)
        dealings.lost.add("acknowledge")
        with pytest.raises(BrokerLost):
            await dealings.ask("start-vm", request_id="r1", deadline=DEADLINE - 100, vm_id=ID)
        with pytest.raises(BrokerLost):
            await dealings.ask("create-vm", request_id="r2", deadline=DEADLINE + 10_000, image="tiny", vm_id="zzzzzzzz")
        assert not any(answer.done() for answer in dealings.letters.answers.values())

    asyncio.run(scenario())


# Deadlines


@pytest.mark.parametrize("verb", COMMANDS)
def test_what_is_late_when_its_barrier_is_through_is_refused_and_not_done(world: World, verb: str) -> None:
    async def scenario() -> None:
        host, dealings = await a_vm(world, "stopped" if verb == "start" else "running")
        before = host.vms[ID].record, await world.power()
        command, options = COMMANDS[verb]
        with dealings.holding("acknowledge"):
            asked = dealings.begin(command, request_id="r1", deadline=DEADLINE, vm_id=ID, **options)
            await until(host.vms[ID].line.locked)
            world.now = DEADLINE + 1  # frozen, say
        assert outcome(await asked) == "deadline-passed"
        await quiet(host)
        assert (host.vms[ID].record, await world.power()) == before
        assert world.on_disk() == before[0]

    asyncio.run(scenario())


@pytest.mark.parametrize("verb", ["start", "stop", "kill"])
def test_a_copy_that_comes_late_is_told_what_was_done(world: World, verb: str) -> None:
    async def scenario() -> None:
        _, dealings = await a_vm(world, "stopped" if verb == "start" else "running")
        told = outcome(await ask(dealings, verb, "r1"))
        world.now = DEADLINE + 1
        assert outcome(await ask(dealings, verb, "r1")) == told
        assert outcome(await ask(dealings, verb, "r2")) == "deadline-passed"

    asyncio.run(scenario())


def test_a_start_whose_agent_froze_while_it_wrote_is_not_late(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        _, dealings = await a_vm(world, "stopped")
        put = world.journal.put

        async def freeze(written: Record) -> None:
            await put(written)
            if written.start_by:
                world.now = DEADLINE + 1

        monkeypatch.setattr(world.journal, "put", freeze)
        assert outcome(await ask(dealings, "start", "r1")) == "deadline-passed"
        assert await world.power() is Power.OFF
        await world.rebooted()
        assert await world.power() is Power.OFF

    asyncio.run(scenario())


# Creates


async def ask_create(dealings: Dealings, deadline: float = DEADLINE, died: str = "") -> Answer:
    options = {"image": "tiny", "vm_id": ID, "memory": 512, "disk": 2}
    return await dealings.ask("create-vm", request_id="r1", deadline=deadline, died=died, **options)


def test_a_create_that_is_asked_again_on_a_full_disk_is_told_the_truth(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        _, dealings = await a_vm(world)
        with monkeypatch.context() as patch:
            forget_to_sync(patch)
            assert outcome(await ask_create(dealings, DEADLINE + 60)) == "starting"

    asyncio.run(scenario())


@pytest.mark.parametrize("died", ["", "computing-competing"])
def test_at_a_new_broker_no_create_is_begun_or_refused_before_the_fleet_is_there(world: World, died: str) -> None:
    """However it comes: the host that made it may not have said so yet."""

    async def scenario() -> None:
        host = await world.started()
        dealings = Dealings(host)
        with dealings.holding("settled_in"):
            asked = asyncio.ensure_future(ask_create(dealings, died=died))
            await until(lambda: asked.done() or dealings.passed["settled_in"] > 0)
            assert (host.vms, dealings.bound, asked.done()) == ({}, set(), False)
        assert outcome(await asked) == ("no-host" if died else "starting")

    asyncio.run(scenario())


def test_what_is_known_here_needs_no_fleet(world: World) -> None:
    async def scenario() -> None:
        _, dealings = await a_vm(world)
        with dealings.holding("settled_in"):
            assert outcome(await ask_create(dealings)) == "starting"

    asyncio.run(scenario())


def test_a_tombstone_is_buried_or_prolonged_and_not_half_of_each(world: World) -> None:
    async def scenario() -> None:
        host, dealings = await a_vm(world)
        await host.delete(host.vms[ID], "r9")
        world.now = DEADLINE + 10
        with dealings.holding("unbind"):
            burial = asyncio.ensure_future(dealings._bury(has_queue=True))
            await asyncio.sleep(0)
            asked = asyncio.ensure_future(ask_create(dealings, DEADLINE + 60))
            await asyncio.wait({asked}, timeout=0.1)  # it must not come to its end
        await burial
        answer, known = await asked, world.on_disk()
        assert known is not None
        assert (answer.ok, known.phase) in ((True, "ready"), (False, "gone"))
        assert known.deadline == DEADLINE + 60

    asyncio.run(scenario())
