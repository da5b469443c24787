"""A guest that has broken out into its QEMU makes its sockets: no link that lies in their place is followed."""

import asyncio
import contextlib
from asyncio import StreamReader, StreamWriter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from aetherscale_agent.hypervisor import console, guest_agent, monitor
from aetherscale_agent.ports import HypervisorError

VISITS: dict[str, Callable[[Path], Awaitable[object]]] = {
    "monitor": lambda path: monitor.execute(path, "quit", 0.2),
    "console": lambda path: console.connect(path, "sgeqxcfi"),
    "guest agent": lambda path: guest_agent.ask_addresses(path, "52:54:00:12:34:56", 0.2),
    "guest agent, of the console": lambda path: guest_agent.resize_console(path, 132, 40, 0.2),
}


@pytest.mark.parametrize("visit", VISITS)
@pytest.mark.parametrize("kind", ["its own socket", "a link to another's"])
def test_the_agent_connects_to_a_vms_own_sockets_alone(visit: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    lies_there = tmp_path / "its.sock"
    listening = lies_there if kind == "its own socket" else tmp_path / "other" / "its.sock"
    came: list[str] = []

    async def serve(_: StreamReader, writer: StreamWriter) -> None:
        came.append(kind)
        writer.close()

    async def meet() -> None:
        async with await asyncio.start_unix_server(serve, listening):
            if listening != lies_there:
                lies_there.symlink_to(listening)
            with contextlib.suppress(HypervisorError):
                await VISITS[visit](lies_there)
            await asyncio.sleep(0)

    asyncio.run(meet())
    assert came == (["its own socket"] if kind == "its own socket" else [])


UNIT = Path(__file__).parents[2] / "systemd" / "aetherscale-vm@.service"


@pytest.mark.parametrize("call", ["symlink", "symlinkat", "link", "linkat", "mkdir", "mkdirat", "mknod", "mknodat"])
def test_a_qemu_can_make_no_links(call: str) -> None:
    assert call in find_denied()


@pytest.mark.parametrize("call", ["io_uring_setup", "io_uring_enter", "io_uring_register"])
def test_nor_has_it_the_kernel_make_them_where_no_filter_sees_it(call: str) -> None:
    assert call in find_denied()


def find_denied() -> set[str]:
    lines = [line.partition("=") for line in UNIT.read_text().splitlines()]
    return {
        call for key, _, value in lines if key == "SystemCallFilter" and value[0] == "~" for call in value[1:].split()
    }
