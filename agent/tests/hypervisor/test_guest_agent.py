"""What a guest's agent says and does, and what a guest may say in its place."""

import asyncio
import contextlib
import json
from asyncio import StreamReader, StreamWriter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aetherscale_agent.hypervisor import guest_agent
from aetherscale_agent.hypervisor.config import HypervisorConfig
from aetherscale_agent.hypervisor.guest_agent import GuestSilent, ask_addresses, resize_console
from aetherscale_agent.hypervisor.qemu import QemuHypervisor

MAC = "52:54:00:12:34:56"
Guest = Callable[[StreamReader, StreamWriter], Awaitable[None]]


def interface(*addresses: str, mac: str = MAC, name: str = "eth0") -> dict[str, Any]:
    told = [{"ip-address": one, "ip-address-type": "ipv4", "prefix": 24} for one in addresses]
    return {"name": name, "hardware-address": mac, "ip-addresses": told, "statistics": {"rx-bytes": 1}}


def say(value: object) -> bytes:
    return json.dumps({"return": value}).encode() + b"\n"


async def read_question(reader: StreamReader) -> dict[str, Any]:
    question: dict[str, Any] = json.loads((await reader.readuntil(b"\n")).lstrip(b"\xff"))
    return question


def polite(interfaces: bytes, before: bytes = b"") -> Guest:
    """A guest agent; `before`: what was left of earlier questions."""

    async def guest(reader: StreamReader, writer: StreamWriter) -> None:
        question = await read_question(reader)
        assert question["execute"] == "guest-sync-delimited"
        writer.write(before + b"\xff" + say(question["arguments"]["id"]))
        assert (await read_question(reader))["execute"] == "guest-network-get-interfaces"
        writer.write(interfaces)
        await reader.read()
        writer.close()

    return guest


def saying(text: bytes) -> Guest:
    """A guest that says the same, whatever it is asked."""

    async def guest(_: StreamReader, writer: StreamWriter) -> None:
        writer.write(text)
        writer.close()

    return guest


def ask(guest: Guest, folder: Path, timeout: float = 2) -> tuple[str, ...]:
    async def meet() -> tuple[str, ...]:
        async with await asyncio.start_unix_server(guest, folder / "guest.sock"):
            return await ask_addresses(folder / "guest.sock", MAC, timeout)

    return asyncio.run(meet())


def test_the_addresses_of_its_own_interface_are_told_ipv4_first(tmp_path: Path) -> None:
    lo, other = interface("127.0.0.1", mac="00:00:00:00:00:00"), interface("10.9.9.9", mac="52:54:00:00:00:01")
    eth0 = interface("2001:db8::7", "fe80::1", "192.168.7.9", mac=MAC.upper())
    assert ask(polite(say([lo, other, eth0, {"name": "sit0"}])), tmp_path) == ("192.168.7.9", "2001:db8::7")


def test_what_earlier_questions_left_is_read_over(tmp_path: Path) -> None:
    left = say([interface("10.0.0.1")]) + b"\xff" + say(7) + b'{"half": '
    assert ask(polite(say([interface("10.0.0.2")]), left), tmp_path) == ("10.0.0.2",)


def test_a_guest_without_an_address_has_none(tmp_path: Path) -> None:
    assert ask(polite(say([{"name": "eth0", "hardware-address": MAC}])), tmp_path) == ()


@pytest.mark.parametrize(
    "answer",
    [
        b'{"error": {"class": "CommandNotFound", "desc": "no"}}\n',
        b'{"return": {}}\n',
        b'{"return": [{"hardware-address": 5}]}\n',
        b'{"return": [{"hardware-address": "x", "ip-addresses": [{"ip-address": null}]}]}\n',
        b'{"return": "\xff\xfe"}\n',
        b"\n",
        b"[" * 100_000 + b"\n",
        b'{"return": [' + b'{"x":' * 100_000 + b"\n",
        b'{"return": [], "x": ' + b"9" * 100_000 + b"e\n",
        b"x" * (guest_agent.LONGEST * 3),
    ],
    ids=lambda answer: repr(answer[:30]),
)
def test_an_answer_that_is_none_is_silence(answer: bytes, tmp_path: Path) -> None:
    with pytest.raises(GuestSilent):
        ask(polite(answer), tmp_path)


@pytest.mark.parametrize(
    "text",
    [b"", b"\xff", b"SSH-2.0-x\r\n", (b"\xff" + say(-1)) * 100, b"\xff" * 100_000, b"x" * (guest_agent.LONGEST * 3)],
    ids=lambda text: repr(text[:20]),
)
def test_whoever_is_no_guest_agent_is_silent(text: bytes, tmp_path: Path) -> None:
    with pytest.raises(GuestSilent):
        ask(saying(text), tmp_path)


def test_a_guest_that_says_nothing_is_not_waited_for(tmp_path: Path) -> None:
    async def guest(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.read()
        writer.close()

    with pytest.raises(GuestSilent, match="no answer within"):
        ask(guest, tmp_path, 0.02)


def test_a_guest_that_never_ends_is_left(tmp_path: Path) -> None:
    async def guest(_: StreamReader, writer: StreamWriter) -> None:
        try:
            while True:
                writer.write(b"\xff" + say(1) + b"x" * 4096)
                await writer.drain()
        except OSError:
            writer.close()

    with pytest.raises(GuestSilent, match="never answers"):
        ask(guest, tmp_path)


def test_a_vm_of_an_older_agent_is_silent(tmp_path: Path) -> None:
    with pytest.raises(GuestSilent, match="FileNotFoundError"):
        asyncio.run(ask_addresses(tmp_path / "guest.sock", MAC))


@pytest.mark.parametrize(
    "lie",
    [
        "127.0.0.1", "127.9.9.9", "0.0.0.0", "0.1.2.3", "169.254.169.254", "224.0.0.1", "255.255.255.255", "240.0.0.1",
        "::1", "::", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "fe80::1", "fe80::1%eth0", "2001:db8::1%eth0", "ff02::1",
        "10.0.0.1/8", "010.0.0.1", "10.0.0.256", "localhost", "", "10.0.0.1\n", "١٠.٠.٠.١", "x" * 9999,
    ],
)  # fmt: skip
def test_what_no_guest_can_have_is_dropped(lie: str, tmp_path: Path) -> None:
    assert ask(polite(say([interface(lie, "10.0.0.9")])), tmp_path) == ("10.0.0.9",)


def test_no_more_than_a_few_are_kept(tmp_path: Path) -> None:
    many = interface(*(f"10.0.{n}.1" for n in range(200)), "10.0.0.1")
    assert len(ask(polite(say([many, many])), tmp_path)) == guest_agent.MOST_ADDRESSES


# The size of the terminal at its console

PID = {"pid": 812}
ENDED = {"exited": True, "exitcode": 0}


def obedient(asked: list[dict[str, Any]], *answers: bytes) -> Guest:
    """A guest agent that answers so, one after the other, and then no more; `asked`: what it was."""

    async def guest(reader: StreamReader, writer: StreamWriter) -> None:
        number = (await read_question(reader))["arguments"]["id"]
        writer.write(b"\xff" + say(number))
        for answer in answers:
            asked.append(await read_question(reader))
            writer.write(answer)
        await reader.read()
        writer.close()

    return guest


def resize(guest: Guest, folder: Path, timeout: float = 2) -> None:
    async def meet() -> None:
        async with await asyncio.start_unix_server(guest, folder / "guest.sock"):
            await resize_console(folder / "guest.sock", 132, 40, timeout)

    asyncio.run(meet())


def test_the_guest_sets_the_size_of_its_console_and_that_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest_agent, "LOOK_EVERY", 0)
    asked: list[dict[str, Any]] = []
    resize(obedient(asked, say(PID), say({"exited": False}), say({"exited": False}), say(ENDED)), tmp_path)
    stty = {"path": "stty", "arg": ["-F", "/dev/ttyS0", "cols", "132", "rows", "40"]}
    assert (
        asked
        == [{"execute": "guest-exec", "arguments": stty}] + [{"execute": "guest-exec-status", "arguments": PID}] * 3
    )


@pytest.mark.parametrize(
    "answers",
    [
        [b'{"error": {"class": "GenericError", "desc": "Command guest-exec has been disabled"}}\n'],
        [say({"pid": -1})],
        [say({"pid": "812"})],
        [b'{"return": {"pid": ' + b"9" * 4000 + b"}}\n"],
        [b"x" * (guest_agent.LONGEST * 3)],
        [say(PID), say({})],
        [say(PID), say({"exited": True, "exitcode": 1})],
        [say(PID), b'{"return": {"exited": true, "out-data": "' + b"x" * guest_agent.LONGEST + b'"}}\n'],
    ],
    ids=lambda answers: repr(answers[-1][:50]),
)
def test_a_guest_that_does_not_set_it_says_so_or_nothing(answers: list[bytes], tmp_path: Path) -> None:
    with pytest.raises(GuestSilent):
        resize(obedient([], *answers), tmp_path)


def test_a_program_in_the_guest_that_never_ends_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_agent, "LOOK_EVERY", 0)
    with pytest.raises(GuestSilent, match="no answer within"):
        resize(obedient([], say(PID), *[say({"exited": False})] * 100_000), tmp_path, 0.05)


def test_who_asks_at_the_same_time_has_a_conversation_of_his_own(tmp_path: Path) -> None:
    """This guest has one line, as its real port has: whatever it is asked, it answers whoever came last."""
    port = tmp_path / "guest.sock"
    last: list[StreamWriter] = []
    answers = {
        "guest-network-get-interfaces": [interface("10.0.0.7")],
        "guest-exec": PID,
        "guest-exec-status": ENDED,
    }

    async def guest(reader: StreamReader, writer: StreamWriter) -> None:
        last[:] = [writer]
        with contextlib.suppress(asyncio.IncompleteReadError):
            number = (await read_question(reader))["arguments"]["id"]
            last[0].write(b"\xff" + say(number))
            while True:
                last[0].write(say(answers[(await read_question(reader))["execute"]]))
        writer.close()

    async def meet() -> list[Any]:
        async with await asyncio.start_unix_server(guest, port):
            both = [(resize_console(port, 80 + n, 24), ask_addresses(port, MAC)) for n in range(5)]
            return await asyncio.gather(*(one for pair in both for one in pair))

    assert asyncio.run(meet()) == [None, ("10.0.0.7",)] * 5


def test_a_guest_without_an_agent_keeps_its_size_and_nobody_is_troubled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hypervisor = QemuHypervisor(HypervisorConfig(tmp_path, tmp_path))
    with caplog.at_level("DEBUG"):
        asyncio.run(hypervisor.resize_console("sgeqxcfi", 132, 40))
    (record,) = [one for one in caplog.records if one.name.startswith("aetherscale")]
    assert (record.levelname, "VM sgeqxcfi" in record.getMessage()) == ("DEBUG", True)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_answer_or_silence(text: bytes) -> None:
    async def meet() -> None:
        reader = StreamReader(limit=guest_agent.LONGEST)
        reader.feed_data(text)
        reader.feed_eof()
        with pytest.raises((asyncio.IncompleteReadError, ValueError)):
            await guest_agent._synchronize(reader, _Deaf())  # type: ignore[arg-type]

    asyncio.run(meet())


class _Deaf:
    def write(self, _: bytes) -> None:
        pass
