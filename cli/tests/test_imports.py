"""What the CLI may import, and when: it must not know the agent, and `--help` must not wait for pika."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import aetherscale_cli
import aetherscale_protocol
from aetherscale_cli.main import UNUSED

SOURCES = sorted(Path(aetherscale_cli.__file__).parent.glob("*.py"))
PACKAGES = (aetherscale_cli, aetherscale_protocol)
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
    ):
        source = next(path for path in SOURCES if path.name == name)
        assert not imported(source) & acting, name


def loaded(*argv: str, folder: Path) -> set[str]:
    """The modules that a whole run of the CLI has imported; not what `site` does for packages that are editable."""
    path = [*(str(Path(package.__file__ or "").parents[1]) for package in PACKAGES), *sys.path]
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "HOME": str(folder),
        "RABBITMQ_HOST": "127.0.0.1:1",
    }
    done = subprocess.run(
        [sys.executable, "-S", "-X", "importtime", "-c", RUN, *argv], env=environ, capture_output=True, text=True
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    refused = {"imported package", "typing_extensions"}  # the heading; and what is tried, and kept from being loaded
    return {line.rpartition("|")[2].strip() for line in lines} - refused


def whose(modules: set[str]) -> set[str]:
    """Those that are not Python's own, each by its package; ours in full."""
    named = {name if name.startswith("aetherscale_") else name.partition(".")[0] for name in modules}
    own = sys.stdlib_module_names | {"sitecustomize", "usercustomize", "_distutils_hack", "encodings", "zipimport"}
    return {name for name in named if name not in own and not name.startswith(("_", "apport"))}


SLOW = {"ssl", "socket", "json", "asyncio", "logging", "dataclasses", "hashlib", "urllib", "inspect", "subprocess",
        "threading", "traceback", "tempfile", "tomllib", "random", "email"}  # fmt: skip
"""Python's own that take long to load, and are not needed to read a command line."""

HELP = {
    "aetherscale_cli", "aetherscale_cli.main", "aetherscale_cli.errors", "aetherscale_cli.arguments",
    "aetherscale_cli.arguments_create", "aetherscale_cli.arguments_stream", "aetherscale_cli.ssh",
    "aetherscale_cli.text", "aetherscale_cli.values",
    "aetherscale_protocol", "aetherscale_protocol.answers", "aetherscale_protocol.commands",
    "aetherscale_protocol.errors", "aetherscale_protocol.names", "aetherscale_protocol.options",
    "aetherscale_protocol.sparing", "aetherscale_protocol.topology",
    "msgspec",
}  # fmt: skip
"""All that a help takes, but for what is Python's own."""


@pytest.mark.parametrize("argv", [["--help"], ["create-vm", "--help"], ["stop-vm"], ["no-such-command"], []])
def test_a_help_and_a_usage_error_load_just_what_reads_the_command_line(argv: list[str], tmp_path: Path) -> None:
    modules = loaded(*argv, folder=tmp_path)
    assert whose(modules) == HELP
    assert not modules & SLOW


def test_the_completions_load_little_more_and_build_no_whole_command_line(tmp_path: Path) -> None:
    modules = loaded("completion", "bash", folder=tmp_path)
    assert whose(modules) == HELP | {"aetherscale_cli.completion", "aetherscale_cli.outlet"}
    assert not modules & SLOW


@pytest.mark.parametrize("argv", [["--version"], ["list-contexts"], ["completion", "bash"], ["__complete", "contexts"]])
def test_what_needs_no_broker_imports_no_pika(argv: list[str], tmp_path: Path) -> None:
    modules = loaded(*argv, folder=tmp_path)
    assert "aetherscale_cli.main" in modules
    assert not modules & {"pika", "ssl", "yaml", "asyncio", "logging", "dataclasses", "inspect"}
    if argv[0] == "__complete":
        assert "argparse" not in modules


def test_a_listing_loads_none_of_what_it_never_uses(tmp_path: Path) -> None:
    modules = loaded("list-vms", folder=tmp_path)
    assert {"pika", "ssl"} <= modules
    unused = {"yaml", "json", "asyncio", "inspect", "subprocess", "tempfile", "shutil", "tomllib"}
    assert not modules & (unused | {*UNUSED})
    ours = {name for name in modules if name.startswith("aetherscale_cli.")}
    assert not ours & {
        f"aetherscale_cli.{name}" for name in ("doctor", "workflows", "insist", "stream_commands", "apply")
    }


def test_what_is_left_out_can_still_be_named_but_not_used() -> None:
    code = (
        "from aetherscale_cli.main import UNUSED; from aetherscale_protocol.sparing import spare; spare(*UNUSED);"
        "import msgspec, pika;"
        "from msgspec import inspect; from pika.adapters import AsyncioConnection;"
        "assert AsyncioConnection is None and inspect.type_info is None; pika.SelectConnection.add_on_close_callback"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
