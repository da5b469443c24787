"""A VM's guest and disk while QEMU runs it: all by QEMU's monitor."""

from pathlib import Path
from typing import Any

from aetherscale_agent.hypervisor import monitor

TIMEOUT = 2.0
"""Seconds for what touches no disk."""

DISK_TIMEOUT = 30.0
"""Seconds for a change of the disk: QEMU flushes it first."""

NODE = "disk"
"""The overlay's node in QEMU's arguments. What asks for a `device` takes it too (measured with QEMU 7.2)."""


async def pause(socket: Path) -> None:
    """Let the guest stand still."""
    await monitor.execute(socket, "stop", TIMEOUT)


async def resume(socket: Path) -> None:
    """Let it go on."""
    await monitor.execute(socket, "cont", TIMEOUT)


async def reset(socket: Path) -> None:
    """Press the reset button."""
    await monitor.execute(socket, "system_reset", TIMEOUT)


async def is_paused(socket: Path) -> bool:
    """Whether somebody paused the guest; one that a full disk stalled is `io-error`."""
    status = await monitor.execute(socket, "query-status", TIMEOUT)
    return isinstance(status, dict) and status.get("status") == "paused"


async def info(socket: Path) -> dict[str, Any]:
    """What QEMU says of the disk.

    :raise MonitorError: when it does not answer, or has no such disk.
    """
    nodes = await monitor.execute(socket, "query-named-block-nodes", TIMEOUT, {"flat": True})
    for node in nodes if isinstance(nodes, list) else []:
        if node["node-name"] == NODE:
            image: dict[str, Any] = node["image"]
            return image
    raise monitor.MonitorError("QEMU knows no disk of this VM")


async def resize(socket: Path, size: int) -> None:
    """Make the disk `size` bytes large; the guest is told."""
    await monitor.execute(socket, "block_resize", DISK_TIMEOUT, {"node-name": NODE, "size": size})


async def snapshot(socket: Path, name: str) -> None:
    """Keep the disk as it is now; the guest's memory is no part of it."""
    arguments: dict[str, object] = {"device": NODE, "name": name}
    await monitor.execute(socket, "blockdev-snapshot-internal-sync", DISK_TIMEOUT, arguments)


async def delete_snapshot(socket: Path, name: str) -> None:
    """Delete a snapshot."""
    arguments: dict[str, object] = {"device": NODE, "name": name}
    await monitor.execute(socket, "blockdev-snapshot-delete-internal-sync", DISK_TIMEOUT, arguments)
