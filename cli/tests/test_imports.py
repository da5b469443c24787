"""What the CLI may import, and when: it must not know the agent, and `--help` must not wait for pika."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import aetherscale_cli
from aetherscale_testing import budgets

SOURCES = sorted(Path(aetherscale_cli.__file__).parent.glob("*.py"))
RUN = "from aetherscale_cli.main import run; run()"


def imported(source: Path) -> set[str]:
    """The modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_the_cli_never_imports_the_agent(source: Path) -> None:
    assert not [name for name in imported(source) if name.startswith("aetherscale_agent")]


def test_pika_is_behind_one_door() -> None:
    with_pika = {path.name for path in SOURCES if any(name.split(".")[0] == "pika" for name in imported(path))}
    assert with_pika == {"broker.py", "broker_errors.py", "doctor_session.py", "stream_session.py"}


def test_what_decides_does_not_act() -> None:
    acting = {"os", "socket", "subprocess", "time", "pika", "aetherscale_cli.broker"}
    for name in (
        "gather.py",
        "settle.py",
        "report.py",
        "views.py",
        "text.py",
        "arguments.py",
        "waiting.py",
        "doctor.py",
        "doctor_facts.py",
        "doctor_hosts.py",
        "values.py",
        "arguments_create.py",
        "lists.py",
        "outputs.py",
        "manifest.py",
        "differences.py",
        "completion.py",
    ):
        source = next(path for path in SOURCES if path.name == name)
        assert not imported(source) & acting, name


def test_what_needs_no_broker_imports_no_pika(tmp_path: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(tmp_path)}
    counted = {}
    for line in ("--help", "--version", "stop-vm", "list-contexts", "completion bash"):
        argv = [sys.executable, "-X", "importtime", "-c", RUN, *line.split()]
        done = subprocess.run(argv, env=environ, capture_output=True, text=True)
        counted[line] = budgets.count_imports(done.stderr)
        assert not {"pika", "ssl", "yaml", "asyncio", "logging", "dataclasses"} & counted[line].keys()
    budgets.hold("CLI, modules without a broker", counted)
