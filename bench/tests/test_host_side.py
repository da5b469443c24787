"""Steps done at once on a host."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from dbus_fast import Message, MessageType

from aetherscale_bench.host_side import Host


class Systemd:
    """A bus whose jobs are done before their number is told, and in another order than they were asked for."""

    def __init__(self, result: str) -> None:
        self._result = result
        self._tell: list[Callable[[Message], object]] = []
        self._asked: list[str] = []

    def add_message_handler(self, handler: Callable[[Message], object]) -> None:
        self._tell.append(handler)

    async def call(self, message: Message) -> Message:
        job = f"/job/{message.body[0]}"
        self._asked.append(job)
        await asyncio.sleep(0)  # until all have asked
        for one in reversed(self._asked):
            signal = Message(message_type=MessageType.SIGNAL, path="/x", interface="x.y", member="JobRemoved")
            signal.signature, signal.body = "uoss", [1, one, "u", self._result]
            for tell in self._tell:
                tell(signal)
        self._asked.clear()
        return Message(message_type=MessageType.METHOD_RETURN, reply_serial=1, signature="o", body=[job])


def each(result: str, *chains: list[list[str]]) -> list[float]:
    """What they take."""
    bus: Any = Systemd(result)

    async def run() -> list[float]:
        async with asyncio.timeout(10):
            return await Host(bus).each(*chains)

    return asyncio.run(run())


def test_each_waits_for_its_own_jobs() -> None:
    assert len(each("done", [["run", "true"], ["start", "a"]], [["start", "b"], ["start", "c"]])) == 2


@pytest.mark.parametrize("chain", [[["start", "a"]], [["run", "false"]]])
def test_what_fails_is_told(chain: list[list[str]]) -> None:
    with pytest.raises(RuntimeError):
        each("failed", chain)
