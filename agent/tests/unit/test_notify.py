"""Word to systemd, over a real datagram socket."""

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aetherscale_agent import notify as notify_module
from aetherscale_agent.notify import keep_watchdog_fed, notify


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """systemd's end of the socket."""
    name = f"aetherscale-test-{os.getpid()}-{id(request)}"
    path = str(tmp_path / "notify") if request.param == "path" else f"\0{name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", path.replace("\0", "@"))
        yield sock


def test_one_datagram_holds_all_assignments(systemd: socket.socket) -> None:
    notify("READY=1", "STATUS=connected as hôst")
    assert systemd.recv(4096) == "READY=1\nSTATUS=connected as hôst".encode()


def test_every_word_is_a_datagram_of_its_own(systemd: socket.socket) -> None:
    notify("WATCHDOG=1")
    notify("STOPPING=1")
    assert [systemd.recv(4096), systemd.recv(4096)] == [b"WATCHDOG=1", b"STOPPING=1"]


@pytest.mark.parametrize("address", [None, ""])
def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch, address: str | None) -> None:
    if address is None:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    else:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify("READY=1")


def test_a_systemd_that_does_not_listen_stops_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    notify("READY=1")


@pytest.mark.parametrize(("usec", "interval"), [("30000000", 10.0), ("3000000", 1.0), (None, 1200.0), ("0", 1200.0)])
def test_the_watchdog_is_fed_three_times_as_often_as_it_must_be(
    systemd: socket.socket, monkeypatch: pytest.MonkeyPatch, usec: str | None, interval: float
) -> None:
    if usec is None:
        monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    else:
        monkeypatch.setenv("WATCHDOG_USEC", usec)
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            raise asyncio.CancelledError

    monkeypatch.setattr(notify_module.asyncio, "sleep", sleep)  # type: ignore[attr-defined]
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(keep_watchdog_fed())
    assert slept == [pytest.approx(interval)] * 3
    assert [systemd.recv(99) for _ in slept] == [b"WATCHDOG=1"] * 3


def test_a_loop_that_hangs_is_not_fed(systemd: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fed from the loop itself, and from nowhere else: no thread, no timer of the kernel's."""
    monkeypatch.setenv("WATCHDOG_USEC", "90000")  # 0.03 s from one to the next

    async def run() -> None:
        feeding = asyncio.create_task(keep_watchdog_fed())
        systemd.setblocking(False)
        loop = asyncio.get_running_loop()
        for _ in range(2):
            assert await loop.sock_recv(systemd, 99) == b"WATCHDOG=1"  # the control: it is fed while the loop turns
        time.sleep(0.3)  # noqa: ASYNC251 (this is the hang)
        with pytest.raises(BlockingIOError):
            systemd.recv(99)
        assert await loop.sock_recv(systemd, 99) == b"WATCHDOG=1"  # and again when it goes on
        feeding.cancel()

    asyncio.run(run())
