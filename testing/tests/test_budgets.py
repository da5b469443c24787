"""The regression guard itself: that it sees what it counts, and fails when a number rises or falls."""

import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pika import frame, spec

from aetherscale_testing import budgets
from aetherscale_testing.counting import Notes
from aetherscale_testing.proxy import Wire, Wires
from aetherscale_testing.round_trips import Asked, Sleeper
from aetherscale_testing.tally import Tally

TABLE = """\
# What it is.

["agent"]
"stop-vm" = "2 sync"

# What follows.
["CLI"]
"list-vms" = "1 Basic.Publish"
"""


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "budgets.toml"
    path.write_text(TABLE)
    monkeypatch.setattr(budgets, "TABLE", path)
    monkeypatch.delenv(budgets.WRITE, raising=False)
    return path


@pytest.mark.parametrize(
    ("counted", "complaint"),
    [
        ({"stop-vm": {"sync": 3}}, "agent, stop-vm: sync: 2 expected, 3 counted"),
        ({"stop-vm": {"sync": 1}}, "agent, stop-vm: sync: 2 expected, 1 counted"),
        ({"stop-vm": {"sync": 2, "exec qemu-img": 1}}, "agent, stop-vm: exec qemu-img: 0 expected, 1 counted"),
        ({"stop-vm": {}}, "agent, stop-vm: sync: 2 expected, 0 counted"),
        ({}, "agent, stop-vm: sync: 2 expected, 0 counted"),
        ({"stop-vm": {"sync": 2}, "new-vm": {}}, "agent, new-vm: no such row"),
    ],
)
@pytest.mark.usefixtures("table")
def test_a_count_that_rises_or_falls_is_told(counted: dict[str, dict[str, int]], complaint: str) -> None:
    budgets.hold({"agent": {"stop-vm": {"sync": 2}}})
    with pytest.raises(AssertionError, match=complaint):
        budgets.hold({"agent": counted})


def test_the_table_can_be_written_and_keeps_its_comments(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = {"list-vms": {"sync": 1}, "stop-vm, twice": {"sync": 4, "thread": 2}}
    monkeypatch.setenv(budgets.WRITE, "write")
    budgets.hold({"agent": counted})
    budgets.hold({"a new one": {"stop-vm": {"sync": 4}}})
    monkeypatch.delenv(budgets.WRITE)
    rows = '"each of them" = "1 sync"\n"list-vms" = ""\n"stop-vm, twice" = "3 sync, 2 thread"\n'
    before = TABLE.replace('"stop-vm" = "2 sync"\n', rows)
    assert table.read_text() == before + '\n["a new one"]\n"stop-vm" = "4 sync"\n'
    budgets.hold({"agent": counted})
    budgets.hold({"a new one": {"stop-vm": {"sync": 4}}})
    budgets.hold({"CLI": {"list-vms": {"Basic.Publish": 1}}})


def publish(key: str, body: bytes = b"{}") -> bytes:
    method = frame.Method(1, spec.Basic.Publish(exchange="computing", routing_key=key))
    header = frame.Header(1, len(body), spec.BasicProperties())
    return b"".join(part.marshal() for part in (method, header, frame.Body(1, body)))


def test_methods_are_counted_however_the_bytes_are_cut() -> None:
    wire = cast(Wire, SimpleNamespace())
    tally = Tally(wire)
    declare = frame.Method(1, spec.Queue.Declare(queue="computing-hosts", passive=True)).marshal()
    said = frame.ProtocolHeader().marshal() + frame.Heartbeat().marshal() + publish("list-vms") + declare
    said += publish("computing-known.h1") + publish("computing-known.h1")
    for at in range(len(said)):
        wire.watch(1, True, said[at : at + 1])
    assert tally.settle({"Basic.Publish": 1, "Queue.Declare": 1}) == {"Basic.Publish": 1, "Queue.Declare": 1}
    answer = frame.Method(1, spec.Queue.DeclareOk("computing-hosts", 0, 3)).marshal()
    delivery = frame.Method(1, spec.Basic.Deliver("c", 1, False, "", "amq.rabbitmq.reply-to.g2")).marshal()
    wire.watch(1, False, answer + delivery)
    wire.watch(2, False, delivery)
    assert tally.settle({"Basic.Deliver": 2}) == {"Basic.Deliver": 2}


def test_what_does_not_come_is_not_waited_for_and_what_is_too_much_is_not_lost() -> None:
    wire = cast(Wire, SimpleNamespace())
    tally = Tally(wire)
    wire.watch(1, True, publish("list-vms") * 2)
    assert tally.settle({"Basic.Publish": 3}, quiet=0.01) == {"Basic.Publish": 2}
    assert tally.settle({}) == {}
    wire.watch(1, True, publish("list-vms"))
    tally.forget(0.01)
    assert tally.settle({}) == {}


QUESTIONS = 6
DECLARE = frame.Method(1, spec.Queue.Declare(queue="q")).marshal()
DECLARED = frame.Method(1, spec.Queue.DeclareOk("q", 0, 0)).marshal()
GREETING = frame.Method(0, spec.Connection.Start()).marshal()
ASKING = f"""
import socket, sys
at_once, port = map(int, sys.argv[1:])
with socket.create_connection(("127.0.0.1", port)) as broker:
    def ask(question, answer):
        broker.sendall(question)
        while answer:
            answer -= len(broker.recv(answer))
    ask({frame.ProtocolHeader().marshal()}, {len(GREETING)})
    for _ in range(0, {QUESTIONS}, at_once):
        ask({DECLARE} * at_once, {len(DECLARED)} * at_once)
"""


def answer(server: socket.socket) -> None:
    """Be a broker that answers one question at a time."""
    asker, _ = server.accept()
    with asker:
        asker.recv(len(frame.ProtocolHeader().marshal()), socket.MSG_WAITALL)
        asker.sendall(GREETING)
        for _ in range(QUESTIONS):
            asker.recv(len(DECLARE), socket.MSG_WAITALL)
            asker.sendall(DECLARED)


@pytest.mark.parametrize("at_once", [1, 2, 3, 6])
def test_questions_asked_at_once_are_one_round_trip_and_those_asked_one_by_one_are_many(at_once: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, Wires() as wires:
        broker = threading.Thread(target=answer, args=(server,))
        broker.start()
        wire = wires.open(server.getsockname())
        tally = Tally(wire)
        with subprocess.Popen([sys.executable, "-c", ASKING, str(at_once), str(wire.port)]) as asker:
            tally.client = Sleeper(asker.pid)
        broker.join()
        expected = {"Queue.Declare": QUESTIONS, "round-trips": 1 + QUESTIONS // at_once}
        assert asker.returncode == 0
        assert tally.settle(expected) == expected


def test_a_question_is_open_until_it_is_answered_refused_or_confirmed() -> None:
    asked = Asked()

    def ask(*methods: Any, counts: bool = True) -> None:
        for method in methods:
            asked.ask(frame.Method(1, method), counts)

    def hear(method: Any) -> tuple[bool, int]:
        asked.answer(frame.Method(1, method))
        return asked.is_open(), asked.answered

    publish = spec.Basic.Publish(routing_key="list-vms")
    ask(publish, spec.Basic.Ack(1), spec.Basic.Consume(nowait=True))
    assert not asked.is_open()  # nobody answers these
    ask(spec.Confirm.Select())
    assert hear(spec.Confirm.SelectOk()) == (False, 1)
    ask(publish, publish, publish)
    assert hear(spec.Basic.Return()) == (True, 1)
    assert hear(spec.Basic.Ack(2, multiple=True)) == (True, 3)
    assert hear(spec.Basic.Nack(3)) == (False, 4)
    ask(publish, counts=False)
    assert hear(spec.Basic.Ack(4)) == (False, 4)
    ask(spec.Queue.Declare(), spec.Queue.Declare())
    assert hear(spec.Queue.DeclareOk("q", 0, 0)) == (True, 5)
    assert hear(spec.Channel.Close(404, "NOT_FOUND", 50, 10)) == (False, 6)


NOTING = """
import asyncio, os, subprocess, sys
from pathlib import Path
from types import SimpleNamespace
from aetherscale_agent.handlers import Handlers
from aetherscale_testing import counting

async def work(self, session, delivery):
    await asyncio.to_thread(os.fsync, file)
    os.mkdir(name := f"{sys.argv[1]}-{len(later)}")
    os.close(os.open(f"{name}/a", os.O_CREAT | os.O_WRONLY))
    os.close(os.open(name, os.O_PATH))
    os.rename(f"{name}/a", f"{name}/b")
    os.remove(f"{name}/b")
    list(os.scandir(name))
    import colorsys
    later.append(asyncio.create_task(start()))

async def start():
    await asyncio.sleep(0)
    await (await asyncio.create_subprocess_exec("true")).wait()
    subprocess.run(["true"])

async def watch(changes):
    while await changes.get():
        await asyncio.to_thread(os.fsync, file)

async def keep_swept():
    os.listdir(".")
    await asyncio.to_thread(os.fsync, file)

async def main():
    changes = asyncio.Queue()
    watching = asyncio.create_task(watch(changes))
    for body in (b'{"command": "stop-vm"}', b"?"):
        await asyncio.create_task(Handlers.on_message(None, None, SimpleNamespace(body=body)))
    await asyncio.gather(*later)
    await asyncio.create_task(keep_swept())
    changes.put_nowait(1)
    changes.put_nowait(0)
    await watching
    await asyncio.create_task(Handlers.on_message(None, None, SimpleNamespace(body=b"last")))
    await later[-1]

later, file = [], os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
Handlers.on_message = work
counting.install(Path(sys.argv[1]))
os.fdatasync(file)
asyncio.run(main())
"""


def test_what_is_done_for_a_message_is_noted_with_its_number_wherever_it_is_done(tmp_path: Path) -> None:
    environ: dict[str, Any] = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", NOTING, str(tmp_path / "notes")], env=environ, check=True)
    notes = Notes((tmp_path / "notes").read_text())
    files = {"mkdir": 1, "open": 1, "rename": 1, "remove": 1, "list": 1}
    each = Counter({"thread": 1, "sync": 1, "exec true": 2, **files})
    assert notes.begun == {1: "stop-vm", 2: "?", 3: "?"}
    assert notes.of(1) == notes.of(3) == each
    assert notes.of(0) == {"sync by itself": 1}
    unasked = Counter({"thread by watch": 1, "sync by watch": 1})
    assert notes.of(2) == each + unasked
    assert notes.of(1, 2) == each + each + unasked
