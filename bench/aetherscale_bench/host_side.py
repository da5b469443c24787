"""Runs on a host of the lab, and is told by lines of JSON what to do: so what is timed there has no ssh in it.

A line is a list of steps, done one after the other; the answer is a line with the milliseconds of each. By the Python
of the agent's virtual environment, which has dbus-fast: a process of `systemctl` would cost more than what it starts.
"""

import asyncio
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dbus_fast import BusType, Message, MessageType
from dbus_fast.aio import MessageBus

SYSTEMD = "org.freedesktop.systemd1"
MANAGER = f"{SYSTEMD}.Manager"
UNITS = "/org/freedesktop/systemd1/unit"
DBUS = "org.freedesktop.DBus"
LIMIT_S = 60
AT_ONCE = 64  #: processes of `run`


class Host:
    """What can be done here."""

    def __init__(self, bus: MessageBus) -> None:
        self._bus = bus
        self._jobs: defaultdict[str, asyncio.Future[str]] = defaultdict(asyncio.Future)
        self._events: dict[str, asyncio.Task[list[Any]]] = {}
        bus.add_message_handler(self._on_message)

    async def run(self, *argv: str) -> None:
        """Run a program to its end; it must succeed."""
        done = await asyncio.to_thread(
            subprocess.run, argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(argv)}: {done.stderr or done.stdout}")

    async def each(self, *chains: list[list[str]]) -> list[float]:
        """Do these lists of steps at once; ms until each is done."""
        begin = time.perf_counter()

        async def do(steps: list[list[str]]) -> float:
            for name, *arguments in steps:
                await getattr(self, name)(*arguments)
            return (time.perf_counter() - begin) * 1000

        return await asyncio.gather(*map(do, chains))

    async def start(self, unit: str) -> None:
        """Start a unit; done when systemd's job is."""
        await self._job("StartUnit", unit)

    async def stop(self, unit: str) -> None:
        """Stop a unit; done when systemd's job is."""
        await self._job("StopUnit", unit)

    async def greet(self, path: str) -> None:
        """Connect to a QEMU's monitor as soon as it can be, and read its greeting."""
        reader, writer = await self._connect(path)
        if b"QMP" not in await reader.readline():
            raise RuntimeError(f"{path} does not greet")
        writer.close()

    async def running(self, path: str) -> None:
        """Ask a QEMU's monitor, as soon as it can be asked, until the guest runs."""
        reader, writer = await self._connect(path)
        await reader.readline()
        writer.write(b'{"execute": "qmp_capabilities"}\n')
        await reader.readline()
        while True:
            writer.write(b'{"execute": "query-status"}\n')
            if json.loads(await reader.readline()).get("return", {}).get("running"):
                break
            await asyncio.sleep(0.0005)
        writer.close()

    async def watch(self, path: str, unit: str) -> None:
        """Note what a QEMU's monitor tells of, and its end, and its unit's; `told` gives it."""
        reader, writer = await asyncio.open_unix_connection(path)
        await reader.readline()
        writer.write(b'{"execute": "qmp_capabilities"}\n')
        await reader.readline()
        endings = [asyncio.create_task(self._exit(writer)), asyncio.create_task(await self._rest(unit))]
        self._events[path] = asyncio.create_task(self._read_events(reader, writer, endings))

    async def told(self, path: str) -> list[Any]:
        """What a watched monitor told of, then EOF, EXIT of QEMU's process, REST of its unit: in s since the epoch."""
        return await self._events.pop(path)

    async def _connect(self, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while True:
            try:
                return await asyncio.open_unix_connection(path)
            except OSError:
                await asyncio.sleep(0.0005)

    async def _exit(self, monitor: asyncio.StreamWriter) -> list[Any]:
        """When the process that listens there has ended."""
        credentials = monitor.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        process, loop = os.pidfd_open(struct.unpack("3i", credentials)[0]), asyncio.get_running_loop()
        ended: asyncio.Future[float] = loop.create_future()

        def on_end() -> None:
            loop.remove_reader(process)
            os.close(process)
            ended.set_result(time.time())

        loop.add_reader(process, on_end)
        return ["EXIT", await ended]

    async def _rest(self, unit: str) -> Coroutine[Any, Any, list[Any]]:
        """When a unit, which is on now, came to rest, by systemd's own clock."""
        path = f"{UNITS}/" + "".join(c if c.isalnum() else f"_{ord(c):02x}" for c in unit)
        resting: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()

        def on_message(message: Message) -> None:
            if message.path == path and message.member == "PropertiesChanged" and not resting.done():
                state = message.body[1].get("ActiveState")
                if state is not None and state.value in ("inactive", "failed"):
                    resting.set_result(["REST", message.body[1]["InactiveEnterTimestamp"].value / 1e6])

        rule = f"type='signal',sender='{SYSTEMD}',member='PropertiesChanged',path='{path}'"
        self._bus.add_message_handler(on_message)
        await call_bus(self._bus, "AddMatch", rule)

        async def wait() -> list[Any]:
            try:
                return await resting
            finally:
                self._bus.remove_message_handler(on_message)
                await call_bus(self._bus, "RemoveMatch", rule)

        return wait()

    async def _read_events(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, endings: list[asyncio.Task[list[Any]]]
    ) -> list[Any]:
        events = []
        while line := await reader.readline():
            event = json.loads(line)
            stamp = event["timestamp"]
            events.append((event["event"], stamp["seconds"] + stamp["microseconds"] / 1e6))
        events.append(("EOF", time.time()))
        writer.close()
        return [*events, *await asyncio.gather(*endings)]

    async def _job(self, member: str, unit: str) -> None:
        message = Message(
            destination=SYSTEMD,
            path="/org/freedesktop/systemd1",
            interface=MANAGER,
            member=member,
            signature="ss",
            body=[unit, "replace"],
        )
        reply = await self._bus.call(message)
        if reply is None or reply.message_type is MessageType.ERROR:
            raise RuntimeError(f"{member} {unit}: {reply and reply.body}")
        if (result := await self._jobs[reply.body[0]]) != "done":
            raise RuntimeError(f"{member} {unit}: {result}")

    def _on_message(self, message: Message) -> None:
        if message.member == "JobRemoved" and not (job := self._jobs[message.body[1]]).done():
            job.set_result(message.body[3])


async def call_bus(bus: MessageBus, member: str, rule: str) -> None:
    """Tell the bus what we want to hear, or no longer."""
    call = Message(destination=DBUS, path="/org/freedesktop/DBus", interface=DBUS, member=member, signature="s")
    call.body = [rule]
    reply = await bus.call(call)
    if reply is None or reply.message_type is MessageType.ERROR:
        raise RuntimeError(f"{member} {rule}: {reply and reply.body}")


async def main() -> None:
    """Until stdin ends."""
    bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
    await call_bus(bus, "AddMatch", f"type='signal',sender='{SYSTEMD}',interface='{MANAGER}',member='JobRemoved'")
    host = Host(bus)
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(AT_ONCE))
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        answer: list[Any] = []
        try:
            for name, *arguments in json.loads(line):
                begin = time.perf_counter()
                async with asyncio.timeout(LIMIT_S):
                    result = await getattr(host, name)(*arguments)
                answer.append(result if result is not None else (time.perf_counter() - begin) * 1000)
        except Exception as error:  # told to who asked
            answer = [f"{type(error).__name__}: {error}"]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
