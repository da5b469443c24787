"""How far a VM has come: what counts as its current boot, over logs that are cut and leases that stay."""

import asyncio
from asyncio import StreamReader, StreamWriter
from pathlib import Path

import pytest

from aetherscale_agent.hypervisor import console, files, reached
from aetherscale_agent.hypervisor.config import Layout, VmPaths
from aetherscale_agent.hypervisor.seed import FINISHED
from aetherscale_agent.ports import NotThere

MAC = "52:54:00:12:34:56"
LEASES = """\
1700000000 52:54:00:00:00:01 10.1.0.2 other 01:52
1700000001 52:54:00:12:34:56 10.1.0.3 web1 01:52
"""
OPERATORS = "web1 is up; aetherscale: cloud-init finished"  # as docs/cli.md says
OWN, CLOUD_INITS = f"{FINISHED} after 9.1 s", "Cloud-init v. 22.4.2 finished at Tue, 24 Nov 2026 01:00:00 +0000."


@pytest.fixture
def paths(tmp_path: Path) -> VmPaths:
    (tmp_path / "state").mkdir()
    (tmp_path / "run").mkdir()
    layout = Layout(tmp_path / "state", tmp_path / "run")
    files.make_dirs(layout, layout.vm("sgeqxcfi"))
    return layout.vm("sgeqxcfi")


@pytest.fixture
def leases(tmp_path: Path) -> Path:
    return tmp_path / "leases"


def say(paths: VmPaths, text: str) -> None:
    with paths.console.open("a") as log:
        log.write(f"{text}\r\n")


def test_a_lease_is_found_by_its_mac() -> None:
    assert reached.find_lease(LEASES, MAC) == LEASES.splitlines()[1]
    assert reached.find_lease(LEASES, "52:54:00:12:34:57") == ""
    assert reached.find_lease("\nduid 00:01\n", MAC) == ""


def test_milestones_come_in_their_order() -> None:
    assert reached.in_order(["ssh", "cloud-init", "running"]) == ["running", "ssh", "cloud-init"]


@pytest.mark.parametrize("line", [OWN, CLOUD_INITS, OPERATORS])
def test_cloud_init_is_done_when_the_console_says_so(line: str, paths: VmPaths, leases: Path) -> None:
    reached.set_mark(paths, leases, MAC)
    say(paths, "Cloud-init v. 22.4.2 running 'init-local' at Tue, 24 Nov 2026")
    assert reached.look(paths, leases, MAC) == ["running"]
    say(paths, f"[   9.1] cloud-init[7]: {line}")
    assert reached.look(paths, leases, MAC) == ["running", "cloud-init"]
    reached.set_mark(paths, leases, MAC)
    assert reached.look(paths, leases, MAC) == ["running"]


def test_a_lease_counts_when_it_was_asked_for_in_this_boot(paths: VmPaths, leases: Path) -> None:
    reached.set_mark(paths, leases, MAC)
    assert not reached.has_lease(paths, leases, MAC)
    leases.write_text(LEASES)
    assert reached.has_lease(paths, leases, MAC)
    reached.set_mark(paths, leases, MAC)
    assert not reached.has_lease(paths, leases, MAC)
    leases.write_text(LEASES.replace("1700000001", "1700000009"))
    assert reached.has_lease(paths, leases, MAC)


def test_a_vm_of_an_older_agent_is_taken_at_its_word(paths: VmPaths, leases: Path) -> None:
    say(paths, OWN)
    leases.write_text(LEASES)
    assert reached.look(paths, leases, MAC) == ["running", "ip", "cloud-init"]


def test_what_is_cut_from_the_log_is_not_forgotten_and_what_was_before_the_boot_is(
    paths: VmPaths, leases: Path
) -> None:
    def cut() -> None:
        say(paths, "x" * 5000)
        reached.keep_mark(paths, lambda: console.cut(paths.console, 4096))

    leases.write_text(LEASES)
    say(paths, OWN)
    reached.set_mark(paths, leases, MAC)
    cut()
    assert paths.console.stat().st_size == 0
    assert reached.look(paths, leases, MAC) == ["running"]
    say(paths, OWN)
    cut()
    cut()
    assert reached.look(paths, leases, MAC) == ["running", "cloud-init"]
    reached.set_mark(paths, leases, MAC)
    assert reached.look(paths, leases, MAC) == ["running"]


def test_a_log_that_is_shorter_than_its_mark_is_all_of_this_boot(paths: VmPaths, leases: Path) -> None:
    say(paths, "x" * 5000)
    reached.set_mark(paths, leases, MAC)
    console.cut(paths.console, 4096)
    say(paths, OWN)
    assert reached.has_finished(paths)


def test_a_log_that_is_none_is_not_read(paths: VmPaths, leases: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(OWN)
    paths.console.symlink_to(tmp_path / "secret")
    assert reached.look(paths, leases, MAC) == ["running"]


def test_nothing_stays_of_a_vm_that_is_removed(paths: VmPaths, leases: Path, tmp_path: Path) -> None:
    reached.set_mark(paths, leases, MAC)
    layout = Layout(tmp_path / "state", tmp_path / "run")
    assert files.find_ids(layout) == {"sgeqxcfi"}
    files.remove(layout, "sgeqxcfi")
    assert files.find_ids(layout) == set()


@pytest.mark.parametrize(
    ("greeting", "is_ssh"),
    [(b"SSH-2.0-dropbear\r\n", True), (b"HTTP/1.1 400\r\n", False), (b"SS", False), (b"", False)],
)
def test_port_22_speaks_ssh_or_something_else(greeting: bytes, is_ssh: bool) -> None:
    async def greet(_: StreamReader, writer: StreamWriter) -> None:
        writer.write(greeting)
        writer.close()

    async def look() -> bool:
        server = await asyncio.start_server(greet, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            return await reached.greets(lambda _: asyncio.open_connection("127.0.0.1", port))

    assert asyncio.run(look()) is is_ssh


def test_a_guest_that_accepts_and_says_nothing_does_not_hold_anybody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reached, "SSH_TIMEOUT", 0.01)

    async def accept(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def look() -> bool:
        async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            return await reached.greets(lambda _: asyncio.open_connection("127.0.0.1", port))

    assert asyncio.run(look()) is False


def test_a_guest_without_an_address_does_not_greet() -> None:
    async def refuse(_: int) -> tuple[StreamReader, StreamWriter]:
        raise NotThere("no address", "wait")

    assert asyncio.run(reached.greets(refuse)) is False
