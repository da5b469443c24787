"""The console's last lines are harmless text, and its log is bounded."""

import asyncio
import os
import socket
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aetherscale_agent.hypervisor import console
from aetherscale_agent.ports import NotThere


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"one\r\ntwo\r\n", ["one", "two"]),
        (b"\x1b[1;31mred\x1b[0m text", ["red text"]),
        (b"\x1b]0;a new title\x07prompt$ ", ["prompt$"]),
        (b"10%\r50%\r100%\r\ndone", ["100%", "done"]),
        (b"bell\x07 null\x00 \xff\xfe", ["bell null ��"]),
        ("\u202eevil \x9b31m".encode(), ["evil 31m"]),
        (b"a\tb", ["a    b"]),
        (b"kept\n\n  \n", ["kept"]),
        (b"", []),
    ],
)
def test_lines_are_cleaned(data: bytes, lines: list[str]) -> None:
    assert console.clean_lines(data, 10) == lines


@given(st.binary(max_size=2000), st.integers(-1, 5))
def test_no_control_character_gets_through(data: bytes, wanted: int) -> None:
    lines = console.clean_lines(data, wanted)
    assert len(lines) <= max(0, wanted)
    assert all(ord(letter) >= 32 and not 127 <= ord(letter) < 160 for line in lines for letter in line)


@pytest.mark.parametrize(
    "begun", [b"\x1b]", b"\x1bP", b"\x1b]0;x", b"\x1b[", b"\x1b[0", b"\x1b ", b"\x1b]\x1b[1"], ids=repr
)
def test_sequences_that_never_end_cost_no_more_than_text(begun: bytes) -> None:
    text = begun * (console.TAIL_BYTES // 2 // len(begun))
    before = time.process_time()
    console.clean_lines(text, 10)
    assert time.process_time() - before < 2  # looked for to the text's end, each of them: half a minute


def test_long_lines_are_cut() -> None:
    assert console.clean_lines(b"x" * 5000, 1) == ["x" * console.LINE_LIMIT]


def test_a_log_that_is_no_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("password")
    (tmp_path / "link").symlink_to("secret")
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "fifo", "nothing"):
        assert console.read_lines(tmp_path / name, 5) == []


def test_a_long_log_is_cut_and_its_tail_kept(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    console.make(log)
    with log.open("ab") as writer:  # as QEMU has it open
        writer.write(b"".join(b"line %06d\n" % number for number in range(200_000)))
        writer.flush()
        assert console.cut(log, limit=1 << 20)
        writer.write(b"after the cut\n")
    assert log.stat().st_size == len(b"after the cut\n")
    assert console.read_lines(log, 3) == ["line 199998", "line 199999", "after the cut"]
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 1 << 20
    assert not console.cut(log, limit=1 << 20)


def test_making_a_log_again_keeps_it(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    console.make(log)
    log.write_text("kept")
    console.make(log)
    assert log.read_text() == "kept"
    assert log.stat().st_mode & 0o777 == 0o666


def test_there_may_be_no_log_to_cut(tmp_path: Path) -> None:
    assert not console.cut(tmp_path / "nothing", limit=1)


def test_a_vm_of_an_older_agent_has_no_console_to_connect_to(tmp_path: Path) -> None:
    with pytest.raises(NotThere, match="older agent") as caught:
        asyncio.run(console.connect(tmp_path / "console.sock", "sgeqxcfi"))
    assert "stop and start it once" in caught.value.hint


def test_a_socket_that_its_qemu_left_behind_is_no_console(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "console.sock"))
    with pytest.raises(NotThere, match="sgeqxcfi: Connection refused"):
        asyncio.run(console.connect(tmp_path / "console.sock", "sgeqxcfi"))
