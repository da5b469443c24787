"""Word to systemd: ready, alive, what is going on. Nothing happens where systemd did not start us.

Source: sd_notify(3); the protocol is a datagram to the socket named in NOTIFY_SOCKET.
"""

import asyncio
import contextlib
import os
import socket


def notify(*assignments: str) -> None:
    """Tell systemd, e.g. `READY=1`, `STATUS=…`, `WATCHDOG=1`. If it does not listen, that is no reason to stop."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    with sock, contextlib.suppress(OSError):
        sock.sendto("\n".join(assignments).encode(), "\0" + address[1:] if address.startswith("@") else address)


async def keep_watchdog_fed() -> None:
    """Feed systemd's watchdog from the event loop, so that a loop that hangs is noticed; until cancelled."""
    interval_s = int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6 or 3600.0
    while True:
        notify("WATCHDOG=1")
        await asyncio.sleep(interval_s / 3)
