"""What is asked of a host itself runs once, however often it is asked and whatever becomes of the agent meanwhile."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aetherscale_agent import drain
from aetherscale_agent.asked import Asked
from aetherscale_agent.host import Host
from aetherscale_agent.host_commands import HostCommands
from aetherscale_agent.journal import HOST, Done, HostRecord
from aetherscale_protocol.answers import ImageDone
from aetherscale_protocol.commands import Request, decode_request
from aetherscale_protocol.errors import Refused
from aetherscale_testing.dealings import Dealings
from aetherscale_testing.world import DEADLINE, World, forget_to_sync, until

DELETED = ImageDone(status="deleted", image="tiny")


def played(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that runs in a loop of its own."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


def asked(request_id: str = "r1") -> Asked:
    return Asked(request_id, DEADLINE)


def request(command: str, host: str, **options: Any) -> Request:
    return decode_request(msgspec.json.encode({"command": command, "options": {"host": host, **options}}))


@pytest.fixture
def world(tmp_path: Path) -> World:
    folder = tmp_path / "journal"
    folder.mkdir()
    return World(folder)


async def outcome(commands: HostCommands, host: Host, command: str, request_id: str = "r1") -> Any:
    options = {"image": "tiny"} if command == "delete-image" else {}
    return await commands.execute(request(command, host.name, **options), asked(request_id))


@pytest.mark.parametrize("anew", [False, True], ids=["same agent", "agent started anew"])
@played
async def test_a_copy_of_a_drain_does_not_drain_again(world: World, anew: bool) -> None:
    host = await world.started()
    commands = HostCommands(host)
    assert (await outcome(commands, host, "drain-host", "r1")).status == "drained"
    assert (await outcome(commands, host, "undrain-host", "r2")).status == "up"
    if anew:
        host = await world.started()
        commands = HostCommands(host)
    assert (await outcome(commands, host, "drain-host", "r1")).status == "drained"  # as it was answered
    assert not drain.is_drained(host.journal)


@pytest.mark.parametrize("anew", [False, True], ids=["same agent", "agent started anew"])
@played
async def test_a_copy_of_a_deletion_is_told_what_the_first_was(world: World, anew: bool) -> None:
    host = await world.started()
    commands = HostCommands(host)
    assert await outcome(commands, host, "delete-image") == DELETED
    if anew:
        host = await world.started()
        commands = HostCommands(host)
    assert await outcome(commands, host, "delete-image") == DELETED
    with pytest.raises(Refused, match="does not exist"):
        await outcome(commands, host, "delete-image", "r2")


@played
async def test_a_refusal_is_remembered(world: World) -> None:
    host = await world.started()
    world.images.drop("tiny")
    commands = HostCommands(host)
    with pytest.raises(Refused, match="does not exist"):
        await outcome(commands, host, "delete-image")
    world.images.add("tiny")
    host = await world.started()
    assert "tiny" in host.images.list()
    with pytest.raises(Refused, match="does not exist"):
        await outcome(HostCommands(host), host, "delete-image")
    assert "tiny" in host.images.list()


@played
async def test_a_deletion_that_was_cut_off_after_the_deed_is_done(world: World) -> None:
    host = await world.started()
    await host.journal.put_host(HostRecord(done=(Done(request_id="r1", until=DEADLINE),)))
    world.images.drop("tiny")
    assert await outcome(HostCommands(host), host, "delete-image") == DELETED


@played
async def test_a_drain_that_was_cut_off_and_overtaken_is_not_done_and_says_so(world: World) -> None:
    host = await world.started()
    begun = Done(request_id="r1", until=DEADLINE)
    await host.journal.put_host(HostRecord(done=(begun, begun.but(request_id="r2", finished=True))))
    with pytest.raises(Refused, match="another command for this host came after it"):
        await outcome(HostCommands(host), host, "drain-host")
    assert not drain.is_drained(host.journal)


@played
async def test_what_was_cut_off_before_the_deed_is_done_when_it_is_asked_again(world: World) -> None:
    host = await world.started()
    await host.journal.put_host(HostRecord(done=(Done(request_id="r1", until=DEADLINE),)))
    assert (await outcome(HostCommands(host), host, "drain-host")).status == "drained"
    assert drain.is_drained(host.journal)


@played
async def test_an_image_is_deleted_on_a_full_disk(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    host = await world.started()
    commands = HostCommands(host)
    with monkeypatch.context() as full:
        forget_to_sync(full)
        full.setattr("pathlib.Path.open", _no_space)
        assert await outcome(commands, host, "delete-image") == DELETED
    assert await outcome(commands, host, "delete-image") == DELETED  # for this agent's life


@played
async def test_a_record_that_is_none_is_passed_over(world: World, caplog: pytest.LogCaptureFixture) -> None:
    host = await world.started()
    (world.folder / f"{HOST}.json").write_text("{")
    assert await outcome(HostCommands(host), host, "delete-image") == DELETED
    assert "a new one is begun" in caplog.text


@played
async def test_another_hosts_command_is_refused_and_not_remembered(world: World) -> None:
    host = await world.started()
    with pytest.raises(Refused, match="this is host h1, not h9"):
        await HostCommands(host).execute(request("drain-host", "h9"), asked())
    assert host.journal.load_host(print) == HostRecord()


@pytest.mark.parametrize("writes", [1, 2], ids=["before the deed", "after it"])
@played
async def test_a_drain_that_was_acknowledged_outlives_its_connection(
    world: World, writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = await world.started()
    dealings, slow, seen = Dealings(host), asyncio.Event(), []
    put = host.journal.put_host

    async def put_slowly(record: HostRecord) -> None:
        seen.append(record)
        if len(seen) == writes:
            await slow.wait()
        await put(record)

    monkeypatch.setattr(host.journal, "put_host", put_slowly)
    asking = dealings.begin("drain-host", request_id="r1", deadline=DEADLINE, host=host.name)
    await until(lambda: len(seen) == writes)
    asking.cancel()  # as the session does when its connection is lost
    slow.set()
    async with asyncio.timeout(5):
        answer = await dealings.letters.answers["c1"]
    assert answer.ok
    assert drain.is_drained(host.journal)
    assert [done.finished for done in host.journal.load_host(print).done] == [True]


def _no_space(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")
