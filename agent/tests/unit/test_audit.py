"""What the journal is told: each command once, as fields that nothing in a message can break, and no secret."""

import asyncio
import contextlib
import json
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aetherscale_agent import audit
from aetherscale_agent.access import Access
from aetherscale_agent.audit import Audit, Entry, JournalAudit, encode, open_audit, told_options
from aetherscale_agent.config import OperatorRights
from aetherscale_agent.handlers import Handlers
from aetherscale_agent.ttl import CLOCK_SETTLES_S, OVER, Reaper
from aetherscale_protocol.commands import COMMANDS
from aetherscale_protocol.options import CreateVm
from aetherscale_testing.dealings import Dealings
from aetherscale_testing.world import ID, World, create, quiet

CANARY = "canary-7e1f"


def decode(data: bytes) -> dict[str, str]:
    """What journald makes of an entry.

    Source: systemd's JOURNAL_NATIVE_PROTOCOL.md, read independently of the encoder.
    """
    fields = {}
    while data:
        line, _, rest = data.partition(b"\n")
        name, sign, value = line.partition(b"=")
        if sign:
            data = rest
        else:
            size = int.from_bytes(rest[:8], "little")
            value, data = rest[8 : 8 + size], rest[8 + size :]
            assert data[:1] == b"\n"
            data = data[1:]
        assert name.decode() not in fields
        fields[name.decode()] = value.decode()
    return fields


TEXT = st.text(max_size=50)


@given(st.dictionaries(st.from_regex(r"[A-Z][A-Z_]{0,20}", fullmatch=True), TEXT, max_size=6))
def test_whatever_is_in_a_value_stays_a_value(fields: dict[str, str]) -> None:
    assert decode(encode(fields)) == fields


@given(TEXT, TEXT, TEXT, TEXT)
def test_an_entry_says_what_was_put_in_and_is_one_line_for_people(who: str, command: str, vm: str, why: str) -> None:
    entry = Entry(who=who, command=command, result="error", vm_id=vm, code="failed", reason=why)
    fields = decode(encode(entry.fields()))
    for name, value in {"OPERATOR": who, "COMMAND": command, "VM": vm, "REASON": why}.items():
        assert fields.get(f"AETHERSCALE_{name}", "") == value
    assert fields["MESSAGE"].isprintable()
    assert fields["MESSAGE_ID"] == audit.MESSAGE_ID


def test_surrogates_and_endless_values_do_no_harm() -> None:
    entry = Entry(who="\udcff", command="x" * 10_000, result="error", reason="y" * 100_000)
    assert len(encode(entry.fields())) < 4000


def test_only_named_options_are_told() -> None:
    secret = CreateVm(
        image="a", name="web1", user_data=CANARY, ssh_keys=(f"ssh-ed25519 {CANARY}",), labels={"k": CANARY}
    )
    assert told_options(secret) == "image=a cpus=1 memory=1024 disk=10"


def test_no_option_is_told_that_holds_text_of_an_operators_own() -> None:
    """A new option is not told until it is named; and what is named has a form that is checked."""
    for command in COMMANDS.values():
        for field in msgspec.structs.fields(command.options):
            if field.name in audit.TOLD:
                assert field.name not in ("user_data", "ssh_keys")


# To the journal


def test_it_goes_to_the_journals_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(path)
        open_audit({"JOURNAL_STREAM": "8:1"}, path).note(Entry(who="alice", command="stop-vm", result="success"))
        assert decode(journal.recv(65536))["AETHERSCALE_OPERATOR"] == "alice"


def entry(request_id: str) -> Entry:
    return Entry(who="alice", command="stop-vm", result="success", vm_id="abcdefgh", request_id=request_id)


LINE = "stop-vm of VM abcdefgh for 'alice': success"


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    """journald's socket, which nobody reads; closed, and its file gone, when a test is over."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(tmp_path / "socket"))
        journal.settimeout(10)
        yield journal


def filled(journal: socket.socket, patience_s: float) -> tuple[JournalAudit, int]:
    """An audit whose journal's queue is full, and how many entries are in it."""
    journal_audit, in_queue = JournalAudit(journal.getsockname(), patience_s), 0
    said = encode(entry("filling").fields())
    with contextlib.suppress(BlockingIOError):  # its own socket: full is that, or the queue, whichever comes first
        while True:
            journal_audit._sock.sendto(said, socket.MSG_DONTWAIT, journal.getsockname())
            in_queue += 1
    return journal_audit, in_queue


def test_a_journal_that_is_away_costs_no_time_and_no_entry(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    open_audit({"JOURNAL_STREAM": "8:1"}, str(tmp_path / "nothing")).note(entry("r1"))
    assert [record.message for record in caplog.records] == [LINE]


def test_a_journal_that_is_full_has_all_once_it_is_read_and_in_its_order(
    journal: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    full, in_queue = filled(journal, 60)
    began = time.monotonic()
    for number in range(1000):
        full.note(entry(str(number)))
    assert time.monotonic() - began < 10, "whoever notes an entry waits for nobody"
    told = [decode(journal.recv(65536))["AETHERSCALE_REQUEST_ID"] for _ in range(in_queue + 1000)]
    assert told == ["filling"] * in_queue + [str(number) for number in range(1000)]
    assert not caplog.records


def test_a_journal_that_stays_full_is_waited_for_once_and_then_it_is_the_log(
    journal: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    full, in_queue = filled(journal, 0.2)
    began = time.monotonic()
    for number in range(100):
        full.note(entry(str(number)))
    full._thread.submit(lambda: None).result()  # it is behind them
    took = time.monotonic() - began
    assert 0.2 <= took < 10, "100 waits would be 20 s"
    assert [record.message for record in caplog.records] == [LINE] * 100
    for _ in range(in_queue):
        journal.recv(65536)
    full.note(entry("again"))
    assert decode(journal.recv(65536))["AETHERSCALE_REQUEST_ID"] == "again"


def test_without_systemd_it_is_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    open_audit({}).note(Entry(who="", command="a\nb", result="error", code="forbidden", reason="no\x1b[2J"))
    (record,) = caplog.records
    assert record.message == "a\\nb for 'an unsigned client': error (forbidden: no\\x1b[2J)"


# Every command, once


class Heard(Audit):
    """An audit that is kept in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[Entry] = []

    def note(self, entry: Entry) -> None:
        self.entries.append(entry)


OPTIONS: dict[str, dict[str, Any]] = {
    "create-vm": {"image": "tiny", "user_data": CANARY, "ssh_keys": [f"ssh-ed25519 {CANARY}"]},
    "offer-vm": {"image": "tiny"},
    "resize-vm": {"vm_id": ID, "disk": 50},
    "extend-vm": {"vm_id": ID, "ttl": 60},
    "open-stream": {"vm_id": ID, "kind": "log"},
    "delete-image": {"host": "h1", "image": "none"},
    "drain-host": {"host": "h1"},
    "undrain-host": {"host": "h1"},
    "forget-host": {"host": "h9"},
    **{name: {"vm_id": ID, "snapshot": "s1"} for name in ("snapshot-vm", "restore-vm", "delete-snapshot")},
    **{name: {} for name in ("list-vms", "list-hosts", "list-images", "check-host", "ping")},
}


@pytest.mark.parametrize("operators", [None, {"alice": OperatorRights()}, {"alice": OperatorRights(readonly=True)}])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_noted_once_with_what_it_was_answered(
    tmp_path: Path, command: str, operators: dict[str, OperatorRights] | None
) -> None:
    async def scene() -> None:
        host = await World(tmp_path).started()
        await create(host)
        dealings, heard = Dealings(host), Heard()
        dealings.handlers = Handlers(host, dealings.letters, [], access=Access(operators), audit=heard)
        answer = await dealings.ask(command, request_id="r2", **OPTIONS.get(command, {"vm_id": ID}))
        (entry,) = [e for e in heard.entries if e.command != "close-stream"]
        assert (entry.command, entry.result) == (command, answer.execution_info.status)
        assert (entry.code, entry.reason) == (answer.execution_info.code or "", answer.execution_info.reason or "")
        assert entry.request_id == "r2"
        assert CANARY not in repr(entry)
        if "vm_id" in OPTIONS.get(command, {"vm_id": ID}):
            assert entry.vm_id == ID
        dealings.handlers._streams.drop_all("the test is over")
        await quiet(host)

    asyncio.run(scene())


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"command": "nonsense"}', b'{"command": "stop-vm", "options": {"vm-id": 7}}']
)
def test_what_is_no_command_is_noted_too(tmp_path: Path, body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        host = await World(tmp_path).started()
        dealings, heard = Dealings(host), Heard()
        dealings.handlers = Handlers(host, dealings.letters, [], audit=heard)
        monkeypatch.setattr("aetherscale_testing.dealings.json.dumps", lambda _body: body.decode())
        await dealings.ask("stop-vm", vm_id=ID)
        (entry,) = heard.entries
        assert (entry.command, entry.result) == ("stop-vm", "error")
        assert entry.code in ("bad-request", "unknown-command")

    asyncio.run(scene())


@pytest.mark.parametrize(
    "options",
    [
        {"user-data": [CANARY]},
        {"user-data": CANARY * 100_000},
        {"user-data": CANARY, "cpus": CANARY},
        {"user-data": CANARY, "image": "no such image"},
        {"user-data": CANARY, "password": CANARY},
        {"ssh-keys": CANARY},
        {"ssh-keys": ["-----BEGIN OPENSSH PRIVATE KEY-----\n" + CANARY]},
        {"ssh-keys": [CANARY] * 100},
    ],
)
@pytest.mark.parametrize("cut", [0, 1, 20])
def test_no_refusal_tells_what_was_to_be_kept(tmp_path: Path, options: dict[str, Any], cut: int) -> None:
    """Of all options only user-data can hold secrets, and ssh-keys, when somebody mistakes the private one for it."""

    async def scene() -> None:
        host = await World(tmp_path).started()
        dealings, heard = Dealings(host), Heard()
        dealings.handlers = Handlers(host, dealings.letters, [], audit=heard)
        body = json.dumps({"command": "create-vm", "options": {"image": "tiny"} | options})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("aetherscale_testing.dealings.json.dumps", lambda _body: body[: len(body) - cut])
            answer = await dealings.ask("create-vm")
        (entry,) = heard.entries
        assert entry.result == answer.execution_info.status == "error"
        assert CANARY not in repr((entry, entry.fields()))

    asyncio.run(scene())


def test_what_a_host_does_of_itself_is_the_hosts(tmp_path: Path) -> None:
    async def scene() -> None:
        host, heard = await World(tmp_path).started(), Heard()
        vm = await create(host)
        vm.record = vm.record.but(expires=1.0)
        Reaper(host, heard, uptime=lambda: CLOCK_SETTLES_S).look()
        await quiet(host)
        (entry,) = heard.entries
        assert (entry.who, entry.command, entry.vm_id) == ("agent-h1", "delete-vm", ID)
        assert (entry.result, entry.reason) == ("success", OVER)

    asyncio.run(scene())
