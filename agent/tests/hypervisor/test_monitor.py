"""At a VM's monitor may listen somebody who broke out of its QEMU: nothing that they say is more than an error."""

import asyncio
import json
from asyncio import StreamReader, StreamWriter
from pathlib import Path

import pytest

from aetherscale_agent.hypervisor import monitor
from aetherscale_agent.hypervisor.monitor import MonitorError
from aetherscale_agent.ports import OutcomeUnknown

GREETING = b'{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}}, "capabilities": []}}\n'


def execute(socket: Path, says: bytes, timeout: float = 5) -> object:
    """Execute a command at a monitor that greets as QEMU does, and says this to the command; ID stands for its id."""

    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        try:
            writer.write(GREETING)
            await reader.read(1024)  # qmp_capabilities
            writer.write(b'{"return": {}}\n')
            command = json.loads(await reader.read(1024))
            writer.write(says.replace(b"ID", json.dumps(command["id"]).encode()))
            await reader.read()
        except OSError:
            pass
        finally:
            writer.close()

    async def meet() -> object:
        async with await asyncio.start_unix_server(serve, socket):
            return await monitor.execute(socket, "quit", timeout)

    return asyncio.run(meet())


def test_qemus_own_answer(tmp_path: Path) -> None:
    assert execute(tmp_path / "qmp.sock", b'{"return": {"a": 1}, "id": ID}\n') == {"a": 1}


def test_a_qemu_that_does_not_answer_in_time_may_have_done_it(tmp_path: Path) -> None:
    with pytest.raises(OutcomeUnknown, match="did not answer quit within"):
        execute(tmp_path / "qmp.sock", b"", timeout=0.2)


def test_a_qemu_that_says_no_has_not_done_it(tmp_path: Path) -> None:
    with pytest.raises(MonitorError) as caught:
        execute(tmp_path / "qmp.sock", b'{"error": {"class": "GenericError", "desc": "no"}, "id": ID}\n')
    assert not isinstance(caught.value, OutcomeUnknown)


@pytest.mark.parametrize(
    "says",
    [
        b"[" * 100_000 + b"\n",
        b'{"event": "X", "data": ' + b'{"a":' * 100_000 + b"\n",
        b'{"return": ' + b"9" * 5000 + b', "id": ID}\n',
        b"\xff\xfe\n",
        b"x" * (11 << 20),
        b"null\n",
        b'{"error": {"class": "GenericError", "desc": "no"}, "id": ID}\n',
    ],
    ids=lambda says: repr(says[:12]),
)
def test_what_is_no_answer_is_an_error_and_nothing_else(says: bytes, tmp_path: Path) -> None:
    with pytest.raises(MonitorError) as caught:
        execute(tmp_path / "qmp.sock", says)
    assert len(str(caught.value)) <= 500


def test_a_monitor_that_says_nothing_is_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(MonitorError, match="did not answer quit within"):
        execute(tmp_path / "qmp.sock", b"", 0.05)
