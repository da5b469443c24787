"""The tables of docs/protocol.md are the code's. A test that fails shows the table as it should stand there."""

from pathlib import Path

import pytest

from aetherscale_protocol import topology
from aetherscale_protocol.commands import COMMANDS, Command, Reach
from aetherscale_protocol.errors import CODES

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()

WHO = {
    Reach.ONE: "one agent",
    Reach.ALL: "all agents",
    Reach.HOLDER: "all, or `vm.<vm-id>`",
    Reach.HOST: "`host.<host>`",
}


def options(command: Command) -> str:
    struct = command.options
    required = len(struct.__struct_fields__) - len(struct.__struct_defaults__)
    shown = [f"`{name}`" if n < required else f"[`{name}`]" for n, name in enumerate(struct.__struct_encode_fields__)]
    return " ".join(shown) or "–"


def command_table() -> str:
    rows = ["| command | reaches | options | |", "|---|---|---|---|"]
    for command in COMMANDS.values():
        rows.append(f"| `{command.name}` | {WHO[command.reach]} | {options(command)} | {command.summary} |")
    return "\n".join(rows)


def queue_table() -> str:
    rows = ["| queue | arguments |", "|---|---|"]
    queues = (
        *topology.SHARED_QUEUES,
        topology.host_queue("<host>"),
        topology.known("<host>"),
        topology.claim("<vm-id>", "<host>"),
    )
    for queue in queues:
        arguments = ", ".join(f"`{key.removeprefix('x-')}: {value!r}`" for key, value in queue.arguments.items())
        rows.append(f"| `{queue.name}` | {arguments} |")
    return "\n".join(rows)


@pytest.mark.parametrize("table", [command_table, queue_table])
def test_a_table_is_the_codes(table: object) -> None:
    assert callable(table)
    assert table() in PAGE


@pytest.mark.parametrize("code", CODES)
def test_every_error_code_is_told(code: str) -> None:
    assert f"`{code}`" in PAGE


@pytest.mark.parametrize(
    "limit",
    [
        f"{topology.HOST_TTL_MS // 1000} s",
        f"{topology.COMPETING_TTL_MS // 1000} s",
        f"{topology.MAX_PATIENCE_S} s",
        f"{topology.CLAIM_EXPIRES_MS // 60_000} min",
    ],
)
def test_every_limit_is_told(limit: str) -> None:
    assert limit in PAGE
