"""When guests are asked for their addresses, and how long what they said counts."""

import asyncio
import itertools
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from aetherscale_agent.hypervisor import learnt
from aetherscale_agent.hypervisor.guest_agent import GuestSilent
from aetherscale_agent.hypervisor.learnt import Learnt
from aetherscale_agent.ports import HypervisorError, Nic, NotThere

MAC = "52:54:00:12:34:56"


class Guests:
    """Guests that say what they are set to say, and a clock."""

    def __init__(self) -> None:
        self.said: dict[str, tuple[str, ...]] = {}
        self.asked: list[str] = []
        self.now = 100.0
        self.gate = asyncio.Event()
        self.gate.set()
        self.learnt = Learnt(self.ask, lambda: self.now)

    async def ask(self, vm_id: str) -> tuple[str, ...]:
        self.asked.append(vm_id)
        await self.gate.wait()
        if vm_id not in self.said:
            raise GuestSilent("no answer")
        return self.said[vm_id]


def with_guests(test: Callable[[Guests], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        async def meet() -> None:
            await test(Guests())

        asyncio.run(meet())

    return run


@with_guests
async def test_who_answers_is_asked_again_after_a_while(guests: Guests) -> None:
    guests.said["a"] = ("10.0.0.2",)
    await guests.learnt.look(["a"])
    assert guests.learnt.get("a") == ("10.0.0.2",)
    guests.said["a"] = ("10.0.0.3",)
    guests.now += learnt.ASK_EVERY - 1
    await guests.learnt.look(["a"])
    assert (guests.asked, guests.learnt.get("a")) == (["a"], ("10.0.0.2",))
    guests.now += 1
    await guests.learnt.look(["a"])
    assert guests.learnt.get("a") == ("10.0.0.3",)


@with_guests
async def test_who_is_silent_is_asked_ever_more_rarely(guests: Guests) -> None:
    times = []
    for _ in range(3600):
        guests.asked.clear()
        await guests.learnt.look(["a"])
        times += [guests.now] if guests.asked else []
        guests.now += 1
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert pauses[:4] == [5, 10, 20, 40]
    assert set(pauses[7:]) == {learnt.SILENT_LAST}


@with_guests
async def test_what_was_said_counts_for_a_while_though_the_guest_is_silent(guests: Guests) -> None:
    guests.said["a"] = ("10.0.0.2",)
    await guests.learnt.refresh("a")
    guests.said.clear()
    guests.now += learnt.OLD - 1
    await guests.learnt.refresh("a")
    assert guests.learnt.get("a") == ("10.0.0.2",)
    guests.now += 1
    assert guests.learnt.get("a") == ()


@with_guests
async def test_a_vm_that_begins_anew_has_said_nothing_also_if_it_was_just_being_asked(guests: Guests) -> None:
    guests.said["a"] = ("10.0.0.2",)
    guests.gate.clear()
    asking = asyncio.create_task(guests.learnt.refresh("a"))
    await asyncio.sleep(0)
    guests.learnt.forget("a")
    guests.gate.set()
    await asking
    assert guests.learnt.get("a") == ()


@with_guests
async def test_a_guest_is_asked_by_one_at_a_time(guests: Guests) -> None:
    guests.said["a"] = ("10.0.0.2",)
    guests.gate.clear()
    both = [asyncio.create_task(guests.learnt.refresh("a")) for _ in range(2)]
    await asyncio.sleep(0)
    guests.gate.set()
    await asyncio.gather(*both)
    assert guests.asked == ["a"]


@with_guests
async def test_silent_guests_keep_nobody_from_being_asked(guests: Guests) -> None:
    guests.said["web"] = ("10.0.0.2",)
    await guests.learnt.look([*(f"silent{n}" for n in range(50)), "web"])
    assert guests.learnt.get("web") == ("10.0.0.2",)


@with_guests
async def test_a_look_that_fails_is_not_the_last(guests: Guests) -> None:
    looks: list[int] = []

    async def find() -> list[str]:
        looks.append(1)
        if len(looks) == 1:
            raise HypervisorError("systemd can't be asked")
        raise asyncio.CancelledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learnt, "LOOK_EVERY", 0)
        with pytest.raises(asyncio.CancelledError):
            await guests.learnt.keep(find)
    assert len(looks) == 2


TABLE = """\
IP address       HW type     Flags       HW address            Mask     Device
127.0.0.1        0x1         0x2         {}     *        br0
127.0.0.2        0x1         0x0         52:54:00:12:34:56     *        br0
"""


@pytest.mark.parametrize(
    ("address", "owner", "taken"),
    [
        ("127.0.0.1", MAC, True),
        ("127.0.0.1", "52:54:00:00:00:01", False),  # somebody else's: the host's, or another guest's
        ("127.0.0.2", MAC, False),  # nobody answered
        ("127.0.0.10", MAC, False),
    ],
)
def test_an_address_belongs_to_whom_the_neighbour_table_says(
    address: str, owner: str, taken: bool, tmp_path: Path
) -> None:
    (tmp_path / "arp").write_text(TABLE.format(owner))
    assert learnt.has_neighbour(tmp_path / "arp", address, MAC) is taken


@pytest.mark.parametrize("owner", [MAC, "52:54:00:00:00:01"])
def test_nothing_is_said_to_an_address_that_is_not_the_vms(
    owner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "arp").write_text(TABLE.format(owner))
    monkeypatch.setattr(learnt, "NEIGHBOURS", tmp_path / "arp")
    # The loopback stands for the guest's network; a real guest can't claim it.
    monkeypatch.setattr(learnt.pipes, "find_dialable", list)
    heard: list[bytes] = []

    async def call() -> bool:
        over = asyncio.Event()

        async def listen(reader: StreamReader, writer: StreamWriter) -> None:
            heard.append(await reader.read())
            writer.close()
            over.set()

        async with await asyncio.start_server(listen, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            try:
                _, writer = await learnt.dial("sgeqxcfi", Nic(MAC, ("127.0.0.1",), "guest-agent"), port)
            except NotThere:
                return False
            writer.write(b"hello")
            writer.close()
            await over.wait()
            return True

    assert asyncio.run(call()) is (owner == MAC)
    assert (b"hello" in heard) is (owner == MAC)


def test_ipv6_addresses_are_shown_and_not_dialled() -> None:
    with pytest.raises(NotThere, match="no IPv4 address"):
        asyncio.run(learnt.dial("sgeqxcfi", Nic(MAC, ("2001:db8::1",), "guest-agent"), 22))


def test_an_address_that_no_way_leads_to_holds_up_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "arp").write_text(TABLE.format(MAC))
    monkeypatch.setattr(learnt, "NEIGHBOURS", tmp_path / "arp")
    monkeypatch.setattr(learnt.pipes, "find_dialable", list)
    open_connection, left = asyncio.open_connection, []

    async def connect(address: str, port: int, **more: Any) -> tuple[StreamReader, StreamWriter]:
        if address == "127.0.0.1":
            return await open_connection(address, port, **more)
        try:
            await asyncio.sleep(60)
        finally:
            left.append(address)
        raise AssertionError("nobody waits for this")

    async def call() -> None:
        async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            monkeypatch.setattr(asyncio, "open_connection", connect)
            async with asyncio.timeout(1):  # as long as `--wait ssh` gives it
                _, writer = await learnt.dial("sgeqxcfi", Nic(MAC, ("10.0.0.9", "127.0.0.1"), "guest-agent"), port)
            writer.transport.abort()

    asyncio.run(call())
    assert left == ["10.0.0.9"]


def test_where_nobody_answers_is_said_why(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(asyncio, "open_connection", refuse)
    with pytest.raises(NotThere, match=r"10\.0\.0\.9: Connection refused"):
        asyncio.run(learnt.dial("sgeqxcfi", Nic(MAC, ("10.0.0.9", "10.0.0.10"), "guest-agent"), 22))
