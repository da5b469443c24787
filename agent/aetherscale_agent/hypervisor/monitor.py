"""QEMU's monitor (QMP). A connection per call: an agent that is killed leaves no state behind, and 2 ms are cheap.

A QMP socket serves one client at a time, and a hung QEMU serves none: every call is bounded. A guest may have broken
out into its QEMU, so what comes may also be no QMP at all.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path

from qemu.qmp import ExecInterruptedError, QMPClient
from qemu.qmp.error import QMPError

from aetherscale_agent.hypervisor import files
from aetherscale_agent.ports import HypervisorError, OutcomeUnknown

RETRY = 0.003
"""Seconds between looks for a monitor that is not there yet."""

LEAVE_TIMEOUT = 1.0
"""Seconds for the goodbye to a QEMU that may hang."""

# It reports at ERROR what the caller gets as an exception too, and every QEMU's end is one of these.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


class MonitorError(HypervisorError):
    """QEMU's monitor is gone, or does not answer, or said no."""


class Unanswered(MonitorError, OutcomeUnknown):
    """QEMU did not say in time what became of a command."""


_TROUBLES = (QMPError, EOFError, OSError, ValueError, RecursionError)
"""The last two the library lets through: of lines without end, of text that is none, and of JSON a mile deep."""


class _Client(QMPClient):
    """A client whose background tasks end without a word when QEMU does.

    The library leaves the exception of its gathered tasks unread when QEMU closes first, and asyncio then
    reports "_GatheringFuture exception was never retrieved" at some later moment.
    """

    async def _establish_session(self) -> None:
        await super()._establish_session()
        tasks = self._bh_tasks
        if tasks is not None:
            tasks.add_done_callback(lambda done: done.cancelled() or done.exception())


_leaving: set[asyncio.Task[None]] = set()


@contextlib.asynccontextmanager
async def connected(socket: Path) -> AsyncIterator[QMPClient]:
    """A monitor's client, connected."""
    client = _Client("aetherscale")
    with files.own_socket(socket) as address:
        await client.connect(address)
    try:
        yield client
    finally:
        # A task of its own: a caller that is cancelled must not tear the library's own goodbye apart.
        task = asyncio.create_task(_leave(client))
        _leaving.add(task)
        task.add_done_callback(_leaving.discard)
        await asyncio.shield(task)


async def _leave(client: QMPClient) -> None:
    # QEMU that ends while we leave is no error of ours.
    with contextlib.suppress(*_TROUBLES):
        async with asyncio.timeout(LEAVE_TIMEOUT):
            await client.disconnect()


async def execute(socket: Path, command: str, timeout: float, arguments: dict[str, object] | None = None) -> object:
    """Execute one QMP command within `timeout` seconds.

    :raise Unanswered: when QEMU does not answer in time, or is gone before it did.
    :raise MonitorError: when it is not there, or refuses.
    """
    try:
        async with asyncio.timeout(timeout), connected(socket) as client:
            return await client.execute(command, arguments)
    except TimeoutError:
        raise Unanswered(f"QEMU did not answer {command} within {timeout:g} s") from None
    except ExecInterruptedError:
        raise Unanswered(f"QEMU was gone before it answered {command}") from None
    except _TROUBLES as error:
        raise MonitorError(f"QEMU did not take {command}: {error}"[:500]) from None


async def wait_running(socket: Path) -> None:
    """Wait until QEMU runs its guest. Cancel it to stop waiting."""
    while True:
        # A look at the file costs less than a failed connection of the library's.
        if os.path.exists(socket):  # noqa: ASYNC240 (a run-time directory is in memory)
            with contextlib.suppress(*_TROUBLES):
                async with connected(socket) as client:
                    status = await client.execute("query-status")
                    if isinstance(status, dict) and status.get("running"):
                        return
        await asyncio.sleep(RETRY)
