"""The agent's memory: what was written is there, whole, whatever happened in the middle."""

import asyncio
import errno
import os
import threading
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aetherscale_agent.journal import Ending, Journal, JournalError, Phase, Record
from aetherscale_protocol.options import CreateVm

ID, OTHER = "sgeqxcfi", "abcdefgh"

SOME = settings(max_examples=40, deadline=None, database=None)

texts = st.text(max_size=20)
times = st.floats(0, 1e11)
records = st.builds(
    Record,
    vm_id=st.just(ID),
    request_id=texts,
    spec=st.builds(CreateVm, image=st.just("tiny"), vm_id=st.none() | st.just(ID), memory=st.integers(64, 1 << 20)),
    deadline=times,
    created=times,
    phase=st.sampled_from(get_args(Phase)),
    wanted=st.sampled_from(["on", "off"]),
    since=times,
    boot_id=texts,
    reason=texts,
    ending=st.none()
    | st.builds(
        Ending,
        code=texts,
        reason=texts,
        hint=st.none() | texts,
        reasons=st.dictionaries(texts, texts, max_size=2),
        request_id=texts,
    ),
)


def record(vm_id: str = ID, **changes: object) -> Record:
    base = Record(vm_id=vm_id, request_id="r1", spec=CreateVm(image="tiny"), deadline=2.0, created=1.0, phase="claimed")
    return base.but(**changes)


def write(journal: Journal, *written: Record) -> None:
    async def put() -> None:
        for one in written:
            await journal.put(one)

    asyncio.run(put())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal"


@pytest.fixture
def journal(folder: Path) -> Journal:
    opened = Journal(folder)
    assert opened.load(pytest.fail) == {}
    return opened


def test_a_new_journal_is_a_folder_of_its_own_that_nobody_else_reads(journal: Journal, folder: Path) -> None:
    assert journal.load(pytest.fail) == {}
    assert folder.stat().st_mode & 0o777 == 0o700


@SOME
@given(written=records)
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, written: Record) -> None:
    data = msgspec.json.encode(written)
    assert msgspec.json.decode(data, type=Record) == written
    folder = tmp_path_factory.mktemp("journal")
    Journal(folder)._write(written)
    assert Journal(folder).load(pytest.fail) == {ID: written}


def test_a_record_replaces_the_one_before_and_leaves_nothing_else(journal: Journal, folder: Path) -> None:
    write(journal, record(), record(phase="bound"), record(OTHER))
    assert journal.load(pytest.fail) == {ID: record(phase="bound"), OTHER: record(OTHER)}
    assert sorted(os.listdir(folder)) == [f"{OTHER}.json", f"{ID}.json"]


def test_a_record_is_private_and_readable_by_people(journal: Journal, folder: Path) -> None:
    write(journal, record())
    assert b'"phase":"claimed"' in (folder / f"{ID}.json").read_bytes()


def test_forgetting_is_for_good_and_may_be_repeated(journal: Journal, folder: Path) -> None:
    write(journal, record())
    for _ in range(2):
        asyncio.run(journal.drop(ID))
        assert Journal(folder).load(pytest.fail) == {}


# Crashes


@pytest.mark.parametrize("draft", [b"", b'{"vm_id": "sgeq', msgspec.json.encode(record(phase="bound"))])
def test_a_write_that_a_crash_cut_short_is_forgotten(journal: Journal, folder: Path, draft: bytes) -> None:
    write(journal, record())
    (folder / f"{ID}.new").write_bytes(draft)
    (folder / f"{OTHER}.new").write_bytes(draft)
    assert journal.load(pytest.fail) == {ID: record()}
    assert os.listdir(folder) == [f"{ID}.json"]


def test_the_file_and_then_its_folder_are_synced_before_it_counts(
    journal: Journal, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def note(descriptor: int) -> None:
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    write(journal, record())
    assert synced == [f"{ID}.new", "journal"]
    synced.clear()
    asyncio.run(journal.drop(ID))
    assert synced == ["journal"]
    assert folder.exists()


BROKEN = [
    b"",
    b"{}",
    b"[]",
    b"\xff\xfe",
    b"null",
    msgspec.json.encode(record())[:-5],
    msgspec.json.encode(record(OTHER)),  # another VM's
    msgspec.json.encode(record()).replace(b"claimed", b"melted"),
    msgspec.json.encode(record()).replace(b'"tiny"', b'"../tiny"'),
    b"\0" * 4096,  # what some file systems leave after a power loss
]


@pytest.mark.parametrize("data", BROKEN)
def test_a_file_that_is_no_record_is_set_aside_and_said(journal: Journal, folder: Path, data: bytes) -> None:
    write(journal, record(OTHER))
    (folder / f"{ID}.json").write_bytes(data)
    said: list[str] = []
    assert set(journal.load(said.append)) == {OTHER}
    assert len(said) == 1
    assert ID in said[0]
    assert f"{ID}.broken" in said[0]
    (aside,) = folder.glob(f"{ID}.broken-*")
    assert aside.read_bytes() == data
    assert journal.load(pytest.fail) == {OTHER: record(OTHER)}


def test_what_an_older_agent_does_not_know_is_ignored(journal: Journal, folder: Path) -> None:
    data = msgspec.json.encode(record()).replace(b'{"vm_id"', b'{"colour":"red","vm_id"', 1)
    (folder / f"{ID}.json").write_bytes(data)
    assert journal.load(pytest.fail) == {ID: record()}


@pytest.mark.parametrize("name", ["README", "x.json", "SGEQXCFI.json", "sgeqxcfi.json.bak", ".json", "sgeqxcfi"])
def test_strange_files_are_left_alone(journal: Journal, folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"mine")
    assert journal.load(pytest.fail) == {}
    assert (folder / name).read_bytes() == b"mine"


# Disks that are full or read-only


def no_space(_descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_the_record_that_was_there(
    journal: Journal, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(journal, record())
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(JournalError, match="No space left") as caught:
            write(journal, record(phase="bound"))
    assert str(folder) in str(caught.value)
    assert os.listdir(folder) == [f"{ID}.json"]
    assert journal.load(pytest.fail) == {ID: record()}
    write(journal, record(phase="bound"))
    assert journal.load(pytest.fail) == {ID: record(phase="bound")}


def test_a_file_that_cannot_be_removed_is_an_error(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    write(journal, record())
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(JournalError, match="can't remove"):
        asyncio.run(journal.drop(ID))


def test_a_folder_that_is_gone_is_an_error(journal: Journal, folder: Path) -> None:
    folder.rmdir()
    with pytest.raises(JournalError, match="No such file"):
        write(journal, record())


def test_two_writes_of_one_record_do_not_tear_each_other(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write whose waiter was cancelled goes on in its thread, beside the next one."""
    writing, go_on, first_is_done = threading.Event(), threading.Event(), threading.Event()
    real = os.fsync

    def in_step(descriptor: int) -> None:
        if not os.readlink(f"/proc/self/fd/{descriptor}").endswith(".new"):
            first_is_done.set()
        elif not writing.is_set():
            writing.set()
            go_on.wait(5)
        else:
            go_on.set()
            first_is_done.wait(5)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", in_step)

    async def scenario() -> None:
        first = asyncio.create_task(journal.put(record(phase="bound")))
        await asyncio.to_thread(writing.wait, 5)
        first.cancel()
        second = asyncio.create_task(journal.put(record(phase="ready")))
        await asyncio.wait({second}, timeout=0.02)
        go_on.set()
        await second

    asyncio.run(scenario())
    assert journal.load(pytest.fail) == {ID: record(phase="ready")}
