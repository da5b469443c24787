"""Streams without a broker: who may have one, how much it may hold, and what ends it."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pika
import pytest

from aetherscale_agent import consoles, pipes, stream, streams
from aetherscale_agent.broker import BrokerLost, Channel, Delivery
from aetherscale_agent.consoles import GATHER_S, VIEWER_BUFFER, Consoles, Viewer, find_news
from aetherscale_agent.envelope import read_envelope
from aetherscale_agent.pipes import find_dialable
from aetherscale_agent.ports import HypervisorError, NotThere, Power
from aetherscale_agent.streams import Streams
from aetherscale_protocol.commands import encode_request
from aetherscale_protocol.errors import Refused
from aetherscale_protocol.options import OpenStream
from aetherscale_protocol.streams import AGENT_WINDOW, CHUNK, Frame, read_frame
from aetherscale_protocol.topology import UNDELIVERABLE
from aetherscale_testing.dealings import REPLY_TO
from aetherscale_testing.world import ID, World, create, until

USER = "alice"


class Desk:
    """An agent's streams, and the client who has them: no broker in between."""

    def __init__(self, world: World, streams: Streams) -> None:
        self.world = world
        self.streams = streams
        self.sent: list[Frame] = []
        self.lost = False
        self._numbers: dict[str, int] = {}

    def post(self, reply_to: str, correlation_id: str | None, headers: dict[str, Any], body: bytes) -> None:
        assert reply_to == REPLY_TO
        assert correlation_id == "c1"
        if self.lost:
            raise BrokerLost("gone")
        self.sent.append(read_frame(headers, body))

    async def open(self, user: str = USER, **options: Any) -> str:
        body = encode_request("open-stream", OpenStream(vm_id=ID, **options))
        properties = pika.BasicProperties(reply_to=REPLY_TO, correlation_id="c1", user_id=user)
        opened = await self.streams.open(read_envelope(body, properties, own_user="agent-h1"))
        assert opened.window == AGENT_WINDOW
        return opened.stream

    def say(self, frame: Frame, user: str = USER, *, died: bool = False) -> None:
        headers = frame.headers | ({"x-death": [{"queue": "computing-host.h1"}]} if died else {})
        properties = pika.BasicProperties(reply_to=REPLY_TO, correlation_id="c1", user_id=user, headers=headers)
        queue = UNDELIVERABLE if died else "computing-host.h1"
        self.streams.take(Delivery(cast(Channel, None), queue, 1, "host.h1", properties, frame.body))

    def tell(self, stream: str, kind: str, body: bytes = b"", **more: Any) -> None:
        """The next message of the stream's own client."""
        seq = self._numbers.get(stream, 0)
        self._numbers[stream] = seq + 1
        self.say(Frame(stream, cast(Any, kind), seq, body, **more))

    def data(self, stream: str) -> bytes:
        return b"".join(f.body for f in self.sent if f.stream == stream and f.kind == "data")

    async def closed(self, stream: str) -> Frame:
        def found() -> list[Frame]:
            return [f for f in self.sent if f.stream == stream and f.kind == "close"]

        await until(lambda: bool(found()))
        return found()[0]


def at_desk(test: Callable[[Desk], Awaitable[None]]) -> Callable[[Path], None]:
    """Run a coroutine as a test, with one VM that runs."""

    def run(tmp_path: Path) -> None:
        async def within() -> None:
            async with asyncio.timeout(10):
                world = World(tmp_path)
                host = await world.started()
                await create(host)
                desk = Desk(world, cast(Streams, None))
                desk.streams = Streams(host, desk)
                await test(desk)
                desk.lost = True
                await desk.streams.close("the test is over", 5)
                assert not desk.streams._taken

        asyncio.run(within())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


class Guest:
    """What listens in the guest: it has a connection, and sends what a test tells it to."""

    def __init__(self) -> None:
        self.port = 0
        self.got = bytearray()
        self.ended = False
        self.writer: asyncio.StreamWriter | None = None
        self.reads = asyncio.Event()
        self.reads.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        with contextlib.suppress(OSError):
            while True:
                await self.reads.wait()
                data = await reader.read(CHUNK)
                if not data:
                    break
                self.got += data
        self.ended = True


@asynccontextmanager
async def guest(desk: Desk) -> AsyncIterator[Guest]:
    found = Guest()
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    found.port = server.sockets[0].getsockname()[1]
    desk.world.hypervisor.guest_ports[22] = found.port
    try:
        yield found
    finally:
        server.close()
        if found.writer is not None:
            found.writer.transport.abort()


# Flow


@at_desk
async def test_a_tunnel_sends_what_it_has_credit_for_and_no_byte_more(desk: Desk) -> None:
    async with guest(desk) as there:
        tunnel = await desk.open(kind="tcp", port=22, window=4096)
        await until(lambda: there.writer is not None)
        assert there.writer is not None
        there.writer.write(bytes(range(256)) * 4096)
        await until(lambda: len(desk.data(tunnel)) == 4096)
        await asyncio.sleep(0.05)
        assert len(desk.data(tunnel)) == 4096
        desk.tell(tunnel, "credit", bytes=1500)
        await until(lambda: len(desk.data(tunnel)) >= 5596)
        await asyncio.sleep(0.05)
        assert desk.data(tunnel) == (bytes(range(256)) * 4096)[:5596]


@at_desk
async def test_a_guest_that_does_not_read_gets_no_more_than_a_window(desk: Desk) -> None:
    async with guest(desk) as there:
        there.reads.clear()
        tunnel = await desk.open(kind="tcp", port=22)
        sent = credited = 0
        while sent - credited + CHUNK <= AGENT_WINDOW:
            desk.tell(tunnel, "data", b"x" * CHUNK)
            sent += CHUNK
            await asyncio.sleep(0.002)
            credited = sum(f.bytes for f in desk.sent if f.kind == "credit")
            assert sent < 64 << 20, "credit never ended"
        desk.tell(tunnel, "data", b"x" * CHUNK)
        assert (await desk.closed(tunnel)).reason == "it sent more than it had credit for"


@at_desk
async def test_both_directions_end_by_themselves(desk: Desk) -> None:
    async with guest(desk) as there:
        tunnel = await desk.open(kind="tcp", port=22)
        desk.tell(tunnel, "data", b"request")
        desk.tell(tunnel, "eof")
        await until(lambda: there.ended)
        assert there.got == b"request"
        assert there.writer is not None
        there.writer.write(b"answer")
        there.writer.close()
        closed = await desk.closed(tunnel)
        assert (closed.reason, desk.data(tunnel)) == ("", b"answer")


@at_desk
async def test_a_guest_that_prints_byte_by_byte_sends_few_messages(desk: Desk) -> None:
    """To one who reads because they are gathered, to one who does not because each counts as a KiB."""
    reads = await desk.open(kind="console", window=1 << 20)
    stalls = await desk.open(kind="console", window=4096)
    began = time.monotonic()
    for _ in range(300):
        for viewer in desk.streams._consoles._open[ID]._viewers:
            viewer.offer(b"x")
        await asyncio.sleep(0)
    await until(lambda: len(desk.data(reads)) == 300)
    most = (time.monotonic() - began) / GATHER_S + 2
    assert len([f for f in desk.sent if f.stream == reads and f.kind == "data"]) <= most
    assert len([f for f in desk.sent if f.stream == stalls and f.kind == "data"]) <= 4


@at_desk
async def test_a_viewer_that_is_behind_misses_the_oldest_and_is_told_how_much(desk: Desk) -> None:
    viewer = await Consoles(desk.world.hypervisor).attach(ID, 0, read_only=False)
    for piece in range(200):
        viewer.offer(bytes([piece]) * 1024)
    seen = b""
    while len(seen) < VIEWER_BUFFER:
        seen += await viewer.read(10_000)
    note = f"\r\n[… {200 * 1024 - VIEWER_BUFFER} bytes skipped]\r\n".encode()
    assert seen.startswith(note)
    assert seen.removeprefix(note) == b"".join(bytes([p]) * 1024 for p in range(200))[-VIEWER_BUFFER:]
    viewer.offer(b"new")
    assert await viewer.read(100) == b"new"
    viewer.close()


@at_desk
async def test_a_console_is_connected_to_only_while_somebody_looks(desk: Desk) -> None:
    console = desk.world.hypervisor._console(ID)
    one, two = await desk.open(kind="console"), await desk.open(kind="log")
    assert console._writer is not None
    desk.tell(one, "close")
    desk.world.hypervisor.print_on_console(ID, "still here")
    await until(lambda: desk.data(two) == b"still here\r\n")
    desk.tell(two, "close")
    await until(lambda: not desk.streams._open)
    assert console._guest is not None
    await asyncio.wait_for(console._guest, 5)  # it sees the end of its line
    again = await desk.open(kind="console", lines=5)
    await until(lambda: desk.data(again) == b"still here\r\n")


@at_desk
async def test_a_log_can_not_be_written_to(desk: Desk) -> None:
    log = await desk.open(kind="log")
    desk.tell(log, "data", b"poweroff\r")
    assert (await desk.closed(log)).reason == "a log can't be written to"
    assert desk.data(log) == b""


# Sizes


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes are gathered for no time at all."""
    monkeypatch.setattr(consoles, "SETTLE_S", 0)


@pytest.mark.usefixtures("settled")
def test_of_a_window_that_is_dragged_the_guest_is_told_the_last_size(tmp_path: Path) -> None:
    async def check(desk: Desk) -> None:
        one, other = await desk.open(kind="console"), await desk.open(kind="console")
        for columns in range(80, 180):
            desk.tell(one, "resize", size=(columns, 24))
        desk.tell(other, "resize", size=(132, 50))
        sizes = desk.world.hypervisor.sizes
        await until(lambda: bool(sizes))
        desk.tell(one, "resize", size=(90, 30))
        await until(lambda: len(sizes) == 2)
        assert sizes == [(ID, 132, 50), (ID, 90, 30)]

    at_desk(check)(tmp_path)


@pytest.mark.usefixtures("settled")
def test_a_guest_that_is_slow_to_take_a_size_holds_up_nothing(tmp_path: Path) -> None:
    async def check(desk: Desk) -> None:
        console = await desk.open(kind="console")
        with desk.world.hypervisor.holding("resize"):
            for columns in (81, 82, 83):
                desk.tell(console, "resize", size=(columns, 24))
                desk.tell(console, "data", b"x")
                await until(lambda: desk.data(console).endswith(b"x"))
            await until(lambda: desk.data(console) == b"xxx")
            assert desk.world.hypervisor.sizes == []
        await until(lambda: desk.world.hypervisor.sizes[-1:] == [(ID, 83, 24)])

    at_desk(check)(tmp_path)


@pytest.mark.usefixtures("settled")
def test_who_may_only_look_or_has_a_tunnel_resizes_nothing(tmp_path: Path) -> None:
    async def check(desk: Desk) -> None:
        async with guest(desk):
            log, tunnel = await desk.open(kind="log"), await desk.open(kind="tcp", port=22)
            console = await desk.open(kind="console")
            for each in (log, tunnel):
                desk.tell(each, "resize", size=(50, 10))
            desk.tell(console, "resize")  # of a terminal that does not know its own
            for _ in range(20):
                await asyncio.sleep(0)
            assert desk.world.hypervisor.sizes == []
            desk.tell(console, "resize", size=(132, 50))
            desk.tell(log, "resize", size=(50, 10))
            await until(lambda: bool(desk.world.hypervisor.sizes))
            assert desk.world.hypervisor.sizes == [(ID, 132, 50)]
            assert not [f for f in desk.sent if f.kind == "close"]

    at_desk(check)(tmp_path)


@at_desk
async def test_a_size_is_forgotten_with_the_last_who_looks(desk: Desk) -> None:
    console = await desk.open(kind="console")
    desk.tell(console, "resize", size=(132, 50))
    resizing = desk.streams._consoles._open[ID]._resizing
    assert resizing is not None
    desk.tell(console, "close")
    await until(resizing.done)
    assert resizing.cancelled()


# Ends


@at_desk
async def test_a_client_that_is_silent_is_dropped_and_one_that_pings_is_not(desk: Desk) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "CLIENT_SILENCE_S", 0.2)
        silent, pinging = await desk.open(kind="console"), await desk.open(kind="console")
        while not [f for f in desk.sent if f.kind == "close"]:
            desk.tell(pinging, "ping")
            await asyncio.sleep(0.02)
        assert (await desk.closed(silent)).reason.startswith("nothing was heard of its client")
        assert [f.kind for f in desk.sent if f.stream == pinging][-1] == "ping"


@pytest.mark.parametrize("end", ["powers off", "dies"])
def test_a_vm_that_comes_to_rest_ends_its_streams_after_its_last_words(end: str, tmp_path: Path) -> None:
    async def check(desk: Desk) -> None:
        async with guest(desk):
            console, tunnel = await desk.open(kind="console"), await desk.open(kind="tcp", port=22)
            desk.world.hypervisor.print_on_console(ID, "Power down.")
            if end == "dies":
                desk.world.hypervisor.qemu_dies(ID)
            else:
                desk.world.hypervisor.guest_powers_off(ID)
            for each in (console, tunnel):
                closed = await desk.closed(each)
                assert (closed.reason, closed.hint) == ("the VM is off", f"start-vm {ID} starts it")
            assert desk.data(console) == b"Power down.\r\n"

    at_desk(check)(tmp_path)


@at_desk
async def test_a_vm_is_not_said_to_be_off_because_systemd_can_not_be_asked(desk: Desk) -> None:
    async def fail(_: str) -> Power:
        raise HypervisorError("systemd did not answer")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(desk.world.hypervisor, "wait_off", fail)
        closed = await desk.closed(await desk.open(kind="console"))
    assert closed.reason == "whether the VM is on can't be told: systemd did not answer"


@at_desk
async def test_a_stream_whose_agent_lost_the_broker_is_over(desk: Desk) -> None:
    console = await desk.open(kind="console")
    desk.lost = True
    desk.tell(console, "ping")
    await until(lambda: not desk.streams._open)
    desk.lost = False
    desk.tell(console, "ping")
    assert "knows nothing of it" in (await desk.closed(console)).reason


@at_desk
async def test_a_message_that_was_dead_lettered_ends_its_stream(desk: Desk) -> None:
    console = await desk.open(kind="console")
    desk.say(Frame(console, "data", 0, b"late"), died=True)
    assert "too busy" in (await desk.closed(console)).reason
    desk.say(Frame("0" * 32, "data", 0, b"late"), died=True)
    assert (await desk.closed("0" * 32)).reason == "its host took no message in time"


@at_desk
async def test_a_message_that_is_delivered_twice_counts_once(desk: Desk) -> None:
    console = await desk.open(kind="console")
    for _ in range(3):
        desk.say(Frame(console, "data", 0, b"once"))
    desk.say(Frame(console, "data", 1, b" and again"))
    await until(lambda: desk.data(console) == b"once and again")


# Who may


@pytest.mark.parametrize("user", ["mallory", ""])
def test_nobody_else_can_write_to_a_stream_or_end_it(user: str, tmp_path: Path) -> None:
    async def check(desk: Desk) -> None:
        console = await desk.open(kind="console")
        desk.say(Frame(console, "data", 0, b"poweroff\r"), user)
        assert "knows nothing of it" in (await desk.closed(console)).reason  # told to the sender, who is not the owner
        desk.say(Frame(console, "close", 0), user)
        desk.tell(console, "data", b"mine")
        await until(lambda: desk.data(console) == b"mine")

    at_desk(check)(tmp_path)


@at_desk
async def test_what_is_no_frame_is_dropped_and_a_close_is_never_answered(desk: Desk) -> None:
    properties = pika.BasicProperties(reply_to=REPLY_TO, headers={"stream": "x", "kind": "nonsense"})
    desk.streams.take(Delivery(cast(Channel, None), "q", 1, "host.h1", properties, b""))
    desk.say(Frame("0" * 32, "close", 0))
    await asyncio.sleep(0)
    assert desk.sent == []


@at_desk
async def test_a_flood_for_streams_that_are_gone_is_answered_a_few_at_a_time(desk: Desk) -> None:
    for number in range(10):
        desk.say(Frame(f"gone{number}", "data", 0, b"x"))
    told = []
    for _ in range(4):
        told.append(len(desk.sent))
        await asyncio.sleep(0)
    assert told == [0, 4, 8, 10], "the loop has its turn in between"
    assert [frame.stream for frame in desk.sent] == [f"gone{number}" for number in range(10)]


@at_desk
async def test_there_is_a_limit_for_a_vm_and_it_is_freed_again(desk: Desk) -> None:
    opened = [await desk.open(kind="console") for _ in range(streams.MOST_OF_A_VM)]
    with pytest.raises(Refused, match=f"VM {ID} has 16 streams open"):
        await desk.open(kind="console")
    desk.tell(opened[0], "close")
    await until(lambda: opened[0] not in desk.streams._open)
    await desk.open(kind="console")


@at_desk
async def test_there_is_a_limit_for_a_host(desk: Desk) -> None:
    desk.streams._taken["elsewher"] = streams.MOST
    with pytest.raises(Refused, match="host h1 has 128 streams open"):
        await desk.open(kind="console")
    del desk.streams._taken["elsewher"]


@at_desk
async def test_what_can_not_be_opened_takes_no_place(desk: Desk) -> None:
    for _ in range(streams.MOST_OF_A_VM + 1):
        with pytest.raises(Refused, match=r"port 1 of VM sgeqxcfi can't be reached: 127\.0\.0\.1: ") as caught:
            await desk.open(kind="tcp", port=1)
    assert caught.value.code == "wrong-state"


@at_desk
async def test_a_vm_that_is_off_is_refused_with_what_to_do(desk: Desk) -> None:
    vm = desk.streams._host.get(ID)
    for state, hint in (("stopped", f"start-vm {ID}"), ("failed", f"start-vm {ID}"), ("starting", "in a moment")):
        vm.state = cast(Any, state)
        with pytest.raises(Refused, match=f"VM {ID} is {state}") as caught:
            await desk.open(kind="console")
        assert caught.value.code == "wrong-state"
        assert hint in (caught.value.hint or "")


@at_desk
async def test_a_guest_that_stands_still_can_be_looked_at_and_answers_on_no_port(desk: Desk) -> None:
    desk.streams._host.get(ID).state = "paused"
    with pytest.raises(Refused, match=f"VM {ID} is paused: its port 22 answers nobody") as caught:
        await desk.open(kind="tcp", port=22)
    assert (caught.value.code, caught.value.hint) == ("wrong-state", f"resume-vm {ID} lets it go on")
    await desk.open(kind="console")


def test_a_vm_without_an_address_is_refused() -> None:
    with pytest.raises(NotThere, match="has no address"):
        asyncio.run(pipes.dial(ID, [], 22))


def test_what_a_guest_says_of_its_addresses_never_leads_to_the_host() -> None:
    said = ["127.0.0.1", "169.254.169.254", "::1", "fe80::1", "0.0.0.0", "224.0.0.1", "nonsense", "fd00::5", "10.0.0.5"]
    assert find_dialable(said) == ["10.0.0.5", "fd00::5"]


@at_desk
async def test_a_viewer_begins_with_what_was_printed_before(desk: Desk) -> None:
    desk.world.hypervisor.print_on_console(ID, "one", "two", "three")
    viewer: Viewer = await Consoles(desk.world.hypervisor).attach(ID, 2, read_only=True)
    assert await viewer.read(100) == b"two\r\nthree\r\n"
    viewer.close()


@pytest.mark.parametrize(
    ("history", "offered", "news"),
    [
        (b"one\r\ntwo\r\n", b"", b""),
        (b"", b"one\r\n", b"one\r\n"),
        (b"one\r\ntwo\r\n", b"two\r\n", b""),
        (b"one\r\ntwo\r\n", b"one\r\ntwo\r\nthree\r\nlogin: ", b"three\r\nlogin: "),
        (b"one\r\ntwo\r\n", b"\x1b[1mtwo\x1b[0m  \r\nthree", b"three"),
        (b"two\r\n", b"one\r\ntwo\r\nthree", b"three"),  # fewer lines were asked for than came meanwhile
        (b"one\r\n", b"two\r\n", b"two\r\n"),
        (b"a login:\r\n", b"login: ", b""),
    ],
)
def test_a_viewer_misses_nothing_that_was_printed_while_the_log_was_read(
    history: bytes, offered: bytes, news: bytes
) -> None:
    assert find_news(history, offered) == news


@pytest.mark.parametrize("line", [b"\x01" * 900 + b"\n", b" \n", b"hello world\n"], ids=["controls", "blank", "text"])
def test_a_guest_that_floods_its_console_holds_the_agent_up_no_longer_with_many_lines(line: bytes) -> None:
    history, offered = b"x " * 500_000, line * (VIEWER_BUFFER // len(line))
    before = time.process_time()
    for _ in range(10):
        assert find_news(history, offered) == offered
    assert time.process_time() - before < 1  # each line looked at with all before it: 2 s and more
