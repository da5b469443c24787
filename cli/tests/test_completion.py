"""Completions, as the shells themselves make them of our scripts."""

import fcntl
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest

from aetherscale_cli import completion
from aetherscale_cli.arguments import build_parser
from aetherscale_testing import completions
from aetherscale_testing.session import MemorySession, vm

Use = Any


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder whose `aetherscale-cli` knows three VMs, and three hosts in context lab, where others would be asked; it
    prints the script that is in this folder, and says what it is run with.
    """
    program = tmp_path / "aetherscale-cli"
    program.write_text(
        '#!/bin/sh\ncase "$*" in\n"__complete vms") echo web1; echo web2; echo abcdefgh;;\n'
        '"__complete hosts --context lab") echo h1; echo h2; echo node7;;\n"__complete images") echo debian;;\n'
        '"__complete contexts") echo lab;;\n__complete*) ;;\n'
        f'completion*) cat "{tmp_path}/script";;\n*) echo "[ran $*]";;\nesac\n'
    )
    program.chmod(0o755)
    return tmp_path


def find_shell(shell: str) -> str:
    program = shutil.which(shell)
    assert program is not None, f"there is no {shell} here: make unit installs it"
    return program


def make_environ(folder: Path) -> dict[str, str]:
    environ = {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(folder)}
    return environ | {name: os.environ[name] for name in ("FPATH", "LD_LIBRARY_PATH") if name in os.environ}


def complete(shell: str, folder: Path, line: str) -> list[str]:
    """The words that a shell offers at the end of this line."""
    program = find_shell(shell)
    (folder / "script").write_text(completion.script(shell))
    words = line.split(" ")
    if shell == "fish":
        code = f"source {folder}/script; complete -C '{line}'"
    else:
        quoted = " ".join(f"'{word}'" for word in words)
        code = (
            f"source {folder}/script; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; "
            'COMPREPLY=(); _aetherscale_cli; printf "%s\\n" "${COMPREPLY[@]}"'
        )
        if shell == "zsh":
            code = code.replace("COMP_WORDS=", "emulate bash 2>/dev/null; setopt ksharrays; COMP_WORDS=", 1)
    environ = make_environ(folder)
    done = subprocess.run([program, "-c", code], env=environ, cwd=folder, capture_output=True, text=True, timeout=20)
    assert done.stderr == ""
    offered = sorted(one.split("\t")[0] for one in done.stdout.splitlines() if one)
    if shell == "zsh":  # its compgen leaves it to compadd to take those that begin so
        offered = [one for one in offered if one.startswith(words[-1])]
    return offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("stop", ["stop-vm"]),
        ("stop-vm we", ["web1", "web2"]),
        ("stop-vm web1 a", ["abcdefgh"]),
        ("stop-vm --k", ["--kill"]),
        ("create-vm --image d", ["debian"]),
        ("create-vm --wait s", ["ssh"]),
        ("list-vms -o y", ["yaml"]),
        ("list-vms --state paus", ["paused"]),
        ("drain-host --context lab h", ["h1", "h2"]),
        ("drain-host h", []),
        ("--context l", ["lab"]),
        ("-o y", ["yaml"]),
        ("--deb", ["--debug"]),
        ("--context lab drain-h", ["drain-host"]),
        ("--context lab drain-host n", ["node7"]),
        ("completion z", ["zsh"]),
        ("apply --file scr", ["script"]),
    ],
)
def test_what_a_shell_offers(shell: str, folder: Path, typed: str, offered: list[str]) -> None:
    assert complete(shell, folder, f"aetherscale-cli {typed}") == offered


PATIENCE_S = 60.0
READY = "READY> "
HOOKUPS = {
    "bash": (["-i"], ".bashrc", f"PS1='{READY}'; source <(aetherscale-cli completion bash)"),
    "zsh": (["-d", "-i"], ".zshrc", f"PROMPT='{READY}'; source <(aetherscale-cli completion zsh)"),
    "fish": (
        ["-i"],
        ".config/fish/config.fish",
        f"function fish_prompt; echo -n '{READY}'; end\nset -g fish_greeting\naetherscale-cli completion fish | source",
    ),
}
"""How each shell is started at a terminal, and what is in which file then: the completions as docs/cli.md has them."""


class Terminal:
    """A shell at a terminal of its own, where somebody types."""

    def __init__(self, shell: str, folder: Path) -> None:
        options, file, hookup = HOOKUPS[shell]
        (folder / "script").write_text(completion.script(shell))
        (folder / ".local/share/fish/generated_completions").mkdir(parents=True)  # or fish reads all manuals for them
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(f"{hookup}\n")
        self._ours, theirs = pty.openpty()
        self._shell = subprocess.Popen(
            [find_shell(shell), *options],
            env=make_environ(folder) | {"TERM": "dumb"},
            cwd=folder,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)
        self._screen = ""

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self._shell.kill()
        self._shell.wait()
        os.close(self._ours)

    def run(self, typed: str) -> str:
        """What a command was run with, of which this was typed, then Tab and Enter."""
        self._read_to(READY)
        os.write(self._ours, f"{typed}\t\r".encode())
        return self._read_to(r"\[ran (.*?)\]")

    def _read_to(self, pattern: str) -> str:
        limit = time.monotonic() + PATIENCE_S
        while (found := re.search(pattern, self._screen)) is None:
            readable, _, _ = select.select([self._ours], [], [], limit - time.monotonic())
            assert readable, f"{pattern} did not come, but {self._screen!r}"
            self._screen += os.read(self._ours, 65536).decode(errors="replace")
        self._screen = self._screen[found.end() :]
        return found[found.re.groups]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_tab_at_a_terminal(shell: str, folder: Path) -> None:
    expected = {
        "stop": "stop-vm",
        "stop-vm abc": "stop-vm abcdefgh",
        "stop-vm web1 --k": "stop-vm web1 --kill",
        "-o y": "-o yaml",
        "--context ": "--context lab",
        "--context lab drain-h": "--context lab drain-host",
        "--context=lab drain-host n": "--context=lab drain-host node7",
        "create-vm --image d": "create-vm --image debian",
        "create-vm --image=": "create-vm --image=debian",
        "create-vm --image=d": "create-vm --image=debian",
        "apply --file scr": "apply --file script",
        "apply --file=scr": "apply --file=script",
    }
    with Terminal(shell, folder) as terminal:
        assert {typed: terminal.run(f"aetherscale-cli {typed}") for typed in expected} == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_command_and_every_option_is_in_the_script(shell: str, cli: Any) -> None:
    script = cli("completion", shell).out
    verbs = list(completions.read_verbs(build_parser()))
    assert len(verbs) > 20
    for verb in verbs:
        assert verb.name in script
        for option in verb.options:
            assert all((flag if shell != "fish" else flag.lstrip("-")) in script for flag in option.flags)


@pytest.mark.parametrize("shell", completions.SHELLS)
def test_what_is_printed_is_what_make_completions_makes(shell: str, cli: Any) -> None:
    assert cli("completion", shell).out == completions.make(shell)


class TestLive:
    @pytest.fixture(autouse=True)
    def _session(self, use: Use) -> None:
        use(MemorySession({"h1": [vm("abcdefgh", name="web1"), vm("bbbbbbbb")]}, down={"h2": []}))

    @pytest.mark.parametrize(
        ("kind", "out"),
        [
            ("vms", "abcdefgh\nbbbbbbbb\nweb1\n"),
            ("hosts", "h1\nh2\n"),
            ("images", "debian\n"),
            ("contexts", ""),
            ("nonsense", ""),
        ],
    )
    def test_words(self, cli: Any, kind: str, out: str) -> None:
        ran = cli("__complete", kind)
        assert (ran.code, ran.out, ran.err) == (0, out, "")

    def test_it_is_no_command_for_people(self, cli: Any) -> None:
        assert "__complete" not in cli("--help").out


@pytest.mark.parametrize("environ", [{"RABBITMQ_HOST": "127.0.0.1:1"}, {"AETHERSCALE_CONTEXT": "none"}])
def test_what_goes_wrong_is_not_told_in_the_middle_of_a_line(cli: Any, environ: dict[str, str]) -> None:
    for argv in (["vms"], ["vms", "--context", "none"], []):
        ran = cli("__complete", *argv, environ=environ)
        assert (ran.code, ran.out, ran.err) == (0, "", "")


def test_scripts_need_no_broker(tmp_path: Path) -> None:
    environ = {"PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(tmp_path), "RABBITMQ_HOST": "127.0.0.1:1"}
    run = "from aetherscale_cli.main import run; run()"
    done = subprocess.run([sys.executable, "-c", run, "completion", "bash"], env=environ, capture_output=True)
    assert done.returncode == 0


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    environ = {"PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(tmp_path)}
    argv = [sys.executable, "-c", "from aetherscale_cli.main import run; run()", "completion", "bash"]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(argv, env=environ, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "error: can't write the output: No space left on device\n")
